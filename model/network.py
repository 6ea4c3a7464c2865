"""rank0 and its workers, the transport between them, and faults: initial state, and every next state.

A network state is a tuple of small integers: one local per rank (see `lts.py`), a queue of unfinished
collectives per group, the slots of the channels, and the number of faults spent. Each collective in a
queue holds one entry per rank: 0 not issued, +c issued and waiting, -c issued and gone, where c numbers
the contribution.

Left out: what is searched for (`properties.py`) and how (`checker/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from . import transport
from .lts import CRASHED as CRASHED
from .lts import Info, Interner, Lts, Step
from .properties import NO_MISPAIRING
from .tables import By, Collective, Data, Meet, Protocol, Put, Scope
from .transport import Contribution

Instance = tuple[int, ...]
Queue = tuple[Instance, ...]

CRASH, STALL = "crash", "stall"
"""The faults that need no row: a rank dies, its contribution made or not; a rank takes no steps, and may resume."""


class Point(NamedTuple):
    """Where a fault may strike. A crash or stall strikes rank0, or the rank that is named, while some rank is in
    `state`; the other kinds strike a rank that is itself in it."""

    state: str
    rank: int | None = None

    def __str__(self) -> str:
        return self.state if self.rank is None else f"rank{self.rank}.{self.state}"


Faults = Mapping[str, frozenset[Point] | None]
"""Kind of fault to the points at which it may strike. None: anywhere, any rank."""


class NetworkState(NamedTuple):
    """Everything at one moment."""

    locals: tuple[int, ...]
    queues: tuple[Queue, ...]
    slots: tuple[int, ...]
    """Per channel and worker: 0 empty, else the number of the value in it."""
    faults: int


class Move(NamedTuple):
    """One step of the network. `ordinary`: neither fault nor detection, and bound to be possible (*must*)."""

    rank: int
    event: str
    edge: str
    """`step`, `issue`, `complete`, `device` (completes on the stream), `crash`, `stall`, `resume` or `killed`."""
    ordinary: bool
    advances: bool
    """Whether the rank's host is somewhere else afterwards."""
    detects: bool
    seen: tuple[str, ...]
    data: Data
    op: str
    commits: bool


class Waiting(NamedTuple):
    """A rank that cannot go on by itself, in which operation, and the members that it waits for."""

    rank: int
    state: str
    event: str
    operation: str
    waiting_for: tuple[int, ...]


