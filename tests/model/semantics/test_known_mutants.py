"""Each known failure mode is caught by the property that it is made for, on a shortest path that says why."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from genlock.errors import UsageError
from genlock.model.checker.reference import check
from genlock.model.mutation.kill import judge
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import with_faults
from genlock.model.semantics.known_mutants import MUTANTS, mutant
from genlock.model.semantics.network import Network
from genlock.model.semantics.properties import ALL_STOPPED, CRASH_OVER_HANG
from genlock.model.semantics.run import Counterexample
from genlock.model.tables import Scope, validate


class Kill(NamedTuple):
    """How a mutant is caught: the number of steps, the last one, and who is stuck."""

    property: str
    steps: int
    last: str
    stuck: tuple[tuple[int, str, tuple[int, ...], str], ...] = ()
    """(rank, operation, whom it waits for, the commitment point behind it)."""


PINNED = {
    ("FM-01", 2): Kill(
        "no_stranding",
        22,
        "rank1 generate, issues generate #1 → GENERATING",
        (
            (0, "payload", (1,), "send_header"),
            (1, "generate", (0,), "send_header"),
        ),
    ),
    ("FM-02", 2): Kill("call_count_agreement", 29, "rank1 leave_phase_b → ACK"),
    ("FM-02-asserted", 2): Kill("no_false_abort", 29, "rank1 miscount → POISONED"),
    ("FM-03", 2): Kill("no_mispairing", 33, "rank0 generate, completes generate #2 → GENERATING"),
    ("FM-04", 2): Kill(
        "no_stranding",
        20,
        "rank1 receive_payload, issues payload #1 → AWAIT_PAYLOAD",
        (
            (0, "header", (1,), "send_noop"),
            (1, "payload", (0,), "send_header"),
        ),
    ),
    ("FM-05", 2): Kill(
        "no_stranding",
        20,
        "rank1 receive_payload, issues payload #1 → AWAIT_PAYLOAD",
        (
            (0, "payload", (1,), "send_header"),
            (1, "payload", (0,), "send_header"),
        ),
    ),
    ("FM-05-order", 2): Kill("no_mispairing", 28, "rank0 generate, completes generate #1 → GENERATING"),
    ("FM-06", 2): Kill(
        "no_stranding",
        36,
        "rank1 send_ack, issues ack #1 → ACK",
        (
            (0, "generate", (1,), "enter_phase_b"),
            (1, "ack", (0,), "send_header"),
        ),
    ),
    ("FM-07", 2): Kill(
        "no_stranding",
        21,
        "rank1 receive_payload, issues payload #1 → AWAIT_PAYLOAD",
        (
            (0, "header", (1,), "send_noop"),
            (1, "payload", (0,), "send_header"),
        ),
    ),
    ("FM-08", 2): Kill(
        "no_stranding",
        27,
        "rank1 generate, issues generate #1 → GENERATING",
        (
            (0, "ad_hoc", (1,), "enter_phase_b"),
            (1, "generate", (0,), "send_header"),
        ),
    ),
    ("FM-09", 2): Kill(
        "no_stranding",
        20,
        "rank1 receive_payload, issues payload #1 → AWAIT_PAYLOAD",
        (
            (0, "header", (1,), "send_header"),
            (1, "payload", (0,), "send_header"),
        ),
    ),
    ("FM-10", 2): Kill("epoch_fence", 23, "rank1 enter_phase_b → GENERATING"),
    ("FM-11", 2): Kill("no_unseen_drift", 40, "rank0 acks_agree → IDLE"),
    ("FM-12", 2): Kill("epoch_fence", 23, "rank1 enter_phase_b → GENERATING"),
    ("FM-13", 2): Kill("no_unseen_drift", 39, "rank0 acks_agree → IDLE"),
    ("FM-14", 2): Kill("no_unseen_drift", 40, "rank0 acks_agree → IDLE"),
    ("FM-15", 2): Kill("no_stale_override", 33, "rank1 leave_phase_b → ACK"),
    ("FM-16", 2): Kill("no_mispairing", 28, "rank0 generate, completes generate #1 → GENERATING"),
    ("FM-17", 2): Kill("no_mispairing", 62, "rank0 generate, completes generate #3 → GENERATING"),
    ("FM-18", 2): Kill(
        "crash_over_hang", 2, "rank1 exchange_parity, issues parity #1 → STARTUP", ((1, "parity", (0,), ""),)
    ),
    ("EPOCH-EARLY", 2): Kill("refusal_leaves_no_trace", 8, "rank0 refuse → IDLE"),
    ("FM-02", 3): Kill("call_count_agreement", 40, "rank1 leave_phase_b → ACK"),
    ("FM-02-asserted", 3): Kill("no_false_abort", 40, "rank1 miscount → POISONED"),
    ("FM-04", 3): Kill(
        "no_stranding",
        27,
        "rank2 receive_payload, issues payload #1 → AWAIT_PAYLOAD",
        (
            (0, "header", (1, 2), "send_noop"),
            (1, "payload", (0,), "send_header"),
            (2, "payload", (0,), "send_header"),
        ),
    ),
}


def killed(name: str, ranks: int) -> Counterexample:
    result = judge(mutant(name), Scope(ranks, 1, 2))
    assert result.killed
    assert result.example is not None
    return result.example


def test_every_mutant_is_pinned() -> None:
    assert {name for name, _ in PINNED} == set(MUTANTS)
    assert all(name == known.name for name, known in MUTANTS.items())


@pytest.mark.parametrize(("name", "ranks"), PINNED)
def test_a_mutant_is_killed_by_its_property(name: str, ranks: int) -> None:
    example = killed(name, ranks)
    stuck = tuple(
        (s.rank, s.operation, s.waiting_for, example.steps[s.since - 1].event if s.since else "") for s in example.stuck
    )
    found = Kill(example.claim, len(example.steps), example.steps[-1].text, stuck)
    assert found == PINNED[name, ranks]
    assert found.property == mutant(name).killed_by.name


def test_the_story_of_fm_04() -> None:
    example = killed("FM-04", 2)
    own = [step.event for step in example.steps if step.rank == 0 and step.edge != "complete"]
    assert own[own.index("send_header") :] == ["send_header", "refuse", "heartbeat", "send_noop"]
    assert example.summary == (
        "rank0 is stuck in BEATING (header), waiting for rank1, since step 14 (send_noop); "
        "rank1 is stuck in AWAIT_PAYLOAD (payload), waiting for rank0, since step 10 (send_header)"
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_another_protocol_that_still_makes_sense(name: str) -> None:
    known = mutant(name)
    sound = with_faults(TP_V1_1, known.faults)
    broken = validate(known.applied(TP_V1_1))
    if known.detection is False:
        assert broken == sound  # the tables are right, but nobody watches the ranks
    else:
        assert broken.digest != sound.digest


@pytest.mark.parametrize("name", MUTANTS)
def test_the_sound_protocol_stands_what_kills_the_mutant(name: str) -> None:
    known = mutant(name)
    network = Network(
        with_faults(TP_V1_1, known.faults),
        Scope(2, known.chunks, 2),
        faults=known.budget,
        kinds=known.faults,
        stream=known.stream,
    )
    assert check(network, [known.killed_by, ALL_STOPPED]).holds


def test_only_a_missing_watcher_is_no_edit() -> None:
    unwatched = [known for known in MUTANTS.values() if known.detection is False]
    assert {known.killed_by for known in unwatched} == {CRASH_OVER_HANG}


def test_too_few_chunks_are_refused() -> None:
    late = next(known for known in MUTANTS.values() if known.chunks > 1)
    with pytest.raises(UsageError, match=f"{late.name} shows from {late.chunks} chunks on"):
        late.network(Scope(2, late.chunks - 1, 2))
    assert judge(late, Scope(2, 1, 2)) == judge(late, Scope(2, late.chunks, 2))


def test_an_unknown_mutant_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=f"no mutant `FM-99`; choose one of {', '.join(MUTANTS)}"):
        mutant("FM-99")
