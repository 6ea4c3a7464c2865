"""Intercepts every c10d operation of the process before it reaches a backend, for watchers to see or refuse.

For each `c10d::` operator a kernel stands at the dispatch key BackendSelect, where every way into c10d meets,
from any thread: torch.distributed, methods of a ProcessGroup, functional collectives, compiled code, the C++ of
DDP. It calls the watchers, and goes on to the backend unless one of them raises. `Work.wait` says when an operation
has completed where the host waits at once, else the work's future.

A kernel in Python costs much of what a small operation does: the dispatcher makes every argument anew, twice. So
the two operations that programs wait for most have a fast path (FAST_PATHS): where torch's own function calls the
method of a ProcessGroup and waits at once, that method calls an observer, goes to the group's backend past the
dispatcher, and waits itself. Only on gloo, with one dense tensor without a gradient: there the dispatcher does nothing
else. All of this is done between two operations that have swept the caches, where each object costs several times what
it does in a loop of its own.

Left out: what to do with an operation (`rank.collective_guard` refuses, `session` records), and `BLIND_SPOTS`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol
from weakref import ref

import torch
import torch.distributed as dist
import typing_extensions  # which torch brings along

from ...errors import GenlockError
from ...traces.format import Group
from ...traces.outcome import Code, Outcome, first_line, outcome_of
from .torch_compat import lookup

PRIVATE = (
    "_C.DispatchKey.BackendSelect",
    "_C._dispatch_get_all_op_names",
    "_C._distributed_c10d.ProcessGroup.unbox",
    "_C._distributed_c10d.Work.unbox",
    "_C._distributed_c10d.Work.wait",
    "_C._distributed_c10d.Work.get_future",
    "library.Library",
    "_C._len_torch_dispatch_stack",
    "distributed.ProcessGroupGloo",
    "distributed.ProcessGroup._get_backend",
    "distributed.distributed_c10d._get_default_store",
)
"""Names what is used here and is no public interface of torch, below `torch`."""

BLIND_SPOTS = (
    "collectives inside a replayed CUDA graph, after the capture",
    "kernels that talk to other GPUs by themselves: custom all-reduce, symmetric memory, NVSHMEM",
    "calls of a backend object, past its ProcessGroup",
    "stores, RPC, and what a backend does inside an operation",
    "the reduction (sum, max) of a reducing operation that goes by the dispatcher",
    "how far a GPU is: for NCCL an exit says that the operation was enqueued",
    "the end of an operation whose work has no future (gloo's send, recv, reduce_scatter), unless Python waits for it",
)
"""Names what passes unseen here."""


KEY, _op_names, _unbox_group, _unbox_work, _wait, _, _Library, *_rest = map(lookup, PRIVATE)
_modes, _Gloo, _backend_of, _default_store = _rest
_Work: Any = dist.Work
_ProcessGroup: Any = dist.ProcessGroup


class Operation(NamedTuple):
    """Describes an operation that is about to be issued. Fields as in `traces.format.Event`."""

    op: str
    group: Group
    root: int | None
    peer: int | None
    tag: int | None
    dtype: str | None
    numel: int | None
    asynchronous: bool
    thread: str | None
    reduce: str | None = None
    splits: bool | None = None


OnComplete = Callable[[Outcome | None], None]
"""Called once, when the operation has completed (None) or with what went wrong, perhaps from another thread."""


Issue = Callable[[Operation], OnComplete | None]


class OperationObserver(Protocol):
    """Observes one repeated operation, issued from one place: a `traces.recorder.OperationRecorder` is one."""

    def begin(self, time_ns: int, /) -> Any:
        """Take note that one is about to be issued, now (monotonic); an exception refuses it."""

    def end(self, begun: Any, time_ns: int, outcome: Outcome | None = None, /) -> None:
        """Take note that the one for which `begin` returned `begun` has completed, or what went wrong."""


class Watcher(Protocol):
    """Sees every operation before it is issued, and may refuse it.

    A watcher may also have `observer(operation, frame)`, to do once what takes time. The fast path calls that for an
    operation and a place of the program, whose frame this is (None: there is none), and then notifies the observer that
    it returns; the watcher's `issue` where it returns None.
    """

    def issue(self, operation: Operation) -> OnComplete | None:
        """Take note of an operation that is about to be issued; an exception refuses it, and goes to the issuer."""


class _Operator(NamedTuple):
    """Says how the arguments of a `c10d::` operator are read. `tensors` names those that say dtype and size."""

    op: str
    tensors: str | None
    root: str | None = None
    peer: str | None = None


OPERATORS = {
    "allreduce_": _Operator("all_reduce", "tensors"),
    "allreduce_coalesced_": _Operator("all_reduce_coalesced", "tensors"),
    "broadcast_": _Operator("broadcast", "tensors", root="root_rank"),
    "reduce_": _Operator("reduce", "tensors", root="root_rank"),
    "allgather_": _Operator("all_gather", "input_tensors"),
    "allgather_coalesced_": _Operator("all_gather_coalesced", "input_list"),
    "_allgather_base_": _Operator("all_gather_into_tensor", "input_tensor"),
    "allgather_into_tensor_coalesced_": _Operator("all_gather_into_tensor_coalesced", "inputs"),
    "reduce_scatter_": _Operator("reduce_scatter", "input_tensors"),
    "_reduce_scatter_base_": _Operator("reduce_scatter_tensor", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": _Operator("reduce_scatter_tensor_coalesced", "inputs"),
    "gather_": _Operator("gather", "input_tensors", root="root_rank"),
    "scatter_": _Operator("scatter", "output_tensors", root="root_rank"),
    "alltoall_": _Operator("all_to_all", "input_tensors"),
    "alltoall_base_": _Operator("all_to_all_single", "input"),
    "barrier": _Operator("barrier", None),
    "monitored_barrier_": _Operator("monitored_barrier", None),
    "send": _Operator("send", "tensors", peer="dst"),
    "recv_": _Operator("recv", "tensors", peer="src"),
    "recv_any_source_": _Operator("recv_any_source", "tensors"),
}
"""Lists every operator of torch's namespace `c10d` that involves another rank."""
NO_PEERS = frozenset({"check_for_nan"})
"""Lists the others."""


