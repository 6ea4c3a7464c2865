"""Says whether the tables of a protocol make sense, and names the row, state or word that does not.

Left out: what depends on the scope, which a network finds out (`semantics/network.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...errors import ModelError
from ..claims import Claim, Invariant, LeadsTo, Sometimes
from .collectives import Collective, Group, Kind
from .protocol import Protocol
from .roles import NOBODY, By, Role, Row, row_names
from .scope import named
from .shared import (
    AT,
    MOST_WAITING,
    TAKES,
    TWO_ENDED,
    At,
    Cell,
    Fifo,
    Gate,
    Link,
    Meet,
    Poll,
    Receive,
    See,
    Send,
    Sent,
    Slot,
)


def validate(protocol: Protocol) -> Protocol:
    """Return a protocol whose tables make sense. Raise ModelError naming the row or state if they do not."""
    _validate_ranks(protocol)
    _validate_cast(protocol)
    _validate_shared(protocol)
    _validate_claims(protocol)
    for role in protocol.roles:
        _validate_states(role)
        _validate_rows(role, protocol)
        _validate_reach(role)
    names = {name for role in protocol.roles for row in role.rows for name in row_names(role, row)}
    for name in protocol.may_be_unreached:
        if name not in names:
            do = "name rows of the tables as [ROLE.]STATE.EVENT"
            raise ModelError(f"no row `{name}`", where=f"{protocol.name}, may_be_unreached", do=do)
    return protocol


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
        if role.start_at is not None:
            return f"role {role.name}, each rank of which starts with variables of its own"
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
    if row.gate is not None and row.by in (By.FAULT, By.DETECTION):
        do = "nothing opens or closes for it: let it lead to a state whose row has the gate"
        raise ModelError(f"a row by {row.by} has a gate", where=where, do=do)
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


def _validate_reach(role: Role) -> None:
    reached = {role.initial}
    while fresh := {r.target for r in role.rows if r.state in reached} - reached:
        reached |= fresh
    for state in role.states:
        if state.name not in reached:
            raise ModelError(f"state `{state.name}` cannot be reached", where=role.name, do="remove it or add a row")
