"""Models any number of workers at once: rank0, the *set* of lanes that workers are in, and faulty workers singly.

What a rank may do is a function of rank0's lane and of which lanes are occupied, so that every state of a network,
whatever its size, is one of these states, and each of its moves one of these moves (`docs/any-world-size.md` has the
argument, `tests/model/checker/parametric/test_prove.py` holds it against concrete networks).

Three things allow more than a network does, so that the states stay few: nothing bounds how far rank0 runs ahead of
the slowest worker, as that bound grows with the world; broadcasts that differ in nothing but their ids are a *heap*
(`abstract_state.py`), however many they are; of a dead worker only what it had put in is kept: nobody waits for it.

Left out: what cannot be told of a set: who is who, how many, and how long anything takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from ....errors import ModelError
from ...semantics import transport
from ...semantics.lts import Info, Step
from ...semantics.network import CRASH, STALL, Network, Point
from ...semantics.properties import NO_MISPAIRING
from ...tables import By, Collective, Data, Meet
from ..reference import Taken
from .abstract_state import DRIVER, WORKER, AbstractState, Column, Lanes, Lost, before
from .local_steps import ELSEWHERE, LocalSteps, refuse


class Hop(NamedTuple):
    """Holds one move.

    `certain`: in every network that the state stands for it, or the like of it, is bound to be possible, and takes the
    rank somewhere else.
    """

    who: str
    event: str
    edge: str
    """As in `network.Move`."""
    certain: bool
    seen: tuple[str, ...]
    taken: tuple[Taken, ...] = ()
    """The rows that are taken to their ends, those of local steps with them."""


class _Member(NamedTuple):
    """Holds a lane with somebody in it."""

    role: int
    number: int
    info: Info
    single: bool


class _Outcome(NamedTuple):
    """Holds what a move makes of the rank: its new lane, or None for a worker that has failed, having put in `lost`."""

    hop: Hop
    lane: int | None
    lost: frozenset[Lost] = frozenset()
    cost: int = 0
    struck: bool = False
    """From here on the worker is counted singly."""


_Entry = tuple[int, bool]
"""Holds what a member has put in, and whether it has come to its end."""


class _Pairing(NamedTuple):
    """Holds what a collective does for one member, given the set of what is in it."""

    may: bool
    must: bool
    delivered: Data
    mispaired: bool
    gone: bool
    """A member that it waits for has come to its end."""


class AbstractNetwork:
    """Makes the moves of a network's protocol over any number of workers, whatever that network's own number is."""

    def __init__(self, network: Network) -> None:
        refuse(network.protocol)
        self.protocol, self.kinds = network.protocol, network.kinds
        self.faults, self.detection = network.faults, network.detection
        self._failed = {s.name for s in network.protocol.worker.states if s.failed}
        self.lanes = Lanes(network.protocol, network.scope, stream=network.stream)
        streams = network.protocol.streams if network.stream else ()
        self._streams = [self.lanes.group[g] for g in streams if g in self.lanes.group]
        self.local_steps = LocalSteps(self.lanes, network.kinds)
        self._pairings: dict[tuple[int, int, _Entry, frozenset[_Entry]], _Pairing] = {}

    def initial(self) -> tuple[AbstractState, tuple[str, ...], tuple[Taken, ...]]:
        """Return all ranks at the start of their tables, one worker at least; and what is seen and taken at once."""
        driver, seen, taken = self.local_steps(DRIVER, self.lanes.start(DRIVER))
        worker, also, too = self.local_steps(WORKER, self.lanes.start(WORKER))
        heaps: tuple[tuple[int, ...], ...] = ((),) * len(self.lanes.group)
        first = AbstractState(driver, frozenset({worker}), (), frozenset(), heaps, False, 0)
        return self.lanes.normal(first), seen + also, taken + too

    def successors(self, state: AbstractState) -> Iterator[tuple[Hop, AbstractState]]:
        """Yield every move that some network could make from here, with the state that it leads to."""
        self._puts_in_no_ids(state)
        members = self._members(state)
        for me in members:
            for outcome in self._outcomes(state, members, me):
                for after in self._after(state, me, outcome):
                    yield outcome.hop, self.lanes.normal(after)

    def _members(self, state: AbstractState) -> list[_Member]:
        info = self.lanes.info
        found = [_Member(DRIVER, state.driver, info(DRIVER, state.driver), False)]
        found += (_Member(WORKER, n, info(WORKER, n), False) for n in sorted(state.occupied))
        found += (_Member(WORKER, n, info(WORKER, n), True) for n in state.singles)
        return found

    def _after(self, state: AbstractState, me: _Member, outcome: _Outcome) -> Iterator[AbstractState]:
        """Yield the state with the mover's lane replaced: it was the last one there, or others stay."""
        lane, faults = outcome.lane, state.faults + outcome.cost
        if me.role == DRIVER and lane is not None:
            failed = state.failed or self.lanes.info(DRIVER, lane).failed
            yield state._replace(driver=lane, dead=state.dead | outcome.lost, failed=failed, faults=faults)
            return
        after = state._replace(failed=state.failed or lane is None, faults=faults)
        if lane is None:
            after = after._replace(dead=state.dead | outcome.lost)
        if me.single:
            left = list(state.singles)
            left.remove(me.number)
            yield after._replace(singles=tuple(sorted(left if lane is None else [*left, lane])))
            return
        singles = state.singles if lane is None or not outcome.struck else tuple(sorted((*state.singles, lane)))
        joins = frozenset() if lane is None or outcome.struck else frozenset({lane})
        for stays in (state.occupied, state.occupied - {me.number}):
            yield after._replace(occupied=stays | joins, singles=singles)

    # ── what one member may do ──────────────────────────────────────────────────────────────────────

    def _outcomes(self, state: AbstractState, members: Sequence[_Member], me: _Member) -> Iterator[_Outcome]:
        for group in self._streams:
            yield from self._on_device(state, members, me, group)
        if me.info.terminal:
            return
        if me.info.stalled:
            yield self._arrives(self._hop(me, "resume", "resume"), me, self._stalled(me, False))
            if self.detection:
                yield from self._fails(state, self._hop(me, "killed", "killed"), me, self._local(me))
            return
        if me.info.op is not None:
            yield from self._completion(state, members, me, me.info.op)
        menu = self.lanes.lts[me.role].menu(self._local(me))
        for step in menu.own:
            if self._open(members, me, step):
                yield from self._taken(state, me, step)
        if state.faults < self.faults:
            for outcome in self._strikes_of(state, members, me, menu.faults):
                yield outcome._replace(cost=1, struck=True)
        if self.detection and menu.detects and (state.failed or self._gone_for(state, members, me)):
            for step in menu.detects:
                yield from self._taken(state, me, step)

    def _strikes_of(
        self, state: AbstractState, members: Sequence[_Member], me: _Member, rows: Sequence[Step]
    ) -> Iterator[_Outcome]:
        for step in rows:
            if self._strikes(step.row.fault, state, members, me):
                yield from self._taken(state, me, step)
        if self._strikes(CRASH, state, members, me):
            yield from self._fails(state, self._hop(me, CRASH, CRASH), me, self._local(me))
        if self._strikes(STALL, state, members, me):
            yield _Outcome(self._hop(me, STALL, STALL), self._stalled(me, True))

    def _strikes(self, kind: str, state: AbstractState, members: Sequence[_Member], me: _Member) -> bool:
        """Return whether a fault strikes a member, as `Network` has it.

        A point that names a worker means any worker, and once some rank has failed, a point in a failed state is met.
        """
        if kind not in self.kinds:
            return False
        points = self.kinds[kind]
        if points is None:
            return True
        if kind not in (CRASH, STALL):
            return any(me.info.state == p.state and _names(p, me.role, default=None) for p in points)
        met = {m.info.state for m in members}.union(self._failed if state.failed else ())
        return any(p.state in met and _names(p, me.role, default=0) for p in points)

    def _stalled(self, me: _Member, stalled: bool) -> int:
        return self.lanes.put(me.role, me.number, self.lanes.lts[me.role].stalled(self._local(me), stalled))

    def _taken(self, state: AbstractState, me: _Member, step: Step) -> Iterator[_Outcome]:
        """Yield the outcomes of a step of the tables: the rank moves, issues a collective, or fails."""
        certain = step.row.by not in (By.FAULT, By.DETECTION) and step.target != self._local(me)
        hop = self._hop(me, step.row.event, step.edge, certain, step.seen)
        hop = hop._replace(taken=self.lanes.taken(me.role, step))
        if self.lanes.lts[me.role].info(step.target).failed:
            yield from self._fails(state, hop, me, step.target)
        else:
            yield self._arrives(hop, me, self.local_steps.stepped(me.role, me.number, step))

    def _arrives(self, hop: Hop, me: _Member, lane: int) -> _Outcome:
        on, seen, taken = self.local_steps(me.role, lane)
        if seen or taken:
            hop = hop._replace(seen=hop.seen + seen, taken=hop.taken + taken)
        return _Outcome(hop, on)

    def _fails(self, state: AbstractState, hop: Hop, me: _Member, local: int) -> Iterator[_Outcome]:
        """Yield what becomes of a rank that fails at `local`.

        It may have been brought on to collectives that it never came to issue.
        """
        columns = self.lanes.lane(me.role, me.number).columns
        for issued in product(*map(_may_have_issued, columns)):
            if me.role == WORKER:
                yield _Outcome(hop, None, frozenset(_put_in(issued)))
                continue
            gone = self.lanes.gone(local, issued)
            yield _Outcome(hop, gone)
            if state.failed and issued != columns:  # what it never issued may be there from a dead worker
                for other in product(*map(_may_have_issued, columns)):
                    yield _Outcome(hop, gone, frozenset(_put_in(other)))

    def _open(self, members: Sequence[_Member], me: _Member, step: Step) -> bool:
        """Return whether the step's gate is open, and its stream has run dry."""
        if step.row.syncs and any(self._outstanding(me, group) is not None for group in self._streams):
            return False
        if isinstance(step.row.gate, Meet):
            return all(m.info.counter >= me.info.counter for m in members)
        return True

    # ── collectives ─────────────────────────────────────────────────────────────────────────────────

    def _completion(
        self, state: AbstractState, members: Sequence[_Member], me: _Member, op: Collective
    ) -> Iterator[_Outcome]:
        """Yield the completion of the collective that the host waits in, after all that it had issued before."""
        group = self.lanes.group[op.group]
        column = self.lanes.lane(me.role, me.number).columns[group]
        at = len(column) - 1
        pairing = self._pairing(state, members, me, group)
        if pairing is None or not pairing.may or self._outstanding(me, group) != at:
            return
        self._is_given_no_ids(state, me, op, pairing.delivered)
        step = self.lanes.lts[me.role].complete(self._local(me), pairing.delivered)
        seen = step.seen + (NO_MISPAIRING.name,) * pairing.mispaired
        hop = self._hop(me, step.row.event, "complete", pairing.must, seen)
        hop = hop._replace(taken=self.lanes.taken(me.role, step))
        left = (*column[:at], -column[at])
        yield self._arrives(hop, me, self.lanes.put(me.role, me.number, step.target, group, left))
        if me.role == WORKER and at in state.heaps[group]:
            by = -self.lanes.step(self.lanes.entry(DRIVER, state.driver, group, at))
            more_to_go = self.lanes.lts[WORKER].rebased(step.target, by)
            yield self._arrives(hop, me, self.lanes.put(WORKER, me.number, more_to_go, group, column[:at]))

    def _on_device(
        self, state: AbstractState, members: Sequence[_Member], me: _Member, group: int
    ) -> Iterator[_Outcome]:
        """Yield the completion of the earliest collective on the rank's stream, unless the host waits in it."""
        at, lane = self._outstanding(me, group), self.lanes.lane(me.role, me.number)
        column, op = lane.columns[group], me.info.op
        if at is None or (at == len(column) - 1 and op is not None and self.lanes.group[op.group] == group):
            return
        pairing = self._pairing(state, members, me, group)
        if pairing is None or not pairing.may:
            return
        hop = self._hop(
            me, self.lanes.op(column[at]).name, "device", pairing.must, (NO_MISPAIRING.name,) * pairing.mispaired
        )
        left = (*column[:at], -column[at], *column[at + 1 :])
        yield _Outcome(hop, self.lanes.put(me.role, me.number, lane.local, group, left))

    def _pairing(self, state: AbstractState, members: Sequence[_Member], me: _Member, group: int) -> _Pairing | None:
        """Return what the earliest collective of the group that the member is in does for it; None if it is in none."""
        at = self._outstanding(me, group)
        if at is None:
            return None
        entry = self.lanes.entry
        others = {(abs(entry(WORKER, m.number, group, at)), m.info.terminal) for m in members if m.role == WORKER}
        others.update((d.entry, True) for d in state.dead if d.group == group and d.at == at)
        root = (abs(entry(DRIVER, state.driver, group, at)), members[0].info.terminal)
        key = (me.role, entry(me.role, me.number, group, at), root, frozenset(others))
        found = self._pairings.get(key)
        if found is None:
            found = self._pairings[key] = self._paired(*key)
        return found

    def _paired(self, role: int, mine: int, root: _Entry, others: frozenset[_Entry]) -> _Pairing:
        """Return the pairing as if each different entry were one rank's."""
        entries = [root, *([(mine, False)] if role == WORKER else []), *sorted(others)]
        issued = [self.lanes.contributions.items[entry] for entry, _ in entries]
        op = self.lanes.op(mine)
        missing = transport.missing(op, role, issued)
        return _Pairing(
            transport.may_complete(op, role, issued),
            transport.must_complete(op, issued),
            transport.delivered(op, role, issued),
            transport.mispaired(op, issued),
            any(entries[m][1] for m in missing),
        )

    def _gone_for(self, state: AbstractState, members: Sequence[_Member], me: _Member) -> bool:
        """Return whether the member waits for a rank that is no longer there to come."""
        op = me.info.op
        groups = [self.lanes.group[op.group]] if op is not None else self._streams
        pairings = (self._pairing(state, members, me, group) for group in groups)
        return any(pairing is not None and pairing.gone for pairing in pairings)

    def _outstanding(self, me: _Member, group: int) -> int | None:
        """Return the place of the earliest collective of the group that the member is in."""
        column = self.lanes.lane(me.role, me.number).columns[group]
        return next((at for at, entry in enumerate(column) if entry > 0), None)

    # ── ids behind a heap ───────────────────────────────────────────────────────────────────────────

    def _behind(self, state: AbstractState, number: int) -> Iterator[int]:
        """Yield the groups in which a worker has a heap to go whose ids rise.

        Its own ids are right for that heap alone.
        """
        columns = self.lanes.lane(WORKER, number).columns
        for group, heaps in enumerate(state.heaps):
            for at in heaps:
                if before(columns[group], at) and self.lanes.step(self.lanes.entry(DRIVER, state.driver, group, at)):
                    yield group

    def _puts_in_no_ids(self, state: AbstractState) -> None:
        for number in state.workers():
            if any(self.lanes.shows_ids(number, group) for group in self._behind(state, number)):
                self._refuse(number)

    def _is_given_no_ids(self, state: AbstractState, me: _Member, op: Collective, value: Data) -> None:
        if me.role == DRIVER or not any(state.heaps) or not self.lanes.has_ids(value):
            return
        if any(group != self.lanes.group[op.group] for group in self._behind(state, me.number)):
            self._refuse(me.number)

    def _refuse(self, number: int) -> None:
        what = "a worker may meet ids while rank0 is any number of broadcasts ahead of it"
        where = f"{self.protocol.name}, worker in {self.lanes.info(WORKER, number).state}"
        raise ModelError(what, where=where, do=ELSEWHERE)

    # ── names ───────────────────────────────────────────────────────────────────────────────────────

    def _local(self, me: _Member) -> int:
        return self.lanes.lane(me.role, me.number).local

    def _hop(self, me: _Member, event: str, edge: str, certain: bool = False, seen: tuple[str, ...] = ()) -> Hop:
        who = "rank0" if me.role == DRIVER else ("the faulty worker" if me.single else "a worker")
        struck = ((me.role, "", edge),) if edge in (CRASH, STALL) else ()
        return Hop(who, event, edge, certain, seen, struck)


def _may_have_issued(column: Column) -> Iterator[Column]:
    """Yield what a rank has put into a group's collectives if it was not yet there to issue the last that it is in."""
    yield column
    while column and column[-1] > 0:
        column = column[:-1]
        yield column


def _put_in(columns: Iterable[Column]) -> Iterator[Lost]:
    return (Lost(group, at, abs(entry)) for group, column in enumerate(columns) for at, entry in enumerate(column))


def _names(point: Point, role: int, *, default: int | None) -> bool:
    """Return whether a point of a fault is about a rank of this role."""
    rank = default if point.rank is None else point.rank
    return rank is None or (rank > 0) == (role == WORKER)
