/* Writes an event of a repeated operation where nothing is due, nothing was lost and the file is open. Everything else
   is left to `recorder.SlowOperationRecorder`, which also does all of it where this was not built.

   Between two collectives the caches are cold, and Python touches much memory for little. A thread of a backend may
   write without the GIL (`fast_recorder.h`): so the lock is one that needs none, and nobody waits for it with the GIL. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "fast_recorder.h"

enum { FILE_, NEXT, LATE, SIZE, LIMIT, SEGMENT, OPEN, FORGOTTEN }; /* places in the recorder's numbers, as in
                                                                      recorder.py and past.py */
enum { COUNT, WIRE, FULL, FIRST, KEPT = 3, LAST = 8, ROW = 5, MAX_OPEN = 1024 }; /* as in past.py and digests.py */
enum { MAX_NUMBERS = 3, DIGITS = 20 };

typedef struct { /* a line, all but its numbers */
    char *text;  /* as it was filled in last */
    char *form;  /* what stands between the numbers, one piece after the other */
    Py_ssize_t ends[MAX_NUMBERS + 1];
    int numbers;
} Line;

typedef struct { /* as threading.RLock: a signal handler may record while its thread does */
    PyObject_HEAD
    pthread_mutex_t mutex;
} Lock;

static void
take(Lock *lock)
{
    if (pthread_mutex_trylock(&lock->mutex) == 0)
        return;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&lock->mutex);
    Py_END_ALLOW_THREADS
}

static PyObject *
lock_take(Lock *self, PyObject *Py_UNUSED(nothing))
{
    take(self);
    Py_RETURN_TRUE;
}

static PyObject *
lock_let_go(Lock *self, PyObject *Py_UNUSED(given))
{
    pthread_mutex_unlock(&self->mutex);
    Py_RETURN_NONE;
}

static PyObject *
lock_make(PyTypeObject *type, PyObject *Py_UNUSED(given), PyObject *Py_UNUSED(named))
{
    Lock *self = (Lock *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&self->mutex, &kind);
    pthread_mutexattr_destroy(&kind);
    return (PyObject *)self;
}

static void
lock_dealloc(Lock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    {"__enter__", (PyCFunction)lock_take, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)lock_let_go, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("A lock that its holder may take again, and that threads without the GIL may take.")},
    {Py_tp_new, lock_make},
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, lock_methods},
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "genlock.traces._fast_recorder.Lock",
    .basicsize = sizeof(Lock),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lock_slots,
};

typedef struct {
    PyObject_HEAD
    PyObject *whole, *cut, *sequence;
    Lock *lock;
    Py_buffer shared;
    Line enter, wait, exit;
    long long segment, number;
    unsigned long long wire, full; /* what an operation adds to a digest */
    Py_buffer way, open;           /* where it is counted, in a recording with a cap; else NULL */
} OperationRecorder;

/* Splits a form for `%`, as `format.blank` makes them: `%d` for a number, `%%` for a percent sign. */
static int
split(Line *line, const char *form, Py_ssize_t length, int numbers)
{
    line->form = PyMem_Malloc(length + 1);
    line->text = PyMem_Malloc(length + MAX_NUMBERS * DIGITS);
    if (line->form == NULL || line->text == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; i < length; i++) {
        if (form[i] == '%') {
            i++;
            if (form[i] == 'd' && line->numbers < numbers) {
                line->ends[line->numbers++] = at;
                continue;
            }
            if (form[i] != '%') {
                PyErr_SetString(PyExc_ValueError, "not a form of a line");
                return -1;
            }
        }
        line->form[at++] = form[i];
    }
    line->ends[line->numbers] = at;
    if (line->numbers == numbers)
        return 0;
    PyErr_Format(PyExc_ValueError, "a form with %d numbers is needed", numbers);
    return -1;
}

