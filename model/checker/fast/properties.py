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


class Judge:
    """Judges properties on a finished graph; what they ask of it is worked out once each."""

    def __init__(self, graph: PackedGraph, sweeps: Any, *, judge_all: bool = False) -> None:
        self.graph, self.sweeps, self.judge_all = graph, sweeps, judge_all
        self.ranks = graph.space.network.ranks
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
        if prop is NO_STRANDING:
            bad = self._judged(~self._here(self._can_advance))
        else:
            bad = self._judged(~self._here(self._can_get_to(layout.TAKES_PART)))
            if bad.any():  # whoever comes to stand somewhere is stranded there, and does not go round for ever
                stands = ~self._can_advance
                if not self.judge_all:
                    stands[self.failed] = 0
                self.sweeps.carry(self.graph, self._helps, stands)
                bad &= ~self._here(stands)
        first = _first(bad != 0)
        if first is None:
            return Verdict(prop, True)
        stuck = int(bad[first])
        return Verdict(prop, False, first, (stuck & -stuck).bit_length() - 1)

    def _judged(self, bad: Array) -> Array:
        """Return the bits of the ranks that are live, in the states in which they are judged."""
        bad = bad & ~self.idle & np.uint64((1 << self.ranks) - 1)
        if not self.judge_all:
            bad[self.failed] = 0
        return bad

    def _here(self, found: Array) -> Array:
        """Return the half of each state's bits that counts there: with the help of detection, or without."""
        picked: Array = found if self.judge_all else np.where(self.faulty, found >> np.uint64(32), found)
        return picked

    @cached_property
    def _can_advance(self) -> Array:
        return self._can_get_to(ORDINARY | ADVANCES)

    @property
    def _helps(self) -> Array:
        """Return, per label, which bits an edge carries: of paths without detection, and with it."""
        alone, helped = 0xFFFFFFFF, 0xFFFFFFFF << 32
        ordinary = [bool(label & ORDINARY) for label in range(8)]
        detects = [label & layout.TAKES_PART == DETECTS for label in range(8)]
        both = zip(ordinary, detects, strict=True)
        return np.array([own * alone | (own or helps) * helped for own, helps in both], np.uint64)

    def _can_get_to(self, goal: int) -> Array:
        """Return, per state, a bit for each rank that some path leads to a step of with all bits of `goal`.

        The lower half is of paths without detection, the upper one of paths with it.
        """
        graph, helped = self.graph, 0xFFFFFFFF << 32
        steps = []
        for label in range(8):
            detects = label & layout.TAKES_PART == DETECTS
            steps.append((label & goal == goal) * (1 | 1 << 32) | (detects and bool(label & ADVANCES)) * (1 << 32))
        nowhere = np.full(len(self.failed), -1, np.int32)
        own = self.sweeps.marks(graph, nowhere, np.array(steps, np.uint64))
        if graph.reduced:
            own[self.failed] |= np.uint64(helped)  # nothing goes on from there, but detection ends everybody
        self.sweeps.carry(graph, self._helps, own)
        reached: Array = own
        return reached

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
