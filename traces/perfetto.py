"""Writes traces as Chrome JSON, which ui.perfetto.dev and chrome://tracing open: one track a rank, arrows between.

A slice is one operation. In Genlock's own traces it lasts from issue to completion; a recording of somebody else
holds the issue alone, and there a slice lasts until the rank issues its next. What overlaps goes into a second lane of
the rank's track. An arrow leads from the member that issued a collective first to each of the others. Times are
wall-clock µs, from the first event of all.

Left out: counters, and everything of a profile but its collectives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .collectives import OWN, Recording, Status
from .format import Event, Trace
from .identical_ranks import own_lines


class Slice(NamedTuple):
    """Holds one operation of one rank. Times in ns."""

    rank: int
    name: str
    start: int
    end: int
    key: tuple[object, ...] | None
    """Shared by the members of one collective."""
    about: Mapping[str, Any]


STAGES = 1000
"""Number of the lane of a rank that shows the stages of its chunks."""


def write(found: Recording | Sequence[Trace], path: Path, stages: Sequence[Slice] = ()) -> None:
    """Write all ranks into one file. `stages`, of which no two of a rank overlap, get a lane of their own."""
    slices = list(_recorded(found) if isinstance(found, Recording) else _own(found))
    origin = min((s.start for s in (*slices, *stages)), default=0)
    events = [*_events(slices, origin), *_stages(stages, origin)]
    path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ns"}))


def _stages(stages: Sequence[Slice], origin: int) -> Iterator[dict[str, Any]]:
    for rank in sorted({s.rank for s in stages}):
        lane = {"ph": "M", "pid": rank, "tid": STAGES}
        yield {**lane, "name": "thread_name", "args": {"name": "stages of a chunk"}}
        yield {**lane, "name": "thread_sort_index", "args": {"sort_index": -1}}
    for s in stages:
        at = {"pid": s.rank, "tid": STAGES, "ts": (s.start - origin) / 1000, "dur": (s.end - s.start) / 1000}
        yield {**at, "ph": "X", "name": s.name, "cat": "stage", "args": s.about}


def _events(slices: Sequence[Slice], origin: int) -> Iterator[dict[str, Any]]:
    for rank in sorted({s.rank for s in slices}):
        yield {"ph": "M", "pid": rank, "tid": 0, "name": "process_name", "args": {"name": f"rank{rank}"}}
        yield {"ph": "M", "pid": rank, "tid": 0, "name": "process_sort_index", "args": {"sort_index": rank}}
    first: dict[tuple[object, ...], tuple[Slice, int]] = {}
    lanes: dict[int, list[int]] = {}
    for s in sorted(slices, key=lambda s: (s.start, s.rank)):
        lane = _lane(lanes.setdefault(s.rank, []), s)
        at = {"pid": s.rank, "tid": lane, "ts": (s.start - origin) / 1000}
        yield {**at, "ph": "X", "name": s.name, "cat": "collective", "dur": (s.end - s.start) / 1000, "args": s.about}
        if s.key is None:
            continue
        source, from_lane = first.setdefault(s.key, (s, lane))
        if source is not s:
            # viewers bind an arrow's ends to the slices that enclose them
            flow = {"cat": "collective", "name": "members", "id": "/".join(map(str, (*s.key, s.rank)))}
            yield {**flow, "ph": "s", "pid": source.rank, "tid": from_lane, "ts": (source.start - origin) / 1000}
            yield {**flow, "ph": "f", "bp": "e", **at}


def _lane(lanes: list[int], s: Slice) -> int:
    """Return the first lane that is free again; `lanes` holds when each is."""
    lane = next((at for at, free in enumerate(lanes) if free <= s.start), len(lanes))
    lanes[lane:] = [s.end, *lanes[lane + 1 :]]
    return lane


def _recorded(recording: Recording) -> Iterator[Slice]:
    for rank, record in recording.ranks.items():
        ops = sorted(record.ops.tolist(), key=lambda op: op[1])
        for op, following in zip(ops, [*ops[1:], None], strict=True):
            entry, time, sequence, group, signature, site, peer, tag, status = op
            about = {"entry": entry, "group": recording.groups[group].name, "sequence": sequence}
            about |= {"signature": str(recording.signatures[signature]), "at": recording.sites[site]}
            about |= {"status": Status(status).name.lower()} | ({"peer": peer} if peer >= 0 else {})
            end = following[1] if following else time + 1000
            kind = recording.signatures[signature].kind
            # other recorders number sends and receives by what else there was in the group
            told = peer < 0 or recording.source == OWN
            yield Slice(rank, kind, time, end, _key(rank, group, sequence, kind, peer, tag) if told else None, about)


def _own(traces: Sequence[Trace]) -> Iterator[Slice]:
    for trace in own_lines(traces):
        clock = trace.header.clock
        shift = clock.wall_ns - clock.monotonic_ns
        open_ends: dict[int, Event] = {}
        unnamed: dict[tuple[object, ...], int] = {}
        last = 0
        for event in trace.events:
            last = event.time_ns
            if event.edge == "enter":
                open_ends[event.index] = event
                unnamed[event.group, event.sequence, event.op] = event.index
            elif event.edge == "exit":
                entered = event.entered
                if entered is None:  # a move of a protocol, which has one at a time
                    entered = unnamed.get((event.group, event.sequence, event.op), -1)
                if entered in open_ends:
                    yield _slice(trace, open_ends.pop(entered), event.time_ns, shift)
            elif event.edge == "step":
                yield Slice(trace.rank, event.transition, last + shift, last + shift, None, {"state": event.state})
        for event in open_ends.values():
            yield _slice(trace, event, last, shift)


def _slice(trace: Trace, event: Event, end: int, shift: int) -> Slice:
    about = {"group": event.group, "sequence": event.sequence, "op": event.op, "phase": event.phase}
    about |= {"chunk": event.chunk, "call": event.call}
    if event.site is not None:
        about["at"] = trace.place(event)
    name = event.transition or str(event.op)
    peer = -1 if event.peer is None else event.peer
    key = _key(trace.rank, event.group, event.sequence, event.op, peer, event.tag or 0)
    return Slice(trace.rank, name, event.time_ns + shift, end + shift, key, about)


def _key(rank: int, group: object, sequence: object, op: str | None, peer: int, tag: int) -> tuple[object, ...]:
    """Return what those who take part in an operation share."""
    if peer < 0:
        return (group, sequence)
    return (group, sequence, *((rank, peer) if op == "send" else (peer, rank)), tag)
