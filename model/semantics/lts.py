"""A role unfolded to a finite labelled transition system: integers in, integers out.

Locals (state, pending collective, variables, ghost) are numbered as they are met, and each local's steps
are worked out once. The network above then handles nothing but small integers.

Left out: which locals can be reached together; a role alone would reach more than a network lets it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from ...errors import ModelError
from ..tables import By, Collective, Data, Kind, Protocol, Put, Role, Row, Scope, Slot, Take, Vars
from .properties import observer
from .rows import arrive, breaks_off, enabled_row
from .transport import Contribution

T = TypeVar("T", bound=Hashable)

CRASHED = "CRASHED"
"""The state of a rank that is dead. It stands in no table: no rank decides to be there."""
MAX_LOCALS = 200_000
"""A role that unfolds to more than this has a variable without a bound."""


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
    """Where one rank is. `pending` is the event whose collective it has issued and waits in."""

    state: str
    pending: str | None
    vars: Vars
    ghost: Any
    stalled: bool = False


class Step(NamedTuple):
    """One move of one rank: to `target`, with `contribution` if it issues, `seen` as the ghost saw it.

    A row with a `Take` has no target before it is known what is in the slot: see `Lts.take`.
    """

    row: Row
    edge: str
    target: int
    contribution: Contribution | None
    seen: tuple[str, ...]
    data: Data
    slot: tuple[Slot, int] | None = None
    """The slot that a `Put` or `Take` is about, and the worker whose it is (0: its own)."""


class Menu(NamedTuple):
    """The steps of a local, by who causes them."""

    own: tuple[Step, ...]
    faults: tuple[Step, ...]
    detects: tuple[Step, ...]


class Info(NamedTuple):
    """What the network needs to know of a local."""

    state: str
    op: Collective | None
    """The collective that it waits in."""
    terminal: bool
    failed: bool
    stalled: bool
    counter: int
    """What `Meet` compares."""


class Lts:
    """One role, unfolded as far as it is asked for. On a `stream`, the host goes on where it needs no result."""

    def __init__(self, protocol: Protocol, role: Role, scope: Scope, *, stream: bool = False) -> None:
        self.protocol, self.role, self.scope, self.frame = protocol, role, scope, protocol.frame
        self.stream = stream
        self.ghost, self.watch = observer(protocol.name)
        self.locals: Interner[Local] = Interner()
        self.initial = self.locals(Local(role.initial, None, role.start(True), self.ghost))
        self._info: dict[int, Info] = {}
        self._bases: dict[int, int] = {}
        self._rebased: dict[tuple[int, int], int] = {}
        self._steps: dict[int, tuple[Step, ...]] = {}
        self._menus: dict[int, Menu] = {}
        self._completions: dict[tuple[int, Data], Step] = {}
        self._taken: dict[tuple[int, str, Data], Step | None] = {}

    def info(self, number: int) -> Info:
        found = self._info.get(number)
        if found is None:
            local = self.locals.items[number]
            count = self.protocol.counter(local.vars) if self.protocol.counter and local.vars is not None else 0
            if local.state == CRASHED:
                found = Info(CRASHED, None, True, True, False, count)
            else:
                state = self.role.by_name[local.state]
                op = self.role.row(local.state, local.pending).op if local.pending else None
                found = Info(local.state, op, state.terminal, state.failed, local.stalled, count)
            self._info[number] = found
        return found

    def steps(self, number: int) -> tuple[Step, ...]:
        """Every step that the rank may take by itself: its rows, and what faults and detection may do to it."""
        found = self._steps.get(number)
        if found is None:
            found = self._steps[number] = tuple(self._unfold(self.locals.items[number]))
            if len(self.locals.items) > MAX_LOCALS:
                raise ModelError(
                    f"more than {MAX_LOCALS:,} different states of one rank",
                    where=f"{self.role.name}, for example {self.locals.items[-1].vars}",
                    do="bound its variables: an effect counts without end",
                )
        return found

    def menu(self, number: int) -> Menu:
        """The steps, sorted. A passed deadline is no step here: time is not modelled, a stall is killed instead."""
        found = self._menus.get(number)
        if found is None:
            steps = self.steps(number)
            found = self._menus[number] = Menu(
                tuple(s for s in steps if s.row.by not in (By.FAULT, By.DETECTION)),
                tuple(s for s in steps if s.row.by is By.FAULT),
                tuple(s for s in steps if s.row.by is By.DETECTION and s.row.event != "deadline"),
            )
        return found

    def complete(self, number: int, data: Data) -> Step:
        """The end of the pending collective, delivering `data`."""
        found = self._completions.get((number, data))
        if found is None:
            local = self.locals.items[number]
            if local.pending is None:
                raise ValueError(f"nothing is pending in {local}")
            row = self.role.row(local.state, local.pending)
            found = self._completions[number, data] = self._step(local, row, "complete", data)
        return found

    def take(self, number: int, row: Row, data: Data) -> Step | None:
        """The step of a row that takes `data` out of a slot; None where its guards do not want it."""
        key = (number, row.event, data)
        if key not in self._taken:
            local = self.locals.items[number]
            self._taken[key] = self._step(local, row, "step", data) if row.allows(local.vars, data) else None
        return self._taken[key]

    def crashed(self, number: int) -> int:
        """The same rank, dead."""
        v = self.locals.items[number].vars if self.protocol.keeps else None
        return self.locals(Local(CRASHED, None, v, None))

    def stalled(self, number: int, stalled: bool) -> int:
        """The same local, taking no steps, or taking them again."""
        return self.locals(self.locals.items[number]._replace(stalled=stalled))

    def base(self, number: int) -> int:
        """How far this rank's ids have moved on (0 where the protocol has no such ids)."""
        found = self._bases.get(number)
        if found is None:
            v = self.locals.items[number].vars
            found = self._bases[number] = 0 if self.frame is None or v is None else self.frame.base(v)
        return found

    def rebased(self, number: int, by: int) -> int:
        """The same local with its ids moved on by `by`."""
        found = self._rebased.get((number, by))
        if found is None:
            local = self.locals.items[number]
            if self.frame is not None and local.vars is not None:
                local = local._replace(vars=self.frame.rebase(local.vars, by))
            found = self._rebased[number, by] = self.locals(local)
        return found

    def goes_on(self, op: Collective) -> bool:
        """Whether the host goes on once it has issued `op`: on a stream, where it needs no result of it."""
        if not self.stream or op.group not in self.protocol.streams:
            return False
        is_root = op.root == 0 and self.role is self.protocol.driver
        return op.kind is Kind.ALL_REDUCE or (op.kind is Kind.BROADCAST and is_root)

    def _unfold(self, local: Local) -> list[Step]:
        found = []
        for row in self.role.leaving[local.state]:
            if local.pending is not None and not breaks_off(self.role, row):
                continue
            if isinstance(row.gate, Take):
                found.append(Step(row, "step", -1, None, (), None, self._slot(row.gate, local.vars)))
                continue
            for data in row.choices(local.vars, self.scope) if row.choices else (None,):
                if enabled_row(self.role, local.state, row.event, local.vars, data) is row:
                    found.append(self._step(local, row, "issue" if row.op else "step", data))
        return found

    @staticmethod
    def _slot(gate: Put | Take, v: Vars) -> tuple[Slot, int]:
        return (gate.slot, gate.worker(v) if gate.worker else 0)

    def _step(self, local: Local, row: Row, edge: str, data: Data) -> Step:
        sent = row.send(local.vars) if edge == "issue" and row.send else None
        goes_on = edge == "issue" and row.op is not None and self.goes_on(row.op)
        arrived, after = (local.state, local.vars) if edge == "issue" and not goes_on else arrive(row, local.vars, data)
        ghost = local.ghost
        seen: tuple[str, ...] = ()
        if self.watch is not None and ghost is not None:
            value = sent if edge == "issue" else data
            ghost, seen = self.watch(ghost, row.event, edge, value, local.vars, after)
        contribution = Contribution(row.op, sent) if edge == "issue" and row.op else None
        if edge == "issue" and not goes_on:
            return Step(
                row, edge, self.locals(Local(local.state, row.event, local.vars, ghost)), contribution, seen, sent
            )
        state = self.role.by_name[arrived]
        gone = (state.terminal or state.failed) and not self.protocol.keeps
        target = Local(arrived, None, None if gone else after, None if gone else ghost)
        slot = self._slot(row.gate, local.vars) if isinstance(row.gate, Put) else None
        if isinstance(row.gate, Put):
            contribution, data = None, row.send(local.vars) if row.send else None
        return Step(row, edge, self.locals(target), contribution, seen, sent if goes_on else data, slot)
