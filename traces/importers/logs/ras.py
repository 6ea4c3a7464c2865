"""Reads what NCCL's RAS answers (`ncclras`, 2.24 and later), as text and as JSON.

Counts are of launches, by kind of operation from 2.26 on, and of all kinds together before. Sends, receives and
operations of captured graphs are not counted. A job that runs shows unlike counts too: the number of the question is
kept, so that what did not move between two of them can be told.

Left out: what follows from the counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ...evidence import Counted, GroupName, Process, Source
from .lines import MAX_RANKS, Family, Line, Sink, ranks_in
from .nccl import KINDS

MAX_JSON = 64 << 20

_COMM = re.compile(r"^#(\d{1,6})(?:-\d{1,6})? \(([0-9a-fA-F]{1,32})\) (INCOMPLETE|ERROR|MISMATCH)")
_UNEQUAL = re.compile(r"Communicator ranks have different (?:(\w{1,40}) )?operation counts")
_MANY = re.compile(r"(\d{1,7}) ranks? (?:have|has) (?:launched up to operation (\d{1,18})|not launched any operations)")
_ONE = re.compile(r"Rank (\d{1,7}) has (?:launched up to operation (\d{1,18})|not launched any operations)")
_NAMED = re.compile(
    r"Rank (\d{1,7}) -- GPU \d{1,4}(?: \(NVML \d{1,4}\))? managed by process (\d{1,10}) on node (\S{1,100})"
)
_MISSING = re.compile(r"The missing rank\(s\): ([\d, ]{1,100000})")
_ROW = re.compile(r"^\s*(\d{1,6})\s+(\d{1,7})\s+(\d{1,7})\s+([\d\-]{1,15})\s+([\d\-]{1,15})\s+(\d{1,7})\s+[A-Z]")
_TOTAL = re.compile(r"^\s*\d{1,7}\s+[\d\-]{1,15}\s+[\d\-]{1,15}\s+\d{1,7}\s+(\d{1,7})\s*$")
_OURS = re.compile(
    r"^(?:\s*$|\s|=|#|\d|\(total\)|NCCL version|CUDA |Job summary|Communicators|Errors|Warnings|Gathering|Group|Nodes"
    r"|The outlier|INCOMPLETE|DEAD|TIMEOUT|MISMATCH|ERROR|Process)"
)


class _Answer:
    """Reads the text of one answer."""

    def __init__(self, line: Line, query: int) -> None:
        self.source, self.query = line.source, query
        self.sizes: dict[str, int] = {}
        self.total = 0
        """GPUs of the job; 0 where that is not told."""
        self.comm: tuple[str, str] | None = None
        self.problem = ""
        self.kind: str | None = None
        self.named: dict[str, dict[int, int]] = {}
        self.unnamed: dict[str, list[list[int]]] = {}
        """Kind to [ranks that are not named yet, launches]."""
        self.missing: set[int] = set()
        self.begun = False
        self.kept: set[str] = set()
        """Numbers of the groups of communicators of which something is kept."""

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the answer."""
        text = line.rest
        if (self.begun and text.startswith("NCCL version")) or not _OURS.match(text):
            return False
        self.begun = True
        row = _ROW.match(text)
        if row is not None and row[5].isdecimal():
            self.sizes[row[1]] = int(row[5])
        total = _TOTAL.match(text)
        if total is not None and not self.sizes:
            self.total = int(total[1])
        comm = _COMM.match(text)
        if comm is not None:
            self._flush(sink)
            self.source, self.comm, self.problem = line.source, (comm[1], comm[2]), comm[3]
        elif self.comm is not None:
            self._about(text, line, sink)
        return True

    def _about(self, text: str, line: Line, sink: Sink) -> None:
        unequal = _UNEQUAL.search(text)
        if unequal is not None:
            kind = unequal[1] or ""
            self.kind = KINDS.get(kind, kind) if kind not in ("", "collective") else ""
            return
        missing = _MISSING.search(text)
        if missing is not None:
            self.missing |= set(ranks_in(missing[1]))
        named = _NAMED.search(text)
        if named is not None and self.comm is not None and self._whole(self.sizes.get(self.comm[0], 0)):
            sink.add(Process(line.source, named[3], int(named[2]), int(named[1])), (named[3], named[2], named[1]))
        one, many = _ONE.search(text), _MANY.search(text)
        if one is not None and self.kind is not None:
            self.named.setdefault(self.kind, {})[int(one[1])] = int(one[2] or 0)
        elif many is not None and self.kind is not None:
            self.unnamed.setdefault(self.kind, []).append([int(many[1]), int(many[2] or 0)])
        elif named is not None and self.problem == "INCOMPLETE":
            self.missing.add(int(named[1]))
        elif named is not None and self.kind is not None and self.unnamed.get(self.kind):
            last = self.unnamed[self.kind][-1]
            last[0] -= 1
            self.named.setdefault(self.kind, {})[int(named[1])] = last[1]

    def _flush(self, sink: Sink) -> None:
        if self.comm is None:
            return
        number, name = self.comm
        counts: dict[str, Mapping[int, int]] = {}
        rest: dict[str, tuple[tuple[int, int], ...]] = {}
        size = self.sizes.get(number, 0)
        for kind in {*self.named, *self.unnamed}:
            own = dict(self.named.get(kind, {}))
            left = [(many, last) for many, last in self.unnamed.get(kind, []) if many > 0]
            size = max(size, len(own) + sum(many for many, _ in left))
            if len(left) == 1 and size <= MAX_RANKS and len(own) + left[0][0] == size:
                own.update({rank: left[0][1] for rank in range(size) if rank not in own})
                left = []
            counts[kind], rest[kind] = own, tuple(left)
        group = GroupName("ras", name.lower().lstrip("0") or "0")
        if counts or self.missing:
            missing, whole = tuple(sorted(self.missing)), self._whole(size)
            self.kept.add(number)
            sink.keep(Counted(self.source, self.query, group, size, counts, rest, missing, whole=whole))
        self.comm, self.kind, self.problem = None, None, ""
        self.named, self.unnamed, self.missing = {}, {}, set()

    def _whole(self, size: int) -> bool:
        return not size or not self.total or size >= self.total

    def close(self, sink: Sink) -> None:
        """Keep what was said of the last communicator, and the sizes of those of which nothing was said."""
        self._flush(sink)
        for number, size in self.sizes.items():
            if number not in self.kept and 0 < size <= MAX_RANKS:
                group = GroupName("ras", f"of group {number}")
                sink.keep(Counted(self.source, self.query, group, size, {}, whole=self._whole(size)))


