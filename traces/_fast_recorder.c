/* Writes an event of a repeated operation where nothing is due, nothing was lost and the file is open. Everything else
   is left to `recorder.SlowOperationRecorder`, which also does all of it where this was not built.

   Between two collectives the caches are cold, and Python touches much memory for little. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { FILE_, NEXT, LATE }; /* places in the recorder's numbers, as in recorder.py */
enum { MAX_NUMBERS = 3, DIGITS = 20 };

typedef struct { /* a line, all but its numbers */
    char *text;  /* as it was filled in last */
    char *form;  /* what stands between the numbers, one piece after the other */
    Py_ssize_t ends[MAX_NUMBERS + 1];
    int numbers;
} Line;

typedef struct {
    PyObject_HEAD
    PyObject *whole, *acquire, *release, *cut, *sequence;
    Py_buffer shared;
    Line enter, wait, exit;
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

/* In one write; else `cut` is told how much was written. */
static int
put(OperationRecorder *self, Line *line, const long long *numbers)
{
    int file = (int)((long long *)self->shared.buf)[FILE_];
    Py_ssize_t length = fill(line, numbers), written;
    Py_BEGIN_ALLOW_THREADS
    do
        written = write(file, line->text, length);
    while (written == -1 && errno == EINTR);
    Py_END_ALLOW_THREADS
    if (written == length)
        return 0;
    PyObject *done = PyObject_CallFunction(self->cut, "n", written == -1 ? 0 : written);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int
locked(OperationRecorder *self)
{
    PyObject *done = PyObject_CallNoArgs(self->acquire);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Returns `result`, and keeps its exception where it is NULL. */
static PyObject *
unlocked(OperationRecorder *self, PyObject *result)
{
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    PyObject *done = PyObject_CallNoArgs(self->release);
    if (done == NULL)
        Py_CLEAR(result);
    else
        PyErr_Restore(kind, value, traceback);
    Py_XDECREF(done);
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

static PyObject *
begun(OperationRecorder *self, PyObject *time_ns)
{
    long long *shared = self->shared.buf;
    if (shared[LATE])
        return PyObject_CallMethod(self->whole, "begin", "O", time_ns);
    PyObject *number = PyIter_Next(self->sequence);
    if (number == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no number is left");
        return NULL;
    }
    long long numbers[] = {shared[NEXT], PyLong_AsLongLong(time_ns), PyLong_AsLongLong(number)};
    Py_DECREF(number);
    if (PyErr_Occurred())
        return NULL;
    shared[NEXT]++;
    return put(self, &self->enter, numbers) == -1 ? NULL : Py_BuildValue("LL", numbers[0], numbers[2]);
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
    return guarded(self, locked(self) == -1 ? NULL : unlocked(self, begun(self, time_ns)));
}

static PyObject *
later(OperationRecorder *self, Line *line, const char *name, PyObject *const *given, Py_ssize_t count)
{
    if (closed(self))
        Py_RETURN_NONE;
    if (count == 2 && given[0] != Py_None)
        return guarded(self, locked(self) == -1 ? NULL : unlocked(self, followed(self, line, name, given[0], given[1])));
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

static PyObject *
make(PyTypeObject *type, PyObject *given, PyObject *named)
{
    PyObject *whole, *lock, *cut, *sequence;
    Py_buffer shared;
    const char *enter, *wait, *exit;
    Py_ssize_t entered, waited, exited;
    if (!PyArg_ParseTuple(given, "OOOw*Oy#y#y#", &whole, &lock, &cut, &shared, &sequence, &enter, &entered, &wait, &waited,
                          &exit, &exited))
        return NULL;
    OperationRecorder *self = (OperationRecorder *)type->tp_alloc(type, 0);
    if (self == NULL) {
        PyBuffer_Release(&shared);
        return NULL;
    }
    self->whole = Py_NewRef(whole);
    self->acquire = PyObject_GetAttrString(lock, "acquire");
    self->release = PyObject_GetAttrString(lock, "release");
    self->cut = Py_NewRef(cut);
    self->sequence = Py_NewRef(sequence);
    self->shared = shared;
    if (self->acquire == NULL || self->release == NULL)
        ;
    else if (shared.len < (LATE + 1) * (Py_ssize_t)sizeof(long long) || !PyIter_Check(sequence))
        PyErr_SetString(PyExc_TypeError, "three numbers and an iterator are needed");
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
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
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
    Py_XDECREF(self->acquire);
    Py_XDECREF(self->release);
    Py_XDECREF(self->cut);
    Py_XDECREF(self->sequence);
    PyBuffer_Release(&self->shared);
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
    {Py_tp_doc, (void *)PyDoc_STR("FastOperationRecorder(whole, lock, cut, shared, sequence, enter, wait, exit)")},
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

static int
execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    int done = type == NULL ? -1 : PyModule_AddObjectRef(module, "FastOperationRecorder", type);
    Py_XDECREF(type);
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
