"""Reads Genlock's own traces of programs that have no protocol, as a recording of collectives.

A line is its number, its time, and the rest; in a job, ranks and steps write the same rests again and again, so that
each is decoded once. A site is a number of its file, so that each file's are translated by themselves.

Of an operation that repeats, the lines are lists of numbers, which are read without being decoded.

There are two ways to read a file: blocks of lines at once, and line by line. The first answers only where the second
would say the same; what it cannot answer for, the second reads, and refuses it with the line. Every line is accounted
for: nothing that is not understood is passed over.

Left out: traces with a protocol, which are held against its tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from ...errors import UnreadableInput
from ..collectives import (
    OPS,
    Digest,
    Ended,
    Group,
    Interned,
    Interner,
    Making,
    RankRecord,
    Signature,
    Status,
    Summed,
    Way,
    packed,
)
from ..digests import MASK, mixed, tokens
from ..format import (
    CHANNEL,
    FORMAT_VERSION,
    MAX_LINE,
    P2P,
    Dropped,
    End,
    Enter,
    Event,
    Exit,
    History,
    Line,
    Past,
    RepeatedOperation,
    Site,
    TraceHeader,
    Wait,
    check_group,
    check_history,
    check_making,
    check_operation,
    check_site,
    decode,
    encode,
    entered_event,
    files_of,
    frames_of,
    lines_of,
    opening,
    to_event,
)
from ..format import Group as GroupLine
from ..format import Making as MakingLine
from ..outcome import Code
from .places import recorded_place

KINDS = {
    "all_gather_into_tensor": "all_gather",
    "all_gather_coalesced": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "all_reduce_coalesced": "all_reduce",
    "all_to_all_single": "all_to_all",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
}
"""Ways to call a collective, to the one that it is on the wire."""

SMALL, LARGE = 1 << 31, 1 << 62
BLOCK = 4 << 20
"""So many bytes are taken apart at once."""


class ProgramRank(NamedTuple):
    """Holds one rank of a recorded program."""

    header: TraceHeader
    record: RankRecord


def read_programs(paths: Sequence[Path]) -> tuple[Interned, list[ProgramRank]]:
    """Return the ranks whose traces these are. Raises UnreadableInput."""
    interned = Interned()
    reader = Reader(interned)
    return interned, [reader.rank(path) for path in paths]


def line_of(path: Path, index: int, after: int = 0) -> int:
    """Return the line, from 1, in which a rank's file has the event of that index; so many events are passed over."""
    rest = lines_of(path)
    header = opening(path, rest)
    for number, raw in rest:
        line = decode(path, number, raw, header.format)
        if isinstance(line, Event | End | Enter | Wait | Exit):
            after -= 1
            if line.index == index and after < 0:
                return number
    return 1


def line_of_making(path: Path, position: int) -> int:
    """Return the line, from 1, in which a rank begins the call of that position, among those that all ranks make."""
    rest = lines_of(path)
    header = opening(path, rest)
    for number, raw in rest:
        line = decode(path, number, raw, header.format)
        if isinstance(line, MakingLine) and line.by == "new_group" and line.known_by == "all":
            position -= 1
            if not position:
                return number
    return 1


_EVENTS = re.compile(rb'\{"kind":"event","index":(\d{1,18}),"time_ns":(\d{1,18}),([^\n]{1,1000000})\n')
"""Matches a line as the recorder writes it; any other spelling of it is read as well, but decoded each time."""


_SHAPE = np.dtype(
    [
        *((name, OPS[name]) for name in ("sequence", "signature", "peer", "tag")),
        ("site", "<i8"),  # its number in the file; of format 1, which has places, minus what is interned; 0: none
        ("name", "<i4"),  # of its group
        ("entered", "<i8"),  # of an exit: the index of what it is the exit of; else -1
        ("op", "?"),  # whether it issues an operation
        ("kind", "<i4"),  # what it issues or leaves; -1: not told
        ("asynchronous", "?"),
        ("failed", "?"),
        ("listens", "?"),  # whether it takes what anybody sends
        ("waits", "?"),  # whether the host begins to wait for what was issued as `entered`
    ]
)
"""Lays out all of an event but its number and time."""