class _FastPath(NamedTuple):
    """Names a method of ProcessGroup that may call an observer and wait by itself."""

    method: str
    """The backend's is called the same."""
    operator: str
    function: Callable[..., Any]
    """torch's own, which calls the method, and waits unless it returns None."""


FAST_PATHS = (
    _FastPath("allreduce", "allreduce_", dist.all_reduce),
    _FastPath("broadcast", "broadcast_", dist.broadcast),
)
METHODS = {path.method: vars(_ProcessGroup)[path.method] for path in FAST_PATHS}
"""Keeps the methods as torch has them."""
REDUCTIONS = {hash(op): name.lower() for name, op in dist.ReduceOp.RedOpType.__members__.items()}
"""Maps the hash of a reduction, which is quick to have, to its name."""
PLAIN, STRIDED = (torch.Tensor, torch.nn.Parameter), torch.strided


def unknown_operators() -> list[str]:
    """Return operators of the namespace `c10d` that the table above does not have: further blind spots."""
    here = {name.removeprefix("c10d::") for name in _op_names() if name.startswith("c10d::")}
    return sorted(here - OPERATORS.keys() - NO_PEERS)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show `watcher` every operation meanwhile."""
    watch(watcher)
    try:
        yield
    finally:
        unwatch(watcher)


def watch(watcher: Watcher) -> None:
    """Show `watcher` every operation from now on."""
    _interception.set_watchers((*_interception.watchers, watcher))


def unwatch(watcher: Watcher) -> None:
    """Leave `watcher` alone again. Without watchers torch is as it was."""
    _interception.set_watchers(tuple(w for w in _interception.watchers if w is not watcher))


def forget_observers() -> None:
    """Ask watchers again for their observers."""
    _interception.forget_observers()


def any_failed() -> bool:
    """Return True where the backend could not complete an operation that nobody has waited for yet."""
    return _interception.any_failed()


def group_of(group: dist.ProcessGroup) -> Group:
    """Return what an operation on this group says of it."""
    return _interception.group(group)


def begin_job(*, again: bool) -> None:
    """Note that this process has joined a job, before any of its groups is named; the same one `again`, or another."""
    _interception.begin_job(again)


def unregistered(name: str) -> Any:
    """Return the group of that name where torch.distributed does not know it; else None."""
    alive = _interception.unregistered.get(name)
    return None if alive is None else alive()


def store_of(group: Any) -> Any:
    """Return the store by which the members of a group found each other; of None, the default group's."""
    return _default_store() if group is None else group.get_group_store()


