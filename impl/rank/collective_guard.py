"""Lets through only the collectives that the table has this rank in: no other reaches the backend.

A move of the control plane is exactly one collective, as its row has it. A generator call is one abstract collective
in the table, and many on the wire: all of that kind, on that group, counted and hashed here, so that a generator
needs no ledger of its own. Whatever comes from another thread, or while no collective is due, is refused.

Left out: collectives that pass the interceptor unseen (`c10d_intercept.BLIND_SPOTS`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ...errors import Code, ContractViolation
from ...model.tables import Collective
from ...traces.outcome import Outcome
from ...traces.recorder import Recorder
from ..chunk import digest
from ..recording.c10d_intercept import OnComplete, Operation, any_failed, caller, site
from .monitor import Monitor
from .operations import BackendFailed
from .roles import Run, Scalars


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits what a generator call may issue, beyond what the table says of it: None allows any."""

    count: int | None = None
    """Number of operations, exactly."""
    dtypes: frozenset[str] | None = None
    """Names of dtypes, without `torch.`."""
    numel: int | None = None
    """Elements of one, at most."""

    def why_not(self, operation: Operation, before: int) -> str | None:
        """Return what is wrong with the operation after `before` others of the same call."""
        if self.count is not None and before >= self.count:
            return f"the plan has {self.count} in a call"
        if self.dtypes is not None and operation.dtype not in self.dtypes:
            return f"the plan has {' or '.join(sorted(self.dtypes))}"
        if self.numel is not None and (operation.numel or 0) > self.numel:
            return f"the plan has {self.numel} elements at most"
        return None


SETTLES = 0.2
"""Seconds that the backend has to say of an open operation that it failed, once a generator call has raised."""


