"""Which row an event takes, and where it leads: one rule, asked by all who step a rank."""

from __future__ import annotations

import re
from pathlib import Path

import genlock
import pytest
from genlock.model.semantics.rows import arrive, breaks_off, enabled_row, enabled_rows
from genlock.model.tables import By, Collective, Kind, Role, Row, State

OP = Collective("sum", Kind.ALL_REDUCE, "all", None, "model", "1", "work")
ROLE = Role(
    "worker",
    "CHECK",
    (State("CHECK", "work"), State("DONE", "work", terminal=True), State("BAD", "work", terminal=True, failed=True)),
    (
        Row("CHECK", "accept", "DONE", guards=(lambda v, d: v == 1,), effect=lambda v, d: v + 1),
        Row("CHECK", "reject", "BAD", By.VIOLATION),
        Row("CHECK", "reduce", "CHECK", By.ENVIRONMENT, op=OP, effect=lambda v, d: d),
        Row("CHECK", "peer_lost", "BAD", By.DETECTION),
        Row("CHECK", "nudge", "CHECK", By.FAULT, fault="nudge"),
    ),
    lambda finite: 0,
)


def events(v: int, *, inside: bool = False) -> list[str]:
    return [row.event for row in enabled_rows(ROLE, "CHECK", v, inside=inside)]


def test_a_violation_is_enabled_only_where_no_row_of_the_protocol_is() -> None:
    assert events(1) == ["accept", "reduce", "peer_lost", "nudge"]
    assert events(2) == ["reject", "reduce", "peer_lost", "nudge"]


def test_inside_a_collective_a_rank_can_only_fail() -> None:
    """A fault that leaves the rank where it is does not break a collective off."""
    assert events(1, inside=True) == ["peer_lost"]
    assert [row.event for row in ROLE.rows if breaks_off(ROLE, row)] == ["peer_lost"]


def test_an_event_that_the_table_does_not_have_takes_no_row() -> None:
    assert enabled_row(ROLE, "CHECK", "leap", 1) is None
    assert enabled_row(ROLE, "DONE", "accept", 1) is None


def test_arriving_applies_the_effect_to_what_was_delivered() -> None:
    accept, reduce = ROLE.row("CHECK", "accept"), ROLE.row("CHECK", "reduce")
    assert arrive(accept, 1, None) == ("DONE", 2)
    assert arrive(reduce, 1, 7) == ("CHECK", 7)


PACKAGE = Path(genlock.__path__[0])
ASKS = re.compile(r"\brole\.enabled\(|\.checks_pass\(|\.apply\((?:self\.|local\.)?v(?:ars)?\b")


@pytest.mark.parametrize(
    "path",
    [
        "model/semantics/lts.py",
        "model/semantics/stepper.py",
        "impl/rank/monitor.py",
        "conformance/protocol/replay_rank.py",
    ],
)
def test_whoever_steps_a_rank_asks_here(path: str) -> None:
    text = (PACKAGE / path).read_text(encoding="utf-8")
    assert "semantics.rows import" in text or "from .rows import" in text
    assert not ASKS.findall(text)
