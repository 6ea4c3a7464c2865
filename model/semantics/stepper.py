"""Steps one rank by hand or from Hypothesis: a role's table as a machine of the `transitions` library.

The two ends of a collective are two moves. `fire` issues it: guards are asked, and the rank stays where it
is, with `pending` set, whence only a failure leads away. `complete` ends it: the effect sees what was
delivered. A row without a collective is one `fire`.

Left out: peers, transport and gates (`network.py`): a gate is open, and `fire` is given what its slot holds.
Also the methods that `transitions` would conjure onto a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transitions import EventData, Machine, State

from ...errors import ContractViolation
from ..tables import Data, Role, Row, Vars
from .rows import arrive, enabled_row


class RoleMachine:
    """Holds one rank of `role`, at the start of its table unless told otherwise."""

    def __init__(self, role: Role, vars: Vars = None, *, state: str | None = None, pending: str | None = None) -> None:
        self.role = role
        self.state: str = state or role.initial
        self.vars: Vars = role.start(False) if vars is None else vars
        self.pending = pending
        """The event whose collective this rank has issued and not completed."""
        self.machine = Machine(
            model=None,
            states=[State(s.name, final=s.terminal) for s in role.states],
            initial=None,
            transitions=[move for row in role.rows for move in self._moves(row)],
            auto_transitions=False,
            send_event=True,
        )

    def may(self, event: str, data: Data = None) -> bool:
        """Return true if `event` is legal now."""
        return enabled_row(self.role, self.state, event, self.vars, data, inside=self.pending is not None) is not None

    def enabled(self, data: Data = None) -> list[str]:
        """Return the events that are legal now; one that takes data, if `data` fits it or none was given."""
        found = []
        for row in self.role.leaving[self.state]:
            takes_data = row.data is not None and row.op is None
            if takes_data and data is None:
                legal = self.pending is None
            elif takes_data:
                legal = isinstance(data, row.data) and self.may(row.event, data)
            else:
                legal = self.may(row.event)
            if legal:
                found.append(row.event)
        return found

    def fire(self, event: str, data: Data = None) -> Data:
        """Take the row, or issue its collective; what this rank then puts into the collective is returned.

        Raises ContractViolation where the event is not legal: the machine stays where it was.
        """
        if not self.may(event, data):
            raise ContractViolation(
                f"event `{event}` is not legal; enabled: {', '.join(self.enabled()) or 'nothing'}",
                where=self._where(),
            )
        row = self.role.row(self.state, event)
        self.machine.events[event].trigger(self, data=data)
        return row.send(self.vars) if row.op and row.send else None

    def complete(self, data: Data = None) -> None:
        """End the pending collective, which delivers `data`. Raises ContractViolation where none is pending."""
        if self.pending is None:
            raise ContractViolation("no collective is pending", where=self._where(), do="fire its event first")
        self.machine.events[_completion(self.pending)].trigger(self, data=data)

    def _where(self) -> str:
        return f"{self.role.name} in {self.state}" + (f", inside `{self.pending}`" if self.pending else "")

    # ── what `transitions` is told ──────────────────────────────────────────────────────────────────

    def _moves(self, row: Row) -> list[dict[str, Any]]:
        """Return a row as one move, or as the two ends of its collective."""
        first = {"trigger": row.event, "source": row.state, "conditions": [self._is_enabled]}
        if row.op is None:
            return [{**first, "dest": row.target, "after": self._apply(row)}]
        end = {"trigger": _completion(row.event), "source": row.state, "dest": row.target, "after": self._apply(row)}
        return [{**first, "dest": None, "after": self._issue}, end]

    def _is_enabled(self, asked: EventData) -> bool:
        return self.may(asked.event.name, asked.kwargs["data"])

    def _issue(self, taken: EventData) -> None:
        self.pending = taken.event.name

    def _apply(self, row: Row) -> Callable[[EventData], None]:
        def apply(taken: EventData) -> None:
            _, self.vars = arrive(row, self.vars, taken.kwargs["data"])
            self.pending = None

        return apply


def _completion(event: str) -> str:
    return f"complete {event}"
