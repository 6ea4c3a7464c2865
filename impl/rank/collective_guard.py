"""Lets through only the collectives that the table has this rank in: no other reaches the backend.

A move of the control plane is exactly one collective, as its row has it. A generator call is one abstract collective
in the table, and many on the wire: all of that kind, on that group, counted and hashed here, so that a generator
needs no ledger of its own. Whatever comes from another thread, or while no collective is due, is refused.

Left out: collectives that pass the interceptor unseen (`intercept.BLIND_SPOTS`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ...errors import ContractViolation
from ...model.tables import Collective
from ...traces.recorder import Recorder
from ..chunk import digest
from ..recording.c10d_intercept import Operation, caller, site
from .monitor import Monitor
from .roles import Run, Scalars


@dataclass(frozen=True, slots=True)
class Inside:
    """What a generator call may issue, beyond what the table says of it: None allows any."""

    count: int | None = None
    """How many, exactly."""
    dtypes: frozenset[str] | None = None
    """By torch's names, without `torch.`."""
    numel: int | None = None
    """Elements of one, at most."""

    def why_not(self, operation: Operation, before: int) -> str | None:
        """What is wrong with the operation after `before` others of the same call."""
        if self.count is not None and before >= self.count:
            return f"the plan has {self.count} in a call"
        if self.dtypes is not None and operation.dtype not in self.dtypes:
            return f"the plan has {' or '.join(sorted(self.dtypes))}"
        if self.numel is not None and (operation.numel or 0) > self.numel:
            return f"the plan has {self.numel} elements at most"
        return None


class Fence:
    """Watches the operations of this process on behalf of the monitor; the thread that makes it owns the protocol.

    `groups` gives the names of groups that the interceptor has (`group_of`) those of the table. `calls` has the
    moves that stand for many collectives, by event. A refusal is for good: once there was one, everything is
    refused, so that code which swallows the exception, or raised it in another thread, still ends the run.
    """

    def __init__(
        self,
        monitor: Monitor,
        groups: Mapping[str, str],
        calls: Mapping[str, Inside],
        recorder: Recorder | None = None,
    ) -> None:
        self._monitor, self._groups, self._calls, self._recorder = monitor, groups, calls, recorder
        self._owner = threading.current_thread()
        self._refused: ContractViolation | None = None
        self._move = -1
        self._issued = 0
        """Operations issued in the present move."""
        self._chunk = -1
        self._counted, self._sequence = 0, digest.SEQUENCE_START

    def issue(self, operation: Operation) -> None:
        """Count an operation that the table has this rank in. Raises ContractViolation for any other."""
        why = self._why_not(operation)
        if why is not None:
            raise self._refuse(operation, why)
        self._issued += 1
        pending = self._monitor.pending
        if pending is not None and pending.event in self._calls:
            self._counted += 1
            self._sequence = digest.chain(self._sequence, operation.op, operation.dtype, operation.numel)

    def counted(self) -> tuple[int, int]:
        """Operations inside the generator calls of this chunk so far, and the hash of their sequence (int64)."""
        self._turn()
        return self._counted, self._sequence

    def uphold(self) -> None:
        """Raise what was refused, if anything was, whatever has become of the exception that said so."""
        if self._refused is not None:
            raise self._refused

    def settle(self) -> None:
        """At the end of a generator call: raise what was refused meanwhile, or that there were too few."""
        self.uphold()
        self._turn()
        pending = self._monitor.pending
        count = self._calls.get(pending.event, Inside()).count if pending else None
        if count is not None and self._issued != count:
            raise self._monitor.violation("", f"{self._issued} collectives were issued, but the plan has {count}")

    def _turn(self) -> None:
        """Count anew where the monitor has moved on to another move, or to another chunk."""
        if self._monitor.moves != self._move:
            self._move, self._issued = self._monitor.moves, 0
        pending = self._monitor.pending
        if pending is None or pending.event not in self._calls:
            return
        if self._monitor.vars.call_id != self._chunk:
            self._chunk = self._monitor.vars.call_id
            self._counted, self._sequence = 0, digest.SEQUENCE_START

    def _why_not(self, operation: Operation) -> str | None:
        if threading.current_thread() is not self._owner:
            return f"only {self._owner.name} may issue collectives"
        if self._refused is not None:
            return "another was refused before"
        self._turn()
        pending = self._monitor.pending
        if pending is None or pending.op is None:
            return "no collective is due"
        group = self._groups.get(operation.group.name)
        inside = self._calls.get(pending.event)
        planned = _collective(pending.op, pending.op.root if inside is None else None)
        if (operation.op, group) != (pending.op.kind, pending.op.group):
            return f"{planned} is due"
        if inside is not None:
            return inside.why_not(operation, self._issued)
        if (operation.root, operation.dtype) != (pending.op.root, pending.op.dtype) or self._issued:
            return f"one {planned} is due"
        return None

    def _refuse(self, operation: Operation, why: str) -> ContractViolation:
        group = self._groups.get(operation.group.name, operation.group.name)
        of = f" of {operation.numel} {operation.dtype}" if operation.dtype else ""
        by = f" by thread {operation.thread}" if operation.thread else ""
        where = site(caller())
        at = f" at {where}" if where else ""
        error = self._monitor.violation(
            "", f"{operation.op}{of} on group {group}{by}{at} was refused before it reached the backend: {why}"
        )
        if self._recorder is not None:
            facts = operation._asdict() | {"group": group, "site": where, "outcome": f"refused: {why}"}
            self._recorder.event(edge="enter", **facts)
        self._refused = self._refused or error
        return error


def _collective(op: Collective, root: int | None) -> str:
    return f"{op.kind} on group {op.group}" + ("" if root is None else f" from rank{root}")


class Uncounted(Protocol):
    """A generator that keeps no ledger of its collectives. Otherwise like `roles.Generator`."""

    def chunk(self, fields: Mapping[str, Any]) -> Run: ...
    def scalars(self) -> Scalars: ...


class Fenced:
    """A generator whose calls are held to the plan, and counted by the fence."""

    def __init__(self, generator: Uncounted, fence: Fence) -> None:
        self._generator, self._fence = generator, fence

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        """Phase B of one chunk of the generator within."""
        return FencedRun(self._generator.chunk(fields), self._fence)

    def counted(self) -> tuple[int, int]:
        """Collectives issued since the chunk began, and the hash of their sequence, as the fence saw them."""
        return self._fence.counted()

    def scalars(self) -> Scalars:
        """The generator's cache indices."""
        return self._generator.scalars()


class FencedRun:
    """Phase B of one chunk, each call of which ends with the fence's word on it."""

    def __init__(self, run: Run, fence: Fence) -> None:
        self._run, self._fence = run, fence
        self.calls: Sequence[Callable[[], None]] = [partial(self._call, call) for call in run.calls]

    def result(self) -> torch.Tensor:
        """The output, after the last call."""
        return self._run.result()

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            self._fence.uphold()  # a refusal may come back in another guise, as out of C++
            raise
        self._fence.settle()
