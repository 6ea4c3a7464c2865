"""Defines the vocabulary in which a protocol is written: states, rows, collectives, roles.

No protocol stands here.

A role is a table of rows. A row leaves `state` on `event` for `target` when its guards hold, and may
carry a collective, which has two ends: the rank *issues* it (guards are asked here), and later it
*completes* (the effect sees what was delivered here). A row without a collective is one step.

Left out: what a collective does between its two ends (`network.py`), and time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, TypeVar

import msgspec

from ..errors import ModelError
from .claims import Claim, Invariant, LeadsTo, Sometimes

Vars = Any
"""A role's variables: a frozen dataclass or struct, whose type belongs to the protocol."""
Data = Any
"""Holds what a row is given: a choice of the environment, or what its collective delivered."""
Guard = Callable[[Vars, Data], bool]
Effect = Callable[[Vars, Data], Vars]
Send = Callable[[Vars], Data]
Choices = Callable[[Vars, "Scope"], Iterable[Data]]
V = TypeVar("V")


class _Slotless(StrEnum):
    EMPTY = "empty"
    UNKNOWN = "unknown"


EMPTY: Final = _Slotless.EMPTY
"""Stands for the content of a slot that nothing is in."""
UNKNOWN: Final = _Slotless.UNKNOWN
"""Stands for the content of a slot that one rank alone cannot see."""


def changed(value: V, **changes: Any) -> V:
    """Return `dataclasses.replace` of any frozen value: a struct of msgspec is some ten times as fast."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    return replace(value, **changes)  # type: ignore[type-var]


class Kind(StrEnum):
    """Names what a collective does with the values that its members put in."""

    BROADCAST = "broadcast"
    GATHER = "gather"
    ALL_GATHER = "all_gather"
    ALL_REDUCE = "all_reduce"


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
class Scope:
    """Holds the bounds within which a protocol is checked.

    `ranks` counts rank0 in.
    """

    ranks: int = 3
    chunks: int = 2
    steps: int = 2


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
class Collective:
    """Describes one line of the schedule.

    `dtype` and `size` are what goes over the wire, `size` as text.
    """

    name: str
    kind: Kind
    group: str
    root: int | None
    dtype: str
    size: str
    phase: str

    @property
    def signature(self) -> tuple[str, str, int | None, str, str]:
        """Return what the backend pairs by: equal signatures pair, whatever they mean."""
        return (self.group, self.kind.value, self.root, self.dtype, self.size)


@dataclass(frozen=True, slots=True)
class Slot:
    """Describes a one-slot channel between the driver and each worker: a slot a worker, empty at the start."""

    name: str


@dataclass(frozen=True, slots=True)
class Put:
    """Fills a worker's slot, once it is empty. `worker` picks whose, from 1; None: the own one."""

    slot: Slot
    worker: Callable[[Vars], int] | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Empties a worker's slot, once it is full; guards and effect are given what is in it. `worker` as for `Put`."""

    slot: Slot
    worker: Callable[[Vars], int] | None = None


@dataclass(frozen=True, slots=True)
class Meet:
    """Goes on once every rank's counter (`Protocol.counter`) is at least one's own."""


Gate = Put | Take | Meet


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
        gate = f"{type(self.gate).__name__} {slot} {worker}"
        return f"{what} {_type_name(self.data)} {self.commits} {self.syncs} {self.fault or '-'} {gate}"


