"""Connects rank0 and its workers by the transport, and lets faults strike them: initial state, and every next state.

A network state is a tuple of small integers: one local per rank (see `lts.py`), a queue of unfinished
collectives per group, the slots of the channels, and the number of faults spent. Each collective in a
queue holds one entry per rank: 0 not issued, +c issued and waiting, -c issued and gone, where c numbers
the contribution. Queues are few: they are numbered, and what follows from one is worked out once.

Left out: what is searched for (`properties.py`) and how (`checker/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from ...errors import ModelError, UsageError
from ..tables import (
    EMPTY,
    TAKES,
    By,
    Cell,
    Collective,
    Data,
    Fifo,
    Link,
    Meet,
    Poll,
    Protocol,
    Put,
    Receive,
    Row,
    Scope,
    Send,
    Set,
    Shared,
    Slot,
    Take,
    lists_of,
)
from . import places, transport
from .lts import CRASHED as CRASHED
from .lts import Info, Interner, Lts, Menu, Step
from .properties import CLOSING_PHASES, NO_MISPAIRING
from .transport import Contribution

P = ParamSpec("P")
R = TypeVar("R")

Instance = tuple[int, ...]
Queue = tuple[Instance, ...]

MAX_RANKS = 32
"""The engines keep two bits a rank in one word."""
CRASH, STALL = "crash", "stall"
"""The faults that need no row: a rank dies, its contribution made or not; a rank takes no steps, and may resume."""


class Point(NamedTuple):
    """Says where a fault may strike.

    A crash or stall strikes rank0, or the rank that is named, while some rank is in `state`; the other kinds strike a
    rank that is itself in it.
    """

    state: str
    rank: int | None = None

    def __str__(self) -> str:
        return self.state if self.rank is None else f"rank{self.rank}.{self.state}"


Faults = Mapping[str, frozenset[Point] | None]
"""Kind of fault to the points at which it may strike. None: anywhere, any rank."""


class NetworkState(NamedTuple):
    """Holds the whole network at one moment."""

    locals: tuple[int, ...]
    queues: tuple[int, ...]
    """Per group: the number of its queue (see `Network.queues`)."""
    slots: tuple[int, ...]
    """Per slot and worker: 0 empty, else the number of the value in it. Then per place of a channel, cell or link: 0
    what is there at the start, else the number of what is in it."""
    faults: int


class Move(NamedTuple):
    """Holds one step of the network.

    `ordinary`: neither fault nor detection, and bound to be possible (*must*).
    """

    rank: int
    event: str
    edge: str
    """`step`, `issue`, `complete`, `device` (completes on the stream), `crash`, `stall`, `resume` or `killed`."""
    ordinary: bool
    advances: bool
    """Says whether the rank's host is somewhere else afterwards."""
    detects: bool
    seen: tuple[str, ...]
    data: Data
    op: str
    commits: bool
    takes_part: bool = False
    """Says whether the rank does more than go on by itself: see `Lts.takes_part`."""
    row: tuple[str, str] | None = None
    """The row that was taken to its end, by its key; None where none was."""
    asked_for: bool = False
    """The world outside asks for it, and need not."""


class Waiting(NamedTuple):
    """Names a rank that cannot go on by itself, in which operation, and the members that it waits for."""

    rank: int
    state: str
    event: str
    operation: str
    waiting_for: tuple[int, ...]


class _Exit(NamedTuple):
    """Says how a collective may complete for one rank: what it is given, and the queue when it has left."""

    op: Collective
    must: bool
    delivered: Data
    seen: tuple[str, ...]
    queue: int
    last: bool
    """Says whether the rank has issued nothing after it."""


