"""The proof for every world size: it loses no state of any network that is searched, it bites, and says what it leaves.

The theorem is `docs/any-world-size.md`; here an abstraction function of its own maps every state and move of concrete
networks of one to five workers into the search, and each rule of the search is broken once.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from genlock.cli import app
from genlock.errors import Exit, ModelError, UsageError
from genlock.model import transport
from genlock.model.checker import ahead, anysize, anysize_report, crowd, lanes
from genlock.model.checker.anysize import NO_DEADLOCK, prove
from genlock.model.checker.crowd import Crowd
from genlock.model.checker.lanes import DRIVER, WORKER, CrowdState, Lane, Lost
from genlock.model.faults import FAULTS, with_faults
from genlock.model.mutants import MUTANTS
from genlock.model.network import CRASH, Move, Network, NetworkState, Point
from genlock.model.properties import NO_FALSE_ABORT, SOMETIMES_FOR, properties_of
from genlock.model.protocol import TP_V1_1
from genlock.model.protocol_v0 import TP_V0
from genlock.model.question import Question
from genlock.model.tables import By, Collective, Frame, Kind, Meet, Protocol, Role, Row, Scope, State
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

# ── from a network's state to the crowd's ───────────────────────────────────────────────────────────


class Abstraction:
    """What a state of a network is in the search over any number of workers. It uses none of the search's moves."""

    def __init__(self, network: Network) -> None:
        self.network, self.crowd = network, Crowd(network)
        self.lanes = self.crowd.lanes
        self._columns: dict[tuple[tuple[int, ...], int], tuple[lanes.Column, ...]] = {}

    def __call__(self, state: NetworkState, singles: frozenset[int]) -> CrowdState:
        """`singles`: the workers that a fault has struck."""
        infos = [self.network.info(state, rank) for rank in range(self.network.ranks)]
        workers = range(1, self.network.ranks)
        dead = (rank for rank in workers if infos[rank].failed)
        lost = (
            Lost(group, at, abs(entry))
            for rank in dead
            for group, column in enumerate(self.columns(state, rank))
            for at, entry in enumerate(column)
        )
        live = {rank: self.lane(WORKER, state, rank) for rank in workers if not infos[rank].failed}
        return self.lanes.normal(
            CrowdState(
                self.gone(state) if infos[0].failed else self.lane(DRIVER, state, 0),
                frozenset(lane for rank, lane in live.items() if rank not in singles),
                tuple(sorted(lane for rank, lane in live.items() if rank in singles)),
                frozenset(lost),
                ((),) * len(self.lanes.group),
                any(info.failed for info in infos),
                state.faults,
            )
        )

    def lane(self, role: int, state: NetworkState, rank: int) -> int:
        """The lane of a live rank, after the steps that nobody sees."""
        local = self.network.lts[rank].locals.items[state.locals[rank]]
        awake = Lane(self.lanes.lts[role].locals(local._replace(stalled=False)), self.columns(state, rank))
        on, _ = self.crowd.ahead(role, self.lanes.numbers[role](awake))
        if not local.stalled:
            return on
        return self.lanes.put(role, on, self.lanes.lts[role].stalled(self.lanes.lane(role, on).local, True))

    def gone(self, state: NetworkState) -> int:
        local = self.network.lts[0].locals.items[state.locals[0]]
        return self.lanes.gone(self.lanes.lts[DRIVER].locals(local), self.columns(state, 0))

    def columns(self, state: NetworkState, rank: int) -> tuple[lanes.Column, ...]:
        key = (state.queues, rank)
        found = self._columns.get(key)
        if found is None:
            queues = (self.network.queues.items[queue] for queue in state.queues)
            found = self._columns[key] = tuple(tuple(self.entries(queue, rank)) for queue in queues)
        return found

    def entries(self, queue: tuple[tuple[int, ...], ...], rank: int) -> Iterator[int]:
        for instance in queue:
            contribution = self.network.contributions.items[abs(instance[rank])]
            if contribution is None:
                return
            number = self.lanes.contributions(contribution._replace(lost=False))
            yield -number if instance[rank] < 0 else number

    def covered(self, state: CrowdState, among: set[CrowdState]) -> bool:
        """Whether one of these allows all that `state` does: the same, or with more in a heap, or once a rank has
        failed with fewer faults spent. Without rank0 there is nothing to count ids from, so that they may all be off.
        """
        if state in among:
            return True
        rank0 = self.lanes.lts[DRIVER].locals.items[self.lanes.lane(DRIVER, state.driver).local]
        frames = [state] if rank0.vars is not None else [self.lanes.rebase(state, by) for by in range(4)]
        return any(_allows(wide, frame) for wide in among for frame in frames)


