"""Defines a protocol: roles, who plays which, the schedule, what is shared, and what is claimed.

Left out: whether that makes sense (`validation.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import ModelError
from ..claims import Claim
from .collectives import Collective, Group
from .roles import NOBODY, Role, ranks_of
from .scope import Scope, Vars, named
from .shared import Cell, Fifo, Link, Slot


@dataclass(frozen=True)
class Frame:
    """Holds ids of which only the differences mean anything, so that states may be counted from the driver's own."""

    base: Callable[[Vars], int]
    """The driver's id."""
    rebase: Callable[[Any, int], Any]
    """Variables, or a value on the wire, with every such id in it moved on by the second argument."""


@dataclass(frozen=True)
class Protocol:
    """Holds roles, who plays which, and the schedule of collectives."""

    name: str
    version: str
    driver: Role = NOBODY
    """The role of rank0, where there is no cast."""
    worker: Role = NOBODY
    """The role of all other ranks, where there is no cast."""
    schedule: tuple[Collective, ...] = ()
    frame: Frame | None = None
    slots: tuple[Slot, ...] = ()
    counter: Callable[[Vars], int] | None = None
    """Holds what `Meet` compares."""
    keeps: bool = False
    """Says whether a rank that has ended keeps its variables. They change no verdict, and cost states."""
    ranks: int | None = None
    """Fixes the number of ranks, where that is not free to choose."""
    streams: tuple[str, ...] = ()
    """The groups whose collectives run on a device stream where the transport has one."""
    former_digests: tuple[str, ...] = ()
    """Digests that earlier versions of Genlock gave the same tables."""
    may_be_unreached: tuple[str, ...] = ()
    """Rows, as `[ROLE.]STATE.EVENT`, that need not be taken for a search of this protocol to mean something."""
    claims: tuple[Claim, ...] = ()
    """Holds what it claims of its whole state, beside what is asked of every protocol."""
    cast: tuple[Role, ...] = ()
    """The roles, instead of driver and worker: each says which ranks play it."""
    groups: tuple[Group, ...] = ()
    """The groups that are not of all ranks."""
    shared: tuple[Fifo | Cell | Link, ...] = ()

    def __repr__(self) -> str:
        roles = ", ".join(f"{r.name} ({len(r.states)} states, {len(r.rows)} rows)" for r in self.roles)
        return f"<Protocol {self.name}: {roles}, {len(self.schedule)} collectives>"

    def role(self, rank: int, scope: Scope | None = None) -> Role:
        """Return the role of a rank. A cast has to be asked within a scope."""
        if not self.cast:
            return self.driver if rank == 0 else self.worker
        if scope is None:
            raise ModelError(f"who is rank{rank} depends on the scope", where=self.name)
        return self.played(scope)[rank]

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.cast or (self.driver, self.worker)

    def played(self, scope: Scope) -> tuple[Role, ...]:
        """Return the role of each rank. Raise ModelError for a rank that plays none, or several."""
        if not self.cast:
            return (self.driver, *[self.worker] * (scope.ranks - 1))
        found: dict[int, Role] = {}
        for role in self.cast:
            where = f"{self.name}, ranks of {role.name}"
            for rank in ranks_of(role, scope, where):
                if rank in found:
                    do = "give a second thread a number of its own"
                    raise ModelError(f"rank{rank} plays {found[rank].name} too", where=where, do=do)
                found[rank] = role
        for rank in range(scope.ranks):
            if rank not in found:
                do = f"fix the number of them (`ranks`), or let some role play it, of {scope.ranks}"
                raise ModelError(f"nobody plays rank{rank}", where=f"{self.name}, cast", do=do)
        return tuple(found[rank] for rank in range(scope.ranks))

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.group for c in self.schedule))

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits that change whenever a table or the schedule does."""
        lines = [self.name, self.version, *map(repr, self.schedule)]
        for role in self.roles:
            lines += [role.name, role.initial, *map(repr, role.states), *(r.canonical() for r in role.rows)]
        lines += [f"{c.name} gives {named(c.result)}" for c in self.schedule if c.result is not None]
        lines += [*(group.name for group in self.groups), *map(_as_text, self.shared)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def digests(self) -> tuple[str, ...]:
        """Return every digest under which these very tables were recorded: today's, and those of earlier versions."""
        return (self.digest, *self.former_digests)


def _as_text(shared: Fifo | Cell | Link) -> str:
    """Return something shared as the digest shows it: functions by their names."""
    parts = (getattr(shared, name) for name in ("capacity", "buffer", "initial", "keys") if hasattr(shared, name))
    texts = (named(part) if callable(part) else repr(part) for part in parts)
    return f"{type(shared).__name__} {shared.name} {' '.join(texts)}"
