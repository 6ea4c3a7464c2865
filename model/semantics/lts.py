"""Unfolds a role to a finite labelled transition system: integers in, integers out.

Locals (state, pending collective, variables, ghost) are numbered as they are met, and each local's steps
are worked out once. The network above then handles nothing but small integers.

Left out: which locals can be reached together; a role alone would reach more than a network lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from ...errors import ModelError
from ..tables import (
    EMPTY,
    GIVES,
    TAKES,
    TWO_ENDED,
    At,
    By,
    Collective,
    Data,
    Kind,
    Meet,
    Poll,
    Protocol,
    Receive,
    Role,
    Row,
    Scope,
    See,
    Send,
    Shared,
    Slot,
    Take,
    Vars,
    named,
)
from .growth import Growth, growing
from .properties import observer
from .rows import arrive, breaks_off, nothing_wrong
from .transport import Contribution

T = TypeVar("T", bound=Hashable)

CRASHED = "CRASHED"
"""The state of a rank that is dead. It stands in no table: no rank decides to be there."""
DEADLINE = "deadline"
"""The event of a DETECTION row that a passed deadline causes; time is not modelled, so that it is never taken."""
MAX_LOCALS = 200_000
"""A role that unfolds to more than this has a variable without a bound."""
MAX_COUNTER = (1 << 31) - 1
"""Counters and ids are at most this, either way from 0: the engines keep them in 32 bits."""


class Interner(Generic[T]):
    """Numbers values in the order in which they are first met."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.index: dict[T, int] = {}

    def __call__(self, item: T) -> int:
        number = self.index.get(item)
        if number is None:
            number = self.index[item] = len(self.items)
            self.items.append(item)
        return number


class Local(NamedTuple):
    """Says where one rank is.

    `pending` is the event whose collective it has issued and waits in.
    """

    state: str
    pending: str | None
    vars: Vars
    ghost: Any
    stalled: bool = False


class Step(NamedTuple):
    """Holds one move of one rank: to `target`, with `contribution` if it issues, `seen` as the ghost saw it.

    A row with a `Take` has no target before it is known what is in the slot: see `Lts.take`.
    """

    row: Row
    edge: str
    target: int
    contribution: Contribution | None
    seen: tuple[str, ...]
    data: Data
    slot: tuple[Shared, Any] | None = None
    """Names what the gate is at, and whose: of a slot a worker (0: its own), else a key (None: one's own) or a peer."""
    checks: tuple[Step, ...] = ()
    """The PROTOCOL rows, of a VIOLATION row, with a `Take` that it comes after (see `Role.checks_pass`)."""


class Menu(NamedTuple):
    """Holds the steps of a local, by who causes them."""

    own: Sequence[Step]
    faults: Sequence[Step]
    detects: Sequence[Step]


class Info(NamedTuple):
    """Holds what the network needs to know of a local."""

    state: str
    op: Collective | None
    """The collective that it waits in."""
    terminal: bool
    failed: bool
    stalled: bool
    counter: int
    """Holds what `Meet` compares."""
    inside: Send | Receive | None = None
    """The gate that it waits in, having begun."""