class _Shapes:
    """Keeps the distinct events of the ranks that were read so far, each decoded once."""

    def __init__(self, header: TraceHeader, interned: Interned) -> None:
        self.backend, self.format, self.world, self.interned = header.backend, header.format, header.world, interned
        self.names: Interner[str] = Interner()
        """Names of groups."""
        self.kinds: Interner[str] = Interner()
        self.numbers: dict[bytes, int] = {}
        self.table = np.zeros(1 << 10, _SHAPE)

    def fits(self, header: TraceHeader) -> bool:
        """Tell whether the events of that file mean the same as those that were met."""
        return (header.backend, header.format, header.world) == (self.backend, self.format, self.world)

    def add(self, path: Path, number: int, raw: bytes, rest: bytes) -> int:
        """Take up what was not met before. Raises UnreadableInput."""
        event, place = to_event(decode(path, number, raw, self.format))
        assert isinstance(event, Event)
        row = self._row(path, number, event, -self.interned.sites(place) if place else event.site or 0)
        return self._keep(rest, row)

    def _keep(self, key: bytes, row: tuple[int | bool, ...]) -> int:
        at = len(self.numbers)
        if at == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self.table[at] = row
        self.numbers[key] = at  # last, so that what was refused is refused again
        return at

    def repeated(self, path: Path, number: int, about: RepeatedOperation) -> int:
        """Take up an operation that repeats; its sequence number is left open. Raises UnreadableInput."""
        key = b"\0" + encode(replace(about, number=0))
        at = self.numbers.get(key)
        if at is None:
            event = entered_event(Enter(0, 0, about.number, 1), about)
            at = self._keep(key, self._row(path, number, event, about.site or 0))
            self.table[at]["sequence"] = 0
        return at

    def follows(self, waits: bool) -> int:
        """Return the shape of a short line that says what became of an operation, but for which operation that is."""
        key = b"\0wait" if waits else b"\0exit"
        row = (0, 0, -1, 0, 0, -1, -1, False, -1, False, False, False, waits)
        return self.numbers[key] if key in self.numbers else self._keep(key, row)

    def _row(self, path: Path, number: int, event: Event, site: int) -> tuple[int | bool, ...]:
        refused = event.outcome is not None and event.outcome.code in REFUSED
        if missing := _untold(event, refused):
            raise _bad(path, number, missing)
        if max(event.root or 0, event.peer or 0) >= self.world:
            raise _bad(path, number, f"it names a rank that is none of {self.world}")
        issues, leaves = event.edge == "enter" and not refused, event.edge == "exit"
        name = -1 if event.group is None else self.names(event.group)
        kind = -1 if event.op is None else self.kinds(event.op)
        sequence = event.sequence or 0
        if not issues:
            waits = event.edge == "wait"
            entered = -1 if event.entered is None or not (leaves or waits) else event.entered
            failed = event.outcome is not None
            return (sequence, 0, -1, 0, site, name, entered, False, kind, False, failed, False, waits)
        signature = self.interned.signatures(signature_of(event, self.backend))
        listens = event.op in P2P and event.peer is None
        peer = -1 if event.peer is None else event.peer
        op = (sequence, signature, peer, event.tag or 0, site, name)
        return (*op, -1, not listens, kind, event.asynchronous, False, listens, False)


def signature_of(event: Event | RepeatedOperation, backend: str) -> Signature:
    """Return what an operation puts in and takes out."""
    kind, size = KINDS.get(str(event.op), str(event.op)), event.numel or 0
    given = kind in ("scatter", "recv")
    if event.op == "all_gather" and "nccl" in backend:  # which gathers uneven parts as well
        size = -1
    root = -1 if event.root is None else event.root
    even = kind == "all_to_all" and event.splits is False
    sizes = (-1, size) if given else (size, -1)
    return Signature(kind, event.dtype or "", *sizes, root, event.reduce or "", even)


def _untold(event: Event, refused: bool) -> str | None:
    """Return what an event has to say and does not."""
    if event.transition:
        return "a move of a protocol, in a trace that has none"
    if event.edge == "step" or (event.op is None and event.edge != "wait"):
        return "neither the beginning nor the end of an operation"
    if event.edge == "enter" and not refused and (event.group is None or not event.sequence):
        return "its group or its sequence number is not told"
    if event.edge != "enter" and event.entered is None:
        return "nothing says which operation it belongs to"
    return None


REFUSED = (Code.COLLECTIVE, Code.THREAD)
"""Outcomes of an operation that never reached the backend."""

