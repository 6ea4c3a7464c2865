"""Leads operations past the dispatcher, where that does nothing for them: a kernel in Python costs more than they do.

Where torch's own function calls a method of a ProcessGroup, that method calls an observer and goes to the group's
backend; where the host waits at once, it waits itself. Only on gloo, with dense tensors on the host and without a
gradient: there the dispatcher does nothing else. All of this is done between two operations that have swept the
caches, where each object costs several times what it does in a loop of its own.

Left out: every other way into c10d (`c10d_intercept`).
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .groups import Groups, Known
from .operations import (
    MAIN,
    REDUCTIONS,
    Operation,
    OperationObserver,
    Watchers,
    dtype_name,
    global_rank,
    thread_name,
)
from .stacks import stack_key
from .torch_compat import lookup
from .works import Works, outcome

_Gloo, _modes, _wait = map(
    lookup, ("distributed.ProcessGroupGloo", "_C._len_torch_dispatch_stack", "_C._distributed_c10d.Work.wait")
)
_ProcessGroup: Any = dist.ProcessGroup
PLAIN, STRIDED = (torch.Tensor, torch.nn.Parameter), torch.strided
_ident, _now = threading.get_ident, time.monotonic_ns

Given = tuple[Any, int | None, Any, bool]
"""Holds what tells a call from others: a tensor that says the dtype, the elements, a detail, and whether the host goes
on at once."""
Read = Callable[[Sequence[Any]], Given | None]


def _plain(tensor: Any) -> bool:
    return type(tensor) in PLAIN and tensor.is_cpu and tensor.layout is STRIDED and not tensor.requires_grad


def _reduction(given: Sequence[Any]) -> Given | None:
    (tensor,), options = given
    return (tensor, tensor.numel(), hash(options.reduceOp), options.asyncOp) if _plain(tensor) else None


def _from_root(given: Sequence[Any]) -> Given | None:
    (tensor,), options = given
    return (tensor, tensor.numel(), options.rootRank, options.asyncOp) if _plain(tensor) else None


def _to_root(given: Sequence[Any]) -> Given | None:
    (tensor,), options = given
    detail = options.rootRank, hash(options.reduceOp)
    return (tensor, tensor.numel(), detail, options.asyncOp) if _plain(tensor) else None


def _gathered(given: Sequence[Any]) -> Given | None:
    output, tensor, options = given
    return (tensor, tensor.numel(), None, options.asyncOp) if _plain(tensor) and _plain(output) else None


def _gathered_list(given: Sequence[Any]) -> Given | None:
    (outputs,), (tensor,), options = given
    return (tensor, tensor.numel(), None, options.asyncOp) if _plain(tensor) and all(map(_plain, outputs)) else None


def _scattered(given: Sequence[Any]) -> Given | None:
    output, tensor, options = given
    sound = _plain(tensor) and _plain(output)
    return (tensor, tensor.numel(), hash(options.reduceOp), options.asyncOp) if sound else None


def _exchanged(given: Sequence[Any]) -> Given | None:
    output, tensor, to, of, options = given
    sound = _plain(tensor) and _plain(output)
    return (tensor, tensor.numel(), bool(to or of), options.asyncOp) if sound else None


def _nothing(given: Sequence[Any]) -> Given | None:
    (options,) = given
    device = options.device
    return (None, None, None, options.asyncOp) if device is None or device.type == "cpu" else None


def _peer(given: Sequence[Any]) -> Given | None:
    (tensor,), peer, tag = given
    return (tensor, tensor.numel(), (peer, tag), True) if _plain(tensor) else None


def _any_peer(given: Sequence[Any]) -> Given | None:
    (tensor,), tag = given
    return (tensor, tensor.numel(), tag, True) if _plain(tensor) else None


Facts = Callable[[Any, Any], dict[str, Any]]
"""Returns the fields of an operation that its detail tells, from the group and the detail."""

_REDUCE: Facts = lambda group, detail: {"reduce": REDUCTIONS.get(detail)}  # noqa: E731
_NONE: Facts = lambda group, detail: {}  # noqa: E731


class FastPath(NamedTuple):
    """Names a method of ProcessGroup that may call an observer, and how its arguments are read."""

    method: str
    backends: str
    """The method of the backend."""
    op: str
    function: str
    """torch's own, which calls the method, and waits unless it returns None."""
    read: Read
    facts: Facts = _NONE


_FROM_ROOT: Facts = lambda group, root: {"root": global_rank(group, root)}  # noqa: E731
_TO_ROOT: Facts = lambda group, of: {"root": global_rank(group, of[0]), "reduce": REDUCTIONS.get(of[1])}  # noqa: E731
_SPLITS: Facts = lambda group, splits: {"splits": splits}  # noqa: E731
_PEER: Facts = lambda group, of: {"peer": global_rank(group, of[0]), "tag": of[1]}  # noqa: E731
_TAG: Facts = lambda group, tag: {"tag": tag}  # noqa: E731

