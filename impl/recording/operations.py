"""Describes the operations of c10d: how the arguments of each operator are read, and who may watch it.

Left out: getting at the operators (`c10d_intercept`, `fast_path`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from ...traces.format import Group
from ...traces.outcome import Outcome, outcome_of
from .torch_compat import lookup


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

    def wait(self, begun: Any, time_ns: int, /) -> None:
        """Take note that the host begins to wait for the one of which `begin` returned `begun`, if not at once."""

    def end(self, begun: Any, time_ns: int, outcome: Outcome | None = None, /) -> None:
        """Take note that the one of which `begin` returned `begun` has completed, or what went wrong."""


class Watcher(Protocol):
    """Sees every operation before it is issued, and may refuse it.

    A watcher may also have `observer(operation, frame)`, to do once what takes time. The fast path and the kernels in
    C++ call that for an operation and the stack that it was issued from, whose innermost frame this is, and then tell
    the observer that it returns; they call the watcher's `issue` where it returns None. Where a watcher has
    `tick(time_ns)`, they call that from time to time: not before the time that it returned last.
    """

    def issue(self, operation: Operation) -> OnComplete | None:
        """Take note of an operation that is about to be issued; an exception refuses it, and goes to the issuer."""


Tick = Callable[[int], int]
NEVER = 1 << 62


class EachTime(NamedTuple):
    """Observes one operation by calling a watcher as often as it is issued."""

    operation: Operation
    issue: Issue

    def begin(self, _: int, /) -> OnComplete | None:
        return self.issue(self.operation)

    def wait(self, begun: OnComplete | None, _: int, /) -> None:
        pass

    def end(self, begun: OnComplete | None, _: int, outcome: Outcome | None = None, /) -> None:
        if begun is not None:
            begun(outcome)


class Several(NamedTuple):
    """Observes one operation for several watchers, and tells those before it where one refuses it."""

    observers: tuple[OperationObserver, ...]

    def begin(self, time_ns: int, /) -> list[Any]:
        begun: list[Any] = []
        for observer in self.observers:
            try:
                begun.append(observer.begin(time_ns))
            except BaseException as error:
                self.end(begun, time_ns, outcome_of(error))
                raise
        return begun

    def wait(self, begun: list[Any], time_ns: int, /) -> None:
        for observer, own in zip(self.observers, begun, strict=True):
            observer.wait(own, time_ns)

    def end(self, begun: list[Any], time_ns: int, outcome: Outcome | None = None, /) -> None:
        for observer, own in zip(self.observers, begun, strict=False):  # those that have begun
            observer.end(own, time_ns, outcome)


class Watchers:
    """Holds who sees every operation."""

    def __init__(self) -> None:
        self.all: tuple[Watcher, ...] = ()
        self.due = NEVER
        """From when on (monotonic) `tick` is to be called."""
        self._ticks: list[Tick] = []

    def set(self, watchers: tuple[Watcher, ...]) -> None:
        """Take these as the watchers from now on."""
        self.all = watchers
        self._ticks = [tick for watcher in watchers if (tick := getattr(watcher, "tick", None)) is not None]
        self.due = 0 if self._ticks else NEVER

    def tick(self, time_ns: int) -> int:
        """Tell those that want to know that operations are issued; returns when to do so again."""
        self.due = NEVER
        self.due = min((tick(time_ns) for tick in self._ticks), default=NEVER)
        return self.due

    def issue(self, operation: Operation) -> OnComplete | None:
        """Tell all of an operation that is about to be issued; returns what tells them that it has completed."""
        if len(self.all) == 1:
            return self.all[0].issue(operation)
        several = Several(tuple(EachTime(operation, watcher.issue) for watcher in self.all))
        begun = several.begin(0)
        return partial(several.end, begun, 0) if any(begun) else None

    def observer(self, operation: Operation, frame: FrameType) -> OperationObserver:
        """Return what tells all of every such operation that is issued from there."""
        found: list[OperationObserver] = []
        for watcher in self.all:
            find: FindObserver | None = getattr(watcher, "observer", None)
            own = None if find is None else find(operation, frame)
            found.append(EachTime(operation, watcher.issue) if own is None else own)
        return found[0] if len(found) == 1 else Several(tuple(found))


FindObserver = Callable[[Operation, FrameType], OperationObserver | None]


class Operator(NamedTuple):
    """Says how the arguments of a `c10d::` operator are read. `tensors` names those that say dtype and size."""

    op: str
    tensors: str | None
    root: str | None = None
    peer: str | None = None


OPERATORS = {
    "allreduce_": Operator("all_reduce", "tensors"),
    "allreduce_coalesced_": Operator("all_reduce_coalesced", "tensors"),
    "broadcast_": Operator("broadcast", "tensors", root="root_rank"),
    "reduce_": Operator("reduce", "tensors", root="root_rank"),
    "allgather_": Operator("all_gather", "input_tensors"),
    "allgather_coalesced_": Operator("all_gather_coalesced", "input_list"),
    "_allgather_base_": Operator("all_gather_into_tensor", "input_tensor"),
    "allgather_into_tensor_coalesced_": Operator("all_gather_into_tensor_coalesced", "inputs"),
    "reduce_scatter_": Operator("reduce_scatter", "input_tensors"),
    "_reduce_scatter_base_": Operator("reduce_scatter_tensor", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": Operator("reduce_scatter_tensor_coalesced", "inputs"),
    "gather_": Operator("gather", "input_tensors", root="root_rank"),
    "scatter_": Operator("scatter", "output_tensors", root="root_rank"),
    "alltoall_": Operator("all_to_all", "input_tensors"),
    "alltoall_base_": Operator("all_to_all_single", "input"),
    "barrier": Operator("barrier", None),
    "monitored_barrier_": Operator("monitored_barrier", None),
    "send": Operator("send", "tensors", peer="dst"),
    "recv_": Operator("recv", "tensors", peer="src"),
    "recv_any_source_": Operator("recv_any_source", "tensors"),
}
"""Lists every operator of torch's namespace `c10d` that involves another rank."""
NO_PEERS = frozenset({"check_for_nan"})
"""Lists the others."""
REDUCTIONS = {hash(op): name.lower() for name, op in dist.ReduceOp.RedOpType.__members__.items()}
"""Maps the hash of a reduction, which is quick to have, to its name."""
_REDUCTIONS: Any = dist.ReduceOp.RedOpType.__members__
REDUCTIONS_IN_C = {int(op): name.lower() for name, op in _REDUCTIONS.items()}

