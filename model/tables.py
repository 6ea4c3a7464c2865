"""Defines the vocabulary in which a protocol is written: states, rows, collectives, roles.

No protocol stands here.

A role is a table of rows. A row leaves `state` on `event` for `target` when its guards hold, and may
carry a collective, which has two ends: the rank *issues* it (guards are asked here), and later it
*completes* (the effect sees what was delivered here). A row without a collective is one step.

Left out: what a collective does between its two ends (`network.py`), and time.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, TypeVar

import msgspec

from ..errors import ModelError
from .claims import Claim, Invariant, LeadsTo, Sometimes

MOST_WAITING = 64
"""Messages that a channel may hold, or that may wait on a link."""
Vars = Any
"""A role's variables: a frozen dataclass or struct, whose type belongs to the protocol."""
Data = Any
"""Holds what a row is given: a choice of the environment, or what its collective delivered."""
Guard = Callable[[Vars, Data], bool]
Effect = Callable[[Vars, Data], Vars]
Sends = Callable[[Vars], Data]
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
    BARRIER = "barrier"
    REDUCE = "reduce"
    REDUCE_SCATTER = "reduce_scatter"
    SCATTER = "scatter"
    ALL_TO_ALL = "all_to_all"


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
    result: Callable[[tuple[Data, ...]], Data] | None = field(default=None, repr=False)
    """Makes what is delivered out of what each member put in, in the order of the group. None: the set of these."""

    @property
    def signature(self) -> tuple[str, str, int | None, str, str]:
        """Return what the backend pairs by: equal signatures pair, whatever they mean."""
        return (self.group, self.kind.value, self.root, self.dtype, self.size)


@dataclass(frozen=True, slots=True)
class Slot:
    """Describes a one-slot channel between the driver and each worker: a slot a worker, empty at the start."""

    name: str


Keys = Callable[[Scope], Iterable[Any]]
"""Lists the keys, of which there is one each: ranks, mostly. They must have a hash."""


@dataclass(frozen=True, slots=True)
class Fifo:
    """Describes a channel that anybody may put into and take out of: first in, first out, at most `capacity` in it.

    There is one for each of `keys`; without, one for all.
    """

    name: str
    capacity: int = 1
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """Describes a value that anybody may set and see. There is one for each of `keys`; without, one for all."""

    name: str
    initial: Data = None
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Describes messages from each rank to each other one, in order.

    A send ends when its receive has been posted (a rendezvous), or when no more than `buffer` messages wait for one.
    """

    name: str
    buffer: int = 0


Shared = Slot | Fifo | Cell | Link
"""Names what ranks share, apart from groups."""
Whose = Callable[[Vars], Any]
"""Picks, by a rank's variables, the key of a channel or cell, the worker of a slot (from 1), the peer on a link.

None: one's own, or the one that there is for all."""


@dataclass(frozen=True, slots=True)
class Put:
    """Fills a slot once it is empty, or a channel that is not full. `worker` picks whose."""

    slot: Slot | Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Takes what is in a slot, or the first in a channel, once there is something that its guards want.

    Guards and effect are given it. `worker` picks whose.
    """

    slot: Slot | Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """Takes as `Take` does, and does not wait: guards and effect are given EMPTY where nothing is there."""

    slot: Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Set:
    """Sets a cell to what the row sends."""

    slot: Cell
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class See:
    """Waits until the guards want what a cell holds, and leaves it there. What came and went was not seen."""

    slot: Cell
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Sends a message to the rank that `worker` picks, and ends as its link says."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Receive:
    """Posts a receive from the rank that `worker` picks, and ends with its next message, which the effect is given."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """Sends a message as `Send` does, and goes on."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """Waits until a receive has been posted for each message that the rank has sent to the one that `worker` picks."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Meet:
    """Goes on once every rank's counter (`Protocol.counter`) is at least one's own."""


