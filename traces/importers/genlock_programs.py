"""Reads Genlock's own traces of programs that have no protocol, as a recording of collectives.

A line is its number, its time, and the rest; in a job, ranks and steps write the same rests again and again, so that
each is decoded once. A site is a number of its file, so that each file's are translated by themselves.

Left out: traces with a protocol, which are held against its tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UnreadableInput
from ..collectives import OPS, Ended, Group, Interned, Interner, RankRecord, Signature, Status, packed
from ..format import (
    FORMAT_VERSION,
    MAX_LINE,
    P2P,
    Dropped,
    End,
    Event,
    Line,
    Site,
    TraceHeader,
    check_group,
    decode,
    lines_of,
    opening,
    to_event,
)
from ..format import Group as GroupLine
from ..outcome import Code

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


def line_of(path: Path, index: int) -> int:
    """Return the line, from 1, in which a rank's file has the event of that index."""
    rest = lines_of(path)
    header = opening(path, rest)
    for number, raw in rest:
        line = decode(path, number, raw, header.format)
        if isinstance(line, Event) and line.index == index:
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
        ("asynchronous", "?"),
        ("failed", "?"),
        ("listens", "?"),  # whether it takes what anybody sends
    ]
)
"""Lays out all of an event but its number and time."""


class _Shapes:
    """Keeps the distinct events of the ranks that were read so far, each decoded once."""

    def __init__(self, backend: str, format: int, interned: Interned) -> None:
        self.backend, self.format, self.interned = backend, format, interned
        self.names: Interner[str] = Interner()
        """Names of groups."""
        self.numbers: dict[bytes, int] = {}
        self.table = np.zeros(1 << 10, _SHAPE)

    def add(self, path: Path, number: int, raw: bytes, rest: bytes) -> int:
        """Take up what was not met before."""
        event, place = to_event(decode(path, number, raw, self.format))
        assert isinstance(event, Event)
        at = self.numbers[rest] = len(self.numbers)
        if at == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self.table[at] = self._row(path, number, event, -self.interned.sites(place) if place else event.site or 0)
        return at

    def _row(self, path: Path, number: int, event: Event, site: int) -> tuple[int | bool, ...]:
        failed = event.outcome is not None
        entered = -1 if event.entered is None or event.edge != "exit" else event.entered
        refused = event.outcome is not None and event.outcome.code in REFUSED
        if event.edge != "enter" or event.op is None or refused:
            return (0, 0, -1, 0, 0, -1, min(entered, LARGE), False, False, failed, False)
        if event.group is None or event.sequence is None:
            raise _bad(path, number, "its group or its sequence number is not told")
        bounds = ((event.sequence, LARGE), (event.numel, LARGE), (event.peer, SMALL), (event.root, SMALL))
        if not all(0 <= (value or 0) < most for value, most in (*bounds, (event.tag, SMALL), (event.site, SMALL))):
            raise _bad(path, number, "a number out of bounds")
        signature = self.interned.signatures(self._signature(event))
        listens = event.op in P2P and event.peer is None
        peer = -1 if event.peer is None else event.peer
        name = self.names(event.group)
        op = (event.sequence, signature, peer, event.tag or 0, site, name)
        return (*op, -1, not listens, event.asynchronous, False, listens)

    def _signature(self, event: Event) -> Signature:
        kind, size = KINDS.get(str(event.op), str(event.op)), event.numel or 0
        given = kind in ("scatter", "recv")
        if event.op == "all_gather" and "nccl" in self.backend:  # which gathers uneven parts as well
            size = -1
        root = -1 if event.root is None else event.root
        even = kind == "all_to_all" and event.splits is False
        sizes = (-1, size) if given else (size, -1)
        return Signature(kind, event.dtype or "", *sizes, root, event.reduce or "", even)


REFUSED = (Code.COLLECTIVE, Code.THREAD)
"""Outcomes of an operation that never reached the backend."""

Numbers = npt.NDArray[np.int64]
NONE: Numbers = np.zeros(0, np.int64)


class _Lines(NamedTuple):
    """Holds a file: its events by shape, index and time, and the lines that are no events."""

    groups: dict[str, Group]
    sites: dict[int, str]
    shapes: Numbers
    indices: Numbers
    times: Numbers
    dropped: Sequence[Dropped]
    end: End | None
    cut: bool


