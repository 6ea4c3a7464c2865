"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted, and a `dropped` line says so later: the rank goes on. A forked child has
its parent's recorder, and writes nothing with it.
Left out: seeing the operations that are recorded (`impl.recording`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from msgspec.structs import replace

from .format import Cause, Dropped, Edge, End, Event, Group, Site, TraceHeader, blank, encode, name_of
from .outcome import Outcome

try:
    from ._fast_recorder import FastOperationRecorder as FastOperationRecorder
except ImportError:  # it was not built: a compiler was missing
    FastOperationRecorder = None  # type: ignore[assignment, misc]

Begun = tuple[int, int]
"""Identifies an operation that has begun: the index of its first event, and its sequence number."""


class OperationRecorder(Protocol):
    """Records one repeated operation, which is issued from one place: its events differ in nothing but numbers.

    An error in here does not reach the caller.
    """

    def begin(self, time_ns: int, /) -> Begun | None:
        """Record that one was issued then."""

    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None:
        """Record that it has completed, or what went wrong."""


FILE, NEXT, LATE = range(3)
"""Index the numbers that `_fast_recorder` shares: the file (-1: closed), the next event's index, and whether other
lines have to stand before that event's."""


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet."""

    def __init__(self, folder: Path, header: TraceHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._shared = array("q", [file, 0, False])
        # a signal handler may record while its thread does
        self._lock = threading.RLock()
        self._due = encode(header)
        """Lines that have to stand before the next one."""
        self._lost = 0
        """Events that could not be written since the last that could."""
        self._sites: dict[str, int] = {}
        self.ended: Cause | None = None
        """Why the rank has ended, once that is recorded."""
        self._end_at = 0
        """Where in the file that stands."""
        _recorders.add(self)
        self._write(-1, b"")
        self._lost = 0  # a header is no event

    def group(self, group: Group) -> None:
        """Announce a group that the header does not have; it is written with the next event."""
        with self._lock:
            self._due += encode(group)
            self._shared[LATE] = True

    def site(self, place: str | None) -> int | None:
        """Return the number of a place (`file:line`); a new one is announced with the next event. None of None."""
        if place is None:
            return None
        with self._lock:
            number = self._sites.get(place)
            if number is None:
                number = self._sites[place] = len(self._sites) + 1
                self._due += encode(Site(number, place))
                self._shared[LATE] = True
            return number

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        with self._lock:
            index = self._shared[NEXT]
            self._write(index, encode(Event(index, time.monotonic_ns(), transition, edge, state, phase, **facts)))

    def operation(
        self, entered: Event, left: Event, sequence: Iterator[int], failed: Callable[[Exception], None]
    ) -> OperationRecorder:
        """Return a recorder for one repeated operation. NUMBER marks the fields that are filled in per call.

        `sequence` yields its sequence numbers; `failed` is called with an error of the recorder.
        """
        whole = SlowOperationRecorder(self, entered, left, sequence, failed)
        if FastOperationRecorder is None:
            return whole
        return FastOperationRecorder(whole, self._lock, self._cut, self._shared, sequence, whole.entered, whole.left)

    @property
    def written(self) -> int:
        """Count the events so far."""
        return self._shared[NEXT]

    def end(
        self, cause: Cause, exit: int, message: str = "", culprit: int | None = None, site: int | None = None
    ) -> None:
        """Record why the rank ends. Only the first call counts: what comes later did not cause the end."""
        with self._lock:
            index = self._shared[NEXT]
            line = encode(End(index, time.monotonic_ns(), cause, exit, message, culprit, site))
            self._write(index, line)
            if self._shared[FILE] != -1:
                self.ended = cause
                self._end_at = os.fstat(self._shared[FILE]).st_size - (0 if self._lost else len(line))
            self.close()

    def resume(self) -> None:
        """Take back the end, and go on: the process has become a rank again. Raises OSError."""
        with self._lock:
            if self.ended is None or self._shared[FILE] != -1:
                return
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(file, self._end_at)
            self.ended, self._lost = None, max(0, self._lost - 1)
            self._shared[FILE], self._shared[NEXT] = file, self._shared[NEXT] - 1

    def close(self) -> None:
        """Write nothing any more, not even an end."""
        with self._lock:
            file, self._shared[FILE] = self._shared[FILE], -1
            if file != -1:
                os.close(file)

    def _write(self, index: int, line: bytes) -> None:
        """Write a line at once, so that a killed rank leaves whole lines; all of it, or else none."""
        self._shared[NEXT] = index + 1
        if self._due or self._lost:
            line = self._due + (encode(Dropped(index - self._lost, self._lost)) if self._lost else b"") + line
        try:
            written = _put(self._shared[FILE], line)
        except OSError:
            written = 0
        if written == len(line):
            self._due, self._lost, self._shared[LATE] = b"", 0, False
        else:
            self._cut(written)

    def _cut(self, written: int) -> None:
        """Count an event as lost, and take back the `written` bytes of its line."""
        self._lost += 1
        self._shared[LATE] = True
        if written:  # half a line would make the next one unreadable
            with contextlib.suppress(OSError):
                file = self._shared[FILE]
                os.ftruncate(file, os.fstat(file).st_size - written)


class SlowOperationRecorder:
    """Records one repeated operation in Python, lines that are due and losses included."""

    def __init__(
        self,
        recorder: Recorder,
        entered: Event,
        left: Event,
        sequence: Iterator[int],
        failed: Callable[[Exception], None],
    ) -> None:
        self.entered, self.left, self.failed = blank(entered), blank(left), failed
        self._recorder, self._sequence, self._event = recorder, sequence, left

    def begin(self, time_ns: int, /) -> Begun | None:
        recorder = self._recorder
        try:
            with recorder._lock:
                number, index = next(self._sequence), recorder._shared[NEXT]
                recorder._write(index, self.entered % (index, time_ns, number))
                return index, number
        except Exception as error:
            return self.failed(error)

    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None:
        if begun is None:
            return
        recorder = self._recorder
        try:
            form = self.left if outcome is None else blank(replace(self._event, outcome=outcome))
            with recorder._lock:
                index = recorder._shared[NEXT]
                recorder._write(index, form % (index, time_ns, begun[1], begun[0]))
        except Exception as error:
            self.failed(error)


_put = os.write
"""Looked up once: between two operations each look into a module is one into cold memory."""
_recorders: WeakSet[Recorder] = WeakSet()


def _forked() -> None:
    for recorder in _recorders:
        recorder._lock = threading.RLock()  # a thread may have held it that is not here
        recorder.close()


os.register_at_fork(after_in_child=_forked)