At = Put | Take | Poll | Set | See | Send | Receive | Post | Sent
"""A gate at something that ranks share."""
Gate = At | Meet
TAKES: Final = (Take, Poll, See)
"""Gates of one step, whose guards and effect are given what is there."""
GIVES: Final = (Put, Set, Post)
"""Gates of one step that leave there what the row sends."""
TWO_ENDED: Final = (Send, Receive)
"""Gates with two ends, as a collective has them: guards are asked at the first, the effect comes at the second."""
AT: Final[Mapping[type, tuple[type, ...]]] = {
    Put: (Slot, Fifo), Take: (Slot, Fifo), Poll: (Fifo,), Set: (Cell,), See: (Cell,),
    Send: (Link,), Receive: (Link,), Post: (Link,), Sent: (Link,),
}  # fmt: skip
"""Says what each gate may be at."""


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


def named(function: Any) -> str:
    """Return a function's name, as messages and digests show it."""
    return str(getattr(function, "__name__", function))


def _type_name(kind: Any) -> str:
    """Return a type's name without its module, so that moving a type changes no digest."""
    arguments = ", ".join(map(_type_name, getattr(kind, "__args__", ())))
    name = getattr(kind, "__qualname__", repr(kind))
    return f"{name}[{arguments}]" if arguments else name


def nothing(finite: bool) -> Vars:
    """Return the variables of a role that has none."""
    return None


def everyone(scope: Scope) -> Iterable[int]:
    """Return all ranks, as `Role.ranks` or the keys of a channel want them."""
    return range(scope.ranks)


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


NOBODY = Role("nobody", "", (), ())
"""Stands for driver and worker of a protocol that has a cast."""


@dataclass(frozen=True)
class Group:
    """Names the ranks that a collective is of: lists of them, each rank in one at most, that know nothing of others."""

    name: str
    members: Callable[[Scope], Iterable[Iterable[int]]] = field(compare=False)