Numbers = npt.NDArray[np.int64]
NONE: Numbers = np.zeros(0, np.int64)


_Columns = tuple[Numbers, ...]
"""Holds events by shape, index, time, sequence and what they entered, as in `_Lines`."""


class _Lines(NamedTuple):
    """Holds a file: its events by shape, index and time, and the lines that are no events."""

    groups: dict[str, Group]
    sites: dict[int, Site]
    shapes: Numbers
    indices: Numbers
    times: Numbers
    sequences: Numbers
    """Holds what lines that are lists say; else 0: the shape says it."""
    entered: Numbers
    """Holds what lines that are lists say; else -1: the shape says it."""
    dropped: Sequence[Dropped]
    end: End | None
    cut: bool
    makings: Sequence[tuple[MakingLine, int, bool]]
    """Holds, of each group in the making, its line, how many events stand before that, and whether it was made."""
    past: Sequence[Past]
    history: History | None
    operations: dict[int, RepeatedOperation]
    repeated: dict[int, int]
    """Maps the number of an operation that repeats to its shape."""
    summaries: Sequence[tuple[int, int]]
    """Holds, of each line that sums up, the events before it and the index that it says they end before."""

    def without(self, gone: npt.NDArray[np.bool_]) -> _Lines:
        """Return them without some of the events."""
        if not gone.any():
            return self
        columns = (self.shapes, self.indices, self.times, self.sequences, self.entered)
        shapes, indices, times, sequences, entered = (column[~gone] for column in columns)
        return self._replace(shapes=shapes, indices=indices, times=times, sequences=sequences, entered=entered)


class _Others(NamedTuple):
    """Collects the lines of a file that are no events."""

    world: int
    groups: dict[str, Group]
    sites: dict[int, Site]
    ends: list[Dropped | End]
    operations: dict[int, RepeatedOperation]
    shapes: dict[int, int]
    """Maps the number of an operation that repeats to its shape."""
    past: list[Past]
    history: list[History]
    summaries: list[tuple[int, int]]
    """Holds, of each summary, how many events stand before it, and the index that it says they end before."""
    since: dict[str | int, int]
    """Name of a group, or number of a site, to how many events stand before the line that announces it."""
    makings: dict[int, MakingLine]
    """Groups in the making, by their numbers."""
    begun: dict[int, int]
    """Number of one to how many events stand before its line."""
    made: set[int]

    def take(self, path: Path, number: int, line: Line, before: int, met: _Shapes) -> None:
        """Take up a line that stands behind so many events. Raises UnreadableInput."""
        if self.ended:
            raise _bad(path, number, "a line behind the end")
        if isinstance(line, GroupLine):
            check_group(path, number, line.name, line.members, self.world)
            self.made.add(line.number or 0)
            if not line.name:  # this rank is not in it
                return
            group = self.groups.setdefault(
                line.name, Group(line.name, line.description, line.members, queued=line.backend == CHANNEL)
            )
            if group.members != line.members:
                raise _bad(path, number, f"group {line.name} had other members before")
            self.since.setdefault(line.name, before)
        elif isinstance(line, RepeatedOperation):
            check_operation(path, number, line, self.operations)
            if line.group not in self.groups:
                raise _bad(path, number, f"nothing says who is in group {line.group[:80]}")
            if line.site is not None and line.site not in self.sites:
                raise _bad(path, number, f"nothing says where site {line.site} is")
            self.shapes[line.number] = met.repeated(path, number, line)
        elif isinstance(line, MakingLine):
            check_making(path, number, line, self.makings, self.world)
            if line.site is not None and line.site not in self.sites:
                raise _bad(path, number, f"nothing says where site {line.site} is")
            self.begun[line.number] = before
        elif isinstance(line, Site):
            check_site(path, number, line, self.sites)
            self.since.setdefault(line.number, before)
        elif isinstance(line, Past | History):
            check_history(path, number, line, self.operations, None)
            begins = not (before or self.history or self.ends)
            if isinstance(line, History):
                self.summaries.append((before, line.index))
                self.history.extend([line] * begins)
            else:
                self.past.extend([line] * begins)
        elif isinstance(line, Dropped | End):
            self.ends.append(line)
        else:
            raise _bad(path, number, "a second header line")

    @property
    def ended(self) -> bool:
        """Tell whether the line that says why the rank ended was met."""
        return bool(self.ends) and isinstance(self.ends[-1], End)

    def lines(self, columns: _Columns, cut: bool) -> _Lines:
        """Return them together with the events."""
        dropped = [line for line in self.ends if isinstance(line, Dropped)]
        end = next((line for line in self.ends if isinstance(line, End)), None)
        shapes, indices, times, sequences, entered = columns
        makings = [(line, self.begun[number], number in self.made) for number, line in self.makings.items()]
        first = next(iter(self.history), None)
        past = self.past if first else [], first, self.operations, self.shapes, self.summaries
        told = self.groups, self.sites, shapes, indices, times, sequences, entered, dropped, end, cut
        return _Lines(*told, makings, *past)


