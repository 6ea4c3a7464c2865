"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted, and the rank goes on. A `dropped` line says so at once, in the place of the
last event, as there may never be room for another line: what ends there without a word could be taken for a rank that
stands still. A forked child has its parent's recorder, and writes nothing with it.

A recorder that may keep so many bytes alone begins a new file when it has filled half of them. The one before stays
beside it, as `rank<N>.earlier.jsonl`; what came before is summed up in the new one (`past`). Each file can be read by
itself, and the new one takes its place whole, so that a rank that is killed meanwhile leaves what can be read.
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
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from msgspec.structs import replace

from .format import (
    MAX_STACK,
    NEW,
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
    Making,
    RepeatedOperation,
    Site,
    TraceHeader,
    Wait,
    blank,
    earlier,
    encode,
    name_of,
)
from .outcome import Outcome

if TYPE_CHECKING:
    from .past import Summary

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

FILE, NEXT, LATE, SIZE, LIMIT, SEGMENT = range(6)
"""Index the numbers that `_fast_recorder` shares: the file (-1: closed), the next event's index, whether something is
due before that event's line, the bytes of the file, from how many on another one is begun, and how many were begun.
`past` has two more."""
NO_LIMIT = 1 << 62
MAX_GROUPS = 4096
"""Groups that are announced again in a new file: the newest ones."""


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet. It may `keep` so many bytes of it."""

    def __init__(self, folder: Path, header: TraceHeader, keep: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._shared = array("q", [file, 0, False, 0, NO_LIMIT, 0, 0, 0])
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
        self._past: Summary | None = None
        """Sums up what was recorded, where not all of it is kept."""
        if keep is not None:
            self._begin_summary(header, keep)
        _recorders.add(self)
        self._write(-1, b"")
        self._lost = 0  # a header is no event

    def group(self, group: Group) -> None:
        """Announce a group that the header does not have; it is written with the next event."""
        with self._lock:
            self._due += encode(group)
            self._shared[LATE] = True
            self._announced(group.name or ("", group.number), group)

    def making(self, making: Making) -> None:
        """Announce that the rank begins to make a group: at once, as it may stand in there."""
        with self._lock:
            self._due += encode(making)
            self._announced(("making", making.number), making)
            self._flush()

    def made(self, group: Group) -> None:
        """Announce a group that the rank has made: at once, so that it does not seem to stand in there."""
        with self._lock:
            self._due += encode(group)
            self._announced(group.name or ("", group.number), group)
            self._flush()

    def _flush(self) -> None:
        """Write the lines that are due; where that fails, or events are missing before them, they wait for the next."""
        self._shared[LATE] = True
        if self._lost or self._shared[FILE] == -1:
            return
        try:
            written = _put(self._shared[FILE], self._due)
        except OSError:
            return
        if written == len(self._due):
            self._due, self._shared[LATE] = b"", False
        elif written:
            with contextlib.suppress(OSError):
                os.ftruncate(self._shared[FILE], os.fstat(self._shared[FILE]).st_size - written)

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
            if number is not None and self._past is not None:
                self._announce(number)
            if number is None and len(self._sites) < most:
                number = self._sites[place, function, caller] = len(self._sites) + 1
                site = Site(number, place, function, caller)
                self._due += encode(site)
                self._shared[LATE] = True
                self._announced(number, site)
            return number

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        with self._lock:
            self._turn()
            index = self._shared[NEXT]
            if self._past is not None:
                self._past.lost += 1
                self._announce(facts.get("site"))
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
        counted = () if self._past is None or whole.counted is None else (whole.number, *whole.counted, self._past.open)
        return FastOperationRecorder(whole, self._lock, self._cut, self._shared, sequence, *forms, *counted)

    def _describe(self, about: RepeatedOperation) -> int:
        with self._lock:
            number = self._operations.get(about)
            if number is None:
                if len(self._operations) >= MAX_KNOWN:
                    self._operations.clear()
                self._described += 1
                number = self._operations[about] = self._described
                about = replace(about, number=number)
                self._due += encode(about)
                self._shared[LATE] = True
                self._announced(-number, about)
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
            self.ended, self._lost, self._shared[SIZE] = None, max(0, self._lost - 1), self._end_at
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
            self._shared[SIZE] += written
            self._due, self._lost, self._shared[LATE] = b"", 0, self._shared[SIZE] >= self._shared[LIMIT]
        else:
            self._cut(written)

    def _cut(self, written: int) -> None:
        """Count an event as lost, take back the `written` bytes of its line, and leave a mark of the loss."""
        self._lost += 1
        self._shared[LATE] = True
        if self._past is not None:
            self._past.lost += 1
        with contextlib.suppress(OSError):
            file = self._shared[FILE]
            size = os.fstat(file).st_size - written
            if written:  # half a line would make the next one unreadable
                os.ftruncate(file, size)
            if self._lost == 1:
                self._mark(file, size)

    # ── a recording with a cap ──────────────────────────────────────────────────────────────────────────

    def _begin_summary(self, header: TraceHeader, keep: int) -> None:
        from .past import Summary  # takes longer to load, and needs numpy

        self._header, self._half = header, keep // 2
        self._past = Summary(self._shared, header.backend)
        self._met: dict[object, Site | RepeatedOperation | Group | Making] = {}
        """Keeps what was announced, to announce it again: a site by its number, an operation by its negative one, a
        group by its name."""
        self._stands = set[object]()
        """What of it the file has that is written now."""
        self._shared[LIMIT] = self._half
        self._began = time.monotonic_ns()

    def _announced(self, key: object, line: Site | RepeatedOperation | Group | Making) -> None:
        """Keep a line that is about to stand in the file."""
        if self._past is not None:
            self._met[key] = line
            self._stands.add(key)

    def _announce(self, key: object) -> None:
        """Have a line stand in the file, and those that it names before it."""
        line = self._met.get(key)
        if line is None or key in self._stands:
            return
        self._stands.add(key)
        self._announce(line.caller if isinstance(line, Site) else line.site)
        if isinstance(line, RepeatedOperation):
            self._announce(line.group)
        self._due += encode(line)
        self._shared[LATE] = True

    def _describe_again(self, number: int, about: RepeatedOperation) -> None:
        """Have an operation stand in the file, which was begun after it was described."""
        self._met[-number] = replace(about, number=number)
        self._announce(-number)

    def _turn(self) -> None:
        """Begin a new file, where the one that is written is full."""
        if self._past is None or self._shared[SIZE] < self._shared[LIMIT] or self._shared[FILE] == -1:
            return
        try:
            self._begin_file(self._past)
        except OSError:  # of a full disk, too: what is there may grow a little, and it is tried again
            with contextlib.suppress(OSError):
                self._new.unlink()
            self._shared[LIMIT] = self._shared[SIZE] + self._half // 8

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + NEW)

    def _begin_file(self, past: Summary) -> None:
        before = self._due, self._stands
        # what was due is announced again when it is needed
        self._due, self._stands = b"", set()
        try:
            # all of these: they are compared by their positions
            making = {key: line.number for key, line in self._met.items() if isinstance(line, Making)}
            numbers = {*making.values()}
            groups = [(key, line) for key, line in self._met.items() if isinstance(line, Group)]
            of_made = [key for key, line in groups if line.number in numbers]
            newest = [key for key, _ in groups[-MAX_GROUPS:]]
            for key in [*making, *of_made, *newest, *(-number for number in sorted(past.needed()))]:
                self._announce(key)
            summary = past.lines(self._shared[NEXT], time.monotonic_ns(), self._began)
            lines = encode(self._header) + self._due + summary
            file = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                if _put(file, lines) != len(lines):
                    raise OSError(28, "No space left on device", str(self._new))
                self._keep_earlier()
                os.replace(self._new, self.path)
            except BaseException:
                os.close(file)
                raise
        except BaseException:
            self._due, self._stands = before
            raise
        old, self._shared[FILE] = self._shared[FILE], file
        os.close(old)
        self._due, self._lost = b"", 0
        self._shared[SIZE], self._shared[LATE] = len(lines), False
        self._shared[LIMIT], self._shared[SEGMENT] = max(self._half, 2 * len(lines)), self._shared[SEGMENT] + 1
        used = {-number for number in {*self._operations.values(), *past.needed()}}
        self._met = {k: v for k, v in self._met.items() if k in used or not isinstance(v, RepeatedOperation)}

    def _keep_earlier(self) -> None:
        """Have the file stay beside the one that takes its place; where that cannot be, what was earlier goes."""
        former = earlier(self.path)
        link = former.with_name(former.name + NEW)
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        try:
            os.link(self.path, link)
            os.replace(link, former)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                former.unlink()

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
        self.failed, self.number = failed, number
        self._recorder, self._about, self._sequence = recorder, about, sequence
        self._segment = 0 if recorder._past is None else -1
        self.counted = None if recorder._past is None else recorder._past.counted(about)

    def begin(self, time_ns: int, /) -> Begun | None:
        recorder = self._recorder
        try:
            with recorder._lock:
                recorder._turn()
                if self._segment != recorder._shared[SEGMENT]:
                    recorder._describe_again(self.number, self._about)
                    self._segment = recorder._shared[SEGMENT]
                number, index = next(self._sequence), recorder._shared[NEXT]
                recorder._write(index, self.entered % (index, time_ns, number))
                if recorder._past is not None and self.counted is not None:
                    recorder._past.issued(self.counted, self.number, index, time_ns, number)
                return index, number
        except Exception as error:
            return self.failed(error)

    def wait(self, begun: Begun | None, time_ns: int, /) -> None:
        if begun is not None:
            self._follow(self.waited, begun, time_ns, None if (past := self._recorder._past) is None else past.waits)

    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None:
        if begun is None:
            return
        try:
            form = self.left if outcome is None else self._failed(begun[1], outcome)
        except Exception as error:
            self.failed(error)
        else:
            past = self._recorder._past
            # what failed stays open: it never completed
            self._follow(form, begun, time_ns, None if past is None or outcome is not None else past.left)

    def _follow(self, form: bytes, begun: Begun, time_ns: int, note: Callable[[int], None] | None) -> None:
        recorder = self._recorder
        try:
            entered, _ = begun
            with recorder._lock:
                recorder._turn()
                index = recorder._shared[NEXT]
                recorder._write(index, form % (index, time_ns, entered))
                if note is not None:
                    note(entered)
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
