"""Defines states, rows and roles: the tables.

A role is a table of rows. A row leaves `state` on `event` for `target` when its guards hold, and may carry a
collective, which has two ends: the rank *issues* it (guards are asked here), and later it *completes* (the effect
sees what was delivered here). A row without a collective is one step.

Left out: what a collective does between its two ends (`semantics/transport.py`), and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from ...errors import ModelError
from .collectives import Collective, ranks_among
from .scope import EMPTY, UNKNOWN, Choices, Data, Effect, Guard, Scope, Sends, Vars, named, nothing
from .shared import Gate, Slot, Take


class By(StrEnum):
    """Names who causes a row."""

    PROTOCOL = "protocol"
    """The rank itself, whenever the guards hold."""
    VIOLATION = "violation"
    """The rank itself, when no PROTOCOL row of the state applies (`Role.checks_pass`): its checks found a fault."""
    ENVIRONMENT = "environment"
    """The world outside may ask for it: work, a heartbeat, a hard cut, bad input, shutdown."""
    FAULT = "fault"
    """Only an injected fault causes it."""
    DETECTION = "detection"
    """Whoever watches the ranks causes it: a peer is gone, a deadline passed."""


@dataclass(frozen=True, slots=True)
class State:
    """Describes a state of a role.

    `waits` marks the states in which a stopped peer is normal.
    """

    name: str
    phase: str
    terminal: bool = False
    failed: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Describes one transition.

    `data` is the type of what guards and effect are given, for traces to be read back.

    `gate` is what the row waits for apart from its guards: a slot of a channel, or the counters of all ranks.
    `commits` marks a commitment point: after it a peer blocks for more from this rank. `syncs`: on a stream the
    row waits until every collective that this rank has issued has completed. `fault` names the kind of fault of
    a FAULT row.
    """

    state: str
    event: str
    target: str
    by: By = By.PROTOCOL
    op: Collective | None = None
    gate: Gate | None = None
    send: Sends | None = None
    choices: Choices | None = None
    data: Any = None
    guards: tuple[Guard, ...] = ()
    effect: Effect | None = None
    commits: bool = False
    syncs: bool = False
    fault: str = ""
    posts: bool = False
    interrupts: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return (self.state, self.event)

    def allows(self, v: Vars, data: Data) -> bool:
        """Return whether every guard holds. Raise ModelError, naming the row, for one that raises or says nothing."""
        for guard in self.guards:
            try:
                answer = guard(v, data)
            except Exception as error:
                raise ModelError(
                    f"guard `{named(guard)}` raised {type(error).__name__}: {error}",
                    where=f"row {self}",
                    do="a guard answers yes or no for every value of its variables",
                ) from error
            if answer is None:
                do = "return True or False from it"
                raise ModelError(f"guard `{named(guard)}` returned None", where=f"row {self}", do=do)
            if not answer:
                return False
        return True

    def apply(self, v: Vars, data: Data) -> Vars:
        """Return the variables after the row."""
        return v if self.effect is None else self.effect(v, data)

    def __str__(self) -> str:
        return f"{self.state} --{self.event}--> {self.target}"

    def canonical(self) -> str:
        """Return one line that changes whenever the row does, for the digest of the tables."""
        guards = ",".join(map(named, self.guards))
        names = [getattr(f, "__name__", "-") for f in (self.send, self.choices, self.effect)]
        op = self.op.name if self.op else "-"
        what = f"{self.state} {self.event} {self.target} {self.by} {op} [{guards}] {' '.join(names)}"
        slot, worker = getattr(self.gate, "slot", "-"), getattr(getattr(self.gate, "worker", None), "__name__", "-")
        slot = slot if isinstance(slot, Slot) else getattr(slot, "name", slot)
        gate = f"{type(self.gate).__name__} {slot} {worker}"
        more = " posts" * self.posts + " interrupts" * self.interrupts
        return f"{what} {_type_name(self.data)} {self.commits} {self.syncs} {self.fault or '-'} {gate}{more}"


def _type_name(kind: Any) -> str:
    """Return a type's name without its module, so that moving a type changes no digest."""
    arguments = ", ".join(map(_type_name, getattr(kind, "__args__", ())))
    name = getattr(kind, "__qualname__", repr(kind))
    return f"{name}[{arguments}]" if arguments else name


