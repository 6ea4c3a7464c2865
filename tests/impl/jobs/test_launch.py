"""Real ranks: three processes under torchrun on gloo, their traces, and what replay makes of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from genlock.cli.write_check import write_check
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.replay import replay
from genlock.errors import Exit, Refused, UnreadableInput, UsageError
from genlock.impl import scenario
from genlock.impl.faults import inject
from genlock.impl.jobs import launch
from genlock.impl.scenario import Chunk, Heartbeat, Injection, RunConfig, Scenario
from genlock.impl.video.config import tiny
from genlock.impl.video.generator import Generator as Video
from genlock.impl.video.pipeline import Pipeline, PipelineConfig
from genlock.impl.video.tensor_parallel import Solo
from genlock.model.checker.report import run_check
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from genlock.traces.format import Trace, find, read
from real_ranks import alive
from repository import ROOT
from simulated import Job, fields

DEADLINES = {"startup": 60.0, "header": 3.0, "payload": 3.0, "collective": 3.0}


def run(out: Path, steps: Scenario, fault: Injection | None = None) -> tuple[launch.RunResult, list[str], list[Trace]]:
    said: list[str] = []
    config = RunConfig(launch.new_run(), str(out), "gloo", steps, DEADLINES, fault)
    result = launch.launch(config, 3, echo=said.append, limit=100)
    return result, said, [read(path) for path in find(out)]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[launch.RunResult, list[str], list[Trace]]:
    """Chunks with heartbeats, a hard cut and a recompute, and OM-01 in the middle."""
    out = tmp_path_factory.mktemp("real")
    return run(out, scenario.default(6), Injection("OM-01", 3))


def test_real_run_conforms_and_a_refused_chunk_leaves_no_trace_on_workers(
    healthy: tuple[launch.RunResult, list[str], list[Trace]],
) -> None:
    result, said, traces = healthy
    assert (result.exit, result.chunks, result.refused) == (Exit.OK, 5, 1)
    assert (result.heartbeats, result.hard_cuts, result.recomputes) == (2, 2, 1)
    assert [r.end.cause if r.end else None for r in result.ranks] == ["stopped"] * 3
    assert len(said) == 1, said
    for word in ("meta.base_seed", "lambda", "call_id=", "chunk_index=3", "nothing was sent"):
        assert word in said[0]
    found = diagnose(traces)
    assert (found.verdict, found.reasons) == ("conforming", ())
    for trace in traces[1:]:
        assert sum(e.transition == "accept_infer" for e in trace.events) == 5


def test_generator_calls_carry_their_real_all_reduces(
    healthy: tuple[launch.RunResult, list[str], list[Trace]],
) -> None:
    _, _, traces = healthy
    calls = [e for e in traces[1].events if e.transition == "generate" and e.edge == "exit"]
    per_call = 4 * tiny().blocks
    assert calls
    for event in calls:
        assert event.inside is not None
        assert event.inside["collectives"] == per_call * (event.call or 0)


def test_ranks_that_are_ended_before_they_have_a_trace_are_told_of_as_any_other(tmp_path: Path) -> None:
    """Torch alone takes longer to load than a start may take here."""
    said: list[str] = []
    config = RunConfig(launch.new_run(), str(tmp_path), "gloo", Scenario((Chunk(),)), {"startup": 0.05})
    result = launch.launch(config, 2, echo=said.append, limit=100)
    assert result.exit == Exit.DEADLINE
    late = re.findall(r"was ended: rank(\d) made no progress for .* in phase startup", "\n".join(said))
    assert late, said
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.failure_mode) == ("divergent", "FM-18")
    assert set(found.culprits) == {int(rank) for rank in late}
    assert [rank.events for rank in result.ranks] == [0, 0]
    assert not [*tmp_path.glob("*.end")]


def test_the_end_of_a_rank_that_has_a_trace_is_its_trace_s(tmp_path: Path) -> None:
    """A marker that lies beside a trace is older, of a run that nobody saw to its end."""
    config = RunConfig("run", str(tmp_path), "gloo", Scenario((Chunk(),)), {})
    trace, left = tmp_path / "rank0.trace.jsonl", tmp_path / "rank0.trace.jsonl.end"
    trace.write_text("a trace\n")
    left.write_text("an end\n")
    launch._begin_traces(config, 2)
    assert trace.read_text() == "a trace\n"
    assert [*tmp_path.iterdir()] == [trace]


def test_what_an_earlier_run_left_is_none_of_this_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "rank0.trace.jsonl.end"
    left.write_text("an end\n")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no torchrun here")

    monkeypatch.setattr(launch, "start_process", refuse)
    with pytest.raises(OSError, match="no torchrun here"):
        launch.launch(RunConfig("run", str(tmp_path), "gloo", Scenario((Chunk(),)), {}), 2, echo=print)
    assert not left.exists()


def test_a_run_of_which_no_rank_has_a_trace_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"no rank came as far as a trace.*see its launcher\.log"):
        launch.summarise(tmp_path, 1, 1.0)


def test_no_process_of_a_run_outlives_it(healthy: tuple[launch.RunResult, list[str], list[Trace]]) -> None:
    result, _, _ = healthy
    until = time.monotonic() + 2
    while alive(str(result.out)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(str(result.out))


def test_broken_build_strands_workers_as_the_model_predicts(tmp_path: Path) -> None:
    """The counterexample to FM-04, as a scenario, on real processes: the deadline ends it, replay names it."""
    report = run_check(Query("tp_v1.1", Scope(3, 1, 2), mutant="FM-04"))
    write_check(report, tmp_path / "check")
    todo = scenario.load(tmp_path / "check" / "scenario.json")
    assert (todo.chunks, todo.inject) == (1, Injection("FM-04", 1))
    result, _, traces = run(tmp_path / "run", todo, todo.inject)
    assert result.exit == Exit.DEADLINE
    found = diagnose(traces)
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-04", (0,))
    example = report.counterexample
    assert example is not None
    # rank0's own trace is replayed as far as its illegal move, so what is held against the model is the workers
    predicted = {(s.rank, s.state, s.waiting_for) for s in example.stuck if s.rank}
    assert {(w.rank, w.state, w.missing) for w in found.waits} == predicted
    assert not alive(str(tmp_path))


def test_traces_are_not_overwritten(healthy: tuple[launch.RunResult, list[str], list[Trace]]) -> None:
    result, _, _ = healthy
    config = RunConfig("again", str(result.out), "gloo", scenario.default(1))
    with pytest.raises(UsageError, match="choose another --out"):
        launch.launch(config, 3, echo=print)


# ── faults and scenarios, without processes ─────────────────────────────────────────────────────────

EXPECTED: Mapping[str, tuple[str, int]] = {
    "OM-01": ("meta.base_seed", 1),
    "OM-02": ("latents", 4),
    "OM-03": ("meta.tp_expected_generator_calls", 1),
    "OM-10": ("context_frames_override", 1),
    "OM-14": ("meta.height", 1),
}
"""For each fault in the envelope: the field that the refusal names, and the preflight step that finds it."""


@pytest.mark.parametrize("name", EXPECTED)
def test_fault_is_refused_by_name_and_the_next_chunk_works(name: str) -> None:
    job = Job()
    field, step = EXPECTED[name]
    fault = inject.FAULTS[name]
    assert fault.spoil
    with pytest.raises(Refused) as caught:
        job.run(job.rank0.chunk(fault.spoil(fields(init_cache=fault.cuts))))
    assert (caught.value.field, caught.value.step) == (field, step)
    job.simulation.run()
    assert all(m.vars.call_id == 0 for m in job.monitors)
    job.run(job.rank0.chunk(fields()))
    job.simulation.run()
    epoch = 1 if name == "OM-14" else 0
    assert {(m.vars.chunk_index, m.vars.cache_epoch) for m in job.monitors} == {(1, epoch)}


def test_a_fault_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no fault `OM-99`"):
        scenario.injection("OM-99", {})
    with pytest.raises(UsageError, match="count from 1"):
        scenario.injection("OM-01", {"chunk": "0"})
    assert scenario.injection("OM-01", {"chunk": "5"}).chunk == 5
    found = scenario.injection("OM-15", {"rank": "2", "phase": "ack"})
    assert (found.rank, found.phase, found.chunk) == (2, "ack", 3)
    for name, given, text in (
        ("OM-01", {"phase": "ack"}, "OM-01 has no `phase`; it takes chunk"),
        ("OM-16", {"kind": "odd"}, "no kind `odd`; choose from stale, duplicate, truncated"),
        ("OM-15", {"phase": "lunch"}, "no phase `lunch`"),
        ("OM-13", {"phase": "shutdown", "rank": "2"}, "rank2 has no phase `shutdown`"),
        ("OM-11", {"rank": "-1"}, "`-1` is not a rank; count from 0"),
    ):
        with pytest.raises(UsageError, match=text):
            scenario.injection(name, given)


def test_scenario_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps({"steps": [{"do": "heartbeat"}, {"do": "chunk", "recompute": True}]}))
    assert scenario.load(path) == Scenario((Heartbeat(), Chunk(recompute=True)))
    path.write_text('{"steps": [{"do": "dance"}]}')
    with pytest.raises(UnreadableInput, match="not a scenario"):
        scenario.load(path)
    path.write_text('{"steps": [{"do": "chunk", "spoil": "OM-11"}]}')
    with pytest.raises(UsageError, match="`OM-11` is not refused by preflight"):
        scenario.load(path)


def test_the_documented_scenario_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "control-plane.md").read_text()
    path = tmp_path / "scenario.json"
    path.write_text(text.partition("```json")[2].partition("```")[0])
    found = scenario.load(path)
    assert (found.chunks, found.conditioning, found.inject) == (4, "optimize", Injection("OM-11", 3, 1))


def test_default_scenario_has_a_heartbeat_a_hard_cut_and_a_recompute() -> None:
    steps = scenario.default(8).steps
    chunks = [s for s in steps if isinstance(s, Chunk)]
    assert len(chunks) == 8
    assert any(isinstance(s, Heartbeat) for s in steps)
    assert sum(c.hard_cut for c in chunks) == 1
    assert sum(c.recompute for c in chunks) == 1


def test_deadlines_come_from_flags_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLOCK_DEADLINES", "ack=5,header=6")
    assert launch.deadlines_of({"header": 7.0}) == {"ack": 5, "header": 7}
    with pytest.raises(UsageError, match="no phase `lunch`"):
        launch.deadlines_of({"lunch": 1.0})
    for text in ("lunch=1", "ack"):
        monkeypatch.setenv("GENLOCK_DEADLINES", text)
        with pytest.raises(UsageError, match="GENLOCK_DEADLINES"):
            launch.deadlines_of({})


def test_pipeline_and_generator_fit_the_roles() -> None:
    """The small pipeline's fields pass preflight as they are, and one rank runs them."""
    pipeline, generator = Pipeline(PipelineConfig(), tiny()), Video(tiny(), Solo())
    made: dict[str, Any] = pipeline.prepare("a lighthouse")
    chunk = generator.chunk({**made, "cache_epoch": 1})
    for call in chunk.calls:
        call()
    assert isinstance(chunk.result(), torch.Tensor)


def test_ranks_that_the_machine_cannot_hold_are_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = RunConfig("run", str(out), "gloo", scenario.default(1), {"startup": 10.0})
    started: list[object] = []

    def start(*args: object, **_: object) -> object:
        started.append(args)
        raise OSError("stop here")

    monkeypatch.setattr(launch, "start_process", start)
    monkeypatch.setattr(launch, "available_memory", lambda: 1 << 30)
    with pytest.raises(UsageError, match=r"--ranks 9: they need about 1.9 GiB, and 1.0 GiB are left; .*--oversub"):
        launch.launch(config, 9, echo=print)
    monkeypatch.setattr(launch, "available_memory", lambda: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(
        UsageError, match="on 2 cores they need about 130 s to start, and the deadline of startup is 120"
    ):
        launch.launch(config, 130, echo=print)
    with pytest.raises(UsageError, match="no rank9 of 9 ranks"):
        launch.launch(msgspec.structs.replace(config, injection=Injection("OM-06", rank=9)), 9, echo=print)
    assert (out.exists(), started) == (False, [])
    with pytest.raises(OSError, match="stop here"):
        launch.launch(config, 130, echo=print, oversubscribe=True)