class _Others(NamedTuple):
    """Collects the lines of a file that are no events."""

    groups: dict[str, Group]
    sites: dict[int, str]
    ends: list[Dropped | End]

    def take(self, path: Path, number: int, line: Line) -> None:
        """Take up a line. Raises UnreadableInput."""
        if isinstance(line, GroupLine):
            check_group(path, number, line.name, line.members)
            if not line.name:  # this rank is not in it
                return
            group = self.groups.setdefault(line.name, Group(line.name, line.description, line.members))
            if group.members != line.members:
                raise _bad(path, number, f"group {line.name} had other members before")
        elif isinstance(line, Site):
            if self.sites.setdefault(line.number, line.place) != line.place:
                raise _bad(path, number, f"site {line.number} was another place before")
        elif isinstance(line, Dropped | End):
            self.ends.append(line)
        else:
            raise _bad(path, number, "a second header line")

    def lines(self, shapes: Numbers, indices: Numbers, times: Numbers, cut: bool) -> _Lines:
        """Return them together with the events."""
        dropped = [line for line in self.ends if isinstance(line, Dropped)]
        end = next((line for line in self.ends if isinstance(line, End)), None)
        return _Lines(self.groups, self.sites, shapes, indices, times, dropped, end, cut)


def _integers(texts: Sequence[bytes]) -> Numbers:
    """Return digits as numbers."""
    numbers: Numbers = np.fromstring(b" ".join(texts).decode(), dtype=np.int64, sep=" ")
    return numbers


class Reader:
    """Reads ranks one by one."""

    def __init__(self, interned: Interned) -> None:
        self.interned = interned
        self.shapes = _Shapes("", FORMAT_VERSION, interned)

    @property
    def met(self) -> int:
        """Count the distinct events that it remembers."""
        return len(self.shapes.numbers)

    def rank(self, path: Path) -> ProgramRank:
        """Read one rank. Raises UnreadableInput."""
        lines = lines_of(path)
        header = opening(path, lines)
        if (header.backend, header.format) != (self.shapes.backend, self.shapes.format):  # a backend says what binds
            self.shapes = _Shapes(header.backend, header.format, self.interned)
        read = self._quickly(path, header) or self._lines(path, header, lines)
        return ProgramRank(header, self._record(path, header, read))

    def _quickly(self, path: Path, header: TraceHeader) -> _Lines | None:
        """Read the lines of a file that a recorder wrote; None for any other, which is read line by line."""
        others = _Others({name: Group(name, "", members) for name, members in header.groups.items()}, {}, [])
        columns: list[tuple[Numbers, Numbers, Numbers]] = [(NONE, NONE, NONE)]
        with path.open("rb") as file:
            file.readline()
            rest = b""
            while raw := file.read(BLOCK):
                block, newline, rest = (rest + raw).rpartition(b"\n")
                if len(rest) > MAX_LINE:
                    return None
                try:
                    read = self._block(path, block + newline, others)
                except UnreadableInput:
                    return None
                if read is None:
                    return None
                columns.append(read)
        shapes, indices, times = (np.concatenate(column) for column in zip(*columns, strict=True))
        return others.lines(shapes, indices, times, cut=bool(rest))

    def _block(self, path: Path, raw: bytes, others: _Others) -> tuple[Numbers, Numbers, Numbers] | None:
        """Read whole lines of such a file; returns their events, by shape, index and time."""
        parts = _EVENTS.split(raw)
        if not all(between == b"" or between.endswith(b"\n") for between in parts[:-1:4]):
            return None
        rests, known = parts[3::4], self.shapes.numbers
        for rest in {rest for rest in rests if rest not in known}:
            self.shapes.add(path, 0, b'{"kind":"event","index":0,"time_ns":0,' + rest + b"\n", rest)
        for line in b"".join(parts[::4]).splitlines(keepends=True):
            if isinstance(other := decode(path, 0, line, self.shapes.format), Event):
                return None
            others.take(path, 0, other)
        shapes = np.array([known[rest] for rest in rests], np.int64)
        return shapes, _integers(parts[1::4]), _integers(parts[2::4])

    def _lines(self, path: Path, header: TraceHeader, lines: Iterator[tuple[int, bytes]]) -> _Lines:
        """Read a file line by line. Raises UnreadableInput with the line that makes no sense."""
        others = _Others({name: Group(name, "", members) for name, members in header.groups.items()}, {}, [])
        shapes, indices, times = list[int](), list[bytes](), list[bytes]()
        cut = False
        for number, raw in lines:
            if not raw.endswith(b"\n"):
                cut = True
                break
            if (event := _EVENTS.fullmatch(raw)) is not None:
                index, time, rest = event.groups()
            else:
                line = decode(path, number, raw, self.shapes.format)
                if not isinstance(line, Event):
                    others.take(path, number, line)
                    continue
                if not (0 <= line.index < LARGE and 0 <= line.time_ns < LARGE):
                    raise _bad(path, number, "a number out of bounds")
                index, time, rest = b"%d" % line.index, b"%d" % line.time_ns, raw
            shape = self.shapes.numbers.get(rest)
            shapes.append(self.shapes.add(path, number, raw, rest) if shape is None else shape)
            indices.append(index)
            times.append(time)
        return others.lines(np.array(shapes, np.int64), _integers(indices), _integers(times), cut)

    def _record(self, path: Path, header: TraceHeader, lines: _Lines) -> RankRecord:
        end, dropped = lines.end, lines.dropped
        shapes = self.shapes.table[lines.shapes]
        members = {name: self.interned.groups(group) for name, group in lines.groups.items()}
        groups = np.array([members.get(name, -1) for name in self.shapes.names.values], np.int64)
        used = shapes["op"] | shapes["listens"]
        if (groups[shapes["name"][used]] < 0).any():
            raise UnreadableInput("nothing says who is in one of its groups", where=str(path))
        at = np.flatnonzero(shapes["op"])
        ops = np.zeros(len(at), OPS)
        for name in ("sequence", "signature", "peer", "tag"):
            ops[name] = shapes[name][at]
        ops["site"] = self._sites(path, shapes["site"][at], lines.sites)
        ops["group"] = groups[shapes["name"][at]]
        ops["entry"] = lines.indices[at]
        ops["time"] = lines.times[at] + (header.clock.wall_ns - header.clock.monotonic_ns)
        lost = ops["entry"] < max((d.index for d in dropped), default=-1)
        ops["status"] = _statuses(ops["entry"], shapes, shapes["asynchronous"][at] | lost, header.backend)
        stopped = end is not None and end.cause == "stopped"
        # format 1 says by a message, whatever it is, that the process goes on
        detached = end is not None and (end.cause == "detached" or (header.format == 1 and stopped and end.message))
        torn = lines.cut or (end is None and bool(dropped)) or bool(detached)
        ended = Ended.TORN if torn else Ended.OPEN if end is None else Ended.STOPPED if stopped else Ended.FAILED
        return RankRecord(
            header.rank,
            path,
            packed(ops),
            lost=False,
            pending_only=False,
            gap=_gap(lines),
            span=_span(header, lines),
            ended=ended,
            message="" if end is None or stopped else end.message,
            raised_at="" if end is None or stopped else lines.sites.get(end.site or 0, ""),
            dropped=bool(dropped),
            listens=frozenset(groups[shapes["name"][shapes["listens"]]].tolist()),
        )

    def _sites(self, path: Path, numbers: Numbers, places: dict[int, str]) -> Numbers:
        """Return the interned numbers of sites, whose numbers in the file are given."""
        used, back = np.unique(numbers, return_inverse=True)
        if missing := [number for number in used.tolist() if number > 0 and number not in places]:
            raise UnreadableInput(f"nothing says where site {missing[0]} is", where=str(path))
        sites = [self.interned.sites(places[n]) if n > 0 else -n for n in used.tolist()]
        interned: Numbers = np.array(sites, np.int64)[back]
        return interned


