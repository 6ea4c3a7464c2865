"""Sweeps over the whole graph on NumPy alone: level by level from the deepest, until nothing changes.

Left out: what the bits mean. The same functions, compiled, are in `numba_graph.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .. import reference
from .layout import ADVANCES, CLOSING, FAILED, FLAGS, STALLED, TERMINAL, Array, in_place
from .search import PackedGraph


def carry(graph: PackedGraph, allow: Array, own: Array) -> None:
    """Add to each state's bits those of what its edges lead to, as far as `allow`, by an edge's label, lets them pass.

    `own` is [state] of uint64: a bit a rank, twice (from bit 0 and from bit 32 on).
    """
    through = allow[graph.labels & 7]

    def found(edges: slice, begins: Array) -> Array:
        return np.bitwise_or.reduceat(_through(graph, own[graph.targets[edges]], edges) & through[edges], begins)

    _settle(graph, own, found, np.bitwise_or)


def nearest(graph: PackedGraph, far: Array) -> None:
    """Lower `far` [state], the distance to a goal, to one more than that of the nearest successor."""

    def found(edges: slice, begins: Array) -> Array:
        return np.minimum.reduceat(far[graph.targets[edges]], begins) + 1

    _settle(graph, far, found, np.minimum)


def keep(graph: PackedGraph, component: Array, own: Array) -> None:
    """Leave of each state's bits those that every state of its component has too, a bit a rank's place."""
    inner = _inner(graph, component)

    def found(edges: slice, begins: Array) -> Array:
        theirs = _through(graph, own[graph.targets[edges]], edges)
        return np.bitwise_and.reduceat(np.where(inner[edges], theirs, ~np.uint64(0)), begins)

    _settle(graph, own, found, np.bitwise_and)


def standing(graph: PackedGraph) -> tuple[Array, Array, Array, Array]:
    """Return the same as `sweeps.standing`."""
    lanes, count = graph.space.tables().lanes, len(graph.packed)
    failed, ended, closing = np.zeros(count, bool), np.ones(count, bool), np.zeros(count, bool)
    idle = np.zeros(count, np.uint64)
    for rank in range(graph.space.network.ranks):
        flags = lanes[graph.space.kinds[rank], :, FLAGS].astype(np.uint8)[graph.field(rank)]
        failed |= (flags & (FAILED | STALLED)) != 0
        ended &= (flags & TERMINAL) != 0
        closing |= (flags & CLOSING) != 0
        idle |= ((flags & (TERMINAL | STALLED)) != 0).astype(np.uint64) << np.uint64(rank)
    return failed, ended, closing, idle


def components(graph: PackedGraph, inside: Array) -> Array:
    """Return the strongly connected component of each state of `inside` that may be on a cycle; -1 for the others."""
    left, sources = inside.copy(), _sources(graph)
    while True:
        within = left[sources] & left[graph.targets]
        stays = left & _any(len(left), sources[within]) & _any(len(left), graph.targets[within])
        if (stays == left).all():
            break
        left = stays
    component = np.full(len(inside), -1, np.int32)
    numbers = [int(n) for n in np.flatnonzero(left)]
    for number, members in enumerate(reference.components(graph.edges, numbers, set(numbers))):
        component[members] = number
    return component


def marks(graph: PackedGraph, component: Array, by_label: Array) -> Array:
    """Return per state the bits that its edges out of its component give it: by their label, moved up by their rank."""
    marked, sources = np.zeros(len(component), np.uint64), _sources(graph)
    given = by_label[graph.labels & 7] << (graph.labels >> 3).astype(np.uint64)
    outward = ~_inner(graph, component)
    np.bitwise_or.at(marked, sources[outward], given[outward])
    return marked


def turns(graph: PackedGraph, component: Array) -> tuple[Array, Array, Array]:
    """Return per state: it has an edge to another; one in its component on which a rank advances; one on a cycle."""
    size, sources, inner = len(component), _sources(graph), _inner(graph, component)
    away = graph.targets != sources
    moves = away if graph.went is None else away | (graph.went != in_place(graph.space.network.ranks))
    stirs = inner & (moves | ((graph.labels & ADVANCES) != 0))
    return _any(size, sources[away]), _any(size, sources[stirs]), _any(size, sources[inner & moves])


def entered(graph: PackedGraph, inside: Array) -> Array:
    """Return the states of `inside` that an edge from outside leads to."""
    return _any(len(inside), graph.targets[~inside[_sources(graph)] & inside[graph.targets]])


def _sources(graph: PackedGraph) -> Array:
    return np.repeat(np.arange(len(graph.starts) - 1, dtype=np.int32), np.diff(graph.starts))


def _inner(graph: PackedGraph, component: Array) -> Array:
    ours = component[_sources(graph)]
    return (ours >= 0) & (ours == component[graph.targets])


def _any(size: int, where: Array) -> Array:
    found = np.zeros(size, bool)
    found[where] = True
    return found


def _through(graph: PackedGraph, mask: Array, edges: slice) -> Array:
    """Return bits by the target's places as bits by the source's; rank0's stay."""
    if graph.went is None:
        return mask
    went, one = graph.went[edges], np.uint64(1)
    moved = mask & np.uint64(1 | 1 << 32)
    for worker in range(graph.space.network.ranks - 1):
        to = (went >> np.uint64(4 * worker)) & np.uint64(15)
        for first in (np.uint64(1), np.uint64(33)):
            moved |= ((mask >> (to + first)) & one) << (np.uint64(worker) + first)
    return moved


def _levels_up(graph: PackedGraph) -> Iterator[tuple[Array, slice, Array]]:
    """Yield, from the deepest level up, its states that have edges, their edges, and where those of each begin."""
    bounds = [*graph.levels, len(graph.starts) - 1]
    for first, last in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        starts = graph.starts[first : last + 1]
        some = np.flatnonzero(np.diff(starts))
        if len(some):
            yield first + some, slice(int(starts[0]), int(starts[-1])), starts[some] - starts[0]


def _settle(
    graph: PackedGraph, own: Array, found: Callable[[slice, Array], Array], join: Callable[[Array, Array], Array]
) -> None:
    levels, changed = list(_levels_up(graph)), True
    while changed:
        changed = False
        for states, edges, begins in levels:
            joined = join(own[states], found(edges, begins))
            if (joined != own[states]).any():
                own[states], changed = joined, True
