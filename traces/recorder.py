"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted and told later in a `dropped` line: the rank goes on. A forked
child has its parent's recorder, and writes nothing with it.
Left out: seeing the operations that are recorded (`impl`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from msgspec.structs import replace

from .format import Cause, Dropped, Edge, End, Event, Group, TraceHeader, blank, encode, name_of


class Lines(NamedTuple):
    """The lines of an operation that comes again and again, all but the numbers in them (`blank`)."""

    enter: bytes
    exit: bytes
    left: Event
    """The exit, where something has to be said of it."""
    sequence: Iterator[int]
    """Where operations of its kind are numbered."""


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet."""

    def __init__(self, folder: Path, header: TraceHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        # a signal handler may record while its thread does
        self._lock = threading.RLock()
        self._due = encode(header)
        """What has to stand before the next line."""
        self._next = 0
        self._lost = 0
        """Events that could not be written since the last that could."""
        _recorders.add(self)
        self._write(-1, b"")
        self._lost = 0  # a header is no event

    def group(self, group: Group) -> None:
        """A group that the header does not have; it is written with the next event."""
        with self._lock:
            self._due += encode(group)

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        with self._lock:
            index = self._next
            self._write(index, encode(Event(index, time.monotonic_ns(), transition, edge, state, phase, **facts)))

    def operation(self, lines: Lines, time_ns: int) -> Callable[[str | None], None]:
        """Record that an operation was issued then; returns what records that it has completed, or what went wrong.

        This takes two thirds of the time of two events.
        """
        with self._lock:
            number, entered = next(lines.sequence), self._next
            self._write(entered, lines.enter % (entered, time_ns, number))
        form = lines.exit

        def leave(outcome: str | None) -> None:
            told = form if outcome is None else blank(replace(lines.left, outcome=outcome))
            with self._lock:
                index = self._next
                self._write(index, told % (index, _now(), number, entered))

        return leave

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Record why the rank ends. Only the first call counts: what comes later did not cause the end."""
        with self._lock:
            self._write(self._next, encode(End(self._next, time.monotonic_ns(), cause, exit, message, culprit)))
            self.close()

    def close(self) -> None:
        """Write nothing any more, not even an end."""
        with self._lock:
            file, self._file = self._file, -1
            if file != -1:
                os.close(file)

    def _write(self, index: int, line: bytes) -> None:
        """One write, so that a killed rank leaves whole lines; all of it, or else none."""
        self._next = index + 1
        if self._due or self._lost:
            line = self._due + (encode(Dropped(index - self._lost, self._lost)) if self._lost else b"") + line
        try:
            written = _put(self._file, line)
            if written == len(line):
                self._due, self._lost = b"", 0
                return
            # half a line would make the next one unreadable
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        except OSError:
            pass
        self._lost += 1


_put, _now = os.write, time.monotonic_ns
"""Found at once: between two operations each look into a module is one into cold memory."""
_recorders: WeakSet[Recorder] = WeakSet()


def _forked() -> None:
    for recorder in _recorders:
        recorder._lock = threading.RLock()  # a thread may have held it that is not here
        recorder.close()


os.register_at_fork(after_in_child=_forked)
