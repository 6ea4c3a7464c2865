"""The Chrome JSON that viewers open: well-formed events, one track a rank, arrows whose ends lie in slices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from genlock.traces.collectives import Interned, Recording, recording
from genlock.traces.format import Clock, Event, Trace, TraceHeader, encode, name_of, read
from genlock.traces.importers.flight_recorder import read_dump
from genlock.traces.load import load
from genlock.traces.perfetto import write
from hangs import dumps, hang
from program_traces import lines_of, pipeline
from program_traces import write as write_program
from simulated import RANKS, healthy

REQUIRED = {"X": {"name", "ts", "dur", "pid", "tid"}, "M": {"name", "pid", "args"}}
REQUIRED |= {"s": {"name", "id", "ts", "pid", "tid", "cat"}, "f": {"name", "id", "ts", "pid", "tid", "cat", "bp"}}


def written(found: Recording | Sequence[Trace], folder: Path) -> list[dict[str, Any]]:
    write(found, folder / "perfetto.json")
    events: list[dict[str, Any]] = json.loads((folder / "perfetto.json").read_bytes())["traceEvents"]
    for event in events:
        assert event.keys() >= REQUIRED[event["ph"]], event
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
    _nest(events)
    _arrows(events)
    return events


def _nest(events: list[dict[str, Any]]) -> None:
    """Slices of a lane do not overlap."""
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for e in (e for e in events if e["ph"] == "X"):
        lanes.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
    for spans in lanes.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(spans))


def _arrows(events: list[dict[str, Any]]) -> None:
    """Each arrow has one start and one end, in that order, and both stand at the beginning of a slice."""
    begins = {(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"}
    ends: dict[str, list[dict[str, Any]]] = {}
    for e in (e for e in events if e["ph"] in "sf"):
        ends.setdefault(e["id"], []).append(e)
        assert (e["pid"], e["tid"], e["ts"]) in begins
    for both in ends.values():
        assert [e["ph"] for e in both] == ["s", "f"]
        assert both[0]["ts"] <= both[1]["ts"]
        assert both[0]["pid"] != both[1]["pid"]


def test_a_recording_has_one_track_a_rank_and_arrows_in_each_collective(tmp_path: Path) -> None:
    job = hang(1001, "stall")
    assert job is not None
    interned = Interned()
    records = [read_dump(Path(f"trace_{rank}"), dump, interned) for rank, dump in dumps(job, "2.10").items()]
    found = recording("simulated", interned, records, {})
    events = written(found, tmp_path)
    assert {e["pid"] for e in events} == set(range(len(job.ranks)))
    assert sum(e["ph"] == "X" for e in events) == found.entries
    collectives: dict[tuple[int, int], int] = {}
    for record in records:
        for op in record.ops[record.ops["peer"] < 0]:
            key = (int(op["group"]), int(op["sequence"]))
            collectives[key] = collectives.get(key, 0) + 1
    assert sum(e["ph"] == "s" for e in events) == sum(members - 1 for members in collectives.values())


def test_own_traces_show_collectives_from_issue_to_completion(tmp_path: Path) -> None:
    healthy(tmp_path / "run")
    traces = [read(path) for path in sorted((tmp_path / "run").iterdir())]
    events = written(traces, tmp_path)
    assert {e["pid"] for e in events} == set(range(RANKS))
    entered = sum(e.edge == "enter" for trace in traces for e in trace.events)
    steps = sum(e.edge == "step" for trace in traces for e in trace.events)
    assert sum(e["ph"] == "X" for e in events) == entered + steps


def test_operations_that_overlap_lie_in_lanes_of_their_own(tmp_path: Path) -> None:
    """Two asynchronous operations of one rank, of which the first ends after the second has begun."""
    lines: list[Event] = []
    ends = ((0, "enter", 1, None), (1, "enter", 2, None), (2, "exit", 1, 0), (3, "exit", 2, 1))
    for index, edge, sequence, entered in ends:
        facts: dict[str, Any] = {"group": "g", "sequence": sequence, "op": f"op{sequence}", "entered": entered}
        lines.append(Event(index, index * 10, "", edge, "", "", **facts))  # type: ignore[arg-type]
    header = TraceHeader(1, "r", 0, 1, "", "gloo", "", "", {"g": (0,)}, Clock(0, 0))
    (tmp_path / name_of(0)).write_bytes(b"".join([encode(header), *map(encode, lines)]))
    events = written([read(tmp_path / name_of(0))], tmp_path)
    assert [(e["name"], e["tid"], e["dur"]) for e in events if e["ph"] == "X"] == [("op1", 0, 0.02), ("op2", 1, 0.02)]


def test_an_arrow_from_a_send_leads_to_its_receive(tmp_path: Path) -> None:
    """By tag, in programs; and none to a collective of the same number."""
    (tmp_path / "run").mkdir()
    ranks = pipeline()
    write_program(tmp_path / "run", lines_of(ranks))
    found = load([tmp_path / "run"])
    events = written(found, tmp_path)
    slices = {(e["pid"], e["tid"], e["ts"]): e["name"] for e in events if e["ph"] == "X"}
    arrows: dict[str, list[str]] = {}
    for e in events:
        if e["ph"] in "sf":
            arrows.setdefault(e["id"], []).append(slices[e["pid"], e["tid"], e["ts"]])
    ends = sorted(map(sorted, arrows.values()))
    assert ends.count(["recv", "send"]) == sum(
        e.op == "send" and e.edge == "enter" for o in ranks.values() for e in o.lines
    )
    assert all(a == b or [a, b] == ["recv", "send"] for a, b in ends)
