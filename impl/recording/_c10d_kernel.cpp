// Stands at the dispatch key BackendSelect before each c10d operator, as the kernels of `c10d_intercept` do, in C++.
//
// An operation that came before, from the same calls of the program, needs no frame of Python: its observer is found by
// a key, and the lines are written by `traces/_fast_recorder.c`; its end is written by the thread that sees it, without
// the GIL. Whatever is new is asked of `c10d_intercept` once. Built against the torch that is there
// (`compiled_kernel`); without it the kernels in Python do the same.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <ctime>
#include <string>
#include <unordered_map>

#include "../../traces/fast_recorder.h"

namespace {

constexpr int64_t NONE = INT64_MIN;
constexpr size_t MAX_OBSERVERS = 1 << 14;

int64_t now() {  // the clock of time.monotonic_ns
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

// Observes one repeated operation: a FastOperationRecorder, or any `operations.OperationObserver`.
struct Observer {
  PyObject* object;
  bool native;
  c10::weak_intrusive_ptr<c10d::ProcessGroup> group;  // no other may get its address
  bool has_future = true;

  Observer(PyObject* given, bool native, const c10::intrusive_ptr<c10d::ProcessGroup>& group)
      : object(Py_NewRef(given)), native(native), group(group) {}
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;
  ~Observer() {
    if (!Py_IsInitialized())
      return;
    const auto state = PyGILState_Ensure();
    Py_DECREF(object);
    PyGILState_Release(state);
  }
};

// What `begin` returned: two numbers of a native observer, else an object.
struct Begun {
  long long numbers[2] = {0, 0};
  PyObject* object = nullptr;
  bool any = false;
};

struct Row {
  std::string op;
  int group, tensors, root, peer, tag, async_op, reduce, splits[2];
};

struct Facts {
  int64_t root = NONE, peer = NONE, tag = NONE, numel = NONE, reduce = NONE, splits = NONE, asynchronous = 0;
  std::string dtypes;  // a byte for each that is met
  bool data = false, any = false;
};

const NativeRecorder* recorder = nullptr;
PyObject *find = nullptr, *tick = nullptr, *follow = nullptr, *fail = nullptr;
PyObject *key_of = nullptr, *programs = nullptr, *learn = nullptr;
int64_t due = INT64_MAX;
// neither is taken apart when the process ends: what they refer to may be gone by then
auto& observers = *new std::unordered_map<std::string, std::shared_ptr<Observer>>;
torch::Library* library = nullptr;

void describe(const c10::IValue& value, Facts& facts) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    facts.any = true;
    if (!tensor.defined())
      return;
    facts.data |= !tensor.is_meta();
    facts.numel = (facts.numel == NONE ? 0 : facts.numel) + tensor.numel();
    const char dtype = static_cast<char>(tensor.scalar_type());
    if (facts.dtypes.find(dtype) == std::string::npos)
      facts.dtypes += dtype;
  } else if (value.isList()) {
    for (const c10::IValue& part : value.toListRef())
      describe(part, facts);
  }
}

py::object number(int64_t value) {
  return value == NONE ? py::object(py::none()) : py::object(py::int_(value));
}

class Kernel final : public c10::OperatorKernel {
 public:
  explicit Kernel(Row row) : row_(std::move(row)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const auto on = keys.remove(c10::DispatchKey::BackendSelect);
    const c10::IValue* given = stack->data() + (stack->size() - op.schema().arguments().size());
    Facts facts;
    if (row_.tensors >= 0) {
      describe(given[row_.tensors], facts);
      if (facts.any && !facts.data) {  // as a tracer has
        op.redispatchBoxed(on, stack);
        return;
      }
    }
    read(given, facts);
    const auto group = given[row_.group].toCustomClass<c10d::ProcessGroup>();
    Begun begun;
    const auto observer = begin(group, facts, begun);
    if (observer == nullptr || !begun.any) {
      op.redispatchBoxed(on, stack);
      return;
    }
    try {
      op.redispatchBoxed(on, stack);
    } catch (py::error_already_set& error) {
      py::gil_scoped_acquire gil;
      failed(observer, begun, py::reinterpret_borrow<py::object>(error.value()));
      throw;
    } catch (const std::exception& error) {
      py::gil_scoped_acquire gil;
      failed(observer, begun, py::str(error.what()));
      throw;
    }
    if (stack->empty() || !stack->back().isCustomClass()) {
      py::gil_scoped_acquire gil;
      ended(observer, begun);
      return;
    }
    const auto work = stack->back().toCustomClass<c10d::Work>();
    if (facts.asynchronous && observer->has_future && followed(work, observer, begun))
      return;
    py::gil_scoped_acquire gil;
    const auto done = py::reinterpret_borrow<py::object>(follow)(work, py::handle(observer->object), python(begun));
  }

