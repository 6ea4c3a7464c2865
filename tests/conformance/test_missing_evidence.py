"""What is not recorded is evidence of nothing: `unknown`, never a false alarm, never a false `conforming`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import corpus
import msgspec
import pytest
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.report import as_json, as_junit, as_text
from genlock.errors import UnreadableInput
from genlock.traces.format import Cause, Dropped, End, Event, Trace, read
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import Mutation, recorded, recounted, replayed
from repository import CORPUS

MANY = settings(max_examples=200)
HEALTHY = corpus.names("healthy/") + corpus.names("refused/")
BROKEN = corpus.names("broken/") + corpus.names("struck/")


@cache
def traces_of(name: str) -> list[Trace]:
    return corpus.traces(name)


def cut(trace: Trace, length: int) -> Trace:
    """The file as it is when the rank was killed after so many lines."""
    return msgspec.structs.replace(trace, lines=trace.lines[:length], numbers=trace.numbers[:length])


def dropped(trace: Trace, at: int, count: int) -> Trace:
    """The file as it is when the disk was full for a while."""
    count = min(count, len(trace.lines) - 1 - at)
    lines = (*trace.lines[:at], Dropped(at, count), *trace.lines[at + count :])
    return msgspec.structs.replace(trace, lines=lines, numbers=tuple(range(2, len(lines) + 2)))


@st.composite
def impaired(draw: st.DrawFn, names: Sequence[str]) -> tuple[str, list[Trace]]:
    """A run of which files are missing, cut or have holes; at least one of them."""
    name = draw(st.sampled_from(names))
    found: list[Trace] = []
    whole = traces_of(name)
    worst = draw(st.integers(0, len(whole) - 1))
    for at, trace in enumerate(whole):
        choices = ["missing", *["cut"] * (len(trace.lines) > 0), *["hole"] * (len(trace.lines) > 3)]
        how = draw(st.sampled_from(choices + ["whole"] * 3 * (at != worst)))
        if how == "cut":
            found.append(cut(trace, draw(st.integers(0, len(trace.lines) - 1))))
        elif how == "hole":
            at_line = draw(st.integers(0, len(trace.lines) - 3))
            found.append(dropped(trace, at_line, draw(st.integers(1, len(trace.lines)))))
        elif how == "whole":
            found.append(trace)
    return name, found


@given(impaired(HEALTHY))
@MANY
def test_a_healthy_run_of_which_something_is_missing_is_unknown(run: tuple[str, list[Trace]]) -> None:
    name, traces = run
    if traces:
        found = diagnose(traces)
        assert (found.verdict, found.divergence) == ("unknown", None), name
        assert found.reasons


@given(impaired(BROKEN))
@MANY
def test_a_broken_run_of_which_something_is_missing_never_conforms(run: tuple[str, list[Trace]]) -> None:
    name, traces = run
    if traces:
        found = diagnose(traces)
        assert found.verdict in ("divergent", "unknown"), name
        assert bool(found.reasons) or found.verdict == "divergent"


@pytest.mark.parametrize("name", BROKEN)
def test_the_culprit_is_named_although_its_own_trace_is_missing_or_it_is_unknown(name: str) -> None:
    """No innocent is called a culprit, and whoever is to blame is a culprit or a suspect."""
    culprits = set(corpus.expected(name).culprits)
    for trace in traces_of(name):
        found = diagnose([t for t in traces_of(name) if t is not trace]) if len(traces_of(name)) > 1 else None
        if found is not None and found.verdict == "divergent":
            assert culprits <= set(found.named), (trace.rank, found.divergence)
            assert set(found.culprits) <= culprits, (trace.rank, found.divergence)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**64), st.text(max_size=4), st.just([]), st.just({"a": 1}),
    st.sampled_from(["STOPPED", "control", "generate", "enter", "exit", "deadline", "peer_lost", "collectives"]),
)  # fmt: skip


@given(data=st.data())
@MANY
def test_any_field_may_hold_anything(data: st.DataObject) -> None:
    """It is a verdict, drawn and cut, or one clear line; a bug's traceback never."""
    name = data.draw(
        st.sampled_from(["healthy/two-ranks", "broken/OM-11", "broken/OM-06", "struck/worker-ready-stall"])
    )
    run = recorded(CORPUS / name)
    mutation = Mutation("change", "of a field", data.draw(st.sampled_from(sorted(run.lines))), 0)
    lines = [dict(line) for line in run.lines[mutation.rank]]
    line = data.draw(st.sampled_from(lines[1:]))
    within = data.draw(st.sampled_from([line, *(line[k] for k in ("data", "inside") if isinstance(line.get(k), dict))]))
    within[data.draw(st.sampled_from([*within, "data", "group", "outcome", "inside"]))] = data.draw(VALUES)
    said = ""
    try:
        found = replayed(run, mutation, lines)
        assert all([as_text(found), as_json(found), as_junit(found)])
    except (UnreadableInput, msgspec.ValidationError) as error:
        said = str(error)
    assert "\n" not in said


