"""A network's states as small integers in fixed fields, and what follows from them as arrays, for the fast engines.

A *lane* is where one rank is: its local (`..lts`) and what it has put into each unfinished collective. A state is
one lane a rank, the slots of the channels and the faults spent. Nearly every move changes one lane alone, so a lane
is worked out once, when a search first meets it: its options, in the order of `Network.successors`. What an option
also depends on (who has issued, what was delivered, what is in a slot) is either a rule on the ranks' entries, as in
`..transport`, or an outcome that is looked up; one that is not there yet is *missed*, and worked out by `resolve`.

What stands where in the arrays says `facts.py`. Left out: the search itself (`compiled.py`, `vectors.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import UsageError
from ..lts import CRASHED, Interner, Lts, Step
from ..network import CRASH, STALL, Network, NetworkState
from ..properties import NO_MISPAIRING
from ..tables import By, Data, Kind, Meet, Put, Take
from .facts import (
    ADVANCES,
    ALL,
    BASE,
    BIAS,
    CLOSING,
    COSTS,
    COUNTER,
    DETECTS,
    END,
    ENTRIES,
    FAILED,
    FIRST,
    FLAGS,
    HASTY,
    LANE_FACTS,
    NORMALISES,
    ORDINARY,
    OWN,
    POINTS,
    ROOT,
    STALLED,
    TERMINAL,
    TIDIES,
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
    memo_key,
    memo_place,
)
from .reduction import Reduction

Columns = tuple[tuple[int, ...], ...]
"""Per group what a rank has put into its unfinished collectives: +c issued and waiting, -c issued and gone."""

MAX_RANKS = 32
"""A rank is two bits of a mask."""
MAX_SORTED = 16
"""Workers that can be sorted: a place is four bits."""
SPARE_BITS = 8
"""So many bits a lane may have to spare."""


class Space:
    """A network, unfolded into lanes as far as a search asks for it. `symmetric`: workers are interchangeable."""

    def __init__(self, network: Network, *, symmetric: bool = False, reduction: Reduction | None = None) -> None:
        if network.ranks > MAX_RANKS:
            raise UsageError(f"{network.ranks} ranks are too many to search", do=f"take at most {MAX_RANKS}")
        self.network, self.symmetric, self.reduction = network, symmetric, reduction
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
        self._wires: Interner[tuple[Any, ...]] = Interner()
        self._names: Interner[str] = Interner()
        self._points: Interner[str] = Interner()
        for kind in (CRASH, STALL):
            for point in network.kinds.get(kind) or ():
                self._points(point.state)
        self._sources: dict[int, tuple[int, int]] = {}
        self._taking: dict[int, Step] = {}
        groups = len(network.protocol.groups)
        # lists, which are quick to add to; what is new in them goes into arrays when an engine asks for those
        self._facts: tuple[list[list[int]], list[list[int]]] = ([], [])
        self._fresh: tuple[list[int], list[int]] = ([], [])
        self._options: list[tuple[int, ...]] = []
        self._lane_array = np.zeros((2, 256, LANE_FACTS), np.int32)
        self._column_array = np.zeros((2, 256, max(groups, 1), ENTRIES + 4), np.int32)
        self._option_array = np.zeros((1024, 8), np.int64)
        self._written = [0, 0, 0]
        """How many columns of either role, and options, are in their arrays."""
        self._contributions = np.zeros((64, 8), np.int32)
        self._known_contributions = 1
        self.most_options = 0
        self._memo = (np.full(1024, -1, np.int64), np.zeros(1024, np.int32))
        self._memo_count = 0
        self._strikes = self._strike_table()
        self.fallen = [-1, -1]
        """With a reduction, per role: the lane of every rank once any has failed or stalled."""
        if reduction is not None:
            self.fallen = [self.lane(n, self.lts(n).crashed(self.lts(n).initial), ((),) * groups) for n in (0, 1)]
        self.initial = tuple(
            self.lane(min(rank, 1), number, ((),) * groups) for rank, number in enumerate(network.initial().locals)
        )

    # ── lanes ───────────────────────────────────────────────────────────────────────────────────────

    def lane(self, role: int, local: int, columns: Columns) -> int:
        """The number of a lane, its facts written down when it is new."""
        lanes = self.lanes[role]
        number = lanes.index.get((local, columns))
        if number is not None:
            return number
        number = lanes((local, columns))
        self._facts[role].append(self._describe(role, local))
        self._fresh[role].append(number)
        return number

    def _describe(self, role: int, local: int) -> list[int]:
        lts = self.lts(role)
        info = lts.info(local)
        closing = role == 0 and info.state != CRASHED and lts.role.by_name[info.state].phase in ("shutdown", "stopped")
        state = self._points.index.get(info.state)
        facts = [0] * LANE_FACTS
        facts[FLAGS] = TERMINAL * info.terminal | FAILED * info.failed | STALLED * info.stalled | CLOSING * closing
        facts[COUNTER] = info.counter
        facts[BASE] = lts.base(local) if role == 0 else 0
        facts[POINTS] = 0 if state is None else 1 << state
        facts[FIRST] = -1
        facts[WAITS_IN] = -1 if info.op is None else self.network.protocol.groups.index(info.op.group)
        return facts

    def lts(self, role: int) -> Lts:
        return self.network.lts[min(role, self.network.ranks - 1)]

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
        hasty = self.reduction is not None and self.reduction.is_hasty(role, self.lanes[role].items[number][0])
        bounds = [len(self._options)]
        for part in (self._own_steps, self._faults, self._detection, self._strike):
            if not hasty or part == self._own_steps:
                part(role, number)
            bounds.append(len(self._options))
        facts = self._facts[role][number]
        facts[FIRST : END + 1] = bounds
        facts[FLAGS] |= HASTY * hasty
        self._fresh[role].append(number)
        self.most_options = max(self.most_options, bounds[-1] - bounds[0])

    def _own_steps(self, role: int, number: int) -> None:
        network, lts = self.network, self.lts(role)
        local, columns = self.lanes[role].items[number]
        info = lts.info(local)
        for group in network.stream_groups:
            self._device(role, number, group)
        if info.terminal:
            return
        if info.stalled:
            self._add(Option.FREE, self.lane(role, lts.stalled(local, False), columns), ADVANCES)
            if network.detection:
                self._add(Option.FREE, self._dead(role, local, columns), ADVANCES | DETECTS | TIDIES)
            return
        if info.op is not None:
            self._host(role, number, network.protocol.groups.index(info.op.group))
        outstanding = any(entry > 0 for group in network.stream_groups for entry in columns[group])
        for step in lts.menu(local).own:
            if not (step.row.syncs and outstanding):
                self._own(role, local, columns, step)

    def _faults(self, role: int, number: int) -> None:
        local, columns = self.lanes[role].items[number]
        info = self.lts(role).info(local)
        if info.terminal or info.stalled:
            return
        for step in self.lts(role).menu(local).faults:
            points = self.network.kinds.get(step.row.fault, frozenset())
            here = [
                rank
                for rank in range(self.network.ranks)
                if points is None or any(p.state == info.state and p.rank in (None, rank) for p in points)
            ]
            if here:
                self._step(Option.FAULT, role, local, columns, step, striking=sum(1 << rank for rank in here))

    def _detection(self, role: int, number: int) -> None:
        local, columns = self.lanes[role].items[number]
        info = self.lts(role).info(local)
        if self.network.detection and not info.terminal and not info.stalled:
            for step in self.lts(role).menu(local).detects:
                self._step(Option.DETECT, role, local, columns, step)

    def _strike(self, role: int, number: int) -> None:
        local, columns = self.lanes[role].items[number]
        info = self.lts(role).info(local)
        if info.terminal or info.stalled:
            return
        if CRASH in self.network.kinds:
            self._add(Option.CRASH, self._dead(role, local, columns), ADVANCES | TIDIES | COSTS)
        if STALL in self.network.kinds:
            stalled = self.lts(role).stalled(local, True)
            target = self.lane(role, stalled, columns) if self.reduction is None else self.fallen[role]
            self._add(Option.STALL, target, COSTS)

    def _device(self, role: int, number: int, group: int) -> None:
        """The earliest collective on the stream, unless the host waits in it."""
        local, columns = self.lanes[role].items[number]
        at = next((n for n, entry in enumerate(columns[group]) if entry > 0), None)
        if at is None:
            return
        last = at == len(columns[group]) - 1
        if last and self._facts[role][number][WAITS_IN] == group:
            return
        after = self.lane(role, local, _left(columns, group, at))
        self._add(Option.DEVICE, after, TIDIES, group, at, columns[group][at])

    def _host(self, role: int, number: int, group: int) -> None:
        """The collective that the host waits in, once nothing that it issued before is unfinished."""
        columns = self.lanes[role].items[number][1]
        at = next((n for n, entry in enumerate(columns[group]) if entry > 0), None)
        if at is not None and at == len(columns[group]) - 1:
            option = self._add(Option.COMPLETE, number, 0, group, at, columns[group][at])
            self._sources[option] = (role, number)

    def _own(self, role: int, local: int, columns: Columns, step: Step) -> None:
        gate = step.row.gate
        if isinstance(gate, Meet):
            self._step(Option.MEET, role, local, columns, step)
        elif isinstance(gate, Put | Take) and step.slot is not None:
            channel = self.network.protocol.slots.index(step.slot[0])
            base = channel * (self.network.ranks - 1)
            if isinstance(gate, Put):
                value = self.channels[channel](step.data)
                self._step(Option.PUT, role, local, columns, step, a=base, b=step.slot[1], c=value)
            else:
                option = self._add(Option.TAKE, 0, 0, base, step.slot[1], channel)
                self._sources[option] = (role, self.lanes[role].index[local, columns])
                self._taking[option] = step
        else:
            self._step(Option.FREE, role, local, columns, step)

    def _step(
        self,
        option: Option,
        role: int,
        local: int,
        columns: Columns,
        step: Step,
        *,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        striking: int = 0,
    ) -> int:
        """An option that takes `step`: see `Network._take`."""
        info = self.lts(role).info(step.target)
        if step.contribution is not None:
            group = self.network.protocol.groups.index(step.contribution.op.group)
            entry = self.network.contributions(step.contribution)
            columns = (*columns[:group], (*columns[group], entry), *columns[group + 1 :])
        by = step.row.by
        bits = (
            ORDINARY * (by not in (By.FAULT, By.DETECTION))
            | DETECTS * (by is By.DETECTION)
            | ADVANCES * (step.target != local)
            | COSTS * (by is By.FAULT)
            | TIDIES * info.terminal
            | NORMALISES
        )
        fails = info.failed and step.contribution is None
        target = self._failed(role, step.target, columns) if fails else self.lane(role, step.target, columns)
        return self._add(option, target, bits, a, b, c, striking, self._names_of(step.seen))

    def _names_of(self, seen: Iterable[str]) -> int:
        return sum(1 << bit for bit in {self.seen_names(name) for name in seen})

    def _dead(self, role: int, local: int, columns: Columns) -> int:
        return self._failed(role, self.lts(role).crashed(local), columns)

    def _failed(self, role: int, local: int, columns: Columns) -> int:
        """The lane of a rank that has failed: with a reduction the one that all then share."""
        return self.lane(role, local, self._gone(columns)) if self.reduction is None else self.fallen[role]

    def _gone(self, columns: Columns) -> Columns:
        """What a rank leaves behind that is no longer in any collective."""
        if not any(map(any, columns)):
            return columns
        return tuple(tuple(self.network.lost(entry) if entry > 0 else entry for entry in column) for column in columns)

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
    ) -> int:
        if not self.network.protocol.groups:
            bits &= ~TIDIES
        self._options.append((option, target, bits, a, b, c, striking, seen))
        return len(self._options) - 1

    # ── outcomes ────────────────────────────────────────────────────────────────────────────────────

    def resolve(self, memo: int, one: int, other: int) -> None:
        """Work out what a search missed: see `Memo` for what `one` and `other` are."""
        if memo == Memo.EXPANDED:
            if self._facts[other][one][FIRST] < 0:
                self.expand(other, one)
            return
        key = memo_key(memo, one, other)
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
        moved = tuple(tuple(self.network.rebased_entry(entry, by) for entry in column) for column in columns)
        return self.lane(role, self.lts(role).rebased(local, by), moved)

    def _completed(self, option: int, data: int) -> int:
        role, number = self._sources[option]
        local, columns = self.lanes[role].items[number]
        group, at = self._options[option][A], self._options[option][B]
        step = self.lts(role).complete(local, self.data.items[data])
        target = self.lane(role, step.target, _left(columns, group, at))
        bits = ADVANCES * (step.target != local) | DETECTS * (step.row.by is By.DETECTION) | TIDIES | NORMALISES
        return self._add(Option.FREE, target, bits, seen=self._names_of(step.seen))

    def _taken(self, option: int, value: int) -> int:
        role, number = self._sources[option]
        local, columns = self.lanes[role].items[number]
        channel = self.channels[self._options[option][C]]
        step = self.lts(role).take(local, self._taking[option].row, channel.items[value])
        return -1 if step is None else self._step(Option.FREE, role, local, columns, step)

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
        """Everything worked out so far."""
        self._write_down()
        return Tables(
            self._lane_array,
            self._column_array,
            self._option_array,
            self._contributions,
            *self._memo,
            self._strikes,
            np.array(self.network.stream_groups, np.int32),
        )

    def _write_down(self) -> None:
        """Into the arrays with what is new."""
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
        if new := self._options[self._written[2] :]:
            self._option_array[self._written[2] : len(self._options)] = new
        self._written[2] = len(self._options)

    def _strike_table(self) -> Array:
        """Per kind without a row, and rank: the states of any rank in which it strikes."""
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
        """How many bits each field takes: lanes, slots, faults. There is room to grow where that costs no word."""
        words = layout(self._widths(0, 0)).words
        for spare in range(SPARE_BITS, -1, -1):
            for more in range(SPARE_BITS - spare, -1, -1):
                if layout(wide := self._widths(spare, more)).words == words:
                    return wide
        raise AssertionError("no spare bits are always in reach")

    def _widths(self, spare: int, more: int) -> list[int]:
        """Bits of each field, with so many to spare for each lane, and `more` for rank0's, which become the most."""
        driver, worker = (len(lanes.items).bit_length() + spare for lanes in self.lanes)
        slots = [max(1, (len(channel.items) - 1).bit_length()) for channel in self.channels]
        workers = self.network.ranks - 1
        faults = max(1, self.network.faults.bit_length())
        return [driver + more, *[worker] * workers, *[width for width in slots for _ in range(workers)], faults]

    def fits(self, into: Layout) -> bool:
        """Whether every lane and value has room in its field."""
        return all(width <= int(mask).bit_length() for width, mask in zip(self._widths(0, 0), into.mask, strict=True))

    def start(self) -> list[int]:
        """The fields of the initial state."""
        return [*self.initial, *[0] * (len(self.channels) * (self.network.ranks - 1)), 0]

    def decode(self, fields: Sequence[int]) -> NetworkState:
        """The state that these fields stand for."""
        network = self.network
        lanes = [self.lanes[min(rank, 1)].items[fields[rank]] for rank in range(network.ranks)]
        queues = []
        for group in range(len(network.protocol.groups)):
            columns = [columns[group] for _, columns in lanes]
            deep = max(map(len, columns))
            queues.append(network.queues(tuple(tuple(c[n] if n < len(c) else 0 for c in columns) for n in range(deep))))
        slots = [self.slot_item(n, value) if value else 0 for n, value in enumerate(fields[network.ranks : -1])]
        return NetworkState(tuple(local for local, _ in lanes), tuple(queues), tuple(slots), fields[-1])

    def slot_item(self, slot: int, value: int) -> int:
        """What a slot's field stands for, as `NetworkState.slots` numbers it."""
        channel = self.channels[slot // (self.network.ranks - 1)]
        return self.network.values(channel.items[value]) + 1

    def completed(self) -> Iterator[tuple[int, int, Data]]:
        """(role, local, what was delivered) of every end of a collective that was met."""
        for key in self._memo[0][self._memo[0] >= 0].tolist():
            if key >> 60 == Memo.COMPLETED:
                role, lane = self._sources[key >> 28 & 0xFFFFFFFF]
                yield role, self.lanes[role].items[lane][0], self.data.items[key & 0xFFFFFFF]

    def encode(self, state: NetworkState) -> list[int]:
        """The fields of a state; with symmetry or a reduction, of the one that stands for it."""
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
    """The array, or a longer one of twice the length, with room for so many along an axis."""
    while array.shape[axis] < size:
        array = np.concatenate([array, np.zeros_like(array)], axis=axis)
    return array


def _column_facts(column: Sequence[int], deepest: int) -> list[int]:
    earliest = next((n for n, entry in enumerate(column) if entry > 0), -1)
    return [len(column), earliest, *column, *[0] * (deepest - len(column))]


def _left(columns: Columns, group: int, at: int) -> Columns:
    """The columns of a rank that has left collective `at` of a group."""
    column = columns[group]
    return (*columns[:group], (*column[:at], -column[at], *column[at + 1 :]), *columns[group + 1 :])


def indexes_a_worker(network: Network) -> str | None:
    """The row, collective or fault that tells one worker from another; None where they are interchangeable."""
    for role in network.protocol.roles:
        for row in role.rows:
            if isinstance(row.gate, Put | Take) and row.gate.worker is not None:
                return f"row {row} of {role.name} picks a worker for slot `{row.gate.slot.name}`"
    for op in network.protocol.schedule:
        if op.root not in (None, 0):
            return f"collective `{op.name}` has rank{op.root} as its root"
    for kind, points in network.kinds.items():
        for point in points or ():
            if point.rank:
                return f"fault {kind}@{point} names rank{point.rank}"
    return None