def mesh(**sizes: int) -> tuple[Group, ...]:
    """Return a group for each axis of a mesh of ranks, the last one the quickest: `mesh(dp=2, tp=4)` is of 8."""

    def lines(axis: str) -> Callable[[Scope], Iterable[Iterable[int]]]:
        names = list(sizes)
        step = math.prod(sizes[name] for name in names[names.index(axis) + 1 :])
        firsts = (rank for rank in range(math.prod(sizes.values())) if rank // step % sizes[axis] == 0)
        found = tuple(tuple(first + step * n for n in range(sizes[axis])) for first in firsts)
        return lambda scope: found

    return tuple(Group(name, lines(name)) for name in sizes)


def is_empty(v: Vars, data: Data) -> bool:
    """Return, as a guard, whether a `Poll` found nothing."""
    return data is EMPTY


def is_there(v: Vars, data: Data) -> bool:
    """Return, as a guard, whether a `Poll` found something."""
    return data is not EMPTY


def total(values: tuple[Data, ...]) -> Data:
    """Return the sum of what the members of a collective put in."""
    return sum(values)


def least(values: tuple[Data, ...]) -> Data:
    """Return the least of what the members of a collective put in."""
    return min(values)


def most(values: tuple[Data, ...]) -> Data:
    """Return the most of what the members of a collective put in."""
    return max(values)


def any_of(values: tuple[Data, ...]) -> Data:
    """Return whether any member of a collective put in something true."""
    return any(values)


def each(values: tuple[Data, ...]) -> Data:
    """Return what each member of a collective put in, in the order of the group."""
    return values


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
            for rank in _ranks_of(role, scope, where):
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

    def validate(self) -> Protocol:
        """Return self if the tables make sense. Raise ModelError naming the row or state if not."""
        _validate_ranks(self)
        _validate_cast(self)
        _validate_shared(self)
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


def _validate_cast(protocol: Protocol) -> None:
    where = f"{protocol.name}, cast"
    if protocol.cast:
        if protocol.driver is not NOBODY or protocol.worker is not NOBODY:
            raise ModelError("it has a cast, and a driver or worker", where=where, do="name one or the other")
        for what, there in (("slots", protocol.slots), ("a frame", protocol.frame), ("streams", protocol.streams)):
            if there:
                do = "channels have keys" if what == "slots" else "it is for driver and workers alone"
                raise ModelError(f"it has a cast, and {what}", where=where, do=do)
    elif protocol.driver is NOBODY or protocol.worker is NOBODY:
        raise ModelError("nobody plays in it", where=where, do="name a driver and a worker, or a cast")


def _validate_shared(protocol: Protocol) -> None:
    kinds: tuple[tuple[str, Iterable[Any], Any], ...] = (
        ("cast", protocol.cast, Role),
        ("groups", protocol.groups, Group),
        ("shared", protocol.shared, Fifo | Cell | Link),
    )
    for name, items, kind in kinds:
        for item in items:
            if not isinstance(item, kind):
                raise ModelError(f"`{name}` has {item!r}", where=protocol.name, do="see docs/language.md")
    for name, items in (("roles", protocol.cast), ("groups", protocol.groups), ("things shared", protocol.shared)):
        names = [item.name for item in items]
        for one in names:
            if names.count(one) > 1:
                raise ModelError(f"two {name} are called `{one}`", where=protocol.name, do="give one another name")
    for group in protocol.groups:
        if group.name not in protocol.group_names:
            do = "name it as the `group` of a collective of the schedule, or leave it out"
            raise ModelError(f"group `{group.name}` has no collective", where=protocol.name, do=do)
    for shared in protocol.shared:
        size = shared.capacity if isinstance(shared, Fifo) else shared.buffer if isinstance(shared, Link) else 1
        least = 0 if isinstance(shared, Link) else 1
        if not isinstance(size, int) or isinstance(size, bool) or not least <= size <= MOST_WAITING:
            do = f"take {least} to {MOST_WAITING}"
            raise ModelError(f"`{shared.name}` has room for {size!r}", where=protocol.name, do=do)


def beyond(protocol: Protocol) -> str | None:
    """Return, in words, the first thing in a protocol that only the reference engine has; None: nothing."""
    if protocol.cast:
        return f"a cast ({', '.join(role.name for role in protocol.cast)})"
    if protocol.groups:
        return f"group `{protocol.groups[0].name}`, not of all ranks"
    for shared in protocol.shared:
        return f"{type(shared).__name__.lower()} `{shared.name}`"
    for op in protocol.schedule:
        if op.kind not in (Kind.BROADCAST, Kind.GATHER, Kind.ALL_GATHER, Kind.ALL_REDUCE):
            return f"collective `{op.name}`, a {op.kind}"
        if op.result is not None:
            return f"collective `{op.name}`, whose result is `{named(op.result)}`"
    for role in protocol.roles:
        for row in role.rows:
            if row.interrupts or row.posts:
                return f"row {row} of {role.name}, which {'interrupts' if row.interrupts else 'posts'}"
    return None


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
        if row.gate is not None and not isinstance(row.gate, Meet):
            _validate_gate(row, row.gate, role, protocol, where)
        _validate_ends(row, role, where)
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
        ("gate", row.gate, Gate | None),
    )
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise ModelError(f"`{name}` is {value!r}", where=where, do="see genlock.model.tables.Row")


def _validate_gate(row: Row, gate: At, role: Role, protocol: Protocol, where: str) -> None:
    kind, slot = type(gate).__name__, gate.slot
    name = getattr(slot, "name", slot)
    if row.op is not None:
        raise ModelError("a row has either a collective or a gate", where=where, do="split it in two")
    if not isinstance(slot, AT[type(gate)]):
        do = f"it may be at a {' or a '.join(of.__name__ for of in AT[type(gate)])}"
        raise ModelError(f"`{kind}` is at `{name}`, a {type(slot).__name__}", where=where, do=do)
    if isinstance(gate, TAKES) and row.choices is not None:
        raise ModelError("a row either takes a value or chooses one", where=where, do="split it in two")
    if isinstance(slot, Slot):
        if gate.worker is None and role is protocol.driver:
            do = "name a function of the variables as the gate's `worker`"
            raise ModelError("a slot belongs to a worker, and this row does not say to which", where=where, do=do)
        if slot not in protocol.slots:
            do = "add it to the protocol's `slots`"
            raise ModelError(f"slot `{name}` is not declared", where=where, do=do)
    elif slot not in protocol.shared:
        do = "add it to what the protocol has `shared`"
        raise ModelError(f"{type(slot).__name__.lower()} `{name}` is not declared", where=where, do=do)
    if isinstance(slot, Link) and gate.worker is None:
        do = "name a function of the variables that picks the other rank"
        raise ModelError(f"`{kind}` does not say with whom", where=where, do=do)


