"""Runs one rank's coroutine: asks the monitor, records, and hands what needs peers to whoever owns the transport.

`advance` runs to the next operation that involves other ranks; moves that do not are made on the way. That
makes the same conductor serve a blocking transport and a simulator that schedules many ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ...errors import Code, ContractViolation
from ...model.tables import By, Collective, Data
from ...traces.format import Cause, Edge
from ...traces.outcome import Outcome, outcome_of
from ..chunk.digest import dtype_name
from .monitor import Monitor
from .operations import Call, Decide, Exchange, Moves, Operation, Step

ISSUED = (Exchange, Call)
"""The operations of a role that involve other ranks."""


class TraceSink(Protocol):
    """Keeps a rank's trace: `traces.recorder.Recorder`, or the simulator's memory."""

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> None:
        """Keep one event."""

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Keep why the rank ends."""


class Conductor:
    """Runs one rank: its coroutine, its monitor, its recorder (None: unrecorded)."""

    def __init__(self, monitor: Monitor, recorder: TraceSink | None = None) -> None:
        self.monitor, self.recorder = monitor, recorder
        self.result: Any = None
        """The value that the last coroutine returned."""
        self.moved: Callable[[], None] = lambda: None
        """Called after every move, and before every collective is issued."""
        self._moves: Moves[Any] | None = None
        self._waiting: Exchange | Call | None = None
        self._op: Collective | None = None
        self._sequence: dict[str, int] = {}
        self._state = monitor.state

    def start(self, moves: Moves[Any]) -> tuple[Collective, Exchange | Call] | None:
        """Begin a coroutine; like `advance`."""
        self._moves = moves
        return self._run(None)

    def advance(self, delivered: Any) -> tuple[Collective, Exchange | Call] | None:
        """Tell the coroutine what its collective delivered, and run to the next one. None: it has returned.

        Raises what the coroutine raises: Refused, or ContractViolation once the table says that this is one.
        """
        waiting, op = self._waiting, self._op
        if waiting is None or op is None:
            raise ValueError("nothing is waiting")
        data: Data = waiting.project(delivered) if isinstance(waiting, Exchange) else None
        self.monitor.exit(data)
        inside = None
        if isinstance(waiting, Call):
            count, sequence = waiting.inside()
            inside = {"collectives": count, "sequence": sequence}
        self._record(waiting.event, "exit", op, waiting, data=data, inside=inside)
        self._waiting = self._op = None
        return self._run(delivered)

    def _run(self, result: Any) -> tuple[Collective, Exchange | Call] | None:
        if self._moves is None:
            raise ValueError("no coroutine was started")
        try:
            operation = self._moves.send(result)
            while True:
                try:
                    if isinstance(operation, ISSUED):
                        return self._issue(operation)
                    result = self._step(operation)
                except ContractViolation as error:
                    operation = self._moves.throw(error)
                else:
                    operation = self._moves.send(result)
        except StopIteration as stop:
            self.result = stop.value
            return None

    def _issue(self, operation: Exchange | Call) -> tuple[Collective, Exchange | Call]:
        self._state = self.monitor.state
        self._op = self.monitor.enter(operation.event)
        self._waiting = operation
        self._sequence[self._op.group] = self._sequence.get(self._op.group, 0) + 1
        self._record(operation.event, "enter", self._op, operation)
        return self._op, operation

    def _step(self, operation: Operation) -> str:
        if isinstance(operation, Step):
            self._move(operation.event, operation.data, outcome=operation.outcome)
            return operation.event
        if isinstance(operation, Decide):
            row = self.monitor.decide()
            if row.by is not By.VIOLATION:
                self._move(row.event, None)
                return row.event
            outcome = operation.why()
            if outcome is None:
                outcome = Outcome(
                    Code.CONTRACT, text=f"it does not hold that {'; '.join(self.monitor.broken_checks())}"
                )
            error = self.monitor.violation(row.event, f"{row.event}: {outcome.text}", outcome=outcome)
            self._move(row.event, None, outcome=outcome)
            raise error
        raise TypeError(f"{operation} involves other ranks")

    def _move(self, event: str, data: Data, **facts: Any) -> None:
        self._state = self.monitor.state
        self.monitor.step(event, data)
        self._record(event, "step", data=data, **facts)

    def fail(self, error: BaseException, event: str = "exception") -> None:
        """Poison this rank and record how: by the table's own violation row where it has one, else by `event`."""
        monitor = self.monitor
        if not monitor.failed:
            if isinstance(error, ContractViolation) and monitor.pending is None:
                event = monitor.violated() or event
            self._state = monitor.state
            monitor.fail(event)
            self._record(event, "step", outcome=outcome_of(error))
        self._move("abort", None)

    def _record(
        self,
        event: str,
        edge: Any,
        op: Collective | None = None,
        operation: Exchange | Call | None = None,
        **facts: Any,
    ) -> None:
        self.moved()
        if self.recorder is None:
            return
        monitor, v = self.monitor, self.monitor.vars
        if op is not None:
            facts |= {"group": op.group, "sequence": self._sequence[op.group], "op": op.kind.value, "root": op.root}
            if isinstance(operation, Exchange):
                facts |= {"dtype": dtype_name(operation.tensor.dtype), "numel": operation.tensor.numel()}
            else:
                facts["call"] = v.observed + (edge == "enter")
        if facts.get("data") is not None:
            facts["data"] = _plain(facts["data"])
        self.recorder.event(
            event,
            edge,
            self._state,
            monitor.role.by_name[self._state].phase,
            call_id=v.call_id,
            chunk=v.chunk_index,
            epoch=v.cache_epoch,
            **facts,
        )


def _plain(data: Data) -> Any:
    """Return data as a trace has it; what is a set, in an order that is the same in every process."""
    plain = msgspec.to_builtins(data)
    return sorted(plain, key=repr) if isinstance(data, frozenset) else plain
