"""Draws the difference of two protocols as state diagrams: one picture a role, with what was added, removed, changed.

Left out: what counts as a change, and its words (`difference`).
"""

from __future__ import annotations

from dataclasses import replace

from ..tables import Role, Row, State
from .colours import AMBER, GREEN, RED
from .state_diagram import Mark, Marks
from .table_diff import changes


def merged(old: Role, new: Role) -> tuple[Role, Marks]:
    """Return a role with the rows and states of both, for `diagram` to draw, and how those are marked that differ.

    An arrow that now leads elsewhere is there twice: removed where it led, added where it leads.
    """
    marks: dict[Row | State, Mark] = {}
    rows = list(new.rows)
    for change in changes(old, new).values():
        if change.new is None or (change.old is not None and change.old.target != change.new.target):
            gone = change.old
            assert gone is not None
            rows.append(gone)
            marks[gone] = Mark("-", RED)
        if change.new is not None:
            added = change.old is None or change.old.target != change.new.target
            marks[change.new] = Mark("+", GREEN) if added else Mark("~", AMBER, change.words)
    gone_states = tuple(state for state in old.states if state.name not in new.by_name)
    marks |= {state: Mark("-", RED) for state in gone_states}
    marks |= {state: Mark("+", GREEN) for state in new.states if state.name not in old.by_name}
    return replace(new, states=new.states + gone_states, rows=tuple(rows)), marks