static Py_ssize_t
fill(Line *line, const long long *numbers)
{
    char *to = line->text;
    Py_ssize_t from = 0;
    for (int i = 0; i <= line->numbers; i++) {
        memcpy(to, line->form + from, line->ends[i] - from);
        to += line->ends[i] - from;
        from = line->ends[i];
        if (i < line->numbers) {
            char digits[DIGITS], *digit = digits + DIGITS;
            unsigned long long rest = numbers[i];
            do
                *--digit = '0' + rest % 10;
            while (rest /= 10);
            memcpy(to, digit, digits + DIGITS - digit);
            to += digits + DIGITS - digit;
        }
    }
    return to - line->text;
}

/* The finish of splitmix64, as `digests.mixed`. */
static unsigned long long
mixed(unsigned long long token, unsigned long long sequence)
{
    unsigned long long x = token + sequence * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static void
close_at(OperationRecorder *self, long long at)
{
    long long *open = self->open.buf, count = --((long long *)self->shared.buf)[OPEN];
    memmove(open + ROW * at, open + ROW * (at + 1), sizeof(long long) * ROW * (count - at));
}

/* As `past.Summary.issued`. */
static void
issued(OperationRecorder *self, long long index, long long time_ns, long long sequence)
{
    long long *shared = self->shared.buf, *way = self->way.buf, *open = self->open.buf;
    if (way == NULL)
        return;
    way[COUNT] = sequence;
    way[WIRE] = (long long)((unsigned long long)way[WIRE] + mixed(self->wire, sequence));
    way[FULL] = (long long)((unsigned long long)way[FULL] + mixed(self->full, sequence));
    memcpy(way + FIRST + KEPT * ((sequence - 1) % LAST), (long long[]){self->number, index, time_ns}, KEPT * sizeof *way);
    if (shared[OPEN] == MAX_OPEN) {
        close_at(self, 0);
        shared[FORGOTTEN]++;
    }
    memcpy(open + ROW * shared[OPEN]++, (long long[]){index, self->number, sequence, time_ns, 0}, ROW * sizeof *open);
}

/* As `past.Summary.left`, or `waits`. */
static void
went_on(OperationRecorder *self, long long entered, int waits)
{
    long long *open = self->open.buf;
    if (self->way.buf == NULL)
        return;
    for (long long at = ((long long *)self->shared.buf)[OPEN] - 1; at >= 0; at--)
        if (open[ROW * at] == entered) {
            if (waits)
                open[ROW * at + 4] = 1;
            else
                close_at(self, at);
            return;
        }
}

/* A line was written whole: another file is due when this one is full. */
static void
grew(OperationRecorder *self, Py_ssize_t length)
{
    long long *shared = self->shared.buf;
    shared[SIZE] += length;
    if (shared[SIZE] >= shared[LIMIT])
        shared[LATE] = 1;
}

/* Returns how much of a line was written, in one write; without the GIL. */
static Py_ssize_t
put_line(OperationRecorder *self, const Line *line, Py_ssize_t length)
{
    int file = (int)((long long *)self->shared.buf)[FILE_];
    Py_ssize_t written;
    do
        written = write(file, line->text, length);
    while (written == -1 && errno == EINTR);
    return written == -1 ? 0 : written;
}

static int
cut(OperationRecorder *self, Py_ssize_t written)
{
    PyObject *done = PyObject_CallFunction(self->cut, "n", written);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* In one write; else `cut` is told how much was written. */
static int
put(OperationRecorder *self, Line *line, const long long *numbers)
{
    Py_ssize_t length = fill(line, numbers), written;
    Py_BEGIN_ALLOW_THREADS
    written = put_line(self, line, length);
    Py_END_ALLOW_THREADS
    if (written != length)
        return cut(self, written);
    grew(self, length);
    return 0;
}

/* Returns `result`, and keeps its exception where it is NULL. */
static PyObject *
unlocked(OperationRecorder *self, PyObject *result)
{
    pthread_mutex_unlock(&self->lock->mutex);
    return result;
}

/* Returns `result`; None where it is NULL, and the exception goes to `whole.failed`, unless it is a Ctrl-C or the like. */
static PyObject *
guarded(OperationRecorder *self, PyObject *result)
{
    if (result != NULL || !PyErr_ExceptionMatches(PyExc_Exception))
        return result;
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    PyErr_NormalizeException(&kind, &value, &traceback);
    result = PyObject_CallMethod(self->whole, "failed", "O", value);
    Py_DECREF(kind);
    Py_DECREF(value);
    Py_XDECREF(traceback);
    return result;
}

/* Takes the next number of the sequence, and writes the first line. Nothing may be due. */
static int
began(OperationRecorder *self, long long time_ns, long long *begun)
{
    long long *shared = self->shared.buf;
    PyObject *number = PyIter_Next(self->sequence);
    if (number == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no number is left");
        return -1;
    }
    long long numbers[] = {shared[NEXT], time_ns, PyLong_AsLongLong(number)};
    Py_DECREF(number);
    if (PyErr_Occurred())
        return -1;
    shared[NEXT]++;
    begun[0] = numbers[0];
    begun[1] = numbers[2];
    issued(self, numbers[0], time_ns, numbers[2]);
    return put(self, &self->enter, numbers);
}

/* Whether something else has to stand before the next line: in this file, or of this operation. */
static int
late(OperationRecorder *self)
{
    long long *shared = self->shared.buf;
    return shared[LATE] || shared[SEGMENT] != self->segment;
}

static PyObject *
begun(OperationRecorder *self, PyObject *time_ns)
{
    if (late(self)) {
        PyObject *result = PyObject_CallMethod(self->whole, "begin", "O", time_ns);
        self->segment = ((long long *)self->shared.buf)[SEGMENT];
        return result;
    }
    long long now = PyLong_AsLongLong(time_ns), numbers[2];
    if (PyErr_Occurred() || began(self, now, numbers) == -1)
        return NULL;
    return Py_BuildValue("LL", numbers[0], numbers[1]);
}

/* Writes what comes after the beginning: `method` is that of `whole`. */
static PyObject *
followed(OperationRecorder *self, Line *line, const char *method, PyObject *begun, PyObject *time_ns)
{
    long long *shared = self->shared.buf, entered, number;
    if (shared[LATE])
        return PyObject_CallMethod(self->whole, method, "OO", begun, time_ns);
    if (!PyArg_Parse(begun, "(LL)", &entered, &number))
        return NULL;
    long long numbers[] = {shared[NEXT], PyLong_AsLongLong(time_ns), entered};
    if (PyErr_Occurred())
        return NULL;
    shared[NEXT]++;
    went_on(self, entered, line == &self->wait);
    return put(self, line, numbers) == -1 ? NULL : Py_NewRef(Py_None);
}

/* Whoever forked while another thread held the lock would wait for it for ever: a closed recorder is known without. */
static int
closed(OperationRecorder *self)
{
    return ((long long *)self->shared.buf)[FILE_] == -1;
}

static PyObject *
begin(OperationRecorder *self, PyObject *time_ns)
{
    if (closed(self))
        Py_RETURN_NONE;
    take(self->lock);
    return guarded(self, unlocked(self, begun(self, time_ns)));
}

static PyObject *
later(OperationRecorder *self, Line *line, const char *name, PyObject *const *given, Py_ssize_t count)
{
    if (closed(self))
        Py_RETURN_NONE;
    if (count == 2 && given[0] != Py_None) {
        take(self->lock);
        return guarded(self, unlocked(self, followed(self, line, name, given[0], given[1])));
    }
    PyObject *method = PyObject_GetAttrString(self->whole, name);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, given, count, NULL);
    Py_XDECREF(method);
    return result;
}

static PyObject *
waits(OperationRecorder *self, PyObject *const *given, Py_ssize_t count)
{
    return later(self, &self->wait, "wait", given, count);
}

static PyObject *
end(OperationRecorder *self, PyObject *const *given, Py_ssize_t count)
{
    return later(self, &self->exit, "end", given, count);
}

static PyTypeObject *lock_type;

static PyObject *
make(PyTypeObject *type, PyObject *given, PyObject *named)
{
    PyObject *whole, *lock, *cut, *sequence;
    Py_buffer shared, way = {0}, open = {0};
    const char *enter, *wait, *exit;
    Py_ssize_t entered, waited, exited;
    long long number = 0;
    unsigned long long wire = 0, full = 0;
    if (!PyArg_ParseTuple(given, "OO!Ow*Oy#y#y#|Lw*KKw*", &whole, lock_type, &lock, &cut, &shared, &sequence, &enter,
                          &entered, &wait, &waited, &exit, &exited, &number, &way, &wire, &full, &open))
        return NULL;
    OperationRecorder *self = (OperationRecorder *)type->tp_alloc(type, 0);
    if (self == NULL) {
        PyBuffer_Release(&shared);
        PyBuffer_Release(&way);
        PyBuffer_Release(&open);
        return NULL;
    }
    self->number = number;
    self->wire = wire;
    self->full = full;
    self->way = way;
    self->open = open;
    self->segment = way.buf == NULL ? 0 : -1;
    self->whole = Py_NewRef(whole);
    self->lock = (Lock *)Py_NewRef(lock);
    self->cut = Py_NewRef(cut);
    self->sequence = Py_NewRef(sequence);
    self->shared = shared;
    const Py_ssize_t size = sizeof(long long);
    if (shared.len < (FORGOTTEN + 1) * size || !PyIter_Check(sequence))
        PyErr_SetString(PyExc_TypeError, "the recorder's numbers and an iterator are needed");
    else if (way.buf != NULL && (way.len < (FIRST + KEPT * LAST) * size || open.len < ROW * MAX_OPEN * size))
        PyErr_SetString(PyExc_TypeError, "there is no room to count operations");
    else if (split(&self->enter, enter, entered, 3) == 0 && split(&self->wait, wait, waited, 3) == 0 &&
             split(&self->exit, exit, exited, 3) == 0)
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static int
traverse(OperationRecorder *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->whole);
    Py_VISIT(self->lock);
    Py_VISIT(self->cut);
    Py_VISIT(self->sequence);
    return 0;
}

static void
dealloc(OperationRecorder *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->whole);
    Py_XDECREF(self->lock);
    Py_XDECREF(self->cut);
    Py_XDECREF(self->sequence);
    PyBuffer_Release(&self->shared);
    PyBuffer_Release(&self->way);
    PyBuffer_Release(&self->open);
    PyMem_Free(self->enter.form);
    PyMem_Free(self->enter.text);
    PyMem_Free(self->wait.form);
    PyMem_Free(self->wait.text);
    PyMem_Free(self->exit.form);
    PyMem_Free(self->exit.text);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"begin", (PyCFunction)begin, METH_O, PyDoc_STR("As OperationRecorder.begin.")},
    {"wait", (PyCFunction)(void (*)(void))waits, METH_FASTCALL, PyDoc_STR("As OperationRecorder.wait.")},
    {"end", (PyCFunction)(void (*)(void))end, METH_FASTCALL, PyDoc_STR("As OperationRecorder.end.")},
    {NULL, NULL, 0, NULL},
};