def _text(line: Line, sink: Sink) -> None:
    key = (line.source.path, line.writer)
    if isinstance(sink.blocks.get(key), _Answer):
        return
    answer = _Answer(line, sink.query())
    if answer.feed(line, sink):
        sink.open(line, answer)


class _Json:
    """Reads the JSON of one answer, over many lines."""

    def __init__(self, line: Line) -> None:
        self.source = line.source
        self.text = ["{", line.rest] if not line.rest.lstrip().startswith("{") else [line.rest]
        self.depth = sum(part.count("{") - part.count("}") for part in self.text)
        self.bytes = 0

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the object."""
        if self.depth <= 0 or self.bytes > MAX_JSON:
            return False
        self.text.append(line.rest)
        self.bytes += len(line.rest)
        self.depth += line.rest.count("{") - line.rest.count("}")
        return True

    def close(self, sink: Sink) -> None:
        """Decode it; half an object says nothing."""
        text = "\n".join(self.text)
        end = text.rfind("}") + 1
        try:
            value = msgspec.json.decode(text[:end].encode())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if isinstance(value, dict) and isinstance(value.get("communicators"), list):
            read_answer(self.source, value, sink)


def _json(line: Line, sink: Sink) -> None:
    if not isinstance(sink.blocks.get((line.source.path, line.writer)), _Json):
        sink.open(line, _Json(line))


def read_answer(source: Source, answer: Mapping[str, Any], sink: Sink) -> None:
    """Keep the counts of each communicator of one answer in JSON. What makes no sense is left out."""
    query = sink.query()
    comms = [_comm(c) for c in answer["communicators"] if isinstance(c, dict)]
    comms = [c for c in comms if 0 < c.size <= MAX_RANKS]
    largest = max((c.size for c in comms), default=0)
    ranks: dict[tuple[str, int], int] = {}
    for comm in comms:
        if comm.size == largest:
            for member in (*comm.members, *comm.missing):
                ranks.setdefault((member.host, member.pid), member.rank)
    # several communicators of that size, of other processes: none is the job's
    single = len(set(ranks.values())) == len(ranks)
    if single:
        for (host, pid), rank in ranks.items():
            sink.add(Process(source, host, pid, rank), (host, pid, rank))
    for comm in comms:
        known = {m.rank: ranks.get((m.host, m.pid), -1) if single else -1 for m in (*comm.members, *comm.missing)}
        whole = -1 not in known.values()
        number = known if whole else {rank: rank for rank in known}
        counts: dict[str, dict[int, int]] = {}
        for member in comm.members:
            for kind, launched in member.counts.items():
                counts.setdefault(KINDS.get(kind, kind), {})[number[member.rank]] = launched
        sink.keep(
            Counted(
                source,
                query,
                GroupName("ras", comm.name),
                comm.size,
                counts,
                {},
                tuple(sorted(number[m.rank] for m in comm.missing)),
                tuple(sorted(number[m.rank] for m in comm.missing if m.dead)),
                tuple(sorted(number[m.rank] for m in comm.members if m.failed)),
                whole,
            )
        )


class _Member(NamedTuple):
    rank: int
    host: str
    pid: int
    counts: dict[str, int]
    failed: bool
    dead: bool


class _Comm(NamedTuple):
    name: str
    size: int
    members: list[_Member]
    missing: list[_Member]


def _comm(given: Mapping[str, Any]) -> _Comm:
    name = str(given.get("hash", ""))[:80].lower().removeprefix("0x").lstrip("0") or "0"
    size = given.get("size")
    size = size if isinstance(size, int) else 0
    members, missing = (
        [m for one in _list(given.get(key)) if (m := _member(one)) is not None and m.rank < size]
        for key in ("ranks", "missing_ranks")
    )
    return _Comm(name, size, members, missing)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _member(given: object) -> _Member | None:
    if not isinstance(given, dict):
        return None
    rank, pid, status, counts = (given.get(key) for key in ("rank", "pid", "status", "collective_counts"))
    if not isinstance(rank, int) or rank < 0:
        return None
    status = status if isinstance(status, dict) else {}
    counts = counts if isinstance(counts, dict) else {}
    return _Member(
        rank,
        str(given.get("host", ""))[:200],
        pid if isinstance(pid, int) else -1 - rank,
        {str(kind): n for kind, n in counts.items() if isinstance(n, int) and n >= 0},
        bool(status.get("async_error") or status.get("abort_flag")),
        bool(status.get("considered_dead")),
    )


NEAR = b"ommunicator"
FAMILIES = (
    Family((b" compiled with CUDA", b") MISMATCH", b") INCOMPLETE", b") ERROR"), _text, NEAR),
    Family((b'"nccl_version"',), _json, NEAR),
)
