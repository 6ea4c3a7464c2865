"""Traces of TP v1.1 as torch's Flight Recorder would have seen the same run: operations alone, by group and number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from genlock.model.protocols.tp_v1_1 import GENERATE
from genlock.traces.format import Event, Trace

GROUPS = {"control": "1", "device": "2"}
TYPES = {"uint8": "Byte", "int64": "Long", "float32": "Float", None: "BFloat16"}


class Seen(NamedTuple):
    """An operation that a recorder sees, and the event of the trace that it belongs to."""

    event: Event
    kind: str
    dtype: str
    numel: int


def operations(trace: Trace) -> Iterator[Seen]:
    """A generate call is the reductions inside of it."""
    exits = {(e.group, e.sequence): e for e in trace.events if e.edge == "exit"}
    counted = 0
    for event in trace.events:
        if event.edge != "enter" or event.group is None:
            continue
        many = 1
        if event.op == GENERATE.kind.value:
            done = exits.get((event.group, event.sequence))
            total = (done.inside or {}).get("collectives", 0) if done else 0
            many, counted = max(1, total - counted), max(total, counted)
        for _ in range(many):
            yield Seen(event, str(event.op), TYPES[event.dtype], event.numel or 64)


def dump(trace: Trace) -> dict[str, Any]:
    """What gloo's recorder would have written of the rank; it does not say how far an operation came."""
    counts = dict.fromkeys(GROUPS, 0)
    entries = []
    for at, seen in enumerate(operations(trace)):
        name = str(seen.event.group)
        counts[name] += 1
        entries.append(
            {
                "record_id": at,
                "pg_id": int(GROUPS[name]),
                "process_group": (GROUPS[name], "undefined"),
                "profiling_name": f"gloo:{seen.kind}",
                "collective_seq_id": counts[name],
                "p2p_seq_id": 0,
                "time_created_ns": seen.event.time_ns,
                "state": "scheduled",
                "input_sizes": [[seen.numel]],
                "output_sizes": [[seen.numel * (trace.header.world if seen.kind == "all_gather" else 1)]],
                "input_dtypes": [seen.dtype],
                "output_dtypes": [seen.dtype],
                "is_p2p": False,
            }
        )
    members = str(list(range(trace.header.world)))
    config = {number: {"name": number, "desc": "undefined", "ranks": members} for number in GROUPS.values()}
    return {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": entries}


def dumps(traces: Sequence[Trace]) -> dict[int, dict[str, Any]]:
    return {trace.rank: dump(trace) for trace in traces}
