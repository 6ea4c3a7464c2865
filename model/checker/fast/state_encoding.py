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
from typing import Any

import numpy as np

from ...semantics.lts import CRASHED, Interner, Step
from ...semantics.network import CRASH, STALL, Network, NetworkState
from ...semantics.properties import CLOSING_PHASES, NO_MISPAIRING
from ...tables import Data, Kind, Put, Take, beyond
from ..reference import Taken
from .layout import (
    ADVANCES,
    ALL,
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
    NORMALISES,
    OWN,
    POINTS,
    ROOT,
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
        if (more := beyond(network.protocol)) is not None:
            raise ValueError(f"{network.protocol.name} has {more}, which only the reference engine knows")
        self.network, self.symmetric, self.reduction = network, symmetric, reduction
        self._lts = network.lts[0], network.lts[min(1, network.ranks - 1)]
        self.layout: Layout
        self.lanes: tuple[Interner[tuple[int, Columns]], ...] = (Interner(), Interner())
        self.data: Interner[Data] = Interner()
        self.nothing = self.data(None)
        self.nobody = self.data(frozenset())
        self.seen_names: Interner[str] = Interner()
        self.mispaired = 1 << self.seen_names(NO_MISPAIRING.name)
        self.channels: tuple[Interner[Data], ...] = tuple(Interner() for _ in network.protocol.slots)
        for channel in self.channels:
            channel(Ellipsis)  # 0 is empty
        self._menus = LocalMoves(network, self._lts, self.channels, self.seen_names, reduced=reduction is not None)
        self._wires: Interner[tuple[Any, ...]] = Interner()
        self._names: Interner[str] = Interner()
        self._points: Interner[str] = Interner()
        for kind in (CRASH, STALL):
            for point in network.kinds.get(kind) or ():
                self._points(point.state)
        self._described: tuple[dict[int, list[int]], ...] = ({}, {})
        self._sources: dict[int, tuple[int, int]] = {}
        self._taking: dict[int, Step] = {}
        groups = len(network.protocol.group_names)
        # lists, which are quick to add to; what is new in them goes into arrays when an engine asks for those
        self._facts: tuple[list[list[int]], list[list[int]]] = ([], [])
        self._fresh: tuple[list[int], list[int]] = ([], [])
        self._options: list[tuple[int, ...]] = []
        self._lane_array = np.zeros((2, 256, LANE_FACTS), np.int32)
        self._column_array = np.zeros((2, 256, max(groups, 1), ENTRIES + 4), np.int32)
        self._option_array = np.zeros((1024, 8), np.int64)
        self._taken_array = np.zeros(1024, np.uint8)
        self._rows: list[Taken | None] = []
        """Per option the row that it takes."""
        self._written = [0, 0, 0]
        """Counts the columns of either role, and the options, that are in their arrays."""
        self._contributions = np.zeros((64, 8), np.int32)
        self._known_contributions = 1
        self.most_options = 0
        self._memo = (np.full(1024, -1, np.int64), np.zeros(1024, np.int32))
        self._memo_count = 0
        self._strikes = self._strike_table()
        self.fallen = [-1, -1]
        """With a reduction, per role: the lane of every rank once any has failed or stalled."""
        if reduction is not None:
            self.fallen = [self.lane(n, self._lts[n].crashed(self._lts[n].initial), ((),) * groups) for n in (0, 1)]
        self.initial = tuple(
            self.lane(min(rank, 1), number, ((),) * groups) for rank, number in enumerate(network.initial().locals)
        )

    # ── lanes ───────────────────────────────────────────────────────────────────────────────────────

    def lane(self, role: int, local: int, columns: Columns) -> int:
        """Return the number of a lane, whose facts are written down when it is new."""
        lanes = self.lanes[role]
        number = lanes.index.get((local, columns))
        if number is not None:
            return number
        number = lanes((local, columns))
        self._facts[role].append(self._describe(role, local))
        self._fresh[role].append(number)
        return number

    def _describe(self, role: int, local: int) -> list[int]:
        """Return the facts of a lane in this local: all but what depends on its collectives."""
        known = self._described[role].get(local)
        if known is None:
            lts = self._lts[role]
            info = lts.info(local)
            closing = role == 0 and info.state != CRASHED and lts.role.by_name[info.state].phase in CLOSING_PHASES
            state = self._points.index.get(info.state)
            known = [0] * LANE_FACTS
            known[FLAGS] = TERMINAL * info.terminal | FAILED * info.failed | STALLED * info.stalled | CLOSING * closing
            known[COUNTER] = info.counter
            known[BASE] = lts.base(local) if role == 0 else 0
            known[POINTS] = 0 if state is None else 1 << state
            known[FIRST] = -1
            known[WAITS_IN] = -1 if info.op is None else self.network.protocol.group_names.index(info.op.group)
            self._described[role][local] = known
        return known.copy()

    def _know(self, contribution: int) -> None:
        """Write down every contribution up to this one."""
        while self._known_contributions <= contribution:
            number = self._known_contributions
            made = self.network.contributions.items[number]
            assert made is not None
            op = made.op
            # as in `transport.delivered`: a broadcast gives the root's, a gather its root everyone's
            to_others = ROOT if op.kind is Kind.BROADCAST else OWN if op.kind is Kind.GATHER else ALL
            to_root = ROOT if op.kind is Kind.BROADCAST else ALL
            wire, reduces = self._wires(op.signature), op.kind is Kind.ALL_REDUCE
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

    def expand(self, role: int, number: int) -> None:
        """Work out a lane's options, in the order of `Network.successors`."""
        local, columns = self.lanes[role].items[number]
        groups = self.network.protocol.group_names
        outstanding = [groups[g] for g in self.network.groups.on_streams if any(entry > 0 for entry in columns[g])]
        hasty = (
            self.reduction is not None
            and self.reduction.is_hasty(role, local)
            and not self.reduction.looks_away(role, local, outstanding)
        )
        menu = self._menus.of(role, local)
        self._facts[role][number][CHECKS] = len(self._options)
        for check in next((move.checks for move in menu[0] if move.checks), ()):
            self._option(role, local, columns, check)
        bounds = [len(self._options)]
        self._collectives(role, number)
        for part, moves in enumerate(menu):
            if not hasty or part == 0:
                for move in moves:
                    if not (move.syncs and outstanding):
                        self._option(role, local, columns, move)
            bounds.append(len(self._options))
        facts = self._facts[role][number]
        facts[FIRST : END + 1] = bounds
        facts[FLAGS] |= HASTY * hasty
        self._fresh[role].append(number)
        self.most_options = max(self.most_options, bounds[-1] - bounds[0])

    def _option(self, role: int, local: int, columns: Columns, move: Move) -> int:
        """Return a move of a local as an option of the lane that it is in with these columns: see `Network._take`."""
        if move.fails and self.reduction is not None:
            target = self.fallen[role]
        elif move.to < 0:  # what it leads to depends on what is in the slot
            target = 0
        else:
            if move.issues is not None:
                group, entry = move.issues
                columns = (*columns[:group], (*columns[group], entry), *columns[group + 1 :])
            elif move.fails:
                columns = self._gone(columns)
            target = self.lane(role, move.to, columns)
        option = self._add(
            move.option, target, move.bits, move.a, move.b, move.c, move.striking, move.sees, row=move.row
        )
        if move.takes is not None:
            self._sources[option] = (role, self.lanes[role].index[local, columns])
            self._taking[option] = move.takes
        return option

    def _collectives(self, role: int, number: int) -> None:
        """Return what a rank is in: the earliest of each device stream, and the one that its host waits in."""
        local, columns = self.lanes[role].items[number]
        for group in self.network.groups.on_streams:
            self._device(role, number, group)
        info = self._lts[role].info(local)
        if info.op is not None and not info.terminal and not info.stalled:
            group = self.network.protocol.group_names.index(info.op.group)
            at = _earliest(columns[group])
            if 0 <= at == len(columns[group]) - 1:  # nothing that it issued before is unfinished
                option = self._add(Option.COMPLETE, number, 0, group, at, columns[group][at])
                self._sources[option] = (role, number)

    def _device(self, role: int, number: int, group: int) -> None:
        """Add the end of the earliest collective on the stream, unless the host waits in it."""
        local, columns = self.lanes[role].items[number]
        at = _earliest(columns[group])
        last = at == len(columns[group]) - 1
        if at < 0 or (last and self._facts[role][number][WAITS_IN] == group):
            return
        after = self.lane(role, local, _left(columns, group, at))
        self._add(Option.DEVICE, after, DROPS_FINISHED, group, at, columns[group][at])

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
        a: int = 0,
        b: int = 0,
        c: int = 0,
        striking: int = 0,
        seen: int = 0,
        row: Taken | None = None,
    ) -> int:
        if not self.network.protocol.group_names:
            bits &= ~DROPS_FINISHED
        self._options.append((option, target, bits, a, b, c, striking, seen))
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
        if memo == Memo.JOINED:
            made = self.network.contributions.items[other]
            assert made is not None
            return self.data(self.data.items[one] | {made.value})
        number, role = one >> 1, one & 1
        local, columns = self.lanes[role].items[number]
        if memo == Memo.SHIFTED:
            group, by = other >> 16, other & 0xFFFF
            return self.lane(role, local, (*columns[:group], columns[group][by:], *columns[group + 1 :]))
        by = other - BIAS
        moved = tuple(tuple(self.network.groups.rebased_entry(entry, by) for entry in column) for column in columns)
        return self.lane(role, self._lts[role].rebased(local, by), moved)

    def _completed(self, option: int, data: int) -> int:
        role, number = self._sources[option]
        local, columns = self.lanes[role].items[number]
        group, at = self._options[option][A], self._options[option][B]
        step = self._lts[role].complete(local, self.data.items[data])
        target = self.lane(role, step.target, _left(columns, group, at))
        bits = ADVANCES * (step.target != local) | DROPS_FINISHED | NORMALISES
        seen = self._menus.names_of(step.seen)
        return self._add(Option.FREE, target, bits, seen=seen, row=(role, *step.row.key))

    def _taken(self, option: int, value: int) -> int:
        role, number = self._sources[option]
        local, columns = self.lanes[role].items[number]
        channel = self.channels[self._options[option][C]]
        step = self._lts[role].take(local, self._taking[option].row, channel.items[value])
        return (
            -1 if step is None else self._option(role, local, columns, self._menus.made(Option.FREE, role, local, step))
        )

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
            self._strikes,
            np.array(self.network.groups.on_streams, np.int32),
        )

    def _write_down(self) -> None:
        """Write into the arrays what is new."""
        for role, facts in enumerate(self._facts):
            self._lane_array = _room(self._lane_array, len(facts), axis=1)
            self._column_array = _room(self._column_array, len(facts), axis=1)
            if fresh := self._fresh[role]:
                self._lane_array[role, fresh] = [facts[number] for number in fresh]
                fresh.clear()
            columns = [columns for _, columns in self.lanes[role].items[self._written[role] :]]
            if columns and columns[0]:
                deepest = max(len(column) for lane in columns for column in lane)
                self._column_array = _room(self._column_array, ENTRIES + deepest, axis=3)
                rows = [[_column_facts(column, deepest) for column in lane] for lane in columns]
                self._column_array[role, self._written[role] : len(facts), :, : ENTRIES + deepest] = rows
                for entry in {abs(entry) for lane in columns for column in lane for entry in column}:
                    self._know(entry)
            self._written[role] = len(facts)
        self._option_array = _room(self._option_array, len(self._options))
        self._taken_array = _room(self._taken_array, len(self._options))
        if new := self._options[self._written[2] :]:
            self._option_array[self._written[2] : len(self._options)] = new
        self._written[2] = len(self._options)

    def taken(self) -> frozenset[Taken]:
        """Return the rows that the search has taken."""
        options = np.flatnonzero(self._taken_array[: len(self._rows)]).tolist()
        return frozenset(row for option in options if (row := self._rows[option]) is not None)

    def _strike_table(self) -> Array:
        """Return, per kind without a row, and rank, the states of any rank in which it strikes."""
        network = self.network
        strikes = np.zeros((2, network.ranks), np.int32)
        for n, kind in enumerate((CRASH, STALL)):
            points = network.kinds.get(kind, frozenset())
            if points is None:
                strikes[n] = -1
            for point in points or ():
                if (point.rank or 0) < network.ranks:
                    strikes[n, point.rank or 0] |= 1 << self._points.index[point.state]
        return strikes

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
        driver, worker = (len(lanes.items).bit_length() + spare for lanes in self.lanes)
        slots = [max(1, (len(channel.items) - 1).bit_length()) for channel in self.channels]
        workers = self.network.ranks - 1
        faults = max(1, self.network.faults.bit_length())
        return [driver + more, *[worker] * workers, *[width for width in slots for _ in range(workers)], faults]

    def fits(self, into: Layout) -> bool:
        """Return whether every lane and value has room in its field."""
        return all(width <= int(mask).bit_length() for width, mask in zip(self._widths(0, 0), into.mask, strict=True))

    def start(self) -> list[int]:
        """Return the fields of the initial state."""
        return [*self.initial, *[0] * (len(self.channels) * (self.network.ranks - 1)), 0]

    def decode(self, fields: Sequence[int]) -> NetworkState:
        """Return the state that these fields stand for."""
        network = self.network
        lanes = [self.lanes[min(rank, 1)].items[fields[rank]] for rank in range(network.ranks)]
        queues = []
        for group in range(len(network.protocol.group_names)):
            columns = [columns[group] for _, columns in lanes]
            deep = max(map(len, columns))
            queues.append(network.queues(tuple(tuple(c[n] if n < len(c) else 0 for c in columns) for n in range(deep))))
        slots = [self.slot_item(n, value) if value else 0 for n, value in enumerate(fields[network.ranks : -1])]
        return NetworkState(tuple(local for local, _ in lanes), tuple(queues), tuple(slots), fields[-1])

    def slot_item(self, slot: int, value: int) -> int:
        """Return what a slot's field stands for, as `NetworkState.slots` numbers it."""
        channel = self.channels[slot // (self.network.ranks - 1)]
        return self.network.values(channel.items[value]) + 1

    def completed(self) -> Iterator[tuple[int, int, Data]]:
        """Yield (role, local, what was delivered) of every end of a collective that was met."""
        for key in self._memo[0][self._memo[0] >= 0].tolist():
            memo, option, data = memo_parts(key)
            if memo == Memo.COMPLETED:
                role, lane = self._sources[option]
                yield role, self.lanes[role].items[lane][0], self.data.items[data]

    def encode(self, state: NetworkState) -> list[int]:
        """Return the fields of a state; with symmetry or a reduction, of the one that stands for it."""
        network = self.network
        fields = []
        for rank, local in enumerate(state.locals):
            queues = (network.queues.items[queue] for queue in state.queues)
            columns = tuple(tuple(entry for instance in queue if (entry := instance[rank])) for queue in queues)
            fields.append(self.lane(min(rank, 1), local, columns))
        if self.reduction is not None and network.verdict(state)[0]:
            fields = [self.fallen[min(rank, 1)] for rank in range(network.ranks)]
        if self.symmetric:
            fields[1:] = sorted(fields[1:])
        workers = network.ranks - 1
        for n, value in enumerate(state.slots):
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


def indexes_a_worker(network: Network) -> str | None:
    """Return the row, collective or fault that tells one worker from another; None where they are interchangeable."""
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
