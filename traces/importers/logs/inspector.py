"""Reads the files of NCCL's Inspector (2.28 and later): one JSON object a line for each collective that completed.

Only what completed is in them, of some size at least, and as of the last time that the plug-in wrote: the last number
of a rank is a lower bound, and a rank without lines says nothing.

Left out: times and bandwidths, and what follows from the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from ...evidence import Fact, Finished, GroupName, Process, Source
from .lines import Family, Line, Row, Sink
from .nccl import KINDS


class _Header(msgspec.Struct):
    id: str | int
    rank: int
    n_ranks: int


class _Where(msgspec.Struct):
    hostname: str = ""
    pid: int = 0


class _Collective(msgspec.Struct):
    coll: str
    coll_sn: int


class _Row(msgspec.Struct):
    header: _Header
    coll_perf: _Collective
    metadata: _Where = msgspec.field(default_factory=_Where)


_decoder = msgspec.json.Decoder(_Row)


def _row(line: Line, sink: Sink) -> None:
    at = line.text.find('{"header"')
    try:
        row = _decoder.decode(line.text[max(at, 0) :].encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return
    header, where = row.header, row.metadata
    if not 0 <= header.rank < header.n_ranks or row.coll_perf.coll_sn < 0:
        return
    name = str(header.id).lower().removeprefix("0x").lstrip("0") or "0"
    kind = KINDS.get(row.coll_perf.coll, row.coll_perf.coll)[:40]
    key = Row(name, header.rank, header.n_ranks, kind, where.hostname[:200], where.pid)
    last = sink.completed.get(key)
    if last is None and len(sink.completed) >= MAX_ROWS:
        return
    if last is None or last[0] < row.coll_perf.coll_sn:
        sink.completed[key] = (row.coll_perf.coll_sn, line.source)


def finished(completed: Mapping[Row, tuple[int, Source]]) -> Iterator[Fact]:
    """Yield the last number of each rank of the job: ranks of smaller communicators go by their processes'."""
    largest = max((key.size for key in completed), default=0)
    ranks: dict[tuple[str, int], int] = {}
    owners: dict[int, tuple[str, int]] = {}
    single = True
    for key in completed:
        if key.size == largest and key.pid:
            process = (key.host, key.pid)
            single &= ranks.setdefault(process, key.rank) == key.rank
            single &= owners.setdefault(key.rank, process) == process
    for key, (number, source) in completed.items():
        whole = key.size == largest and single
        rank = key.rank if whole else ranks.get((key.host, key.pid)) if single else None
        if rank is None:
            continue
        if whole and key.pid:
            yield Process(source, key.host, key.pid, rank)
        yield Finished(source, GroupName("inspector", key.name), rank, key.size, key.kind, number, whole)


MAX_ROWS = 1_000_000
FAMILIES = (Family((b'"coll_perf"',), _row),)
