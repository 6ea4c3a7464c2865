"""Sweeps over the whole graph, compiled by numba: from the last state to the first, until nothing changes.

Left out: what the bits mean, and what is done where numba is absent (`numpy_graph.py`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .layout import ADVANCES, CLOSING, FAILED, FLAGS, STALLED, TERMINAL, Array, in_place
from .search import PackedGraph


@njit(cache=True)
def _standing(packed, word, shift, mask, kinds, flags, failed, ended, closing, idle):
    for n in range(len(packed)):
        some, every = 0, TERMINAL
        for rank in range(kinds.size):
            lane = (packed[n, word[rank]] >> shift[rank]) & mask[rank]
            found = flags[kinds[rank], lane]
            some |= found
            every &= found
            if found & (TERMINAL | STALLED):
                idle[n] |= np.uint64(1) << np.uint64(rank)
        failed[n], ended[n], closing[n] = some & (FAILED | STALLED) != 0, every != 0, some & CLOSING != 0


def standing(graph: PackedGraph) -> tuple[Array, Array, Array, Array]:
    """Return per state: a rank has failed or stalled; all have ended; rank0 is closing; a bit for each with no move."""
    count, lay = len(graph.packed), graph.space.layout
    failed, ended, closing = (np.empty(count, bool) for _ in range(3))
    idle, flags = np.zeros(count, np.uint64), np.ascontiguousarray(graph.space.tables().lanes[:, :, FLAGS])
    kinds = np.array(graph.space.kinds)
    _standing(graph.packed, lay.word, lay.shift, lay.mask, kinds, flags, failed, ended, closing, idle)
    return failed, ended, closing, idle


@njit(cache=True)
def _through(mask, went, workers, half):
    """Return bits by the target's places as bits by the source's; rank0's stay."""
    rank0 = np.uint64(1) | (np.uint64(1) << np.uint64(half))
    moved = mask & rank0
    for n in range(workers):
        to = (went >> np.uint64(4 * n)) & np.uint64(15)
        for at in (np.uint64(1), np.uint64(half + 1)):
            moved |= ((mask >> (to + at)) & np.uint64(1)) << (np.uint64(n) + at)
    return moved


@njit(cache=True)
def _carry(starts, targets, labels, went, workers, half, allow, own):
    changed, sorted_lanes = True, went.size > 1
    same = np.uint64(0)
    for n in range(workers):
        same |= np.uint64(n) << np.uint64(4 * n)
    while changed:
        changed = False
        for n in range(starts.size - 2, -1, -1):
            mask = own[n]
            for edge in range(starts[n], starts[n + 1]):
                through = allow[labels[edge] & 7]
                if through:
                    found = own[targets[edge]] & through
                    if sorted_lanes and went[edge] != same and found:
                        found = _through(found, went[edge], workers, half)
                    mask |= found
            if mask != own[n]:
                own[n], changed = mask, True


def carry(graph: PackedGraph, allow: Array, own: Array) -> None:
    """Add to each state's bits those of what its edges lead to, as far as `allow`, by an edge's label, lets them pass.

    `own` is [state] of uint64: a bit a rank, twice (from bit 0 and from bit 32 on).
    """
    _carry(graph.starts, graph.targets, graph.labels, _went(graph), _ranks(graph) - 1, 32, allow, own)


@njit(cache=True)
def _nearest(starts, targets, far):
    changed = True
    while changed:
        changed = False
        for n in range(starts.size - 2, -1, -1):
            best = far[n]
            for edge in range(starts[n], starts[n + 1]):
                best = min(best, far[targets[edge]] + 1)
            if best < far[n]:
                far[n], changed = best, True


def nearest(graph: PackedGraph, far: Array) -> None:
    """Lower `far` [state], the distance to a goal, to one more than that of the nearest successor."""
    _nearest(graph.starts, graph.targets, far)


