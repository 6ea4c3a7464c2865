"""Of a divergent run: the witness cut from it, its sequence chart, and what `replay --out` and `render trace` write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import corpus
import msgspec
import pytest
from genlock.cli.app import app
from genlock.conformance.protocol.diagnose import diagnose, protocol_of
from genlock.conformance.protocol.sequence_chart import AROUND, MAX_LANES, chart
from genlock.conformance.shrink import witness, write
from genlock.errors import Exit, UsageError
from genlock.model.diagrams.sequence_chart import sequence_mermaid, sequence_svg
from genlock.model.semantics.transport import depends_on
from genlock.traces.format import Trace, find, read
from program_traces import failed, operations
from program_traces import write as write_program
from repository import CORPUS
from typer.testing import CliRunner, Result

BROKEN = corpus.names("broken/")
STRUCK = ["struck/rank1-killed-before-send-ack", "struck/rank1-stopped-before-generate", "struck/worker-ready-stall"]
HEALTHY = "healthy/two-ranks"


def genlock(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="genlock")


def essence(traces: list[Trace]) -> object:
    found = diagnose(traces)
    assert found.divergence is not None
    where = msgspec.to_builtins(found.divergence) | {"clock": 0}
    return (where, found.verdict, found.failure_mode, found.culprits, found.stall)


@pytest.mark.parametrize("name", BROKEN + STRUCK)
def test_a_witness_replays_to_the_same_divergence_and_cannot_be_shorter(name: str, tmp_path: Path) -> None:
    traces = corpus.traces(name)
    write(witness(traces, diagnose(traces)), tmp_path / "witness")
    kept = [read(path) for path in find(tmp_path / "witness")]
    assert essence(kept) == essence(traces)
    assert sum(len(t.lines) for t in kept) <= sum(len(t.lines) for t in traces)
    for trace in kept:
        whole = (CORPUS / name / trace.path.name).read_bytes()
        assert whole.startswith(trace.path.read_bytes()), "cut, not written anew"
        others = [t for t in kept if t is not trace]
        shorter = msgspec.structs.replace(trace, lines=trace.lines[:-1], numbers=trace.numbers[:-1])
        for less in ([*others, shorter] if trace.lines else others, others):
            assert not less or diagnose(less).divergence is None or essence(less) != essence(traces)


def test_a_run_that_conforms_has_no_witness() -> None:
    traces = corpus.traces(HEALTHY)
    assert witness(traces, diagnose(traces)) == []


@pytest.mark.parametrize("name", BROKEN + STRUCK)
def test_a_chart_ends_with_the_divergence(name: str) -> None:
    traces = corpus.traces(name)
    found = diagnose(traces)
    example = chart(traces, found)
    where = found.divergence
    assert where is not None
    assert 0 < len(example.steps) <= AROUND
    last = example.steps[-1]
    if not example.stuck and where.observed != "deadline":
        assert last.rank == where.rank
        assert last.event in where.observed or "no row announces" in where.observed
    for stuck in example.stuck:
        assert f"rank{stuck.rank} in {stuck.operation}" in "".join(
            f"rank{w.rank} in {w.operation}" for w in found.waits if w.missing
        )
    schedule = protocol_of(traces).schedule
    ElementTree.fromstring(sequence_svg(example, schedule))
    assert sequence_mermaid(example, schedule).startswith("sequenceDiagram")


@pytest.mark.parametrize("name", BROKEN + STRUCK)
def test_in_a_chart_nothing_completes_before_what_it_needs_was_issued(name: str) -> None:
    """What was issued after the divergence is not drawn, so neither is what came of it."""
    traces = corpus.traces(name)
    schedule = {op.name: op for op in protocol_of(traces).schedule}
    example = chart(traces, diagnose(traces), 10**6)
    issued = set()
    for step in example.steps:
        if step.edge == "issue":
            issued.add((step.operation, step.sequence, step.rank))
        elif step.edge == "complete" and step.operation in schedule:
            for other in depends_on(schedule[step.operation], step.rank, example.ranks):
                assert (step.operation, step.sequence, other) in issued, step


@pytest.mark.parametrize("broken", [{"numel": 9}, {"op": "broadcast", "root": 0}, {"outcome": failed("timed out")}])
def test_a_witness_of_a_program(broken: dict[str, Any], tmp_path: Path) -> None:
    """Rank2 is odd in its last operation, or the others wait there for it."""
    odd = operations(9) if "outcome" in broken else operations(10, **broken)
    usual = operations(10, **broken) if "outcome" in broken else operations(10)
    (tmp_path / "run").mkdir()
    write_program(tmp_path / "run", {0: usual, 1: usual, 2: odd})
    done = genlock("replay", tmp_path / "run", "--out", tmp_path / "out", "--format", "json")
    again = genlock("replay", tmp_path / "out/witness", "--format", "json")
    whole, cut = (json.loads(of.stdout)["divergence"] for of in (done, again))
    same = ("rank", "line", "event", "place", "observed", "expected", "culprits", "stall")
    assert [cut[key] for key in same] == [whole[key] for key in same]
    assert cut["culprits"] == [2]
    lengths = [sum(len(t.lines) for t in (read(p) for p in find(tmp_path / f))) for f in ("run", "out/witness")]
    assert lengths[1] < lengths[0]


def test_a_chart_of_a_healthy_run_shows_its_end() -> None:
    traces = corpus.traces(HEALTHY)
    example = chart(traces, diagnose(traces))
    assert (example.claim, example.stuck, len(example.steps)) == ("", (), AROUND)
    assert example.text == f"conforming: the last of {sum(len(list(t.events)) for t in traces)} events"
    assert example.steps[-1].states == ("STOPPED",) * 2


def test_no_chart_of_a_crowd() -> None:
    traces = corpus.traces("broken/OM-06")
    many = [msgspec.structs.replace(t, header=msgspec.structs.replace(t.header, world=MAX_LANES + 1)) for t in traces]
    with pytest.raises(UsageError, match=f"{MAX_LANES + 1} ranks"):
        chart(many, diagnose(many))


FILES = {"replay.txt", "replay.json", "junit.xml", "perfetto.json", "coverage.txt", "coverage.json"}
DIVERGENT = {"sequence.svg", "sequence.mmd", "witness"}


def test_replay_writes_the_verdict_the_chart_and_a_witness(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = genlock("replay", CORPUS / "broken/OM-11", "--out", out)
    assert done.exit_code == Exit.VIOLATED
    assert {p.name for p in out.iterdir()} >= FILES | DIVERGENT
    assert (out / "replay.txt").read_text() == done.stdout
    said = json.loads((out / "replay.json").read_text())["divergence"]
    again = genlock("replay", out / "witness", "--format", "json")
    assert again.exit_code == Exit.VIOLATED
    same = ("rank", "line", "event", "chunk", "phase", "state", "observed", "expected", "why", "culprits")
    assert [json.loads(again.stdout)["divergence"][key] for key in same] == [said[key] for key in same]
    standing = {s["rank"]: (s["state"], s["observed"]) for s in said["standing"]}
    assert standing[2] == ("ENVELOPE_CHECK", "reject_envelope (step)")
    assert standing[0][1].startswith("peer_lost")


def test_replay_of_a_healthy_run_writes_no_chart(tmp_path: Path) -> None:
    assert genlock("replay", CORPUS / HEALTHY, "--out", tmp_path).exit_code == Exit.OK
    written = {p.name for p in tmp_path.iterdir()}
    assert written >= FILES
    assert not written & DIVERGENT


def test_replay_does_not_write_among_the_traces(tmp_path: Path) -> None:
    """The witness would be taken for a second run."""
    run = tmp_path / "run"
    shutil.copytree(CORPUS / "broken/OM-11", run)
    for out in (run, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        done = genlock("replay", run, "--out", out)
        assert (done.exit_code, done.stderr.count("\n")) == (Exit.USAGE, 1)
        assert "the traces lie in this folder" in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_a_witness_replaces_an_older_one(tmp_path: Path) -> None:
    for name in ("broken/OM-11", "broken/OM-06"):
        traces = corpus.traces(name)
        write(witness(traces, diagnose(traces)), tmp_path)
        assert essence([read(path) for path in find(tmp_path)]) == essence(traces)


@pytest.mark.parametrize(
    ("name", "counts"), [("broken/OM-04", ("1", "1", "0")), (HEALTHY, ("1", "0", "0")), ("cut", ("1", "0", "1"))]
)
def test_junit_has_a_case_that_fails_is_skipped_or_passes(name: str, counts: tuple[str, ...], tmp_path: Path) -> None:
    folder = CORPUS / name
    if name == "cut":
        folder = tmp_path
        (folder / "rank0.trace.jsonl").write_bytes((CORPUS / HEALTHY / "rank0.trace.jsonl").read_bytes()[:3000])
    suite = ElementTree.fromstring(genlock("replay", folder, "--format", "junit").stdout)
    assert tuple(suite.attrib[key] for key in ("tests", "failures", "skipped")) == counts
    [case] = suite
    assert len(case) == (counts != ("1", "0", "0"))


@pytest.mark.parametrize(("format", "start"), [("svg", "<svg"), ("mermaid", "sequenceDiagram")])
def test_render_trace_draws_a_recorded_divergence(format: str, start: str, tmp_path: Path) -> None:
    done = genlock("render", "trace", CORPUS / "broken/OM-11", "--format", format, "--out", tmp_path / "t")
    assert done.exit_code == Exit.OK, done.output
    assert (tmp_path / "t").read_text().startswith(start)
    assert "reject_envelope" not in (tmp_path / "t").read_text(), "what follows the divergence is noise"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trace",), "name the traces of a run"),
        (("trace", CORPUS / "broken/OM-11", "--format", "dot"), "a sequence chart is no graph"),
        (("trace", "no-such-folder"), "no such file or folder"),
    ],
)
def test_render_trace_says_in_one_line_what_it_cannot_draw(words: tuple[object, ...], message: str) -> None:
    done = genlock("render", *words)
    assert done.exit_code == Exit.USAGE
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
