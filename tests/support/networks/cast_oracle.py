"""Searches a small network of a cast straight from its tables, by the sentences of docs/specification.md.

A second witness for groups, results, channels, cells, links, posts and interrupts: it shares the tables with the
product, and nothing else. A state is nested tuples; a collective's rules stand here once more.

Left out: driver and workers, slots and streams (`oracle.py`), speed, and what holds in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from genlock.model.semantics.network import CRASH, STALL, Network
from genlock.model.tables import (
    EMPTY,
    By,
    Cell,
    Collective,
    Fifo,
    Kind,
    Link,
    Meet,
    Poll,
    Put,
    Receive,
    Row,
    See,
    Send,
    Sent,
    Set,
    State,
    Take,
)
from oracle import DEAD, Refused, Searched, stranded

TOO_MANY = "messages wait on one way"
MOST = 64
OWN = (By.PROTOCOL, By.VIOLATION, By.ENVIRONMENT)


class Rank(NamedTuple):
    """Where a rank is. `inside` is the event of what it waits in: a collective, a send or a receive."""

    state: str
    inside: str | None
    vars: Any
    stalled: bool


class Part(NamedTuple):
    """What a member put into a collective. `left`: it has completed for it, or it is gone; `lost`: it went inside."""

    op: Collective
    value: Any
    left: bool = False
    lost: bool = False


class Letter(NamedTuple):
    """A message on its way. `sure`: bound to arrive."""

    value: Any
    sure: bool = True


Meeting = tuple[Part | None, ...]
Team = tuple[str, tuple[int, ...]]


class World(NamedTuple):
    """A network state."""

    ranks: tuple[Rank, ...]
    teams: tuple[tuple[Meeting, ...], ...]
    """Per list of a group the collectives that are not over."""
    shared: tuple[Any, ...]
    """Per channel its content, per cell its value, per way of a link (letters, whether the next is asked for)."""
    faults: int


class Move(NamedTuple):
    after: World
    rank: int
    ordinary: bool
    advances: bool
    mispaired: bool = False
    owed: bool = False
    by_device: bool = False


class CastOracle:
    """The moves of a network of a cast."""

    def __init__(self, network: Network) -> None:
        self.network, self.protocol, self.scope = network, network.protocol, network.scope
        self.count = network.ranks
        self.role_of = {rank: role for role in self.protocol.cast for rank in role.ranks(self.scope)}  # type: ignore[misc]
        declared = {group.name: group for group in self.protocol.groups}
        self.teams: list[Team] = []
        for name in dict.fromkeys(op.group for op in self.protocol.schedule):
            lists = declared[name].members(self.scope) if name in declared else [range(self.count)]
            self.teams += [(name, tuple(members)) for members in lists if tuple(members)]
        self.keys: list[tuple[Any, Any]] = []
        for thing in self.protocol.shared:
            if isinstance(thing, Link):
                self.keys += [(thing, (a, b)) for a in range(self.count) for b in range(self.count) if a != b]
            else:
                self.keys += [
                    (thing, key) for key in ([None] if thing.keys is None else dict.fromkeys(thing.keys(self.scope)))
                ]
        self.posted = {row.op.group for role in self.protocol.cast for row in role.rows if row.posts and row.op}

    def start(self) -> World:
        """Return the initial state."""
        ranks = []
        for rank in range(self.count):
            role = self.role_of[rank]
            v = role.start_at(rank, self.scope) if role.start_at else role.start(True)
            ranks.append(Rank(role.initial, None, v, False))
        empty = [
            thing.initial if isinstance(thing, Cell) else ((), False) if isinstance(thing, Link) else ()
            for thing, _ in self.keys
        ]
        return World(tuple(ranks), tuple(() for _ in self.teams), tuple(empty), 0)

    def about(self, world: World, rank: int) -> State:
        name = world.ranks[rank].state
        return State(DEAD, "", terminal=True, failed=True) if name == DEAD else self.role_of[rank].by_name[name]

    # ── moves ───────────────────────────────────────────────────────────────────────────────────────

    def moves(self, world: World) -> Iterator[Move]:
        """Yield every move."""
        for rank in range(self.count):
            for team in self.devices(rank):
                yield from self.on_device(world, rank, team)
            me = world.ranks[rank]
            if self.about(world, rank).terminal:
                continue
            if me.stalled:
                yield Move(self.place(world, rank, me._replace(stalled=False)), rank, False, True)
                if self.network.detection:
                    yield Move(self.dead(world, rank), rank, False, True, owed=True)
                continue
            if me.inside is not None:
                yield from self.ends(world, rank)
            for row in self.role_of[rank].leaving[me.state]:
                if row.by in OWN:
                    yield from self.own(world, rank, row)
            yield from self.struck(world, rank)

    def struck(self, world: World, rank: int) -> Iterator[Move]:
        me, spent = world.ranks[rank], world.faults + 1
        may_fail = world.faults < self.network.faults
        for row in self.role_of[rank].leaving[me.state]:
            fails = self.role_of[rank].by_name[row.target].failed
            if row.by in OWN or (me.inside is not None and not fails) or not self.wants(row, me.vars, None):
                continue
            if row.by is By.FAULT and may_fail and self.strikes(world, rank, row.fault):
                yield Move(self.taken(world._replace(faults=spent), rank, row, None), rank, False, True)
            if row.by is By.DETECTION and self.notices(world, rank) and row.event != "deadline":
                yield Move(self.taken(world, rank, row, None), rank, False, True, owed=True)
        if may_fail and self.strikes(world, rank, CRASH):
            yield Move(self.dead(world, rank)._replace(faults=spent), rank, False, True)
        if may_fail and self.strikes(world, rank, STALL):
            yield Move(self.place(world, rank, me._replace(stalled=True))._replace(faults=spent), rank, False, False)

    def own(self, world: World, rank: int, row: Row) -> Iterator[Move]:
        """Yield the ways to take a row of the rank's own."""
        me = world.ranks[rank]
        if me.inside is not None and not row.interrupts:
            return
        if row.syncs and any(self.meeting(world, team, rank) is not None for team in self.devices(rank)):
            return
        if isinstance(row.gate, Meet) and not self.all_there(world, rank):
            return
        if row.by is By.VIOLATION and self.nothing_wrong(world, rank, row):
            return
        for data in self.given(world, rank, row):
            if self.wants(row, me.vars, data):
                at = self.through(world, rank, row)
                if at is not None:
                    after = self.taken(at, rank, row, data)
                    asked_for = row.by is By.ENVIRONMENT
                    yield Move(after, rank, True, after.ranks[rank] != me, owed=not asked_for)

    def given(self, world: World, rank: int, row: Row) -> list[Any]:
        """What the row may be given: what is there, a choice, or nothing."""
        v = world.ranks[rank].vars
        if isinstance(row.gate, Take | Poll | See):
            content = world.shared[self.where(rank, row, v)]
            if isinstance(row.gate, See):
                return [content]
            return [content[0]] if content else [EMPTY] if isinstance(row.gate, Poll) else []
        return list(row.choices(v, self.scope)) if row.choices else [None]

    def through(self, world: World, rank: int, row: Row) -> World | None:
        """Return the state with the row's gate gone through; None while it is closed."""
        gate, v = row.gate, world.ranks[rank].vars
        if gate is None or isinstance(gate, Meet):
            return world
        at = self.where(rank, row, v)
        content = world.shared[at]
        if isinstance(gate, Put):
            full = isinstance(gate.slot, Fifo) and len(content) >= gate.slot.capacity
            return None if full else self.holding(world, at, (*content, self.sends(row, v)))
        if isinstance(gate, Take | Poll):
            return self.holding(world, at, content[1:])
        if isinstance(gate, Set):
            return self.holding(world, at, self.sends(row, v))
        if isinstance(gate, See):
            return world
        letters, asked = content
        if isinstance(gate, Receive):
            return self.holding(world, at, (letters, True))
        if isinstance(gate, Sent):
            return world if len(letters) <= asked else None
        if len(letters) >= MOST:
            raise Refused(TOO_MANY)
        return self.holding(world, at, ((*letters, Letter(self.sends(row, v))), asked))

    def taken(self, world: World, rank: int, row: Row, data: Any) -> World:
        """Return the state after a row, or after what it waits in has begun."""
        me = world.ranks[rank]
        if row.op is not None:
            world = self.issued(world, rank, row.op, self.sends(row, me.vars))
            if not row.posts:
                return self.place(world, rank, me._replace(inside=row.event))
        elif isinstance(row.gate, Send | Receive) and row.by in OWN:
            return self.place(world, rank, me._replace(inside=row.event))
        if row.interrupts and me.inside is not None:
            inner = self.role_of[rank].row(me.state, me.inside)
            if inner.op is not None:
                world = self.out_of(world, rank, self.team(rank, inner.op))
        return self.arrived(world, rank, row, data, began=row.op is not None)

    def arrived(self, world: World, rank: int, row: Row, data: Any, *, began: bool) -> World:
        """Return the state with a rank at the end of a row. `began`: it goes on while what it has posted does not."""
        v = world.ranks[rank].vars
        about = self.role_of[rank].by_name[row.target]
        after = row.effect(v, data) if row.effect else v
        gone = (about.terminal or about.failed) and not self.protocol.keeps
        world = self.place(world, rank, Rank(row.target, None, None if gone else after, False))
        if about.failed and not began:
            for team in range(len(self.teams)):
                world = self.out_of(world, rank, team)
        if about.terminal or about.failed:
            world = self.hung_up(world, rank, failed=about.failed)
        return self.tidied(world) if about.terminal else world

    def dead(self, world: World, rank: int) -> World:
        v = world.ranks[rank].vars if self.protocol.keeps else None
        world = self.place(world, rank, Rank(DEAD, None, v, False))
        for team in range(len(self.teams)):
            world = self.out_of(world, rank, team)
        return self.tidied(self.hung_up(world, rank, failed=True))

    # ── what ranks share ────────────────────────────────────────────────────────────────────────────

    def where(self, rank: int, row: Row, v: Any) -> int:
        gate: Any = row.gate
        whose = gate.worker(v) if gate.worker else None
        if isinstance(gate.slot, Link):
            return self.keys.index((gate.slot, (whose, rank) if isinstance(gate, Receive) else (rank, whose)))
        if gate.worker is None and gate.slot.keys is not None:
            whose = rank
        return self.keys.index((gate.slot, whose))

    def hung_up(self, world: World, rank: int, *, failed: bool) -> World:
        """Return the state with a rank gone from all links.

        Of a failed one nothing is bound to come; of one that has ended, what was asked for or lies in the buffer.
        """
        for at, (link, key) in enumerate(self.keys):
            if not isinstance(link, Link) or rank not in key:
                continue
            letters, asked = world.shared[at]
            if key[0] == rank:
                kept = 0 if failed else link.buffer + asked
                letters = tuple(one if n < kept else one._replace(sure=False) for n, one in enumerate(letters))
            else:
                asked = False
            world = self.holding(world, at, (letters, asked))
        return world

    # ── collectives ─────────────────────────────────────────────────────────────────────────────────

    def team(self, rank: int, op: Collective) -> int:
        return next(n for n, (name, members) in enumerate(self.teams) if name == op.group and rank in members)

    def devices(self, rank: int) -> list[int]:
        """The lists in which a rank's device may complete something by itself."""
        return [n for n, (name, members) in enumerate(self.teams) if name in self.posted and rank in members]

    def issued(self, world: World, rank: int, op: Collective, value: Any) -> World:
        team = self.team(rank, op)
        members = self.teams[team][1]
        seat, meetings = members.index(rank), list(world.teams[team])
        at = sum(one[seat] is not None for one in meetings)
        if at == len(meetings):
            meetings.append((None,) * len(members))
        meetings[at] = tuple(Part(op, value) if n == seat else part for n, part in enumerate(meetings[at]))
        return self.meeting_as(world, team, tuple(meetings))

    def meeting(self, world: World, team: int, rank: int) -> int | None:
        """The earliest collective of a list that a rank is in."""
        seat = self.teams[team][1].index(rank)
        for at, one in enumerate(world.teams[team]):
            part = one[seat]
            if part is not None and not part.left:
                return at
        return None

    def exit(self, world: World, team: int, rank: int) -> tuple[int, Any, bool, bool] | None:
        """(which collective, what it gives, bound to complete, mispaired), if it may complete for the rank."""
        at = self.meeting(world, team, rank)
        if at is None:
            return None
        members = self.teams[team][1]
        seat, parts = members.index(rank), world.teams[team][at]
        mine = parts[seat]
        assert mine is not None
        slowest = min(sum(one[n] is not None for one in world.teams[team]) for n in range(len(members)))
        if at + 1 - slowest > _depth(len(members)) or not _may_leave(mine.op, seat, parts):
            return None
        pairs = [part for part in parts if part is not None and _wire(part.op) == _wire(mine.op)]
        mispaired = any(part.op.name != mine.op.name for part in pairs)
        if mine.op.kind in (Kind.ALL_REDUCE, Kind.REDUCE, Kind.REDUCE_SCATTER) and mine.op.result is None:
            mispaired |= len({part.value for part in pairs}) > 1
        bound = len(pairs) == len(parts) and not any(part.lost for part in pairs)
        return at, _gives(mine.op, seat, parts), bound, mispaired

    def ends(self, world: World, rank: int) -> Iterator[Move]:
        """Yield how what a rank waits in may end."""
        me = world.ranks[rank]
        row = self.role_of[rank].row(me.state, str(me.inside))
        if row.op is not None:
            team = self.team(rank, row.op)
            found = self.exit(world, team, rank)
            if found is None or self.later(world, team, rank, found[0]):
                return
            at, data, bound, mispaired = found
            after = self.arrived(self.left(world, team, rank, at), rank, row, data, began=True)
            yield Move(self.tidied(after), rank, bound, True, mispaired, owed=bound)
            return
        at = self.where(rank, row, me.vars)
        letters, asked = world.shared[at]
        if isinstance(row.gate, Send):
            if len(letters) - asked <= row.gate.slot.buffer:
                yield Move(self.arrived(world, rank, row, None, began=False), rank, True, True, owed=True)
        elif letters:
            after = self.holding(world, at, (letters[1:], False))
            sure, value = letters[0].sure, letters[0].value
            yield Move(self.arrived(after, rank, row, value, began=False), rank, sure, True, owed=sure)

    def on_device(self, world: World, rank: int, team: int) -> Iterator[Move]:
        found = self.exit(world, team, rank)
        if found is None:
            return
        me = world.ranks[rank]
        row = self.role_of[rank].row(me.state, me.inside) if me.inside is not None else None
        waits = row is not None and row.op is not None and self.team(rank, row.op) == team
        if waits and not self.later(world, team, rank, found[0]):
            return
        _, _, bound, mispaired = found
        after = self.tidied(self.left(world, team, rank, found[0]))
        yield Move(after, rank, bound, False, mispaired, owed=bound, by_device=True)

    def later(self, world: World, team: int, rank: int, at: int) -> bool:
        """Whether a rank has issued something after a collective."""
        seat = self.teams[team][1].index(rank)
        return any(one[seat] is not None for one in world.teams[team][at + 1 :])

    def left(self, world: World, team: int, rank: int, at: int) -> World:
        seat, meetings = self.teams[team][1].index(rank), list(world.teams[team])
        meetings[at] = tuple(
            part._replace(left=True) if n == seat and part else part for n, part in enumerate(meetings[at])
        )
        return self.meeting_as(world, team, tuple(meetings))

    def out_of(self, world: World, rank: int, team: int) -> World:
        """Return the state with a rank out of all collectives of a list; what it put in is there, and lost."""
        members = self.teams[team][1]
        if rank not in members:
            return world
        seat = members.index(rank)
        new = tuple(
            tuple(
                part._replace(left=True, lost=True) if n == seat and part and not part.left else part
                for n, part in enumerate(one)
            )
            for one in world.teams[team]
        )
        return self.meeting_as(world, team, new)

    def tidied(self, world: World) -> World:
        """Return the state without the collectives that all have left, or have ended without."""
        for team, (_, members) in enumerate(self.teams):
            gone = [a.terminal and not a.failed for a in (self.about(world, rank) for rank in members)]
            rest = world.teams[team]
            while rest and all(part.left if part else gone[n] for n, part in enumerate(rest[0])):
                rest = rest[1:]
            world = self.meeting_as(world, team, rest)
        return world

    # ── conditions ──────────────────────────────────────────────────────────────────────────────────

    def wants(self, row: Row, v: Any, data: Any) -> bool:
        return all(guard(v, data) for guard in row.guards)

    def sends(self, row: Row, v: Any) -> Any:
        return row.send(v) if row.send else None

    def all_there(self, world: World, rank: int) -> bool:
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
            return any(rank == (p.rank or 0) and p.state in {r.state for r in world.ranks} for p in points)
        return any(world.ranks[rank].state == p.state and p.rank in (None, rank) for p in points)

    def nothing_wrong(self, world: World, rank: int, violation: Row) -> bool:
        """Whether a PROTOCOL row of the state applies."""
        me = world.ranks[rank]
        for row in self.role_of[rank].leaving[violation.state]:
            if row.by is not By.PROTOCOL:
                continue
            if isinstance(row.gate, Take):
                content = world.shared[self.where(rank, row, me.vars)]
                if not content:
                    if not isinstance(violation.gate, Take):
                        return True
                    continue
                offered = [content[0]]
            else:
                offered = list(row.choices(me.vars, self.scope)) if row.choices else [None]
            if any(self.wants(row, me.vars, data) for data in offered):
                return True
        return False

    def notices(self, world: World, rank: int) -> bool:
        """Whether somebody has failed, or the rank waits for one that has ended and cannot come."""
        if not self.network.detection:
            return False
        if any(self.about(world, other).failed for other in range(self.count)):
            return True
        return any(self.about(world, other).terminal for other in self.awaited(world, rank))

    def awaited(self, world: World, rank: int) -> list[int]:
        me = world.ranks[rank]
        row = self.role_of[rank].row(me.state, me.inside) if me.inside is not None else None
        if row is not None and row.op is None:
            if any(move.ordinary for move in self.ends(world, rank)):
                return []
            return [row.gate.worker(me.vars)]  # type: ignore[union-attr,misc]
        teams = [self.team(rank, row.op)] if row is not None and row.op is not None else self.devices(rank)
        for team in teams:
            at = self.meeting(world, team, rank)
            if at is None:
                continue
            members, parts = self.teams[team][1], world.teams[team][at]
            seat = members.index(rank)
            mine = parts[seat]
            assert mine is not None
            absent = [n for n, part in enumerate(parts) if part is None and n != seat]
            needed = [n for n in absent if n in _needs(mine.op, seat, len(parts))]
            odd = [n for n, part in enumerate(parts) if part and (part.lost or _wire(part.op) != _wire(mine.op))]
            if needed or absent or odd:
                return [members[n] for n in needed or absent or odd]
        return []

    # ── small changes ───────────────────────────────────────────────────────────────────────────────

    def place(self, world: World, rank: int, here: Rank) -> World:
        return world._replace(ranks=(*world.ranks[:rank], here, *world.ranks[rank + 1 :]))

    def holding(self, world: World, at: int, content: Any) -> World:
        return world._replace(shared=(*world.shared[:at], content, *world.shared[at + 1 :]))

    def meeting_as(self, world: World, team: int, meetings: tuple[Meeting, ...]) -> World:
        return world._replace(teams=(*world.teams[:team], meetings, *world.teams[team + 1 :]))