def caller(inner: FrameType | None = None) -> FrameType | None:
    """Return to a watcher where the program issues the operation; None where only torch is on the stack.

    The search begins at `inner`, else here.
    """
    frame = inner
    if frame is None:
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != __file__:
            frame = frame.f_back
    while frame is not None and not _is_program(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def site(frame: FrameType | None) -> str | None:
    """Return a place in the program as `file:line`."""
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


@cache
def _is_program(file: str) -> bool:
    return not file.startswith(_NOT_THE_PROGRAM)


_NOT_THE_PROGRAM = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,  # all of impl
    contextlib.__file__,
    threading.__file__,
    typing_extensions.__file__,
    "<frozen",
    "<eval_with_key>",
)
"""Lists how the names of files begin that may stand between a program and its operation."""


MAX_UNWAITED = 4096
"""Beyond so many works without a future, those are forgotten that the program has dropped without waiting."""
NO_WORK: tuple[None, OnComplete] = (None, lambda outcome: None)
NOT_KEPT: tuple[Callable[[], Any], OnComplete] = (lambda: None, NO_WORK[1])


class _Known(NamedTuple):
    """Keeps what is known of a group, for as long as it lives."""

    alive: ref[Any]
    """Forgets the group when it dies."""
    group: Group
    backend: Any
    """Takes operations on the fast path; None where none may go there."""
    observers: dict[tuple[Any, ...], tuple[OperationObserver, CodeType | None]]
    """Maps operations that took the fast path, by what they are and where they came from, to their observer and the
    code that has to live on: a program issues the same ones again and again."""


MAX_OBSERVERS = 4096
"""Beyond so many operations, the observers of a group are forgotten."""


