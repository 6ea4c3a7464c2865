"""Records what passes by a queue, a ring or an RPC of your own, as operations that a replay can judge.

Engines leave torch.distributed once they have started: a driver puts work into shared memory, workers answer by a
queue, and their own kernels reduce. A channel is a job of its own, with a trace of its own for each end. It says what
each end handed over, took, and waits for, so that an end that does not answer is named like a rank that does not come.

Left out: the messages themselves, and any engine's own queue (`adapters`).
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...errors import UsageError
from ...traces import journal
from ...traces.format import CHANNEL, Group
from .c10d_intercept import Operation, caller
from .command import RecordingSettings
from .endings import STOPPED, Ending, follow_endings, keep, of
from .session import JobTrace


def channel(name: str, rank: int, world: int) -> Channel:
    """Return one end of a channel, to record what passes by it; it does nothing where the process is not recorded.

    - `name`: the same at every end, and of no other channel of the recording, such as the name of its shared memory;
      a verdict calls it so.
    - `rank`: the number of this end, from 0; `world`: how many there are.

    Raises UsageError for a rank that is none.
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} is not one of {world}", where="genlock.channel", do="count ends from 0")
    settings = RecordingSettings.inherited()
    end = Channel(None, name, world)
    if settings is not None:
        run = f"{settings.run}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
        job = journal.Job(run, settings.attempt_now(), world, settings.run)
        try:
            end = Channel(JobTrace(settings, job, rank, CHANNEL), name, world)
        except Exception as error:
            journal.mark(Path(settings.out), f"channel {name}: {error}")
            print(f"genlock: channel {name} is not recorded: {error}", file=sys.stderr)
        else:
            follow_endings(end._end, end._written)
    return end


Waits = Callable[[str], Callable[[None], object]]
"""Is called when an end begins to wait for another, with the operation; returns what ends that."""
_followers: list[Waits] = []


def follow_waits(waits: Waits) -> None:
    """Call `waits` whenever an end of a channel of this process waits for what is due."""
    _followers.append(waits)


class Channel:
    """Records one end of a channel. All methods may be called from any thread; none raises, whatever fails in here."""

    def __init__(self, trace: JobTrace | None, name: str, world: int) -> None:
        self._trace = trace
        self._all = Group("0", tuple(range(world)), CHANNEL, name)

    def sent(self, to: int, tag: int = 0) -> None:
        """Record that something was handed over to an end: it need not have taken it."""
        with self._operation("send", self._all, to, tag):
            pass

    def received(self, source: int, tag: int = 0) -> None:
        """Record that something was taken from an end, after a wait that may rightly have been long."""
        with self._operation("recv", self._all, source, tag):
            pass

    def receiving(self, source: int, tag: int = 0) -> contextlib.AbstractContextManager[None]:
        """Record, around it, a wait for something that is due from an end, such as an answer."""
        return self._waiting("recv", self._all, source, tag)

    def meeting(self, op: str = "all_reduce", members: Sequence[int] = ()) -> contextlib.AbstractContextManager[None]:
        """Record, around it, an operation that all ends, or these, must come to; named as torch.distributed does."""
        group = Group(",".join(map(str, members)), tuple(members), CHANNEL) if members else self._all
        return self._waiting(op, group, None, None)

    def raised(self, error: BaseException) -> None:
        """Record that this end is of no use any more, because of this; what comes later is not recorded.

        The process may go on in its other jobs; while it does not, this is why.
        """
        self._end(of(error))
        keep(error)

    def lost(self, rank: int, why: str) -> None:
        """Record that this end is of no use any more, because the process of another end was found to have ended."""
        self._end(Ending("peer_lost", 1, why, culprit=rank))

    def close(self) -> None:
        """Record that this end is done. A process that ends by itself need not say so."""
        self._end(STOPPED)

    @contextlib.contextmanager
    def _waiting(self, op: str, group: Group, peer: int | None, tag: int | None) -> Iterator[None]:
        """Record an operation that waits for others, and say so to whoever follows that."""
        over = [waits(op) for waits in _followers]
        try:
            with self._operation(op, group, peer, tag, depth=4):
                yield
        finally:
            for end in over:
                end(None)

    @contextlib.contextmanager
    def _operation(self, op: str, group: Group, peer: int | None, tag: int | None, depth: int = 2) -> Iterator[None]:
        trace = self._trace
        if trace is None or trace.over:
            yield
            return
        operation = Operation(op, group, None, peer, tag, None, None, False, None)
        recorder = trace.operation(operation, caller(sys._getframe(depth)), self._failed)
        begun = recorder.begin(time.monotonic_ns())
        try:
            yield
        except BaseException as error:
            self._end(of(error))  # the wait has not ended as it should
            raise
        recorder.end(begun, time.monotonic_ns())

    def _failed(self, error: Exception) -> None:
        if self._trace is not None and not self._trace.over:
            self._end(Ending("detached", message=f"{type(error).__name__}: {error}"))

    def _end(self, ending: Ending) -> None:
        if self._trace is not None and not self._trace.over:
            with contextlib.suppress(Exception):
                self._trace.end(ending)

    def _written(self) -> int:
        return 0 if self._trace is None else self._trace.recorder.written
