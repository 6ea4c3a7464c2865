"""Encodes a network's states as small integers in fixed fields, and what follows from them as arrays.

A *lane* is where one rank is: its local (`lts.py`) and what it has put into each unfinished collective. A state is
one lane a rank, the slots of the channels and the faults spent. Nearly every move changes one lane alone, so a lane
is worked out once, when a search first meets it: its options, in the order of `Network.successors`. What an option
also depends on (who has issued, what was delivered, what is in a slot) is either a rule on the ranks' entries, as in
`transport.py`, or an outcome that is looked up; one that is not there yet is *missed*, and worked out by `resolve`.

What stands where in the arrays says `layout.py`; what a rank may do whatever it is in, `moves.py`. Left out: the search
itself (`numba_search.py`, `numpy_search.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...semantics import transport
from ...semantics.groups import given
from ...semantics.lts import CRASHED, Interner, Step
from ...semantics.network import CRASH, STALL, Network, NetworkState
from ...semantics.properties import CLOSING_PHASES, NO_MISPAIRING
from ...tables import Collective, Data, Kind, Put, Take, beyond
from ..reference import Taken
from . import fixed_tables
from .layout import (
    ADVANCES,
    ALL,
    ALONE,
    BARRIER,
    BASE,
    BIAS,
    CHECKS,
    CLOSING,
    COUNTER,
    DROPS_FINISHED,
    END,
    ENTRIES,
    FAILED,
    FIRST,
    FLAGS,
    HASTY,
    LANE_FACTS,
    MADE,
    NORMALISES,
    OWN,
    PEER,
    POINTS,
    QUEUE,
    ROOT,
    SHARE,
    STALLED,
    TERMINAL,
    WAITS_IN,
    A,
    Array,
    B,
    C,
    Layout,
    Memo,
    Option,
    Tables,
    layout,
    memo_parts,
    memo_place,
)
from .moves import LocalMoves, Move
from .partial_order_reduction import Reduction
from .touches import Touches


@dataclass(frozen=True)
class Issued:
    """Holds what members have put into a collective, by number, in the order of the group, as far as was looked."""

    entries: tuple[int, ...]


Columns = tuple[tuple[int, ...], ...]
"""Per group what a rank has put into its unfinished collectives: +c issued and waiting, -c issued and gone."""

MAX_SORTED = 16
"""Workers that can be sorted: a place is four bits."""
SPARE_BITS = 8
"""So many bits a lane may have to spare."""


class Space:
    """Holds a network, unfolded into lanes as far as a search asks for it.

    `symmetric`: workers are interchangeable.
    """

    def __init__(self, network: Network, *, symmetric: bool = False, reduction: Reduction | None = None) -> None:
        self.network, self.symmetric, self.reduction = network, symmetric, reduction
        self.by_rank = beyond(network.protocol) is not None
        """Each rank has lanes of its own; else rank0 has some, and all workers the same."""
        self.kinds = [rank if self.by_rank else min(rank, 1) for rank in range(network.ranks)]
        """Per rank the number of its lanes."""
        self._ranks = [self.kinds.index(kind) for kind in range(max(self.kinds) + 1)]
        """Per kind the first rank of it."""
        self._lts = [network.lts[rank] for rank in self._ranks]
        self.layout: Layout
        self.lanes: tuple[Interner[tuple[int, Columns]], ...] = tuple(Interner() for _ in self._ranks)
        self.data: Interner[Data] = Interner()
        self.nothing = self.data(None)
        self.nobody = self.data(frozenset())
        self.seen_names: Interner[str] = Interner()
        self.mispaired = 1 << self.seen_names(NO_MISPAIRING.name)
        self.channels: tuple[Interner[Data], ...] = tuple(Interner() for _ in network.protocol.slots)
        for channel in self.channels:
            channel(Ellipsis)  # 0 is empty
        self.touches = Touches(network)
        reduced = reduction is not None
        self._menus = LocalMoves(network, self._ranks, self.channels, self.touches, self.seen_names, reduced=reduced)
        self.issued = self.data(Issued(()))
        self._devices = [network.protocol.group_names.index(group) for group in network.groups.with_devices]
        self._wires: Interner[tuple[Any, ...]] = Interner()
        self._names: Interner[str] = Interner()
        self._points: Interner[str] = Interner()
        for kind in (CRASH, STALL):
            for point in network.kinds.get(kind) or ():
                self._points(point.state)
        self._described: list[dict[int, list[int]]] = [{} for _ in self._ranks]
        self._sources: dict[int, tuple[int, int]] = {}
        self._taking: dict[int, Step | None] = {}
        """The step that takes what an option is given; None where that ends a send or receive."""
        self._unless = -1 if network.protocol.group_names else ~DROPS_FINISHED
        self._begin_writing()
        self._seats = fixed_tables.seats(network)
        self._fixed = (
            fixed_tables.strikes(network, self._points),
            np.array(self._devices, np.int32),
            fixed_tables.queues(network),
            self._seats,
            fixed_tables.wires(network, self.touches),
        )
        self.fallen = [-1, -1]
        """With a reduction, per role: the lane of every rank once any has failed or stalled."""
        nowhere: Columns = ((),) * len(network.protocol.group_names)
        if reduction is not None:
            self.fallen = [self.lane(n, self._lts[n].crashed(self._lts[n].initial), nowhere) for n in (0, 1)]
        starts = zip(self.kinds, network.initial().locals, strict=True)
        self.initial = tuple(self.lane(kind, number, nowhere) for kind, number in starts)

    def _begin_writing(self) -> None:
        # lists, which are quick to add to; what is new in them goes into arrays when an engine asks for those
        self._facts: list[list[list[int]]] = [[] for _ in self._ranks]
        self._fresh: list[list[int]] = [[] for _ in self._ranks]
        self._options: list[tuple[int, ...]] = []
        self._lane_array = np.zeros((len(self._ranks), 256, LANE_FACTS), np.int32)
        groups = max(1, len(self.network.protocol.group_names))
        self._column_array = np.zeros((len(self._ranks), 256, groups, ENTRIES + 4), np.int32)
        self._option_array = np.zeros((1024, 8), np.int64)
        self._taken_array = np.zeros(1024, np.uint8)
        self._rows: list[Taken | None] = []
        """Per option the row that it takes."""
        self._written = [0] * len(self._ranks)
        """Counts the columns of each kind that are in their array."""
        self._written_options = self._written_touches = 0
        self._contributions = np.zeros((64, 8), np.int32)
        self._known_contributions = 1
        self.most_options = 0
        self._memo = (np.full(1024, -1, np.int64), np.zeros(1024, np.int32))
        self._memo_count = 0
        self._touched_array = np.zeros((64, 3), np.int32)

    # ── lanes ───────────────────────────────────────────────────────────────────────────────────────

    def lane(self, kind: int, local: int, columns: Columns) -> int:
        """Return the number of a lane, whose facts are written down when it is new."""
        lanes = self.lanes[kind]
        number = lanes.index.get((local, columns))
        if number is not None:
            return number
        number = lanes((local, columns))
        self._facts[kind].append(self._describe(kind, local))
        self._fresh[kind].append(number)
        return number

    def _describe(self, kind: int, local: int) -> list[int]:
        """Return the facts of a lane in this local: all but what depends on its collectives."""
        known = self._described[kind].get(local)
        if known is None:
            lts = self._lts[kind]
            info = lts.info(local)
            closing = (
                kind == 0
                and not self.network.protocol.cast
                and info.state != CRASHED
                and lts.role.by_name[info.state].phase in CLOSING_PHASES
            )
            state = self._points.index.get(info.state)
            known = [0] * LANE_FACTS
            known[FLAGS] = TERMINAL * info.terminal | FAILED * info.failed | STALLED * info.stalled | CLOSING * closing
            known[COUNTER] = info.counter
            known[BASE] = lts.base(local) if kind == 0 else 0
            known[POINTS] = 0 if state is None else 1 << state
            known[FIRST] = -1
            known[PEER] = self._menus.peer(kind, local)
            known[WAITS_IN] = -1 if info.op is None else self.network.protocol.group_names.index(info.op.group)
            self._described[kind][local] = known
        return known.copy()

    def _know(self, contribution: int) -> None:
        """Write down every contribution up to this one."""
        while self._known_contributions <= contribution:
            number = self._known_contributions
            made = self.network.contributions.items[number]
            assert made is not None
            op = made.op
            to_others, to_root = _given(op)
            wire, reduces = self._wires(op.signature), op.kind in transport.REDUCES and op.result is None
            facts = (
                self.data(made.value),
                wire,
                self._names(op.name),
                made.lost,
                reduces,
                op.root or 0,
                to_others,
                to_root,
            )
            self._contributions = _room(self._contributions, number + 1)
            self._contributions[number] = facts
            self._known_contributions += 1

    # ── options ─────────────────────────────────────────────────────────────────────────────────────

    def expand(self, kind: int, number: int) -> None:
        """Work out a lane's options, in the order of `Network.successors`."""
        local, columns = self.lanes[kind].items[number]
        groups = self.network.protocol.group_names
        outstanding = [groups[g] for g in self._devices if any(entry > 0 for entry in columns[g])]
        hasty = (
            self.reduction is not None
            and self.reduction.is_hasty(kind, local)
            and not self.reduction.looks_away(kind, local, outstanding)
        )
        menu = self._menus.of(kind, local)
        self._facts[kind][number][CHECKS] = len(self._options)
        for check in next((move.checks for move in menu[0] if type(move) is Move and move.checks), ()):
            self._option(kind, local, columns, check)
        bounds = [len(self._options)]
        self._collectives(kind, number)
        for part, moves in enumerate(menu):
            if not hasty or part == 0:
                for move in moves:
                    if not isinstance(move, Move):
                        to, bits, row = move
                        self._add(Option.FREE, self.lane(kind, to, columns), bits, row)
                    elif not (move.syncs and outstanding):
                        self._option(kind, local, columns, move)
            bounds.append(len(self._options))
        facts = self._facts[kind][number]
        facts[FIRST : END + 1] = bounds
        facts[FLAGS] |= HASTY * hasty
        self._fresh[kind].append(number)
        self.most_options = max(self.most_options, bounds[-1] - bounds[0])

    def _option(self, kind: int, local: int, columns: Columns, move: Move) -> int:
        """Return a move of a local as an option of the lane that it is in with these columns: see `Network._take`."""
        if move.fails and self.reduction is not None:
            target = self.fallen[kind]
        elif move.to < 0:  # what it leads to depends on what is in the slot
            target = 0
        else:
            if move.issues is not None:
                group, entry = move.issues
                columns = (*columns[:group], (*columns[group], entry), *columns[group + 1 :])
            elif move.fails:
                columns = self._gone(columns)
            elif move.leaves is not None:
                group = move.leaves
                columns = (*columns[:group], self._gone(columns[group : group + 1])[0], *columns[group + 1 :])
            target = self.lane(kind, move.to, columns)
        more = move.a, move.b, move.c, move.striking, move.sees
        option = self._add(move.option, target, move.bits, move.row, more)
        if move.to < 0:
            self._sources[option] = (kind, self.lanes[kind].index[local, columns])
            self._taking[option] = move.takes
        return option

    def _collectives(self, kind: int, number: int) -> None:
        """Return what a rank is in: the earliest of each device, and what its host waits in."""
        local, columns = self.lanes[kind].items[number]
        for group in self._devices:
            self._device(kind, number, group)
        info = self._lts[kind].info(local)
        if info.terminal or info.stalled:
            return
        if (end := self._menus.end(kind, local)) is not None:
            self._option(kind, local, columns, end)
        if info.op is not None:
            group = self.network.protocol.group_names.index(info.op.group)
            at = _earliest(columns[group])
            if 0 <= at == len(columns[group]) - 1:  # nothing that it issued before is unfinished
                option = self._add(Option.COMPLETE, number, 0, None, (group, at, columns[group][at], 0, 0))
                self._sources[option] = (kind, number)

    def _device(self, kind: int, number: int, group: int) -> None:
        """Add the end of the earliest collective on the stream, unless the host waits in it."""
        local, columns = self.lanes[kind].items[number]
        at = _earliest(columns[group])
        last = at == len(columns[group]) - 1
        if at < 0 or (last and self._facts[kind][number][WAITS_IN] == group):
            return
        after = self.lane(kind, local, _left(columns, group, at))
        self._add(Option.DEVICE, after, DROPS_FINISHED, None, (group, at, columns[group][at], 0, 0))

    def _gone(self, columns: Columns) -> Columns:
        """Return what a rank leaves behind that is no longer in any collective."""
        if not any(map(any, columns)):
            return columns
        return tuple(
            tuple(self.network.groups.lost(entry) if entry > 0 else entry for entry in column) for column in columns
        )

    def _add(
        self,
        option: Option,
        target: int,
        bits: int,
        row: Taken | None = None,
        more: tuple[int, ...] = (0, 0, 0, 0, 0),
    ) -> int:
        self._options.append((option, target, bits & self._unless, *more))
        self._rows.append(row)
        return len(self._options) - 1

    # ── outcomes ────────────────────────────────────────────────────────────────────────────────────

    def resolve(self, key: int) -> None:
        """Work out what a search missed: see `memo_key`, and `Memo` for what the parts are."""
        memo, one, other = memo_parts(key)
        if memo == Memo.EXPANDED:
            if self._facts[other][one][FIRST] < 0:
                self.expand(other, one)
            return
        if self._find(key) < 0:
            self._remember(key, self._outcome(memo, one, other))

    def _outcome(self, memo: int, one: int, other: int) -> int:
        if memo == Memo.COMPLETED:
            return self._completed(one, other)
        if memo == Memo.TAKEN:
            return self._taken(one, other)
        if memo == Memo.TOUCHED:
            return self.touches.outcome(one, other)
        if memo == Memo.JOINED:
            known = self.data.items[one]
            if isinstance(known, Issued):
                return self.data(Issued((*known.entries, other)))
            made = self.network.contributions.items[other]
            assert made is not None
            return self.data(known | {made.value})
        number, kind = one >> 5, one & 31
        local, columns = self.lanes[kind].items[number]
        if memo == Memo.SHIFTED:
            group, by = other >> 16, other & 0xFFFF
            return self.lane(kind, local, (*columns[:group], columns[group][by:], *columns[group + 1 :]))
        by = other - BIAS
        moved = tuple(tuple(self.network.groups.rebased_entry(entry, by) for entry in column) for column in columns)
        return self.lane(kind, self._lts[kind].rebased(local, by), moved)

    def _completed(self, option: int, data: int) -> int:
        kind, number = self._sources[option]
        local, columns = self.lanes[kind].items[number]
        group, at = self._options[option][A], self._options[option][B]
        step = self._lts[kind].complete(local, self._delivered(kind, group, columns[group][at], data))
        target = self.lane(kind, step.target, _left(columns, group, at))
        bits = ADVANCES * (step.target != local) | DROPS_FINISHED | NORMALISES
        bits |= self._menus.parting(self._lts[kind].info(step.target))
        seen = self._menus.names_of(step.seen)
        return self._add(Option.FREE, target, bits, (self._menus.roles[kind], *step.row.key), (0, 0, 0, 0, seen))

    def _delivered(self, kind: int, group: int, entry: int, data: int) -> Data:
        """Return what a rank is given that waits in a collective, of which `data` numbers what is known."""
        known, mine = self.data.items[data], self.network.contributions.items[entry]
        if not isinstance(known, Issued) or mine is None:
            return known
        seat = self.network.groups.seat[self._ranks[kind]][int(self._seats[self._ranks[kind], group, QUEUE])]
        return given(mine.op, seat, [self.network.contributions.items[other] for other in known.entries])

    def _taken(self, option: int, value: int) -> int:
        kind, number = self._sources[option]
        local, columns = self.lanes[kind].items[number]
        taking, facts = self._taking[option], self._options[option]
        if facts[0] == Option.TOUCH:
            found = self.touches.given[facts[A] - self.network.ranks - self.network.store.first_place].items[value]
        else:
            found = self.channels[facts[C]].items[value]
        lts = self._lts[kind]
        step = lts.complete(local, found) if taking is None else lts.take(local, taking.row, found)
        if step is None:
            return -1
        return self._option(kind, local, columns, self._menus.made(Option.FREE, kind, local, step))

    def _find(self, key: int) -> int:
        keys, _ = self._memo
        at = memo_place(key, keys.size)
        while keys[at] != key:
            if keys[at] < 0:
                return -1
            at = (at + 1) & (keys.size - 1)
        return at

    def _remember(self, key: int, value: int) -> None:
        if self._memo_count * 2 >= self._memo[0].size:
            keys, values = self._memo
            self._memo = (np.full(keys.size * 4, -1, np.int64), np.zeros(keys.size * 4, np.int32))
            self._memo_count = 0
            for n in np.flatnonzero(keys >= 0):
                self._remember(int(keys[n]), int(values[n]))
        keys, values = self._memo
        at = memo_place(key, keys.size)
        while keys[at] >= 0:
            at = (at + 1) & (keys.size - 1)
        keys[at], values[at] = key, value
        self._memo_count += 1

    # ── for the engines ─────────────────────────────────────────────────────────────────────────────

    def tables(self) -> Tables:
        """Return everything worked out so far."""
        self._write_down()
        return Tables(
            self._lane_array,
            self._column_array,
            self._option_array,
            self._contributions,
            *self._memo,
            self._taken_array,
            self._touched_array,
            *self._fixed,
        )

    def _write_down(self) -> None:
        """Write into the arrays what is new."""
        for kind, facts in enumerate(self._facts):
            self._lane_array = _room(self._lane_array, len(facts), axis=1)
            self._column_array = _room(self._column_array, len(facts), axis=1)
            if fresh := self._fresh[kind]:
                self._lane_array[kind, fresh] = [facts[number] for number in fresh]
                fresh.clear()
            columns = [columns for _, columns in self.lanes[kind].items[self._written[kind] :]]
            if columns and columns[0]:
                deepest = max(len(column) for lane in columns for column in lane)
                self._column_array = _room(self._column_array, ENTRIES + deepest, axis=3)
                rows = [[_column_facts(column, deepest) for column in lane] for lane in columns]
                self._column_array[kind, self._written[kind] : len(facts), :, : ENTRIES + deepest] = rows
                for entry in {abs(entry) for lane in columns for column in lane for entry in column}:
                    self._know(entry)
            self._written[kind] = len(facts)
        self._option_array = _room(self._option_array, len(self._options))
        self._taken_array = _room(self._taken_array, len(self._options))
        if new := self._options[self._written_options :]:
            self._option_array[self._written_options : len(self._options)] = new
        self._written_options = len(self._options)
        if touched := self.touches.outcomes[self._written_touches :]:
            self._written_touches += len(touched)
            self._touched_array = _room(self._touched_array, self._written_touches)
            self._touched_array[self._written_touches - len(touched) : self._written_touches] = touched

    def taken(self) -> frozenset[Taken]:
        """Return the rows that the search has taken."""
        options = np.flatnonzero(self._taken_array[: len(self._rows)]).tolist()
        return frozenset(row for option in options if (row := self._rows[option]) is not None)

    def widths(self) -> list[int]:
        """Return how many bits each field takes: lanes, slots, faults.

        There is room to grow where that costs no word.
        """
        words = layout(self._widths(0, 0)).words
        for spare in range(SPARE_BITS, -1, -1):
            for more in range(SPARE_BITS - spare, -1, -1):
                if layout(wide := self._widths(spare, more)).words == words:
                    return wide
        raise AssertionError("no spare bits are always in reach")

    def _widths(self, spare: int, more: int) -> list[int]:
        """Return the bits of each field, with `spare` for each lane, and `more` for rank0's, which become the most."""
        lanes = [len(self.lanes[kind].items).bit_length() + spare for kind in self.kinds]
        slots = [max(1, (len(channel.items) - 1).bit_length()) for channel in self.channels]
        places = [max(1, (len(self.touches.contents[at].items) - 1).bit_length()) for at in self.touches.at]
        workers = self.network.ranks - 1
        faults = max(1, self.network.faults.bit_length())
        lanes[0] += more
        return [*lanes, *[width for width in slots for _ in range(workers)], *places, faults]

    def fits(self, into: Layout) -> bool:
        """Return whether every lane and value has room in its field."""
        return all(width <= int(mask).bit_length() for width, mask in zip(self._widths(0, 0), into.mask, strict=True))

    def start(self) -> list[int]:
        """Return the fields of the initial state."""
        return [*self.initial, *[0] * len(self.network.store), 0]

    def decode(self, fields: Sequence[int]) -> NetworkState:
        """Return the state that these fields stand for."""
        network = self.network
        lanes = [self.lanes[kind].items[fields[rank]] for rank, kind in enumerate(self.kinds)]
        queues, names = [], network.protocol.group_names
        for name, members in network.groups.lists:
            group = names.index(name)
            columns = [lanes[rank][1][group] for rank in members]
            deep = max(map(len, columns))
            queues.append(network.queues(tuple(tuple(c[n] if n < len(c) else 0 for c in columns) for n in range(deep))))
        slots = [self.slot_item(n, value) if value else 0 for n, value in enumerate(fields[network.ranks : -1])]
        return NetworkState(tuple(local for local, _ in lanes), tuple(queues), tuple(slots), fields[-1])

    def slot_item(self, slot: int, value: int) -> int:
        """Return what the field of a slot or place stands for, as `NetworkState.slots` numbers it."""
        if slot >= self.network.store.first_place:
            return self.touches.item(slot - self.network.store.first_place, value)
        channel = self.channels[slot // (self.network.ranks - 1)]
        return self.network.values(channel.items[value]) + 1

    def completed(self) -> Iterator[tuple[int, int, Data]]:
        """Yield (kind, local, what was delivered) of every end of a collective that was met."""
        for key in self._memo[0][self._memo[0] >= 0].tolist():
            memo, option, data = memo_parts(key)
            if memo == Memo.COMPLETED:
                kind, lane = self._sources[option]
                local, columns = self.lanes[kind].items[lane]
                group, at = self._options[option][A], self._options[option][B]
                yield kind, local, self._delivered(kind, group, columns[group][at], data)

    def encode(self, state: NetworkState) -> list[int]:
        """Return the fields of a state; with symmetry or a reduction, of the one that stands for it."""
        network = self.network
        fields = []
        for rank, local in enumerate(state.locals):
            columns = [()] * len(network.protocol.group_names)
            for group, (seat, queue) in enumerate(self._seats[rank].tolist()):
                if queue >= 0:
                    instances = network.queues.items[state.queues[queue]]
                    columns[group] = tuple(entry for instance in instances if (entry := instance[seat]))
            fields.append(self.lane(self.kinds[rank], local, tuple(columns)))
        if self.reduction is not None and network.verdict(state)[0]:
            fields = [self.fallen[kind] for kind in self.kinds]
        if self.symmetric:
            fields[1:] = sorted(fields[1:])
        workers, first = network.ranks - 1, network.store.first_place
        for n, value in enumerate(state.slots):
            if n >= first:
                fields.append(self.touches.number(n - first, value))
            else:
                fields.append(self.channels[n // workers](network.values.items[value - 1]) if value else 0)
        return [*fields, state.faults]


def _room(array: Array, size: int, axis: int = 0) -> Array:
    """Return the array, or a longer one of twice the length, with room for so many along an axis."""
    while array.shape[axis] < size:
        array = np.concatenate([array, np.zeros_like(array)], axis=axis)
    return array


def _earliest(column: Sequence[int]) -> int:
    """Return the first collective of a column that the rank has not left; -1: none."""
    for at, entry in enumerate(column):
        if entry > 0:
            return at
    return -1


def _column_facts(column: Sequence[int], deepest: int) -> list[int]:
    return [len(column), _earliest(column), *column, *[0] * (deepest - len(column))]


def _left(columns: Columns, group: int, at: int) -> Columns:
    """Return the columns of a rank that has left collective `at` of a group."""
    column = columns[group]
    return (*columns[:group], (*column[:at], -column[at], *column[at + 1 :]), *columns[group + 1 :])


def _given(op: Collective) -> tuple[int, int]:
    """Return whom the members wait for and what they are given, and which of it the root: as in `transport`."""
    all_of_it = ALL if op.result is None and op.kind is not Kind.ALL_TO_ALL else MADE
    to_others, to_root = {
        Kind.BROADCAST: (ROOT, ROOT),
        Kind.SCATTER: (SHARE, SHARE),
        Kind.BARRIER: (BARRIER, BARRIER),
        Kind.GATHER: (OWN, all_of_it),
        Kind.REDUCE: (ALONE, all_of_it),
    }.get(op.kind, (all_of_it, all_of_it))
    return to_others, to_others if op.root is None else to_root


def indexes_a_worker(network: Network) -> str | None:
    """Return the row, collective or fault that tells one worker from another; None where they are interchangeable."""
    if (more := beyond(network.protocol)) is not None:
        return f"it has {more}"
    for role in network.protocol.roles:
        for row in role.rows:
            if isinstance(row.gate, Put | Take):
                slot = row.gate.slot.name
                if row.gate.worker is not None:
                    return f"row {row} of {role.name} picks a worker for slot `{slot}`"
                # lanes are sorted without their slots, which would then be another worker's
                return f"row {row} of {role.name} has a slot `{slot}` of its own"
    for op in network.protocol.schedule:
        if op.root not in (None, 0):
            return f"collective `{op.name}` has rank{op.root} as its root"
    for kind, points in network.kinds.items():
        for point in points or ():
            if point.rank:
                return f"fault {kind}@{point} names rank{point.rank}"
    return None
