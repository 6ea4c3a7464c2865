"""Genlock's own traces of programs that have no protocol, as a recording of collectives.

Left out: traces with a protocol, which are held against its tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UnreadableInput, UsageError
from .collectives import OPS, Group, Interned, RankRecord, Recording, Signature, Status, recording
from .format import P2P, Dropped, Event, Trace


def of_programs(traces: Sequence[Trace]) -> Recording:
    """What the ranks of one run issued. Raises UsageError if the traces are of several runs."""
    interned = Interned()
    first = traces[0]
    ranks: dict[int, RankRecord] = {}
    unreadable: dict[int, str] = {}
    for trace in traces:
        if (trace.header.run, trace.header.world) != (first.header.run, first.header.world):
            what = f"this trace is of run {trace.header.run}, {first.path} is of run {first.header.run}"
            raise UsageError(what, where=str(trace.path), do="replay one run at a time")
        if trace.rank in ranks:
            what = f"a second trace of rank {trace.rank}, beside {ranks[trace.rank].path}"
            raise UsageError(what, where=str(trace.path), do="name each rank's trace once")
        ranks[trace.rank] = _record(trace, interned)
        if any(isinstance(line, Dropped) for line in trace.lines):
            unreadable[trace.rank] = "events were dropped"
    kept = [record for rank, record in ranks.items() if rank not in unreadable]
    return recording("genlock", interned, kept, unreadable, world=first.header.world)


def _record(trace: Trace, interned: Interned) -> RankRecord:
    shift = trace.header.clock.wall_ns - trace.header.clock.monotonic_ns
    ends = {event.entered: event for event in trace.events if event.edge == "exit"}
    rows = []
    expected = 0
    gap = None
    for event in trace.events:
        gap = expected if gap is None and event.index != expected else gap
        expected = event.index + 1
        refused = (event.outcome or "").startswith("refused")
        if event.edge != "enter" or event.op is None or refused or (event.op in P2P and event.peer is None):
            continue
        rows.append(_row(trace, event, ends.get(event.index), shift, interned))
    return RankRecord(trace.rank, trace.path, np.array(rows, dtype=OPS), lost=False, pending_only=False, gap=gap)


def _row(trace: Trace, event: Event, end: Event | None, shift: int, interned: Interned) -> tuple[int, ...]:
    members = trace.groups.get(event.group or "")
    if members is None or event.sequence is None:
        where = f"{trace.path}, event {event.index}"
        raise UnreadableInput(f"its group `{event.group}` or its sequence number is not told", where=where)
    group = interned.groups(Group(event.group or "", "", members))
    kind, size = str(event.op), event.numel or 0
    given = kind in ("scatter", "recv")
    signature = Signature(kind, event.dtype or "", -1 if given else size, size if given else -1)
    site = interned.sites(event.site) if event.site else 0
    # of what nobody waits for, no completion is no sign of trouble
    status = Status.COMPLETED if end else Status.UNSAID if event.asynchronous else Status.ISSUED
    peer = -1 if event.peer is None else event.peer
    number = (event.index, event.time_ns + shift, event.sequence, group, interned.signatures(signature))
    return (*number, site, peer, int(status))
