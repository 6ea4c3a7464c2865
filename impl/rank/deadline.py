"""Ends a rank that makes no progress: a thread that watches how often the monitor has moved.

It beats on progress, not on life. Ending means `os._exit`, because a pending collective cannot be
unblocked. Left out: whose fault it is (`conformance` says, from the traces), and ranks that hold the GIL.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

from ...errors import Exit
from ...traces.recorder import Recorder
from ..scenario import effective
from .drain import Drain
from .monitor import Monitor

LAST_WORDS = 5.0
"""The last words of a rank may take so many seconds."""


IN_A_CHUNK = ("payload", "generate", "ack")
"""The phases of a chunk in which a rank has begun what it must finish."""


class Grace:
    """Counts how long a signal has been held. The chunk that it came in is not counted, nor one begun just then.

    Both have deadlines of their own, and as many steps as the plan says.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        """Index of the last chunk that is not counted."""
        self._begin = 0.0

    def held(self, since: float, now: float, phase: str, chunk_index: int) -> float:
        """Return the seconds so far. Ask often: what is not counted is what was in progress at an earlier asking."""
        if self._last is None:
            self._last, self._begin = chunk_index + 1, since
        if phase in IN_A_CHUNK and chunk_index <= self._last:
            self._begin = now
        return now - self._begin


class Deadline:
    """Watches one monitor, and how long a signal is held where there is a drain; `stop` it before leaving in order."""

    def __init__(
        self, monitor: Monitor, recorder: Recorder | None, seconds: Mapping[str, float], drain: Drain | None = None
    ) -> None:
        self._monitor, self._recorder, self._seconds = monitor, recorder, effective(seconds)
        self._drain, self._grace = drain, Grace()
        self.last_words: Callable[[], object] = lambda: None
        """Called before the end, for a few seconds at most."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genlock-deadline", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        monitor = self._monitor
        seen, since = monitor.moves, time.monotonic()
        while not self._stopped.wait(0.05):
            self._hold()
            if monitor.moves != seen:
                seen, since = monitor.moves, time.monotonic()
                continue
            limit = self._seconds.get(monitor.phase)
            waited = time.monotonic() - since
            if limit is not None and waited > limit:
                self._expire(f"made no progress for {waited:.1f} s")

    def _hold(self) -> None:
        """End a rank that has held a signal for too long: somebody else has failed to see to the drain."""
        drain, monitor = self._drain, self._monitor
        if drain is not None and drain.since is not None:
            held = self._grace.held(drain.since, time.monotonic(), monitor.phase, monitor.vars.chunk_index)
            if held > self._seconds["drain"]:
                self._expire(f"held {drain.signal} for {held:.1f} s, and the drain has not ended")

    def _expire(self, what: str) -> None:
        monitor = self._monitor
        where = f"in {monitor.pending}" if monitor.pending else f"in state {monitor.state}"
        message = f"rank{monitor.rank} {what} {where}"
        if self._recorder is not None:
            self._recorder.end("deadline", Exit.DEADLINE, message)
        sys.stderr.write(f"genlock: {message}\n")
        sys.stderr.flush()
        speaking = threading.Thread(target=self._speak, name="genlock-last-words", daemon=True)
        speaking.start()
        speaking.join(LAST_WORDS)
        os._exit(Exit.DEADLINE)

    def _speak(self) -> None:
        with contextlib.suppress(Exception):
            self.last_words()
