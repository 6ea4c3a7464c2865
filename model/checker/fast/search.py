"""Drives the fast search: what grows around the inner loop, the graph that it leaves behind, when it has to stop early.

States are numbered in the order of their discovery, as by the reference (`reference.explore`), and so are the
edges of each: without symmetry the two graphs are equal.

Left out: the inner loop (`numba_search.py`, `numpy_search.py`), and what is judged on the graph (`properties.py`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np

from ....host import available_memory
from ...semantics import transport
from ...semantics.network import Network, NetworkState
from ..limits import Ended, Limit
from ..reference import INTERRUPTED, Edge, Progress, Taken
from .layout import ADVANCES, DETECTS, ORDINARY, TAKES_PART, Array, in_place, layout
from .partial_order_reduction import Reduction
from .state_encoding import Space

T = TypeVar("T")

DONE, PAUSED, MISSED, FULL_STATES, FULL_EDGES, FULL_TABLE = range(6)
"""Why an inner loop stopped."""
NEXT, STATES, EDGES, UNTIL, MISSES, SEEN, MISPAIRED, REACH = range(8)
BUDGET, SYMMETRIC, NOBODY, NOTHING, IN_PLACE, AHEAD, LATE, FALLEN = range(8, 16)
ISSUED = 17
"""Places in the control block of a search. AHEAD, LATE: how far it has looked ahead for misses, and how many states
have missed there. FALLEN: two places, one a role. NOBODY, ISSUED: where what members have put in is joined to."""
MOST_MISSES = 1 << 12
"""Outcomes that are asked for at once, about."""
BATCH = 16
"""Parents whose successors are looked up together."""
PAUSE = 1 << 17
"""Parents between two looks at the keyboard and the clock."""
MIN_STATES = 1 << 16
FULL = 5
"""Eighths of a hash table that may be taken."""
LARGE = 1 << 21
"""Cells up to which a hash table grows fourfold."""
EDGES_EACH = 8
"""Edges a state that there is room for at first."""
SPARE = 1 << 28
"""Bytes that are left to the rest of the machine."""


class Lazy(Sequence[T]):
    """Holds a sequence whose items are made when they are asked for."""

    def __init__(self, size: int, item: Callable[[int], T]) -> None:
        self._size, self._item = size, item

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        if isinstance(number, slice):
            return [self._item(n) for n in range(*number.indices(self._size))]
        if not -self._size <= number < self._size:
            raise IndexError(number)
        return self._item(number % self._size)

    def __iter__(self) -> Iterator[T]:
        return map(self._item, range(self._size))


@dataclass
class PackedGraph:
    """Holds the reachable states and their edges as arrays; `states`, `edges`, … show them as the reference does."""

    space: Space
    packed: Array
    """The states, [number, word] of uint64; what lies where says `space.layout`."""
    parents: Array
    degrees: Array
    """Counts the edges that leave each state that was expanded."""
    targets: Array
    labels: Array
    """Per edge: rank << 3 | ORDINARY | ADVANCES | DETECTS."""
    went: Array | None
    """With symmetry, per edge: the place that each worker's lane went to, four bits a worker."""
    levels: list[int]
    """The first state of each depth."""
    seen: dict[str, tuple[int, int]]
    stopped: str | None
    """Why the search did not come to its end."""
    seconds: float
    """Counts the seconds of the search, without the loading of the inner loop."""

    @property
    def transitions(self) -> int:
        return len(self.targets)

    @cached_property
    def taken(self) -> frozenset[Taken]:
        return self.space.taken()

    @cached_property
    def starts(self) -> Array:
        """Return where the edges of each state begin, and where those of the last one end."""
        starts = np.zeros(len(self.degrees) + 1, np.int64)
        np.cumsum(self.degrees, out=starts[1:])
        return starts

    def field(self, number: int) -> Array:
        """Return one field of every state: the lane of a rank, a slot, the faults (-1)."""
        lay = self.space.layout
        return ((self.packed[:, lay.word[number]] >> lay.shift[number]) & lay.mask[number]).astype(np.int32)

    @property
    def parent(self) -> Sequence[int]:
        return Lazy(len(self.parents), lambda n: int(self.parents[n]))

    @property
    def states(self) -> Sequence[NetworkState]:
        return Lazy(len(self.packed), lambda n: self.space.decode(self._unpacked(n)))

    @property
    def edges(self) -> Sequence[list[Edge]]:
        return Lazy(len(self.degrees), self._edges)

    @property
    def depth(self) -> Sequence[int]:
        return Lazy(len(self.packed), lambda n: int(np.searchsorted(self.levels, n, side="right")) - 1)

    @property
    def deepest(self) -> int:
        return len(self.levels) - 1

    @cached_property
    def orbits(self) -> Array:
        """Return how many states each stands for: the orders in which its workers' lanes can stand.

        All are 1 without symmetry.
        """
        count = np.ones(len(self.packed), np.int64)
        if not self.space.symmetric:
            return count
        run, before = count.copy(), self.field(1)
        for worker in range(2, self.space.network.ranks):
            lane = self.field(worker)
            run = np.where(lane == before, run + 1, 1)
            count, before = count * worker // run, lane
        return count

    @property
    def reduced(self) -> bool:
        return self.space.reduction is not None

    @property
    def counts(self) -> tuple[int, int]:
        if self.reduced:  # what was left out is not counted, nor is what it would stand for
            return len(self.packed), self.transitions
        return int(self.orbits.sum()), int((self.orbits[: len(self.degrees)] * self.degrees).sum())

    def stands_for(self, number: int, state: NetworkState) -> bool:
        """Return whether `state` is the one of this number, up to the order of its workers where that is free."""
        return self.space.encode(state) == self._unpacked(number)

    def _unpacked(self, number: int) -> list[int]:
        lay = self.space.layout
        return [int(f) for f in (self.packed[number, lay.word] >> lay.shift) & lay.mask]

    def _edges(self, number: int) -> list[Edge]:
        here = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return [
            Edge(
                int(label) >> 3,
                int(target),
                bool(label & ORDINARY),
                bool(label & ADVANCES),
                label & TAKES_PART == DETECTS,
                label & TAKES_PART == TAKES_PART,
            )
            for target, label in zip(self.targets[here].tolist(), self.labels[here].tolist(), strict=True)
        ]


