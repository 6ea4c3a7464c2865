"""Asks a predicate about every state of a packed graph, once for all states that are alike in what it looks at.

A predicate is asked about one state, and what it looked at is noted, in order. Whatever state has the same there gets
the same answer; the others are divided by the first thing in which they differ, and asked about in their turn.

Left out: what the answers mean (`checker/claims.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ....errors import ModelError
from ...semantics.lts import Interner
from ...semantics.network import NetworkState
from ...semantics.whole import Whole
from ...tables import Data, Shared, Vars
from .layout import FAILED, FLAGS, TERMINAL, Array
from .search import PackedGraph

Part = tuple[str, int]
"""What a predicate looks at: the state, the variables, the failure or the end of a rank; what a place holds."""
STATE, VARS, FAILS, ENDS, HELD = "state", "vars", "fails", "ends", "held"
NO, YES, RAISED = 0, 1, 2


class _Noted(Whole):
    """Holds one state, and notes what is asked about it."""

    def __init__(self, graph: PackedGraph, state: NetworkState) -> None:
        super().__init__(graph.space.network, state)
        self.parts: dict[Part, None] = {}

    def state(self, rank: int) -> str:
        self.parts[STATE, rank] = None
        return super().state(rank)

    def vars(self, rank: int) -> Vars:
        self.parts[VARS, rank] = None
        return super().vars(rank)

    def failed(self, rank: int) -> bool:
        self.parts[FAILS, rank] = None
        return super().failed(rank)

    def ended(self, rank: int) -> bool:
        self.parts[ENDS, rank] = None
        return super().ended(rank)

    def held(self, shared: Shared, key: Any = None) -> Data:
        self.parts[HELD, self._network.store.place(shared, key)] = None
        return super().held(shared, key)


class Answers:
    """Holds what a predicate says of every state."""

    def __init__(self, graph: PackedGraph, asked: Callable[[Whole], bool]) -> None:
        self._graph, self._asked = graph, asked
        self._columns: dict[Part, Array] = {}
        self._answers = np.zeros(len(graph.packed), np.uint8)
        self._error: tuple[int, ModelError] | None = None
        alike = [np.arange(len(graph.packed))]
        while alike:
            self._ask(alike.pop(), alike)

    def where(self, wanted: bool) -> Iterator[int]:
        """Yield the states of which it says so, in order. Raise what it raised, once a state comes of which it did."""
        last = len(self._answers) if self._error is None else self._error[0]
        yield from np.flatnonzero(self._answers[:last] == (YES if wanted else NO)).tolist()
        if self._error is not None:
            raise self._error[1]

    def _ask(self, states: Array, others: list[Array]) -> None:
        """Ask about the first of some states, and answer for those that are alike; the others are left to be asked."""
        first = int(states[0])
        whole = _Noted(self._graph, self._graph.states[first])
        try:
            answer = YES if self._asked(whole) else NO
        except ModelError as error:
            answer = RAISED
            if self._error is None or first < self._error[0]:
                self._error = first, error
        for part in whole.parts:
            values = self._column(part)[states]
            same = values == values[0]
            if not same.all():
                left, by = states[~same], values[~same]
                order = np.argsort(by, kind="stable")
                others += np.split(left[order], np.flatnonzero(np.diff(by[order])) + 1)
                states = states[same]
        self._answers[states] = answer

    def _column(self, part: Part) -> Array:
        """Return, per state, the number of what is in one part of it."""
        found = self._columns.get(part)
        if found is None:
            what, at = part
            ranks = self._graph.space.network.ranks
            field = self._graph.field(ranks + at if what == HELD else at)
            found = self._columns[part] = field if what == HELD else self._by_lane(what, at)[field]
        return found

    def _by_lane(self, what: str, rank: int) -> Array:
        """Return, per lane of a rank, the number of what is in one part of it."""
        space = self._graph.space
        kind = space.kinds[rank]
        if what in (FAILS, ENDS):
            flags: Array = space.tables().lanes[kind, :, FLAGS] & (FAILED if what == FAILS else TERMINAL)
            return flags
        lts, numbers = space.network.lts[rank], Interner[Any]()
        # the state says whether variables are gone, which is an error
        parts = (lts.locals.items[local] for local, _ in space.lanes[kind].items)
        return np.array([numbers(at.state if what == STATE else (at.state, at.vars)) for at in parts], np.int32)


def where(graph: PackedGraph, asked: Callable[[Whole], bool], wanted: bool) -> Iterator[int]:
    """Yield the states of which a predicate says what is wanted."""
    yield from Answers(graph, asked).where(wanted)