FAST_PATHS = (
    FastPath("allreduce", "allreduce", "all_reduce", "all_reduce", _reduction, _REDUCE),
    FastPath("broadcast", "broadcast", "broadcast", "broadcast", _from_root, _FROM_ROOT),
    FastPath("reduce", "reduce", "reduce", "reduce", _to_root, _TO_ROOT),
    FastPath("allgather", "allgather", "all_gather", "all_gather", _gathered_list),
    FastPath("_allgather_base", "_allgather_base", "all_gather_into_tensor", "all_gather_into_tensor", _gathered),
    FastPath("all_gather_single", "_allgather_base", "all_gather_into_tensor", "all_gather_single", _gathered),
    FastPath(
        *("_reduce_scatter_base", "_reduce_scatter_base", "reduce_scatter_tensor", "reduce_scatter_tensor"),
        *(_scattered, _REDUCE),
    ),
    FastPath(
        *("reduce_scatter_single", "_reduce_scatter_base", "reduce_scatter_tensor", "reduce_scatter_single"),
        *(_scattered, _REDUCE),
    ),
    FastPath("alltoall_base", "alltoall_base", "all_to_all_single", "all_to_all_single", _exchanged, _SPLITS),
    FastPath("all_to_all_single", "alltoall_base", "all_to_all_single", "all_to_all_single", _exchanged, _SPLITS),
    FastPath("barrier", "barrier", "barrier", "barrier", _nothing),
    FastPath("send", "send", "send", "isend", _peer, _PEER),
    FastPath("recv", "recv", "recv", "irecv", _peer, _PEER),
    FastPath("recv_anysource", "recv_anysource", "recv_any_source", "irecv", _any_peer, _TAG),
)
"""Lists the ways that are led past the dispatcher. Some methods have got new names in newer versions of torch."""
METHODS = {path.method: vars(_ProcessGroup)[path.method] for path in FAST_PATHS if path.method in vars(_ProcessGroup)}
"""Keeps the methods as torch has them."""

MAX_OBSERVERS = 4096
"""Beyond so many operations, the observers of a group are forgotten."""


class FastMethods:
    """Takes the place of methods of ProcessGroup."""

    def __init__(self, groups: Groups, works: Works, watchers: Watchers) -> None:
        self._groups, self._works, self._watchers = groups, works, watchers

    def install(self) -> None:
        """Take the place of torch's methods."""
        for path in FAST_PATHS:
            if path.method in METHODS:
                setattr(_ProcessGroup, path.method, self._method(path))

    def remove(self) -> None:
        """Leave torch's methods as they were."""
        for name, method in METHODS.items():
            setattr(_ProcessGroup, name, method)

    def _method(self, path: FastPath) -> Callable[..., Any]:
        original, on_backend, read, op = METHODS[path.method], getattr(_Gloo, path.backends), path.read, path.op
        torchs = getattr(inspect.unwrap(getattr(dist.distributed_c10d, path.function, _ident)), "__code__", None)
        follow, watchers = self._works.follow, self._watchers

        def method(group: Any, *given: Any, **named: Any) -> Any:
            frame = sys._getframe(1)
            taken = None
            if frame.f_code is torchs:
                given, named = (*given, *named.values()), NO_NAMES
                taken = self._takes(group, read, given)
            if taken is None:
                return original(group, *given, **named)
            known, told = taken
            tensor, numel, detail, asynchronous = told
            thread = None if _ident() == MAIN else thread_name()
            about = (op, detail, tensor is None or tensor.dtype, numel, asynchronous, thread, stack_key(frame))
            observer = known.observers.get(about) or self._observe(known, path, about, told, frame)
            now = _now()
            if now >= watchers.due:
                watchers.tick(now)
            begun = observer.begin(now)
            try:
                work = on_backend(known.backend, *given)
                if not asynchronous:
                    _wait(work)
            except BaseException as error:
                observer.end(begun, _now(), outcome(error))
                raise
            if not asynchronous:
                observer.end(begun, _now())
                return None
            follow(work, observer, begun)
            return work

        return method

    def _takes(self, group: Any, read: Read, given: Sequence[Any]) -> tuple[Known, Given] | None:
        """Return the group and the facts of an operation that may take the fast path; None for any other."""
        if _modes():
            return None
        known = self._groups.known.get(id(group)) or self._groups.of(group)
        if known.backend is None:
            return None
        try:
            told = read(given)
        except (AttributeError, TypeError, ValueError):  # another torch gives other arguments
            return None
        return None if told is None else (known, told)

    def _observe(
        self, known: Known, path: FastPath, about: tuple[Any, ...], told: Given, frame: FrameType
    ) -> OperationObserver:
        """Return the observer of an operation that takes the fast path, kept for the next."""
        tensor, numel, detail, asynchronous = told
        dtype = None if tensor is None else dtype_name(tensor.dtype)
        facts = {"root": None, "peer": None, "tag": None} | path.facts(known.group, detail)
        operation = Operation(
            path.op, known.group, dtype=dtype, numel=numel, asynchronous=asynchronous, thread=about[5], **facts
        )
        observer = self._watchers.observer(operation, frame)
        if len(known.observers) >= MAX_OBSERVERS:
            known.observers.clear()
        if about[-1] is not None:
            known.observers[about] = observer
        return observer


NO_NAMES: dict[str, Any] = {}
