"""The search over any number of workers loses no state of any network, and each of its rules is needed.

An abstraction function of its own maps every state and move of concrete networks of one to five workers into the
search, and each rule of the search is broken once. The theorem is `docs/any-world-size.md`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from containment import Containment, Struck, network
from genlock.model.checker.parametric import abstract_network
from genlock.model.checker.parametric.abstract_network import AbstractNetwork
from genlock.model.checker.parametric.abstract_state import AbstractState
from genlock.model.protocols.tp_v0 import TP_V0
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics import transport
from genlock.model.semantics.faults import FAULTS, with_faults
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import CRASH, Network, Point
from genlock.model.tables import Protocol, Scope
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(("protocol", "workers"), [(TP_V1_1, 1), (TP_V1_1, 2), (TP_V0, 1), (TP_V0, 2), (TP_V0, 3)])
def test_no_state_of_one_to_three_workers_lies_outside(protocol: Protocol, workers: int) -> None:
    outside = Containment(network(protocol, workers)).whole()
    assert outside.nothing
    assert outside.heaps


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [3, 4, 5])
@pytest.mark.parametrize("protocol", [TP_V1_1, TP_V0], ids=lambda p: p.name)
def test_no_state_of_three_to_five_workers_lies_outside(protocol: Protocol, workers: int) -> None:
    assert Containment(network(protocol, workers)).whole().nothing


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 5])
def test_no_state_of_four_and_five_workers_lies_outside_while_rank0_only_beats(workers: int) -> None:
    assert Containment(network(TP_V1_1, workers, chunks=0)).whole().nothing


@pytest.mark.parametrize("kind", FAULTS)
def test_no_state_with_a_fault_lies_outside(kind: str) -> None:
    assert Containment(network(TP_V1_1, 1, kind, steps=2)).whole().nothing


@pytest.mark.slow
def test_no_state_of_two_workers_with_a_crash_lies_outside() -> None:
    assert Containment(network(TP_V1_1, 2, "crash")).whole().nothing


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FAULTS)
def test_no_state_of_two_workers_with_a_fault_lies_outside(kind: str) -> None:
    assert Containment(network(TP_V1_1, 2, kind, steps=2)).whole().nothing


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_state_of_three_workers_with_a_crash_lies_outside() -> None:
    assert Containment(network(TP_V1_1, 3, "crash")).whole().nothing


def test_no_state_on_a_stream_lies_outside() -> None:
    assert Containment(network(TP_V1_1, 1, "crash", steps=1, stream=True)).whole().nothing


@pytest.mark.slow
def test_no_state_on_a_stream_or_with_two_faults_or_without_detection_lies_outside() -> None:
    assert Containment(network(TP_V1_1, 1, "crash", "stall", steps=2, stream=True)).whole().nothing
    assert Containment(network(TP_V1_1, 1, "crash", "flag", faults=2)).whole().nothing
    assert Containment(network(TP_V1_1, 1, "stall", "exception", faults=2, detection=False)).whole().nothing


def test_however_far_rank0_runs_ahead_no_state_lies_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `floor(log2 n)` is at 32 ranks, on two and three."""
    monkeypatch.setattr(transport, "run_ahead", lambda ranks: 5)
    outside = Containment(network(TP_V1_1, 1, "crash")).whole()
    assert outside.nothing
    assert outside.heaps > 2000
    assert Containment(network(TP_V1_1, 2, chunks=0)).whole().nothing


@pytest.mark.parametrize("name", ["FM-03", "FM-05", "FM-08", "FM-09", "FM-12", "EPOCH-EARLY"])
def test_no_state_of_a_broken_protocol_lies_outside(name: str) -> None:
    """Mispairings, aborts and states in which everybody stands still among them."""
    assert Containment(MUTANTS[name].network(Scope(2, 1, 2))).whole().nothing


WIDE = [Containment(network(TP_V1_1, workers, *FAULTS, chunks=2, steps=2, faults=2)) for workers in (4, 5)]


@settings(max_examples=20)
@given(st.sampled_from(WIDE), st.integers(0, 2**32 - 1))
def test_no_state_of_a_random_run_with_any_two_faults_lies_outside(wide: Containment, seed: int) -> None:
    choose = random.Random(seed)
    here: Struck = (wide.network.initial(), frozenset())
    state = wide.abstraction(*here)
    for _ in range(60):
        after = list(wide.step(here, state))
        if not after:
            break
        here, state = choose.choice(after)
    assert wide.end().nothing


# ── each rule is needed ─────────────────────────────────────────────────────────────────────────────

Outcomes = Iterator[tuple[abstract_network.Hop, AbstractState]]


def lossy(monkeypatch: pytest.MonkeyPatch, keeps: Callable[[AbstractState, AbstractState], bool]) -> None:
    """Drop the moves from one abstract state to another that are not to be kept."""
    whole = AbstractNetwork.successors

    def some(self: AbstractNetwork, state: AbstractState) -> Outcomes:
        return ((hop, after) for hop, after in whole(self, state) if keeps(state, after))

    monkeypatch.setattr(AbstractNetwork, "successors", some)


def test_a_crash_of_rank0_once_a_worker_is_poisoned_lies_inside() -> None:
    """A failed worker is forgotten but for what it put in: that it is POISONED still makes the point."""
    kinds = {"exception": frozenset({Point("READY", 1)}), CRASH: frozenset({Point("POISONED", 0)})}
    one = Network(with_faults(TP_V1_1, kinds), Scope(2, 1, 1), faults=2, kinds=kinds, detection=False)
    assert Containment(one).whole().nothing


def test_without_the_last_of_a_lane_leaving_it_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy(monkeypatch, lambda before, after: len(after.occupied) >= len(before.occupied))
    assert Containment(network(TP_V1_1, 2)).whole().moves


def test_without_others_staying_in_a_lane_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy(monkeypatch, lambda before, after: len(after.occupied) <= len(before.occupied))
    assert Containment(network(TP_V1_1, 2)).whole().moves
    assert Containment(network(TP_V1_1, 1)).whole().nothing  # of one worker no other stays


def test_without_more_than_the_last_of_a_heap_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fault may strike between two of a heap, so that a worker is not brought on from one to the next."""
    monkeypatch.setattr(transport, "run_ahead", lambda ranks: 5)
    whole = AbstractNetwork._completion

    def only_the_last(self: AbstractNetwork, *of: Any) -> Iterator[Any]:
        return iter(list(whole(self, *of))[:1])

    assert Containment(network(TP_V1_1, 1, "corrupt")).whole().nothing
    monkeypatch.setattr(AbstractNetwork, "_completion", only_the_last)
    assert Containment(network(TP_V1_1, 1, "corrupt")).whole().moves


def test_without_a_death_before_what_a_rank_was_brought_on_to_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abstract_network, "_may_have_issued", lambda column: iter([column]))
    assert Containment(network(TP_V1_1, 1, "crash")).whole().moves


def test_without_what_the_dead_have_put_in_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abstract_network, "_put_in", lambda columns: iter(()))
    assert Containment(network(TP_V0, 2, "crash")).whole().moves


def test_were_a_crowd_never_to_wait_everybody_standing_still_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AbstractNetwork.successors

    def certain(self: AbstractNetwork, state: AbstractState) -> Outcomes:
        return ((hop._replace(certain=True), after) for hop, after in whole(self, state))

    monkeypatch.setattr(AbstractNetwork, "successors", certain)
    broken = Containment(MUTANTS["FM-05"].network(Scope(2, 1, 2))).whole()
    assert broken.deadlocks
    assert not broken.moves