_unbox_group = lookup("_C._distributed_c10d.ProcessGroup.unbox")


def reader(row: Operator, names: Sequence[str], group_of: Callable[[Any], Group]) -> Callable[..., Operation | None]:
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
        group = group_of(_unbox_group(given[group_at]))
        return Operation(
            row.op,
            group,
            None if root_at is None else global_rank(group, given[root_at]),
            None if peer_at is None else global_rank(group, given[peer_at]),
            None if tag_at is None else given[tag_at],
            dtype,
            numel,
            tag_at is not None if async_at is None else given[async_at] if async_at < len(given) else True,
            thread_name(),
            None,
            any(given[place] for place in splits_at) if splits_at else None,
        )

    return read


def global_rank(group: Group, rank: int) -> int:
    """Return the global rank of a rank of the group; a rank that it does not have is left to the backend to refuse."""
    return group.members[rank] if 0 <= rank < len(group.members) else rank


def thread_name() -> str | None:
    """Return the name of this thread; None for the main thread, which after a fork may be another."""
    if threading.get_ident() == MAIN or threading.current_thread() is threading.main_thread():
        return None
    return threading.current_thread().name


MAIN = threading.main_thread().ident


def _described(tensors: Any) -> tuple[str, int]:
    """Return dtypes and elements of a tensor, or of lists of them; no dtype at all where they have no data."""
    if isinstance(tensors, list):
        if len(tensors) == 1:
            return _described(tensors[0])
        parts = [_described(tensor) for tensor in tensors]
        return ",".join(dict.fromkeys(dtype for dtype, _ in parts)), sum(numel for _, numel in parts)
    if tensors.is_meta:
        return "", 0
    return dtype_name(tensors.dtype), tensors.numel()


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype without `torch.`."""
    return str(dtype)[6:]
