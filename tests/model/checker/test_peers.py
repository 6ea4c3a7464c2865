"""Models that others have counted, as they stand in examples/peers: the same states, and what was found of them."""

from __future__ import annotations

import pytest
from genlock.model.checker.report import Answer, Report, run_check
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from repository import ROOT

PEERS = ROOT / "examples" / "peers"
ONE_RANK = {
    "die_hard": 16,
    "peterson": 42,
    "two_phase_commit": 288,
    "transaction_commit": 34,
    "ewd840": 302,
    "chang_roberts": 137,
    "alternating_bit": 240,
}


def checked(model: str, **params: str) -> Report:
    return run_check(Query(str(PEERS / model), Scope(), params=params, faults=0))


def running(report: Report) -> int:
    """The states in which rank0 is the system."""
    return sum(report.network.state_name(state, 0) == "RUNS" for state in report.result.graph.states)


@pytest.mark.parametrize("name", ONE_RANK)
def test_a_system_has_the_states_that_others_count(name: str) -> None:
    report = checked(f"one_rank.py:{name}")
    assert running(report) == ONE_RANK[name]
    assert report.verdict is Answer.HOLDS


def test_two_phase_commit_of_five() -> None:
    assert running(checked("one_rank.py:two_phase_commit", managers="5")) == 8_832


def test_readers_and_writers() -> None:
    assert running(checked("one_rank.py:readers_writers")) == 21_527


@pytest.mark.parametrize(("philosophers", "states"), [("3", 102), ("5", 1_856), ("7", 33_330)])
def test_philosophers_come_to_the_deadlock(philosophers: str, states: int) -> None:
    report = checked("dining.py", philosophers=philosophers)
    assert report.result.graph.counts[0] == states
    assert (report.verdict, report.result.deadlocks) == (Answer.VIOLATED, 1)
    assert report.counterexample is not None
    # each holds one fork, and waits for one that another holds
    assert len(report.counterexample.stuck) == int(philosophers)


def test_one_polite_philosopher_is_enough() -> None:
    assert checked("dining.py", philosophers="5", polite="yes").verdict is Answer.HOLDS