def _allows(wide: CrowdState, state: CrowdState) -> bool:
    if wide._replace(heaps=state.heaps, faults=state.faults) != state:
        return False
    heaps = all(set(few) <= set(many) for few, many in zip(state.heaps, wide.heaps, strict=True))
    return heaps and (wide.faults == state.faults or (state.failed and wide.faults < state.faults))


# ── containment ─────────────────────────────────────────────────────────────────────────────────────

Struck = tuple[NetworkState, frozenset[int]]
"""A state of a network, and the live workers that a fault has struck."""


@dataclass
class Outside:
    """What lies outside the search: moves, properties that were seen, states in which everybody stands still."""

    states: int = 0
    moves: list[Move] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    deadlocks: int = 0
    heaps: int = 0
    """States with a heap, so that a test can tell that it has met some."""

    @property
    def nothing(self) -> bool:
        return not self.moves and not self.seen and not self.deadlocks


def struck(network: Network, before: Struck, move: Move, after: NetworkState) -> Struck:
    singles = before[1]
    if move.rank and after.faults > before[0].faults:
        singles |= {move.rank}
    return after, frozenset(rank for rank in singles if not network.info(after, rank).failed)


class Containment:
    """Holds moves of a network against those of the search."""

    def __init__(self, network: Network) -> None:
        self.network, self.abstraction = network, Abstraction(network)
        self.crowd = self.abstraction.crowd
        first, seen = self.crowd.initial()
        self.outside, self._concrete, self._abstract = Outside(), set[str](), set(seen)
        self._after: dict[CrowdState, set[CrowdState]] = {}
        self._stands: dict[CrowdState, bool] = {}
        self._states: dict[Struck, CrowdState] = {}
        assert self.abstraction(network.initial(), frozenset()) == first

    def step(self, here: Struck, wide: CrowdState) -> Iterator[tuple[Struck, CrowdState]]:
        """Where a state leads, each move held against those of the crowd state that it is in."""
        self._expand(wide)
        self.outside.states += 1
        self.outside.heaps += any(wide.heaps)
        goes_on = False
        for move, after in self.network.successors(here[0]):
            goes_on |= move.ordinary and after != here[0]
            self._concrete.update(move.seen)
            there = self.in_order(*struck(self.network, here, move, after))
            state = self._states.get(there)
            if state is None:
                state = self._states[there] = self.abstraction(*there)
            if not self.abstraction.covered(state, self._after[wide]):
                self.outside.moves.append(move)
            yield there, state
        failed, ended = self.network.verdict(here[0])
        self.outside.deadlocks += not failed and not ended and not goes_on and not self._stands[wide]

    def in_order(self, state: NetworkState, singles: frozenset[int]) -> Struck:
        """The same with the workers sorted: nothing tells them apart, and W! states become one."""
        columns = self.abstraction.columns
        found = [(r in singles, state.locals[r], columns(state, r), r) for r in range(1, self.network.ranks)]
        order = [0, *(rank for *_, rank in sorted(found))]
        if order == list(range(self.network.ranks)):
            return state, singles
        queues = (self.network.queues.items[queue] for queue in state.queues)
        put_in_order = tuple(self.network.queues(tuple(tuple(i[r] for r in order) for i in q)) for q in queues)
        same = state._replace(locals=tuple(state.locals[rank] for rank in order), queues=put_in_order)
        return same, frozenset(at for at, rank in enumerate(order) if rank in singles)

    def _expand(self, state: CrowdState) -> None:
        if state in self._after:
            return
        hops = list(self.crowd.successors(state))
        self._after[state] = {state, *(after for _, after in hops)}
        self._abstract.update(name for hop, _ in hops for name in hop.seen)
        certain = any(hop.certain for hop, _ in hops)
        self._stands[state] = NO_DEADLOCK.name in anysize.judged(self.crowd, state, certain)

    def whole(self) -> Outside:
        """Every state and move of the network."""
        first: Struck = (self.network.initial(), frozenset())
        found = {first: self.abstraction(*first)}
        queue = deque(found)
        while queue:
            here = queue.popleft()
            for there, state in self.step(here, found[here]):
                if there not in found:
                    found[there] = state
                    queue.append(there)
        return self.end()

    def end(self) -> Outside:
        self.outside.seen = self._concrete - self._abstract
        return self.outside