class Network:
    """The product of a protocol's roles over `scope.ranks` ranks.

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
        self.protocol, self.scope, self.ranks = protocol.validate(), scope, scope.ranks
        self.kinds: Faults = {CRASH: None} if kinds is None else kinds
        self.faults, self.detection, self.stream = faults, detection, stream
        driver = Lts(protocol, protocol.driver, scope, stream=stream)
        worker = Lts(protocol, protocol.worker, scope, stream=stream)
        self.lts = [driver] + [worker] * (self.ranks - 1)
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self.values: Interner[Data] = Interner()
        self.values(None)
        self._entries: dict[tuple[int, int], int] = {}
        self._group = {name: n for n, name in enumerate(protocol.groups)}
        self._streams = [self._group[g] for g in protocol.streams if g in self._group] if stream else []
        self._channel = {slot: n * (self.ranks - 1) for n, slot in enumerate(protocol.slots)}

    def initial(self) -> NetworkState:
        """All ranks at the start of their tables, nothing issued, all slots empty."""
        slots = (0,) * (len(self._channel) * (self.ranks - 1))
        return NetworkState(tuple(lts.initial for lts in self.lts), tuple(() for _ in self._group), slots, 0)

    def info(self, state: NetworkState, rank: int) -> Info:
        return self.lts[rank].info(state.locals[rank])

    def state_name(self, state: NetworkState, rank: int) -> str:
        """The state of one rank in its table, or CRASHED."""
        return self.info(state, rank).state

    def successors(self, state: NetworkState) -> Iterator[tuple[Move, NetworkState]]:
        """Every move that is possible, with the state it leads to, rank by rank in the order of the tables."""
        infos = [lts.info(n) for lts, n in zip(self.lts, state.locals, strict=True)]
        trouble = any(i.failed for i in infos)
        may_fault = state.faults < self.faults
        for rank, info in enumerate(infos):
            for group in self._streams:
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
            detected: bool | None = None
            for step in self.lts[rank].steps(state.locals[rank]):
                if step.row.by is By.FAULT:
                    if may_fault and self._strikes(step.row.fault, rank, infos):
                        yield self._take(state, rank, step)
                    continue
                if step.row.by is By.DETECTION:
                    if not self.detection or step.row.event == "deadline":
                        continue
                    if detected is None:
                        detected = trouble or bool(self._gone_for(state, infos, rank))
                    if not detected:
                        continue
                if step.row.gate is not None or step.row.syncs:
                    ready = self._through_gate(state, infos, rank, step)
                    if ready is not None:
                        yield ready
                    continue
                yield self._take(state, rank, step)
            if may_fault and self._strikes(CRASH, rank, infos):
                yield self._die(state, rank, CRASH, 1)
            if may_fault and self._strikes(STALL, rank, infos):
                yield self._stall(state, rank)

    def waiting(self, state: NetworkState, rank: int) -> Waiting | None:
        """What `rank` waits in, and for whom; None if it has a step of its own."""
        infos = [self.info(state, r) for r in range(self.ranks)]
        info = infos[rank]
        if info.terminal or info.stalled:
            return None
        if info.op is not None:
            local = self.lts[rank].locals.items[state.locals[rank]]
            return Waiting(rank, info.state, str(local.pending), info.op.name, self._missing(state, rank, info.op))
        for step in self.lts[rank].steps(state.locals[rank]):
            if step.row.by in (By.FAULT, By.DETECTION):
                continue
            if (step.row.gate is None and not step.row.syncs) or self._through_gate(state, infos, rank, step):
                return None
            missing = self._behind_gate(state, infos, rank, step)
            name = step.slot[0].name if step.slot else ("stream" if step.row.syncs else "counters")
            return Waiting(rank, info.state, step.row.event, name, missing)
        return None

    def verdict(self, state: NetworkState) -> tuple[bool, bool]:
        """(some rank has failed, died or stalled; every rank has reached its end)."""
        infos = [self.info(state, r) for r in range(self.ranks)]
        return any(i.failed or i.stalled for i in infos), all(i.terminal for i in infos)

    def shutting_down(self, state: NetworkState) -> bool:
        """Whether rank0 is on its way to STOPPED, or there."""
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
        queues = self._tidy(self._leave(state.queues, rank), locals_)
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
            queue = self._issue(queues[group], rank, self.contributions(step.contribution))
            queues = _with(queues, group, queue)
        elif after.failed:
            queues = self._leave(queues, rank)
        if after.terminal:
            queues = self._tidy(queues, locals_)
        fault = step.row.by is By.FAULT
        detects = step.row.by is By.DETECTION
        move = self._move(rank, step, not fault and not detects, step.target != state.locals[rank], detects)
        held = state.slots if slots is None else slots
        return move, self._normal(NetworkState(locals_, queues, held, state.faults + fault))

    def _through_gate(
        self, state: NetworkState, infos: Sequence[Info], rank: int, step: Step
    ) -> tuple[Move, NetworkState] | None:
        """The step, if its gate is open: a slot empty or full, all counters there, or the stream run dry."""
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

    def _completion(self, state: NetworkState, rank: int, op: Collective) -> Iterator[tuple[Move, NetworkState]]:
        """The collective that the host waits in completes for it, after all that it had issued before."""
        group = self._group[op.group]
        queue = state.queues[group]
        at = self._position(queue, rank) - 1
        if any(instance[rank] > 0 for instance in queue[:at]):
            return
        issued = self._ready(queue, at, rank, op)
        if issued is None:
            return
        step = self.lts[rank].complete(state.locals[rank], transport.delivered(op, rank, issued))
        locals_ = _with(state.locals, rank, step.target)
        queues = self._tidy(_with(state.queues, group, self._left(queue, at, rank)), locals_)
        seen = step.seen + self._mispaired(op, issued)
        move = self._move(rank, step, transport.must_complete(op, issued), True)._replace(seen=seen)
        yield move, self._normal(NetworkState(locals_, queues, state.slots, state.faults))

    def _on_device(self, state: NetworkState, rank: int, group: int, info: Info) -> Iterator[tuple[Move, NetworkState]]:
        """The earliest collective on the rank's stream completes, unless the host waits in it."""
        queue = state.queues[group]
        at = next((n for n, instance in enumerate(queue) if instance[rank] > 0), None)
        if at is None:
            return
        if info.op is not None and self._group[info.op.group] == group and at == self._position(queue, rank) - 1:
            return
        contribution = self.contributions.items[queue[at][rank]]
        if contribution is None:
            return
        issued = self._ready(queue, at, rank, contribution.op)
        if issued is None:
            return
        queues = self._tidy(_with(state.queues, group, self._left(queue, at, rank)), state.locals)
        op = contribution.op
        must, seen = transport.must_complete(op, issued), self._mispaired(op, issued)
        yield (
            Move(rank, op.name, "device", must, False, False, seen, None, op.name, False),
            state._replace(queues=queues),
        )

    def _ready(self, queue: Queue, at: int, rank: int, op: Collective) -> list[Contribution | None] | None:
        """What each member has put in, if the collective may complete for `rank`."""
        issued = [self.contributions.items[abs(entry)] for entry in queue[at]]
        if not transport.may_complete(op, rank, issued):
            return None
        if any(self._position(queue, member) < at + 1 - transport.RUN_AHEAD for member in range(self.ranks)):
            return None
        return issued

    @staticmethod
    def _mispaired(op: Collective, issued: Sequence[Contribution | None]) -> tuple[str, ...]:
        return (NO_MISPAIRING.name,) if transport.mispaired(op, issued) else ()

    def _move(self, rank: int, step: Step, ordinary: bool, advances: bool, detects: bool = False) -> Move:
        row = step.row
        op = row.op.name if row.op else (step.slot[0].name if step.slot else "")
        return Move(rank, row.event, step.edge, ordinary, advances, detects, step.seen, step.data, op, row.commits)

    def _normal(self, state: NetworkState) -> NetworkState:
        """The same state with ids counted from the driver's: a stream of heartbeats goes round, not on."""
        by = -self.lts[0].base(state.locals[0])
        if by == 0:
            return state
        locals_ = tuple(lts.rebased(n, by) for lts, n in zip(self.lts, state.locals, strict=True))
        queues = tuple(
            tuple(tuple(self._rebased(entry, by) for entry in instance) for instance in queue) for queue in state.queues
        )
        return state._replace(locals=locals_, queues=queues)

    def _rebased(self, entry: int, by: int) -> int:
        found = self._entries.get((entry, by))
        if found is None:
            contribution = self.contributions.items[abs(entry)]
            if contribution is not None and self.protocol.frame is not None:
                value = self.protocol.frame.rebase(contribution.value, by)
                number = self.contributions(contribution._replace(value=value))
                found = -number if entry < 0 else number
            else:
                found = entry
            self._entries[entry, by] = found
        return found

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _position(queue: Queue, rank: int) -> int:
        """How many collectives of the queue `rank` has issued."""
        for at, instance in enumerate(queue):
            if instance[rank] == 0:
                return at
        return len(queue)

    def _issue(self, queue: Queue, rank: int, contribution: int) -> Queue:
        at = self._position(queue, rank)
        instance = queue[at] if at < len(queue) else (0,) * self.ranks
        return (*queue[:at], _with(instance, rank, contribution), *queue[at + 1 :])

    @staticmethod
    def _left(queue: Queue, at: int, rank: int) -> Queue:
        return _with(queue, at, _with(queue[at], rank, -queue[at][rank]))

    @staticmethod
    def _leave(queues: tuple[Queue, ...], rank: int) -> tuple[Queue, ...]:
        """The rank is no longer in any collective; what it had put in stays there."""
        return tuple(tuple(_with(i, rank, -abs(i[rank])) if i[rank] > 0 else i for i in queue) for queue in queues)

    def _tidy(self, queues: tuple[Queue, ...], locals_: tuple[int, ...]) -> tuple[Queue, ...]:
        """Drop what every member has left, or will never issue."""
        gone = [lts.info(n).terminal for lts, n in zip(self.lts, locals_, strict=True)]

        def over(instance: Instance) -> bool:
            return all(entry < 0 or (entry == 0 and gone[r]) for r, entry in enumerate(instance))

        tidy = []
        for queue in queues:
            start = 0
            while start < len(queue) and over(queue[start]):
                start += 1
            tidy.append(queue[start:])
        return tuple(tidy)

    # ── who waits for whom ──────────────────────────────────────────────────────────────────────────

    def _outstanding(self, state: NetworkState, rank: int) -> bool:
        return any(instance[rank] > 0 for group in self._streams for instance in state.queues[group])

    def _missing(self, state: NetworkState, rank: int, op: Collective) -> tuple[int, ...]:
        queue = state.queues[self._group[op.group]]
        mine = [n for n, instance in enumerate(queue) if instance[rank] > 0]
        return self._missing_in(queue[mine[0]], rank) if mine else ()

    def _missing_in(self, instance: Instance, rank: int) -> tuple[int, ...]:
        """The members that `rank` waits for in a collective that it has issued."""
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
            if (c := self.contributions.items[abs(instance[m])]) and not transport.same_on_the_wire(c.op, mine.op)
        )

    def _behind_gate(self, state: NetworkState, infos: Sequence[Info], rank: int, step: Step) -> tuple[int, ...]:
        if step.row.syncs:
            return self._missing_on_stream(state, rank)
        if isinstance(step.row.gate, Meet):
            return tuple(r for r, i in enumerate(infos) if i.counter < infos[rank].counter)
        return (step.slot[1],) if step.slot and step.slot[1] else (0,)

    def _missing_on_stream(self, state: NetworkState, rank: int) -> tuple[int, ...]:
        for group in self._streams:
            for instance in state.queues[group]:
                if instance[rank] > 0:
                    return self._missing_in(instance, rank)
        return ()

    def _gone_for(self, state: NetworkState, infos: Sequence[Info], rank: int) -> tuple[int, ...]:
        """The members that `rank` waits for and that are no longer there to come."""
        op = infos[rank].op
        missing = self._missing(state, rank, op) if op is not None else self._missing_on_stream(state, rank)
        return tuple(m for m in missing if infos[m].terminal)


def _with(items: tuple[Data, ...], at: int, item: Data) -> tuple[Data, ...]:
    """`items` with one of them replaced."""
    return (*items[:at], item, *items[at + 1 :])
