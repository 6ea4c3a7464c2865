"""Runs the inner loop of the fast search on NumPy alone, many parents at a time: for where numba is absent.

It follows `Network.successors` option by option, as `numba_search.py` does, and meets states in the same order.

Left out: everything that grows (`search.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layout import (
    AFTER,
    AHEAD_AT_MOST,
    ALL,
    ALONE,
    BASE,
    BIAS,
    BITS,
    BOUND,
    CHECKED,
    CHECKS,
    COSTS,
    COUNTER,
    DROPS_FINISHED,
    EARLIEST,
    END,
    ENTRIES,
    FAILED,
    FAULTS,
    FIRST,
    FLAGS,
    GIVEN,
    HASTY,
    KIND,
    LENGTH,
    LOOKS,
    LOST,
    MADE,
    MEMBERS,
    NAME,
    NORMALISES,
    ONCE_ENDED,
    ONCE_FAILED,
    PARTS,
    PARTS_FAILED,
    PEER,
    POINTS,
    QUEUE,
    REDUCES,
    ROOT,
    ROOT_RANK,
    SEAT,
    SEES,
    SHARE,
    SIZE,
    STRIKING,
    TAKES_PART,
    TARGET,
    TERMINAL,
    TO_OTHERS,
    TO_ROOT,
    VALUE,
    WAITS_IN,
    WIRE,
    WIRE_AT,
    A,
    Array,
    B,
    C,
    Layout,
    Memo,
    Option,
    Tables,
    memo_key,
)
from .search import (
    BUDGET,
    DONE,
    EDGES,
    FALLEN,
    FULL,
    FULL_EDGES,
    FULL_STATES,
    FULL_TABLE,
    ISSUED,
    MISPAIRED,
    MISSED,
    MISSES,
    NEXT,
    NOBODY,
    NOTHING,
    PAUSED,
    REACH,
    SEEN,
    STATES,
    UNTIL,
    Arrays,
)
from .touches import CLOSED

PARENTS = 1 << 13
"""Parents at a time."""
_EMPTY = -2
"""Stands for what a `Take` leads to where there is nothing to take."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


class _Missing(Exception):
    """Says that outcomes have to be worked out first, and names them by their keys."""

    def __init__(self, memo: Memo, one: Array, other: Array) -> None:
        self.keys = np.unique(memo_key(int(memo), one.astype(np.int64), other.astype(np.int64)))


def search(arrays: Arrays, tables: Tables) -> int:
    """Run the loop on these arrays; returns why it stopped."""
    control = arrays.control
    while control[NEXT] < control[STATES]:
        if control[NEXT] >= control[UNTIL]:
            return PAUSED
        parents = np.arange(control[NEXT], min(control[NEXT] + PARENTS, control[STATES], control[UNTIL]))
        try:
            found = _Successors(arrays, tables, parents)
        except _Missing as missing:
            arrays.misses, control[MISSES] = missing.keys, len(missing.keys)
            return MISSED
        arrays.wanted = len(found.out)
        if control[STATES] + len(found.out) > len(arrays.parents):
            return FULL_STATES
        if control[EDGES] + len(found.out) > len(arrays.targets):
            return FULL_EDGES
        if (control[STATES] + len(found.out)) * 8 > len(arrays.table) * FULL:
            return FULL_TABLE
        _keep(arrays, parents, found)
    return DONE


def _keep(arrays: Arrays, parents: Array, found: _Successors) -> None:
    """Number the new states, and write down the edges."""
    control = arrays.control
    found.t.taken[found.chosen] = 1
    states, edges, count = int(control[STATES]), int(control[EDGES]), len(found.out)
    numbers, new = _insert(arrays.table, found.out, states)
    arrays.states[states : states + len(new)] = found.out[new]
    arrays.parents[states : states + len(new)] = parents[found.parent[new]]
    arrays.targets[edges : edges + count] = numbers
    arrays.labels[edges : edges + count] = found.label
    if arrays.space.symmetric:
        arrays.went[edges : edges + count] = found.went
    begins = np.searchsorted(found.parent, np.arange(len(parents) + 1))
    arrays.degrees[parents] = np.diff(begins)
    fresh = int(np.bitwise_or.reduce(found.seen, initial=0)) & ~int(control[SEEN])
    for bit in range(fresh.bit_length()):
        if fresh >> bit & 1:
            at = int(np.flatnonzero(found.seen >> bit & 1)[0])
            owner = int(found.parent[at])
            arrays.first_seen[bit] = parents[owner], at - begins[owner]
    control[SEEN] |= fresh
    control[STATES], control[EDGES], control[NEXT] = states + len(new), edges + count, parents[-1] + 1


