"""Holds what ranks that run the same program have shown against one that does not do what others wait for.

In a job whose ranks run one program, a sibling group (same description, same size) does at the same sequence number
what this group does. Two questions are answered by such witnesses, and by them alone:

- *Is a rank held up?* It has not issued what others wait for, and it has operations of its own that did not complete.
  If a witness, with the very same operations pending, did issue its own counterpart, these do not hold up the
  host: the rank stands still of itself.
- *Who went astray?* A rank that, at some place, had issued more or fewer operations in a group than all of its
  witnesses had when they came to that place: it skipped something, or did something extra.

Left out: jobs whose ranks run different programs; there, nobody is a witness, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache, cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from ...traces.collectives import Ended, Recording
from .alignment import Key, Op, ops_of
from .queues import Queues

UNNAMED = ("", "undefined")


class SameProgram:
    """Says which ranks run the same program, by their places in groups."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._groups: dict[int, dict[tuple[str, int], int | None]] = {}
        for number, group in enumerate(recording.groups):
            key = (group.description, len(group.members))
            for rank in group.members if group.description not in UNNAMED else ():
                own = self._groups.setdefault(rank, {})
                own[key] = None if key in own else number  # of two alike, neither has a counterpart

    @cached_property
    def _directed(self) -> set[tuple[str, int]]:
        """Return the kinds of group in which ranks send to each other: there, a rank's place decides what it does."""
        found = set()
        for record in self.recording.ranks.values():
            for number in np.unique(record.ops["group"][record.ops["peer"] >= 0]).tolist():
                group = self.recording.groups[number]
                if len(group.members) < self.recording.world:
                    found.add((group.description, len(group.members)))
        return found

    @cache  # noqa: B019 - lives as long as one diagnosis
    def alike(self, one: int, other: int) -> bool:
        """Return True if two ranks have groups of the same kinds, and the same place wherever the place matters."""
        a, b = self._groups.get(one, {}), self._groups.get(other, {})
        return a.keys() == b.keys() and all(self._place(one, a[k]) == self._place(other, b[k]) for k in self._directed)

    def _place(self, rank: int, group: int | None) -> int:
        return -1 if group is None else self.recording.groups[group].members.index(rank)

    def counterpart(self, rank: int, group: int) -> int | None:
        """Return the rank's own group of the kind of `group`."""
        of = self.recording.groups[group]
        return group if rank in of.members else self._groups.get(rank, {}).get((of.description, len(of.members)))

    @cache  # noqa: B019
    def witnesses(self, rank: int) -> tuple[int, ...]:
        """Return the recorded ranks that run what this one runs: the next ones up, and round to the lowest."""
        told = (r for r, record in self.recording.ranks.items() if record.ended is not Ended.TORN)
        ranks = sorted(told, key=lambda other: (other < rank, other))
        return tuple(islice((r for r in ranks if r != rank and self.alike(rank, r)), WITNESSES))


class Due(NamedTuple):
    """Holds a rank, the operations that it waits in, and a collective that others wait for it in."""

    rank: int
    heads: Sequence[Op]
    owed: Key


