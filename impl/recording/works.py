"""Follows the works that c10d returns, to say when the host waits for an operation, and when it has completed.

A work that a program got from the fast path is the object that it will wait for. Of one that went through a kernel,
the program gets another object for the same work, as long as that lives; so the newest of each thread is kept alive
until its thread has taken it.

Left out: works that nobody waits for and that have no future (`c10d_intercept.BLIND_SPOTS`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import torch.distributed as dist

from ...errors import GenlockError
from ...traces.outcome import Code, Outcome, first_line, outcome_of
from .operations import OnComplete, OperationObserver
from .torch_compat import lookup

_Work: Any = dist.Work
_wait, _get_future, _is_completed = (
    lookup(f"_C._distributed_c10d.Work.{name}") for name in ("wait", "get_future", "is_completed")
)
_ident, _now = threading.get_ident, time.monotonic_ns

MAX_UNWAITED = 4096
"""Beyond so many works that nobody has waited for, those are forgotten that the program has dropped."""


Followed = tuple[Callable[[], Any], OperationObserver, Any]
"""Holds a weak reference to a work that somebody may wait for, its observer, and what `begin` returned for it."""


class Completes(NamedTuple):
    """Observes an operation that has begun, of which the end alone matters."""

    on_complete: OnComplete

    def begin(self, _: int, /) -> None:
        pass

    def wait(self, begun: Any, _: int, /) -> None:
        pass

    def end(self, begun: Any, _: int, outcome: Outcome | None = None, /) -> None:
        self.on_complete(outcome)


class WaitedForAtOnce(NamedTuple):
    """Observes an operation by another's observer, but for the beginning of the wait, which follows its issue."""

    observer: OperationObserver

    def begin(self, time_ns: int, /) -> Any:
        return self.observer.begin(time_ns)

    def wait(self, begun: Any, _: int, /) -> None:
        pass

    def end(self, begun: Any, time_ns: int, outcome: Outcome | None = None, /) -> None:
        self.observer.end(begun, time_ns, outcome)


class Works:
    """Keeps the works that somebody may wait for."""

    def __init__(self) -> None:
        self.unwaited: dict[int, Followed] = {}
        """Keyed by the `id` of a work: weak keys would take ten times as long."""
        self.newest: dict[int, tuple[Any, OperationObserver, Any]] = {}
        """Maps a thread to the work that it got last by a kernel, and is about to wait for; its observer, and what
        `begin` returned for it."""

    def install(self) -> None:
        """Take the place of torch's methods."""
        _Work.wait, _Work.get_future, _Work.is_completed = self._waiter(), self._future(), self._poll()

    def remove(self) -> None:
        """Leave torch's methods as they were."""
        _Work.wait, _Work.get_future, _Work.is_completed = _wait, _get_future, _is_completed
        self.newest.clear()
        self.unwaited.clear()

    def any_failed(self) -> bool:
        """Return True where a work that nobody has waited for has failed."""
        works = [work for work, *_ in [*self.newest.values()]]
        works += [alive() for alive, *_ in [*self.unwaited.values()]]
        return any(work is not None and work.is_completed() and not work.is_success() for work in works)

    def follow(self, work: Any, observer: OperationObserver, begun: Any) -> None:
        """Tell the observer when someone waits for a work, and when it has completed."""
        if len(self.unwaited) >= MAX_UNWAITED:
            for at, (alive, *_) in [*self.unwaited.items()]:
                if alive() is None:
                    self.unwaited.pop(at, None)
        self.unwaited[id(work)] = ref(work), observer, begun

    def follow_boxed(self, work: Any, asynchronous: bool, on_complete: OnComplete) -> None:
        """Call `on_complete` when a work that a kernel has unboxed has completed."""
        if asynchronous:
            try:
                _get_future(work).add_done_callback(lambda future: on_complete(_failure(future)))
                return
            except RuntimeError:  # it has no future
                pass
        self.follow_newest(work, Completes(on_complete), None)

    def follow_newest(self, work: Any, observer: OperationObserver, begun: Any) -> None:
        """Tell the observer when someone waits for a work that this thread is about to get by another object."""
        thread = _ident()
        before = self.newest.pop(thread, None)
        if before is not None:
            self.follow(*before)
        self.newest[thread] = (work, observer, begun)

    def _take(self, work: Any) -> Followed | None:
        """Return how a work is followed, which ends with that; None where it is not."""
        followed = self.unwaited.pop(id(work), None)
        if followed is not None and followed[0]() is work:
            return followed
        for thread in (_ident(), *self.newest):  # a work is waited for by its own thread as a rule
            own = self.newest.get(thread)
            if own is not None and own[0] is work:
                self.newest.pop(thread, None)
                return lambda: work, *own[1:]
        return None

    def _waiter(self) -> Callable[..., Any]:
        take = self._take

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            followed = take(work)
            if followed is None:
                return _wait(work, *args, **kwargs)
            _, observer, begun = followed
            observer.wait(begun, _now())
            try:
                result = _wait(work, *args, **kwargs)
            except BaseException as error:
                observer.end(begun, _now(), outcome(error))
                raise
            observer.end(begun, _now())
            return result

        return wait

    def _future(self) -> Callable[..., Any]:
        def get_future(work: Any) -> Any:
            future, followed = _get_future(work), self._take(work)
            if followed is not None:
                _, observer, begun = followed
                future.add_done_callback(lambda done: observer.end(begun, _now(), _failure(done)))
            return future

        return get_future

    def _poll(self) -> Callable[..., Any]:
        def is_completed(work: Any) -> Any:
            completed = _is_completed(work)
            if completed and id(work) in self.unwaited and work.is_success():
                followed = self._take(work)
                if followed is not None:
                    followed[1].end(followed[2], _now())
            return completed

        return is_completed


def _failure(future: Any) -> Outcome | None:
    try:
        future.value()
    except Exception as error:
        return outcome(error)
    return None


def outcome(error: BaseException) -> Outcome:
    """Return what came of an operation that raised this, out of the backend or out of a watcher below."""
    own = isinstance(error, GenlockError) or not isinstance(error, Exception)
    return outcome_of(error) if own else Outcome(Code.BACKEND, text=first_line(error))