def _validate_ends(row: Row, role: Role, where: str) -> None:
    """Raise ModelError for what a row cannot be together with, as far as that is modelled."""
    if row.posts and row.op is None:
        raise ModelError("it posts, and has no collective", where=where, do="name one as its `op`")
    if row.posts and row.op is not None and row.op.result is not None:
        what = f"it posts `{row.op.name}`, whose result it would not be given"
        raise ModelError(what, where=where, do="wait for it, or leave the result out")
    if row.interrupts and row.by in (By.FAULT, By.DETECTION, By.VIOLATION):
        do = "a fault or detection that leads to a failed state does so by itself"
        raise ModelError(f"a row by {row.by} interrupts", where=where, do=do)
    if row.interrupts and (row.op is not None or isinstance(row.gate, TWO_ENDED)):
        raise ModelError("it interrupts, and waits itself", where=where, do="give it no collective, Send or Receive")
    if row.syncs and isinstance(row.gate, TWO_ENDED):
        raise ModelError("it syncs, and has a gate with two ends", where=where, do="split it in two")
    beside = role.leaving[row.state]
    if row.interrupts and any(isinstance(other.gate, TWO_ENDED) for other in beside):
        do = "what becomes of a message or its receive is not modelled"
        raise ModelError("it interrupts a Send or Receive", where=where, do=do)
    if row.by is By.VIOLATION:
        for other in beside:
            if isinstance(other.gate, Poll | See | Sent | Receive | Send):
                what = f"a violation stands beside row {other}, which is not judged by what is there"
                raise ModelError(what, where=where, do="check it in a state of its own")


def _ranks_of(role: Role, scope: Scope, where: str) -> tuple[int, ...]:
    if role.ranks is None:
        do = "give it `ranks`: a function of the scope, for example genlock.everyone"
        raise ModelError("it does not say who plays it", where=where, do=do)
    return ranks_among(role.ranks, scope, where)


def ranks_among(function: Callable[[Scope], Iterable[int]], scope: Scope, where: str) -> tuple[int, ...]:
    """Return the ranks that a function of the scope names. Raise ModelError for what are none."""
    return _ranks(_listed(function, scope, where), scope, where)


def lists_of(group: Group, scope: Scope, where: str) -> list[tuple[int, ...]]:
    """Return the lists of ranks of a group. Raise ModelError for what are none."""
    return [_ranks(one, scope, where) for one in _listed(lambda scope: map(tuple, group.members(scope)), scope, where)]


def _listed(function: Callable[[Scope], Iterable[Any]], scope: Scope, where: str) -> list[Any]:
    try:
        return list(function(scope))
    except Exception as error:
        raise ModelError(f"it raised {type(error).__name__}: {error}", where=where) from error


def _ranks(found: Iterable[Any], scope: Scope, where: str) -> tuple[int, ...]:
    ranks = tuple(found)
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < scope.ranks:
            raise ModelError(f"{rank!r} is no rank", where=where, do=f"ranks are 0 to {scope.ranks - 1}")
    return ranks


def _as_text(shared: Fifo | Cell | Link) -> str:
    """Return something shared as the digest shows it: functions by their names."""
    parts = (getattr(shared, name) for name in ("capacity", "buffer", "initial", "keys") if hasattr(shared, name))
    texts = (named(part) if callable(part) else repr(part) for part in parts)
    return f"{type(shared).__name__} {shared.name} {' '.join(texts)}"


def _validate_reach(role: Role) -> None:
    reached = {role.initial}
    while fresh := {r.target for r in role.rows if r.state in reached} - reached:
        reached |= fresh
    for state in role.states:
        if state.name not in reached:
            raise ModelError(f"state `{state.name}` cannot be reached", where=role.name, do="remove it or add a row")
