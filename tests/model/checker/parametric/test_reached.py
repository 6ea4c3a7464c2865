"""A protocol does not hold at every world size for want of a run: what is reached at no size, and what is undecided."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest
from genlock.errors import Exit, UsageError
from genlock.model.checker.parametric import reached, report
from genlock.model.checker.parametric.prove import Proof, prove
from genlock.model.checker.report import Answer
from genlock.model.semantics.query import Query
from genlock.model.tables import By, Collective, Kind, Protocol, Role, Row, Scope, State

VOTE = Collective("vote", Kind.GATHER, "g", 0, "int64", "1", "")
LOST = tuple(Row(state, "lost", "DEAD", By.DETECTION) for state in "AB")
STATES = tuple(State(n, "", terminal=n in ("END", "DEAD"), failed=n == "DEAD") for n in ("A", "B", "END", "DEAD"))


def own(v: int) -> int:
    return v


def told(v: int, data: Any) -> int:
    return int(data)


def one_or_two(v: int, scope: Scope) -> tuple[int, int]:
    return (1, 2)


def agreed(v: object, data: object) -> bool:
    return v != frozenset({0, 1, 2})


def differed(v: object, data: object) -> bool:
    """Return whether rank0 and two workers all put in something else."""
    return v == frozenset({0, 1, 2})


def never(v: object, data: object) -> bool:
    return False


def counted(v: Any, data: Any) -> Any:
    return data


def protocol(*more: Row) -> Protocol:
    driver = Role(
        "rank0",
        "A",
        STATES,
        (
            Row("A", "collect", "B", op=VOTE, send=own, effect=counted),
            Row("B", "agree", "END", guards=(agreed,)),
            Row("B", "differ", "END", guards=(differed,)),
            *more,
            *LOST,
        ),
        lambda finite: 0,
    )
    worker = Role(
        "worker",
        "A",
        STATES,
        (
            Row("A", "choose", "B", choices=one_or_two, effect=told),
            Row("B", "send_vote", "END", op=VOTE, send=own),
            *LOST,
        ),
        lambda finite: 0,
    )
    return Protocol("votes", "1", driver, worker, (VOTE,))


def proved(*more: Row, allow: tuple[str, ...] = ()) -> Proof:
    question = Query("votes", Scope(3, 1, 1), faults=0, given=protocol(*more))
    return prove(question, allow_unreached=allow)


def test_a_row_that_two_workers_are_needed_for_is_reached_with_three_ranks() -> None:
    proof = proved()
    assert (proof.verdict, proof.status) == (Answer.HOLDS, Exit.OK)
    assert proof.reached is not None
    assert proof.reached.tried == 3
    assert "Networks of up to 3 ranks reach all that must be reached." in report.as_text(proof)


def test_a_row_that_is_taken_at_no_size_makes_the_proof_vacuous() -> None:
    proof = proved(Row("B", "idle", "END", guards=(never,)))
    assert (proof.verdict, proof.status) == (Answer.VACUOUS, Exit.UNKNOWN)
    assert "NEVER REACHED  rank0, row B --idle--> END: never taken: guard `never` never holds" in report.as_text(proof)
    shown = report.as_json(proof)
    assert [row["event"] for row in shown["unreached"]["rows"]] == ["idle"]
    assert (shown["verdict"], shown["undecided"]["rows"], shown["reached_at_ranks"]) == ("vacuous", [], 5)
    assert len(list(ElementTree.fromstring(report.as_junit(proof)).iter("error"))) == 1
    assert json.dumps(shown)


def test_a_row_that_need_not_be_taken_makes_nothing_vacuous() -> None:
    proof = proved(Row("B", "idle", "END", guards=(never,)), allow=("B.idle",))
    assert proof.verdict is Answer.HOLDS
    assert "need not be reached: B.idle" in report.as_text(proof)
    with pytest.raises(UsageError, match=r"no row `B\.other`"):
        proved(allow=("B.other",))


def test_a_row_that_only_a_larger_network_may_take_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached, "UP_TO", 2)
    proof = proved()
    assert (proof.verdict, proof.status) == (Answer.UNKNOWN, Exit.UNKNOWN)
    assert "NOT SHOWN TO BE REACHED  rank0, row B --differ--> END" in report.as_text(proof)
    shown = report.as_json(proof)
    assert ([row["event"] for row in shown["undecided"]["rows"]], shown["unreached"]["rows"]) == (["differ"], [])


def test_where_no_network_could_be_searched_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached, "STATES", 1)
    proof = proved()
    assert (proof.verdict, proof.reached) == (Answer.UNKNOWN, None)
    assert "no network was searched to its end" in report.as_text(proof)
