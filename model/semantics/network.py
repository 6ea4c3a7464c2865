"""Connects rank0 and its workers by the transport, and lets faults strike them: initial state, and every next state.

A network state is a tuple of small integers (`moves.py`): one local per rank (`lts.py`), a queue of unfinished
collectives per list of a group (`groups.py`), what is in slots, channels, cells and links (`store.py`), and the
number of faults spent.

Left out: what is searched for (`properties.py`) and how (`checker/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
    Slot,
    Take,
    validate,
)
from . import places
from .groups import Groups, with_item
from .lts import CRASHED as CRASHED
from .lts import Info, Lts, Menu, Step
from .moves import CRASH as CRASH
from .moves import STALL as STALL
from .moves import Faults as Faults
from .moves import Move as Move
from .moves import NetworkState as NetworkState
from .moves import Point as Point
from .moves import Waiting as Waiting
from .once import once
from .properties import CLOSING_PHASES
from .store import Store

MAX_RANKS = 32
"""The engines keep two bits a rank in one word."""


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
        self.protocol, self.scope, self.ranks = validate(protocol), scope, scope.ranks
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
        self.groups = Groups(protocol, scope, protocol.streams if stream else ())
        self.contributions, self.queues = self.groups.contributions, self.groups.queues
        self.store = Store(protocol, scope, [role.name for role in played])
        self.values = self.store.values
        self._moves: dict[tuple[int, int], Move] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    def initial(self) -> NetworkState:
        """Return all ranks at the start of their tables, nothing issued, all slots empty."""
        locals_ = tuple(lts.initial for lts in self.lts)
        return NetworkState(locals_, (0,) * len(self.groups.lists), (0,) * len(self.store), 0)

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
            for group in self.groups.devices[rank]:
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
            peer = self.peer(rank, state.locals[rank], info.inside)
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
        locals_ = with_item(state.locals, rank, self.lts[rank].crashed(state.locals[rank]))
        queues = self._drop_finished(self.groups.all_left(state.queues, rank), locals_)
        move = Move(rank, event, event, False, True, cost == 0, (), None, "", False)
        slots = self.store.without_rank(state.slots, rank, failed=True)
        return move, state._replace(locals=locals_, queues=queues, slots=slots, faults=state.faults + cost)

    def _stall(self, state: NetworkState, rank: int) -> tuple[Move, NetworkState]:
        locals_ = with_item(state.locals, rank, self.lts[rank].stalled(state.locals[rank], True))
        move = Move(rank, STALL, STALL, False, False, False, (), None, "", False)
        return move, state._replace(locals=locals_, faults=state.faults + 1)

    def _resume(self, state: NetworkState, rank: int) -> tuple[Move, NetworkState]:
        locals_ = with_item(state.locals, rank, self.lts[rank].stalled(state.locals[rank], False))
        return Move(rank, "resume", "resume", False, True, False, (), None, "", False), state._replace(locals=locals_)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _take(
        self, state: NetworkState, rank: int, step: Step, slots: tuple[int, ...] | None = None
    ) -> tuple[Move, NetworkState]:
        locals_ = with_item(state.locals, rank, step.target)
        queues = state.queues
        after = self.lts[rank].info(step.target)
        held = state.slots if slots is None else slots
        if step.contribution is not None:
            group = self.queue(rank, step.contribution.op, step.row)
            seat, size = self.groups.seat[rank][group], len(self.groups.lists[group][1])
            number = self.contributions(step.contribution)
            queues = with_item(queues, group, self.groups.issue(queues[group], seat, number, size))
        elif after.failed:
            queues = self.groups.all_left(queues, rank)
        elif step.row.interrupts and (op := self.lts[rank].info(state.locals[rank]).op) is not None:
            group = self.queue(rank, op, step.row)
            queues = with_item(queues, group, self.groups.leave(queues[group], self.groups.seat[rank][group]))
        if after.terminal:
            queues = self._drop_finished(queues, locals_)
        if after.terminal or after.failed:
            held = self.store.without_rank(held, rank, failed=after.failed)
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
        content = self.store.content(state.slots, self.store.at(rank, step))
        if step.slot is not None and isinstance(step.slot[0], Slot):
            return content
        return content[0] if content else EMPTY

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
        at = self.store.at(rank, step)
        if at >= self.store.first_place:
            return self._touch(state, rank, step, at)
        if isinstance(gate, Put):
            if state.slots[at]:
                return None
            return self._take(state, rank, step, with_item(state.slots, at, self.values(step.data) + 1))
        if not state.slots[at]:
            return None
        taken = self.lts[rank].take(state.locals[rank], step.row, self.values.items[state.slots[at] - 1])
        return None if taken is None else self._take(state, rank, taken, with_item(state.slots, at, 0))

    def _touch(self, state: NetworkState, rank: int, step: Step, at: int) -> tuple[Move, NetworkState] | None:
        """Return a step through a gate at a channel, cell or link, if it is open."""
        gate, content = step.row.gate, self.store.content(state.slots, at)
        if gate is None or isinstance(gate, Meet):
            raise ValueError(f"{step.row} has no gate at something shared")
        if isinstance(gate, Send | Receive):
            return self._take(
                state, rank, step, self.store.filled(state.slots, at, places.begin(gate, content, step.data))
            )
        touched = places.touch(gate, content, step.data)
        if touched is None:
            return None
        held = self.store.filled(state.slots, at, touched.after)
        if not isinstance(gate, TAKES):
            return self._take(state, rank, step, held)
        self.store.looked(gate.slot, touched.given)
        taken = self.lts[rank].take(state.locals[rank], step.row, touched.given)
        return None if taken is None else self._take(state, rank, taken, held)

    def _end(self, state: NetworkState, rank: int, inside: Send | Receive) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the end of a send or receive that a rank is in."""
        peer = self.peer(rank, state.locals[rank], inside)
        at = self.store.wire(inside.slot, rank, peer, receives=isinstance(inside, Receive))
        ended = places.end(inside, self.store.content(state.slots, at))
        if ended is None:
            return
        self.store.looked(inside.slot, ended.given)
        step = self.lts[rank].complete(state.locals[rank], ended.given)
        move, after = self._take(state, rank, step, self.store.filled(state.slots, at, ended.after))
        yield move._replace(ordinary=move.ordinary and ended.bound), after

    def peer(self, rank: int, local: int, inside: Send | Receive) -> int:
        """Return the rank with which a send or receive is that `rank` is in."""
        lts = self.lts[rank]
        found = lts.locals.items[local]
        row = lts.role.row(found.state, str(found.pending))
        peer: int = lts._slot(row, inside, found.vars)[1]
        return peer

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────

    def queue(self, rank: int, op: Collective, row: Row | None = None) -> int:
        """Return the queue of a rank's own list of a group. Raise ModelError where it is in none."""
        found = self.groups.queue_of[rank].get(op.group)
        if found is None:
            where = f"{self.lts[rank].role.name}" + (f", row {row}" if row else "")
            raise ModelError(f"rank{rank} is in no group `{op.group}`", where=where, do="see the group's `members`")
        return found

    def _completion(self, state: NetworkState, rank: int, op: Collective) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the collective that the host waits in, after all that it had issued before."""
        group = self.queue(rank, op)
        exit = self.groups.exit(state.queues[group], self.groups.seat[rank][group])
        if exit is None or not exit.last:
            return
        step = self.lts[rank].complete(state.locals[rank], exit.delivered)
        locals_ = with_item(state.locals, rank, step.target)
        queues = self._drop_finished(with_item(state.queues, group, exit.queue), locals_)
        after, held = self.lts[rank].info(step.target), state.slots
        if after.terminal or after.failed:
            held = self.store.without_rank(held, rank, failed=after.failed)
        move = self._move(rank, step, state.locals[rank])._replace(ordinary=exit.must, seen=step.seen + exit.seen)
        yield move, self._normal(NetworkState(locals_, queues, held, state.faults))

    def _on_device(self, state: NetworkState, rank: int, group: int, info: Info) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the earliest collective on the rank's stream, unless the host waits in it."""
        exit = self.groups.exit(state.queues[group], self.groups.seat[rank][group])
        if exit is None or (exit.last and info.op is not None and self.queue(rank, info.op) == group):
            return
        queues = self._drop_finished(with_item(state.queues, group, exit.queue), state.locals)
        name = exit.op.name
        move = Move(rank, name, "device", exit.must, False, False, exit.seen, None, name, False, True)
        yield move, state._replace(queues=queues)

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
        return state._replace(locals=locals_, queues=self.groups.rebased(state.queues, by))

    def _drop_finished(self, queues: tuple[int, ...], locals_: tuple[int, ...]) -> tuple[int, ...]:
        """Drop what every member has left, or has ended without. A failed one holds others up as a late one does."""
        infos = [lts.info(n) for lts, n in zip(self.lts, locals_, strict=True)]
        gone = tuple(i.terminal and not i.failed for i in infos)
        if not self.protocol.groups:
            return tuple(self.groups.without(queue, gone) if queue else 0 for queue in queues)
        return tuple(
            self.groups.without(queue, tuple(gone[rank] for rank in self.groups.lists[n][1])) if queue else 0
            for n, queue in enumerate(queues)
        )

    # ── who waits for whom ──────────────────────────────────────────────────────────────────────────

    def _outstanding(self, state: NetworkState, rank: int) -> bool:
        seats = self.groups.seat[rank]
        return any(
            i[seats[group]] > 0 for group in self.groups.devices[rank] for i in self.queues.items[state.queues[group]]
        )

    def _missing(self, state: NetworkState, rank: int, op: Collective) -> tuple[int, ...]:
        return self.groups.missing_of(state.queues, rank, self.queue(rank, op))

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

    @once
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
        for group in self.groups.devices[rank]:
            missing = self.groups.missing_of(state.queues, rank, group)
            if missing:
                return missing
        return ()

    def _gone_for(self, state: NetworkState, infos: Sequence[Info], rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for and that are no longer there to come."""
        op, inside = infos[rank].op, infos[rank].inside
        if inside is not None:
            bound = any(move.ordinary for move, _ in self._end(state, rank, inside))
            missing: tuple[int, ...] = () if bound else (self.peer(rank, state.locals[rank], inside),)
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