enum { MAX_WALK = 64 };

/* stack_key(frame, programs, learn): what tells the stack from `frame` on from any other, up to the first frame of the
   program: where each of its codes stands, and how far it has come. `programs` says of a code's address whether it is
   the program's; of others `learn` is asked, which keeps the code alive, or returns None: then there is no key. */
static PyObject *
stack_key(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct { void *code; Py_ssize_t at; } key[MAX_WALK];
    Py_ssize_t depth = 0;
    if (count != 3 || !PyFrame_Check(given[0]) || !PyDict_Check(given[1])) {
        PyErr_SetString(PyExc_TypeError, "a frame, a dictionary and a function are needed");
        return NULL;
    }
    PyFrameObject *frame = (PyFrameObject *)Py_NewRef(given[0]);
    int found = 0;
    while (frame != NULL && !found && depth < MAX_WALK) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        key[depth].code = code;
        key[depth++].at = PyFrame_GetLasti(frame);
        PyObject *address = PyLong_FromVoidPtr(code), *program = NULL;
        if (address != NULL) {
            program = Py_XNewRef(PyDict_GetItemWithError(given[1], address));
            Py_DECREF(address);
        }
        if (program == NULL && !PyErr_Occurred())
            program = PyObject_CallOneArg(given[2], (PyObject *)code);
        Py_DECREF(code);
        if (program == NULL || program == Py_None) {
            Py_DECREF(frame);
            return program;
        }
        found = program == Py_True;
        Py_DECREF(program);
        PyFrameObject *next = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = next;
    }
    Py_XDECREF(frame);
    return PyBytes_FromStringAndSize((char *)key, depth * sizeof(key[0]));
}

