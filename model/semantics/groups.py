"""Keeps the queues of unfinished collectives: one for each list of ranks of each group.

Each collective in a queue holds one entry per member: 0 not issued, +c issued and waiting, -c issued and gone, where c
numbers the contribution. Queues are few: they are numbered, and what follows from one is worked out once. Members
are named by their seat, the place in the group's list, wherever a queue is asked about.

Left out: what a collective does between its two ends (`transport.py`), and where ranks are (`network.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import ModelError
from ..tables import Collective, Data, Protocol, Scope, lists_of
from . import transport
from .lts import Interner
from .once import once
from .properties import NO_MISPAIRING
from .transport import Contribution

Instance = tuple[int, ...]
Queue = tuple[Instance, ...]


class Exit(NamedTuple):
    """Says how a collective may complete for one rank: what it is given, and the queue when it has left."""

    op: Collective
    must: bool
    delivered: Data
    seen: tuple[str, ...]
    queue: int
    last: bool
    """Says whether the rank has issued nothing after it."""


class Groups:
    """Numbers the queues of a network, and says how they go on.

    On device `streams` (groups) a rank's device may complete something by itself.
    """

    def __init__(self, protocol: Protocol, scope: Scope, streams: Iterable[str] = ()) -> None:
        self.protocol = protocol
        self.contributions: Interner[Contribution | None] = Interner()
        self.contributions(None)
        self.queues: Interner[Queue] = Interner()
        self.queues(())
        self._known: dict[tuple[Any, ...], Any] = {}
        self.lists = tuple(_lists(protocol, scope))
        """Per queue its group, and the ranks in it."""
        ranks = range(scope.ranks)
        self.queue_of = [{group: n for n, (group, of) in enumerate(self.lists) if rank in of} for rank in ranks]
        """Per rank the queue of each group that it is in."""
        self.seat = [{n: of.index(rank) for n, (_, of) in enumerate(self.lists) if rank in of} for rank in ranks]
        """Per rank its place in each queue."""
        self.on_streams = [n for n, (group, _) in enumerate(self.lists) if group in streams]
        posting = {row.op.group for role in protocol.roles for row in role.rows if row.posts and row.op is not None}
        self.devices = [
            [n for n in seats if n in self.on_streams or self.lists[n][0] in posting] for seats in self.seat
        ]
        """Per rank the queues of which its device may complete something by itself."""

    def members_of(self, rank: int, operation: str) -> tuple[int, ...]:
        """Return the ranks of the group in which `rank` has a collective of this name; empty: all."""
        for op in self.protocol.schedule:
            group = self.queue_of[rank].get(op.group)
            if op.name == operation and group is not None:
                members = self.lists[group][1]
                return () if len(members) == len(self.seat) else members
        return ()

    def all_left(self, queues: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Return the queues with a rank no longer in any collective."""
        seats = self.seat[rank]
        return tuple(self.leave(q, seats[n]) if n in seats else q for n, q in enumerate(queues))

    def ranks_at(self, group: int, seats: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ranks on these seats of a queue."""
        members = self.lists[group][1]
        return tuple(members[seat] for seat in seats)

    @once
    def exit(self, queue: int, rank: int) -> Exit | None:
        """Return the exit from the earliest collective of this queue that `rank` is in, if it may complete for it."""
        instances = self.queues.items[queue]
        at = next((n for n, instance in enumerate(instances) if instance[rank] > 0), None)
        if at is None:
            return None
        mine = self.contributions.items[instances[at][rank]]
        if mine is None:
            return None
        op = mine.op
        issued = [self.contributions.items[abs(entry)] for entry in instances[at]]
        if not transport.may_complete(op, rank, issued):
            return None
        if not transport.in_reach(at, [_position(instances, member) for member in range(len(issued))]):
            return None
        left = with_item(instances, at, with_item(instances[at], rank, -instances[at][rank]))
        last = at == _position(instances, rank) - 1
        seen = (NO_MISPAIRING.name,) if transport.mispaired(op, issued) else ()
        return Exit(op, transport.must_complete(op, issued), given(op, rank, issued), seen, self.queues(left), last)

    def rebased(self, queues: tuple[int, ...], by: int) -> tuple[int, ...]:
        """Return the queues with their ids moved on by `by`."""
        return tuple(self._rebased(queue, by) for queue in queues)

    @once
    def _rebased(self, queue: int, by: int) -> int:
        instances = self.queues.items[queue]
        return self.queues(tuple(tuple(self.rebased_entry(entry, by) for entry in i) for i in instances))

    def rebased_entry(self, entry: int, by: int) -> int:
        """Return the same entry with its ids moved on by `by`."""
        contribution = self.contributions.items[abs(entry)]
        if contribution is None or self.protocol.frame is None:
            return entry
        value = self.protocol.frame.rebase(contribution.value, by)
        number = self.contributions(contribution._replace(value=value))
        return -number if entry < 0 else number

    @once
    def issue(self, queue: int, rank: int, contribution: int, size: int) -> int:
        """Return the queue with one more contribution, of a group of this size."""
        instances = self.queues.items[queue]
        at = _position(instances, rank)
        instance = instances[at] if at < len(instances) else (0,) * size
        return self.queues((*instances[:at], with_item(instance, rank, contribution), *instances[at + 1 :]))

    @once
    def leave(self, queue: int, rank: int) -> int:
        """Return the queue with the rank no longer in any collective; what it had put in stays there, and is lost."""
        instances = self.queues.items[queue]
        return self.queues(tuple(with_item(i, rank, self.lost(i[rank])) if i[rank] > 0 else i for i in instances))

    def lost(self, entry: int) -> int:
        """Return what an entry becomes when its member dies inside."""
        contribution = self.contributions.items[entry]
        return -entry if contribution is None else -self.contributions(contribution._replace(lost=True))

    @once
    def without(self, queue: int, gone: tuple[bool, ...]) -> int:
        """Return the queue less what every member has left, or has ended without."""
        instances = self.queues.items[queue]
        start = 0
        while start < len(instances) and all(e < 0 or (e == 0 and gone[r]) for r, e in enumerate(instances[start])):
            start += 1
        return self.queues(instances[start:])

    def missing_of(self, queues: tuple[int, ...], rank: int, group: int) -> tuple[int, ...]:
        """Return the ranks that `rank` waits for in the earliest collective of a queue that it is in."""
        return self.ranks_at(group, self._missing_from(queues[group], self.seat[rank][group]))

    @once
    def _missing_from(self, queue: int, rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for in the earliest collective of this queue that it is in."""
        mine = (i for i in self.queues.items[queue] if i[rank] > 0)
        return next((self._missing_in(i, rank) for i in mine), ())

    def _missing_in(self, instance: Instance, rank: int) -> tuple[int, ...]:
        """Return the members that `rank` waits for in a collective that it has issued."""
        mine = self.contributions.items[abs(instance[rank])]
        if mine is None:
            return ()
        needed = transport.depends_on(mine.op, rank, len(instance))
        missing = tuple(m for m in needed if m != rank and instance[m] == 0)
        # all those it depends on have issued: it waits for whoever has not, or for an equal signature
        late = missing or tuple(m for m in range(len(instance)) if m != rank and instance[m] == 0)
        return late or tuple(
            m
            for m in range(len(instance))
            if (c := self.contributions.items[abs(instance[m])])
            and (c.lost or not transport.same_on_the_wire(c.op, mine.op))
        )


def given(op: Collective, seat: int, issued: Sequence[Contribution | None]) -> Data:
    """Return what a member is given: of one that mispairs, where nothing can be made of the values, the values."""
    try:
        return transport.delivered(op, seat, issued)
    except ModelError:
        if not transport.mispaired(op, issued):
            raise
        return frozenset(other.value for other in issued if other is not None)


def _lists(protocol: Protocol, scope: Scope) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each list of ranks of each group. Raise ModelError for a rank in two lists, or a root that is in none."""
    declared = {group.name: group for group in protocol.groups}
    for name in protocol.group_names:
        if name not in declared:
            yield name, tuple(range(scope.ranks))
            continue
        where, seen = f"{protocol.name}, group `{name}`", set[int]()
        for members in lists_of(declared[name], scope, where):
            for rank in members:
                if rank in seen:
                    raise ModelError(f"rank{rank} is in it twice", where=where, do="its lists have no rank in common")
                seen.add(rank)
            for op in protocol.schedule:
                if op.group == name and op.root is not None and not 0 <= op.root < len(members):
                    what = f"the root of `{op.name}` is member {op.root}, of {len(members)}"
                    raise ModelError(what, where=where, do="a root is a place in the group's list, from 0")
            if members:
                yield name, members


def _position(instances: Queue, rank: int) -> int:
    """Return how many collectives of the queue `rank` has issued."""
    for at, instance in enumerate(instances):
        if instance[rank] == 0:
            return at
    return len(instances)


def with_item(items: tuple[Data, ...], at: int, item: Data) -> tuple[Data, ...]:
    """Return `items` with one of them replaced."""
    return (*items[:at], item, *items[at + 1 :])
