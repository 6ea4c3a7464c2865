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
from ..tables import EMPTY, By, Collective, Data, Meet, Protocol, Put, Role, Scope, Slot, Take
from . import transport
from .lts import CRASHED as CRASHED
from .lts import Info, Interner, Lts, Menu, Step
from .properties import NO_MISPAIRING
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
    """Per channel and worker: 0 empty, else the number of the value in it."""
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
        for op in protocol.schedule:
            if op.root is not None and not 0 <= op.root < scope.ranks:
                what = f"the root of `{op.name}` is rank{op.root}, of {scope.ranks} ranks"
                raise ModelError(what, where=f"{protocol.name}, schedule", do="check it with more ranks")
        if stream:
            refuse_unordered_streams(protocol)
        self.kinds: Faults = {CRASH: None} if kinds is None else kinds
        self.faults, self.detection, self.stream = faults, detection, stream
        driver = Lts(protocol, protocol.driver, scope, stream=stream)
        worker = Lts(protocol, protocol.worker, scope, stream=stream)
        self.lts = [driver] + [worker] * (self.ranks - 1)
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self.values: Interner[Data] = Interner()
        self.values(None)
        self.queues: Interner[Queue] = Interner()
        self.queues(())
        self._moves: dict[tuple[int, int], Move] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        self._group = {name: n for n, name in enumerate(protocol.groups)}
        self.stream_groups = [self._group[g] for g in protocol.streams if g in self._group] if stream else []
        self._channel = {slot: n * (self.ranks - 1) for n, slot in enumerate(protocol.slots)}

    def initial(self) -> NetworkState:
        """Return all ranks at the start of their tables, nothing issued, all slots empty."""
        slots = (0,) * (len(self._channel) * (self.ranks - 1))
        return NetworkState(tuple(lts.initial for lts in self.lts), (0,) * len(self._group), slots, 0)

    def info(self, state: NetworkState, rank: int) -> Info:
        return self.lts[rank].info(state.locals[rank])

    def state_name(self, state: NetworkState, rank: int) -> str:
        """Return the state of one rank in its table, or CRASHED."""
        return self.info(state, rank).state

    def successors(self, state: NetworkState) -> Iterator[tuple[Move, NetworkState]]:
        """Yield every move that is possible, with the state it leads to, rank by rank in the order of the tables."""
        infos = [lts.info(n) for lts, n in zip(self.lts, state.locals, strict=True)]
        for rank, info in enumerate(infos):
            for group in self.stream_groups:
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
        if info.op is not None:
            local = self.lts[rank].locals.items[state.locals[rank]]
            return Waiting(rank, info.state, str(local.pending), info.op.name, self._missing(state, rank, info.op))
        own = self.lts[rank].menu(state.locals[rank]).own
        if not own or any(self._when_open(state, infos, rank, step) for step in own):
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
        return info.state != CRASHED and self.protocol.driver.by_name[info.state].phase in ("shutdown", "stopped")

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
        queues = self._drop_finished(tuple(self._leave(q, rank) for q in state.queues), locals_)
        move = Move(rank, event, event, False, True, cost == 0, (), None, "", False)
        return move, state._replace(locals=locals_, queues=queues, faults=state.faults + cost)

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
        if step.contribution is not None:
            group = self._group[step.contribution.op.group]
            queues = _with(queues, group, self._issue(queues[group], rank, self.contributions(step.contribution)))
        elif after.failed:
            queues = tuple(self._leave(q, rank) for q in queues)
        if after.terminal:
            queues = self._drop_finished(queues, locals_)
        held = state.slots if slots is None else slots
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
        value = state.slots[self._slot(rank, step)]
        return self.values.items[value - 1] if value else EMPTY

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
        if isinstance(gate, Put):
            if state.slots[at]:
                return None
            return self._take(state, rank, step, _with(state.slots, at, self.values(step.data) + 1))
        if not state.slots[at]:
            return None
        taken = self.lts[rank].take(state.locals[rank], step.row, self.values.items[state.slots[at] - 1])
        return None if taken is None else self._take(state, rank, taken, _with(state.slots, at, 0))

    def _slot(self, rank: int, step: Step) -> int:
        if step.slot is None:
            raise ValueError(f"{step.row} has no slot")
        return self._channel[step.slot[0]] + (step.slot[1] or rank) - 1

    def place(self, slot: Slot, worker: int) -> int:
        """Return where a worker's slot stands among the slots of a state. Raise ModelError where there is none."""
        if slot not in self._channel or not 1 <= worker < self.ranks:
            raise ModelError(f"there is no slot `{slot.name}` of rank{worker}", do="slots belong to workers, from 1")
        return self._channel[slot] + worker - 1

    def _completion(self, state: NetworkState, rank: int, op: Collective) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the collective that the host waits in, after all that it had issued before."""
        group = self._group[op.group]
        exit = self._exit(state.queues[group], rank)
        if exit is None or not exit.last:
            return
        step = self.lts[rank].complete(state.locals[rank], exit.delivered)
        locals_ = _with(state.locals, rank, step.target)
        queues = self._drop_finished(_with(state.queues, group, exit.queue), locals_)
        move = self._move(rank, step, state.locals[rank])._replace(ordinary=exit.must, seen=step.seen + exit.seen)
        yield move, self._normal(NetworkState(locals_, queues, state.slots, state.faults))

    def _on_device(self, state: NetworkState, rank: int, group: int, info: Info) -> Iterator[tuple[Move, NetworkState]]:
        """Yield the completion of the earliest collective on the rank's stream, unless the host waits in it."""
        exit = self._exit(state.queues[group], rank)
        if exit is None or (exit.last and info.op is not None and self._group[info.op.group] == group):
            return
        queues = self._drop_finished(_with(state.queues, group, exit.queue), state.locals)
        name = exit.op.name
        move = Move(rank, name, "device", exit.must, False, False, exit.seen, None, name, False, True)
        yield move, state._replace(queues=queues)

    @_once
    def _exit(self, queue: int, rank: int) -> _Exit | None:
        """Return the exit from the earliest collective of this queue that `rank` is in, if it may complete for it."""
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
        if not transport.in_reach(at, [_position(instances, member) for member in range(self.ranks)]):
            return None
        left = _with(instances, at, _with(instances[at], rank, -instances[at][rank]))
        last = at == _position(instances, rank) - 1
        seen = (NO_MISPAIRING.name,) if transport.mispaired(op, issued) else ()
        delivered = transport.delivered(op, rank, issued)
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
    def _issue(self, queue: int, rank: int, contribution: int) -> int:
        instances = self.queues.items[queue]
        at = _position(instances, rank)
        instance = instances[at] if at < len(instances) else (0,) * self.ranks
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
        return tuple(self._without(queue, gone) if queue else 0 for queue in queues)

    @_once
    def _without(self, queue: int, gone: tuple[bool, ...]) -> int:
        instances = self.queues.items[queue]
        start = 0
        while start < len(instances) and all(e < 0 or (e == 0 and gone[r]) for r, e in enumerate(instances[start])):
            start += 1
        return self.queues(instances[start:])

    # ── who waits for whom ──────────────────────────────────────────────────────────────────────────

    def _outstanding(self, state: NetworkState, rank: int) -> bool:
        return any(i[rank] > 0 for group in self.stream_groups for i in self.queues.items[state.queues[group]])

    def _missing(self, state: NetworkState, rank: int, op: Collective) -> tuple[int, ...]:
        return self._missing_from(state.queues[self._group[op.group]], rank)

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
        needed = transport.depends_on(mine.op, rank, self.ranks)
        missing = tuple(m for m in needed if m != rank and instance[m] == 0)
        # all those it depends on have issued: it waits for whoever has not, or for an equal signature
        late = missing or tuple(m for m in range(self.ranks) if m != rank and instance[m] == 0)
        return late or tuple(
            m
            for m in range(self.ranks)
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
        slot, whose = step.slot
        return self._other_ends(slot, whose or rank, rank, not isinstance(step.row.gate, Put))

    @_once
    def _other_ends(self, slot: Slot, owner: int, rank: int, fills: bool) -> tuple[int, ...]:
        """Return the other ranks whose tables can fill (else empty) this slot of worker `owner`."""

        def can(role: Role, me: int) -> bool:
            gates = (row.gate for row in role.rows if isinstance(row.gate, Put if fills else Take))
            return any(gate.slot == slot and (gate.worker is not None or me == owner) for gate in gates)

        return tuple(r for r in range(self.ranks) if r != rank and can(self.protocol.role(r), r))

    def _missing_on_stream(self, state: NetworkState, rank: int) -> tuple[int, ...]:
        for group in self.stream_groups:
            missing = self._missing_from(state.queues[group], rank)
            if missing:
                return missing
        return ()

    def _gone_for(self, state: NetworkState, infos: Sequence[Info], rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for and that are no longer there to come."""
        op = infos[rank].op
        missing = self._missing(state, rank, op) if op is not None else self._missing_on_stream(state, rank)
        return tuple(m for m in missing if infos[m].terminal)


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