def _others(header: TraceHeader) -> _Others:
    groups = {name: Group(name, "", members) for name, members in header.groups.items()}
    return _Others(header.world, groups, {}, [], {}, {}, [], [], [], dict.fromkeys(groups, 0), {}, {}, set())


def _integers(texts: Sequence[bytes]) -> Numbers:
    """Return digits as numbers."""
    numbers: Numbers = np.fromstring(b" ".join(texts).decode(), dtype=np.int64, sep=" ")
    return numbers


class Reader:
    """Reads ranks one by one."""

    def __init__(self, interned: Interned) -> None:
        self.interned = interned
        self.shapes: _Shapes | None = None

    @property
    def met(self) -> int:
        """Count the distinct events that it remembers."""
        return 0 if self.shapes is None else len(self.shapes.numbers)

    def rank(self, path: Path) -> ProgramRank:
        """Read one rank. Raises UnreadableInput."""
        lines = lines_of(path)
        header = opening(path, lines)
        if self.shapes is None or not self.shapes.fits(header):
            self.shapes = _Shapes(header, self.interned)
        read = self.quickly(path, header, self.shapes) or self.line_by_line(path, header, self.shapes, lines)
        return ProgramRank(header, self._record(path, header, self.shapes, read))

    def quickly(self, path: Path, header: TraceHeader, shapes: _Shapes) -> _Lines | None:
        """Read the lines of a file that a recorder wrote; None for any other, which is read line by line."""
        others = _others(header)
        columns: list[_Columns] = [NOTHING]
        before = 0
        rest = b""
        for raw in _blocks(path):
            block, newline, rest = (rest + raw).rpartition(b"\n")
            if len(rest) > MAX_LINE:
                return None
            try:
                read = _block(path, block + newline, shapes, others, before)
            except UnreadableInput:
                return None
            if read is None:
                return None
            columns.append(read)
            before += len(read[0])
        together = _joined(columns)
        return others.lines(together, cut=bool(rest)) if _announced(shapes, together[0], others) else None

    def line_by_line(
        self, path: Path, header: TraceHeader, shapes: _Shapes, lines: Iterator[tuple[int, bytes]]
    ) -> _Lines:
        """Read a file line by line. Raises UnreadableInput with the line that makes no sense."""
        others = _others(header)
        found, indices, times = list[int](), list[bytes](), list[bytes]()
        sequences, entered = list[int](), list[int]()
        cut = False
        for number, raw in lines:
            if not raw.endswith(b"\n"):
                cut = True
                break
            if (event := _EVENTS.fullmatch(raw)) is not None:
                index, time, rest = event.groups()
            else:
                line = decode(path, number, raw, shapes.format)
                if isinstance(line, Enter | Wait | Exit):
                    found.append(_shape_of(path, number, line, shapes, others))
                    indices.append(b"%d" % line.index)
                    times.append(b"%d" % line.time_ns)
                    sequences.append(line.sequence if isinstance(line, Enter) else 0)
                    entered.append(-1 if isinstance(line, Enter) else line.entered)
                    continue
                if not isinstance(line, Event):
                    others.take(path, number, line, len(found), shapes)
                    continue
                index, time, rest = b"%d" % line.index, b"%d" % line.time_ns, raw
            if others.ended:
                raise _bad(path, number, "a line behind the end")
            shape = shapes.numbers.get(rest)
            found.append(shapes.add(path, number, raw, rest) if shape is None else shape)
            row = shapes.table[found[-1]]
            if row["site"] > 0 and int(row["site"]) not in others.sites:
                raise _bad(path, number, f"nothing says where site {row['site']} is")
            if row["name"] >= 0 and shapes.names.values[row["name"]] not in others.groups and _used(row):
                raise _bad(path, number, f"nothing says who is in group {shapes.names.values[row['name']][:80]}")
            indices.append(index)
            times.append(time)
            sequences.append(0)
            entered.append(-1)
        columns = tuple(np.array(column, np.int64) for column in (found, sequences, entered))
        return others.lines((columns[0], _integers(indices), _integers(times), *columns[1:]), cut)

    def _record(self, path: Path, header: TraceHeader, met: _Shapes, lines: _Lines) -> RankRecord:
        end, dropped = lines.end, lines.dropped
        _whole(path, lines)
        before = _Before(lines)
        lines = before.together(lines)
        shapes = met.table[lines.shapes]
        shapes["sequence"] += lines.sequences
        shapes["entered"] = np.where(lines.entered >= 0, lines.entered, shapes["entered"])
        gone = before.gone(shapes["entered"])
        ended_late = {int(entered) for entered in shapes["entered"][gone & ~shapes["waits"]]}
        lines, shapes = lines.without(gone), shapes[~gone]
        _matched(path, shapes, lines)
        members = {name: self.interned.groups(group) for name, group in lines.groups.items()}
        groups = np.array([members.get(name, -1) for name in met.names.values], np.int64)
        at = np.flatnonzero(shapes["op"])
        ops = np.zeros(len(at), OPS)
        for name in ("sequence", "signature", "peer", "tag"):
            ops[name] = shapes[name][at]
        ops["site"] = self._sites(shapes["site"][at], lines.sites)
        ops["group"] = groups[shapes["name"][at]]
        ops["entry"] = lines.indices[at]
        ops["time"] = lines.times[at] + (header.clock.wall_ns - header.clock.monotonic_ns)
        lost = ops["entry"] < max((d.index for d in dropped), default=-1)
        ops["status"] = _statuses(ops["entry"], shapes, shapes["asynchronous"][at] | lost, header.backend)
        left = np.isin(ops["entry"], before.left)
        ops["status"][left] = Status.UNSAID if "nccl" in header.backend else Status.COMPLETED
        ops["status"][np.isin(ops["entry"], before.waited) & (ops["status"] == Status.UNSAID)] = Status.ISSUED
        listens = frozenset(groups[shapes["name"][shapes["listens"]]].tolist())
        stopped = end is not None and end.cause == "stopped"
        # format 1 says by a message, whatever it is, that the process goes on
        detached = end is not None and (end.cause == "detached" or (header.format == 1 and stopped and end.message))
        torn = lines.cut or (end is None and bool(dropped)) or bool(detached)
        ended = Ended.TORN if torn else Ended.OPEN if end is None else Ended.STOPPED if stopped else Ended.FAILED
        return RankRecord(
            header.rank,
            path,
            packed(ops),
            lost=lines.history is not None,
            pending_only=False,
            issued=before.issued(members),
            span=_span(header, lines),
            ended=ended,
            message="" if end is None or stopped else end.message,
            raised_at="" if end is None or stopped else _place(lines.sites, end.site or 0),
            found_dead=end.culprit if end and end.cause == "peer_lost" and end.culprit is not None else -1,
            dropped=bool(dropped),
            listens=listens | {members[past.group] for past in lines.past if past.op == "recv_any_source"},
            makings=tuple(_making(line, before, done, header, lines) for line, before, done in lines.makings),
            summed=before.summed(members, header.backend, ended_late),
        )

    def _sites(self, numbers: Numbers, places: dict[int, Site]) -> Numbers:
        """Return the interned numbers of sites, whose numbers in the file are given."""
        used, back = np.unique(numbers, return_inverse=True)
        sites = [self.interned.sites(_place(places, n)) if n > 0 else -n for n in used.tolist()]
        interned: Numbers = np.array(sites, np.int64)[back]
        return interned