def test_calls_that_tell_different_things_of_their_insides_are_held_against_each_other() -> None:
    run = recorded(CORPUS / "healthy/three-ranks")
    lines = [dict(line) for line in run.lines[2]]
    told = next(line for line in lines if "inside" in line)
    told["inside"] = {"collectives": told["inside"]["collectives"], "bytes": 1}
    found = replayed(run, Mutation("change", "of a field", 2, 0), lines)
    assert found.divergence is not None
    assert (found.culprits, found.divergence.line) == ((2,), lines.index(told) + 1)
    assert "bytes is 1 here and None" in found.divergence.why


def test_ranks_that_each_come_after_the_other_are_told() -> None:
    """rank1 makes five calls where rank0 makes four, and both completed them: no run has such an order."""
    run = recorded(CORPUS / "healthy/two-ranks")
    lines = [dict(line) for line in run.lines[1]]
    header = next(line for line in lines if isinstance(line.get("data"), dict) and line["data"].get("plan"))
    header["data"] = {**header["data"], "plan": {**header["data"]["plan"], "steps": 5, "expected": 5}}
    enters = next(at for at, line in enumerate(lines) if line.get("transition") == "enter_phase_b")
    lines[enters]["data"] = 5
    found = replayed(
        run, Mutation("change", "of a plan", 1, 0), recounted([*lines[: enters + 3], *lines[enters + 1 :]])
    )
    assert (found.verdict, found.suspects) == ("divergent", (0, 1))
    assert "happens-before has a cycle: are these files of one run?" in found.reasons


def test_ranks_that_were_ended_where_they_stood_are_taken_at_their_word() -> None:
    """All stand in one collective and die there: who was first, only the one that could still say so knows."""
    traces = []
    for trace in traces_of("healthy/three-ranks"):
        at = next(n for n, line in enumerate(trace.lines) if isinstance(line, Event) and line.transition == "generate")
        end = End(at + 1, 0, "peer_lost", 12, "rank1 is gone", culprit=1)
        lines = (*trace.lines[: at + 1], *([end] if trace.rank == 0 else []))
        traces.append(msgspec.structs.replace(trace, lines=lines, numbers=trace.numbers[: len(lines)]))
    found = diagnose(traces)
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-18", (1,))
    assert found.divergence is not None
    assert (found.divergence.rank, found.divergence.observed) == (1, "nothing")
    assert ("GENERATING", "peer_lost") in found.witnessed["rank0"]
    unsaid = [cut(t, len(t.lines) - isinstance(t.lines[-1], End)) for t in traces]
    assert diagnose(unsaid).verdict == "unknown"


