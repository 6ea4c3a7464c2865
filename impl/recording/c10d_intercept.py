"""Every c10d operation of the process passes here before it reaches a backend: to be seen, and to be refused.

For each `c10d::` operator a kernel stands at the dispatch key BackendSelect, where every way into c10d meets,
from any thread: torch.distributed, methods of a ProcessGroup, functional collectives, compiled code, the C++ of
DDP. It tells the watchers, and goes on to the backend unless one of them raises. When an operation has completed
is told by `Work.wait` where the host waits at once, else by the work's future.

A kernel in Python costs much of what a small operation does: the dispatcher makes every argument anew, twice. So
the two operations that programs wait for most have a short way (SHORT): where torch's own function calls the method of
a ProcessGroup and waits at once, that is told, goes to the group's backend past the dispatcher, and waits itself. Only
on gloo, with one dense tensor without a gradient: there the dispatcher does nothing else. All of this is done between
two operations that have swept the caches, where each object costs several times what it does in a loop of its own.

Left out: what to do with what was seen (`fence` refuses, `record` writes), and `BLIND_SPOTS`.
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

from ...traces.format import Group
from .torch_compat import found

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
)
"""What is leant on here and is no public interface of torch, below `torch`."""

BLIND_SPOTS = (
    "collectives inside a replayed CUDA graph, after the capture",
    "kernels that talk to other GPUs by themselves: custom all-reduce, symmetric memory, NVSHMEM",
    "calls of a backend object, past its ProcessGroup",
    "stores, RPC, and what a backend does inside an operation",
    "the reduction (sum, max) of a reducing operation",
    "how far a GPU is: for NCCL an exit says that the operation was enqueued",
    "the end of an operation whose work has no future (gloo's send, recv, reduce_scatter), unless Python waits for it",
)
"""What passes unseen here."""


KEY, _op_names, _unbox_group, _unbox_work, _wait, _, _Library, *_rest = map(found, PRIVATE)
_modes, _Gloo, _backend_of = _rest
_Work: Any = dist.Work
_ProcessGroup: Any = dist.ProcessGroup


class Operation(NamedTuple):
    """An operation that is about to be issued. Fields as in `traces.format.Event`."""

    op: str
    group: Group
    root: int | None
    peer: int | None
    tag: int | None
    dtype: str | None
    numel: int | None
    asynchronous: bool
    thread: str | None


Leave = Callable[[str | None], None]
"""Told once, when the operation has completed (None) or failed (what went wrong), perhaps from another thread."""


Issue = Callable[[Operation], Leave | None]


class Told(Protocol):
    """Who is told of every operation that is the same, and issued from the same place, as `recorder.Kind` is."""

    def begin(self, time_ns: int, /) -> Any:
        """One is about to be issued, now (monotonic); an exception refuses it."""

    def end(self, begun: Any, time_ns: int, outcome: str | None = None, /) -> None:
        """That for which `begin` returned this has completed, or what went wrong."""


class Watcher(Protocol):
    """Whoever wants to know.

    One may also have `kind(operation, frame)`, to do there once what takes time. On the short way that is asked of an
    operation and a place of the program, whose frame this is (None: there is none), and says who is told of them
    instead, or None.
    """

    def issue(self, operation: Operation) -> Leave | None:
        """An operation is about to be issued; an exception refuses it, and goes to whoever issued it."""


class _Operator(NamedTuple):
    """How the arguments of a `c10d::` operator are read. `tensors` names those that say dtype and size."""

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
"""Every operator of torch's namespace `c10d` that involves another rank."""
NO_PEERS = frozenset({"check_for_nan"})
"""The others."""


class _Short(NamedTuple):
    """A method of ProcessGroup that may be told itself, and wait."""

    method: str
    """The backend's is called the same."""
    operator: str
    function: Callable[..., Any]
    """Of torch: calls it, and waits unless it returns None."""


SHORT = (_Short("allreduce", "allreduce_", dist.all_reduce), _Short("broadcast", "broadcast_", dist.broadcast))
METHODS = {short.method: vars(_ProcessGroup)[short.method] for short in SHORT}
"""As torch has them."""
PLAIN, STRIDED = (torch.Tensor, torch.nn.Parameter), torch.strided


