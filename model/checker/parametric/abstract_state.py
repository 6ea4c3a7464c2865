"""Defines lanes, and the one form in which a state of any number of workers is written down.

A *lane* is where a rank is and what it has put into each unfinished collective. An abstract state keeps rank0's lane,
and of the workers which lanes are occupied, not by how many. Its normal form counts ids from rank0's, drops
collectives that everybody has left, and keeps broadcasts that differ in nothing but their ids as one *heap*.

Left out: what may happen next (`abstract_network.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...semantics.lts import Info, Interner, Lts, Step
from ...semantics.transport import Contribution
from ...tables import Collective, Data, Kind, Protocol, Scope
from ..reference import Taken

DRIVER, WORKER = 0, 1
"""The two roles, as indices."""

Column = tuple[int, ...]
"""Holds what one rank has put into the unfinished collectives of a group: +c waiting in it, -c it has left."""


class Lane(NamedTuple):
    """Says where a rank is (a number of its `Lts`), and per group its column."""

    local: int
    columns: tuple[Column, ...]


class Lost(NamedTuple):
    """Holds what a dead worker has put into the collective at a place of a group's queue."""

    group: int
    at: int
    entry: int


class AbstractState(NamedTuple):
    """Holds a network of any size at one moment.

    Lanes are numbered, each role's by itself.
    """

    driver: int
    occupied: frozenset[int]
    """The lanes that some live worker is in, among those that no fault has struck."""
    singles: tuple[int, ...]
    """The lane of each live worker that a fault has struck, sorted: these are counted."""
    dead: frozenset[Lost]
    """Holds what dead workers have put in and no other rank has put in likewise."""
    heaps: tuple[tuple[int, ...], ...]
    """Per group: the places that stand for one or more broadcasts, of which a lane before it has the last to go,
    and perhaps others."""
    failed: bool
    """Some rank has failed or died."""
    faults: int

    def workers(self) -> frozenset[int]:
        return self.occupied.union(self.singles)


