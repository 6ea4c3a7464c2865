"""Reads the files of NCCL's Inspector (2.28 and later): one JSON object a line for each collective that completed.

Only what completed is in them, of some size at least, and as of the last time that the plug-in wrote: the last number
of a rank is a lower bound, and a rank without lines says nothing.

Left out: times and bandwidths, and what follows from the numbers.
"""

from __future__ import annotations

import msgspec

from ...evidence import Finished, GroupName, Process
from .lines import Family, Line, Sink
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
    header, name = row.header, str(row.header.id).lower().removeprefix("0x").lstrip("0") or "0"
    if not 0 <= header.rank < header.n_ranks or row.coll_perf.coll_sn < 0:
        return
    kind = KINDS.get(row.coll_perf.coll, row.coll_perf.coll)[:40]
    last = sink.finished.get((name, header.rank, kind))
    if last is None and len(sink.finished) >= MAX_ROWS:
        return
    if last is None or last.number < row.coll_perf.coll_sn:
        group = GroupName("inspector", name)
        number = row.coll_perf.coll_sn
        sink.finished[name, header.rank, kind] = Finished(line.source, group, header.rank, header.n_ranks, kind, number)
    if last is None and row.metadata.pid:
        where = row.metadata
        sink.add(Process(line.source, where.hostname, where.pid, header.rank), (where.hostname, where.pid))


MAX_ROWS = 1_000_000
FAMILIES = (Family((b'"coll_perf"',), _row),)