@dataclass(frozen=True)
class Role:
    """Holds a table: the states, the initial one, and the rows."""

    name: str
    initial: str
    states: tuple[State, ...]
    rows: tuple[Row, ...]
    start: Callable[[bool], Vars] = field(compare=False, default=nothing)
    """The variables at the start; the argument says whether ids must stay in a finite domain."""
    ranks: Callable[[Scope], Iterable[int]] | None = field(compare=False, default=None)
    """Who plays it, of a protocol's cast."""
    start_at: Callable[[int, Scope], Vars] | None = field(compare=False, default=None)
    """The variables that a rank of its number starts with, of a protocol's cast; asked instead of `start`."""

    @cached_property
    def by_name(self) -> Mapping[str, State]:
        return {s.name: s for s in self.states}

    @cached_property
    def leaving(self) -> Mapping[str, tuple[Row, ...]]:
        """Return, by the name of a state, the rows that leave it, in the order of the table."""
        return {s.name: tuple(r for r in self.rows if r.state == s.name) for s in self.states}

    @cached_property
    def rows_by_key(self) -> Mapping[tuple[str, str], Row]:
        return {r.key: r for r in self.rows}

    @cached_property
    def events(self) -> tuple[str, ...]:
        """Return every event of the role, in the order in which the table first names it."""
        return tuple(dict.fromkeys(r.event for r in self.rows))

    def row(self, state: str, event: str) -> Row:
        try:
            return self.rows_by_key[state, event]
        except KeyError:
            raise ModelError(f"no row for event `{event}`", where=f"{self.name} in state {state}") from None

    def enabled(
        self,
        state: str,
        event: str,
        v: Vars,
        data: Data,
        *,
        held: Callable[[Take], Data] = lambda gate: UNKNOWN,
        scope: Scope = Scope(),  # noqa: B008  it is frozen
    ) -> Row | None:
        """Return the row that `event` takes from `state`, if it is legal there: the one rule of what may happen.

        `held` and `scope` are as in `checks_pass`.
        """
        row = self.rows_by_key.get((state, event))
        if row is None or not row.allows(v, data):
            return None
        if row.by is By.VIOLATION and self.checks_pass(row, v, data, held=held, scope=scope):
            return None
        return row

    def checks_pass(
        self,
        violation: Row,
        v: Vars,
        data: Data,
        *,
        held: Callable[[Take], Data] = lambda gate: UNKNOWN,
        scope: Scope = Scope(),  # noqa: B008  it is frozen
    ) -> bool:
        """Return whether a PROTOCOL row applies where `violation` would be taken, so that there is nothing to report.

        A PROTOCOL row with choices applies where its guards hold for one of them. One with a `Take` applies where
        its guards want what is in its slot, which `held` tells; while the slot is empty the rank waits, and only a
        violation that itself takes a value may be reported; UNKNOWN decides nothing. Any other PROTOCOL row applies
        where its guards hold, whether its collective or gate is open yet or not. `data` is what `violation` is given.
        """
        takes = isinstance(violation.gate, Take)
        own = takes or violation.choices is not None
        for row in self.leaving[violation.state]:
            if row.by is not By.PROTOCOL:
                continue
            if isinstance(row.gate, Take):
                value = held(row.gate)
                if value is EMPTY:
                    if not takes:
                        return True
                elif value is not UNKNOWN and row.allows(v, value):
                    return True
            elif row.choices is not None:
                if any(row.allows(v, choice) for choice in row.choices(v, scope)):
                    return True
            elif row.allows(v, None if own else data):
                return True
        return False

    def adding(self, *rows: Row) -> Role:
        """Return the same table with more rows."""
        return replace(self, rows=self.rows + rows)

    def edit(self, state: str, event: str, **changes: Any) -> Role:
        """Return the same table with one row changed.

        Raises ModelError when there is no such row.
        """
        old = self.row(state, event)
        return replace(self, rows=tuple(replace(r, **changes) if r is old else r for r in self.rows))


NOBODY = Role("nobody", "", (), ())
"""Stands for driver and worker of a protocol that has a cast."""


def row_names(role: Role, row: Row) -> tuple[str, str]:
    """Return the two names by which a user may speak of a row: with its role, and without."""
    return f"{role.name}.{row.state}.{row.event}", f"{row.state}.{row.event}"


def ranks_of(role: Role, scope: Scope, where: str) -> tuple[int, ...]:
    """Return the ranks that play a role of a cast. Raise ModelError where it does not say."""
    if role.ranks is None:
        do = "give it `ranks`: a function of the scope, for example genlock.everyone"
        raise ModelError("it does not say who plays it", where=where, do=do)
    return ranks_among(role.ranks, scope, where)