class Lanes:
    """Numbers the lanes of a protocol, and brings states of them into normal form."""

    def __init__(self, protocol: Protocol, scope: Scope, *, stream: bool = False) -> None:
        self.protocol, self.frame = protocol, protocol.frame
        driver = Lts(protocol, protocol.driver, scope, stream=stream)
        self.lts = (driver, Lts(protocol, protocol.worker, scope, stream=stream))
        self.group = {name: n for n, name in enumerate(protocol.group_names)}
        self.groups = range(len(self.group))
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self.numbers: tuple[Interner[Lane], Interner[Lane]] = (Interner(), Interner())
        self._steps: dict[int, int] = {}
        self._entries: dict[tuple[int, int], int] = {}
        self._rebased: dict[tuple[int, int, int], int] = {}
        self._cut: dict[tuple[int, int, int], int] = {}

    # ── one lane ────────────────────────────────────────────────────────────────────────────────────

    def lane(self, role: int, number: int) -> Lane:
        return self.numbers[role].items[number]

    def start(self, role: int) -> int:
        """Return the lane of a rank at the start of its table."""
        return self.numbers[role](Lane(self.lts[role].initial, ((),) * len(self.group)))

    def info(self, role: int, number: int) -> Info:
        return self.lts[role].info(self.lane(role, number).local)

    def entry(self, role: int, number: int, group: int, at: int) -> int:
        """Return what the lane has at this place of the group's queue; 0 if it has not issued that yet."""
        column = self.lane(role, number).columns[group]
        return column[at] if at < len(column) else 0

    def put(self, role: int, number: int, local: int, group: int | None = None, column: Column = ()) -> int:
        """Return the lane at another local, and with another column of one group if any."""
        columns = self.lane(role, number).columns
        if group is not None:
            columns = (*columns[:group], column, *columns[group + 1 :])
        return self.numbers[role](Lane(local, columns))

    def taken(self, role: int, step: Step) -> tuple[Taken, ...]:
        """Return the row that a step takes to its end, if it does."""
        waits = self.lts[role].locals.items[step.target].pending
        return () if waits else ((role, *step.row.key),)

    def gone(self, local: int, columns: Iterable[Column]) -> int:
        """Return rank0's lane once it has failed at `local`: what it had put in stays there."""
        left = tuple(tuple(-abs(entry) for entry in column) for column in columns)
        return self.numbers[DRIVER](Lane(self.lts[DRIVER].crashed(local), left))

    def op(self, entry: int) -> Collective:
        """Return the collective that a member took it for when it made this entry."""
        return self._contribution(entry).op

    def _contribution(self, entry: int) -> Contribution:
        found = self.contributions.items[abs(entry)]
        if found is None:
            raise ValueError("nothing was put in")
        return found

    # ── ids ─────────────────────────────────────────────────────────────────────────────────────────

    def has_ids(self, value: Data) -> bool:
        """Return whether ids stand in a value, so that it means something only beside others of its time."""
        return self.frame is not None and self.frame.rebase(value, 1) != value

    def step(self, entry: int) -> int:
        """Return by how much the ids of what was put in rise from one such broadcast to the next; 0 if it has none."""
        found = self._steps.get(entry)
        if found is None:
            found = self._steps[entry] = int(self.has_ids(self._contribution(entry).value))
        return found

    def moved_on(self, entry: int, by: int) -> int:
        """Return the entry with its ids moved on."""
        found = self._entries.get((entry, by))
        if found is None:
            found = entry
            if entry and self.frame is not None:
                old = self._contribution(entry)
                number = self.contributions(old._replace(value=self.frame.rebase(old.value, by)))
                found = -number if entry < 0 else number
            self._entries[entry, by] = found
        return found

    def rebased(self, role: int, number: int, by: int) -> int:
        """Return the lane with all its ids moved on."""
        found = self._rebased.get((role, number, by))
        if found is None:
            lane = self.lane(role, number)
            columns = tuple(tuple(self.moved_on(e, by) for e in column) for column in lane.columns)
            found = self.numbers[role](Lane(self.lts[role].rebased(lane.local, by), columns))
            self._rebased[role, number, by] = found
        return found

    # ── normal form ─────────────────────────────────────────────────────────────────────────────────

    def normal(self, state: AbstractState) -> AbstractState:
        """Return the same state in the one form in which it is kept."""
        by = -self.lts[DRIVER].base(self.lane(DRIVER, state.driver).local)
        if by:
            state = self.rebase(state, by)
        for group in self.groups:
            while self._over(state, group):
                state = self._drop(state, group)
            at = 0
            while at + 1 < len(self.lane(DRIVER, state.driver).columns[group]):
                if self._folds(state, group, at):
                    state = self._fold(state, group, at)
                else:
                    at += 1
        if state.dead:
            state = state._replace(dead=frozenset(d for d in state.dead if not self._shown(state, d)))
        return state

    def rebase(self, state: AbstractState, by: int) -> AbstractState:
        """Return the state with all its ids moved on."""
        return state._replace(
            driver=self.rebased(DRIVER, state.driver, by),
            occupied=frozenset(self.rebased(WORKER, n, by) for n in state.occupied),
            singles=tuple(sorted(self.rebased(WORKER, n, by) for n in state.singles)),
            dead=frozenset(d._replace(entry=self.moved_on(d.entry, by)) for d in state.dead),
        )

    def _over(self, state: AbstractState, group: int) -> bool:
        """Return whether every live rank has left the group's first collective, or will never issue it."""
        column = self.lane(DRIVER, state.driver).columns[group]
        if column and column[0] > 0:
            return False
        begun = column or any(d.group == group for d in state.dead)
        if not begun and not any(self.lane(WORKER, n).columns[group] for n in state.workers()):
            return False
        return self._out(DRIVER, state.driver, group) and all(self._out(WORKER, n, group) for n in state.workers())

    def _out(self, role: int, number: int, group: int) -> bool:
        first = self.entry(role, number, group, 0)
        return first < 0 or (first == 0 and self.info(role, number).terminal)

    def _drop(self, state: AbstractState, group: int) -> AbstractState:
        """Return the state without the first collective of a group."""
        dead = (d._replace(at=d.at - 1) if d.group == group else d for d in state.dead)
        heaps = tuple(at - 1 for at in state.heaps[group] if at)
        return state._replace(
            driver=self._without_first(DRIVER, state.driver, group),
            occupied=frozenset(self._without_first(WORKER, n, group) for n in state.occupied),
            singles=tuple(sorted(self._without_first(WORKER, n, group) for n in state.singles)),
            dead=frozenset(d for d in dead if d.at >= 0),
            heaps=(*state.heaps[:group], heaps, *state.heaps[group + 1 :]),
        )

    def _without_first(self, role: int, number: int, group: int) -> int:
        found = self._cut.get((role, number, group))
        if found is None:
            lane = self.lane(role, number)
            found = self._cut[role, number, group] = self.put(role, number, lane.local, group, lane.columns[group][1:])
        return found

    def _shown(self, state: AbstractState, dead: Lost) -> bool:
        """Return whether what a dead worker put in changes nothing, as another rank has put in the same.

        What a collective does depends on the set of what is in it. To rank0's broadcast a worker puts in no more than
        its name.
        """
        group, at, entry = dead
        root = self.entry(DRIVER, state.driver, group, at)
        if abs(root) == entry:
            return True
        if root < 0 and self.op(root).kind is Kind.BROADCAST and self.op(root) == self.op(entry):
            return True
        return any(abs(self.entry(WORKER, n, group, at)) == entry for n in state.workers())

    # ── heaps ───────────────────────────────────────────────────────────────────────────────────────

    def _folds(self, state: AbstractState, group: int, at: int) -> bool:
        """Return whether the broadcasts at this place and the next are one heap: rank0 has left both, the second is the
        first with its ids one on, everybody means the same by them, and whoever has the first to go can do nothing
        before it for which its ids would have to be right."""
        first, second = self.lane(DRIVER, state.driver).columns[group][at : at + 2]
        if first > 0 or second > 0 or self.op(first).kind is not Kind.BROADCAST:
            return False
        by = self.step(first)
        if self.moved_on(first, by) != second:
            return False
        name = self.op(first).name
        if any(d.group == group and at <= d.at <= at + 1 and self.op(d.entry).name != name for d in state.dead):
            return False
        for number in state.workers():
            column = self.lane(WORKER, number).columns[group]
            if any(self.op(e).name != name for e in column[at : at + 2]):
                return False
            if by and before(column, at) and not self._may_be_moved(state.driver, number, group, at):
                return False
        return True

    def _may_be_moved(self, driver: int, number: int, group: int, at: int) -> bool:
        columns = self.lane(WORKER, number).columns
        todo = self.lane(DRIVER, driver).columns[group][len(columns[group]) : at]
        if any(self.op(e).kind is not Kind.BROADCAST for e in todo):
            return False
        return not self.shows_ids(number, group)

    def shows_ids(self, number: int, group: int) -> bool:
        """Return whether a worker waits in a collective of another group into which it has put ids."""
        columns = self.lane(WORKER, number).columns
        waits = (e for g in self.groups if g != group for e in columns[g] if e > 0)
        return any(self.step(e) for e in waits)

    def _fold(self, state: AbstractState, group: int, at: int) -> AbstractState:
        """Return the state with the broadcast at this place and the next as one, of which the second stays.

        Whoever had the first to go is moved on as if it had had it, and so is all that lies before.
        """
        driver = self.lane(DRIVER, state.driver)
        by = self.step(driver.columns[group][at])
        column = self._folded(driver.columns[group], at, by)
        dead = {d for d in state.dead if d.group != group}
        dead |= {d._replace(entry=self.moved_on(d.entry, by)) for d in state.dead if d.group == group and d.at < at}
        dead |= {d._replace(at=d.at - 1) for d in state.dead if d.group == group and d.at > at}
        heaps = sorted({at, *(heap - (heap > at) for heap in state.heaps[group])})
        return state._replace(
            driver=self.put(DRIVER, state.driver, driver.local, group, column),
            occupied=frozenset(self._fold_lane(n, group, at, by) for n in state.occupied),
            singles=tuple(sorted(self._fold_lane(n, group, at, by) for n in state.singles)),
            dead=frozenset(dead),
            heaps=(*state.heaps[:group], tuple(heaps), *state.heaps[group + 1 :]),
        )

    def _fold_lane(self, number: int, group: int, at: int, by: int) -> int:
        lane = self.lane(WORKER, number)
        column = lane.columns[group]
        if not before(column, at):
            return self.put(WORKER, number, lane.local, group, self._folded(column, at, by))
        local = self.lts[WORKER].rebased(lane.local, by)
        return self.put(WORKER, number, local, group, tuple(self.moved_on(e, by) for e in column))

    def _folded(self, column: Column, at: int, by: int) -> Column:
        return (*(self.moved_on(e, by) for e in column[:at]), *column[at + 1 :])


def before(column: Column, at: int) -> bool:
    """Return whether a rank with this column has the collective at this place still to go, or waits in it."""
    return len(column) <= at or column[at] > 0