class _Before:
    """Holds what a trace says of operations before its first event."""

    def __init__(self, lines: _Lines) -> None:
        self.past, self.history, self.operations = lines.past, lines.history, lines.operations
        rows: list[tuple[int, int, int, int]] = []
        """Index, time, shape and sequence number of each that is still known by itself."""
        for past in self.past:
            first = past.count - len(past.last) + 1
            for sequence, (operation, index, time) in enumerate(past.last, first):
                rows.append((index, time, lines.repeated[operation], sequence))
        rows.sort()
        self.rows = np.array(rows, np.int64).reshape(-1, 4)
        opened = () if self.history is None else self.history.open
        issued = {row[0] for row in rows}
        self.left = np.array(sorted(issued - {enter for enter, *_ in opened}), np.int64)
        """Indices of those that had been left."""
        self.waited = np.array([enter for enter, *_, waits in opened if waits], np.int64)
        self.old = {enter: (of, sequence, waits) for enter, of, sequence, _, waits in opened if enter not in issued}
        """Those that had not been left, though many came after them, by index: operation, number, whether it waits."""

    def together(self, lines: _Lines) -> _Lines:
        """Return the lines behind what is known from before."""
        if not len(self.rows):
            return lines
        index, time, shape, sequence = self.rows.T
        columns = zip(
            (shape, index, time, sequence, np.full(len(index), -1)),
            (lines.shapes, lines.indices, lines.times, lines.sequences, lines.entered),
            strict=True,
        )
        shapes, indices, times, sequences, entered = (np.concatenate(column) for column in columns)
        return lines._replace(shapes=shapes, indices=indices, times=times, sequences=sequences, entered=entered)

    def gone(self, entered: Numbers) -> npt.NDArray[np.bool_]:
        """Mark the ends of operations of which nothing is left but that they were open, or not even that."""
        if self.history is None:
            return np.zeros(len(entered), bool)
        found: npt.NDArray[np.bool_] = np.isin(entered, [*self.old])
        if self.history.forgotten or self.history.lost:
            found |= (entered >= 0) & (entered < self.history.index) & ~np.isin(entered, self.rows[:, 0])
        return found

    def issued(self, members: Mapping[str, int]) -> dict[int, int]:
        """Return the last collective of each group, by its number."""
        return {members[past.group]: past.count for past in self.past if past.op is None}

    def summed(self, members: Mapping[str, int], backend: str, ended_late: set[int]) -> Summed | None:
        """Return the digests of all that is not known by itself. `ended_late` are those that were left after all."""
        if self.history is None:
            return None
        ways: dict[Way, Digest] = {}
        for past in self.past:
            digests = [int(past.wire, 16), int(past.full, 16)]
            first = past.count - len(past.last) + 1
            for sequence, (operation, _, _) in enumerate(past.last, first):
                for which, token in enumerate(tokens(signature_of(self.operations[operation], backend))):
                    digests[which] = (digests[which] - mixed(token, sequence)) & MASK
            if past.op != "recv_any_source":
                way = (members[past.group], past.op or "", -1 if past.peer is None else past.peer, past.tag or 0)
                ways[way] = Digest(first - 1, *digests)
        limits = []
        if self.history.lost:
            limits.append(f"{self.history.lost:,} events before could not be written, or are not summed up")
        for enter, (number, sequence, waits) in self.old.items():
            about = self.operations[number]
            if enter not in ended_late and (waits or not about.asynchronous):
                limits.append(f"{about.op} #{sequence} of group {about.group}, issued long before, was not left")
        if self.history.overflown:
            limits.append("there were more groups, peers and tags before than are summed up")
        return Summed(ways, tuple(limits))


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a trace behind its header, those of an earlier file first."""
    for part in files_of(path):
        with part.open("rb") as file:
            file.readline()
            while raw := file.read(BLOCK):
                yield raw


def _statuses(entries: Numbers, shapes: npt.NDArray[np.void], unsaid: npt.NDArray[np.bool_], backend: str) -> Numbers:
    """Return how far each operation came, by its exit; `unsaid` are those of which a missing exit says nothing."""
    statuses = np.where(unsaid, Status.UNSAID, Status.ISSUED)
    exits = shapes[(shapes["entered"] >= 0) & ~shapes["waits"]]
    waited = np.isin(entries, shapes["entered"][shapes["waits"]])
    statuses[waited] = Status.ISSUED  # without an exit, the host is in it
    at = np.searchsorted(entries, exits["entered"])
    exits, at = exits[at < len(entries)], at[at < len(entries)]
    fits = entries[at] == exits["entered"]
    # on NCCL, an exit says that the operation was enqueued
    left = Status.UNSAID if "nccl" in backend else Status.COMPLETED
    statuses[at[fits]] = np.where(exits["failed"][fits], Status.ISSUED, left)
    return statuses


def _making(line: MakingLine, before: int, done: bool, header: TraceHeader, lines: _Lines) -> Making:
    """Return a group in the making as a recording has it."""
    indices = lines.indices
    before = int(indices[before]) if before < len(indices) else int(indices[-1]) + 1 if len(indices) else 0
    time = line.time_ns + header.clock.wall_ns - header.clock.monotonic_ns
    by_all = line.by == "new_group" and line.known_by == "all"
    return Making(line.number, line.members, by_all, _place(lines.sites, line.site or 0), time, before, done)


def _span(header: TraceHeader, lines: _Lines) -> tuple[int, int]:
    """Return from when to when a rank was recorded, in ns of its wall clock: to its last event, where it has no end."""
    last = int(lines.times[-1]) if len(lines.times) else header.clock.monotonic_ns
    last = last if lines.end is None else lines.end.time_ns
    return header.clock.wall_ns, header.clock.wall_ns + last - header.clock.monotonic_ns


def _place(sites: dict[int, Site], number: int) -> str:
    """Return the place of a recorded stack for people: the program's line, with the library's beside it."""
    return ", ".join(filter(None, recorded_place(frames_of(sites, number))))


NOTHING: _Columns = (NONE, NONE, NONE, NONE, NONE)


def _joined(columns: Sequence[_Columns]) -> _Columns:
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def _block(path: Path, raw: bytes, met: _Shapes, others: _Others, before: int) -> _Columns | None:
    """Read whole lines of a file that a recorder wrote; return their events.

    `before` is how many events stand before them. Raises UnreadableInput.
    """
    columns = [NOTHING]
    for at, part in enumerate(_RUNS.split(raw)):
        if part:
            read = _short_lines(part, met, others) if at % 2 else _long_lines(path, part, met, others, before)
            if read is None:
                return None
            columns.append(read)
            before += len(read[0])
    return _joined(columns)


_RUNS = re.compile(rb'(?m)((?:^\["[^\n]*\n)+)')
"""Splits lines into those that are lists and the others, by turns."""
_SHORT = re.compile(
    rb'(?m)^\["(enter|wait|exit)",(0|[1-9]\d{0,17}),(0|[1-9]\d{0,17}),(0|[1-9]\d{0,17})(?:,([1-9]\d{0,17}))?\]\n'
)


def _short_lines(raw: bytes, met: _Shapes, others: _Others) -> _Columns | None:
    """Read lines that are lists; None where one is not as a recorder writes it, or names what was not announced."""
    found = _SHORT.findall(raw)
    if len(found) != raw.count(b"\n") or met.format != FORMAT_VERSION or others.ended:
        return None
    kinds, indices, times, which, last = zip(*found, strict=True)
    enters = np.array([kind == b"enter" for kind in kinds], bool)
    numbers = _integers(which)
    if not np.array_equal(enters, [number != b"" for number in last]):
        return None
    operations, back = np.unique(numbers[enters], return_inverse=True)
    if any(number not in others.shapes for number in operations.tolist()):
        return None
    waits = np.array([kind == b"wait" for kind in kinds], bool)
    shapes = np.where(waits, met.follows(waits=True), met.follows(waits=False))
    shapes[enters] = np.array([others.shapes[number] for number in operations.tolist()], np.int64)[back]
    sequences = np.zeros(len(found), np.int64)
    sequences[enters] = _integers([number for number in last if number])
    return shapes, _integers(indices), _integers(times), sequences, np.where(enters, -1, numbers)


def _shape_of(path: Path, number: int, line: Enter | Wait | Exit, met: _Shapes, others: _Others) -> int:
    """Return the shape of a line that is a list. Raises UnreadableInput."""
    if others.ended:
        raise _bad(path, number, "a line behind the end")
    if not isinstance(line, Enter):
        return met.follows(waits=isinstance(line, Wait))
    if not line.sequence:
        raise _bad(path, number, "its sequence number is not told")
    if line.operation not in others.shapes:
        raise _bad(path, number, f"nothing says what operation {line.operation} is")
    return others.shapes[line.operation]


def _long_lines(path: Path, raw: bytes, met: _Shapes, others: _Others, before: int) -> _Columns | None:
    """Read lines that are objects.

    `before` is how many events stand before them. Raises UnreadableInput.
    """
    parts = _EVENTS.split(raw)
    if not all(between == b"" or between.endswith(b"\n") for between in parts[:-1:4]):
        return None
    rests, known = parts[3::4], met.numbers
    if others.ended and rests:
        return None
    for rest in dict.fromkeys(rest for rest in rests if rest not in known):
        met.add(path, 0, b'{"kind":"event","index":0,"time_ns":0,' + rest + b"\n", rest)
    for at, between in ((at, between) for at, between in enumerate(parts[::4]) if between):
        for line in between.split(b"\n")[:-1]:
            if len(line) >= MAX_LINE or isinstance(other := decode(path, 0, line + b"\n", met.format), Event):
                return None
            others.take(path, 0, other, before + at, met)
        if others.ended and at < len(rests):
            return None
    shapes = np.array([known[rest] for rest in rests], np.int64)
    nothing = np.zeros(len(shapes), np.int64)
    return shapes, _integers(parts[1::4]), _integers(parts[2::4]), nothing, nothing - 1


def _used(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Return which events issue an operation."""
    used: npt.NDArray[np.bool_] = rows["op"] | rows["listens"]
    return used