class _Interception:
    """Keeps the kernels, and the works that someone will wait for."""

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()
        self.issue: Issue = _nobody
        """Calls the watchers."""
        self.find_observer: Callable[[Operation, FrameType | None], OperationObserver | None] | None = None
        """Asks the only watcher for an observer, where that one has this."""
        self._library: Any = None
        self._groups: dict[int, _Known] = {}
        """Keyed by the `id` of a ProcessGroup."""
        self._names: dict[str, int] = {}
        self._joined = 1
        """How often this process has joined its job: torch gives the same names to groups again."""
        self.unregistered: dict[str, ref[Any]] = {}
        """Groups that torch.distributed does not know, by their names."""
        self._unwaited: dict[int, tuple[ref[Any], OnComplete]] = {}
        """Keyed by the `id` of a work that someone may wait for: weak keys would take ten times as long."""
        self._newest: dict[int, tuple[Any, OnComplete]] = {}
        """Maps a thread to the work that it got last and is about to wait for. Python sees the same object again while
        it lives: until the caller has taken it, it lives here."""

    def set_watchers(self, watchers: tuple[Watcher, ...]) -> None:
        """Take these as the watchers from now on."""
        self.watchers = watchers
        self.issue = watchers[0].issue if len(watchers) == 1 else partial(_issue_to, watchers)
        self.find_observer = getattr(watchers[0], "observer", None) if len(watchers) == 1 else None
        self.forget_observers()
        if watchers and self._library is None:
            self.install()
        elif not watchers:
            self.remove()

    def forget_observers(self) -> None:
        """Ask the watcher again for its observers."""
        for known in [*self._groups.values()]:
            known.observers.clear()

    def begin_job(self, again: bool) -> None:
        """Name groups anew: torch counts from the beginning when the default group is made."""
        self._joined = self._joined + 1 if again else 1
        self._names.clear()
        self._groups.clear()

    def any_failed(self) -> bool:
        """Return True where a work that nobody has waited for has failed."""
        works = [work for work, _ in [*self._newest.values()]]
        works += [alive() for alive, _ in [*self._unwaited.values()]]
        return any(work is not None and work.is_completed() and not work.is_success() for work in works)

    def install(self) -> None:
        self._library = _Library("c10d", "IMPL")
        present = {name.removeprefix("c10d::") for name in _op_names() if name.startswith("c10d::")}
        for name in OPERATORS.keys() & present:
            self._library.impl(name, self._kernel(name), KEY.name, with_keyset=True)
        for path in FAST_PATHS:
            setattr(_ProcessGroup, path.method, self._fast(path))
        _Work.wait = self._waiter()

    def remove(self) -> None:
        if self._library is not None:
            self._library._destroy()
            self._library = None
            for name, method in METHODS.items():
                setattr(_ProcessGroup, name, method)
            _Work.wait = _wait
            self._newest.clear()
            self._unwaited.clear()

    def _kernel(self, name: str) -> Callable[..., Any]:
        operator = getattr(torch.ops.c10d, name).default
        names = [argument.name for argument in operator._schema.arguments]
        read = self._reader(OPERATORS[name], names)
        redispatch = operator.redispatch

        def kernel(keys: Any, *arguments: Any) -> Any:
            operation = read(arguments)
            on_complete = None if operation is None else self.issue(operation)
            if on_complete is None or operation is None:
                return redispatch(keys.remove(KEY), *arguments)
            try:
                result = redispatch(keys.remove(KEY), *arguments)
            except BaseException as error:
                on_complete(_outcome(error))
                raise
            self._follow(result, operation.asynchronous, on_complete)
            return result

        return kernel

    def _fast(self, path: _FastPath) -> Callable[..., Any]:
        original, operator = getattr(_ProcessGroup, path.method), OPERATORS[path.operator]
        op, rooted, on_backend = operator.op, operator.root is not None, getattr(_Gloo, path.method)
        torchs = getattr(inspect.unwrap(path.function), "__code__", None)

        def method(group: Any, *given: Any, **named: Any) -> Any:
            frame, known = sys._getframe(1), None
            if frame.f_code is torchs:
                (tensor,), options = given
                known = self._takes_fast_path(group, tensor, options)
            if known is None:
                return original(group, *given, **named)
            place = caller(frame)
            code, at = (None, 0) if place is None else (place.f_code, place.f_lasti)
            # of a broadcast its root, of an all-reduce its reduction
            detail, thread = options.rootRank if rooted else hash(options.reduceOp), None
            if _ident() != _MAIN:
                thread = _thread()
            about = (op, detail, tensor.dtype, tensor.numel(), thread, id(code), at)
            observer, _ = known.observers.get(about) or self._observe(known, about, place)
            begun = observer.begin(_now())
            try:
                _wait(on_backend(known.backend, *given))
            except BaseException as error:
                observer.end(begun, _now(), _outcome(error))
                raise
            observer.end(begun, _now())
            return None

        return method

    def _observe(
        self, known: _Known, about: tuple[Any, ...], place: FrameType | None
    ) -> tuple[OperationObserver, CodeType | None]:
        """Return the observer of an operation that takes the fast path, kept for the next."""
        op, detail, dtype, numel, thread, _, _ = about
        rooted = op == "broadcast"
        root, reduce = (_global(known.group, detail), None) if rooted else (None, REDUCTIONS.get(detail))
        operation = Operation(op, known.group, root, None, None, _name(dtype), numel, False, thread, reduce)
        own = self.find_observer and self.find_observer(operation, place)
        if len(known.observers) >= MAX_OBSERVERS:
            known.observers.clear()
        code = None if place is None else place.f_code
        known.observers[about] = own or _WatchersEachTime(operation, self.issue), code
        return known.observers[about]

    def _takes_fast_path(self, group: Any, tensor: Any, options: Any) -> _Known | None:
        """Return the group of an operation that may take the fast path; None for any other."""
        if options.asyncOp or _modes() or type(tensor) not in PLAIN:
            return None
        if not tensor.is_cpu or tensor.layout is not STRIDED or tensor.requires_grad:
            return None
        known = self._groups.get(id(group)) or self._learn(group)
        return None if known.backend is None else known

    def _reader(self, row: _Operator, names: Sequence[str]) -> Callable[[Sequence[Any]], Operation | None]:
        """Return what reads an operator's arguments, whose names are `names`.

        It returns None for tensors without data, as a tracer has.

        The dispatcher leaves out trailing arguments that have their default, `async_op=True` among them.
        """
        at = {name: place for place, name in enumerate(names)}
        group_at, tensors_at = at["process_group"], at.get(row.tensors or "")
        root_at, peer_at = at.get(row.root or ""), at.get(row.peer or "")
        tag_at, async_at = at.get("tag"), at.get("async_op")
        splits_at = [at[name] for name in ("output_split_sizes", "input_split_sizes") if name in at]

        def read(given: Sequence[Any]) -> Operation | None:
            dtype, numel = (None, None) if tensors_at is None else _described(given[tensors_at])
            if dtype == "":
                return None
            group = self.group(_unbox_group(given[group_at]))
            return Operation(
                row.op,
                group,
                None if root_at is None else _global(group, given[root_at]),
                None if peer_at is None else _global(group, given[peer_at]),
                None if tag_at is None else given[tag_at],
                dtype,
                numel,
                tag_at is not None if async_at is None else given[async_at] if async_at < len(given) else True,
                _thread(),
                None,
                any(given[place] for place in splits_at) if splits_at else None,
            )

        return read

    def group(self, group: dist.ProcessGroup) -> Group:
        """Return its name, unique in this process, and its members."""
        return (self._groups.get(id(group)) or self._learn(group)).group

    def _learn(self, group: dist.ProcessGroup) -> _Known:
        """Take up a new group. It is forgotten when it dies: its backend would live on, threads and all."""
        name, at = str(group.group_name), id(group)
        if self._joined > 1:
            name += f"#{self._joined}"
        used = self._names[name] = self._names.get(name, 0) + 1
        name = name if used == 1 else f"{name}#{used}"
        alive = ref(group, lambda _: self._groups.pop(at, None))
        try:
            members, backend = tuple(dist.get_process_group_ranks(group)), str(dist.get_backend(group))
        except (KeyError, ValueError, AssertionError):  # torch.distributed does not know it
            members, backend = tuple(range(group.size())), ""
            name = f"unregistered {name} {at:x}"
            self.unregistered[name] = alive
        described = Group(name, members, backend, group.group_desc)
        known = self._groups[at] = _Known(alive, described, _gloo_of(group), {})
        return known

    def _follow(self, result: Any, asynchronous: bool, on_complete: OnComplete) -> None:
        """Call `on_complete` when the work in an operator's result has completed."""
        boxed = result[-1] if isinstance(result, tuple) and result else result
        if not isinstance(boxed, torch.ScriptObject):
            on_complete(None)
            return
        work = _unbox_work(boxed)
        if asynchronous:
            try:
                work.get_future().add_done_callback(lambda future: on_complete(_failure(future)))
                return
            except RuntimeError:  # it has no future
                pass
        self._await(work, on_complete)

    def _await(self, work: Any, on_complete: OnComplete) -> None:
        """Call `on_complete` when someone has waited for the work."""
        thread = _ident()
        before = self._newest.pop(thread, None)
        if before is not None:
            self._keep(*before)
        self._newest[thread] = (work, on_complete)

    def _keep(self, work: Any, on_complete: OnComplete) -> None:
        """Remember a work that its thread did not wait for at once, for as long as the program does."""
        if len(self._unwaited) >= MAX_UNWAITED:
            self._unwaited = {key: entry for key, entry in [*self._unwaited.items()] if entry[0]() is not None}
        self._unwaited[id(work)] = (ref(work), on_complete)

    def _waiter(self) -> Callable[..., Any]:
        newest = self._newest

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            thread = _ident()
            own, on_complete = newest.get(thread, NO_WORK)
            if own is work:
                newest.pop(thread, None)
            else:
                alive, on_complete = self._unwaited.pop(id(work), NOT_KEPT)
                if alive() is not work:
                    issuer = next((other for other, (its, _) in [*newest.items()] if its is work), None)
                    if issuer is None:
                        return _wait(work, *args, **kwargs)
                    _, on_complete = newest.pop(issuer, NO_WORK)
            try:
                result = _wait(work, *args, **kwargs)
            except BaseException as error:
                on_complete(_outcome(error))
                raise
            on_complete(None)
            return result

        return wait