def network(
    protocol: Protocol, workers: int, *kinds: str, chunks: int = 1, steps: int = 1, faults: int = 1, **settings: Any
) -> Network:
    scope = Scope(workers + 1, chunks, steps)
    return Network(
        with_faults(protocol, kinds),
        scope,
        faults=faults if kinds else 0,
        kinds=dict.fromkeys(kinds),
        **settings,
    )


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


@pytest.mark.parametrize("workers", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_no_state_of_four_and_five_workers_lies_outside_while_rank0_only_beats(workers: int) -> None:
    assert Containment(network(TP_V1_1, workers, chunks=0)).whole().nothing


@pytest.mark.parametrize("kind", FAULTS)
def test_no_state_with_a_fault_lies_outside(kind: str) -> None:
    assert Containment(network(TP_V1_1, 1, kind, steps=2)).whole().nothing


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


@settings(max_examples=20, deadline=None, derandomize=True)
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

Outcomes = Iterator[tuple[crowd.Hop, CrowdState]]


def lossy(monkeypatch: pytest.MonkeyPatch, keeps: Callable[[CrowdState, CrowdState], bool]) -> None:
    """Drop the moves from one crowd state to another that are not to be kept."""
    whole = Crowd.successors

    def some(self: Crowd, state: CrowdState) -> Outcomes:
        return ((hop, after) for hop, after in whole(self, state) if keeps(state, after))

    monkeypatch.setattr(Crowd, "successors", some)


def test_a_crash_of_rank0_once_a_worker_is_poisoned_lies_inside() -> None:
    """A failed worker is forgotten but for what it put in: that it is POISONED still makes the point."""
    kinds = {"exception": frozenset({Point("READY", 1)}), CRASH: frozenset({Point("POISONED", 0)})}
    one = Network(with_faults(TP_V1_1, kinds), Scope(2, 1, 1), faults=2, kinds=kinds, detection=False)
    assert Containment(one).whole().nothing


def test_without_the_last_of_a_lane_leaving_it_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy(monkeypatch, lambda before, after: len(after.crowd) >= len(before.crowd))
    assert Containment(network(TP_V1_1, 2)).whole().moves


def test_without_others_staying_in_a_lane_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lossy(monkeypatch, lambda before, after: len(after.crowd) <= len(before.crowd))
    assert Containment(network(TP_V1_1, 2)).whole().moves
    assert Containment(network(TP_V1_1, 1)).whole().nothing  # of one worker no other stays


def test_without_more_than_the_last_of_a_heap_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fault may strike between two of a heap, so that a worker is not brought on from one to the next."""
    monkeypatch.setattr(transport, "run_ahead", lambda ranks: 5)
    whole = Crowd._completion

    def only_the_last(self: Crowd, *of: Any) -> Iterator[Any]:
        return iter(list(whole(self, *of))[:1])

    assert Containment(network(TP_V1_1, 1, "corrupt")).whole().nothing
    monkeypatch.setattr(Crowd, "_completion", only_the_last)
    assert Containment(network(TP_V1_1, 1, "corrupt")).whole().moves


def test_without_a_death_before_what_a_rank_was_brought_on_to_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_may_have_issued", lambda column: iter([column]))
    assert Containment(network(TP_V1_1, 1, "crash")).whole().moves


def test_without_what_the_dead_have_put_in_states_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_put_in", lambda columns: iter(()))
    assert Containment(network(TP_V0, 2, "crash")).whole().moves


def test_were_a_crowd_never_to_wait_everybody_standing_still_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Crowd.successors

    def certain(self: Crowd, state: CrowdState) -> Outcomes:
        return ((hop._replace(certain=True), after) for hop, after in whole(self, state))

    monkeypatch.setattr(Crowd, "successors", certain)
    broken = Containment(MUTANTS["FM-05"].network(Scope(2, 1, 2))).whole()
    assert broken.deadlocks
    assert not broken.moves


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────


def asked(protocol: str = "tp_v1.1", **more: Any) -> Question:
    return Question(protocol, Scope(3, more.pop("chunks", 1), 2), **more)


@pytest.mark.parametrize(("protocol", "states"), [("tp_v1.1", 8_787), ("tp_v0", 5_695)])
def test_both_protocols_hold_at_every_world_size(protocol: str, states: int) -> None:
    proof = prove(asked(protocol))
    assert proof.status is Exit.OK
    assert all(proof.holds(p) for p in proof.properties)
    assert len(proof.search.states) == states
    assert (proof.tried, proof.confirmed) == (0, {})


@pytest.mark.parametrize("protocol", [TP_V1_1, TP_V0], ids=lambda p: p.name)
def test_no_claim_holds_for_want_of_what_it_is_about(protocol: Protocol) -> None:
    crowd = Crowd(network(protocol, 1))
    properties = anysize.covered(protocol.name)
    search = anysize.explore(crowd, properties)
    known = {p.name for p in properties_of(protocol.name)} - {"all_stopped"}
    witnesses = known.intersection(SOMETIMES_FOR[p.name] for p in properties if p is not NO_DEADLOCK)
    assert len(witnesses) > 4
    assert witnesses <= search.seen.keys()
    assert any(all_stopped(crowd, state) for state in search.states)


def all_stopped(crowd: Crowd, state: CrowdState) -> bool:
    infos = [crowd.lanes.info(DRIVER, state.driver), *(crowd.lanes.info(WORKER, n) for n in state.workers())]
    return not state.failed and {info.state for info in infos} == {"STOPPED"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FAULTS)
def test_it_holds_with_any_fault_at_every_world_size(kind: str) -> None:
    assert prove(asked(fault_points=((kind, None),))).status is Exit.OK


COVERED = {name for name, mutant in MUTANTS.items() if mutant.killed_by in anysize.covered(TP_V1_1.name)}
STANDING_STILL = {"FM-01", "FM-04", "FM-05", "FM-06", "FM-07", "FM-08", "FM-09"}
"""Killed by `no_stranding`, which is not covered; but in these everybody comes to stand still, which is."""
NOT_COVERED = {"FM-18": "a peer that nobody watches is a matter of what comes in the end, after a failure"}


def test_every_mutant_is_covered_or_said_not_to_be() -> None:
    assert COVERED | STANDING_STILL | NOT_COVERED.keys() == MUTANTS.keys()
    assert not COVERED & (STANDING_STILL | NOT_COVERED.keys())


@pytest.mark.parametrize("name", sorted(COVERED | STANDING_STILL))
def test_every_safety_mutant_fails_with_a_confirmed_counterexample(name: str) -> None:
    killer = MUTANTS[name].killed_by.name if name in COVERED else NO_DEADLOCK.name
    proof = prove(Question("tp_v1.1", Scope(3, MUTANTS[name].chunks, 1), mutant=name), [killer])
    assert proof.status is Exit.VIOLATED
    example = proof.counterexample
    assert example is not None
    assert (example.claim, example.ranks) == (killer, 2)
    assert example.steps
    assert bool(example.stuck) is (killer == NO_DEADLOCK.name)


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_is_not_found(name: str) -> None:
    assert prove(asked(mutant=name)).status is Exit.OK


# ── what it takes to be a crowd ─────────────────────────────────────────────────────────────────────


def program(driver: list[Row], worker: list[Row], *schedule: Collective, **more: Any) -> Protocol:
    """Two roles that start at A; a state that no row leaves is an end. Variables are what was last delivered."""

    def role(name: str, rows: list[Row]) -> Role:
        names = dict.fromkeys(name for row in rows for name in (row.state, row.target))
        leaving = {row.state for row in rows}
        states = tuple(State(n, "", terminal=n not in leaving, failed=n.startswith("LOST")) for n in names)
        return Role(name, "A", states, tuple(rows), lambda finite: None)

    return Protocol("program", "1", role("rank0", driver), role("worker", worker), schedule, **more)


SUM = Collective("sum", Kind.ALL_REDUCE, "g", None, "int64", "8", "")
ASK = Collective("ask", Kind.GATHER, "g", 0, "int64", "8", "")
TELL = Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", "")


def test_a_slot_is_refused_by_the_row_that_has_it() -> None:
    with pytest.raises(ModelError, match="rank0, row HEADER --put_header--> HEADER: slot `header` belongs to one"):
        prove(asked("examples/protocol_m.py"))


def test_a_worker_as_a_root_is_refused_by_the_row_that_has_it() -> None:
    op = replace(TELL, root=1)
    row = Row("A", "hear", "END", op=op)
    with pytest.raises(ModelError, match="rank0, row A --hear--> END: the root of `tell` is one worker"):
        Crowd(Network(program([row], [row], op), Scope()))


def test_a_fixed_number_of_ranks_and_a_collective_that_fails_are_refused() -> None:
    row = Row("A", "add", "END", op=SUM)
    with pytest.raises(ModelError, match="about 3 ranks and no others"):
        Crowd(Network(program([row], [row], SUM, ranks=3), Scope()))
    row = Row("A", "add", "LOST", op=SUM)
    with pytest.raises(ModelError, match=r"row A --add--> LOST: `sum` leads to a failed state"):
        Crowd(Network(program([row], [row], SUM), Scope()))


def test_a_failed_rank_that_takes_part_again_is_refused_by_its_row() -> None:
    good = Row("A", "add", "END", op=SUM)
    for back in (Row("LOST", "recover", "END"), Row("LOST", "tell", "LOST_END", op=SUM)):
        rows = [good, Row("A", "fail", "LOST", By.FAULT, fault="exception"), back]
        with pytest.raises(ModelError, match=f"worker, row {back}: a failed rank takes part again"):
            Crowd(Network(program([good], rows, SUM), Scope()))


def test_a_queue_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """rank0 tells two things in turn, which are no heap, and hears of nobody."""
    other = replace(TELL, name="other", size="9")
    driver = [Row("A", "tell", "B", op=TELL), Row("B", "tell", "A", op=other)]
    worker = [Row("A", "hear", "B", op=TELL), Row("B", "hear", "A", op=other)]
    monkeypatch.setattr(ahead, "MAX_UNFINISHED", 6)
    with pytest.raises(ModelError, match="more than 6 unfinished collectives of group `g`"):
        anysize.explore(Crowd(Network(program(driver, worker, TELL, other), Scope(), faults=0)), [NO_DEADLOCK])


@pytest.mark.parametrize("shown", ["put in", "given"])
def test_ids_met_in_another_group_behind_a_heap_are_refused(shown: str) -> None:
    """rank0 tells one id after the other; a worker behind it shows its own elsewhere, or is given rank0's there."""
    other = replace(SUM, group="h") if shown == "put in" else replace(TELL, name="other", group="h")

    def own(v: int) -> int:
        return v

    def rise(v: int, data: object) -> int:
        return (v + 1) % 4

    def hear(v: int, data: Any) -> int:
        return int(data)

    frame = Frame(base=lambda v: v, rebase=lambda value, by: (value + by) % 4 if isinstance(value, int) else value)
    driver = [Row("A", "tell", "A", op=TELL, send=own, effect=rise), Row("A", "tell_there", "A", op=other, send=own)]
    worker = [Row("A", "hear", "B", op=TELL, effect=hear)]
    worker += [Row("B", "hear_there", "A", op=other, send=own if shown == "put in" else None)]
    protocol = program(driver, worker, TELL, other, frame=frame)
    roles = [replace(role, start=lambda finite: 0) for role in protocol.roles]
    protocol = replace(protocol, driver=roles[0], worker=roles[1])
    with pytest.raises(ModelError, match=r"worker in [AB]: a worker may meet ids while rank0 is any number"):
        anysize.explore(Crowd(Network(protocol, Scope(), faults=0)), [NO_FALSE_ABORT], at_most_4000)


def at_most_4000(states: int, depth: int, queue: int) -> None:
    assert states <= 4000, "it was not refused"


def test_a_heap_without_ids_has_an_end() -> None:
    driver, worker = [Row("A", "tell", "A", op=TELL)], [Row("A", "hear", "A", op=TELL)]
    one = Network(program(driver, worker, TELL), Scope(3), faults=0)
    search = anysize.explore(Crowd(one), [NO_DEADLOCK])
    assert any(any(state.heaps) for state in search.states)
    assert Containment(one).whole().nothing


def test_a_barrier_of_counters_is_a_function_of_the_set() -> None:
    """Everybody counts to two, and passes once everybody has come as far."""

    def more(v: int, data: object) -> bool:
        """not twice yet"""
        return v < 2

    def count(v: int, data: object) -> int:
        return v + 1

    rows = (Row("A", "arrive", "B", guards=(more,), effect=count), Row("B", "leave", "A", gate=Meet()))
    states = (State("A", ""), State("B", ""))
    role = Role("rank", "A", states, rows, lambda finite: 0)
    protocol = Protocol("barrier", "1", replace(role, name="rank0"), role, (), counter=lambda v: v)
    for workers in (1, 2, 3):
        assert Containment(Network(protocol, Scope(workers + 1), faults=0)).whole().nothing


# ── confirmed, or possibly spurious ─────────────────────────────────────────────────────────────────


def differing(needed: int) -> Protocol:
    """Each worker answers with one of three values; with `needed` different ones rank0 gives up."""

    def answers(v: object, scope: Scope) -> tuple[str, ...]:
        return ("x", "y", "z")

    def differ(v: Any, data: object) -> bool:
        """too many different answers came"""
        return len(v) > needed

    def agree(v: Any, data: object) -> bool:
        """few enough different answers came"""
        return len(v) <= needed

    def keep(v: object, data: object) -> object:
        return data

    driver = [
        Row("A", "ask", "B", op=ASK, effect=keep),
        Row("B", "agree", "END", guards=(agree,)),
        Row("B", "differ", "LOST", By.VIOLATION, guards=(differ,)),
        Row("LOST", "abort", "LOST_END"),
    ]
    worker = [
        Row("A", "decide", "B", choices=answers, effect=keep),
        Row("B", "answer", "END", op=ASK, send=lambda v: v),
    ]
    return program(driver, worker, ASK)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Question]:
    """A question about the protocol in which so many workers differ."""

    def question(needed: int) -> Question:
        monkeypatch.setattr("genlock.model.question.load", lambda name, params: differing(needed))
        return asked("differing", faults=0)

    return question