def _insert(table: Array, rows: Array, states: int) -> tuple[Array, Array]:
    """Return the number of each row's state, from `states` on where it is new, and which rows are first of a new one.

    Equal rows look at the same cells in the same rounds, and of those that want an empty cell the first row gets it.
    """
    words, last = rows.shape[1], np.uint64(len(table) - 1)
    place = _hash(rows) & last
    numbers, cells = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.int64)
    new, pending = np.zeros(len(rows), bool), np.arange(len(rows))
    while len(pending):
        at = place[pending].astype(np.int64)
        empty = table[at, words] == 0
        wants = pending[empty][::-1]
        table[at[empty][::-1], words] = wants + states + 1
        got = wants[table[place[wants].astype(np.int64), words] == (wants + states + 1).astype(np.uint64)]
        cells[got] = place[got].astype(np.int64)
        table[cells[got], :words] = rows[got]
        numbers[got], new[got] = got + states, True
        same = (table[at, :words] == rows[pending]).all(axis=1)
        numbers[pending[same]] = table[at[same], words].astype(np.int64) - 1
        pending = pending[~same]
        place[pending] = (place[pending] + np.uint64(1)) & last
    order = np.cumsum(new) - 1 + states
    fresh = numbers >= states
    numbers[fresh] = order[numbers[fresh] - states]
    table[cells[new], words] = (numbers[new] + 1).astype(np.uint64)
    return numbers, np.flatnonzero(new)


def _hash(rows: Array) -> Array:
    h = np.zeros(len(rows), np.uint64)
    for k in range(rows.shape[1]):
        h = (h ^ rows[:, k]) * _ODD
        h ^= h >> np.uint64(29)
    h *= _MIX
    return h ^ (h >> np.uint64(32))


def rehash(states: Array, count: int, table: Array) -> None:
    """Fill an empty hash table with the first `count` states."""
    for first in range(0, count, 1 << 20):
        _insert(table, states[first : min(count, first + (1 << 20))], first)


def repack(states: Array, count: int, old: Layout, to: Array, new: Layout) -> None:
    """Write the first `count` states with other fields."""
    for f in range(len(old.word)):
        value = (states[:count, old.word[f]] >> old.shift[f]) & old.mask[f]
        to[:count, new.word[f]] |= value << new.shift[f]


@dataclass
class _Meeting:
    """Describes the collectives that some ranks are in."""

    may: Array
    must: Array
    mispaired: Array


