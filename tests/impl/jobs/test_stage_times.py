"""The time of a chunk by stage: exact for a trace made by hand, and without gap or overlap for whole simulated runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from genlock.impl.jobs import launch
from genlock.impl.jobs.stage_times import STAGES, as_text, profile, slices, stages
from genlock.traces.format import End, Event, Trace, encode, name_of, read
from genlock.traces.perfetto import STAGES as LANE
from genlock.traces.perfetto import write
from simulated import header, healthy

MS = 1_000_000
CHUNK = (
    # (transition, edge, phase, ms since the event before)
    ("request", "step", "idle", 7),
    ("preflight_schema", "step", "preflight", 1),
    ("preflight_split", "step", "preflight", 1),
    ("preflight_encode", "step", "preflight", 1),
    ("preflight_dtypes", "step", "preflight", 1),
    ("preflight_materialise", "step", "preflight", 10),
    ("commit", "step", "preflight", 1),
    ("send_header", "enter", "header", 0),
    ("send_header", "exit", "header", 3),
    ("send_payload", "enter", "payload", 0),
    ("send_payload", "exit", "payload", 4),
    ("enter_phase_b", "step", "payload", 2),
    ("generate", "enter", "generate", 1),
    ("generate", "exit", "generate", 50),
    ("generate", "enter", "generate", 1),
    ("generate", "exit", "generate", 60),
    ("leave_phase_b", "step", "generate", 8),
    ("collect_acks", "enter", "ack", 1),
    ("collect_acks", "exit", "ack", 5),
    ("acks_agree", "step", "ack", 1),
)
EXACT = {"between": 7, "prepare": 5, "digests": 20, "header": 3, "payload": 4, "calls": 112, "ack": 7}
REFUSED = (("request", "step", "idle", 900), ("refuse", "step", "preflight", 100))


def trace(folder: Path, *chunks: tuple[tuple[str, str, str, int], ...]) -> Trace:
    """A trace of rank0 with these events, its start-up first."""
    lines = [Event(0, 0, "exchange_parity", "step", "STARTUP", "startup")]
    for number, chunk in enumerate(chunks):
        for transition, edge, phase, ms in chunk:
            at = lines[-1].time_ns + ms * MS
            lines.append(Event(len(lines), at, transition, edge, "", phase, chunk=number + 1))  # type: ignore[arg-type]
    path = folder / name_of(0)
    path.write_bytes(encode(header(0)) + b"".join(map(encode, lines)) + encode(End(len(lines), 0, "stopped", 0)))
    return read(path)


def test_the_table_has_every_stage_to_the_millisecond(tmp_path: Path) -> None:
    found = profile(trace(tmp_path, CHUNK, CHUNK, CHUNK))
    assert (found.chunks, found.stages) == (3, EXACT)
    assert found.whole == sum(EXACT.values())
    assert as_text([found])[-1].split() == ["rank0", *(f"{EXACT[name]:.2f}" for name in STAGES), "158.00"]


def test_a_refused_chunk_counts_for_nothing(tmp_path: Path) -> None:
    assert profile(trace(tmp_path, CHUNK, REFUSED, CHUNK)).stages == EXACT


def test_a_run_without_a_finished_chunk_has_no_table(tmp_path: Path) -> None:
    found = profile(trace(tmp_path, CHUNK[:14]))
    assert (found.chunks, as_text([found])) == (0, [])


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    return healthy(tmp_path_factory.mktemp("healthy"))


def test_stages_leave_no_gap_and_do_not_overlap_on_any_rank(traces: list[Trace]) -> None:
    for one in traces:
        found = list(stages(one))
        assert sorted({s.chunk for s in found}) == [1, 2, 3]
        assert {s.name for s in found} <= set(STAGES)
        for a, b in pairwise(found):
            assert a.end == b.start or a.chunk != b.chunk
            assert a.end <= b.start


def test_perfetto_has_the_stages_in_a_lane_of_their_own(traces: list[Trace], tmp_path: Path) -> None:
    found = [piece for one in traces for piece in slices(one)]
    write(traces, tmp_path / "perfetto.json", found)
    events = json.loads((tmp_path / "perfetto.json").read_bytes())["traceEvents"]
    lane = [e for e in events if e["ph"] == "X" and e["tid"] == LANE]
    assert [(e["pid"], e["name"], e["args"]["chunk"]) for e in lane] == [
        (s.rank, s.name, s.about["chunk"]) for s in found
    ]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in lane)
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"stages of a chunk"}


def test_the_summary_of_a_run_shows_it(traces: list[Trace]) -> None:
    folder = traces[0].path.parent
    said = launch.as_text(launch.summarise(folder, 0, 1.0))
    assert "where a chunk's time goes (ms, median of 3):" in said
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  rank")][-3:] == [
        "rank0",
        "rank1",
        "rank2",
    ]
    assert (folder / launch.PERFETTO).exists()