def _announced(met: _Shapes, shapes: Numbers, others: _Others) -> bool:
    """Tell whether each site and each group of an operation is announced before its first use."""
    rows = met.table[shapes]
    used = np.flatnonzero(_used(rows))
    sites, first_sites = np.unique(rows["site"], return_index=True)
    names, first_names = np.unique(rows["name"][used], return_index=True)
    first: dict[str | int, int] = {n: at for n, at in zip(sites.tolist(), first_sites.tolist(), strict=True) if n > 0}
    first |= {met.names.values[n]: int(used[at]) for n, at in zip(names.tolist(), first_names.tolist(), strict=True)}
    return all(name in others.since and others.since[name] <= at for name, at in first.items())


def _whole(path: Path, lines: _Lines) -> None:
    """Raise UnreadableInput if an event is missing or out of its order, though nothing says that it was dropped."""
    index = lines.indices
    last = [] if lines.end is None else [lines.end.index]
    before = np.concatenate([[-1 if lines.history is None else lines.history.index - 1], index])
    following = np.concatenate([index, last])
    for events, at in lines.summaries:
        if 0 < events < len(following) and following[events] != at:
            raise _bad(path, 1, f"it sums up what came before event {at}, and event {following[events]} follows")
    after = np.concatenate([index, last]).astype(np.int64)
    for at in np.flatnonzero(np.diff(np.append(before[:1], after)) != 1).tolist():
        low, high = int(before[at]) + 1, int(after[at])
        if high < low:
            raise _bad(path, line_of(path, high, after=at), f"event {high} is out of its order")
        known = low
        for lost in lines.dropped:
            if lost.index <= known:
                known = max(known, lost.index + lost.count)
        if known < high:
            raise _bad(path, line_of(path, high), f"event {low} is missing, and nothing says that it was dropped")


