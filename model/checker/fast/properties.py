"""Judges every property on a packed graph, as `reference` defines it, by sweeps over arrays instead of walks.

What reaches what is found by carrying bit masks against the edges, from the last state up, until nothing changes.

With symmetry a bit belongs to a place among the sorted workers, and is carried through the order in which an edge
left them. A cycle of sorted states is one of unsorted ones too: going round it often enough restores the order.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ...semantics.properties import (
    ALL_ENDED,
    ALL_STOPPED,
    CLEAN_SHUTDOWN,
    CRASH_OVER_HANG,
    NO_FALSE_ABORT,
    NO_LIVELOCK,
    NO_STRANDING,
    TAKES_PART,
    Property,
)
from ..reference import Verdict, seen_on_an_edge
from . import layout
from .layout import ADVANCES, DETECTS, ORDINARY, Array
from .search import PackedGraph

ALONE, HELPED = 0xFFFFFFFF, 0xFFFFFFFF << 32
PATHS = np.array([
    (ALONE | HELPED) * bool(label & ORDINARY) | HELPED * (label & layout.TAKES_PART == DETECTS) for label in range(8)
], np.uint64)  # fmt: skip
"""By an edge's label, the bits of `Judge._can_get_to` that it lets pass."""


class Judge:
    """Judges properties on a finished graph; what they ask of it is worked out once each."""

    def __init__(self, graph: PackedGraph, sweeps: Any, *, judge_all: bool = False) -> None:
        self.graph, self.sweeps, self.judge_all = graph, sweeps, judge_all
        self.everybody = (1 << graph.space.network.ranks) - 1
        self.failed, self.ended, self.closing, self.idle = sweeps.standing(graph)
        self.faulty = graph.field(-1) > 0

    # ── the properties ──────────────────────────────────────────────────────────────────────────────

    def verdict(self, prop: Property) -> Verdict:
        """Return the verdict on a property, as `reference.check` judges it."""
        if prop in (NO_STRANDING, NO_LIVELOCK):
            return self._always_again(prop)
        if prop is TAKES_PART:
            edges = np.flatnonzero(self.graph.labels & layout.TAKES_PART == layout.TAKES_PART)
            state = int(np.searchsorted(self.graph.starts, edges[0], side="right")) - 1 if len(edges) else None
            return Verdict(prop, state is not None, state)
        if prop in (CRASH_OVER_HANG, CLEAN_SHUTDOWN):
            bad = self._first_hang() if prop is CRASH_OVER_HANG else self._first_unclean()
            return Verdict(prop, bad is None, bad)
        if prop is NO_FALSE_ABORT:
            bad = _first(self.failed & ~self.faulty)
            return Verdict(prop, bad is None, bad)
        if prop is ALL_STOPPED:
            stopped = _first(self.ended & ~self.failed)
            return Verdict(prop, stopped is not None, stopped)
        if prop is ALL_ENDED:
            done = _first(self.ended & self.failed)
            return Verdict(prop, done is not None or not self.failed.any(), done)
        return seen_on_an_edge(self.graph.seen, prop)

    @property
    def deadlocks(self) -> int:
        """Return how many states have no move although some rank has not ended."""
        stuck = (self.graph.degrees == 0) & ~self.ended
        return int(self.graph.orbits[stuck].sum())

    def worst_steps_to_end(self) -> int | None:
        """Return the same as `reference.worst_steps_to_end`.

        None too where the search left out what follows a failure.
        """
        if self.graph.reduced:
            return None
        graph, unreached = self.graph, np.int32(1 << 30)
        starts = self.sweeps.entered(graph, self.failed)
        far = np.where(self.ended, np.int32(0), unreached)
        self.sweeps.nearest(graph, far)
        reached = far[starts & (far < unreached)]
        return int(reached.max()) if len(reached) else None

    def _always_again(self, prop: Property) -> Verdict:
        """Judge AG EF per rank, as `reference` defines it, all ranks at once."""
        good = self._can_advance
        if prop is NO_LIVELOCK:
            good = self._can_get_to(layout.TAKES_PART) | self._can_halt
        bad = ~self._told(good) & ~self.idle & np.uint64(self.everybody)
        if not self.judge_all:
            bad[self.failed] = 0
        first = _first(bad != 0)
        if first is None:
            return Verdict(prop, True)
        stuck = int(bad[first])
        return Verdict(prop, False, first, (stuck & -stuck).bit_length() - 1)

    @cached_property
    def _can_advance(self) -> Array:
        return self._can_get_to(ORDINARY | ADVANCES)

    @cached_property
    def _can_halt(self) -> Array:
        """Bits by state as in `_can_get_to`: some path leads to a judged state where the rank never advances."""
        own = ~self._can_advance & np.uint64(self.everybody << 32 | self.everybody)
        if not self.judge_all:
            own[self.failed] = 0
        self.sweeps.carry(self.graph, PATHS, own)
        return own

    def _told(self, bits: Array) -> Array:
        """Return, of bits as in `_can_get_to`, those that count: of paths with detection where a fault has struck."""
        return bits if self.judge_all else np.where(self.faulty, bits >> np.uint64(32), bits)

    def _can_get_to(self, goal: int) -> Array:
        """Return, by state, a bit a rank: some path leads to a step of it with all bits of `goal`.

        From bit 0 on paths of ordinary steps, from bit 32 on with steps of detection too.
        """
        graph, steps = self.graph, []
        for label in range(8):
            detects = label & layout.TAKES_PART == DETECTS
            steps.append((label & goal == goal) * (1 | 1 << 32) | (detects and bool(label & ADVANCES)) * (1 << 32))
        nowhere = np.full(len(self.failed), -1, np.int32)
        own: Array = self.sweeps.marks(graph, nowhere, np.array(steps, np.uint64))
        if graph.reduced:
            own[self.failed] |= np.uint64(HELPED)  # nothing goes on from there, but detection ends everybody
        self.sweeps.carry(graph, PATHS, own)
        return own

    def _first_hang(self) -> int | None:
        """Return the first state after a failure from which some fair run goes on for ever, or stands still."""
        graph = self.graph
        troubled = self.failed & ~self.ended
        if not troubled.any():
            return None
        component = self.sweeps.components(graph, troubled)
        # the places of the ranks that detection takes out of the component, from this state and from all that follow
        detects = np.array([label & layout.TAKES_PART == DETECTS for label in range(8)], np.uint64)
        taken = self.sweeps.marks(graph, component, detects)
        self.sweeps.keep(graph, component, taken)
        leaves, stirs, _ = self.sweeps.turns(graph, component)
        traps = troubled & (~leaves | (stirs & (taken == 0)))
        if not traps.any():
            return None
        doomed = traps.astype(np.uint64)
        self.sweeps.carry(graph, np.ones(8, np.uint64), doomed)
        return _first(troubled & (doomed != 0))

    def _first_unclean(self) -> int | None:
        """Return the first state where rank0 shuts down, nothing failed and some run does not end with all STOPPED."""
        inside = ~self.failed & ~self.faulty & self.closing
        stopped = (inside & self.ended).astype(np.uint64)
        self.sweeps.carry(self.graph, np.array([bool(label & ORDINARY) for label in range(8)], np.uint64), stopped)
        bad = _first(inside & (stopped == 0))
        if bad is not None:
            return bad
        return _first(self.sweeps.turns(self.graph, self.sweeps.components(self.graph, inside))[2])


def _first(where: Array) -> int | None:
    at = int(where.argmax())
    return at if where[at] else None
