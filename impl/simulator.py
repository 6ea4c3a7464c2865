"""Many ranks in one process: their conductors, a seeded scheduler, and collectives in memory.

The collectives obey `model.transport`: the same rules that the checker searches. Left out: virtual time and
injected faults.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model import transport
from ..model.tables import Collective, Kind
from ..model.transport import Contribution
from .conductor import Conductor
from .operations import Call, Exchange, Moves


@dataclass
class _Instance:
    """One collective: what each rank put in, and who has left."""

    issued: dict[int, tuple[Collective, Exchange | Call]] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)


class Simulation:
    """Ranks that share in-memory groups. Each is driven by its conductor; the scheduler picks who completes next."""

    def __init__(self, conductors: Sequence[Conductor], seed: int = 0) -> None:
        self.conductors = conductors
        self.random = random.Random(seed)
        self.errors: dict[int, BaseException] = {}
        """What a rank's coroutine raised."""
        self._queues: dict[str, list[_Instance]] = {}
        self._issued: dict[tuple[int, str], int] = {}
        self._waiting: dict[int, tuple[Collective, int]] = {}
        self.gone: set[int] = set()

    def start(self, rank: int, moves: Moves[Any]) -> None:
        """Begin a coroutine on a rank that runs none."""
        self._went_on(rank, lambda: self.conductors[rank].start(moves))

    def busy(self, rank: int) -> bool:
        """Whether the rank waits in a collective."""
        return rank in self._waiting

    def ready(self) -> list[int]:
        """The ranks whose collective may complete now."""
        return [rank for rank in sorted(self._waiting) if self._may_complete(rank)]

    def complete(self, rank: int) -> None:
        """Let the collective of `rank` complete, and the rank run to its next one."""
        op, at = self._waiting.pop(rank)
        instance = self._queues[op.group][at]
        instance.left.add(rank)
        operation = instance.issued[rank][1]
        delivered = self._deliver(op, rank, instance)
        if isinstance(operation, Call):
            operation.work()
        self._went_on(rank, lambda: self.conductors[rank].advance(delivered))

    def run(self, *, until_idle: Sequence[int] = ()) -> None:
        """Complete collectives in an order that the seed decides, until none may, or all of `until_idle` are idle."""
        while ready := self.ready():
            if until_idle and not any(self.busy(rank) for rank in until_idle):
                return
            self.complete(self.random.choice(ready))

    def waits(self) -> Mapping[int, tuple[str, tuple[int, ...]]]:
        """Each waiting rank's collective, and the members that have not issued it."""
        found = {}
        for rank, (op, at) in self._waiting.items():
            issued = self._queues[op.group][at].issued
            found[rank] = (op.name, tuple(r for r in range(len(self.conductors)) if r not in issued))
        return found

    def _went_on(self, rank: int, go_on: Any) -> None:
        try:
            pending = go_on()
        except Exception as error:
            self.errors[rank] = error
            return
        if pending is not None:
            self._issue(rank, *pending)

    def _issue(self, rank: int, op: Collective, operation: Exchange | Call) -> None:
        at = self._issued.get((rank, op.group), 0)
        self._issued[rank, op.group] = at + 1
        queue = self._queues.setdefault(op.group, [])
        if at == len(queue):
            queue.append(_Instance())
        queue[at].issued[rank] = (op, operation)
        self._waiting[rank] = (op, at)

    def _may_complete(self, rank: int) -> bool:
        op, at = self._waiting[rank]
        issued = self._queues[op.group][at].issued
        ranks = range(len(self.conductors))
        seen = [Contribution(issued[r][0], None) if r in issued else None for r in ranks]
        counts = [self._issued.get((r, op.group), 0) for r in ranks]
        return transport.may_complete(op, rank, seen) and transport.in_reach(at, counts)

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
