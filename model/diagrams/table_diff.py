"""Describes what differs between two versions of a table, row by row, in words.

A row is the same row where its state and event are; the rest of it may have changed. The order of guards means
nothing. Left out: drawing (`diagram_diff`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..tables import Role, Row


class Change(NamedTuple):
    """Holds a row that is not the same in both.

    `old` None: added; `new` None: removed.
    """

    old: Row | None
    new: Row | None
    words: tuple[str, ...]
    """Holds what was done to it, a phrase each."""

    @property
    def row(self) -> Row:
        found = self.new or self.old
        assert found is not None
        return found


DROPPED, ASKED = "no longer asks that ", "now asks that "


def changes(old: Role, new: Role) -> dict[tuple[str, str], Change]:
    """Return the rows that differ, by (state, event), in the order of the new table, then those gone from the old."""
    found = {}
    for key, row in new.rows_by_key.items():
        before = old.rows_by_key.get(key)
        if before is None:
            found[key] = Change(None, row, ("added",))
        elif words := _words(before, row):
            found[key] = Change(before, row, words)
    gone = {key: Change(row, None, ("removed",)) for key, row in old.rows_by_key.items() if key not in new.rows_by_key}
    return {**found, **gone}


def _words(old: Row, new: Row) -> tuple[str, ...]:
    words = []
    if old.target != new.target:
        words.append(f"leads to {new.target}, not {old.target}")
    words += [DROPPED + told(g) for g in old.guards if g not in new.guards]
    words += [ASKED + told(g) for g in new.guards if g not in old.guards]
    for name in ("choices", "send", "effect"):
        before, after = getattr(old, name), getattr(new, name)
        if before is not after:
            words.append(f"{name}: {told(after)}" if after else f"no {name}")
    if old.op != new.op:
        words.append(f"carries {new.op.name} of {new.op.size}" if new.op else "carries no collective")
    plain = ("by", "gate", "data", "commits", "syncs", "fault")
    words += [f"{name}: {getattr(new, name)}" for name in plain if getattr(old, name) != getattr(new, name)]
    return tuple(words)


def told(function: Callable[..., Any]) -> str:
    """Return the text of a guard or an effect: its docstring on one line, or its name."""
    return " ".join((function.__doc__ or function.__name__).split()).removesuffix(".")
