"""A role unfolded to a finite labelled transition system: integers in, integers out.

Locals (state, pending collective, variables, ghost) are numbered as they are met, and each local's steps
are worked out once. The network above then handles nothing but small integers.

Left out: which locals can be reached together; a role alone would reach more than a network lets it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from .properties import observer
from .tables import By, Collective, Data, Protocol, Role, Row, Scope, Vars
from .transport import Contribution

T = TypeVar("T", bound=Hashable)


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
    """Where one rank is. `pending` is the event whose collective it has issued and not yet completed."""

    state: str
    pending: str | None
    vars: Vars
    ghost: Any


class Step(NamedTuple):
    """One move of one rank: to `target`, with `contribution` if it issues, `seen` as the ghost saw it."""

    row: Row
    edge: str
    target: int
    contribution: Contribution | None
    seen: tuple[str, ...]
    data: Data


class Info(NamedTuple):
    """What the network needs to know of a local."""

    op: Collective | None
    """The collective that it waits in."""
    terminal: bool
    failed: bool


class Lts:
    """One role, unfolded as far as it is asked for."""

    def __init__(self, protocol: Protocol, role: Role, scope: Scope) -> None:
        self.role, self.scope, self.frame = role, scope, protocol.frame
        self.ghost, self.watch = observer(protocol.name)
        self.locals: Interner[Local] = Interner()
        self.initial = self.locals(Local(role.initial, None, role.start(True), self.ghost))
        self._info: dict[int, Info] = {}
        self._bases: dict[int, int] = {}
        self._rebased: dict[tuple[int, int], int] = {}
        self._steps: dict[int, tuple[Step, ...]] = {}
        self._completions: dict[tuple[int, Data], Step] = {}

    def info(self, number: int) -> Info:
        found = self._info.get(number)
        if found is None:
            local = self.locals.items[number]
            state = self.role.by_name[local.state]
            op = self.role.row(local.state, local.pending).op if local.pending else None
            found = self._info[number] = Info(op, state.terminal, state.failed)
        return found

    def steps(self, number: int) -> tuple[Step, ...]:
        """Every step that the rank may take by itself: its rows, and what faults and detection may do to it."""
        found = self._steps.get(number)
        if found is None:
            found = self._steps[number] = tuple(self._unfold(self.locals.items[number]))
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

    def _unfold(self, local: Local) -> list[Step]:
        found = []
        for row in self.role.leaving[local.state]:
            if local.pending is not None and row.by not in (By.FAULT, By.DETECTION):
                continue
            for data in row.choices(local.vars, self.scope) if row.choices else (None,):
                if self.role.enabled(local.state, row.event, local.vars, data) is row:
                    found.append(self._step(local, row, "issue" if row.op else "step", data))
        return found

    def _step(self, local: Local, row: Row, edge: str, data: Data) -> Step:
        sent = row.send(local.vars) if edge == "issue" and row.send else None
        ghost = local.ghost
        seen: tuple[str, ...] = ()
        if self.watch is not None:
            ghost, seen = self.watch(ghost, row.event, edge, sent if edge == "issue" else data)
        if edge == "issue":
            target = Local(local.state, row.event, local.vars, ghost)
            contribution = Contribution(row.op, sent) if row.op else None
            return Step(row, edge, self.locals(target), contribution, seen, sent)
        state = self.role.by_name[row.target]
        gone = state.terminal or state.failed
        target = Local(row.target, None, None if gone else row.apply(local.vars, data), None if gone else ghost)
        return Step(row, edge, self.locals(target), None, seen, data)