static PyMethodDef functions[] = {
    {"stack_key", (PyCFunction)(void (*)(void))stack_key, METH_FASTCALL, PyDoc_STR("As recorder.stack_key.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("FastOperationRecorder(whole, lock, cut, shared, sequence, enter, wait, exit"
                                ", number, way, wire, full, open)")},
    {Py_tp_new, make},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "genlock.traces._fast_recorder.FastOperationRecorder",
    .basicsize = sizeof(OperationRecorder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

/* As `begin`, for code that has the GIL: 1, or 0 where nothing is recorded. */
static int
native_begin(PyObject *recorder, long long time_ns, long long *numbers)
{
    OperationRecorder *self = (OperationRecorder *)recorder;
    if (closed(self))
        return 0;
    take(self->lock);
    if (!late(self) && began(self, time_ns, numbers) == 0) {
        unlocked(self, NULL);
        return 1;
    }
    PyObject *result = NULL, *time = PyErr_Occurred() ? NULL : PyLong_FromLongLong(time_ns);
    if (time != NULL)
        result = begun(self, time);
    Py_XDECREF(time);
    result = guarded(self, unlocked(self, result));
    int done = result != NULL && result != Py_None && PyArg_Parse(result, "(LL)", &numbers[0], &numbers[1]);
    Py_XDECREF(result);
    PyErr_Clear();
    return done;
}

/* As `end` without an outcome, for a thread that may not have the GIL, and needs it where something is due or lost. */
static void
native_end(PyObject *recorder, const long long *begun, long long time_ns)
{
    OperationRecorder *self = (OperationRecorder *)recorder;
    long long *shared = self->shared.buf;
    if (closed(self))
        return;
    if (PyGILState_Check())
        take(self->lock);
    else
        pthread_mutex_lock(&self->lock->mutex);
    Py_ssize_t length = 0, written = 0;
    if (!shared[LATE] && !closed(self)) {
        length = fill(&self->exit, (long long[]){shared[NEXT]++, time_ns, begun[0]});
        went_on(self, begun[0], 0);
        written = put_line(self, &self->exit, length);
        if (written == length)
            grew(self, length);
    }
    if (length == 0 || written != length) {
        PyGILState_STATE state = PyGILState_Ensure();
        PyObject *done = length ? (cut(self, written) == 0 ? Py_NewRef(Py_None) : NULL)
                                : PyObject_CallMethod(self->whole, "end", "(LL)L", begun[0], begun[1], time_ns);
        Py_XDECREF(guarded(self, done));
        PyErr_Clear();
        PyGILState_Release(state);
    }
    pthread_mutex_unlock(&self->lock->mutex);
}

static NativeRecorder native = {.begin = native_begin, .end = native_end};

static int
execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    PyObject *lock = PyType_FromModuleAndSpec(module, &lock_spec, NULL);
    PyObject *capsule = PyCapsule_New(&native, NATIVE_RECORDER, NULL);
    int done = type == NULL || lock == NULL || capsule == NULL ? -1 : 0;
    if (done == 0) {
        lock_type = (PyTypeObject *)Py_NewRef(lock);
        native.type = (PyTypeObject *)Py_NewRef(type);
        done = PyModule_AddObjectRef(module, "FastOperationRecorder", type) == -1 ||
                       PyModule_AddObjectRef(module, "Lock", lock) == -1 ||
                       PyModule_AddObjectRef(module, "native", capsule) == -1
                   ? -1
                   : 0;
    }
    Py_XDECREF(type);
    Py_XDECREF(lock);
    Py_XDECREF(capsule);
    return done;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_fast_recorder",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__fast_recorder(void)
{
    return PyModuleDef_Init(&module);
}