def named(function: Any) -> str:
    """Return a function's name, as messages and digests show it."""
    return str(getattr(function, "__name__", function))


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
    start: Callable[[bool], Vars] = field(compare=False)
    """The variables at the start; the argument says whether ids must stay in a finite domain."""

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
        scope: Scope = Scope(),
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
        scope: Scope = Scope(),
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
    driver: Role
    worker: Role
    schedule: tuple[Collective, ...]
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
    """What it claims of its whole state, beside what is asked of every protocol."""

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
        """Return 16 hex digits that change whenever a table or the schedule does."""
        lines = [self.name, self.version, *map(repr, self.schedule)]
        for role in self.roles:
            lines += [role.name, role.initial, *map(repr, role.states), *(r.canonical() for r in role.rows)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def digests(self) -> tuple[str, ...]:
        """Return every digest under which these very tables were recorded: today's, and those of earlier versions."""
        return (self.digest, *self.former_digests)

    def validate(self) -> Protocol:
        """Return self if the tables make sense. Raise ModelError naming the row or state if not."""
        _validate_ranks(self)
        _validate_claims(self)
        for role in self.roles:
            _validate_states(role)
            _validate_rows(role, self)
            _validate_reach(role)
        names = {name for role in self.roles for row in role.rows for name in row_names(role, row)}
        for name in self.may_be_unreached:
            if name not in names:
                do = "name rows of the tables as [ROLE.]STATE.EVENT"
                raise ModelError(f"no row `{name}`", where=f"{self.name}, may_be_unreached", do=do)
        return self


def row_names(role: Role, row: Row) -> tuple[str, str]:
    """Return the two names by which a user may speak of a row: with its role, and without."""
    return f"{role.name}.{row.state}.{row.event}", f"{row.state}.{row.event}"


def _validate_ranks(protocol: Protocol) -> None:
    ranks = protocol.ranks
    if ranks is None:
        return
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 2:
        raise ModelError(
            f"it says that it is about {ranks} ranks", where=f"{protocol.name}, ranks", do="rank0 and a worker make 2"
        )


def _validate_claims(protocol: Protocol) -> None:
    names: set[str] = set()
    for claim in protocol.claims:
        where = f"{protocol.name}, claims"
        if not isinstance(claim, Claim):
            do = "write Invariant, Sometimes or LeadsTo"
            raise ModelError(f"{claim!r} is no claim", where=where, do=do)
        if not re.fullmatch(r"[A-Za-z_][\w-]*", claim.name):
            do = "use letters, digits, _ and -"
            raise ModelError(f"`{claim.name}` is no name of a claim", where=where, do=do)
        if claim.name in names:
            raise ModelError(f"two claims are called `{claim.name}`", where=where, do="give one another name")
        names.add(claim.name)
        predicates = {
            Invariant: ("holds",),
            Sometimes: ("seen",),
            LeadsTo: ("when", "then"),
        }[type(claim)]
        for name in predicates:
            if not callable(getattr(claim, name)):
                what = f"`{name}` of claim `{claim.name}` is no function"
                raise ModelError(what, where=where, do="name a function of the whole state")


def _validate_states(role: Role) -> None:
    names = [state.name for state in role.states]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"two states are called `{name}`", where=role.name, do="give one another name")
    if role.initial not in names:
        do = f"begin in one of {', '.join(names)}"
        raise ModelError(f"the initial state `{role.initial}` is not defined", where=role.name, do=do)


def _validate_rows(role: Role, protocol: Protocol) -> None:
    seen: set[tuple[str, str]] = set()
    for row in role.rows:
        where = f"{role.name}, row {row}"
        _validate_types(row, where)
        for name in (row.state, row.target):
            if name not in role.by_name:
                raise ModelError(f"state `{name}` is not defined", where=where, do="add it to the states")
        if row.key in seen:
            raise ModelError("two rows for the same state and event", where=where, do="give one another event")
        seen.add(row.key)
        if role.by_name[row.state].terminal:
            raise ModelError(f"state `{row.state}` is terminal", where=where, do="no row may leave it")
        if isinstance(row.gate, Put | Take):
            _validate_gate(row, row.gate, role, protocol, where)
        if row.op is not None and row.op not in protocol.schedule:
            raise ModelError(f"collective `{row.op.name}` is not in the schedule", where=where)


def _validate_types(row: Row, where: str) -> None:
    """Raise ModelError where a field of the row is not what a row is made of."""
    if not isinstance(row.guards, tuple):
        do = f"write ({named(row.guards)},), with the comma" if callable(row.guards) else "write a tuple of functions"
        raise ModelError("`guards` is no tuple", where=where, do=do)
    called = [("guards", guard) for guard in row.guards]
    called += [(name, f) for name in ("send", "choices", "effect") if (f := getattr(row, name)) is not None]
    called += [("worker", f) for f in (getattr(row.gate, "worker", None),) if f is not None]
    for name, function in called:
        if not callable(function):
            raise ModelError(f"`{name}` has {function!r}, which is no function", where=where, do="name a function")
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("by", row.by, By),
        ("op", row.op, Collective | None),
        ("gate", row.gate, Put | Take | Meet | None),
    )
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise ModelError(f"`{name}` is {value!r}", where=where, do="see genlock.model.tables.Row")


def _validate_gate(row: Row, gate: Put | Take, role: Role, protocol: Protocol, where: str) -> None:
    if row.op is not None:
        raise ModelError("a row has either a collective or a gate", where=where, do="split it in two")
    if isinstance(gate, Take) and row.choices is not None:
        raise ModelError("a row either takes a value or chooses one", where=where, do="split it in two")
    if gate.worker is None and role is protocol.driver:
        do = "name a function of the variables as the gate's `worker`"
        raise ModelError("a slot belongs to a worker, and this row does not say to which", where=where, do=do)
    if gate.slot not in protocol.slots:
        do = "add it to the protocol's `slots`"
        raise ModelError(f"slot `{getattr(gate.slot, 'name', gate.slot)}` is not declared", where=where, do=do)


def _validate_reach(role: Role) -> None:
    reached = {role.initial}
    while fresh := {r.target for r in role.rows if r.state in reached} - reached:
        reached |= fresh
    for state in role.states:
        if state.name not in reached:
            raise ModelError(f"state `{state.name}` cannot be reached", where=role.name, do="remove it or add a row")