def _thread() -> str | None:
    """Return the name of this thread; None for the main thread, which after a fork may be another."""
    if _ident() == _MAIN or threading.current_thread() is threading.main_thread():
        return None
    return threading.current_thread().name


_MAIN = threading.main_thread().ident
_ident, _now = threading.get_ident, time.monotonic_ns


def _global(group: Group, rank: int) -> int:
    """Return the global rank of a rank of the group; a rank that it does not have is left to the backend to refuse."""
    return group.members[rank] if 0 <= rank < len(group.members) else rank


def _described(tensors: Any) -> tuple[str, int]:
    """Return dtypes and elements of a tensor, or of lists of them; no dtype at all where they have no data."""
    if isinstance(tensors, list):
        if len(tensors) == 1:
            return _described(tensors[0])
        parts = [_described(tensor) for tensor in tensors]
        return ",".join(dict.fromkeys(dtype for dtype, _ in parts)), sum(numel for _, numel in parts)
    if tensors.is_meta:
        return "", 0
    return _name(tensors.dtype), tensors.numel()


def _gloo_of(group: Any) -> Any:
    """Return the backend of a group where that is plain gloo for tensors on the host; else None."""
    if type(group) is not _ProcessGroup:
        return None
    try:
        backend = _backend_of(group, torch.device("cpu"))
    except RuntimeError:
        return None
    return backend if type(backend) is _Gloo else None


