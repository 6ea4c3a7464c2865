"""Lays the ranks of a recording side by side: which members issued a collective, alike or not, and how far it came.

The bulk is arrays: one sort over all operations, so that a healthy million costs a second. Only what is odd is
looked at one by one.

Left out: what an odd collective means (`collectives`), and which ranks it leaves waiting (`stall`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...traces.collectives import BALANCED, OPS, Ops, Recording, Signature, Status

Flags = npt.NDArray[np.bool_]

SMALL = (1 << 31) - 1
LARGE = 1 << 40
"""Sizes from here on are not summed: the sums might overflow."""


class Op(NamedTuple):
    """Holds one rank's part in one operation: the fields of `traces.collectives.OPS`, and whose they are."""

    rank: int
    at: int
    """Position among the rank's operations."""
    entry: int
    time: int
    sequence: int
    group: int
    signature: int
    site: int
    peer: int
    tag: int
    status: int


class Key(NamedTuple):
    """Identifies a collective across ranks."""

    group: int
    sequence: int


def ops_of(rank: int, ops: Ops, positions: Sequence[int]) -> list[Op]:
    """Return some of a rank's operations, as tuples."""
    return [Op(rank, at, *ops[at].item()) for at in positions]


class Aligned:
    """Holds the collectives of a recording by (group, sequence), in rows sorted by group, sequence and rank."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        lengths = [len(r.ops) for r in recording.ranks.values()]
        # column by column, and small numbers in small types: a second copy of everything would double the memory
        chosen = np.flatnonzero(self._column("peer") < 0).astype(np.int32)
        rank = np.repeat(np.array(list(recording.ranks), dtype=np.int32), lengths)
        order = chosen[np.lexsort((rank[chosen], self._column("sequence")[chosen], self._column("group")[chosen]))]
        del chosen
        self.rank = rank[order]
        del rank
        self.at = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])[order]
        self.signature, self.status = self._column("signature")[order], self._column("status")[order]
        new = np.ones(len(order), dtype=bool)
        group, sequence = self._column("group")[order], self._column("sequence")[order]
        new[1:] = (np.diff(group) != 0) | (np.diff(sequence) != 0)
        self.starts = np.flatnonzero(new)
        """Where each collective's rows begin."""
        self.group, self.sequence = group[self.starts], sequence[self.starts]
        """Holds a value for each collective."""
        self.counts = np.diff(np.append(self.starts, len(order)))
        sizes = np.array([len(g.members) for g in recording.groups], dtype=np.int64)
        self.sizes = sizes[self.group]
        """Counts the members of each collective's group."""

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, number: int) -> Key:
        return Key(int(self.group[number]), int(self.sequence[number]))

    def rows(self, number: int) -> list[Op]:
        """Return the members' parts in one collective, by rank."""
        start = int(self.starts[number])
        rows = range(start, start + int(self.counts[number]))
        ranks = self.recording.ranks
        return [Op(int(self.rank[i]), int(self.at[i]), *ranks[int(self.rank[i])].ops[self.at[i]].item()) for i in rows]

    def find(self, key: Key) -> list[Op]:
        """Return the members' parts in the collective of that key, by rank; none if no member has it."""
        lo, hi = np.searchsorted(self.group, [key.group, key.group + 1])
        number = int(lo) + int(np.searchsorted(self.sequence[lo:hi], key.sequence))
        return self.rows(number) if number < hi and self.key(number) == key else []

    @cached_property
    def unequal(self) -> Flags:
        """Mark the collectives whose members disagree about kind, dtype or the size that all must agree on."""
        wires: dict[tuple[object, ...], int] = {}
        wire = self._by_signature(lambda s: wires.setdefault(s.wire, len(wires)))
        found: Flags = self._fold(np.minimum, wire) != self._fold(np.maximum, wire)
        return found

    @cached_property
    def reduced_unlike(self) -> Flags:
        """Mark the collectives whose members are known to reduce in different ways."""
        names = {"": 0}
        reduce = self._by_signature(lambda s: names.setdefault(s.reduce, len(names)))
        lowest = self._fold(np.minimum, reduce)
        found: Flags = (lowest > 0) & (lowest != self._fold(np.maximum, reduce))
        return found

    @cached_property
    def split_unlike(self) -> Flags:
        """Mark the all-to-alls whose members are known to have split evenly, though what they put in is not alike."""
        even = self._fold(np.minimum, self._by_signature(lambda s: int(s.even))) > 0
        sent = self._by_signature(lambda s: s.sent if s.sent < LARGE else 0)
        found: Flags = even & (self._fold(np.minimum, sent) != self._fold(np.maximum, sent))
        return found

    @cached_property
    def unbalanced(self) -> Flags:
        """Mark the collectives of which every member was seen, and what went in, not alike, is not what came out."""
        summed = self._by_signature(
            lambda s: int(s.kind in BALANCED and 0 <= s.sent < LARGE and 0 <= s.received < LARGE)
        )
        judged = (self._fold(np.minimum, summed) > 0) & (self.counts == self.sizes) & (self.sizes < 1 << 11)
        sent = self._fold(np.add, self._by_signature(lambda s: s.sent if s.sent < LARGE else 0))
        received = self._fold(np.add, self._by_signature(lambda s: s.received if s.received < LARGE else 0))
        kind = self._fold(np.maximum, self._by_signature(lambda s: BALANCED.index(s.kind) if s.kind in BALANCED else 0))
        # where all say the same, nobody is odd: it is how the recorder counts
        known: dict[tuple[int, int], int] = {}
        sizes = self._by_signature(lambda s: known.setdefault((s.sent, s.received), len(known)))
        judged &= self._fold(np.minimum, sizes) != self._fold(np.maximum, sizes)
        sent *= np.where(kind == BALANCED.index("all_gather"), self.sizes, 1)
        received *= np.where(kind == BALANCED.index("reduce_scatter"), self.sizes, 1)
        found: Flags = judged & ~self.unequal & (sent != received)
        return found

    @cached_property
    def unlike(self) -> Flags:
        """Mark the collectives that their members did not issue alike, in any way."""
        return self.unequal | self.unbalanced | self.reduced_unlike | self.split_unlike

    @cached_property
    def repeated(self) -> Flags:
        """Mark the rows whose rank has the same collective in the row before."""
        same = np.zeros(len(self.rank), dtype=bool)
        same[1:] = np.diff(self.rank) == 0
        same[self.starts] = False
        return same

    @cached_property
    def complete(self) -> Flags:
        """Mark the collectives that every member issued alike and, where the recorder says how far it came, left."""
        left = (self.status == Status.COMPLETED) | (self.status == Status.UNSAID)
        good = (self.counts == self.sizes) & ~self.unlike
        found: Flags = good & (self._fold(np.minimum, left.astype(np.int8)) > 0)
        return found

    def _column(self, name: str) -> npt.NDArray[np.int64]:
        """Return all ranks' values; in four bytes where they fit, filled in place."""
        parts = [r.ops[name] for r in self.recording.ranks.values()]
        wide = any(int(part.max(initial=0)) > SMALL for part in parts)
        column = np.empty(sum(map(len, parts)), OPS[name] if wide or OPS[name].itemsize <= 4 else np.int32)
        at = 0
        for part in parts:
            column[at : at + len(part)] = part
            at += len(part)
        return column

    def _by_signature(self, value: Callable[[Signature], int]) -> npt.NDArray[np.int64]:
        values = [value(s) for s in self.recording.signatures]
        of_each: npt.NDArray[Any] = np.array(values, np.int32 if max(values, default=0) <= SMALL else np.int64)
        return of_each[self.signature]

    def _fold(self, by: np.ufunc, rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if not len(rows):
            return np.zeros(0, np.int64)
        found: npt.NDArray[np.int64] = by.reduceat(rows, self.starts, dtype=np.int64 if by is np.add else None)
        return found
