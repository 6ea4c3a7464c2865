"""A check tells what it searched, what it never reached, and no more than it knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from genlock.errors import Exit, UsageError
from genlock.model.checker.parametric import report as proof_report
from genlock.model.checker.parametric.prove import prove
from genlock.model.checker.report import Answer, Report, run_check
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from repository import ROOT

SCHEMA = json.loads((ROOT / "docs" / "check.schema.json").read_text())
ENGINES = ("reference", "numba", "numpy")
SMALL = Query("tp_v1.1", Scope(2, 1, 1))

MODEL = """
from genlock.model.tables import *
OP = Collective("work", Kind.ALL_REDUCE, "g", None, "int64", "8", "")
def never(v, data): return False
def up(v, data): return v + 1
def protocol(guarded: bool = True, counts: bool = False, declared: bool = False):
    states = (State("A", ""), State("B", ""), State("E", "", terminal=True))
    rows = (
        Row("A", "work", "B", op=OP, guards=(never,) if guarded else ()),
        Row("B", "done", "E"),
        Row("A", "skip", "E", guards=()),
        Row("A", "spin", "A", effect=up if counts else None),
    )
    worker = Role("worker", "A", states, rows, lambda finite: 0)
    return Protocol("mine", "1", Role("rank0", "A", states, rows, lambda finite: 0), worker, (OP,),
                    may_be_unreached=("A.work",) if declared else ())
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(MODEL)
    return str(path)


def checked(path: str, engine: str = "auto", **more: Any) -> Report:
    given = {key: more.pop(key) for key in ("allow_unreached", "max_states", "timeout") if key in more}
    return run_check(Query(path, Scope(2), faults=0, params=more), engine=engine, **given)


# ── vacuity ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_never_reached_makes_a_protocol_vacuous(own: str, engine: str) -> None:
    report = checked(own, engine)
    assert (report.verdict, report.exit) == (Answer.VACUOUS, Exit.UNKNOWN)
    assert report.coverage is not None
    assert [(r.name, r.guards) for r in report.coverage.rows] == [
        ("rank0.A.work", ("never",)),
        ("rank0.B.done", ()),
        ("worker.A.work", ("never",)),
        ("worker.B.done", ()),
    ]
    assert "NEVER REACHED  rank0, row A --work--> B: never taken: guard `never` never holds" in report.as_text()
    assert report.as_json()["unreached"]["rows"][0]["guards"] == ["never"]
    assert 'errors="4"' in report.as_junit()


def test_a_row_that_is_declared_need_not_be_reached(own: str) -> None:
    for report in (checked(own, declared="yes"), checked(own, allow_unreached=["A.work"])):
        assert (report.verdict, report.exit) == (Answer.HOLDS, Exit.OK)
        assert "need not be reached: A.work" in report.as_text()
    one = checked(own, allow_unreached=["worker.A.work"]).coverage
    assert one is not None
    assert {r.role for r in one.rows} == {"rank0"}


def test_a_row_that_is_not_there_cannot_be_allowed(own: str) -> None:
    with pytest.raises(UsageError, match=r"--allow-unreached: no row `A\.wrok` in mine"):
        checked(own, allow_unreached=["A.wrok"])


def test_what_the_faults_do_not_ask_for_is_told_and_no_more() -> None:
    report = run_check(replace(SMALL, faults=0))
    assert report.verdict is Answer.HOLDS
    assert report.coverage is not None
    idle = {f"{row.state}.{row.event}" for _, row in report.coverage.not_exercised}
    assert {"IDLE.exception", "IDLE.peer_lost", "POISONED.abort", "GENERATING.miscount"} <= idle
    assert "not exercised, as the chosen faults do not ask for it:" in report.as_text()


def test_engines_and_reduction_take_the_same_rows() -> None:
    taken = [run_check(SMALL, engine=engine, reduction="off").result.graph.taken for engine in ENGINES]
    assert taken[0] == taken[1] == taken[2]
    reduced = run_check(SMALL, reduction="on")
    assert reduced.verdict is Answer.HOLDS
    assert reduced.result.graph.taken < taken[0]