def unknown_operators() -> list[str]:
    """Operators of the namespace `c10d` that this torch has and the table above does not: further blind spots."""
    here = {name.removeprefix("c10d::") for name in _op_names() if name.startswith("c10d::")}
    return sorted(here - OPERATORS.keys() - NO_PEERS)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` know of every operation meanwhile."""
    watch(watcher)
    try:
        yield
    finally:
        unwatch(watcher)


def watch(watcher: Watcher) -> None:
    """Let `watcher` know of every operation from now on."""
    _interception.tell((*_interception.watchers, watcher))


def unwatch(watcher: Watcher) -> None:
    """Leave `watcher` alone again. Without watchers torch is as it was."""
    _interception.tell(tuple(w for w in _interception.watchers if w is not watcher))


def forget() -> None:
    """Ask watchers again whom to tell of what (`Watcher.kind`)."""
    _interception.forget()


def group_of(group: dist.ProcessGroup) -> Group:
    """What an operation on this group says of it."""
    return _interception.group(group)


def caller(inner: FrameType | None = None) -> FrameType | None:
    """To a watcher: where the program is that issues the operation; None where only torch is on the stack.

    Looked for from `inner` on, else from here.
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
    """A place in the program as `file:line`."""
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
"""How the names of files begin that may stand between a program and its operation."""


MAX_UNWAITED = 4096
"""Works without a future beyond which those are forgotten that the program has dropped without waiting."""
NOTHING: tuple[None, Leave] = (None, lambda outcome: None)
NOBODY: tuple[Callable[[], Any], Leave] = (lambda: None, NOTHING[1])


class _Known(NamedTuple):
    """A group, for as long as it lives."""

    alive: ref[Any]
    """Forgets it."""
    group: Group
    backend: Any
    """Of operations that may go the short way; else None."""
    told: dict[tuple[Any, ...], tuple[Told, CodeType | None]]
    """Who is told of those that went it, by what they are and where they came from, whose code has to live on: a
    program issues the same ones again and again."""


MAX_TOLD = 4096
"""Operations beyond which those of a group are forgotten."""


class _Interception:
    """The kernels, and the works that someone will wait for."""

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()
        self.issue: Issue = _nobody
        """Tells the watchers."""
        self.kind: Callable[[Operation, FrameType | None], Told | None] | None = None
        """Asks the only watcher whom to tell, where that one has this."""
        self._library: Any = None
        self._groups: dict[int, _Known] = {}
        """By the `id` of a ProcessGroup."""
        self._names: dict[str, int] = {}
        self._leaves: dict[int, tuple[ref[Any], Leave]] = {}
        """By the `id` of a work that someone may wait for: a dictionary with weak keys would take ten times as long."""
        self._newest: dict[int, tuple[Any, Leave]] = {}
        """By thread: the work that it got last and is about to wait for, and whom to tell. Python sees the same object
        again while it lives: until the caller has taken it, it lives here."""

    def tell(self, watchers: tuple[Watcher, ...]) -> None:
        """These are the watchers from now on."""
        self.watchers = watchers
        self.issue = watchers[0].issue if len(watchers) == 1 else partial(_issue_to, watchers)
        self.kind = getattr(watchers[0], "kind", None) if len(watchers) == 1 else None
        self.forget()
        if watchers and self._library is None:
            self.install()
        elif not watchers:
            self.remove()

    def forget(self) -> None:
        """Ask the watcher again whom to tell."""
        for known in [*self._groups.values()]:
            known.told.clear()

    def install(self) -> None:
        self._library = _Library("c10d", "IMPL")
        present = {name.removeprefix("c10d::") for name in _op_names() if name.startswith("c10d::")}
        for name in OPERATORS.keys() & present:
            self._library.impl(name, self._kernel(name), KEY.name, with_keyset=True)
        for short in SHORT:
            setattr(_ProcessGroup, short.method, self._short(short))
        _Work.wait = self._waiter()

    def remove(self) -> None:
        if self._library is not None:
            self._library._destroy()
            self._library = None
            for name, method in METHODS.items():
                setattr(_ProcessGroup, name, method)
            _Work.wait = _wait
            self._newest.clear()
            self._leaves.clear()

    def _kernel(self, name: str) -> Callable[..., Any]:
        operator = getattr(torch.ops.c10d, name).default
        names = [argument.name for argument in operator._schema.arguments]
        read = self._reader(OPERATORS[name], names)
        redispatch = operator.redispatch

        def kernel(keys: Any, *arguments: Any) -> Any:
            operation = read(arguments)
            leave = None if operation is None else self.issue(operation)
            if leave is None or operation is None:
                return redispatch(keys.remove(KEY), *arguments)
            try:
                result = redispatch(keys.remove(KEY), *arguments)
            except BaseException as error:
                leave(_first_line(error))
                raise
            self._follow(result, operation.asynchronous, leave)
            return result

        return kernel

    def _short(self, short: _Short) -> Callable[..., Any]:
        original, operator = getattr(_ProcessGroup, short.method), OPERATORS[short.operator]
        op, rooted, on_backend = operator.op, operator.root is not None, getattr(_Gloo, short.method)
        torchs = getattr(inspect.unwrap(short.function), "__code__", None)

        def method(group: Any, *given: Any, **named: Any) -> Any:
            frame, known = sys._getframe(1), None
            if frame.f_code is torchs:
                (tensor,), options = given
                known = self._may_go(group, tensor, options)
            if known is None:
                return original(group, *given, **named)
            place = caller(frame)
            code, at = (None, 0) if place is None else (place.f_code, place.f_lasti)
            root, thread = options.rootRank if rooted else None, None if _ident() == _MAIN else _thread()
            about = (op, root, tensor.dtype, tensor.numel(), thread, id(code), at)
            told, _ = known.told.get(about) or self._tell(known, about, place)
            begun = told.begin(_now())
            try:
                _wait(on_backend(known.backend, *given))
            except BaseException as error:
                told.end(begun, _now(), _first_line(error))
                raise
            told.end(begun, _now())
            return None

        return method

    def _tell(self, known: _Known, about: tuple[Any, ...], place: FrameType | None) -> tuple[Told, CodeType | None]:
        """Who is told of operations that go the short way, kept for the next."""
        op, root, dtype, numel, thread, _, _ = about
        root = None if root is None else _global(known.group, root)
        operation = Operation(op, known.group, root, None, None, _name(dtype), numel, False, thread)
        told = (self.kind and self.kind(operation, place)) or _EachTime(operation, self.issue)
        if len(known.told) >= MAX_TOLD:
            known.told.clear()
        known.told[about] = told, None if place is None else place.f_code
        return known.told[about]

    def _may_go(self, group: Any, tensor: Any, options: Any) -> _Known | None:
        """The group of an operation that may go the short way; None for any other."""
        if options.asyncOp or _modes() or type(tensor) not in PLAIN:
            return None
        if not tensor.is_cpu or tensor.layout is not STRIDED or tensor.requires_grad:
            return None
        known = self._groups.get(id(group)) or self._learn(group)
        return None if known.backend is None else known

    def _reader(self, row: _Operator, names: Sequence[str]) -> Callable[[Sequence[Any]], Operation | None]:
        """Reads an operator's arguments, whose names are `names`; None for tensors without data, as a tracer has.

        The dispatcher leaves out trailing arguments that have their default, `async_op=True` among them.
        """
        at = {name: place for place, name in enumerate(names)}
        group_at, tensors_at = at["process_group"], at.get(row.tensors or "")
        root_at, peer_at = at.get(row.root or ""), at.get(row.peer or "")
        tag_at, async_at = at.get("tag"), at.get("async_op")

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
            )

        return read

    def group(self, group: dist.ProcessGroup) -> Group:
        """Its name, unique in this process, and its members."""
        return (self._groups.get(id(group)) or self._learn(group)).group

    def _learn(self, group: dist.ProcessGroup) -> _Known:
        """A group that was not met before. It is forgotten when it dies: its backend would live on, threads and all."""
        name, at = str(group.group_name), id(group)
        used = self._names[name] = self._names.get(name, 0) + 1
        try:
            members, backend = tuple(dist.get_process_group_ranks(group)), str(dist.get_backend(group))
        except (KeyError, ValueError, AssertionError):  # torch.distributed does not know it
            members, backend = tuple(range(group.size())), ""
        told = Group(name if used == 1 else f"{name}#{used}", members, backend, group.group_desc)
        alive = ref(group, lambda _: self._groups.pop(at, None))
        known = self._groups[at] = _Known(alive, told, _gloo_of(group), {})
        return known

    def _follow(self, result: Any, asynchronous: bool, leave: Leave) -> None:
        """Tell `leave` when the work in an operator's result has completed."""
        boxed = result[-1] if isinstance(result, tuple) and result else result
        if not isinstance(boxed, torch.ScriptObject):
            leave(None)
            return
        work = _unbox_work(boxed)
        if asynchronous:
            try:
                work.get_future().add_done_callback(lambda future: leave(_failure(future)))
                return
            except RuntimeError:  # it has no future
                pass
        self._await(work, leave)

    def _await(self, work: Any, leave: Leave) -> None:
        """Tell `leave` when someone has waited for the work."""
        thread = _ident()
        before = self._newest.pop(thread, None)
        if before is not None:
            self._put_by(*before)
        self._newest[thread] = (work, leave)

    def _put_by(self, work: Any, leave: Leave) -> None:
        """A work that its thread did not wait for at once: remember it for as long as the program does."""
        if len(self._leaves) >= MAX_UNWAITED:
            self._leaves = {key: entry for key, entry in [*self._leaves.items()] if entry[0]() is not None}
        self._leaves[id(work)] = (ref(work), leave)

    def _waiter(self) -> Callable[..., Any]:
        newest = self._newest

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            thread = _ident()
            own, leave = newest.get(thread, NOTHING)
            if own is work:
                newest.pop(thread, None)
            else:
                alive, leave = self._leaves.pop(id(work), NOBODY)
                if alive() is not work:
                    issuer = next((other for other, (its, _) in [*newest.items()] if its is work), None)
                    if issuer is None:
                        return _wait(work, *args, **kwargs)
                    _, leave = newest.pop(issuer, NOTHING)
            try:
                result = _wait(work, *args, **kwargs)
            except BaseException as error:
                leave(_first_line(error))
                raise
            leave(None)
            return result

        return wait


def _thread() -> str | None:
    """The name of this thread; None for the main thread, which after a fork may be another."""
    if _ident() == _MAIN or threading.current_thread() is threading.main_thread():
        return None
    return threading.current_thread().name


_MAIN = threading.main_thread().ident
_ident, _now = threading.get_ident, time.monotonic_ns


def _global(group: Group, rank: int) -> int:
    """The global rank of a rank of the group; a rank that it does not have is left to the backend to refuse."""
    return group.members[rank] if 0 <= rank < len(group.members) else rank


def _described(tensors: Any) -> tuple[str, int]:
    """dtypes and elements of a tensor, or of lists of them; no dtype at all where they have no data."""
    if isinstance(tensors, list):
        if len(tensors) == 1:
            return _described(tensors[0])
        parts = [_described(tensor) for tensor in tensors]
        return ",".join(dict.fromkeys(dtype for dtype, _ in parts)), sum(numel for _, numel in parts)
    if tensors.is_meta:
        return "", 0
    return _name(tensors.dtype), tensors.numel()


def _gloo_of(group: Any) -> Any:
    """The backend of a group, where what it does with tensors on the host is done by gloo, with nothing around it."""
    if type(group) is not _ProcessGroup:
        return None
    try:
        backend = _backend_of(group, torch.device("cpu"))
    except RuntimeError:
        return None
    return backend if type(backend) is _Gloo else None


class _EachTime(NamedTuple):
    """Tells watchers of one operation as often as it is issued."""

    operation: Operation
    issue: Issue

    def begin(self, _: int, /) -> Leave | None:
        return self.issue(self.operation)

    def end(self, begun: Leave | None, _: int, outcome: str | None = None, /) -> None:
        if begun is not None:
            begun(outcome)


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def _nobody(operation: Operation) -> None:
    return None


def _issue_to(watchers: Sequence[Watcher], operation: Operation) -> Leave | None:
    """Tell several watchers; where one refuses, those before it are told."""
    leaves: list[Leave] = []

    def leave(outcome: str | None) -> None:
        for each in leaves:
            each(outcome)

    for watcher in watchers:
        try:
            own = watcher.issue(operation)
        except BaseException as error:
            leave(_first_line(error))
            raise
        if own is not None:
            leaves.append(own)
    return leave if leaves else None


def _failure(future: Any) -> str | None:
    try:
        future.value()
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


_interception = _Interception()
