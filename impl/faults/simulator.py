"""Runs many ranks in one process: their conductors, collectives in memory, virtual time, and a seeded scheduler.

The collectives obey `model.transport`: the same rules that the checker searches. How long each one takes is drawn
from the seed, so that any order may come, and whatever happens replays exactly from the seed. Faults strike where
`strikes` says. Detection is as in a real run: a rank that waits for one that is gone notices after a while
(`peer_lost`), and a rank that makes no progress ends itself when the deadline of its phase has passed.

Left out: the application, and the backend's garbage where ranks disagree about a collective.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ContractViolation, Exit, GenlockError, Refused
from ...model.semantics import transport
from ...model.semantics.transport import Contribution
from ...model.tables import Collective, Kind
from ...traces.format import Cause, Dropped, Edge, End, Event, Trace, TraceHeader, name_of
from ..rank.conductor import Conductor
from ..rank.operations import Call, Exchange, Moves
from ..scenario import DEADLINES

LATENCY = 0.001
"""Seconds that a collective takes on average, once it may complete."""
NOTICE = 0.05
"""Seconds, at most, until a rank that waits for a dead one is told so."""


class Gone(BaseException):
    """Marks the rank as dead from here on: it says nothing more."""


class Stalled(BaseException):
    """Marks the rank as stalled: it takes no further step, and does not die either."""


class Memory:
    """Keeps a rank's trace in memory; `clock` gives virtual seconds."""

    def __init__(self, header: TraceHeader, clock: Callable[[], float]) -> None:
        self.header, self.clock = header, clock
        self.lines: list[Event | Dropped | End] = []

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Keep one event."""
        self.lines.append(Event(len(self.lines), self._ns(), transition, edge, state, phase, **facts))

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Keep why the rank ends; the first call counts."""
        if not (self.lines and isinstance(self.lines[-1], End)):
            self.lines.append(End(len(self.lines), self._ns(), cause, exit, message, culprit))

    def trace(self) -> Trace:
        """Return the trace as if it had been written and read."""
        numbers = tuple(range(2, len(self.lines) + 2))
        return Trace(Path(name_of(self.header.rank)), self.header, tuple(self.lines), numbers, cut=False)

    def _ns(self) -> int:
        return int(self.clock() * 1e9)


@dataclass
class _Instance:
    """Holds one collective: what each rank put in."""

    issued: dict[int, tuple[Collective, Exchange | Call]] = field(default_factory=dict)
    seen: list[Contribution | None] = field(default_factory=list)
    """By rank, as `model.transport` has it."""


@dataclass
class _Wait:
    """Holds a rank's wait in a collective: which, since when, and when it is due to leave or to hear that it cannot."""

    op: Collective
    at: int
    since: float
    due: float | None = None
    told: float | None = None


Deliver = Callable[[int, Collective, torch.Tensor], None]