class _Successors:
    """Holds the successors of some states: the parent's place, the label, the properties seen, and the packed state."""

    def __init__(self, arrays: Arrays, tables: Tables, parents: Array) -> None:
        self.t, self.control, self.layout = tables, arrays.control, arrays.layout
        self.ranks, self.kinds = arrays.space.network.ranks, np.array(arrays.space.kinds)
        self.by_rank, self.queues = arrays.space.by_rank, len(arrays.space.network.groups.lists)
        """Ranks may be in groups of their own: else the list of each group is all ranks."""
        lay = self.layout
        self.fields = ((arrays.states[parents][:, lay.word] >> lay.shift) & lay.mask).astype(np.int64)
        self.lanes = self.fields[:, : self.ranks]
        self._candidates()
        self._faults()
        self._violations()
        self._collectives()
        self._gates()
        self._apply(arrays.space.symmetric)

    # ── which options there are, and which of them are open ─────────────────────────────────────────

    def _facts(self, fact: int) -> Array:
        """Return a fact of each rank's lane, as [state, rank]."""
        return np.stack([self.t.lanes[self.kinds[r], self.lanes[:, r], fact] for r in range(self.ranks)], axis=1)

    def _candidates(self) -> None:
        first = self._facts(FIRST)
        if (first < 0).any():
            at, rank = np.nonzero(first < 0)
            raise _Missing(Memo.EXPANDED, self.lanes[at, rank], self.kinds[rank])
        hasty = self._facts(FLAGS) & HASTY
        one_goes = np.asarray(hasty.any(axis=1))
        goes = np.arange(self.ranks) == hasty.argmax(axis=1)[:, None]
        until = np.where(one_goes[:, None], np.where(goes, self._facts(FAULTS), first), self._facts(END))
        counts = (until - first).reshape(-1)
        whose = np.repeat(np.arange(counts.size), counts)
        within = np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.option = first.reshape(-1)[whose] + within
        self.parent, self.rank = whose // self.ranks, whose % self.ranks
        self.must = np.ones(len(whose), bool)
        self.mispaired = np.zeros(len(whose), bool)
        self._only(~one_goes[self.parent] | (self._of(KIND) != Option.DEVICE))

    def _only(self, keep: Array) -> None:
        for name in ("option", "parent", "rank", "must", "mispaired"):
            setattr(self, name, getattr(self, name)[keep])

    def _of(self, fact: int) -> Array:
        return self.t.options[self.option, fact]

    def _faults(self) -> None:
        """Keep faults only while there may be one, and detection only where there is something to detect."""
        kind = self._of(KIND)
        may = (self.fields[:, -1] < self.control[BUDGET])[self.parent]
        points = np.bitwise_or.reduce(self._facts(POINTS), axis=1)[self.parent]
        trouble = ((self._facts(FLAGS) & FAILED) != 0).any(axis=1)[self.parent]
        keep = np.ones(len(kind), bool)
        rows = kind == Option.FAULT
        keep[rows] = (may & (self._of(STRIKING) >> self.rank & 1 != 0))[rows]
        for n, strike in enumerate((Option.CRASH, Option.STALL)):
            rows = kind == strike
            where = self.t.strikes[n, self.rank[rows]]
            keep[rows] = may[rows] & ((where == -1) | (where & points[rows] != 0))
        rows = np.flatnonzero((kind == Option.DETECT) & ~trouble)
        coming = self._bound()[self.parent[rows], self.rank[rows]]
        keep[rows] = self._gone_for(self.lanes[self.parent[rows]], self.rank[rows]) & ~coming
        self._only(keep)

    def _bound(self) -> Array:
        """Return whether the send or receive that a rank is in is bound to end, as [state, rank]."""
        found = np.zeros(self.lanes.shape, bool)
        rows = np.flatnonzero((self._of(KIND) == Option.TOUCH) & (self._facts(PEER)[self.parent, self.rank] >= 0))
        # its end stands before all moves
        rows = rows[np.unique(self.parent[rows] * self.ranks + self.rank[rows], return_index=True)[1]]
        if len(rows):
            held = self.fields[self.parent[rows], self._of(A)[rows]]
            at = self._outcome(Memo.TOUCHED, held, self._of(B)[rows])
            found[self.parent[rows], self.rank[rows]] = (at != CLOSED) & (self.t.touched[at, BOUND] != 0)
        return found

    def _violations(self) -> None:
        """Leave out violations where a check with a `Take` passes: see `Role.checks_pass`."""
        rows = np.flatnonzero(self._of(BITS) & CHECKED)
        if not len(rows):
            return
        rank, parent, kind = self.rank[rows], self.parent[rows], self._of(KIND)[rows]
        takes = (kind == Option.TAKE) | (self._of(BITS)[rows] & LOOKS != 0)
        facts = self.t.lanes[self.kinds[rank], self.lanes[parent, rank]]
        passes = np.zeros(len(rows), bool)
        for n in range(int((facts[:, FIRST] - facts[:, CHECKS]).max())):
            check = facts[:, CHECKS] + n
            there = check < facts[:, FIRST]
            check = np.where(there, check, facts[:, CHECKS])
            wanted = self._wanted(check.astype(np.int64), parent, rank, there)
            passes |= there & np.where(wanted == _EMPTY, ~takes, wanted >= 0)
        keep = np.ones(len(self.option), bool)
        keep[rows] = ~passes
        self._only(keep)

    def _wanted(self, check: Array, parent: Array, rank: Array, there: Array) -> Array:
        """Return what a `Take` leads to, not negative where its guards want what is there; _EMPTY for nothing."""
        options = self.t.options
        touches = options[check, KIND] == Option.TOUCH
        own = self.ranks + options[check, A] + np.where(options[check, B] != 0, options[check, B], rank) - 1
        held = self.fields[parent, np.where(touches, options[check, A], own)]
        empty, given = (held == 0) & ~touches, held.copy()
        rows = np.flatnonzero(touches & there)
        found = self._outcome(Memo.TOUCHED, held[rows], options[check[rows], B])
        empty[rows], given[rows] = found == CLOSED, self.t.touched[found, GIVEN]
        wanted = np.full(len(check), _EMPTY)
        full = np.flatnonzero(there & ~empty)
        wanted[full] = self._outcome(Memo.TAKEN, check[full], given[full])
        return wanted

    def _members(self, rank: Array, group: Array) -> Iterator[tuple[int, int | Array, bool | Array]]:
        """Yield each position in each rank's list of a group, who sits there, and whether anybody does."""
        if not self.by_rank:
            yield from ((member, member, True) for member in range(self.ranks))
            return
        queues = self.t.queues[self.t.seats[rank, group, QUEUE]]
        for seat in range(int(queues[:, SIZE].max(initial=0))):
            yield seat, queues[:, MEMBERS + seat], queues[:, SIZE] > seat

    def _seat(self, rank: Array, group: Array) -> Array:
        seat: Array = self.t.seats[rank, group, SEAT] if self.by_rank else rank
        return seat

    def _entry(self, lanes: Array, member: int | Array, group: Array, fact: Array | int) -> Array:
        """Return what stands in the columns of a member: the same one of all, or one of each."""
        if isinstance(member, int):
            return self.t.columns[self.kinds[member], lanes[:, member], group, fact]
        return self.t.columns[self.kinds[member], lanes[np.arange(len(lanes)), member], group, fact]

    def _needs(self, mine: Array, own: Array, seat: int) -> Array:
        """Return whether the contribution of a member at one position waits for another position's."""
        gives = self._gives(mine, own)
        return (gives & 1 != 0) | ((self.t.contributions[mine, ROOT_RANK] == seat) & (gives != ALONE))

    def _gives(self, mine: Array, own: Array) -> Array:
        """Return whom each waits for, and what it is given: see `layout`."""
        about = self.t.contributions
        return np.where(own == about[mine, ROOT_RANK], about[mine, TO_ROOT], about[mine, TO_OTHERS])

    def _gone_for(self, lanes: Array, rank: Array) -> Array:
        """Return whether a member that each rank waits for is gone: as `Network._gone_for`."""
        facts = self.t.lanes[self.kinds[rank], lanes[np.arange(len(rank)), rank]]
        waits_in, peer = facts[:, WAITS_IN].astype(np.int64), facts[:, PEER]
        gone = (peer >= 0) & (self.t.lanes[self.kinds[peer], lanes[np.arange(len(rank)), peer], FLAGS] & TERMINAL != 0)
        open_ = peer < 0
        for group in [waits_in, *(np.full(len(rank), g) for g in self.t.streams)]:
            asked = open_ & (group >= 0)
            place = self._entry(lanes, rank, np.maximum(group, 0), EARLIEST).astype(np.int64)
            rows = np.flatnonzero(asked & (place >= 0))
            waits, lost = self._gone_in(lanes[rows], rank[rows], group[rows], place[rows])
            gone[rows[waits]] = lost[waits]
            open_[rows[waits]] = False
            if group is waits_in:
                open_ &= waits_in < 0
        return gone

    def _gone_in(self, lanes: Array, rank: Array, group: Array, place: Array) -> tuple[Array, Array]:
        """Return (it waits for somebody, one of those is gone): as `Network._missing_in`."""
        waits, gone = np.zeros(len(rank), bool), np.zeros(len(rank), bool)
        if not len(rank):
            return waits, gone
        mine, own = self._entry(lanes, rank, group, ENTRIES + place), self._seat(rank, group)
        about, members, rows = self.t.contributions, list(self._members(rank, group)), np.arange(len(rank))
        entries = np.stack([np.abs(self._entry(lanes, m, group, ENTRIES + place)) for _, m, _ in members], axis=1)
        flags = (self.t.lanes[self.kinds[m], lanes[rows, m], FLAGS] for _, m, _ in members)
        ended = np.stack([of & TERMINAL != 0 for of in flags], axis=1)
        others = np.stack([(own != seat) & there for seat, _, there in members], axis=1)
        needed = np.stack([self._needs(mine, own, seat) for seat, _, _ in members], axis=1)
        odd = others & ((about[entries, LOST] != 0) | (about[entries, WIRE] != about[mine, WIRE][:, None]))
        for whom in (needed & others & (entries == 0), others & (entries == 0), odd):
            now = ~waits & whom.any(axis=1)
            gone[now] = (whom & ended).any(axis=1)[now]
            waits |= now
        return waits, gone

    def _collectives(self) -> None:
        kind = self._of(KIND)
        rows = np.flatnonzero((kind == Option.DEVICE) | (kind == Option.COMPLETE))
        met = self._meet(rows)
        self.must[rows], self.mispaired[rows] = met.must, met.mispaired
        keep = np.ones(len(kind), bool)
        keep[rows] = met.may
        self._only(keep)

    def _meet(self, rows: Array) -> _Meeting:
        lanes, rank, about = self.lanes[self.parent[rows]], self.rank[rows], self.t.contributions
        group, place, mine = (self._of(fact)[rows] for fact in (A, B, C))
        may, must, mispaired = (np.full(len(rows), value) for value in (True, True, False))
        slowest, own = np.full(len(rows), 1 << 30), self._seat(rank, group)
        for seat, member, there in self._members(rank, group):
            issued = self._entry(lanes, member, group, LENGTH)
            slowest = np.minimum(slowest, issued if there is True else np.where(there, issued, slowest))
            other = np.abs(self._entry(lanes, member, group, ENTRIES + place))
            pairs = (other != 0) & (about[other, WIRE] == about[mine, WIRE]) & there
            absent = np.logical_not(there)
            may &= pairs | ~self._needs(mine, own, seat) | absent
            must &= (pairs & (about[other, LOST] == 0)) | absent
            unlike = (about[mine, REDUCES] != 0) & (about[other, VALUE] != about[mine, VALUE])
            mispaired |= pairs & ((about[other, NAME] != about[mine, NAME]) | unlike)
        reach = self.t.queues[self.t.seats[rank, group, QUEUE], AHEAD_AT_MOST] if self.by_rank else self.control[REACH]
        return _Meeting(may & (place + 1 - slowest <= reach), must, mispaired)

    def _gates(self) -> None:
        kind, keep, self.slot = self._of(KIND), np.ones(len(self.option), bool), np.full(len(self.option), -1)
        self.chosen, self.put = self.option.copy(), np.zeros(len(self.option), np.int64)
        rows = np.flatnonzero(kind == Option.MEET)
        counters = self._facts(COUNTER)[self.parent[rows]]
        keep[rows] = counters.min(axis=1) >= counters[np.arange(len(rows)), self.rank[rows]]
        rows = np.flatnonzero((kind == Option.PUT) | (kind == Option.TAKE))
        whose = np.where(self._of(B)[rows] != 0, self._of(B)[rows], self.rank[rows])
        self.slot[rows] = self.ranks + self._of(A)[rows] + whose - 1
        full = self.fields[self.parent[rows], self.slot[rows]]
        keep[rows] = (full != 0) == (kind[rows] == Option.TAKE)
        self.put = np.where(kind == Option.PUT, self._of(C), 0)
        self._touch(np.flatnonzero(kind == Option.TOUCH), keep)
        takes = rows[(kind[rows] == Option.TAKE) & (full != 0)]
        self.chosen[takes] = self._outcome(
            Memo.TAKEN, self.option[takes], full[(kind[rows] == Option.TAKE) & (full != 0)]
        )
        ends = np.flatnonzero(kind == Option.COMPLETE)
        self.chosen[ends] = self._outcome(Memo.COMPLETED, self.option[ends], self._delivered(ends))
        keep &= self.chosen >= 0
        for name in ("slot", "chosen", "put"):
            setattr(self, name, getattr(self, name)[keep])
        self._only(keep)

    def _touch(self, rows: Array, keep: Array) -> None:
        """Look up what gates at places do: whether they are open, what is there afterwards, what ranks are given."""
        if not len(rows):
            return
        place, action, looks = self._of(A)[rows], self._of(B)[rows], self._of(BITS)[rows] & LOOKS != 0
        found = self._outcome(Memo.TOUCHED, self.fields[self.parent[rows], place], action)
        keep[rows] = found != CLOSED
        after, given, bound = self.t.touched[found].T.astype(np.int64)
        self.slot[rows], self.put[rows], self.must[rows] = place, after, bound != 0
        looking = np.flatnonzero(looks & (found != CLOSED))
        self.chosen[rows[looking]] = self._outcome(Memo.TAKEN, self.option[rows[looking]], given[looking])

    def _delivered(self, rows: Array) -> Array:
        """Return the number of what each rank is given."""
        lanes, rank, about = self.lanes[self.parent[rows]], self.rank[rows], self.t.contributions
        group, place, mine = (self._of(fact)[rows] for fact in (A, B, C))
        root, gives = about[mine, ROOT_RANK].astype(np.int64), self._gives(mine, self._seat(rank, group))
        if self.by_rank:
            root = self.t.queues[self.t.seats[rank, group, QUEUE], MEMBERS + root].astype(np.int64)
        from_root = about[np.abs(self._entry(lanes, root, group, ENTRIES + place)), VALUE]
        made = (gives == MADE) | (gives == SHARE)
        joined = np.where(made, self.control[ISSUED], self.control[NOBODY])
        found = np.where(gives == ROOT, from_root, np.where(made | (gives == ALL), joined, self.control[NOTHING]))
        for _, member, there in self._members(rank, group):
            entry = np.abs(self._entry(lanes, member, group, ENTRIES + place)).astype(np.int64)
            some = np.flatnonzero(there & (made | ((gives == ALL) & (entry != 0))))
            found[some] = self._outcome(Memo.JOINED, found[some], entry[some])
        return found

    def _outcome(self, memo: Memo, one: Array, other: Array) -> Array:
        """Return what is kept under each key. Raises `_Missing` where there is nothing yet."""
        keys, last = self.t.keys, self.t.keys.size - 1
        key = memo_key(int(memo), one.astype(np.int64), other.astype(np.int64))
        at = ((key.astype(np.uint64) * _ODD) >> np.uint64(32)).astype(np.int64) & last
        while True:
            probing = (keys[at] != key) & (keys[at] >= 0)
            if not probing.any():
                break
            at = np.where(probing, (at + 1) & last, at)
        unknown = keys[at] != key
        if unknown.any():
            raise _Missing(memo, one[unknown], other[unknown])
        return self.t.outcomes[at].astype(np.int64)

    # ── what they lead to ───────────────────────────────────────────────────────────────────────────

    def _apply(self, symmetric: bool) -> None:
        rows = np.arange(len(self.chosen))
        bits, before = self.t.options[self.chosen, BITS], self.lanes[self.parent]
        after = before.copy()
        after[rows, self.rank] = self.t.options[self.chosen, TARGET]
        fallen = after[rows, self.rank] == self.control[FALLEN + np.minimum(self.rank, 1)]
        after[fallen] = self.control[[FALLEN, *[FALLEN + 1] * (self.ranks - 1)]]
        self._drop_finished(after, np.flatnonzero((bits & DROPS_FINISHED != 0) & ~fallen))
        by = self.t.lanes[0, after[:, 0], BASE]
        self._rebase(after, np.flatnonzero((bits & NORMALISES != 0) & (by != 0) & ~fallen))
        self.went = np.zeros(len(rows), np.uint64)
        if symmetric:
            order = np.argsort(after[:, 1:], axis=1, kind="stable")
            after[:, 1:] = np.take_along_axis(after[:, 1:], order, axis=1)
            for place in range(self.ranks - 1):
                self.went |= np.uint64(place) << (4 * order[:, place]).astype(np.uint64)
        fields = self.fields[self.parent]
        fields[:, : self.ranks] = after
        slotted = np.flatnonzero(self.slot >= 0)
        fields[slotted, self.slot[slotted]] = self.put[slotted]
        self._part(fields, np.flatnonzero(bits & (PARTS | PARTS_FAILED)), bits)
        fields[:, -1] += bits & COSTS != 0
        self.out = np.zeros((len(rows), self.layout.words), np.uint64)
        for f, word in enumerate(self.layout.word):
            self.out[:, word] |= fields[:, f].astype(np.uint64) << self.layout.shift[f]
        kind = self._of(KIND)
        met = (kind == Option.DEVICE) | (kind == Option.COMPLETE)
        bits = np.where(met, np.where(self.must, bits | TAKES_PART, bits & ~TAKES_PART), bits)
        bits = np.where(self.must, bits, bits & ~TAKES_PART)  # the end of a send or receive need not come either
        self.label = (self.rank << 3) | (bits & 7)
        self.seen = self.t.options[self.chosen, SEES] | np.where(self.mispaired, self.control[MISPAIRED], 0)

    def _part(self, fields: Array, rows: Array, bits: Array) -> None:
        """Change what is on the links of ranks that have ended or failed."""
        wires = self.t.wires[self.rank[rows]].astype(np.int64)
        failed = bits[rows] & PARTS_FAILED != 0
        for n in range(wires.shape[1]):
            place = wires[:, n, WIRE_AT]
            held = fields[rows, place]
            some = np.flatnonzero(held)  # where nothing is on its way nothing changes
            action = np.where(failed, wires[:, n, ONCE_FAILED], wires[:, n, ONCE_ENDED])[some]
            found = self._outcome(Memo.TOUCHED, held[some], action)
            fields[rows[some], place[some]] = self.t.touched[found, AFTER]

    def _drop_finished(self, after: Array, rows: Array) -> None:
        """Drop what every member has left or has ended without."""
        columns, depth = self.t.columns, self.t.columns.shape[3] - ENTRIES
        if not len(rows):
            return
        for group, _, size, *members in self.t.queues[: self.queues].tolist():
            lanes = [(m, self.kinds[m]) for m in members[:size]]
            lengths = np.stack([columns[kind, after[rows, m], group, LENGTH] for m, kind in lanes], axis=1)
            ended = np.stack(
                [self.t.lanes[kind, after[rows, m], FLAGS] & (TERMINAL | FAILED) for m, kind in lanes], axis=1
            )
            by, open_ = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
            for place in range(depth):
                entries = np.stack([columns[kind, after[rows, m], group, ENTRIES + place] for m, kind in lanes], axis=1)
                issued = lengths > place
                open_ &= issued.any(axis=1) & (np.where(issued, entries < 0, ended == TERMINAL)).all(axis=1)
                by += open_
            for n, (member, kind) in enumerate(lanes):
                moves = (by > 0) & (lengths[:, n] > 0)
                at = rows[moves]
                lane = (after[at, member] << 5) | kind
                after[at, member] = self._outcome(Memo.SHIFTED, lane, (group << 16) | by[moves])

    def _rebase(self, after: Array, rows: Array) -> None:
        """Count ids from rank0's."""
        by: Any = BIAS - self.t.lanes[0, after[rows, 0], BASE].astype(np.int64)
        for member in range(self.ranks):
            lane = (after[rows, member] << 5) | self.kinds[member]
            after[rows, member] = self._outcome(Memo.REBASED, lane, by)
