"""Each known failure mode is caught by the property that it is made for, on a shortest path that says why."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from genlock.errors import UsageError
from genlock.model.checker.counterexample import Counterexample, counterexample
from genlock.model.checker.reference import check
from genlock.model.mutants import MUTANTS, mutant
from genlock.model.network import Network
from genlock.model.properties import ALL_STOPPED
from genlock.model.protocol import TP_V1_1
from genlock.model.tables import Scope


class Kill(NamedTuple):
    """How a mutant is caught: the number of steps, the last one, and (rank, operation, waiting_for, since) stuck."""

    property: str
    steps: int
    last: str
    stuck: tuple[tuple[int, str, tuple[int, ...], str], ...] = ()


LEAVES, MISCOUNTS = "rank1 leave_phase_b → ACK", "rank1 miscount → POISONED"
SHORT = "READY --enter_phase_b--> GENERATING"
WAITS = "receive_payload, issues payload #1 → AWAIT_PAYLOAD"

PINNED = {
    ("FM-02", 2): Kill("call_count_agreement", 29, LEAVES),
    ("FM-02", 3): Kill("call_count_agreement", 40, LEAVES),
    ("FM-02-asserted", 2): Kill("no_false_abort", 29, MISCOUNTS),
    ("FM-02-asserted", 3): Kill("no_false_abort", 40, MISCOUNTS),
    ("FM-04", 2): Kill(
        "no_stranding",
        20,
        f"rank1 {WAITS}",
        ((0, "header", (1,), "send_noop"), (1, "payload", (0,), "send_header")),
    ),
    ("FM-04", 3): Kill(
        "no_stranding",
        27,
        f"rank2 {WAITS}",
        (
            (0, "header", (1, 2), "send_noop"),
            (1, "payload", (0,), "send_header"),
            (2, "payload", (0,), "send_header"),
        ),
    ),
}
EDITED = {
    "FM-02": {SHORT, "GENERATING --leave_phase_b--> ACK"},
    "FM-02-asserted": {SHORT},
    "FM-04": {
        "PREFLIGHT_3 --preflight_encode--> PREFLIGHT_4",
        "PREFLIGHT_5 --preflight_materialise--> PREFLIGHTED",
        "COMMITTED --send_header--> HEADER_SENT",
    },
}


def killed(name: str, ranks: int) -> Counterexample:
    known = mutant(name)
    network = Network(known.edit(TP_V1_1), Scope(ranks, 1, 2), faults=known.faults, detection=False)
    result = check(network, [known.killed_by])
    example = counterexample(result, result.verdict(known.killed_by.name))
    assert example is not None
    return example


def test_every_mutant_is_pinned() -> None:
    assert {name for name, _ in PINNED} == set(EDITED) == set(MUTANTS)


@pytest.mark.parametrize(("name", "ranks"), PINNED)
def test_a_mutant_is_killed_by_its_property(name: str, ranks: int) -> None:
    example, pinned = killed(name, ranks), PINNED[name, ranks]
    assert (example.claim, len(example.steps), example.steps[-1].text) == pinned[:3]
    stuck = tuple(
        (s.rank, s.operation, s.waiting_for, example.steps[s.since - 1].event if s.since else "") for s in example.stuck
    )
    assert stuck == pinned.stuck


def test_the_story_of_fm_04() -> None:
    example = killed("FM-04", 2)
    own = [step.event for step in example.steps if step.rank == 0 and step.edge != "complete"]
    assert own[own.index("send_header") :] == ["send_header", "refuse", "heartbeat", "send_noop"]
    assert example.summary == (
        "rank0 is stuck in BEATING (header), waiting for rank1, since step 14 (send_noop); "
        "rank1 is stuck in AWAIT_PAYLOAD (payload), waiting for rank0, since step 10 (send_header)"
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_edits_what_it_says_and_is_still_a_protocol(name: str) -> None:
    edited = mutant(name).edit(TP_V1_1).validate()
    changed = set()
    for rank in (0, 1):
        rows = zip(TP_V1_1.role(rank).rows, edited.role(rank).rows, strict=True)
        changed |= {str(old) for old, new in rows if old != new}
    assert changed == EDITED[name]
    assert edited.digest != TP_V1_1.digest


@pytest.mark.parametrize("name", MUTANTS)
def test_the_property_that_kills_holds_on_what_is_shipped(name: str) -> None:
    options: dict[str, Any] = {"faults": mutant(name).faults, "detection": False}
    network = Network(TP_V1_1, Scope(2, 1, 2), **options)
    assert check(network, [mutant(name).killed_by, ALL_STOPPED]).holds


def test_an_unknown_mutant_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no mutant `FM-99`; choose one of FM-02, FM-02-asserted, FM-04"):
        mutant("FM-99")