class Order:
    """Answers the two questions, for one recording."""

    def __init__(self, queues: Queues, likeness: SameProgram) -> None:
        self.queues, self.likeness = queues, likeness
        self.recording = queues.recording

    def held(self, due: Due) -> bool:
        """Return True if a rank's own pending operations may hold up its host, for all that witnesses show."""
        return not any(self._went_on(witness, due) for witness in self.likeness.witnesses(due.rank))

    def _went_on(self, witness: int, due: Due) -> bool:
        owed = self._issued_at(witness, due.owed)
        pending = set(self.queues.pending[witness])
        places = [self._counterpart(op, due.rank, witness) for op in due.heads]
        return (
            owed is not None
            and all(at in pending and at < owed for at in places if at is not None)
            and None not in places
        )

    def astray(self, suspects: Iterable[int]) -> tuple[int, ...]:
        """Return the suspects that, at some place, had issued more or fewer operations in a group than all witnesses.

        At least two witnesses must have come to that place, and agree.
        """
        known = [rank for rank in suspects if rank in self.recording.ranks]
        return tuple(sorted(rank for rank in known if self._astray(rank) or self._ahead(rank)))

    def passed(self, rank: int, owed: Collection[int]) -> bool:
        """Return true if a rank that runs the same program has issued more than `rank`, in a group of its own.

        The groups in which others wait for `rank` are left aside: whoever issued more there may have done too much.
        """
        for witness in self.likeness.witnesses(rank):
            for group in self._own_groups(rank):
                its = self.likeness.counterpart(witness, group)
                mine, theirs = self.queues.progress.last_issued(rank, group), self._last(witness, group)
                if its not in (None, group, *owed) and mine is not None and theirs is not None and theirs > mine:
                    return True
        return False

    def issued_by_siblings(self, op: Op, rank: int) -> bool:
        """Return true if more than half of a sibling group issued what `op` is there, which is due from `rank` here."""
        if op.peer >= 0:
            return False
        for witness in self.likeness.witnesses(rank):
            group = self.likeness.counterpart(witness, op.group)
            if group in (None, op.group):
                continue
            members = self.recording.groups[group].members
            lasts = [self.queues.progress.last_issued(member, group) or 0 for member in members]
            if 2 * sum(last >= op.sequence for last in lasts) > len(members):
                return True
        return False

    def _ahead(self, rank: int) -> bool:
        """Return true if the rank waits in a collective beyond the last of all witnesses, who came to their end."""
        witnesses = self.likeness.witnesses(rank)
        if len(witnesses) < 2 or any(w in self.queues.first for w in witnesses) or rank not in self.queues.first:
            return False
        if any(self.recording.ranks[w].ended is not Ended.STOPPED for w in witnesses):
            return False
        for op in self.queues.heads(rank):
            lasts = {self._last(w, op.group) for w in witnesses}
            if op.peer < 0 and len(lasts) == 1 and (last := lasts.pop()) is not None and last < op.sequence:
                return True
        return False

    def _last(self, rank: int, group: int) -> int | None:
        own = self.likeness.counterpart(rank, group)
        return None if own is None else self.queues.progress.last_issued(rank, own)

    def _astray(self, rank: int) -> bool:
        witnesses = self.likeness.witnesses(rank)
        for op in self._last_of_each(rank):
            places = [(w, at) for w in witnesses if (at := self._counterpart(op, rank, w)) is not None]
            for group in self._own_groups(rank) - {op.group}:
                mine = self._count(rank, group, op.at)
                theirs = {self._count(w, self.likeness.counterpart(w, group), at) for w, at in places} - {None}
                if len(places) > 1 and mine is not None and len(theirs) == 1 and mine not in theirs:
                    return True
        return False

    def _last_of_each(self, rank: int) -> list[Op]:
        """Return the last operations that the rank issued, per group and direction."""
        ops = self.recording.ranks[rank].ops
        found: dict[tuple[int, int], list[int]] = {}
        for at in range(len(ops) - 1, -1, -1):
            own = found.setdefault((int(ops["group"][at]), int(ops["peer"][at])), [])
            if len(own) < PLACES:
                own.append(at)
        return ops_of(rank, ops, sorted(at for own in found.values() for at in own))

    def _own_groups(self, rank: int) -> set[int]:
        """Return the rank's groups of more than one member that have counterparts."""
        groups = self.recording.groups
        return {g for g in range(len(groups)) if rank in groups[g].members and len(groups[g].members) > 1}

    def _count(self, rank: int, group: int | None, at: int) -> int | None:
        """Return how many collectives the rank had issued in the group, before the operation at that place."""
        if group is None:
            return None
        ops = self.recording.ranks[rank].ops
        own = (ops["group"] == group) & (ops["peer"] < 0)
        before, after = ops["sequence"][:at][own[:at]], ops["sequence"][at:][own[at:]]
        if len(before):
            return int(before.max())
        if len(after):
            return int(after.min()) - 1
        # of what is listed nothing is in the group: what is known is how many there were at the end, and not when
        known = self.recording.ranks[rank].whole or len(self.recording.ranks) == self.recording.world
        return self.queues.progress.last_issued(rank, group) if known else None

    def _issued_at(self, rank: int, key: Key) -> int | None:
        """Return where, among what is listed of it, the rank issued its counterpart of a collective."""
        group = self.likeness.counterpart(rank, key.group)
        at = -1 if group is None else self.queues.place(rank, Key(group, key.sequence))
        return None if at < 0 else at

    def _counterpart(self, op: Op, rank: int, witness: int) -> int | None:
        """Return where the witness issued what `op` is to `rank`."""
        group = self.likeness.counterpart(witness, op.group)
        if group is None:
            return None
        peer = -1
        if op.peer >= 0:
            own, its = self.recording.groups[op.group].members, self.recording.groups[group].members
            peer = its[own.index(op.peer)]
        at = self.queues.at(witness, group, peer, op.sequence)
        return None if at < 0 else at


WITNESSES = 16
"""So many are heard: in a job of thousands, more say the same."""
PLACES = 4
"""At so many places of each kind is a rank compared; the older ones say the same, or are from before it went astray."""