class CollectiveGuard:
    """Watches the operations of this process on behalf of the monitor; the thread that makes it owns the protocol.

    `groups` gives the names of groups that the interceptor has (`group_of`) those of the table. `calls` has the
    moves that stand for many collectives, by event. A refusal is for good: once there was one, everything is
    refused, so that code which swallows the exception, or raised it in another thread, still ends the run.
    """

    def __init__(
        self,
        monitor: Monitor,
        groups: Mapping[str, str],
        calls: Mapping[str, CallLimits],
        recorder: Recorder | None = None,
    ) -> None:
        self._monitor, self._groups, self._calls, self._recorder = monitor, groups, calls, recorder
        self._owner = threading.current_thread()
        self._refused: ContractViolation | None = None
        self._move = -1
        self._issued = 0
        """Counts the operations of the present move."""
        self._chunk = -1
        self._counted, self._sequence = 0, digest.SEQUENCE_START
        self._open = 0
        """Counts the operations of generator calls that have not completed."""
        self._failed: Outcome | None = None

    def issue(self, operation: Operation) -> OnComplete | None:
        """Count an operation that the table has this rank in. Raises ContractViolation for any other."""
        refusal = self._why_not(operation)
        if refusal is not None:
            raise self._refuse(operation, *refusal)
        self._issued += 1
        pending = self._monitor.pending
        if pending is not None and pending.event in self._calls:
            self._counted += 1
            self._sequence = digest.chain(self._sequence, operation.op, operation.dtype, operation.numel)
            self._open += 1
            return self._completed
        return None

    def _completed(self, outcome: Outcome | None) -> None:
        self._open -= 1
        if outcome is not None and outcome.code is Code.BACKEND:
            self._failed = outcome

    def backend_failed(self) -> bool:
        """Return True where the backend could not complete an operation of a generator call that has just raised.

        Waits a moment for operations that are still open: their end may be known later than the exception.
        """
        until = time.monotonic() + SETTLES
        while self._failed is None and self._open > 0 and time.monotonic() < until:
            if any_failed():
                return True
            time.sleep(0.005)
        return self._failed is not None

    def counted(self) -> tuple[int, int]:
        """Return how many operations the generator calls of this chunk have issued, and their sequence hash (int64)."""
        self._turn()
        return self._counted, self._sequence

    def uphold(self) -> None:
        """Raise what was refused, if anything was, whatever has become of the exception that said so."""
        if self._refused is not None:
            raise self._refused

    def settle(self) -> None:
        """Raise, at the end of a generator call, what was refused meanwhile, or that there were too few operations."""
        self.uphold()
        self._turn()
        pending = self._monitor.pending
        count = self._calls.get(pending.event, CallLimits()).count if pending else None
        if count is not None and self._issued != count:
            text = f"{self._issued} collectives were issued, but the plan has {count}"
            raise self._monitor.violation("", text, code=Code.COLLECTIVE)

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

    def _why_not(self, operation: Operation) -> tuple[Code, str] | None:
        """Return why an operation is refused; None where it is due."""
        if threading.current_thread() is not self._owner:
            return Code.THREAD, f"only {self._owner.name} may issue collectives"
        if self._refused is not None:
            return Code.COLLECTIVE, "another was refused before"
        self._turn()
        why = self._why_not_due(operation)
        return None if why is None else (Code.COLLECTIVE, why)

    def _why_not_due(self, operation: Operation) -> str | None:
        pending = self._monitor.pending
        if pending is None or pending.op is None:
            return "no collective is due"
        group = self._groups.get(operation.group.name)
        limits = self._calls.get(pending.event)
        planned = _collective(pending.op, pending.op.root if limits is None else None)
        if (operation.op, group) != (pending.op.kind, pending.op.group):
            return f"{planned} is due"
        if limits is not None:
            return limits.why_not(operation, self._issued)
        if (operation.root, operation.dtype) != (pending.op.root, pending.op.dtype) or self._issued:
            return f"one {planned} is due"
        return None

    def _refuse(self, operation: Operation, code: Code, why: str) -> ContractViolation:
        group = self._groups.get(operation.group.name, operation.group.name)
        of = f" of {operation.numel} {operation.dtype}" if operation.dtype else ""
        by = f" by thread {operation.thread}" if operation.thread else ""
        where = site(caller())
        at = f" at {where}" if where else ""
        error = self._monitor.violation(
            "",
            f"{operation.op}{of} on group {group}{by}{at} was refused before it reached the backend: {why}",
            code=code,
        )
        if self._recorder is not None:
            outcome = Outcome(code, (self._monitor.rank,), text=why)
            facts = operation._asdict() | {"group": group, "site": self._recorder.site(where), "outcome": outcome}
            self._recorder.event(edge="enter", **facts)
        self._refused = self._refused or error
        return error


def _collective(op: Collective, root: int | None) -> str:
    return f"{op.kind} on group {op.group}" + ("" if root is None else f" from rank{root}")


class Uncounted(Protocol):
    """Stands for a generator that keeps no ledger of its collectives. Otherwise like `roles.Generator`."""

    def chunk(self, fields: Mapping[str, Any]) -> Run: ...
    def scalars(self) -> Scalars: ...


class GuardedGenerator:
    """Holds the calls of a generator to the plan, and has the guard count them."""

    def __init__(self, generator: Uncounted, guard: CollectiveGuard) -> None:
        self._generator, self._guard = generator, guard

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        """Begin phase B of one chunk of the generator within."""
        return GuardedRun(self._generator.chunk(fields), self._guard)

    def counted(self) -> tuple[int, int]:
        """Return how many collectives were issued since the chunk began, and the hash of their sequence."""
        return self._guard.counted()

    def scalars(self) -> Scalars:
        """Return the generator's cache indices."""
        return self._generator.scalars()


class GuardedRun:
    """Runs phase B of one chunk; each call of it ends with what the guard has seen."""

    def __init__(self, run: Run, guard: CollectiveGuard) -> None:
        self._run, self._guard = run, guard
        self.calls: Sequence[Callable[[], None]] = [partial(self._call, call) for call in run.calls]

    def result(self) -> torch.Tensor:
        """Return the output, after the last call."""
        return self._run.result()

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._guard.uphold()  # a refusal may come back in another guise, as out of C++
            if isinstance(error, RuntimeError | ValueError) and self._guard.backend_failed():
                raise BackendFailed from error
            raise
        self._guard.settle()