def _once(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Work out a method of its (positional) arguments once for each network."""
    name = method.__name__

    def known(network: Any, /, *args: P.args, **more: P.kwargs) -> R:
        key = (name, *args)
        try:
            return network._known[key]  # type: ignore[no-any-return]
        except KeyError:
            found = network._known[key] = method(network, *args, **more)
            return found

    return known


class Network:
    """Forms the product of a protocol's roles over `scope.ranks` ranks.

    At most `faults` faults happen, of these `kinds` (None: crashes). `detection` says whether DETECTION rows run,
    and whether a stalled rank is killed. On a `stream` the hosts go on after issuing what they need no result of
    (NCCL).
    """

    def __init__(
        self,
        protocol: Protocol,
        scope: Scope,
        *,
        faults: int = 1,
        kinds: Faults | None = None,
        detection: bool = True,
        stream: bool = False,
    ) -> None:
        if not 2 <= scope.ranks <= MAX_RANKS:
            do = f"take 2 to {MAX_RANKS}, rank0 counted in"
            raise UsageError(f"{scope.ranks} ranks cannot be searched", where=protocol.name, do=do)
        self.protocol, self.scope, self.ranks = protocol.validate(), scope, scope.ranks
        declared = {group.name for group in protocol.groups}
        for op in protocol.schedule:
            if op.root is not None and op.group not in declared and not 0 <= op.root < scope.ranks:
                what = f"the root of `{op.name}` is rank{op.root}, of {scope.ranks} ranks"
                raise ModelError(what, where=f"{protocol.name}, schedule", do="check it with more ranks")
        if stream:
            refuse_unordered_streams(protocol)
        self.kinds: Faults = {CRASH: None} if kinds is None else kinds
        self.faults, self.detection, self.stream = faults, detection, stream
        if stream and protocol.cast:
            do = "write the device as a rank that takes operations out of a channel"
            raise UsageError("a cast has no device streams", where=f"{protocol.name}, --transport stream", do=do)
        played = protocol.played(scope)
        self.role_of = tuple(protocol.roles.index(role) for role in played)
        """Per rank the number of its role."""
        if not protocol.cast:
            self.role_of = tuple(min(rank, 1) for rank in range(self.ranks))
        self.lts = _unfolded(protocol, scope, self.role_of, stream)
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self.values: Interner[Data] = Interner()
        self.values(None)
        self.queues: Interner[Queue] = Interner()
        self.queues(())
        self._moves: dict[tuple[int, int], Move] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        self.members = tuple(_lists(protocol, scope))
        """Per queue its group, and the ranks in it."""
        self._queue_of = [
            {group: n for n, (group, members) in enumerate(self.members) if rank in members}
            for rank in range(self.ranks)
        ]
        self._seat = [
            {n: members.index(rank) for n, (_, members) in enumerate(self.members) if rank in members}
            for rank in range(self.ranks)
        ]
        on_streams = protocol.streams if stream else ()
        self.stream_groups = [n for n, (group, _) in enumerate(self.members) if group in on_streams]
        posting = {row.op.group for role in protocol.roles for row in role.rows if row.posts and row.op is not None}
        self._devices = [
            [n for n in seats if n in self.stream_groups or self.members[n][0] in posting] for seats in self._seat
        ]
        """Per rank the queues of which its device may complete something by itself."""
        self._channel = {slot: n * (self.ranks - 1) for n, slot in enumerate(protocol.slots)}
        self._first_place = len(self._channel) * (self.ranks - 1)
        self.places = tuple(_places(protocol, scope))
        """Lists what is shared beside slots, with its keys."""
        self._place = {place: self._first_place + n for n, place in enumerate(self.places)}
        self.given: dict[Shared, set[Data]] = {}
        """Holds what channels, cells and links had for those who looked."""

    def initial(self) -> NetworkState:
        """Return all ranks at the start of their tables, nothing issued, all slots empty."""
        slots = (0,) * (self._first_place + len(self.places))
        return NetworkState(tuple(lts.initial for lts in self.lts), (0,) * len(self.members), slots, 0)

    def playing(self, role: int) -> list[Lts]:
        """Return a role unfolded: once, or for each rank that starts with variables of its own."""
        found = (lts for lts, number in zip(self.lts, self.role_of, strict=True) if number == role)
        return list(dict.fromkeys(found))

    def info(self, state: NetworkState, rank: int) -> Info:
        return self.lts[rank].info(state.locals[rank])

    def state_name(self, state: NetworkState, rank: int) -> str:
        """Return the state of one rank in its table, or CRASHED."""
        return self.info(state, rank).state

    def successors(self, state: NetworkState) -> Iterator[tuple[Move, NetworkState]]:
        """Yield every move that is possible, with the state it leads to, rank by rank in the order of the tables."""
        infos = [lts.info(n) for lts, n in zip(self.lts, state.locals, strict=True)]
        for rank, info in enumerate(infos):
            for group in self._devices[rank]:
                if state.queues[group]:
                    yield from self._on_device(state, rank, group, info)
            if info.terminal:
                continue
            if info.stalled:
                yield self._resume(state, rank)
                if self.detection:
                    yield self._die(state, rank, "killed", 0)
                continue
            if info.op is not None:
                yield from self._completion(state, rank, info.op)
            elif info.inside is not None:
                yield from self._end(state, rank, info.inside)
            menu = self.lts[rank].menu(state.locals[rank])
            for step in menu.own:
                ready = self._when_open(state, infos, rank, step)
                if ready is not None:
                    yield ready
            yield from self._struck(state, infos, rank, menu)

    def _struck(
        self, state: NetworkState, infos: Sequence[Info], rank: int, menu: Menu
    ) -> Iterator[tuple[Move, NetworkState]]:
        """Yield what faults and detection may do to a rank."""
        may_fault = state.faults < self.faults
        if may_fault:
            for step in menu.faults:
                if self._strikes(step.row.fault, rank, infos):
                    yield self._take(state, rank, step)
        if self.detection and menu.detects:
            trouble = any(i.failed for i in infos)
            if trouble or self._gone_for(state, infos, rank):
                for step in menu.detects:
                    yield self._take(state, rank, step)
        if may_fault and self._strikes(CRASH, rank, infos):
            yield self._die(state, rank, CRASH, 1)
        if may_fault and self._strikes(STALL, rank, infos):
            yield self._stall(state, rank)

    def waiting(self, state: NetworkState, rank: int) -> Waiting | None:
        """Return what `rank` waits in, and for which members; None if it has a step of its own."""
        infos = [self.info(state, r) for r in range(self.ranks)]
        info = infos[rank]
        if info.terminal or info.stalled:
            return None
        own = self.lts[rank].menu(state.locals[rank]).own
        if any(self._when_open(state, infos, rank, step) for step in own):
            return None
        local = self.lts[rank].locals.items[state.locals[rank]]
        if info.op is not None:
            return Waiting(rank, info.state, str(local.pending), info.op.name, self._missing(state, rank, info.op))
        if info.inside is not None:
            peer = self._peer(rank, state.locals[rank], info.inside)
            return Waiting(rank, info.state, str(local.pending), info.inside.slot.name, (peer,))
        if not own:
            return None
        step = next((s for s in own if not s.checks), own[0])  # a violation comes after the checks that it waits for
        missing = self._behind_gate(state, infos, rank, step)
        name = step.slot[0].name if step.slot else ("stream" if step.row.syncs else "counters")
        return Waiting(rank, info.state, step.row.event, name, missing)

    def verdict(self, state: NetworkState) -> tuple[bool, bool]:
        """Return (some rank has failed, died or stalled; every rank has reached its end)."""
        infos = [self.info(state, r) for r in range(self.ranks)]
        return any(i.failed or i.stalled for i in infos), all(i.terminal for i in infos)

    def shutting_down(self, state: NetworkState) -> bool:
        """Return whether rank0 is on its way to STOPPED, or there."""
        info = self.info(state, 0)
        if self.protocol.cast:
            return False
        return info.state != CRASHED and self.protocol.driver.by_name[info.state].phase in CLOSING_PHASES

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────

    def _strikes(self, kind: str, rank: int, infos: Sequence[Info]) -> bool:
        if kind not in self.kinds:
            return False
        points = self.kinds[kind]
        if points is None:
            return True
        if kind in (CRASH, STALL):
            return any(rank == (p.rank or 0) and any(i.state == p.state for i in infos) for p in points)
        return any(infos[rank].state == p.state and p.rank in (None, rank) for p in points)

    def _die(self, state: NetworkState, rank: int, event: str, cost: int) -> tuple[Move, NetworkState]:
        locals_ = _with(state.locals, rank, self.lts[rank].crashed(state.locals[rank]))
        queues = self._drop_finished(self._all_left(state.queues, rank), locals_)
        move = Move(rank, event, event, False, True, cost == 0, (), None, "", False)
        slots = self._without_rank(state.slots, rank, failed=True)
        return move, state._replace(locals=locals_, queues=queues, slots=slots, faults=state.faults + cost)

    def _stall(self, state: NetworkState, rank: int) -> tuple[Move, NetworkState]:
        locals_ = _with(state.locals, rank, self.lts[rank].stalled(state.locals[rank], True))
        move = Move(rank, STALL, STALL, False, False, False, (), None, "", False)
        return move, state._replace(locals=locals_, faults=state.faults + 1)

    def _resume(self, state: NetworkState, rank: int) -> tuple[Move, NetworkState]:
        locals_ = _with(state.locals, rank, self.lts[rank].stalled(state.locals[rank], False))
        return Move(rank, "resume", "resume", False, True, False, (), None, "", False), state._replace(locals=locals_)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _take(
        self, state: NetworkState, rank: int, step: Step, slots: tuple[int, ...] | None = None
    ) -> tuple[Move, NetworkState]:
        locals_ = _with(state.locals, rank, step.target)
        queues = state.queues
        after = self.lts[rank].info(step.target)
        held = state.slots if slots is None else slots
        if step.contribution is not None:
            group = self._queue(rank, step.contribution.op, step.row)
            seat, size = self._seat[rank][group], len(self.members[group][1])
            number = self.contributions(step.contribution)
            queues = _with(queues, group, self._issue(queues[group], seat, number, size))
        elif after.failed:
            queues = self._all_left(queues, rank)
        elif step.row.interrupts and (op := self.lts[rank].info(state.locals[rank]).op) is not None:
            group = self._queue(rank, op, step.row)
            queues = _with(queues, group, self._leave(queues[group], self._seat[rank][group]))
        if after.terminal:
            queues = self._drop_finished(queues, locals_)
        if after.terminal or after.failed:
            held = self._without_rank(held, rank, failed=after.failed)
        move = self._move(rank, step, state.locals[rank])
        return move, self._normal(NetworkState(locals_, queues, held, state.faults + (step.row.by is By.FAULT)))

    def _when_open(
        self, state: NetworkState, infos: Sequence[Info], rank: int, step: Step
    ) -> tuple[Move, NetworkState] | None:
        """Return a step of the rank's own, if nothing holds it up."""
        if step.checks and self._checks_pass(state, rank, step):
            return None
        if step.row.gate is None and not step.row.syncs:
            return self._take(state, rank, step)
        return self._through_gate(state, infos, rank, step)

    def _checks_pass(self, state: NetworkState, rank: int, violation: Step) -> bool:
        """Return whether a `Take` beside a VIOLATION row applies: see `Role.checks_pass`, whose rule this is."""
        held = {step.row.gate: self._held(state, rank, step) for step in violation.checks}
        lts = self.lts[rank]
        v = lts.locals.items[state.locals[rank]].vars
        return lts.role.checks_pass(violation.row, v, violation.data, held=held.__getitem__, scope=self.scope)

    def _held(self, state: NetworkState, rank: int, step: Step) -> Data:
        at = self._slot(rank, step)
        if at >= self._first_place:
            content = self.content(state, at)
            return content[0] if content else EMPTY
        value = state.slots[at]
        return self.values.items[value - 1] if value else EMPTY

    def content(self, state: NetworkState, at: int) -> Data:
        """Return what is in a place beside slots."""
        number = state.slots[at]
        return self.values.items[number - 1] if number else places.initial(self.places[at - self._first_place][0])

    def _through_gate(
        self, state: NetworkState, infos: Sequence[Info], rank: int, step: Step
    ) -> tuple[Move, NetworkState] | None:
        """Return the step, if its gate is open: a slot empty or full, all counters there, or the stream run dry."""
        if step.row.syncs and self._outstanding(state, rank):
            return None
        gate = step.row.gate
        if isinstance(gate, Meet):
            return None if any(i.counter < infos[rank].counter for i in infos) else self._take(state, rank, step)
        if step.slot is None:
            return self._take(state, rank, step)
        at = self._slot(rank, step)
        if at >= self._first_place:
            return self._touch(state, rank, step, at)
        if isinstance(gate, Put):
            if state.slots[at]:
                return None
            return self._take(state, rank, step, _with(state.slots, at, self.values(step.data) + 1))
        if not state.slots[at]:
            return None
        taken = self.lts[rank].take(state.locals[rank], step.row, self.values.items[state.slots[at] - 1])
        return None if taken is None else self._take(state, rank, taken, _with(state.slots, at, 0))

    def _touch(self, state: NetworkState, rank: int, step: Step, at: int) -> tuple[Move, NetworkState] | None:
        """Return a step through a gate at a channel, cell or link, if it is open."""
        gate, content = step.row.gate, self.content(state, at)
        if gate is None or isinstance(gate, Meet):
            raise ValueError(f"{step.row} has no gate at something shared")
        if isinstance(gate, Send | Receive):
            return self._take(state, rank, step, self._filled(state.slots, at, places.begin(gate, content, step.data)))
        touched = places.touch(gate, content, step.data)
        if touched is None:
            return None
        held = self._filled(state.slots, at, touched.after)
        if not isinstance(gate, TAKES):
            return self._take(state, rank, step, held)
        self.given.setdefault(gate.slot, set()).add(touched.given)
        taken = self.lts[rank].take(state.locals[rank], step.row, touched.given)
        return None if taken is None else self._take(state, rank, taken, held)

    def _end(self, state: NetworkState, rank: int, inside: Send | Receive) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the end of a send or receive that a rank is in."""
        peer = self._peer(rank, state.locals[rank], inside)
        at = self._place[inside.slot, (peer, rank) if isinstance(inside, Receive) else (rank, peer)]
        ended = places.end(inside, self.content(state, at))
        if ended is None:
            return
        self.given.setdefault(inside.slot, set()).add(ended.given)
        step = self.lts[rank].complete(state.locals[rank], ended.given)
        move, after = self._take(state, rank, step, self._filled(state.slots, at, ended.after))
        yield move._replace(ordinary=move.ordinary and ended.bound), after

    def _peer(self, rank: int, local: int, inside: Send | Receive) -> int:
        lts = self.lts[rank]
        found = lts.locals.items[local]
        row = lts.role.row(found.state, str(found.pending))
        peer: int = lts._slot(row, inside, found.vars)[1]
        return peer

    def _filled(self, slots: tuple[int, ...], at: int, content: Data) -> tuple[int, ...]:
        """Return the slots with something else in a place. Raise ModelError for what has no hash."""
        first = places.initial(self.places[at - self._first_place][0])
        return _with(slots, at, 0 if content == first else self.values(content) + 1)

    def _without_rank(self, slots: tuple[int, ...], rank: int, *, failed: bool) -> tuple[int, ...]:
        """Return the slots once a rank is gone: what it had on its way on a link may arrive, and need not."""
        for n, (shared, key) in enumerate(self.places, self._first_place):
            if slots[n] and isinstance(shared, Link) and rank in key:
                content = self.values.items[slots[n] - 1]
                slots = self._filled(slots, n, places.without(shared, content, sender=key[0] == rank, failed=failed))
        return slots

    def _slot(self, rank: int, step: Step) -> int:
        if step.slot is None:
            raise ValueError(f"{step.row} has no slot")
        shared, whose = step.slot
        if isinstance(shared, Slot):
            return self._channel[shared] + (whose or rank) - 1
        key: Any
        if isinstance(shared, Link):
            key = (whose, rank) if isinstance(step.row.gate, Receive) else (rank, whose)
        else:
            key = whose if whose is not None or shared.keys is None else rank
        at = self._place.get((shared, key))
        if at is None:
            keys = ", ".join(str(k) for s, k in self.places if s is shared and k is not None) or "no keys"
            what = f"there is none of {whose!r}" if whose is not None else f"rank{rank} has none of its own"
            if isinstance(shared, Link):
                what, keys = f"rank{rank} has no peer {whose!r}", f"rank0 to rank{self.ranks - 1}, not itself"
            where = f"{self.lts[rank].role.name}, row {step.row}"
            raise ModelError(what, where=where, do=f"`{shared.name}` has {keys}")
        return at

    def place(self, shared: Shared, key: Any = None) -> int:
        """Return where something shared stands among the slots of a state: of a slot a worker's, else of a key.

        Raise ModelError where there is none.
        """
        if isinstance(shared, Slot):
            if shared not in self._channel or not isinstance(key, int) or not 1 <= key < self.ranks:
                raise ModelError(f"there is no slot `{shared.name}` of rank{key}", do="slots belong to workers, from 1")
            return self._channel[shared] + key - 1
        at = self._place.get((shared, key))
        if at is None:
            raise ModelError(f"there is no `{getattr(shared, 'name', shared)}` of {key!r}")
        return at

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────

    def _queue(self, rank: int, op: Collective, row: Row | None = None) -> int:
        """Return the queue of a rank's own list of a group. Raise ModelError where it is in none."""
        found = self._queue_of[rank].get(op.group)
        if found is None:
            where = f"{self.lts[rank].role.name}" + (f", row {row}" if row else "")
            raise ModelError(f"rank{rank} is in no group `{op.group}`", where=where, do="see the group's `members`")
        return found

    def members_of(self, rank: int, operation: str) -> tuple[int, ...]:
        """Return the ranks of the group in which `rank` has a collective of this name; empty: all."""
        for op in self.protocol.schedule:
            group = self._queue_of[rank].get(op.group)
            if op.name == operation and group is not None:
                members = self.members[group][1]
                return () if len(members) == self.ranks else members
        return ()

    def _all_left(self, queues: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Return the queues with a rank no longer in any collective."""
        seats = self._seat[rank]
        return tuple(self._leave(q, seats[n]) if n in seats else q for n, q in enumerate(queues))

    def _ranks_at(self, group: int, seats: tuple[int, ...]) -> tuple[int, ...]:
        members = self.members[group][1]
        return tuple(members[seat] for seat in seats)

    def _completion(self, state: NetworkState, rank: int, op: Collective) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the collective that the host waits in, after all that it had issued before."""
        group = self._queue(rank, op)
        exit = self._exit(state.queues[group], self._seat[rank][group])
        if exit is None or not exit.last:
            return
        step = self.lts[rank].complete(state.locals[rank], exit.delivered)
        locals_ = _with(state.locals, rank, step.target)
        queues = self._drop_finished(_with(state.queues, group, exit.queue), locals_)
        move = self._move(rank, step, state.locals[rank])._replace(ordinary=exit.must, seen=step.seen + exit.seen)
        yield move, self._normal(NetworkState(locals_, queues, state.slots, state.faults))

    def _on_device(self, state: NetworkState, rank: int, group: int, info: Info) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the earliest collective on the rank's stream, unless the host waits in it."""
        exit = self._exit(state.queues[group], self._seat[rank][group])
        if exit is None or (exit.last and info.op is not None and self._queue(rank, info.op) == group):
            return
        queues = self._drop_finished(_with(state.queues, group, exit.queue), state.locals)
        name = exit.op.name
        move = Move(rank, name, "device", exit.must, False, False, exit.seen, None, name, False, True)
        yield move, state._replace(queues=queues)

    @_once
    def _exit(self, queue: int, rank: int) -> _Exit | None:
        """Return the exit from the earliest collective of this queue that `rank` is in, if it may complete for it.

        Ranks are here those of the group, by their place in it; so they are below wherever a queue is asked about.
        """
        instances = self.queues.items[queue]
        at = next((n for n, instance in enumerate(instances) if instance[rank] > 0), None)
        if at is None:
            return None
        mine = self.contributions.items[instances[at][rank]]
        if mine is None:
            return None
        op = mine.op
        issued = [self.contributions.items[abs(entry)] for entry in instances[at]]
        if not transport.may_complete(op, rank, issued):
            return None
        if not transport.in_reach(at, [_position(instances, member) for member in range(len(issued))]):
            return None
        left = _with(instances, at, _with(instances[at], rank, -instances[at][rank]))
        last = at == _position(instances, rank) - 1
        seen = (NO_MISPAIRING.name,) if transport.mispaired(op, issued) else ()
        try:
            delivered = transport.delivered(op, rank, issued)
        except ModelError:
            if not seen:
                raise
            delivered = frozenset(other.value for other in issued if other is not None)
        return _Exit(op, transport.must_complete(op, issued), delivered, seen, self.queues(left), last)

    def _move(self, rank: int, step: Step, before: int) -> Move:
        found = self._moves.get((rank, id(step)))
        if found is None:
            row = step.row
            op = row.op.name if row.op else (step.slot[0].name if step.slot else "")
            detects = row.by is By.DETECTION and step.edge != "complete"
            found = self._moves[rank, id(step)] = Move(
                rank,
                row.event,
                step.edge,
                ordinary=row.by not in (By.FAULT, By.DETECTION),
                advances=step.target != before,
                detects=detects,
                seen=step.seen,
                data=step.data,
                op=op,
                commits=row.commits,
                takes_part=self.lts[rank].takes_part(before, step),
                row=None if self.lts[rank].locals.items[step.target].pending else row.key,
                asked_for=row.by is By.ENVIRONMENT and step.edge != "complete",
            )
        return found

    def _normal(self, state: NetworkState) -> NetworkState:
        """Return the same state with ids counted from the driver's: a stream of heartbeats goes round, not on."""
        by = -self.lts[0].base(state.locals[0])
        if by == 0:
            return state
        locals_ = tuple(lts.rebased(n, by) for lts, n in zip(self.lts, state.locals, strict=True))
        return state._replace(locals=locals_, queues=tuple(self._rebased(q, by) for q in state.queues))

    @_once
    def _rebased(self, queue: int, by: int) -> int:
        instances = self.queues.items[queue]
        return self.queues(tuple(tuple(self.rebased_entry(entry, by) for entry in i) for i in instances))

    def rebased_entry(self, entry: int, by: int) -> int:
        """Return the same entry with its ids moved on by `by`."""
        contribution = self.contributions.items[abs(entry)]
        if contribution is None or self.protocol.frame is None:
            return entry
        value = self.protocol.frame.rebase(contribution.value, by)
        number = self.contributions(contribution._replace(value=value))
        return -number if entry < 0 else number

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────

    @_once
    def _issue(self, queue: int, rank: int, contribution: int, size: int) -> int:
        instances = self.queues.items[queue]
        at = _position(instances, rank)
        instance = instances[at] if at < len(instances) else (0,) * size
        return self.queues((*instances[:at], _with(instance, rank, contribution), *instances[at + 1 :]))

    @_once
    def _leave(self, queue: int, rank: int) -> int:
        """Return the queue with the rank no longer in any collective; what it had put in stays there, and is lost."""
        instances = self.queues.items[queue]
        return self.queues(tuple(_with(i, rank, self.lost(i[rank])) if i[rank] > 0 else i for i in instances))

    def lost(self, entry: int) -> int:
        """Return what an entry becomes when its member dies inside."""
        contribution = self.contributions.items[entry]
        return -entry if contribution is None else -self.contributions(contribution._replace(lost=True))

    def _drop_finished(self, queues: tuple[int, ...], locals_: tuple[int, ...]) -> tuple[int, ...]:
        """Drop what every member has left, or has ended without. A failed one holds others up as a late one does."""
        infos = [lts.info(n) for lts, n in zip(self.lts, locals_, strict=True)]
        gone = tuple(i.terminal and not i.failed for i in infos)
        if not self.protocol.groups:
            return tuple(self._without(queue, gone) if queue else 0 for queue in queues)
        return tuple(
            self._without(queue, tuple(gone[rank] for rank in self.members[n][1])) if queue else 0
            for n, queue in enumerate(queues)
        )

    @_once
    def _without(self, queue: int, gone: tuple[bool, ...]) -> int:
        instances = self.queues.items[queue]
        start = 0
        while start < len(instances) and all(e < 0 or (e == 0 and gone[r]) for r, e in enumerate(instances[start])):
            start += 1
        return self.queues(instances[start:])

    # ── who waits for whom ──────────────────────────────────────────────────────────────────────────

    def _outstanding(self, state: NetworkState, rank: int) -> bool:
        seats = self._seat[rank]
        return any(i[seats[group]] > 0 for group in self._devices[rank] for i in self.queues.items[state.queues[group]])

    def _missing(self, state: NetworkState, rank: int, op: Collective) -> tuple[int, ...]:
        return self._missing_of(state, rank, self._queue(rank, op))

    def _missing_of(self, state: NetworkState, rank: int, group: int) -> tuple[int, ...]:
        return self._ranks_at(group, self._missing_from(state.queues[group], self._seat[rank][group]))

    @_once
    def _missing_from(self, queue: int, rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for in the earliest collective of this queue that it is in."""
        mine = (i for i in self.queues.items[queue] if i[rank] > 0)
        return next((self._missing_in(i, rank) for i in mine), ())

    def _missing_in(self, instance: Instance, rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for in a collective that it has issued."""
        mine = self.contributions.items[abs(instance[rank])]
        if mine is None:
            return ()
        needed = transport.depends_on(mine.op, rank, len(instance))
        missing = tuple(m for m in needed if m != rank and instance[m] == 0)
        # all those it depends on have issued: it waits for whoever has not, or for an equal signature
        late = missing or tuple(m for m in range(len(instance)) if m != rank and instance[m] == 0)
        return late or tuple(
            m
            for m in range(len(instance))
            if (c := self.contributions.items[abs(instance[m])])
            and (c.lost or not transport.same_on_the_wire(c.op, mine.op))
        )

    def _behind_gate(self, state: NetworkState, infos: Sequence[Info], rank: int, step: Step) -> tuple[int, ...]:
        if step.row.syncs:
            return self._missing_on_stream(state, rank)
        if isinstance(step.row.gate, Meet):
            return tuple(r for r, i in enumerate(infos) if i.counter < infos[rank].counter)
        if step.slot is None:
            return ()
        shared, whose = step.slot
        if isinstance(shared, Link):
            return (whose,)
        fills = not isinstance(step.row.gate, Put)
        if isinstance(shared, Slot):
            return self._other_ends(shared, whose or rank, rank, fills)
        return self._other_ends(shared, whose if whose is not None or shared.keys is None else rank, rank, fills)

    @_once
    def _other_ends(self, shared: Slot | Fifo | Cell, owner: Any, rank: int, fills: bool) -> tuple[int, ...]:
        """Return the other ranks whose tables can fill (else empty) this slot, channel or cell of `owner`."""
        gates = (Put, Set) if fills else (Take, Poll)
        all_the_same = not isinstance(shared, Slot) and shared.keys is None

        def can(lts: Lts, me: int) -> bool:
            at = (row for row in lts.role.rows if isinstance(row.gate, gates) and row.gate.slot == shared)
            if isinstance(shared, Slot):
                return any(row.gate.worker is not None or me == owner for row in at)  # type: ignore[union-attr]
            return any(all_the_same or lts.picks(row, owner, me) for row in at)

        return tuple(r for r in range(self.ranks) if r != rank and can(self.lts[r], r))

    def _missing_on_stream(self, state: NetworkState, rank: int) -> tuple[int, ...]:
        for group in self._devices[rank]:
            missing = self._missing_of(state, rank, group)
            if missing:
                return missing
        return ()

    def _gone_for(self, state: NetworkState, infos: Sequence[Info], rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for and that are no longer there to come."""
        op, inside = infos[rank].op, infos[rank].inside
        if inside is not None:
            missing: tuple[int, ...] = (self._peer(rank, state.locals[rank], inside),)
        elif op is not None:
            missing = self._missing(state, rank, op)
        else:
            missing = self._missing_on_stream(state, rank)
        return tuple(m for m in missing if infos[m].terminal)


def _unfolded(protocol: Protocol, scope: Scope, role_of: Sequence[int], stream: bool) -> list[Lts]:
    """Return each rank's role, unfolded once for all that play it unless they start with variables of their own."""
    found: dict[tuple[int, int | None], Lts] = {}
    for rank, number in enumerate(role_of):
        role = protocol.roles[number]
        key = (number, None if role.start_at is None else rank)
        if key not in found:
            found[key] = Lts(protocol, role, scope, stream=stream, rank=key[1])
    return [found[n, None if protocol.roles[n].start_at is None else rank] for rank, n in enumerate(role_of)]


def _lists(protocol: Protocol, scope: Scope) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each list of ranks of each group. Raise ModelError for a rank in two lists, or a root that is in none."""
    declared = {group.name: group for group in protocol.groups}
    for name in protocol.group_names:
        if name not in declared:
            yield name, tuple(range(scope.ranks))
            continue
        where, seen = f"{protocol.name}, group `{name}`", set[int]()
        for members in lists_of(declared[name], scope, where):
            for rank in members:
                if rank in seen:
                    raise ModelError(f"rank{rank} is in it twice", where=where, do="its lists have no rank in common")
                seen.add(rank)
            for op in protocol.schedule:
                if op.group == name and op.root is not None and not 0 <= op.root < len(members):
                    what = f"the root of `{op.name}` is member {op.root}, of {len(members)}"
                    raise ModelError(what, where=where, do="a root is a place in the group's list, from 0")
            if members:
                yield name, members


def _places(protocol: Protocol, scope: Scope) -> Iterator[tuple[Fifo | Cell | Link, Any]]:
    """Yield each channel, cell and link with each of its keys. Raise ModelError for keys that make no sense."""
    for shared in protocol.shared:
        where = f"{protocol.name}, keys of `{shared.name}`"
        if isinstance(shared, Link):
            ranks = range(scope.ranks)
            yield from ((shared, (one, other)) for one in ranks for other in ranks if one != other)
        elif shared.keys is None:
            yield shared, None
        else:
            try:
                keys = list(dict.fromkeys(shared.keys(scope)))
            except Exception as error:
                raise ModelError(f"they raised {type(error).__name__}: {error}", where=where) from error
            if not keys or None in keys:
                raise ModelError("there are none, or None is one", where=where, do="leave `keys` out for one of all")
            yield from ((shared, key) for key in keys)


def refuse_unordered_streams(protocol: Protocol) -> None:
    """Raise UsageError where collectives of two groups run on device streams: their common order is not modelled.

    Communicators of one device may block each other when ranks issue their operations in different orders.
    """
    used: dict[str, str] = {}
    for role in protocol.roles:
        for row in role.rows:
            if row.op is not None and row.op.group in protocol.streams:
                used.setdefault(row.op.group, f"row {row} of {role.name}")
    if len(used) > 1:
        (one, _), (other, row_text) = list(used.items())[:2]
        raise UsageError(
            f"groups `{one}` and `{other}` ({row_text}) both run on a device stream, and may block each other there",
            where=f"{protocol.name}, --transport stream",
            do="their common order is not modelled: check it with --transport rendezvous",
        )


def _position(instances: Queue, rank: int) -> int:
    """Return how many collectives of the queue `rank` has issued."""
    for at, instance in enumerate(instances):
        if instance[rank] == 0:
            return at
    return len(instances)


def _with(items: tuple[Data, ...], at: int, item: Data) -> tuple[Data, ...]:
    """Return `items` with one of them replaced."""
    return (*items[:at], item, *items[at + 1 :])
