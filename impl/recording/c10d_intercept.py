"""Intercepts every c10d operation of the process before it reaches a backend, for watchers to see or refuse.

For each `c10d::` operator a kernel stands at the dispatch key BackendSelect, where every way into c10d meets,
from any thread: torch.distributed, methods of a ProcessGroup, functional collectives, compiled code, the C++ of
DDP. It calls the watchers, and goes on to the backend unless one of them raises. `Work.wait` says when an operation
has completed where the host waits at once, else the work's future.

A kernel in Python costs much of what a small operation does: the dispatcher makes every argument anew, twice. So there
are kernels in C++ where they could be built (`compiled_kernel`); and what torch.distributed's own functions issue goes
past the dispatcher where it can (`fast_path`).

Left out: what to do with an operation (`rank.collective_guard` refuses, `session` records), and `BLIND_SPOTS`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ...traces.format import Group
from . import compiled_kernel, stacks
from .fast_path import FastMethods
from .groups import Groups
from .operations import (
    NO_PEERS,
    OPERATORS,
    REDUCTIONS_IN_C,
    OnComplete,
    Operation,
    OperationObserver,
    Watcher,
    Watchers,
    dtype_name,
    global_rank,
    reader,
    thread_name,
)
from .stacks import fast_stack_key, site
from .torch_compat import lookup
from .works import WaitedForAtOnce, Works, outcome

__all__ = [
    "BLIND_SPOTS",
    "OnComplete",
    "Operation",
    "OperationObserver",
    "any_failed",
    "begin_job",
    "caller",
    "forget_observers",
    "group_of",
    "site",
    "store_of",
    "unknown_operators",
    "unregistered",
    "unwatch",
    "watch",
    "watching",
]

BLIND_SPOTS = (
    "collectives inside a replayed CUDA graph, after the capture",
    "kernels that talk to other GPUs by themselves: custom all-reduce, symmetric memory, NVSHMEM",
    "calls of a backend object, past its ProcessGroup",
    "stores, RPC, and what a backend does inside an operation",
    "the reduction (sum, max) of a reducing operation that goes by the dispatcher, unless the kernels in C++ were "
    "built",
    "how far a GPU is: for NCCL an exit says that the operation was enqueued",
    "the end of an asynchronous operation that Python neither waits for nor asks for, where c10d gives it no future "
    "or the fast path issued it",
)
"""Names what passes unseen here."""


KEY, _op_names, _unbox_work, _Library, _default_store = map(
    lookup,
    (
        "_C.DispatchKey.BackendSelect",
        "_C._dispatch_get_all_op_names",
        "_C._distributed_c10d.Work.unbox",
        "library.Library",
        "distributed.distributed_c10d._get_default_store",
    ),
)


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
    _interception.set_watchers((*_interception.watchers.all, watcher))


def unwatch(watcher: Watcher) -> None:
    """Leave `watcher` alone again. Without watchers torch is as it was."""
    _interception.set_watchers(tuple(w for w in _interception.watchers.all if w is not watcher))


def forget_observers() -> None:
    """Ask watchers again for their observers."""
    _interception.forget_observers()


def any_failed() -> bool:
    """Return True where the backend could not complete an operation that nobody has waited for yet."""
    return _interception.works.any_failed()


def group_of(group: dist.ProcessGroup) -> Group:
    """Return what an operation on this group says of it."""
    return _interception.groups.of(group).group


def begin_job(*, again: bool) -> None:
    """Note that this process has joined a job, before any of its groups is named; the same one `again`, or another."""
    _interception.groups.begin_job(again)
    _interception.forget_observers()


def unregistered(name: str) -> Any:
    """Return the group of that name where torch.distributed does not know it; else None."""
    alive = _interception.groups.unregistered.get(name)
    return None if alive is None else alive()


def store_of(group: Any) -> Any:
    """Return the store by which the members of a group found each other; of None, the default group's."""
    return _default_store() if group is None else group.get_group_store()


def caller(inner: FrameType | None = None) -> FrameType | None:
    """Return to a watcher where the program issues the operation; None where only libraries are on the stack.

    The search begins at `inner`, else here.
    """
    frame = inner
    if frame is None:
        frame = sys._getframe(1)
        while frame is not None and not stacks.is_ours(frame):
            frame = frame.f_back
    return None if frame is None else stacks.caller(frame)