def _statuses(entries: Numbers, shapes: npt.NDArray[np.void], unsaid: npt.NDArray[np.bool_], backend: str) -> Numbers:
    """Return how far each operation came, by its exit; `unsaid` are those of which a missing exit says nothing."""
    statuses = np.where(unsaid, Status.UNSAID, Status.ISSUED)
    exits = shapes[shapes["entered"] >= 0]
    at = np.searchsorted(entries, exits["entered"])
    exits, at = exits[at < len(entries)], at[at < len(entries)]
    fits = entries[at] == exits["entered"]
    # on NCCL, an exit says that the operation was enqueued
    left = Status.UNSAID if "nccl" in backend else Status.COMPLETED
    statuses[at[fits]] = np.where(exits["failed"][fits], Status.ISSUED, left)
    return statuses


def _span(header: TraceHeader, lines: _Lines) -> tuple[int, int]:
    """Return from when to when a rank was recorded, in ns of its wall clock: to its last event, where it has no end."""
    last = int(lines.times[-1]) if len(lines.times) else header.clock.monotonic_ns
    last = last if lines.end is None else lines.end.time_ns
    return header.clock.wall_ns, header.clock.wall_ns + last - header.clock.monotonic_ns


def _gap(lines: _Lines) -> int | None:
    """Return the first event that is missing or out of its order, though nothing says that it was dropped."""
    index = lines.indices
    last = [] if lines.end is None else [lines.end.index]
    before = np.concatenate([[-1], index])
    after = np.concatenate([index, last]).astype(np.int64)
    for at in np.flatnonzero(np.diff(np.append(before[:1], after)) != 1).tolist():
        low, high = int(before[at]) + 1, int(after[at])
        if high < low or not any(d.index <= low and high <= d.index + d.count for d in lines.dropped):
            return low
    return None


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")