@njit(cache=True)
def _components(starts, targets, inside, component):
    size = starts.size - 1
    order, low = np.zeros(size, np.int32), np.zeros(size, np.int32)
    stack, path, at = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int64)
    count, found, open_, deep = 0, 0, 0, 0
    for root in range(size):
        if not inside[root] or order[root]:
            continue
        path[0], deep = root, 1
        while deep:
            node = path[deep - 1]
            if not order[node]:
                count += 1
                order[node] = low[node] = count
                stack[open_] = node
                open_ += 1
                at[node] = starts[node]
            descends = False
            while at[node] < starts[node + 1]:
                target = targets[at[node]]
                at[node] += 1
                if inside[target]:
                    if not order[target]:
                        path[deep] = target
                        deep += 1
                        descends = True
                        break
                    if component[target] < 0:
                        low[node] = min(low[node], order[target])
            if descends:
                continue
            deep -= 1
            if deep:
                low[path[deep - 1]] = min(low[path[deep - 1]], low[node])
            if low[node] == order[node]:
                while True:
                    open_ -= 1
                    component[stack[open_]] = found
                    if stack[open_] == node:
                        break
                found += 1


def components(graph: PackedGraph, inside: Array) -> Array:
    """Return the strongly connected component of each state of `inside`, by number; -1 for the others (Tarjan)."""
    component = np.full(len(inside), -1, np.int32)
    _components(graph.starts, graph.targets, inside, component)
    return component


@njit(cache=True)
def _keep(starts, targets, component, went, workers, own):
    changed, sorted_lanes = True, went.size > 1
    while changed:
        changed = False
        for n in range(starts.size - 2, -1, -1):
            if component[n] < 0 or not own[n]:
                continue
            mask = own[n]
            for edge in range(starts[n], starts[n + 1]):
                if component[targets[edge]] == component[n]:
                    found = own[targets[edge]]
                    mask &= _through(found, went[edge], workers, 32) if sorted_lanes else found
            if mask != own[n]:
                own[n], changed = mask, True


def keep(graph: PackedGraph, component: Array, own: Array) -> None:
    """Leave of each state's bits those that every state of its component has too, a bit a rank's place."""
    _keep(graph.starts, graph.targets, component, _went(graph), _ranks(graph) - 1, own)


@njit(cache=True)
def _marks(starts, targets, labels, component, by_label, marked):
    for n in range(starts.size - 1):
        for edge in range(starts[n], starts[n + 1]):
            if component[n] < 0 or component[targets[edge]] != component[n]:
                marked[n] |= by_label[labels[edge] & 7] << np.uint64(labels[edge] >> 3)


def marks(graph: PackedGraph, component: Array, by_label: Array) -> Array:
    """Return per state the bits that its edges out of its component give it: by their label, moved up by their rank."""
    marked = np.zeros(len(component), np.uint64)
    _marks(graph.starts, graph.targets, graph.labels, component, by_label, marked)
    return marked


@njit(cache=True)
def _turns(starts, targets, labels, went, same, component, leaves, stirs, turns):
    for n in range(starts.size - 1):
        for edge in range(starts[n], starts[n + 1]):
            moves = targets[edge] != n
            leaves[n] |= moves
            if component[n] >= 0 and component[targets[edge]] == component[n]:
                moves |= went.size > 1 and went[edge] != same
                turns[n] |= moves
                stirs[n] |= moves or labels[edge] & ADVANCES != 0


def turns(graph: PackedGraph, component: Array) -> tuple[Array, Array, Array]:
    """Return per state: it has an edge to another; one in its component on which a rank advances; one on a cycle."""
    leaves, stirs, cycles = (np.zeros(len(component), bool) for _ in range(3))
    same = in_place(_ranks(graph))
    _turns(graph.starts, graph.targets, graph.labels, _went(graph), same, component, leaves, stirs, cycles)
    return leaves, stirs, cycles


@njit(cache=True)
def _entered(starts, targets, inside, entered):
    for n in range(starts.size - 1):
        if not inside[n]:
            for edge in range(starts[n], starts[n + 1]):
                if inside[targets[edge]]:
                    entered[targets[edge]] = True


def entered(graph: PackedGraph, inside: Array) -> Array:
    """Return the states of `inside` that an edge from outside leads to."""
    found = np.zeros(len(inside), bool)
    _entered(graph.starts, graph.targets, inside, found)
    return found


def _went(graph: PackedGraph) -> Array:
    return np.zeros(1, np.uint64) if graph.went is None else graph.went


def _ranks(graph: PackedGraph) -> int:
    return graph.space.network.ranks
