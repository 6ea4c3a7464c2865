"""Searches a small network straight from its tables, by the sentences of docs/specification.md: an oracle for fuzzing.

It shares the tables and the rules of a collective (`transport`) with the product, and nothing else: no numbered locals,
no queues of small integers, no engine. Where two groups run on device streams it takes a device for one queue, the
strictest that there is.

Left out: speed, ghosts, frames of ids, and what holds in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from genlock.model.semantics import transport
from genlock.model.semantics.network import CRASH, STALL, Network
from genlock.model.semantics.transport import Contribution
from genlock.model.tables import By, Collective, Kind, Meet, Put, Row, State, Take

DEAD = "dead"


class Refused(Exception):
    """The tables name a worker that there is not, or count further than counters go."""


NO_WORKER, TOO_LARGE = "and workers are 1 to", "too large"
"""Words of the two refusals."""


class Rank(NamedTuple):
    """Where a rank is. `pending` is the event of the collective that its host waits in."""

    state: str
    pending: str | None
    vars: Any
    stalled: bool
    device: tuple[tuple[str, int], ...]
    """Its collectives that have not completed, in the order of their issue, where several groups run on streams."""


class Entry(NamedTuple):
    """What a rank put into a collective; `left`: it has completed for this rank, or the rank is gone."""

    op: Collective
    value: Any
    left: bool = False
    lost: bool = False


Instance = tuple[Entry | None, ...]


class World(NamedTuple):
    """A network state."""

    ranks: tuple[Rank, ...]
    queues: tuple[tuple[str, tuple[Instance, ...]], ...]
    slots: tuple[tuple[tuple[str, int], Any], ...]
    faults: int


@dataclass
class Searched:
    """What the oracle found."""

    states: dict[Any, int] = field(default_factory=dict)
    transitions: int = 0
    deadlocks: int = 0
    false_abort: bool = False
    mispaired: bool = False
    stranded: bool = False
    """Before a fault and a failure, some live rank can never advance again by ordinary steps."""


class Oracle:
    """The moves of a network, as its tables and the specification have them."""

    def __init__(self, network: Network) -> None:
        self.network, self.protocol, self.count = network, network.protocol, network.ranks
        used = {r.op.group for role in self.protocol.roles for r in role.rows if r.op}
        self.streams = [g for g in self.protocol.streams if g in used] if network.stream else []
        self.one_queue = len(self.streams) > 1

    def start(self) -> World:
        """Return the initial state."""
        ranks = [Rank(self.role(r).initial, None, self.role(r).start(True), False, ()) for r in range(self.count)]
        return World(tuple(ranks), tuple((group, ()) for group in self.protocol.group_names), (), 0)

    def role(self, rank: int) -> Any:
        return self.protocol.driver if rank == 0 else self.protocol.worker

    def about(self, world: World, rank: int) -> State:
        name = world.ranks[rank].state
        if name == DEAD:
            return State(DEAD, "", terminal=True, failed=True)
        found: State = self.role(rank).by_name[name]
        return found

    # ── moves ───────────────────────────────────────────────────────────────────────────────────────

    def moves(self, world: World) -> Iterator[tuple[World, int, bool, bool, bool]]:
        """Yield (next state, rank, ordinary, advances, mispaired) for every move."""
        for rank in range(self.count):
            for group in self.streams:
                yield from self.on_device(world, rank, group)
            me, about = world.ranks[rank], self.about(world, rank)
            if about.terminal:
                continue
            if me.stalled:
                yield self.put_rank(world, rank, me._replace(stalled=False)), rank, False, True, False
                if self.network.detection:
                    yield self.die(world, rank), rank, False, True, False
                continue
            yield from self.completes(world, rank)
            for by in ((By.PROTOCOL, By.VIOLATION, By.ENVIRONMENT), (By.FAULT,), (By.DETECTION,)):
                for row in self.role(rank).leaving[me.state]:
                    if row.by in by:
                        yield from self.row(world, rank, row)
            if world.faults < self.network.faults:
                if self.strikes(world, rank, CRASH):
                    dead = self.die(world, rank)
                    yield dead._replace(faults=world.faults + 1), rank, False, True, False
                if self.strikes(world, rank, STALL):
                    still = self.put_rank(world, rank, me._replace(stalled=True))
                    yield still._replace(faults=world.faults + 1), rank, False, False, False

    def row(self, world: World, rank: int, row: Row) -> Iterator[tuple[World, int, bool, bool, bool]]:
        """Yield the ways to take a row."""
        me = world.ranks[rank]
        failing = self.role(rank).by_name[row.target].failed
        if me.pending is not None and not (row.by in (By.FAULT, By.DETECTION) and failing):
            return
        own = row.by not in (By.FAULT, By.DETECTION)
        if row.by is By.FAULT and not (world.faults < self.network.faults and self.strikes(world, rank, row.fault)):
            return
        if row.by is By.DETECTION and not self.detects(world, rank, row):
            return
        if own and row.syncs and any(self.inside(world, rank, group) is not None for group in self.streams):
            return
        if own and isinstance(row.gate, Meet) and not self.all_counters_reach(world, rank):
            return
        if row.by is By.VIOLATION and self.something_fits(world, rank, row):
            return
        slots = dict(world.slots)
        at = self.slot(rank, row.gate, me.vars) if isinstance(row.gate, Take) else None
        if own and isinstance(row.gate, Take):
            given: tuple[Any, ...] = (slots[at],) if at in slots else ()
        else:
            given = tuple(row.choices(me.vars, self.network.scope)) if row.choices else (None,)
        for data in given:
            if not all(guard(me.vars, data) for guard in row.guards):
                continue
            if isinstance(row.gate, Put):  # whose slot it is, is asked only where its guards hold
                at = self.slot(rank, row.gate, me.vars)
            if own and isinstance(row.gate, Put) and at in slots:
                self.sent(row, me)
                continue
            after = self.took(world, rank, row, data, at if own else None)
            yield (
                after._replace(faults=world.faults + (row.by is By.FAULT)),
                rank,
                own,
                after.ranks[rank][:4] != me[:4],
                False,
            )

    def sent(self, row: Row, me: Rank) -> Any:
        return row.send(me.vars) if row.send else None

    def something_fits(self, world: World, rank: int, violation: Row) -> bool:
        """Whether a PROTOCOL row of the state applies, so that nothing is wrong yet."""
        v, slots = world.ranks[rank].vars, dict(world.slots)
        for row in self.role(rank).leaving[violation.state]:
            if row.by is By.PROTOCOL:
                if isinstance(row.gate, Take):
                    at = self.slot(rank, row.gate, v)
                    if at not in slots and isinstance(violation.gate, Take):
                        continue
                    if at not in slots:
                        return True
                    offered: tuple[Any, ...] = (slots[at],)
                else:
                    offered = tuple(row.choices(v, self.network.scope)) if row.choices else (None,)
                if any(all(guard(v, data) for guard in row.guards) for data in offered):
                    return True
        return False

    def took(self, world: World, rank: int, row: Row, data: Any, at: tuple[str, int] | None) -> World:
        """Return the state after a row, or after its collective was issued."""
        me, slots = world.ranks[rank], dict(world.slots)
        value = self.sent(row, me) if row.op or isinstance(row.gate, Put) else None
        if isinstance(row.gate, Put) and at is not None:
            slots[at] = value
        elif isinstance(row.gate, Take) and at is not None:
            del slots[at]
        world = world._replace(slots=tuple(sorted(slots.items())))
        if row.op is not None:
            world = self.issued(world, rank, row.op, value)
            if not self.goes_on(rank, row.op):
                return self.put_rank(world, rank, world.ranks[rank]._replace(pending=row.event))
        after = row.effect(me.vars, data) if row.effect else me.vars
        return self.arrived(world, rank, row, after)

    def arrived(self, world: World, rank: int, row: Row, after: Any) -> World:
        """Return the state with a rank at the end of a row."""
        about = self.role(rank).by_name[row.target]
        gone = (about.terminal or about.failed) and not self.protocol.keeps
        here = Rank(row.target, None, None if gone else after, False, world.ranks[rank].device)
        world = self.put_rank(world, rank, here)
        if about.failed and row.op is None:
            world = self.walked_out(world, rank)
        return self.tidied(world) if about.terminal else world

    def die(self, world: World, rank: int) -> World:
        v = world.ranks[rank].vars if self.protocol.keeps else None
        return self.tidied(self.walked_out(self.put_rank(world, rank, Rank(DEAD, None, v, False, ())), rank))

    def put_rank(self, world: World, rank: int, here: Rank) -> World:
        return world._replace(ranks=(*world.ranks[:rank], here, *world.ranks[rank + 1 :]))

    # ── collectives ─────────────────────────────────────────────────────────────────────────────────

    def queue(self, world: World, group: str) -> tuple[Instance, ...]:
        return dict(world.queues)[group]

    def with_queue(self, world: World, group: str, queue: tuple[Instance, ...]) -> World:
        return world._replace(queues=tuple((g, queue if g == group else q) for g, q in world.queues))

    def goes_on(self, rank: int, op: Collective) -> bool:
        root = op.kind is Kind.BROADCAST and op.root == 0 and rank == 0
        return op.group in self.streams and (op.kind is Kind.ALL_REDUCE or root)

    def issued(self, world: World, rank: int, op: Collective, value: Any) -> World:
        queue = list(self.queue(world, op.group))
        at = next((n for n, instance in enumerate(queue) if instance[rank] is None), len(queue))
        if at == len(queue):
            queue.append((None,) * self.count)
        queue[at] = (*queue[at][:rank], Entry(op, value), *queue[at][rank + 1 :])
        world = self.with_queue(world, op.group, tuple(queue))
        if self.one_queue and op.group in self.streams:
            me = world.ranks[rank]
            world = self.put_rank(world, rank, me._replace(device=(*me.device, (op.group, 0))))
        return world

    def inside(self, world: World, rank: int, group: str) -> int | None:
        """The place of the earliest collective of a group that a rank is in."""
        for at, instance in enumerate(self.queue(world, group)):
            entry = instance[rank]
            if entry is not None and not entry.left:
                return at
        return None

    def outcome(self, world: World, rank: int, group: str) -> tuple[int, Any, bool, bool] | None:
        """(place, what is delivered, bound to complete, mispaired) of that collective, if it may complete."""
        at = self.inside(world, rank, group)
        if at is None or (self.one_queue and world.ranks[rank].device[:1] not in ((), ((group, 0),))):
            return None
        queue = self.queue(world, group)
        issued = [e and Contribution(e.op, e.value, e.lost) for e in queue[at]]
        mine = queue[at][rank]
        assert mine is not None
        done = [sum(instance[r] is not None for instance in queue) for r in range(self.count)]
        if not transport.may_complete(mine.op, rank, issued) or not transport.in_reach(at, done):
            return None
        value = transport.delivered(mine.op, rank, issued)
        return at, value, transport.must_complete(mine.op, issued), transport.mispaired(mine.op, issued)

    def left(self, world: World, rank: int, group: str, at: int) -> World:
        queue = list(self.queue(world, group))
        mine = queue[at][rank]
        assert mine is not None
        queue[at] = (*queue[at][:rank], mine._replace(left=True), *queue[at][rank + 1 :])
        me = world.ranks[rank]
        if me.device:
            world = self.put_rank(world, rank, me._replace(device=me.device[1:]))
        return self.with_queue(world, group, tuple(queue))

    def latest(self, world: World, rank: int, group: str, at: int) -> bool:
        """Whether a rank has issued nothing in this group after the collective at this place."""
        return all(instance[rank] is None for instance in self.queue(world, group)[at + 1 :])

    def completes(self, world: World, rank: int) -> Iterator[tuple[World, int, bool, bool, bool]]:
        me = world.ranks[rank]
        if me.pending is None:
            return
        row = self.role(rank).row(me.state, me.pending)
        found = self.outcome(world, rank, row.op.group)
        if found is None or not self.latest(world, rank, row.op.group, found[0]):
            return
        at, value, must, mispaired = found
        after = row.effect(me.vars, value) if row.effect else me.vars
        world = self.left(world, rank, row.op.group, at)
        yield self.tidied(self.arrived(world, rank, row, after)), rank, must, True, mispaired

    def on_device(self, world: World, rank: int, group: str) -> Iterator[tuple[World, int, bool, bool, bool]]:
        found = self.outcome(world, rank, group)
        me = world.ranks[rank]
        if found is None:
            return
        waits = me.pending is not None and self.role(rank).row(me.state, me.pending).op.group == group
        if waits and self.latest(world, rank, group, found[0]):
            return
        yield self.tidied(self.left(world, rank, group, found[0])), rank, found[2], False, found[3]

    def walked_out(self, world: World, rank: int) -> World:
        """Return the state with a rank out of every collective: what it put in is there, and lost."""
        for group, queue in world.queues:
            new = tuple(
                (*i[:rank], e._replace(left=True, lost=True), *i[rank + 1 :]) if (e := i[rank]) and not e.left else i
                for i in queue
            )
            world = self.with_queue(world, group, new)
        return self.put_rank(world, rank, world.ranks[rank]._replace(device=()))

    def tidied(self, world: World) -> World:
        """Return the state without the collectives that all have left, or have ended without."""
        gone = [a.terminal and not a.failed for a in (self.about(world, r) for r in range(self.count))]
        for group, queue in world.queues:
            rest = queue
            while rest and all(e.left if e else gone[r] for r, e in enumerate(rest[0])):
                rest = rest[1:]
            world = self.with_queue(world, group, rest)
        return world

    # ── conditions ──────────────────────────────────────────────────────────────────────────────────

    def slot(self, rank: int, gate: Put | Take, v: Any) -> tuple[str, int]:
        whose = gate.worker(v) if gate.worker else rank
        if not 1 <= whose < self.count:
            raise Refused(NO_WORKER)
        return gate.slot.name, whose

    def counts_too_far(self, v: Any) -> bool:
        counter = self.protocol.counter
        return counter is not None and v is not None and abs(counter(v)) >= 1 << 31

    def all_counters_reach(self, world: World, rank: int) -> bool:
        counter = self.protocol.counter
        counts = [counter(r.vars) if counter and r.vars is not None else 0 for r in world.ranks]
        return min(counts) >= counts[rank]

    def strikes(self, world: World, rank: int, kind: str) -> bool:
        if kind not in self.network.kinds:
            return False
        points = self.network.kinds[kind]
        if points is None:
            return True
        if kind in (CRASH, STALL):
            states = {r.state for r in world.ranks}
            return any(rank == (p.rank or 0) and p.state in states for p in points)
        return any(world.ranks[rank].state == p.state and p.rank in (None, rank) for p in points)

    def detects(self, world: World, rank: int, row: Row) -> bool:
        if not self.network.detection or row.event == "deadline":
            return False
        if any(self.about(world, r).failed for r in range(self.count)):
            return True
        return any(self.about(world, r).terminal for r in self.missing(world, rank))

    def missing(self, world: World, rank: int) -> tuple[int, ...]:
        """The members that a rank waits for in the collective that it is in."""
        me = world.ranks[rank]
        groups = [self.role(rank).row(me.state, me.pending).op.group] if me.pending is not None else self.streams
        for group in groups:
            at = self.inside(world, rank, group)
            if at is None:
                continue
            entries = self.queue(world, group)[at]
            mine = entries[rank]
            assert mine is not None
            absent = [r for r, e in enumerate(entries) if e is None and r != rank]
            needed = [r for r in absent if r in transport.depends_on(mine.op, rank, self.count)]
            odd = [r for r, e in enumerate(entries) if e and (e.lost or not transport.same_on_the_wire(e.op, mine.op))]
            found = tuple(needed or absent or odd)
            if found:
                return found
        return ()


def search(network: Network, limit: int = 5000) -> Searched | None:
    """Search every state; None where there are more than `limit`. Raise Refused where an index is out of range."""
    oracle, found = Oracle(network), Searched()
    start = oracle.start()
    found.states[start] = 0
    todo, back = [start], list[list[tuple[int, bool, int]]]([[]])
    judged: list[int] = []
    while todo:
        world = todo.pop()
        if any(oracle.counts_too_far(me.vars) for me in world.ranks):
            raise Refused(TOO_LARGE)
        here, moved = found.states[world], False
        about = [oracle.about(world, r) for r in range(network.ranks)]
        failed = any(a.failed for a in about)
        found.false_abort |= failed and not world.faults
        if not world.faults and not failed:
            judged.append(here)
        for after, rank, ordinary, advances, mispaired in oracle.moves(world):
            moved, found.transitions = True, found.transitions + 1
            found.mispaired |= mispaired
            if after not in found.states:
                found.states[after] = len(found.states)
                back.append([])
                todo.append(after)
                if len(found.states) > limit:
                    return None
            if ordinary:
                back[found.states[after]].append((here, advances, rank))
        found.deadlocks += not moved and not all(a.terminal for a in about)
    found.stranded = stranded(list(found.states), back, judged, oracle, network.ranks)
    return found


def stranded(
    worlds: list[Any], back: list[list[tuple[int, bool, int]]], judged: list[int], oracle: Any, ranks: int
) -> bool:
    """Whether some live rank can never advance again by ordinary steps, from one of the states that are judged.

    `back` has, per state, whence an ordinary move leads to it, whether its rank advances, and which that is.
    """
    for rank in range(ranks):
        good = _can_advance(back, rank)
        if any(n not in good and not oracle.about(worlds[n], rank).terminal for n in judged):
            return True
    return False


def refusal_ahead(network: Network, found: Searched) -> str | None:
    """Return why tables may be refused all the same: an index, or a counter, of a row that no state has open."""
    oracle = Oracle(network)
    met = {(min(r, 1), me.state, me.vars) for world in found.states for r, me in enumerate(world.ranks)}
    for role, state, v in met:
        rows = oracle.role(role).leaving.get(state, ())
        picks = [worker for row in rows if isinstance(row.gate, Put | Take) and (worker := row.gate.worker)]
        if any(not 1 <= pick(v) < network.ranks for pick in picks):
            return NO_WORKER
        after = [row.effect(v, data) for row in rows if row.effect for data in (None, 0, 1, frozenset({0}))]
        if any(map(oracle.counts_too_far, after)):
            return TOO_LARGE
    return None


def _can_advance(back: list[list[tuple[int, bool, int]]], rank: int) -> set[int]:
    """The states from which some ordinary path leads to a step in which the rank advances."""
    good = {here for edges in back for here, advances, r in edges if advances and r == rank}
    todo = list(good)
    while todo:
        for here, _, _ in back[todo.pop()]:
            if here not in good:
                good.add(here)
                todo.append(here)
    return good
