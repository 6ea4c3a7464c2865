"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted, and the rank goes on. A `dropped` line says so at once, in the place of the
last event, as there may never be room for another line: what ends there without a word could be taken for a rank that
stands still. A forked child has its parent's recorder, and writes nothing with it.
Left out: seeing the operations that are recorded (`impl.recording`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from msgspec.structs import replace

from .format import (
    MAX_STACK,
    NUMBER,
    SHORT,
    Cause,
    Dropped,
    Edge,
    End,
    Enter,
    Event,
    Exit,
    Group,
    RepeatedOperation,
    Site,
    TraceHeader,
    Wait,
    blank,
    encode,
    name_of,
)
from .outcome import Outcome

try:
    from ._fast_recorder import FastOperationRecorder as FastOperationRecorder
    from ._fast_recorder import Lock
except ImportError:  # it was not built: a compiler was missing
    FastOperationRecorder = None  # type: ignore[assignment, misc]
    Lock = threading.RLock  # type: ignore[assignment, misc]

Begun = tuple[int, int]
"""Identifies an operation that has begun: the index of its first event, and its sequence number."""


class OperationRecorder(Protocol):
    """Records one repeated operation, which is issued from one place: its events differ in nothing but numbers.

    An error in here does not reach the caller.
    """

    def begin(self, time_ns: int, /) -> Begun | None:
        """Record that one was issued then."""

    def wait(self, begun: Begun | None, time_ns: int, /) -> None:
        """Record that the host begins to wait for it, some time after it was issued."""

    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None:
        """Record that it has completed, or what went wrong."""


Frame = tuple[str, str]
"""Holds one call of a short stack: `file:line`, and the function."""

MAX_SITES, MAX_KNOWN = 1 << 15, 1 << 14
"""Limit what a trace says of stacks, and the operations that are remembered as described."""

FILE, NEXT, LATE = range(3)
"""Index the numbers that `_fast_recorder` shares: the file (-1: closed), the next event's index, and whether other
lines have to stand before that event's."""


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet."""

    def __init__(self, folder: Path, header: TraceHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._shared = array("q", [file, 0, False])
        # a signal handler may record while its thread does
        self._lock = Lock()
        self._due = encode(header)
        """Lines that have to stand before the next one."""
        self._lost = 0
        """Events that could not be written since the last that could."""
        self._sites: dict[tuple[str, str, int | None], int] = {}
        """Maps a place, its function, and the number of what called it to the number of the site."""
        self._operations: dict[RepeatedOperation, int] = {}
        self._described = 0
        """Number of the operation that was described last."""
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
        return None if place is None else self._site(place, "", None)

    def stack(self, frames: Sequence[Frame]) -> int | None:
        """Return the number of the innermost call of a short stack, innermost first; new ones are announced as sites.

        A trace names a limited number of stacks. Beyond, their outermost call stands for them, which is the program's.
        """
        number = None
        for place, function in reversed(frames[-MAX_STACK:]):
            inner = self._site(place, function, number)
            if inner is None:
                break
            number = inner
        return number

    def _site(self, place: str, function: str, caller: int | None) -> int | None:
        most = MAX_SITES if caller is None else MAX_SITES // 2
        with self._lock:
            number = self._sites.get((place, function, caller))
            if number is None and len(self._sites) < most:
                number = self._sites[place, function, caller] = len(self._sites) + 1
                self._due += encode(Site(number, place, function, caller))
                self._shared[LATE] = True
            return number

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        with self._lock:
            index = self._shared[NEXT]
            self._write(index, encode(Event(index, time.monotonic_ns(), transition, edge, state, phase, **facts)))

    def operation(
        self, about: RepeatedOperation, sequence: Iterator[int], failed: Callable[[Exception], None]
    ) -> OperationRecorder:
        """Return a recorder for one repeated operation, which gets a number and is described with the next event.

        `sequence` yields its sequence numbers; `failed` is called with an error of the recorder.
        """
        whole = SlowOperationRecorder(self, about, self._describe(about), sequence, failed)
        if FastOperationRecorder is None:
            return whole
        forms = whole.entered, whole.waited, whole.left
        return FastOperationRecorder(whole, self._lock, self._cut, self._shared, sequence, *forms)

    def _describe(self, about: RepeatedOperation) -> int:
        with self._lock:
            number = self._operations.get(about)
            if number is None:
                if len(self._operations) >= MAX_KNOWN:
                    self._operations.clear()
                self._described += 1
                number = self._operations[about] = self._described
                self._due += encode(replace(about, number=number))
                self._shared[LATE] = True
            return number

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
        """Count an event as lost, take back the `written` bytes of its line, and leave a mark of the loss."""
        self._lost += 1
        self._shared[LATE] = True
        with contextlib.suppress(OSError):
            file = self._shared[FILE]
            size = os.fstat(file).st_size - written
            if written:  # half a line would make the next one unreadable
                os.ftruncate(file, size)
            if self._lost == 1:
                self._mark(file, size)

    def _mark(self, file: int, size: int) -> None:
        """Put a `dropped` line in the place of the last events, which take more room; any other line is left."""
        begin = max(size - LONGEST, 0)
        lines = os.pread(file, size - begin, begin).rpartition(b"\n")[0].split(b"\n")
        room, count, mark = 0, 0, encode(Dropped(self._shared[NEXT] - self._lost, self._lost))
        while room < len(mark):
            if count == len(lines) or not lines[-1 - count].startswith(EVENTS):
                return
            count += 1
            room += len(lines[-count]) + 1
            mark = encode(Dropped(self._shared[NEXT] - self._lost - count, self._lost + count))
        os.ftruncate(file, size - room)
        self._lost += count
        written = _put(file, mark)
        if written == len(mark):
            self._lost = 0
        else:
            os.ftruncate(file, size - room)


LONGEST = 1 << 16
"""Bytes at the end of a file, in which its last line is looked for."""
EVENTS = (b'{"kind":"event",', SHORT)
"""Begin the lines that events stand in."""


class SlowOperationRecorder:
    """Records one repeated operation in Python, lines that are due and losses included."""

    def __init__(
        self,
        recorder: Recorder,
        about: RepeatedOperation,
        number: int,
        sequence: Iterator[int],
        failed: Callable[[Exception], None],
    ) -> None:
        self.entered = blank(Enter(NUMBER, NUMBER, number, NUMBER))
        self.waited, self.left = blank(Wait(NUMBER, NUMBER, NUMBER)), blank(Exit(NUMBER, NUMBER, NUMBER))
        self.failed = failed
        self._recorder, self._about, self._sequence = recorder, about, sequence

    def begin(self, time_ns: int, /) -> Begun | None:
        recorder = self._recorder
        try:
            with recorder._lock:
                number, index = next(self._sequence), recorder._shared[NEXT]
                recorder._write(index, self.entered % (index, time_ns, number))
                return index, number
        except Exception as error:
            return self.failed(error)

    def wait(self, begun: Begun | None, time_ns: int, /) -> None:
        if begun is not None:
            self._follow(self.waited, begun, time_ns)

    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None:
        if begun is None:
            return
        try:
            form = self.left if outcome is None else self._failed(begun[1], outcome)
        except Exception as error:
            self.failed(error)
        else:
            self._follow(form, begun, time_ns)

    def _follow(self, form: bytes, begun: Begun, time_ns: int) -> None:
        recorder = self._recorder
        try:
            entered, _ = begun
            with recorder._lock:
                index = recorder._shared[NEXT]
                recorder._write(index, form % (index, time_ns, entered))
        except Exception as error:
            self.failed(error)

    def _failed(self, sequence: int, outcome: Outcome) -> bytes:
        """Return the line of an exit that went wrong."""
        about = self._about
        facts: dict[str, Any] = {"group": about.group, "sequence": sequence, "op": about.op, "peer": about.peer}
        return blank(Event(NUMBER, NUMBER, "", "exit", "", "", entered=NUMBER, outcome=outcome, **facts))


_put = os.write
"""Looked up once: between two operations each look into a module is one into cold memory."""
_recorders: WeakSet[Recorder] = WeakSet()


def _forked() -> None:
    for recorder in _recorders:
        recorder._lock = Lock()  # a thread may have held it that is not here
        recorder.close()


os.register_at_fork(after_in_child=_forked)