def test_a_chosen_fault_that_never_strikes_is_told(own: str) -> None:
    question = Query(own, Scope(2), params={"declared": "yes"}, fault_points=(("crash", "B"),))
    report = run_check(question)
    assert report.verdict is Answer.VACUOUS
    assert "NEVER REACHED  fault crash@B: it never strikes" in report.as_text()


# ── a rank that can only go round ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_that_polls_for_ever_is_told(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "polls.py"
    path.write_text(
        """
from genlock.model.tables import *
BOX = Slot("box")
def protocol():
    ends = (State("E", "", terminal=True),)
    driver = Role("rank0", "A", (State("A", ""), *ends), (Row("A", "done", "E"),), lambda finite: 0)
    rows = (Row("A", "poll", "P"), Row("P", "nothing_yet", "A"), Row("P", "got", "E", gate=Take(BOX)))
    worker = Role("worker", "A", (State("A", ""), State("P", ""), *ends), rows, lambda finite: 0)
    return Protocol("mine", "1", driver, worker, (), slots=(BOX,))
"""
    )
    report = checked(str(path), engine)
    failing = [v.property.name for v in report.result.verdicts if not v.holds]
    assert failing == ["no_livelock"]
    assert report.verdict is Answer.VIOLATED
    assert report.counterexample is not None
    assert report.counterexample.summary == "rank1 can only go round by itself, from A"


# ── what ends a search early ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_a_search_ends_at_so_many_states(engine: str) -> None:
    report = run_check(Query("tp_v1.1", Scope(3, 2, 2)), engine=engine, max_states=2_000)
    assert (report.verdict, report.exit) == (Answer.UNKNOWN, Exit.UNKNOWN)
    assert 2_000 <= len(report.result.graph.states) < 20_000
    assert "(--max-states 2000); every run of up to" in report.as_text()
    assert report.as_json()["unreached"] is None


def test_a_search_ends_after_so_long() -> None:
    report = run_check(Query("tp_v1.1", Scope(3, 2, 2)), engine="reference", timeout=0.0)
    assert report.exit == Exit.UNKNOWN
    assert "STOPPED: ended after 0 s (--timeout)" in report.as_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_variable_that_never_levels_off_is_named(own: str, engine: str) -> None:
    report = checked(own, engine, counts="yes", guarded="no", max_states=3_000)
    assert report.exit == Exit.UNKNOWN
    assert "GROWS: `the int` of rank0 still grows:" in report.as_text()
    assert {g["role"] for g in report.as_json()["growth"]} == {"rank0", "worker"}


def test_what_is_seen_violated_is_violated_however_the_search_ended() -> None:
    question = Query("tp_v1.1", Scope(3, 2, 2), mutant="FM-02")
    whole = run_check(question, symmetry="off").result.graph
    first, _ = whole.seen["call_count_agreement"]
    report = run_check(question, symmetry="off", max_states=(first + len(whole.states)) // 2)
    assert report.result.stopped
    assert (report.verdict, report.exit) == (Answer.VIOLATED, Exit.VIOLATED)


def test_any_world_size_ends_early_too() -> None:
    proof = prove(Query("tp_v1.1", Scope(2, 1, 1)), max_states=100)
    assert proof.status == Exit.UNKNOWN
    assert {proof.holds(p) for p in proof.properties} == {None}
    assert "STOPPED: ended at" in proof_report.as_text(proof)
    jsonschema.validate(proof_report.as_json(proof), SCHEMA)


# ── what was searched ───────────────────────────────────────────────────────────────────────────────────


def test_what_was_searched_is_said_whole(own: str) -> None:
    text = checked(own, guarded="no").as_text()
    for part in ("2 ranks", "2 chunks", "2 steps a chunk", "guarded=no", "no fault", "rendezvous transport"):
        assert part in text
    assert "detection on" in text
    assert "symmetry off, reduction off" in text


def test_json_is_as_its_schema_says(own: str) -> None:
    for report in (
        checked(own),
        run_check(SMALL),
        run_check(replace(SMALL, mutant="FM-04")),
        checked(own, max_states=1),
    ):
        jsonschema.validate(report.as_json(), SCHEMA)
