"""The vocabulary in which a protocol is written: states, rows, collectives, roles. No protocol stands here.

A role is a table of rows. A row leaves `state` on `event` for `target` when its guards hold, and may
carry a collective, which has two ends: the rank *issues* it (guards are asked here), and later it
*completes* (the effect sees what was delivered here). A row without a collective is one step.

Left out: what a collective does between its two ends (`network.py`), and time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from ..errors import ModelError

Vars = Any
"""A role's variables: a frozen dataclass or struct, whose type belongs to the protocol."""
Data = Any
"""What a row is given: a choice of the environment, or what its collective delivered."""
Guard = Callable[[Vars, Data], bool]
Effect = Callable[[Vars, Data], Vars]
Send = Callable[[Vars], Data]
Choices = Callable[[Vars, "Scope"], Iterable[Data]]
V = TypeVar("V")


def changed(value: V, **changes: Any) -> V:
    """`dataclasses.replace` for any frozen value: a struct of msgspec is some ten times as fast."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    return replace(value, **changes)  # type: ignore[type-var]


class Kind(StrEnum):
    """What a collective does with the values that its members put in."""

    BROADCAST = "broadcast"
    GATHER = "gather"
    ALL_GATHER = "all_gather"
    ALL_REDUCE = "all_reduce"


class By(StrEnum):
    """Who causes a row."""

    PROTOCOL = "protocol"
    """The rank itself, whenever the guards hold."""
    VIOLATION = "violation"
    """The rank itself, when no PROTOCOL row of the state is enabled: its checks found something wrong."""
    ENVIRONMENT = "environment"
    """The world outside may ask for it: work, a heartbeat, a hard cut, bad input, shutdown."""
    FAULT = "fault"
    """Only an injected fault causes it."""
    DETECTION = "detection"
    """Whoever watches the ranks causes it: a peer is gone, a deadline passed."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The bounds within which a protocol is checked. `ranks` counts rank0 in."""

    ranks: int = 3
    chunks: int = 2
    steps: int = 2


@dataclass(frozen=True, slots=True)
class State:
    """A state of a role. `waits` marks the states in which a stopped peer is normal."""

    name: str
    phase: str
    terminal: bool = False
    failed: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Collective:
    """One line of the schedule. `dtype` and `size` are what goes over the wire, `size` as text."""

    name: str
    kind: Kind
    group: str
    root: int | None
    dtype: str
    size: str
    phase: str

    @property
    def signature(self) -> tuple[str, str, int | None, str, str]:
        """What the backend pairs by: equal signatures pair, whatever they mean."""
        return (self.group, self.kind.value, self.root, self.dtype, self.size)


@dataclass(frozen=True, slots=True)
class Slot:
    """A one-slot channel between the driver and each worker: a slot a worker, empty at the start."""

    name: str


@dataclass(frozen=True, slots=True)
class Put:
    """Fill a worker's slot, once it is empty. `worker` picks whose, from 1; None: the own one."""

    slot: Slot
    worker: Callable[[Vars], int] | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Empty a worker's slot, once it is full; guards and effect are given what is in it. `worker` as for `Put`."""

    slot: Slot
    worker: Callable[[Vars], int] | None = None


@dataclass(frozen=True, slots=True)
class Meet:
    """Go on once every rank's counter (`Protocol.counter`) is at least one's own."""


Gate = Put | Take | Meet


@dataclass(frozen=True, slots=True)
class Row:
    """One transition. `data` is the type of what guards and effect are given, for traces to be read back.

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
    send: Send | None = None
    choices: Choices | None = None
    data: Any = None
    guards: tuple[Guard, ...] = ()
    effect: Effect | None = None
    commits: bool = False
    syncs: bool = False
    fault: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.state, self.event)

    def allows(self, v: Vars, data: Data) -> bool:
        """Whether every guard holds. A guard that raises is an error of the model, and names the row."""
        for guard in self.guards:
            try:
                if not guard(v, data):
                    return False
            except Exception as error:
                raise ModelError(
                    f"guard `{guard.__name__}` raised {type(error).__name__}: {error}",
                    where=f"row {self}",
                    do="a guard answers yes or no for every value of its variables",
                ) from error
        return True

    def apply(self, v: Vars, data: Data) -> Vars:
        """The variables after the row."""
        return v if self.effect is None else self.effect(v, data)

    def __str__(self) -> str:
        return f"{self.state} --{self.event}--> {self.target}"

    def canonical(self) -> str:
        """One line that changes whenever the row does, for the digest of the tables."""
        guards = ",".join(g.__name__ for g in self.guards)
        names = [getattr(f, "__name__", "-") for f in (self.send, self.choices, self.effect)]
        op = self.op.name if self.op else "-"
        what = f"{self.state} {self.event} {self.target} {self.by} {op} [{guards}] {' '.join(names)}"
        slot, worker = getattr(self.gate, "slot", "-"), getattr(getattr(self.gate, "worker", None), "__name__", "-")
        gate = f"{type(self.gate).__name__} {slot} {worker}"
        return f"{what} {_type_name(self.data)} {self.commits} {self.syncs} {self.fault or '-'} {gate}"


def _type_name(kind: Any) -> str:
    """Return a type's name without its module, so that moving a type changes no digest."""
    arguments = ", ".join(map(_type_name, getattr(kind, "__args__", ())))
    name = getattr(kind, "__qualname__", repr(kind))
    return f"{name}[{arguments}]" if arguments else name