def test_a_violation_is_confirmed_on_the_smallest_network_that_has_it(source: Callable[[int], Question]) -> None:
    for needed, ranks in ((1, 2), (2, 3), (3, 4)):
        proof = prove(source(needed), [NO_FALSE_ABORT.name])
        assert (proof.status, proof.tried) == (Exit.VIOLATED, ranks)
        assert proof.counterexample is not None
        assert proof.counterexample.ranks == ranks


def test_a_violation_that_no_network_tried_shows_is_possibly_spurious(
    source: Callable[[int], Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anysize, "CONFIRM_UP_TO", 3)
    proof = prove(source(3), [NO_FALSE_ABORT.name])
    assert (proof.status, proof.counterexample, proof.tried) == (Exit.UNKNOWN, None, 3)
    assert [p.name for p in proof.spurious] == [NO_FALSE_ABORT.name]
    text = anysize_report.as_text(proof)
    assert "possibly spurious: no network of 2 to 3 ranks shows it" in text
    assert "rank0 differ" in text
    data = anysize_report.as_json(proof)
    assert (data["verdict"], data["properties"][0]["holds"], data["counterexample"]) == ("unknown", None, None)
    assert data["possibly_spurious"][0]["steps"][-1] == "rank0 differ"
    suite = ElementTree.fromstring(anysize_report.as_junit(proof))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


def test_a_network_too_large_to_try_is_not_tried(
    source: Callable[[int], Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anysize, "CONFIRM_STATES", 0)
    proof = prove(source(1), [NO_FALSE_ABORT.name])
    assert (proof.status, proof.tried) == (Exit.UNKNOWN, 0)
    assert "every network is too large to try" in anysize_report.as_text(proof)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


def genlock(line: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, line, prog_name="genlock")
    return result.exit_code, result.output


def test_the_command_says_what_holds_and_what_it_does_not_cover() -> None:
    status, output = genlock("check tp_v0 --any-world-size --chunks 1 --faults 0 --format json")
    found = json.loads(output)
    assert (status, found["ranks"], found["engine"], found["verdict"]) == (0, "any", "any-world-size", "holds")
    assert {"no_stranding", "crash_over_hang", "clean_shutdown"} <= set(found["not_covered"])
    status, output = genlock("check tp_v0 --any-world-size --chunks 1 --faults 0")
    assert "any number of workers" in output
    assert "Not covered" in output
    assert "no_stranding, crash_over_hang, clean_shutdown" in output
    assert ElementTree.fromstring(genlock("check tp_v0 --any-world-size --chunks 1 --faults 0 --format junit")[1])


def test_the_command_refuses_what_it_does_not_cover() -> None:
    assert genlock("check examples/protocol_m.py --any-world-size")[0] == Exit.USAGE
    assert genlock("check --any-world-size --property no_stranding")[0] == Exit.USAGE
    with pytest.raises(UsageError, match="`no_stranding` is not covered"):
        prove(asked(), ["no_stranding"])


def test_a_confirmed_counterexample_is_written_out(tmp_path: Path) -> None:
    proof = prove(asked(mutant="FM-16"), ["no_mispairing"])
    anysize_report.write(proof, tmp_path)
    assert json.loads((tmp_path / "check.json").read_text())["counterexample"]["confirmed_at_ranks"] == 2
    assert "Confirmed on a network of 2 ranks" in (tmp_path / "check.txt").read_text()
    assert {p.name for p in tmp_path.iterdir()} >= {"counterexample.svg", "counterexample.mmd", "scenario.json"}
    suite = ElementTree.fromstring(anysize_report.as_junit(proof))
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")


def test_a_named_worker_of_a_fault_is_any_worker() -> None:
    """`rank3` of a world of any size is one of its workers, and no worker is told from another."""

    def crashing(*ranks: int | None) -> set[str]:
        one = Crowd(Network(TP_V0, Scope(), kinds={CRASH: frozenset(Point("STARTUP", rank) for rank in ranks)}))
        first, _ = one.initial()
        return {hop.who for hop, _ in one.successors(first) if hop.event == CRASH}

    assert crashing(3) == crashing(1) == {"a worker"}
    assert crashing(0) == crashing(None) == {"rank0"}
    assert crashing(0, 3) == {"rank0", "a worker"}