 private:
  Row row_;

  void read(const c10::IValue* given, Facts& facts) const {
    const auto integer = [&](int at) { return at < 0 ? NONE : given[at].toInt(); };
    facts.root = integer(row_.root);
    facts.peer = integer(row_.peer);
    facts.tag = integer(row_.tag);
    facts.asynchronous = row_.async_op < 0 ? row_.peer >= 0 || row_.tag >= 0 : given[row_.async_op].toBool();
    if (row_.reduce >= 0)
      facts.reduce = static_cast<int64_t>(given[row_.reduce].toCustomClass<c10d::ReduceOp>()->op_);
    for (const int at : row_.splits)
      if (at >= 0)
        facts.splits = (facts.splits == 1 || !given[at].toListRef().empty()) ? 1 : 0;
  }

  // Finds the observer of an operation, and has it begin. An exception refuses the operation.
  std::shared_ptr<Observer> begin(
      const c10::intrusive_ptr<c10d::ProcessGroup>& group, const Facts& facts, Begun& begun) {
    if (!Py_IsInitialized())
      return nullptr;
    py::gil_scoped_acquire gil;
    const auto frame = py::reinterpret_steal<py::object>(
        reinterpret_cast<PyObject*>(PyThreadState_GetFrame(PyThreadState_Get())));
    std::string key = key_for(group.get(), facts, frame.ptr());
    auto found = key.empty() ? observers.end() : observers.find(key);
    std::shared_ptr<Observer> observer = found == observers.end() ? nullptr : found->second;
    if (observer == nullptr)
      observer = ask(group, facts, frame, key);
    if (observer == nullptr)
      return nullptr;
    const int64_t time = now();
    if (time >= due) {
      due = INT64_MAX;  // while it is asked
      due = py::reinterpret_borrow<py::object>(tick)(time).cast<int64_t>();
    }
    if (observer->native) {
      begun.any = recorder->begin(observer->object, time, begun.numbers) == 1;
    } else {
      begun.object = PyObject_CallMethod(observer->object, "begin", "L", static_cast<long long>(time));
      if (begun.object == nullptr)
        throw py::error_already_set();
      begun.any = true;
    }
    return observer;
  }

  // Tells the operation, and where it comes from, from any other; empty where nothing is safe to.
  std::string key_for(const c10d::ProcessGroup* group, const Facts& facts, PyObject* frame) const {
    std::string key;
    key.reserve(512);
    const int64_t numbers[] = {
        reinterpret_cast<int64_t>(this), reinterpret_cast<int64_t>(group), facts.root, facts.peer, facts.tag,
        facts.numel, facts.reduce, facts.splits, facts.asynchronous,
        static_cast<int64_t>(PyThread_get_thread_ident()), static_cast<int64_t>(facts.dtypes.size())};
    key.append(reinterpret_cast<const char*>(numbers), sizeof(numbers));
    key += facts.dtypes;
    if (frame == nullptr)
      return key;
    PyObject* arguments[] = {frame, programs, learn};
    const auto stack = py::reinterpret_steal<py::object>(PyObject_Vectorcall(key_of, arguments, 3, nullptr));
    if (!stack)
      throw py::error_already_set();
    if (stack.is_none())
      return {};
    key.append(PyBytes_AS_STRING(stack.ptr()), PyBytes_GET_SIZE(stack.ptr()));
    return key;
  }

  std::shared_ptr<Observer> ask(
      const c10::intrusive_ptr<c10d::ProcessGroup>& group, const Facts& facts, const py::object& frame,
      const std::string& key) const {
    py::list dtypes;
    for (const char dtype : facts.dtypes)
      dtypes.append(py::reinterpret_borrow<py::object>(
          reinterpret_cast<PyObject*>(torch::getTHPDtype(static_cast<at::ScalarType>(dtype)))));
    const py::object none = py::none();
    const auto object = py::reinterpret_borrow<py::object>(find)(
        row_.op, group, number(facts.root), number(facts.peer), number(facts.tag), dtypes,
        row_.tensors < 0 ? none : py::object(py::int_(facts.numel == NONE ? 0 : facts.numel)),
        facts.asynchronous != 0, number(facts.reduce), facts.splits == NONE ? none : py::object(py::bool_(facts.splits)),
        frame.ptr() == nullptr ? none : frame);
    if (object.is_none())
      return nullptr;
    const bool native = recorder != nullptr && Py_TYPE(object.ptr()) == recorder->type;
    auto observer = std::make_shared<Observer>(object.ptr(), native, group);
    if (!key.empty()) {
      if (observers.size() >= MAX_OBSERVERS)
        observers.clear();
      observers[key] = observer;
    }
    return observer;
  }