class OutOfMemory(MemoryError):
    """Says that the next piece of memory cannot be had."""


class Arrays:
    """Holds the arrays that an inner loop writes to, and grows them."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.layout = space.layout = layout(space.widths())
        words = self.layout.words
        size, per_edge = _reserve(words, symmetric=space.symmetric), EDGES_EACH
        self.states = np.empty((size, words), np.uint64)
        self.parents = np.empty(size, np.int32)
        self.degrees = np.empty(size, np.uint16)
        self.targets = np.empty(per_edge * size, np.int32)
        self.labels = np.empty(per_edge * size, np.uint8)
        self.went = np.empty(per_edge * size if space.symmetric else 1, np.uint64)
        self.cells, self.touched = _aligned(4 * size * (words + 1)), 0
        self.table = self._cleared(1 << 16)
        self.first_seen = np.zeros((64, 2), np.int64)
        self.misses = np.zeros(2 * MOST_MISSES, np.int64)
        """Keys of outcomes that are asked for: see `memo_key`."""
        self.late, self.asked = np.zeros(1 << 16, np.int64), np.zeros(4 * MOST_MISSES, np.int64)
        self.control = np.zeros(18, np.int64)
        network = space.network
        for at, value in (
            (MISPAIRED, space.mispaired),
            (REACH, transport.run_ahead(network.ranks)),
            (BUDGET, network.faults),
            (SYMMETRIC, int(space.symmetric)),
            (NOBODY, space.nobody),
            (NOTHING, space.nothing),
            (ISSUED, space.issued),
            (IN_PLACE, int(in_place(network.ranks).astype(np.int64))),
            (FALLEN, space.fallen[0]),
            (FALLEN + 1, space.fallen[1]),
            (STATES, 1),
        ):
            self.control[at] = value
        self.states[0] = 0
        for field, value in enumerate(space.start()):
            self.states[0, self.layout.word[field]] |= np.uint64(value) << self.layout.shift[field]
        self.parents[0] = -1
        self.wanted = 0
        """Room that the inner loop asks for in addition."""
        self.candidates()

    def candidates(self) -> None:
        """Make room for the successors of a batch of parents."""
        most = BATCH * max(16, self.space.most_options * self.space.network.ranks)
        ranks = self.space.network.ranks
        self.out = np.zeros((most, self.layout.words), np.uint64)
        self.label, self.seen = np.zeros(most, np.uint8), np.zeros(most, np.int64)
        self.moved, self.places = np.zeros(most, np.uint64), np.zeros(most, np.uint64)
        self.begins = np.zeros(BATCH + 2, np.int64)
        self.scratch = [np.zeros(ranks, np.int64) for _ in range(3)]

    @property
    def room(self) -> int:
        """Return the most successors that a batch can have."""
        return max(len(self.out), self.wanted)

    def grow_edges(self) -> None:
        """Make room for twice as many edges: there were more of them than is usual."""
        size = 2 * len(self.targets)
        self.targets, self.labels = _grown(self.targets, size), _grown(self.labels, size)
        if self.space.symmetric:
            self.went = _grown(self.went, size)

    def new_table(self, rehash: Callable[..., None]) -> None:
        """Make a hash table with room, and fill it again."""
        count = int(self.control[STATES])
        size = len(self.table)
        while size * FULL < (count + self.room) * 8:
            size *= 4 if size < LARGE else 2
        words = self.layout.words
        _afford((size * (words + 1) - self.table.size) * 8)
        if size * (words + 1) > len(self.cells):
            raise OutOfMemory(f"no room for {size:,} states was reserved")
        self.table = self._cleared(size)
        rehash(self.states, count, self.table)

    def _cleared(self, size: int) -> Array:
        wide = self.layout.words + 1
        self.cells[: self.touched] = 0  # nothing else was ever written to
        self.touched = size * wide
        return self.cells[: size * wide].reshape(size, wide)

    def resolve(self, rehash: Callable[..., None], repack: Callable[..., None]) -> None:
        """Work out what was missed; widen the fields where a lane or a value no longer fits."""
        for key in self.misses[: self.control[MISSES]].tolist():
            self.space.resolve(key)
        if not self.space.fits(self.layout):
            old, self.layout = self.layout, layout(self.space.widths())
            self.space.layout = self.layout
            count = int(self.control[STATES])
            states = np.zeros((count, self.layout.words), np.uint64)
            repack(self.states, count, old, states, self.layout)
            if self.layout.words > old.words:
                self.states = np.empty((len(self.states), self.layout.words), np.uint64)
                self.cells, self.touched = _aligned(4 * len(self.states) * (self.layout.words + 1)), 0
            self.states[:count] = states
            self.candidates()
            self.new_table(rehash)
        if self.space.most_options * self.space.network.ranks * BATCH > self.room:
            self.candidates()


def _reserve(words: int, *, symmetric: bool) -> int:
    """Return how many states could be held in the memory that there is.

    The arrays are made as long as that at once: only what is written to is ever taken from the machine, and nothing
    has to be copied, or given back and faulted in again, as they fill.
    """
    each = 8 * words + 4 + 2 + EDGES_EACH * (13 if symmetric else 5) + 4 * 8 * (words + 1)
    return max(MIN_STATES, min(2**31 - 1, (available_memory() or 1 << 32) // each))


def _aligned(size: int) -> Array:
    """Return so many words, all 0, from the beginning of a cache line on."""
    room = np.zeros(size + 7, np.uint64)
    return room[-room.ctypes.data % 64 // 8 :][:size]


def _afford(size: int) -> None:
    free = available_memory()
    if free is not None and size > free - SPARE:
        raise OutOfMemory(f"{max(0, size) / 2**20:,.0f} MiB more are needed, {max(0, free) / 2**20:,.0f} MiB are left")


def _grown(array: Array, size: int) -> Array:
    _afford(size * array.itemsize)
    grown = np.empty(size, array.dtype)
    grown[: len(array)] = array
    return grown


def explore(
    network: Network,
    loops: Any,
    *,
    symmetric: bool = False,
    reduction: Reduction | None = None,
    progress: Progress | None = None,
    limit: Limit | None = None,
    pause: int | None = None,
) -> PackedGraph:
    """Return every reachable state, breadth first, by an inner loop (`numba_search` or `numpy_search`).

    The search ends early on Ctrl-C, at a `limit`, and where memory will not do; the graph then says so, and holds what
    was covered. It is looked whether to end every `pause` parents (PAUSE unless given).
    """
    pause = PAUSE if pause is None else pause
    space = Space(network, symmetric=symmetric, reduction=reduction)
    arrays = Arrays(space)
    arrays.new_table(loops.rehash)
    control, stopped, levels = arrays.control, None, [0]
    begin = time.perf_counter()
    try:
        loops.search(arrays, space.tables())  # loads or compiles it: there is nothing to do until UNTIL is set
        begin = time.perf_counter()
        control[UNTIL] = pause
        with _nothing_collected():
            while (status := loops.search(arrays, space.tables())) != DONE:
                if status == MISSED:
                    arrays.resolve(loops.rehash, loops.repack)
                elif status == FULL_STATES:
                    raise OutOfMemory(f"room for {len(arrays.states):,} states")
                elif status == FULL_EDGES:
                    arrays.grow_edges()
                elif status == FULL_TABLE:
                    arrays.new_table(loops.rehash)
                else:
                    _afford(0)
                    control[UNTIL] = control[NEXT] + pause
                if limit is not None:
                    limit(int(control[STATES]))
                if progress is not None:
                    states, done = int(control[STATES]), int(control[NEXT])
                    levels = _levels(arrays.parents[:states], levels)
                    progress(states, int(np.searchsorted(levels, done, side="right")) - 1, states - done)
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except Ended as ended:
        stopped = str(ended)
    except MemoryError as error:
        stopped = f"out of memory ({error})"
    return _graph(space, arrays, stopped, time.perf_counter() - begin)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Turn garbage collection off: a space is a great many tuples without a cycle, each looked at again every time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _graph(space: Space, arrays: Arrays, stopped: str | None, seconds: float) -> PackedGraph:
    states, expanded, edges = (int(arrays.control[at]) for at in (STATES, NEXT, EDGES))
    parent = arrays.parents[:states]
    names, mask = space.seen_names.items, int(arrays.control[SEEN])
    seen = {name: (int(a), int(b)) for n, name in enumerate(names) if mask >> n & 1 for a, b in [arrays.first_seen[n]]}
    return PackedGraph(
        space,
        arrays.states[:states],
        parent,
        arrays.degrees[:expanded],
        arrays.targets[:edges],
        arrays.labels[:edges],
        arrays.went[:edges] if space.symmetric else None,
        _levels(parent),
        seen,
        stopped,
        seconds,
    )


def _levels(parent: Array, known: Sequence[int] = (0,)) -> list[int]:
    """Return the first state of each depth, as far as the states go; `known` are those of a shallower search."""
    levels = [*known[:-1]] if len(known) > 1 else []
    last = known[-1]
    while last < len(parent):
        levels.append(last)
        # states are numbered by their parents: the next level begins with the first child of this one
        last = max(last + 1, int(np.searchsorted(parent, np.int32(last), side="left")))
    return levels