@dataclass(frozen=True)
class Role:
    """A table: the states, the initial one, and the rows."""

    name: str
    initial: str
    states: tuple[State, ...]
    rows: tuple[Row, ...]
    start: Callable[[bool], Vars] = field(compare=False)
    """The variables at the start; the argument says whether ids must stay in a finite domain."""

    @cached_property
    def by_name(self) -> Mapping[str, State]:
        return {s.name: s for s in self.states}

    @cached_property
    def leaving(self) -> Mapping[str, tuple[Row, ...]]:
        """State name to the rows that leave it, in the order of the table."""
        return {s.name: tuple(r for r in self.rows if r.state == s.name) for s in self.states}

    @cached_property
    def rows_by_key(self) -> Mapping[tuple[str, str], Row]:
        return {r.key: r for r in self.rows}

    @cached_property
    def events(self) -> tuple[str, ...]:
        """Every event of the role, in the order in which the table first names it."""
        return tuple(dict.fromkeys(r.event for r in self.rows))

    def row(self, state: str, event: str) -> Row:
        try:
            return self.rows_by_key[state, event]
        except KeyError:
            raise ModelError(f"no row for event `{event}`", where=f"{self.name} in state {state}") from None

    def enabled(self, state: str, event: str, v: Vars, data: Data) -> Row | None:
        """The row that `event` takes from `state`, if it is legal there: the one rule of what may happen."""
        row = self.rows_by_key.get((state, event))
        if row is None or not row.allows(v, data):
            return None
        if row.by is By.VIOLATION and self.checks_pass(state, v, data):
            return None
        return row

    def checks_pass(self, state: str, v: Vars, data: Data) -> bool:
        """Whether some PROTOCOL row of `state` is enabled, so that there is no violation to report."""
        return any(r.by is By.PROTOCOL and r.allows(v, data) for r in self.leaving[state])

    def adding(self, *rows: Row) -> Role:
        """The same table with more rows."""
        return replace(self, rows=self.rows + rows)

    def edit(self, state: str, event: str, **changes: Any) -> Role:
        """The same table with one row changed. Raises ModelError when there is no such row."""
        old = self.row(state, event)
        return replace(self, rows=tuple(replace(r, **changes) if r is old else r for r in self.rows))


@dataclass(frozen=True)
class Frame:
    """Ids of which only the differences mean anything, so that states may be counted from the driver's own."""

    base: Callable[[Vars], int]
    """The driver's id."""
    rebase: Callable[[Any, int], Any]
    """Variables, or a value on the wire, with every such id in it moved on by the second argument."""


@dataclass(frozen=True)
class Protocol:
    """Roles, who plays which, and the schedule of collectives."""

    name: str
    version: str
    driver: Role
    worker: Role
    schedule: tuple[Collective, ...]
    frame: Frame | None = None
    slots: tuple[Slot, ...] = ()
    counter: Callable[[Vars], int] | None = None
    """What `Meet` compares."""
    keeps: bool = False
    """Whether a rank that has ended keeps its variables. They change no verdict, and cost states."""
    ranks: int | None = None
    """How many ranks it is about, where that is not free to choose."""
    streams: tuple[str, ...] = ()
    """The groups whose collectives run on a device stream where the transport has one."""
    former_digests: tuple[str, ...] = ()
    """Digests that earlier versions of Genlock gave the same tables."""

    def __repr__(self) -> str:
        roles = ", ".join(f"{r.name} ({len(r.states)} states, {len(r.rows)} rows)" for r in self.roles)
        return f"<Protocol {self.name}: {roles}, {len(self.schedule)} collectives>"

    def role(self, rank: int) -> Role:
        return self.driver if rank == 0 else self.worker

    @property
    def roles(self) -> tuple[Role, Role]:
        return (self.driver, self.worker)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.group for c in self.schedule))

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change whenever a table or the schedule does."""
        lines = [self.name, self.version, *map(repr, self.schedule)]
        for role in self.roles:
            lines += [role.name, role.initial, *map(repr, role.states), *(r.canonical() for r in role.rows)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def digests(self) -> tuple[str, ...]:
        """Every digest under which these very tables were recorded: today's, and those of earlier versions."""
        return (self.digest, *self.former_digests)

    def validate(self) -> Protocol:
        """Return self if the tables make sense; else raise ModelError naming the row or state."""
        for role in self.roles:
            _validate(role, self)
        return self


def _validate(role: Role, protocol: Protocol) -> None:
    seen: set[tuple[str, str]] = set()
    for row in role.rows:
        where = f"{role.name}, row {row}"
        for name in (row.state, row.target):
            if name not in role.by_name:
                raise ModelError(f"state `{name}` is not defined", where=where, do="add it to the states")
        if row.key in seen:
            raise ModelError("two rows for the same state and event", where=where, do="give one another event")
        seen.add(row.key)
        if role.by_name[row.state].terminal:
            raise ModelError(f"state `{row.state}` is terminal", where=where, do="no row may leave it")
        if isinstance(row.gate, Put | Take) and row.op is not None:
            raise ModelError("a row has either a collective or a gate", where=where, do="split it in two")
        if isinstance(row.gate, Put | Take) and row.gate.worker is None and role is protocol.driver:
            do = "name a function of the variables as the gate's `worker`"
            raise ModelError("a slot belongs to a worker, and this row does not say to which", where=where, do=do)
        if row.op is not None and row.op not in protocol.schedule:
            raise ModelError(f"collective `{row.op.name}` is not in the schedule", where=where)
    reached = {role.initial}
    while fresh := {r.target for r in role.rows if r.state in reached} - reached:
        reached |= fresh
    for state in role.states:
        if state.name not in reached:
            raise ModelError(f"state `{state.name}` cannot be reached", where=role.name, do="remove it or add a row")
