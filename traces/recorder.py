"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted and told later in a `dropped` line: the rank goes on. A forked
child has its parent's recorder, and writes nothing with it.
Left out: seeing the operations that are recorded (`impl`).
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

from .format import Cause, Dropped, Edge, End, Event, Group, TraceHeader, blank, encode, name_of

try:
    from ._fast_recorder import Straight as Straight
except ImportError:  # it was not built: a compiler was missing
    Straight = None  # type: ignore[assignment, misc]

Begun = tuple[int, int]
"""Of an operation that has begun: the index of its first event, and its sequence number."""


class Kind(Protocol):
    """An operation that comes again and again, from one place: its events are the same but for the numbers.

    What goes wrong here does not reach the caller.
    """

    def begin(self, time_ns: int, /) -> Begun | None:
        """Record that one was issued then."""

    def end(self, begun: Begun | None, time_ns: int, outcome: str | None = None, /) -> None:
        """Record that it has completed, or what went wrong."""


FILE, NEXT, LATE = range(3)
"""Places in the numbers that `_fast_recorder` shares: the file (-1: closed), the next event's index, whether that line
must wait for another one."""


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
        """What has to stand before the next line."""
        self._lost = 0
        """Events that could not be written since the last that could."""
        _recorders.add(self)
        self._write(-1, b"")
        self._lost = 0  # a header is no event

    def group(self, group: Group) -> None:
        """A group that the header does not have; it is written with the next event."""
        with self._lock:
            self._due += encode(group)
            self._shared[LATE] = True

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        with self._lock:
            index = self._shared[NEXT]
            self._write(index, encode(Event(index, time.monotonic_ns(), transition, edge, state, phase, **facts)))

    def kind(self, entered: Event, left: Event, sequence: Iterator[int], failed: Callable[[Exception], None]) -> Kind:
        """Whom to tell of operations of a kind: their events, with NUMBER for each number; where they are numbered;
        and who is told what goes wrong."""
        kind = _Kind(self, entered, left, sequence, failed)
        if Straight is None:
            return kind
        return Straight(kind, self._lock, self._cut, self._shared, sequence, kind.entered, kind.left)

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Record why the rank ends. Only the first call counts: what comes later did not cause the end."""
        with self._lock:
            index = self._shared[NEXT]
            self._write(index, encode(End(index, time.monotonic_ns(), cause, exit, message, culprit)))
            self.close()

    def close(self) -> None:
        """Write nothing any more, not even an end."""
        with self._lock:
            file, self._shared[FILE] = self._shared[FILE], -1
            if file != -1:
                os.close(file)

    def _write(self, index: int, line: bytes) -> None:
        """One write, so that a killed rank leaves whole lines; all of it, or else none."""
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
        """An event is lost: no more than so much of its line was written."""
        self._lost += 1
        self._shared[LATE] = True
        if written:  # half a line would make the next one unreadable
            with contextlib.suppress(OSError):
                file = self._shared[FILE]
                os.ftruncate(file, os.fstat(file).st_size - written)


class _Kind:
    """The whole of a Kind, in Python: also what has to stand before a line, and what could not be written."""

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

    def end(self, begun: Begun | None, time_ns: int, outcome: str | None = None, /) -> None:
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
"""Found at once: between two operations each look into a module is one into cold memory."""
_recorders: WeakSet[Recorder] = WeakSet()


def _forked() -> None:
    for recorder in _recorders:
        recorder._lock = threading.RLock()  # a thread may have held it that is not here
        recorder.close()


os.register_at_fork(after_in_child=_forked)