class _Interception:
    """Keeps the kernels, and the works that someone will wait for."""

    def __init__(self) -> None:
        self.watchers, self.groups, self.works = Watchers(), Groups(), Works()
        self.fast = FastMethods(self.groups, self.works, self.watchers)
        self.compiled: Any = None if fast_stack_key is None else compiled_kernel.load()
        """Holds the kernels in C++; None where they were not built."""
        self._installed: Any = None

    def set_watchers(self, watchers: tuple[Watcher, ...]) -> None:
        """Take these as the watchers from now on."""
        self.watchers.set(watchers)
        self.forget_observers()
        if watchers and self._installed is None:
            self.install()
        elif not watchers:
            self.remove()
        if self._installed is not None and self._installed is self.compiled:
            self._installed.ask_at(self.watchers.due)

    def forget_observers(self) -> None:
        """Ask watchers again for their observers."""
        self.groups.forget_observers()
        if self.compiled is not None:
            self.compiled.forget()

    def install(self) -> None:
        present = {name.removeprefix("c10d::") for name in _op_names() if name.startswith("c10d::")}
        known = OPERATORS.keys() & present
        if self.compiled is not None:
            rows = {name: tuple(part or "" for part in OPERATORS[name]) for name in known}
            asks = self._observer, self.watchers.tick, self._follow_newest, _failed
            self.compiled.install(rows, *asks, fast_stack_key, stacks.programs, stacks.learn)
            self._installed = self.compiled
        else:
            self._installed = _Library("c10d", "IMPL")
            for name in known:
                self._installed.impl(name, self._kernel(name), KEY.name, with_keyset=True)
        self.fast.install()
        self.works.install()

    def remove(self) -> None:
        if self._installed is not None:
            self._installed.remove() if self._installed is self.compiled else self._installed._destroy()
            self._installed = None
            self.fast.remove()
            self.works.remove()

    def _follow_newest(self, work: Any, observer: OperationObserver, begun: Any) -> None:
        self.works.follow_newest(work, WaitedForAtOnce(observer), begun)

    def _observer(
        self,
        op: str,
        group: Any,
        root: int | None,
        peer: int | None,
        tag: int | None,
        dtypes: Sequence[torch.dtype],
        numel: int | None,
        asynchronous: bool,
        reduce: int | None,
        splits: bool | None,
        frame: FrameType | None,
    ) -> OperationObserver:
        """Return the observer of an operation that the kernel in C++ has not met before; ranks are the group's."""
        known = self.groups.of(group).group
        operation = Operation(
            op,
            known,
            None if root is None else global_rank(known, root),
            None if peer is None else global_rank(known, peer),
            tag,
            None if numel is None else ",".join(map(dtype_name, dtypes)),
            numel,
            asynchronous,
            thread_name(),
            None if reduce is None else REDUCTIONS_IN_C.get(reduce),
            splits,
        )
        return self.watchers.observer(operation, frame or sys._getframe())

    def _kernel(self, name: str) -> Callable[..., Any]:
        operator = getattr(torch.ops.c10d, name).default
        names = [argument.name for argument in operator._schema.arguments]
        read = reader(OPERATORS[name], names, group_of)
        redispatch = operator.redispatch

        def kernel(keys: Any, *arguments: Any) -> Any:
            operation = read(arguments)
            on_complete = None if operation is None else self.watchers.issue(operation)
            if on_complete is None or operation is None:
                return redispatch(keys.remove(KEY), *arguments)
            try:
                result = redispatch(keys.remove(KEY), *arguments)
            except BaseException as error:
                on_complete(outcome(error))
                raise
            self._follow(result, operation.asynchronous, on_complete)
            return result

        return kernel

    def _follow(self, result: Any, asynchronous: bool, on_complete: OnComplete) -> None:
        """Call `on_complete` when the work in an operator's result has completed."""
        boxed = result[-1] if isinstance(result, tuple) and result else result
        if isinstance(boxed, torch.ScriptObject):
            self.works.follow_boxed(_unbox_work(boxed), asynchronous, on_complete)
        else:
            on_complete(None)


def _failed(observer: OperationObserver, begun: Any, error: BaseException | str) -> None:
    """Tell of an operation that did not go as it should: what was raised, or the text of what C++ threw."""
    observer.end(begun, time.monotonic_ns(), outcome(RuntimeError(error) if isinstance(error, str) else error))


_interception = _Interception()