class Lts:
    """Unfolds one role as far as it is asked for.

    On a `stream`, the host goes on where it needs no result.
    """

    def __init__(
        self, protocol: Protocol, role: Role, scope: Scope, *, stream: bool = False, rank: int | None = None
    ) -> None:
        """Unfold the role of one rank that starts with variables of its own, or of all that play it."""
        self.protocol, self.role, self.scope, self.frame = protocol, role, scope, protocol.frame
        self.stream = stream
        self.ghost, self.watch = observer(protocol.name)
        self.locals: Interner[Local] = Interner()
        self.initial = self._begins(rank)
        self._info: dict[int, Info] = {}
        self._bases: dict[int, int] = {}
        self._rebased: dict[tuple[int, int], int] = {}
        self._steps: dict[int, Sequence[Step]] = {}
        self._menus: dict[int, Menu] = {}
        self._completions: dict[tuple[int, Data], Step] = {}
        self._taken: dict[tuple[int, str, Data], Step | None] = {}
        others = (By.FAULT, By.DETECTION)
        self._by_itself = {s: all(row.by not in others for row in rows) for s, rows in role.leaving.items()}
        """Says of each state whether neither faults nor detection have a row there."""
        forgets = () if protocol.keeps else (s.name for s in role.states if s.terminal or s.failed)
        self._forgets = frozenset(forgets)
        """The states in which a rank has no variables any more."""

    def info(self, number: int) -> Info:
        found = self._info.get(number)
        if found is None:
            local = self.locals.items[number]
            count = self._counter(local)
            if local.state == CRASHED:
                found = Info(CRASHED, None, True, True, False, count)
            else:
                state = self.role.by_name[local.state]
                row = self.role.row(local.state, local.pending) if local.pending else None
                op = row.op if row else None
                inside = row.gate if row and isinstance(row.gate, TWO_ENDED) else None
                found = Info(local.state, op, state.terminal, state.failed, local.stalled, count, inside)
            self._info[number] = found
        return found

    def takes_part(self, number: int, step: Step) -> bool:
        """Return whether a step takes a rank further than going round by itself does.

        It has a collective, a slot, the counters or a choice, or leads to an end or a failure. To look at a cell, or
        into a channel that is empty, is none of it. A rank that has failed takes no part.
        """
        if self.info(number).failed:
            return False
        row, after = step.row, self.info(step.target)
        gate = row.gate
        if gate is not None and (isinstance(gate, See) or (isinstance(gate, Poll) and step.data is EMPTY)):
            return after.terminal or after.failed
        reaches_out = row.op is not None or row.gate is not None or row.choices is not None
        return reaches_out or after.terminal or after.failed

    def steps(self, number: int, *, keep: bool = True) -> Sequence[Step]:
        """Return every step that the rank may take by itself: its rows, and what faults and detection may do to it."""
        found = self._steps.get(number)
        if found is None:
            found = self._unfold(self.locals.items[number])
            if keep:
                self._steps[number] = found
            if len(self.locals.items) > MAX_LOCALS:
                growth = self.growth()
                raise ModelError(
                    f"more than {MAX_LOCALS:,} different states of one rank" + (f"; {growth.text}" if growth else ""),
                    where=f"{self.role.name}, for example {self.locals.items[-1].vars}",
                    do="bound its variables: an effect counts without end",
                )
        return found

    def menu(self, number: int, *, keep: bool = True) -> Menu:
        """Return the steps, sorted. Not to `keep` them is for who asks but once.

        A passed deadline is no step here: time is not modelled, a stall is killed instead.
        """
        found = self._menus.get(number)
        if found is None:
            steps = self.steps(number, keep=keep)
            if self._by_itself[self.locals.items[number].state]:
                found = Menu(steps, (), ())
            else:
                found = Menu(
                    tuple(s for s in steps if s.row.by not in (By.FAULT, By.DETECTION)),
                    tuple(s for s in steps if s.row.by is By.FAULT),
                    tuple(s for s in steps if s.row.by is By.DETECTION and s.row.event != DEADLINE),
                )
            if keep:
                self._menus[number] = found
        return found

    def complete(self, number: int, data: Data) -> Step:
        """Return the end of the pending collective, delivering `data`."""
        found = self._completions.get((number, data))
        if found is None:
            local = self.locals.items[number]
            if local.pending is None:
                raise ValueError(f"nothing is pending in {local}")
            row = self.role.row(local.state, local.pending)
            found = self._completions[number, data] = self._step(local, row, "complete", data)
        return found

    def take(self, number: int, row: Row, data: Data) -> Step | None:
        """Return the step of a row that takes `data` out of a slot; None where its guards do not want it."""
        key = (number, row.event, data)
        if key not in self._taken:
            local = self.locals.items[number]
            self._taken[key] = self._step(local, row, "step", data) if row.allows(local.vars, data) else None
        return self._taken[key]

    def picks(self, row: Row, key: Any, me: int) -> bool:
        """Return whether the gate of a row, of rank `me`, is at this key for some variables that were met."""
        if row.gate is None or isinstance(row.gate, Meet) or row.gate.worker is None:
            return bool(key == me)
        met = {local.vars for local in self.locals.items if local.state == row.state}
        return any(self._asked("its worker", row.gate.worker, row, v) == key for v in met)

    def crashed(self, number: int) -> int:
        """Return the same rank, dead."""
        v = self.locals.items[number].vars if self.protocol.keeps else None
        return self.locals(Local(CRASHED, None, v, None))

    def stalled(self, number: int, stalled: bool) -> int:
        """Return the same local, taking no steps, or taking them again."""
        return self.locals(self.locals.items[number]._replace(stalled=stalled))

    def base(self, number: int) -> int:
        """Return how far this rank's ids have moved on (0 where the protocol has no such ids)."""
        found = self._bases.get(number)
        if found is None:
            v = self.locals.items[number].vars
            found = 0 if self.frame is None or v is None else self.frame.base(v)
            self._bases[number] = found = self._bounded("the base of its ids", found, v)
        return found

    def growth(self) -> Growth | None:
        """Return the variable that kept taking new values while locals were met, if one did."""
        return growing(self.role.name, [local.vars for local in self.locals.items])

    def rebased(self, number: int, by: int) -> int:
        """Return the same local with its ids moved on by `by`."""
        found = self._rebased.get((number, by))
        if found is None:
            local = self.locals.items[number]
            if self.frame is not None and local.vars is not None:
                local = local._replace(vars=self.frame.rebase(local.vars, by))
            found = self._rebased[number, by] = self.locals(local)
        return found

    def goes_on(self, op: Collective) -> bool:
        """Return whether the host goes on once it has issued `op`: on a stream, where it needs no result of it."""
        if not self.stream or op.group not in self.protocol.streams:
            return False
        is_root = op.root == 0 and self.role is self.protocol.driver
        return (op.kind is Kind.ALL_REDUCE and op.result is None) or (op.kind is Kind.BROADCAST and is_root)

    # ── a user's functions ──────────────────────────────────────────────────────────────────────────

    def _asked(self, what: str, function: Callable[..., Any], row: Row | None, *given: Any) -> Any:
        """Call a function of the model. Raise ModelError, naming the row, for whatever it raises."""
        try:
            return function(*given)
        except ModelError:
            raise
        except (Exception, SystemExit) as error:
            raise self._raised(what, function, row, given, error) from error

    def _raised(
        self, what: str, function: Callable[..., Any], row: Row | None, given: Sequence[Any], error: BaseException
    ) -> ModelError:
        of = row.effect if function is arrive and row is not None else function
        why = f"{what} `{named(of)}` raised {type(error).__name__}: {error}"
        hint = "a rank that has failed has no variables left, unless the protocol `keeps` them"
        at = _VARS_AT.get(function, 0)
        do = hint if len(given) > at and given[at] is None else ""
        return ModelError(why, where=self._where(row), do=do)

    def _where(self, row: Row | None) -> str:
        return f"{self.role.name}, row {row}" if row is not None else self.role.name

    def _begins(self, rank: int | None) -> int:
        if self.role.start_at is None or rank is None:
            v = self._asked("its start", self.role.start, None, True)
        else:
            v = self._asked("its start_at", self.role.start_at, None, rank, self.scope)
        return self._number(Local(self.role.initial, None, v, self.ghost), None)

    def _number(self, local: Local, row: Row | None) -> int:
        """Number a local. Raise ModelError where its variables cannot be compared with others."""
        try:
            known = self.locals.index.get(local)
        except TypeError as error:
            kind = type(local.vars).__name__
            do = "use a frozen dataclass of numbers, strings, tuples and frozensets"
            raise ModelError(
                f"its variables, a {kind}, have no hash: {error}", where=self._where(row), do=do
            ) from error
        if known is not None:
            return known
        if not _compares_by_value(local.vars):
            do = "use a frozen dataclass: two equal states must be seen to be equal"
            kind = type(local.vars).__name__
            raise ModelError(f"its variables, a {kind}, can be changed in place", where=self._where(row), do=do)
        return self.locals(local)

    def _counter(self, local: Local) -> int:
        """Return the counter that `Meet` compares; that of a rank whose variables are gone is 0."""
        counter = self.protocol.counter
        if counter is None or local.vars is None:
            return 0
        return self._bounded("the counter", self._asked("the counter", counter, None, local.vars), local.vars)

    def _bounded(self, what: str, number: Any, v: Vars) -> int:
        if not isinstance(number, int):
            where = f"{self.role.name}, variables {v}"
            raise ModelError(f"{what} is {number!r}, which is no whole number", where=where)
        if abs(number) > MAX_COUNTER:
            where = f"{self.role.name}, variables {v}"
            do = f"keep it between -{MAX_COUNTER:,} and {MAX_COUNTER:,}"
            raise ModelError(f"{what} is {number:,}: too large", where=where, do=do)
        return int(number)

    def _choices(self, row: Row, v: Vars) -> Sequence[Data]:
        if row.choices is None:
            return (None,)
        choices = row.choices
        given: list[Data] = self._asked("its choices", lambda *v: list(choices(*v)), row, v, self.scope)
        return given

    def _sent(self, row: Row, v: Vars) -> Data:
        """Return what the row sends. Raise ModelError for a value that cannot be compared."""
        value = self._asked("its send", row.send, row, v) if row.send else None
        try:
            hash(value)
        except TypeError as error:
            do = "send numbers, strings, tuples or frozen dataclasses"
            raise ModelError(f"what it sends has no hash: {error}", where=self._where(row), do=do) from error
        return value

    def _arrived(self, row: Row, v: Vars, data: Data) -> tuple[str, Vars]:
        """Return state and variables after the row. Raise ModelError where its effect makes no sense."""
        if row.effect is None:
            return row.target, v
        try:
            state, after = arrive(row, v, data)
        except ModelError:
            raise
        except (Exception, SystemExit) as error:
            raise self._raised("its effect", arrive, row, (row, v, data), error) from error
        if after is None and v is not None:
            do = "return the new variables, or leave the effect out"
            raise ModelError(f"its effect `{named(row.effect)}` returned None", where=self._where(row), do=do)
        return state, after

    def _slot(self, row: Row, gate: At, v: Vars) -> tuple[Shared, Any]:
        """Return what a gate is at and whose it is. Raise ModelError where there is no such worker."""
        if not isinstance(gate.slot, Slot):
            whose = None if gate.worker is None else self._asked("its worker", gate.worker, row, v)
            if gate.worker is not None and whose is None:
                what = f"its worker `{named(gate.worker)}` is None"
                raise ModelError(what, where=self._where(row), do="leave it out where there is nothing to pick")
            return (gate.slot, whose)
        if gate.worker is None:
            return (gate.slot, 0)
        whose = self._asked("its worker", gate.worker, row, v)
        workers = self.scope.ranks - 1
        if not isinstance(whose, int) or isinstance(whose, bool) or not 1 <= whose <= workers:
            what = f"its worker `{named(gate.worker)}` is {whose!r}, and workers are 1 to {workers}"
            raise ModelError(what, where=self._where(row), do=f"for example with the variables {v}")
        return (gate.slot, whose)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _unfold(self, local: Local) -> list[Step]:
        found = []
        for row in self.role.leaving[local.state]:
            if local.pending is not None and not (row.interrupts or breaks_off(self.role, row)):
                continue
            if row.gate is not None and isinstance(row.gate, TAKES):
                violates = row.by is By.VIOLATION
                if not (violates and self._nothing_wrong(row, local, None)):
                    slot, checks = self._slot(row, row.gate, local.vars), self._checks(row, local) if violates else ()
                    found.append(Step(row, "step", -1, None, (), None, slot, checks))
                continue
            v, choices = local.vars, self._choices(row, local.vars)
            allowed = [data for data in choices if row.allows(v, data)] if row.guards else choices
            if row.by is By.VIOLATION:
                checks = self._checks(row, local)
                violations = (data for data in allowed if not self._nothing_wrong(row, local, data))
                found += [self._step(local, row, "step", data)._replace(checks=checks) for data in violations]
            elif row.op is not None or isinstance(row.gate, TWO_ENDED):
                found += [self._step(local, row, "issue", data) for data in allowed]
            elif row.gate is not None or self.watch is not None:
                found += [self._step(local, row, "step", data) for data in allowed]
            else:
                found += [
                    Step(row, "step", self._at(row, *self._arrived(row, v, data)), None, (), data) for data in allowed
                ]
        return found

    def _nothing_wrong(self, row: Row, local: Local, data: Data) -> bool:
        """Return whether a VIOLATION row is out of place here, whatever the slots hold."""
        given = (self.role, row, local.vars, data, self.scope)
        return bool(self._asked("a check of its state", nothing_wrong, row, *given))

    def _checks(self, row: Row, local: Local) -> tuple[Step, ...]:
        """Return the PROTOCOL rows with a `Take` beside a VIOLATION row: what is in their slots decides about it."""
        beside = self.role.leaving[local.state]
        return tuple(
            Step(r, "step", -1, None, (), None, self._slot(r, r.gate, local.vars))
            for r in beside
            if r.by is By.PROTOCOL and isinstance(r.gate, Take)
        )

    def _step(self, local: Local, row: Row, edge: str, data: Data) -> Step:
        sent = self._sent(row, local.vars) if edge == "issue" else None
        goes_on = edge == "issue" and row.op is not None and (row.posts or self.goes_on(row.op))
        waits = edge == "issue" and not goes_on
        arrived, after = (local.state, local.vars) if waits else self._arrived(row, local.vars, data)
        ghost = local.ghost
        seen: tuple[str, ...] = ()
        if self.watch is not None and ghost is not None:
            value = sent if edge == "issue" else data
            ghost, seen = self.watch(ghost, row.event, edge, value, local.vars, after)
        contribution = Contribution(row.op, sent) if edge == "issue" and row.op else None
        if waits:
            waiting = self._number(Local(local.state, row.event, local.vars, ghost), row)
            at = None
            if row.gate is not None and isinstance(row.gate, TWO_ENDED):
                at = self._slot(row, row.gate, local.vars)
            return Step(row, edge, waiting, contribution, seen, sent, at)
        target, slot = self._at(row, arrived, after, ghost), None
        if row.gate is not None and not isinstance(row.gate, _SLOTLESS):
            slot = self._slot(row, cast(At, row.gate), local.vars)
            if isinstance(row.gate, GIVES):
                contribution, data = None, self._sent(row, local.vars)
        return Step(row, edge, target, contribution, seen, sent if goes_on else data, slot)

    def _at(self, row: Row, state: str, v: Vars, ghost: Any = None) -> int:
        """Return the local in which a row arrives."""
        local = Local(state, None, None, None) if state in self._forgets else Local(state, None, v, ghost)
        return self._number(local, row)


_SLOTLESS = (Meet, *TAKES)
"""Gates after which a step no longer says what they were at."""
_VARS_AT: dict[Callable[..., Any], int] = {arrive: 1, nothing_wrong: 2}
"""Which argument the variables are, of a function that steps a rank; of a model's own it is the first."""
_BY_VALUE = (str, bytes, bool, int, float, complex, tuple, frozenset, type(None))


def _compares_by_value(v: Vars) -> bool:
    """Return whether variables are equal where their content is, and stay what they were when they were met."""
    if isinstance(v, msgspec.Struct):
        return v.__struct_config__.frozen
    if is_dataclass(v):
        parameters: Any = getattr(type(v), "__dataclass_params__", None)
        return bool(parameters.frozen)
    return isinstance(v, _BY_VALUE) or getattr(type(v), "__hash__", None) is not object.__hash__
