"""Keeps count of what a rank issued, so that its trace can be cut: what came before is summed up in a few lines.

Of each group, and each way of sends and receives, there are the number of operations, digests of all of them in order,
and the last ones whole; of the rank, what it has issued and not left. The numbers lie in arrays, which `_fast_recorder`
writes as well. Left out: files (`recorder`).
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from .digests import LAST, MASK, mixed, tokens
from .format import P2P, History, Past, RepeatedOperation, encode
from .importers.genlock_programs import signature_of

OPEN, FORGOTTEN = 6, 7
"""Index numbers of a recorder that this module and `_fast_recorder` share: the operations that are open, and those of
which nothing told the end."""
MAX_OPEN, MAX_WAYS = 1024, 1 << 14
"""Beyond so many open operations the oldest is forgotten; beyond so many groups and ways they are not counted."""
ROW, KEPT = 5, 3
"""Numbers of an open operation (`enter`, operation, sequence, time, waits), and of one of the last ones of a way."""
COUNT, WIRE, FULL, FIRST = range(4)
"""Index the numbers of a way: operations, two digests, and from where on the last ones stand."""


class Way(NamedTuple):
    """Identifies the collectives of a group, or one way of sends or receives."""

    group: str
    op: str | None
    peer: int | None
    tag: int | None


class Counted(NamedTuple):
    """Says where an operation that repeats is counted."""

    way: array[int]
    wire: int
    full: int


class Summary:
    """Sums up the operations of a rank."""

    def __init__(self, shared: array[int], backend: str) -> None:
        self._shared, self._backend = shared, backend
        self.open = array("q", bytes(8 * ROW * MAX_OPEN))
        self.ways: dict[Way, array[int]] = {}
        self.overflown = False
        self.lost = 0
        """Events that are no operations that repeat, or could not be written."""
        self._uncounted = array("Q", bytes(8 * (FIRST + KEPT * LAST)))

    def counted(self, about: RepeatedOperation) -> Counted:
        """Return where such an operation is counted."""
        p2p = about.op in P2P
        way = Way(about.group, about.op, about.peer, about.tag) if p2p else Way(about.group, None, None, None)
        numbers = self.ways.get(way)
        if numbers is None:
            if len(self.ways) >= MAX_WAYS:
                self.overflown = True
                numbers = self._uncounted
            else:
                numbers = self.ways[way] = array("Q", bytes(8 * (FIRST + KEPT * LAST)))
        return Counted(numbers, *tokens(signature_of(about, self._backend)))

    def issued(self, of: Counted, number: int, index: int, time_ns: int, sequence: int) -> None:
        """Count an operation, and keep it open."""
        way, shared, at = of.way, self._shared, FIRST + KEPT * ((sequence - 1) % LAST)
        way[COUNT] = sequence
        way[WIRE] = (way[WIRE] + mixed(of.wire, sequence)) & MASK
        way[FULL] = (way[FULL] + mixed(of.full, sequence)) & MASK
        way[at], way[at + 1], way[at + 2] = number, index, time_ns
        if shared[OPEN] == MAX_OPEN:
            self._remove(0)
            shared[FORGOTTEN] += 1
        at = ROW * shared[OPEN]
        self.open[at : at + ROW] = array("q", (index, number, sequence, time_ns, 0))
        shared[OPEN] += 1

    def waits(self, entered: int) -> None:
        """Note that the host waits for an operation."""
        if (at := self._find(entered)) is not None:
            self.open[ROW * at + 4] = 1

    def left(self, entered: int) -> None:
        """Note that an operation is not open any more."""
        if (at := self._find(entered)) is not None:
            self._remove(at)

    def _find(self, entered: int) -> int | None:
        for at in reversed(range(self._shared[OPEN])):
            if self.open[ROW * at] == entered:
                return at
        return None

    def _remove(self, at: int) -> None:
        count = self._shared[OPEN] = self._shared[OPEN] - 1
        if at < count:  # an array that is shared takes no empty slice
            self.open[ROW * at : ROW * count] = self.open[ROW * (at + 1) : ROW * (count + 1)]

    def needed(self) -> set[int]:
        """Return the numbers of the operations that the lines name."""
        return {row[1] for row in self._rows()} | {row[0] for way in self.ways.values() for row in _last(way)}

    def lines(self, index: int, time_ns: int, began_ns: int) -> bytes:
        """Return the lines that stand for all events before one."""
        told = b""
        for (group, op, peer, tag), way in self.ways.items():
            if way[COUNT]:
                digests = f"{way[WIRE]:016x}", f"{way[FULL]:016x}"
                told += encode(Past(group, way[COUNT], *digests, _last(way), op, peer, tag))
        opened = tuple(
            (enter, number, sequence, time, bool(waits)) for enter, number, sequence, time, waits in self._rows()
        )
        operations = sum(way[COUNT] for way in self.ways.values())
        facts = operations, opened, self._shared[FORGOTTEN], self.lost, self.overflown
        return told + encode(History(index, time_ns, began_ns, *facts))

    def _rows(self) -> list[tuple[int, ...]]:
        return [tuple(self.open[ROW * at : ROW * (at + 1)]) for at in range(self._shared[OPEN])]


def _last(way: array[int]) -> tuple[tuple[int, int, int], ...]:
    """Return the last operations of a way, in order."""
    count = way[COUNT]
    slots = [FIRST + KEPT * ((sequence - 1) % LAST) for sequence in range(max(1, count - LAST + 1), count + 1)]
    return tuple((way[at], way[at + 1], way[at + 2]) for at in slots)