  static py::object python(const Begun& begun) {
    if (begun.object != nullptr)
      return py::reinterpret_steal<py::object>(begun.object);
    return py::make_tuple(begun.numbers[0], begun.numbers[1]);
  }

  static void failed(const std::shared_ptr<Observer>& observer, const Begun& begun, const py::object& error) {
    py::reinterpret_borrow<py::object>(fail)(py::handle(observer->object), python(begun), error);
  }

  static void ended(const std::shared_ptr<Observer>& observer, const Begun& begun) {
    py::handle(observer->object).attr("end")(python(begun), now());
  }

  // Has the end written when the work's future is done; false where it has none.
  static bool followed(
      const c10::intrusive_ptr<c10d::Work>& work, const std::shared_ptr<Observer>& observer, const Begun& begun) {
    c10::intrusive_ptr<c10::ivalue::Future> future;
    try {
      future = work->getFuture();
    } catch (const std::exception&) {
    }
    if (!future) {
      observer->has_future = false;
      return false;
    }
    future->addCallback(
        [observer, begun](c10::ivalue::Future& done) {
          if (observer->native && !done.hasError()) {
            recorder->end(observer->object, begun.numbers, now());
            return;
          }
          if (!Py_IsInitialized())
            return;
          py::gil_scoped_acquire gil;
          try {
            if (done.hasError())
              failed(observer, begun, py::str(done.tryRetrieveErrorMessage()));
            else
              ended(observer, begun);
          } catch (py::error_already_set& error) {
            error.discard_as_unraisable("genlock");
          }
        },
        /*uses_future=*/false);
    return true;
  }
};

int place(const c10::FunctionSchema& schema, const std::string& name) {
  const auto at = name.empty() ? std::nullopt : schema.argumentIndexWithName(name);
  return at ? *at : -1;
}

// Puts a kernel before each operator: its name to the names of what it does, and of its tensors, root and peer.
void install(
    const std::map<std::string, std::tuple<std::string, std::string, std::string, std::string>>& rows, const py::object& ask,
    const py::object& ticks, const py::object& follows, const py::object& fails, const py::object& key,
    const py::object& theirs, const py::object& learns) {
  recorder = static_cast<const NativeRecorder*>(PyCapsule_Import(NATIVE_RECORDER, 0));
  if (recorder == nullptr)
    throw py::error_already_set();
  for (auto& [place, object] : std::initializer_list<std::pair<PyObject**, const py::object*>>{
           {&find, &ask}, {&tick, &ticks}, {&follow, &follows}, {&fail, &fails}, {&key_of, &key},
           {&programs, &theirs}, {&learn, &learns}})
    Py_XSETREF(*place, Py_NewRef(object->ptr()));
  delete library;
  library = new torch::Library(
      torch::Library::IMPL, "c10d", std::make_optional(c10::DispatchKey::BackendSelect), __FILE__, __LINE__);
  for (const auto& [name, row] : rows) {
    const auto& [op, tensors, root, peer] = row;
    const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(("c10d::" + name).c_str(), "");
    const auto& schema = handle.schema();
    Row numbers{
        op, place(schema, "process_group"), place(schema, tensors), place(schema, root), place(schema, peer),
        place(schema, "tag"), place(schema, "async_op"), place(schema, "reduce_op"),
        {place(schema, "output_split_sizes"), place(schema, "input_split_sizes")}};
    library->impl(
        name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(std::move(numbers))));
  }
}

}  // namespace

PYBIND11_MODULE(_c10d_kernel, module) {
  module.def("install", &install);
  module.def("remove", [] {
    delete library;
    library = nullptr;
    observers.clear();
  });
  module.def("forget", [] { observers.clear(); });
  module.def("ask_at", [](int64_t time) { due = time; });
}