class Simulation:
    """Runs ranks that share in-memory groups.

    Each is driven by its conductor; the scheduler picks what happens next.

    `tamper` is shown every tensor that a rank received, and may change it. With `aborts` a rank whose coroutine
    raises is poisoned and gone, as in a real run; without, it is left as it is in `errors`.
    """

    def __init__(
        self,
        conductors: Sequence[Conductor],
        seed: int = 0,
        *,
        deadlines: Mapping[str, float] = DEADLINES,
        tamper: Deliver | None = None,
        aborts: bool = False,
    ) -> None:
        self.conductors = conductors
        self.random = random.Random(seed)
        self.deadlines, self.tamper, self.aborts = deadlines, tamper, aborts
        self.now = 0.0
        """Virtual seconds since the start."""
        self.errors: dict[int, BaseException] = {}
        """The error that a rank's coroutine raised."""
        self.gone: set[int] = set()
        """Ranks that are dead, whether they said so or not."""
        self.stalled: set[int] = set()
        """Ranks that take no steps, and say nothing."""
        self._queues: dict[str, list[_Instance]] = {}
        self._issued: dict[str, list[int]] = {}
        """Group to how many collectives each rank has issued there."""
        self._waiting: dict[int, _Wait] = {}

    def start(self, rank: int, moves: Moves[Any]) -> None:
        """Begin a coroutine on a rank that runs none."""
        self._went_on(rank, lambda: self.conductors[rank].start(moves))

    def busy(self, rank: int) -> bool:
        """Say whether the rank waits in a collective."""
        return rank in self._waiting

    def ready(self) -> list[int]:
        """Return the ranks whose collective may complete now."""
        return [rank for rank in sorted(self._waiting) if self._may_complete(rank)]

    def complete(self, rank: int) -> None:
        """Let the collective of `rank` complete, and the rank run to its next one."""
        wait = self._waiting.pop(rank)
        instance = self._queues[wait.op.group][wait.at]
        operation = instance.issued[rank][1]
        delivered = self._deliver(wait.op, rank, instance)
        if self.tamper is not None and isinstance(delivered, torch.Tensor):
            self.tamper(rank, wait.op, delivered)

        def go_on() -> Any:
            if isinstance(operation, Call):
                operation.work()
            return self.conductors[rank].advance(delivered)

        self._went_on(rank, go_on)

    def run(self, *, until_idle: Sequence[int] = ()) -> None:
        """Let happen what is due, in virtual time, until nothing is, or all of `until_idle` are idle."""
        while not until_idle or any(self.busy(rank) for rank in until_idle):
            if (due := self._next()) is None:
                return
            self.now, rank, what = due
            what(rank)

    @property
    def stuck(self) -> bool:
        """Say whether rank0 can do nothing more: it is gone, stalled, or left waiting."""
        return 0 in self.gone or 0 in self.stalled or self.busy(0)

    def kill(self, rank: int) -> None:
        """Let the rank die where it stands; what it has put into a collective stays there."""
        self.gone.add(rank)
        self._waiting.pop(rank, None)

    def fail(self, rank: int, error: BaseException, event: str = "exception") -> None:
        """Poison the rank: it says so in its trace, and is gone."""
        conductor = self.conductors[rank]
        conductor.fail(error, event)
        self.kill(rank)
        if conductor.recorder is not None:
            known = event if event in ("peer_lost", "deadline") else None
            violated = "violation" if isinstance(error, ContractViolation) else "exception"
            status = error.exit if isinstance(error, GenlockError) else Exit.CONTRACT
            conductor.recorder.end(known or violated, status, str(error))  # type: ignore[arg-type]

    def waits(self) -> Mapping[int, tuple[str, tuple[int, ...]]]:
        """Return each waiting rank's collective, and the members that have not issued it."""
        found = {}
        for rank, wait in self._waiting.items():
            issued = self._queues[wait.op.group][wait.at].issued
            found[rank] = (wait.op.name, tuple(r for r in range(len(self.conductors)) if r not in issued))
        return found

    def _next(self) -> tuple[float, int, Callable[[int], None]] | None:
        """Choose what happens next: a completion, a rank that hears of a dead peer, or a deadline."""
        due: list[tuple[float, int, Callable[[int], None]]] = []
        for rank, wait in sorted(self._waiting.items()):
            if rank in self.stalled:
                continue
            if wait.due is None and self._may_complete(rank):
                wait.due = self.now + self.random.expovariate(1 / LATENCY)
            if wait.due is not None:  # what may complete once may so for good: nobody takes back what it has issued
                due.append((wait.due, rank, self.complete))
                continue
            if self.gone:
                if wait.told is None:
                    wait.told = self.now + self.random.random() * NOTICE
                due.append((wait.told, rank, self._lost))
            limit = self.deadlines.get(self.conductors[rank].monitor.phase)
            if limit is not None and (self.gone or self.stalled):
                due.append((wait.since + limit, rank, self._expire))
        return min(due, key=lambda d: d[:2], default=None)

    def _lost(self, rank: int) -> None:
        self.fail(rank, GenlockError(f"rank{rank} lost a peer"), "peer_lost")

    def _expire(self, rank: int) -> None:
        wait = self._waiting[rank]
        self.fail(rank, GenlockError(f"rank{rank} made no progress in {wait.op.name}"), "deadline")

    def _went_on(self, rank: int, go_on: Callable[[], Any]) -> None:
        try:
            pending = go_on()
        except Gone:
            self.kill(rank)
            return
        except Stalled:
            self.stalled.add(rank)
            return
        except Exception as error:
            self.errors[rank] = error
            if self.aborts and not isinstance(error, Refused):
                self.fail(rank, error)
            return
        if pending is not None:
            self._issue(rank, *pending)

    def _issue(self, rank: int, op: Collective, operation: Exchange | Call) -> None:
        ranks = len(self.conductors)
        issued = self._issued.setdefault(op.group, [0] * ranks)
        at = issued[rank]
        issued[rank] += 1
        queue = self._queues.setdefault(op.group, [])
        if at == len(queue):
            queue.append(_Instance(seen=[None] * ranks))
        queue[at].issued[rank] = (op, operation)
        queue[at].seen[rank] = Contribution(op, None)
        self._waiting[rank] = _Wait(op, at, self.now)

    def _may_complete(self, rank: int) -> bool:
        wait = self._waiting[rank]
        group = wait.op.group
        seen = self._queues[group][wait.at].seen
        return transport.may_complete(wait.op, rank, seen) and transport.in_reach(wait.at, self._issued[group])

    @staticmethod
    def _deliver(op: Collective, rank: int, instance: _Instance) -> Any:
        def tensor(member: int) -> torch.Tensor:
            operation = instance.issued[member][1]
            if not isinstance(operation, Exchange):
                raise TypeError(f"rank{member} is in a generator call")
            return operation.tensor

        if op.kind is Kind.ALL_REDUCE:
            return None
        if op.kind is Kind.BROADCAST:
            mine, root = tensor(rank), op.root or 0
            if rank != root:
                mine.copy_(tensor(root))
            return mine
        if op.kind is Kind.GATHER and rank != op.root:
            return None
        return [tensor(member).clone() for member in sorted(instance.issued)]
