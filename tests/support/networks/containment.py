"""Whether the search over any number of workers has every state and move of a network in it.

The abstraction uses none of the search's moves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from genlock.model.checker.parametric import abstract_state, prove
from genlock.model.checker.parametric.abstract_network import AbstractNetwork
from genlock.model.checker.parametric.abstract_state import DRIVER, WORKER, AbstractState, Lane, Lost
from genlock.model.checker.parametric.prove import NO_DEADLOCK
from genlock.model.semantics.faults import with_faults
from genlock.model.semantics.network import Move, Network, NetworkState
from genlock.model.tables import Protocol, Scope

# ── from a network's state to the abstract ──────────────────────────────────────────────────────────


class Abstraction:
    """What a state of a network is in the search over any number of workers. It uses none of the search's moves."""

    def __init__(self, network: Network) -> None:
        self.network, self.searched = network, AbstractNetwork(network)
        self.lanes = self.searched.lanes
        self._columns: dict[tuple[tuple[int, ...], int], tuple[abstract_state.Column, ...]] = {}

    def __call__(self, state: NetworkState, singles: frozenset[int]) -> AbstractState:
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
            AbstractState(
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
        on, *_ = self.searched.local_steps(role, self.lanes.numbers[role](awake))
        if not local.stalled:
            return on
        return self.lanes.put(role, on, self.lanes.lts[role].stalled(self.lanes.lane(role, on).local, True))

    def gone(self, state: NetworkState) -> int:
        local = self.network.lts[0].locals.items[state.locals[0]]
        return self.lanes.gone(self.lanes.lts[DRIVER].locals(local), self.columns(state, 0))

    def columns(self, state: NetworkState, rank: int) -> tuple[abstract_state.Column, ...]:
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

    def covered(self, state: AbstractState, among: set[AbstractState]) -> bool:
        """Whether one of these allows all that `state` does: the same, or with more in a heap, or once a rank has
        failed with fewer faults spent. Without rank0 there is nothing to count ids from, so that they may all be off.
        """
        if state in among:
            return True
        rank0 = self.lanes.lts[DRIVER].locals.items[self.lanes.lane(DRIVER, state.driver).local]
        frames = [state] if rank0.vars is not None else [self.lanes.rebase(state, by) for by in range(4)]
        return any(_allows(wide, frame) for wide in among for frame in frames)


def _allows(wide: AbstractState, state: AbstractState) -> bool:
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
        self.searched = self.abstraction.searched
        first, seen, _ = self.searched.initial()
        self.outside, self._concrete, self._abstract = Outside(), set[str](), set(seen)
        self._after: dict[AbstractState, set[AbstractState]] = {}
        self._stands: dict[AbstractState, bool] = {}
        self._states: dict[Struck, AbstractState] = {}
        assert self.abstraction(network.initial(), frozenset()) == first

    def step(self, here: Struck, wide: AbstractState) -> Iterator[tuple[Struck, AbstractState]]:
        """Where a state leads, each move held against those of the abstract state that it is in."""
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

    def _expand(self, state: AbstractState) -> None:
        if state in self._after:
            return
        hops = list(self.searched.successors(state))
        self._after[state] = {state, *(after for _, after in hops)}
        self._abstract.update(name for hop, _ in hops for name in hop.seen)
        certain = any(hop.certain for hop, _ in hops)
        self._stands[state] = NO_DEADLOCK.name in prove.judged(self.searched, state, certain)

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