@pytest.mark.parametrize(("cause", "status"), [("peer_lost", 12), ("deadline", 13)])
def test_nobody_is_blamed_where_all_stood_in_one_collective_and_none_was_seen_to_fail(
    cause: Cause, status: int
) -> None:
    """They lost each other, or waited for each other: the network, say."""
    traces = []
    for trace in traces_of("healthy/three-ranks"):
        at = next(n for n, line in enumerate(trace.lines) if isinstance(line, Event) and line.transition == "generate")
        lines = (*trace.lines[: at + 1], End(at + 1, 0, cause, status, "it ended here"))
        traces.append(msgspec.structs.replace(trace, lines=lines, numbers=trace.numbers[: len(lines)]))
    found = diagnose(traces)
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-18", ())
    assert "culprits  unknown" in as_text(found)


def test_of_ranks_that_noticed_it_who_waited_for_nobody_when_its_own_deadline_passed_is_to_blame() -> None:
    """Rank1 has left the call in which the others are, and says nothing of them."""
    traces = []
    for trace in traces_of("healthy/three-ranks"):
        at = next(n for n, line in enumerate(trace.lines) if isinstance(line, Event) and line.transition == "generate")
        late = trace.rank == 1
        end = End(at + 1 + late, 0, "deadline" if late else "peer_lost", 13 if late else 12, "it ended here")
        lines = (*trace.lines[: at + 1 + late], end)
        traces.append(msgspec.structs.replace(trace, lines=lines, numbers=trace.numbers[: len(lines)]))
    found = diagnose(traces)
    assert (found.verdict, found.culprits) == ("divergent", (1,))


@pytest.mark.parametrize(
    ("cause", "stall", "observed"),
    [("exception", None, "nothing, until it was ended"), ("deadline", "host", "deadline")],
)
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_ranks_that_guardians_ended_are_told_by_the_end_markers_that_these_wrote(
    cause: Cause, stall: str | None, observed: str, culprit: int
) -> None:
    """The culprit never issues its third call, and all are ended where they stand; one has just noticed."""
    traces = []
    for trace in traces_of("healthy/three-ranks"):
        calls = [n for n, e in enumerate(trace.lines) if isinstance(e, Event) and (e.call, e.edge) == (3, "enter")]
        at = calls[0] + (trace.rank != culprit)
        why: Cause = cause if trace.rank == culprit else "peer_lost"
        lines = [*trace.lines[:at]]
        if trace.rank == (culprit + 1) % 3:
            last = lines[-1]
            assert isinstance(last, Event)
            lost = {
                "transition": "peer_lost",
                "edge": "step",
                "group": None,
                "sequence": None,
                "op": None,
                "call": None,
            }
            lines.append(msgspec.structs.replace(last, index=at, **lost))
        lines.append(End(len(lines), 0, why, 12, f"rank{culprit} died", culprit))
        numbers = tuple(range(2, len(lines) + 2))
        traces.append(msgspec.structs.replace(trace, lines=tuple(lines), numbers=numbers))
    found = diagnose(traces)
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-18", (culprit,))
    assert found.stall == stall
    assert found.divergence is not None
    assert (found.divergence.rank, found.divergence.observed) == (culprit, observed)


def test_replay_of_a_small_trace_starts_without_heavy_modules() -> None:
    folder = Path(CORPUS / "healthy/two-ranks")
    code = (
        "import sys; sys.argv = ['genlock', 'replay', sys.argv[1]]\n"
        "from genlock.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    verdict, loaded = done.stdout.splitlines()
    assert verdict.startswith("conforming: 2 ranks")
    assert not HEAVY & set(loaded.split())


HEAVY = {
    *("torch", "numba", "networkx", "transitions", "graphviz", "hypothesis", "multiprocessing", "tarfile"),
    *(
        "genlock.model.semantics.network",
        "genlock.model.diagrams.sequence_chart",
        "genlock.conformance.shrink",
        "genlock.traces.perfetto",
    ),
}


def test_a_rank_killed_before_its_first_event_has_a_trace_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rank1.trace.jsonl"
    path.write_bytes((CORPUS / "healthy/two-ranks" / path.name).read_bytes().splitlines(keepends=True)[0])
    found = diagnose([traces_of("healthy/two-ranks")[0], read(path)])
    assert found.verdict == "unknown"
    assert any("rank1: the file ends without an end marker, after event -1" in reason for reason in found.reasons)