# ── a collective's rules ────────────────────────────────────────────────────────────────────────────────


def _wire(op: Collective) -> tuple[Any, ...]:
    return op.group, op.kind, op.root, op.dtype, op.size


def _depth(members: int) -> int:
    """How deep a binomial tree is."""
    found = 0
    while members > 1:
        found, members = found + 1, members // 2
    return found


def _needs(op: Collective, seat: int, members: int) -> list[int]:
    """Whom a member depends on: a root that gives, a root that is sent to, itself, or everybody."""
    root = op.root or 0
    if op.kind in (Kind.BROADCAST, Kind.SCATTER) or (op.kind is Kind.GATHER and seat != root):
        return [root]
    if op.kind is Kind.REDUCE and seat != root:
        return [seat]
    return list(range(members))


def _may_leave(op: Collective, seat: int, parts: Meeting) -> bool:
    needed = [parts[n] for n in _needs(op, seat, len(parts))]
    return all(part is not None and _wire(part.op) == _wire(op) for part in needed)


def _gives(op: Collective, seat: int, parts: Meeting) -> Any:
    """What a member is given."""
    root, put_in = parts[op.root or 0], [part.value for part in parts if part is not None]
    is_root = seat == (op.root or 0)
    if op.kind is Kind.BROADCAST:
        return root.value if root else None
    if op.kind is Kind.BARRIER or (op.kind in (Kind.GATHER, Kind.REDUCE) and not is_root):
        return None
    if op.kind is Kind.SCATTER:
        return root.value[seat] if root else None
    if op.kind is Kind.ALL_TO_ALL:
        put_in = [value[seat] for value in put_in]
    return op.result(tuple(put_in)) if op.result else frozenset(put_in)


# ── the search ──────────────────────────────────────────────────────────────────────────────────────────


def search_cast(network: Network, limit: int) -> Searched | None:
    """Search every state; None where there are more than `limit`."""
    oracle, found = CastOracle(network), Searched()
    start = oracle.start()
    found.states[start] = 0
    todo, back = [start], list[list[tuple[int, bool, int]]]([[]])
    judged: list[int] = []
    while todo:
        world = todo.pop()
        here, moved = found.states[world], False
        about = [oracle.about(world, rank) for rank in range(network.ranks)]
        failed = any(a.failed for a in about)
        found.false_abort |= failed and not world.faults
        if not world.faults and not failed:
            judged.append(here)
        for move in oracle.moves(world):
            moved, found.transitions = True, found.transitions + 1
            found.mispaired |= move.mispaired
            if move.after not in found.states:
                found.states[move.after] = len(found.states)
                back.append([])
                todo.append(move.after)
                if len(found.states) > limit:
                    return None
            if move.ordinary:
                back[found.states[move.after]].append((here, move.advances, move.rank))
        found.deadlocks += not moved and not all(a.terminal for a in about)
    found.stranded = stranded(list(found.states), back, judged, oracle, network.ranks)
    return found