class _WatchersEachTime(NamedTuple):
    """Observes one operation by calling the watchers as often as it is issued."""

    operation: Operation
    issue: Issue

    def begin(self, _: int, /) -> OnComplete | None:
        return self.issue(self.operation)

    def end(self, begun: OnComplete | None, _: int, outcome: Outcome | None = None, /) -> None:
        if begun is not None:
            begun(outcome)


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def _nobody(operation: Operation) -> None:
    return None


def _issue_to(watchers: Sequence[Watcher], operation: Operation) -> OnComplete | None:
    """Call several watchers; where one refuses, those before it are called with that."""
    called: list[OnComplete] = []

    def on_complete(outcome: Outcome | None) -> None:
        for each in called:
            each(outcome)

    for watcher in watchers:
        try:
            own = watcher.issue(operation)
        except BaseException as error:
            on_complete(outcome_of(error))
            raise
        if own is not None:
            called.append(own)
    return on_complete if called else None


def _failure(future: Any) -> Outcome | None:
    try:
        future.value()
    except Exception as error:
        return _outcome(error)
    return None


def _outcome(error: BaseException) -> Outcome:
    """Return what came of an operation that raised this, out of the backend or out of a watcher below."""
    own = isinstance(error, GenlockError) or not isinstance(error, Exception)
    return outcome_of(error) if own else Outcome(Code.BACKEND, text=first_line(error))


_interception = _Interception()