def _matched(path: Path, shapes: npt.NDArray[np.void], lines: _Lines) -> None:
    """Raise UnreadableInput if an exit is that of no operation, of another one, or there twice."""
    enters, exits = np.flatnonzero(_used(shapes)), np.flatnonzero(shapes["entered"] >= 0)
    waits = shapes["waits"][exits]
    entered, issued = shapes["entered"][exits], lines.indices[enters]
    at = np.searchsorted(issued, entered)
    there = at < len(issued)
    there[there] = issued[at[there]] == entered[there]
    wrong = ~there | (entered >= lines.indices[exits])
    for lost in lines.dropped:
        wrong &= (entered < lost.index) | (entered >= lost.index + lost.count)
    _, first = np.unique(entered[~waits], return_index=True)
    twice = ~waits
    twice[np.flatnonzero(~waits)[first]] = False
    wrong |= twice
    mine, theirs = shapes[exits[there]], shapes[enters[at[there]]]
    for name, untold in (("kind", -1), ("name", -1), ("sequence", 0)):
        wrong[there] |= (mine[name] != untold) & (mine[name] != theirs[name])
    if wrong.any():
        index = int(lines.indices[exits[int(np.argmax(wrong))]])
        raise _bad(
            path, line_of(path, index), f"event {index} ends no operation that was issued before it, or not one like it"
        )


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")
