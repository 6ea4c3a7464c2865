"""Holds a running rank to its table: every move is asked for before it is made.

The monitor's variables *are* the rank's ids, epochs, plan and counters; the roles keep no second set.
Left out: the collectives inside a generator call.
"""

from __future__ import annotations

from typing import cast

from ...errors import Code, ContractViolation, ParityMismatch
from ...model.protocols.tp_values import TPVars
from ...model.semantics.rows import arrive, enabled_row, enabled_rows
from ...model.tables import By, Collective, Data, Role, Row
from ...traces.outcome import Outcome


class Monitor:
    """Steps one rank through its table. With `enforce` off an illegal move is made all the same."""

    def __init__(self, role: Role, rank: int, *, enforce: bool = True) -> None:
        self.role, self.rank, self.enforce = role, rank, enforce
        self.state = role.initial
        self.vars: TPVars = role.start(False)
        self.pending: Row | None = None
        self.moves = 0
        """Counts progress: moves made, and collectives issued."""

    @property
    def phase(self) -> str:
        return self.role.by_name[self.state].phase

    @property
    def failed(self) -> bool:
        return self.role.by_name[self.state].failed

    def step(self, event: str, data: Data = None) -> None:
        """Make a move that has no collective. Raises ContractViolation where the table does not allow it."""
        self._arrive(self._row(event, data), data)

    def enter(self, event: str) -> Collective:
        """Issue the collective of `event`. Raises ContractViolation where the table does not allow it."""
        row = self._row(event, None)
        if row.op is None:
            raise ValueError(f"`{event}` carries no collective")
        self.pending = row
        self.moves += 1
        return row.op

    def exit(self, data: Data) -> None:
        """Complete the pending collective, which delivered `data`."""
        row = self.pending
        if row is None:
            raise ValueError("no collective is pending")
        self._arrive(row, data)

    def decide(self) -> Row:
        """Return the one row that the checks of this state lead to; it is taken by `step`."""
        legal = [r for r in enabled_rows(self.role, self.state, self.vars) if r.by in (By.PROTOCOL, By.VIOLATION)]
        if len(legal) != 1:
            raise self.violation("a check", f"a check has {len(legal)} ways out", code=Code.MOVE)
        return legal[0]

    def broken_checks(self) -> list[str]:
        """Return the texts of the guards of this state's checks that do not hold.

        Where there are several ways out, those of the one that comes nearest.
        """
        ways = [
            [str(g.__doc__) for g in row.guards if not g(self.vars, None)]
            for row in self.role.leaving[self.state]
            if row.by is By.PROTOCOL and row.guards
        ]
        return min(ways, key=len, default=[])

    def violated(self) -> str | None:
        """Return the violation that the checks of this state report, if they do."""
        rows = enabled_rows(self.role, self.state, self.vars)
        return next((r.event for r in rows if r.by is By.VIOLATION), None)

    def fail(self, event: str) -> None:
        """Poison this rank by a violation, `exception`, `peer_lost` or `deadline`, whatever is pending."""
        self._arrive(self.role.row(self.state, event), None)

    def candidate(self, state: str, event: str) -> TPVars:
        """Return the variables as they would be after that row, with nothing changed."""
        _, after = arrive(self.role.row(state, event), self.vars, None)
        return cast(TPVars, after)

    def violation(
        self,
        event: str,
        text: str = "",
        data: Data = None,
        *,
        code: Code = Code.CONTRACT,
        outcome: Outcome | None = None,
    ) -> ContractViolation:
        """Return the error for a move that the table does not allow with `data`, or for what `text` says.

        `outcome` is what a check found, where one did; else `code` names the check.
        """
        v = self.vars
        where = f"rank{self.rank} ({self.role.name}) in {self.pending or self.state}, call_id={v.call_id}"
        if self.phase == "generate" and v.plan is not None:
            where += f", generator calls {v.observed} of {v.plan.expected}"
        if text:
            kind = ParityMismatch if self.phase == "startup" else ContractViolation
            if outcome is None:
                return kind(text, where=where, code=code)
            return kind(
                text,
                where=where,
                code=outcome.code,
                field=outcome.field,
                ranks=outcome.ranks,
                differences=outcome.differences,
            )
        rows = [r.event for r in self.role.leaving[self.state] if r.by not in (By.FAULT, By.DETECTION)]
        row = None if self.pending else self.role.rows_by_key.get((self.state, event))
        broken = [str(g.__doc__) for g in row.guards if not g(v, data)] if row is not None else []
        why = f": it does not hold that {'; '.join(broken)}" if broken else ""
        do = f"the table has {', '.join(rows)}"
        return ContractViolation(f"`{event}` is not allowed here{why}", where=where, do=do, code=Code.MOVE, field=event)

    def _row(self, event: str, data: Data) -> Row:
        row = enabled_row(self.role, self.state, event, self.vars, data, inside=self.pending is not None)
        if row is not None:
            return row
        if self.enforce:
            raise self.violation(event, data=data)
        elsewhere = next((r for r in self.role.rows if r.event == event), None)
        return elsewhere or self.role.row(self.state, event)

    def _arrive(self, row: Row, data: Data) -> None:
        self.pending = None
        self.state, self.vars = arrive(row, self.vars, data)
        self.moves += 1
