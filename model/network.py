"""rank0 and its workers, the transport between them, and faults: initial state, and every next state.

A network state is a tuple of small integers: one local per rank (see `lts.py`), a queue of unfinished
collectives per group, and the number of faults spent. Each collective in a queue holds one entry per
rank: 0 not issued, +c issued and waiting, -c issued and gone, where c numbers the contribution.

Left out: what is searched for (`properties.py`) and how (`checker/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import transport
from .lts import Info, Interner, Lts, Step
from .tables import By, Data, Protocol, Scope
from .transport import Contribution

Instance = tuple[int, ...]
Queue = tuple[Instance, ...]


class NetworkState(NamedTuple):
    """Everything at one moment."""

    locals: tuple[int, ...]
    queues: tuple[Queue, ...]
    faults: int


class Move(NamedTuple):
    """One step of the network. `ordinary`: neither fault nor detection, and bound to be possible (*must*)."""

    rank: int
    event: str
    edge: str
    """`step`, `issue`, `complete` or `crash`."""
    ordinary: bool
    advances: bool
    """Whether the rank is somewhere else afterwards."""
    seen: tuple[str, ...]
    data: Data
    op: str
    commits: bool


class Waiting(NamedTuple):
    """A rank inside a collective, and the members that it depends on and that have not issued it."""

    rank: int
    state: str
    event: str
    operation: str
    waiting_for: tuple[int, ...]


CRASHED = -1
"""The local of a rank that is dead."""
_DEAD = Info(None, True, True)


class Network:
    """The product of a protocol's roles over `scope.ranks` ranks.

    `crash` says whether a rank may die (at any point, its contribution made or not), `exceptions` whether
    a FAULT row may be taken; together at most `faults` times. `detection` says whether DETECTION rows run.
    """

    def __init__(
        self, protocol: Protocol, scope: Scope, *, faults: int = 1, crash: bool = True, detection: bool = True
    ) -> None:
        self.protocol, self.scope, self.ranks = protocol.validate(), scope, scope.ranks
        self.faults, self.crash, self.detection = faults, crash, detection
        driver = Lts(protocol, protocol.driver, scope)
        worker = Lts(protocol, protocol.worker, scope)
        self.lts = [driver] + [worker] * (self.ranks - 1)
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self._entries: dict[tuple[int, int], int] = {}
        self._group = {name: n for n, name in enumerate(protocol.groups)}

    def initial(self) -> NetworkState:
        """All ranks at the start of their tables, nothing issued."""
        return NetworkState(tuple(lts.initial for lts in self.lts), tuple(() for _ in self._group), 0)

    def info(self, state: NetworkState, rank: int) -> Info:
        number = state.locals[rank]
        return _DEAD if number == CRASHED else self.lts[rank].info(number)

    def state_name(self, state: NetworkState, rank: int) -> str:
        """The state of one rank in its table, or CRASHED."""
        number = state.locals[rank]
        return "CRASHED" if number == CRASHED else self.lts[rank].locals.items[number].state

    def successors(self, state: NetworkState) -> Iterator[tuple[Move, NetworkState]]:
        """Every move that is possible, with the state it leads to, rank by rank in the order of the tables."""
        trouble = any(self.info(state, r).failed for r in range(self.ranks))
        for rank in range(self.ranks):
            info = self.info(state, rank)
            if info.terminal:
                continue
            lts, number = self.lts[rank], state.locals[rank]
            if info.op is not None:
                yield from self._completion(state, rank, info)
            detected: bool | None = None
            for step in lts.steps(number):
                if step.row.by is By.FAULT:
                    continue
                if step.row.by is By.DETECTION:
                    if not self.detection or step.row.event != "peer_lost":
                        continue
                    if detected is None:
                        detected = trouble or bool(self._gone_for(state, rank, info))
                    if not detected:
                        continue
                yield self._take(state, rank, step)
            if self.crash and state.faults < self.faults:
                locals_ = (*state.locals[:rank], CRASHED, *state.locals[rank + 1 :])
                move = Move(rank, "crash", "crash", False, True, (), None, "", False)
                queues = self._tidy(self._leave(state.queues, rank), locals_)
                yield move, NetworkState(locals_, queues, state.faults + 1)

    def waiting(self, state: NetworkState, rank: int) -> Waiting | None:
        """In which collective `rank` waits, and for whom; None if it is in none."""
        info = self.info(state, rank)
        if info.op is None:
            return None
        local = self.lts[rank].locals.items[state.locals[rank]]
        missing = self._missing(state, rank, info)
        return Waiting(rank, local.state, str(local.pending), info.op.name, missing)

    def violations(self, state: NetworkState) -> tuple[bool, bool]:
        """(some rank has failed or died, every rank has reached its end)."""
        infos = [self.info(state, r) for r in range(self.ranks)]
        return any(i.failed for i in infos), all(i.terminal for i in infos)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _take(self, state: NetworkState, rank: int, step: Step) -> tuple[Move, NetworkState]:
        locals_ = (*state.locals[:rank], step.target, *state.locals[rank + 1 :])
        queues = state.queues
        if step.contribution is not None:
            group = self._group[step.contribution.op.group]
            queue = self._issue(queues[group], rank, self.contributions(step.contribution))
            queues = (*queues[:group], queue, *queues[group + 1 :])
        elif self.lts[rank].info(step.target).failed:
            queues = self._leave(queues, rank)
        if self.lts[rank].info(step.target).terminal:
            queues = self._tidy(queues, locals_)
        ordinary = step.row.by is not By.DETECTION
        move = self._move(rank, step, ordinary, step.target != state.locals[rank])
        return move, self._normal(NetworkState(locals_, queues, state.faults))

    def _completion(self, state: NetworkState, rank: int, info: Info) -> Iterator[tuple[Move, NetworkState]]:
        op = info.op
        if op is None:
            return
        group = self._group[op.group]
        queue = state.queues[group]
        at = self._position(queue, rank) - 1
        issued = [self.contributions.items[abs(entry)] for entry in queue[at]]
        if not transport.may_complete(op, rank, issued):
            return
        if any(self._position(queue, member) < at + 1 - transport.RUN_AHEAD for member in range(self.ranks)):
            return
        step = self.lts[rank].complete(state.locals[rank], transport.delivered(op, rank, issued))
        locals_ = (*state.locals[:rank], step.target, *state.locals[rank + 1 :])
        entry = (*queue[at][:rank], -queue[at][rank], *queue[at][rank + 1 :])
        queues = (*state.queues[:group], (*queue[:at], entry, *queue[at + 1 :]), *state.queues[group + 1 :])
        must = transport.must_complete(op, issued)
        after = NetworkState(locals_, self._tidy(queues, locals_), state.faults)
        yield self._move(rank, step, must, True), self._normal(after)

    def _move(self, rank: int, step: Step, ordinary: bool, advances: bool) -> Move:
        op = step.row.op.name if step.row.op else ""
        return Move(rank, step.row.event, step.edge, ordinary, advances, step.seen, step.data, op, step.row.commits)

    def _normal(self, state: NetworkState) -> NetworkState:
        """The same state with ids counted from the driver's: a stream of heartbeats goes round, not on."""
        driver = state.locals[0]
        by = 0 if driver == CRASHED else -self.lts[0].base(driver)
        if by == 0:
            return state
        locals_ = tuple(
            n if n == CRASHED else lts.rebased(n, by) for lts, n in zip(self.lts, state.locals, strict=True)
        )
        queues = tuple(
            tuple(tuple(self._rebased(entry, by) for entry in instance) for instance in queue) for queue in state.queues
        )
        return NetworkState(locals_, queues, state.faults)

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
        return (*queue[:at], (*instance[:rank], contribution, *instance[rank + 1 :]), *queue[at + 1 :])

    @staticmethod
    def _leave(queues: tuple[Queue, ...], rank: int) -> tuple[Queue, ...]:
        """The rank is no longer in any collective; what it had put in stays there."""
        return tuple(
            tuple((*i[:rank], -abs(i[rank]), *i[rank + 1 :]) if i[rank] > 0 else i for i in queue) for queue in queues
        )

    def _tidy(self, queues: tuple[Queue, ...], locals_: tuple[int, ...]) -> tuple[Queue, ...]:
        """Drop what every member has left, or will never issue."""
        gone = [n == CRASHED or self.lts[r].info(n).terminal for r, n in enumerate(locals_)]

        def over(instance: Instance) -> bool:
            return all(entry < 0 or (entry == 0 and gone[r]) for r, entry in enumerate(instance))

        tidy = []
        for queue in queues:
            start = 0
            while start < len(queue) and over(queue[start]):
                start += 1
            tidy.append(queue[start:])
        return tuple(tidy)

    def _missing(self, state: NetworkState, rank: int, info: Info) -> tuple[int, ...]:
        op = info.op
        if op is None:
            return ()
        queue = state.queues[self._group[op.group]]
        instance = queue[self._position(queue, rank) - 1]
        needed = transport.depends_on(op, rank, self.ranks)
        missing = tuple(m for m in needed if m != rank and instance[m] == 0)
        if missing:
            return missing
        # all those it depends on have issued: it waits for whoever has not, or for an equal signature
        late = tuple(m for m in range(self.ranks) if m != rank and instance[m] == 0)
        return late or tuple(
            m
            for m in range(self.ranks)
            if (c := self.contributions.items[abs(instance[m])]) and c.op.signature != op.signature
        )

    def _gone_for(self, state: NetworkState, rank: int, info: Info) -> tuple[int, ...]:
        """The members that `rank` waits for and that are no longer there to come."""
        return tuple(m for m in self._missing(state, rank, info) if self.info(state, m).terminal)
