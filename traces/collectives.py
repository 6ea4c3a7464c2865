"""Defines the one form that every recording of collectives is read into: which rank issued what, where, in which order.

A recording is numbers in arrays (a job of 512 ranks is a million operations); the few distinct groups,
signatures and places in the source are interned once for all ranks in `Interned`.

Left out: other people's formats (their importers) and what a recording means (`conformance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Status(IntEnum):
    """Says how far the recorder saw an operation come."""

    UNSAID = 0
    """The recorder does not say, or cannot be trusted to (gloo)."""
    ISSUED = 1
    STARTED = 2
    COMPLETED = 3


class Ended(IntEnum):
    """Says how a rank's recording comes to its end."""

    UNSAID = 0
    """The recorder says nothing of it."""
    STOPPED = 1
    """The rank came to its end."""
    FAILED = 2
    """The rank ended by an exception."""
    OPEN = 3
    """It ends in whole lines and without a word: the rank was killed or stood still, or somebody cut the file."""
    TORN = 4
    """The last deeds of the rank are certainly not in it: the file is cut, or the process went on unrecorded."""


class Group(NamedTuple):
    """Holds a process group; two of one name with other members are two groups."""

    name: str
    description: str
    members: tuple[int, ...]
    """Global ranks in the group's own order."""
    stated: bool = True
    """True where the recorder names the members; else they are those that were seen in the group."""
    queued: bool = False
    """True where what is sent lies in a queue: it need not have been taken when both ends leave."""


class Signature(NamedTuple):
    """Holds what an operation puts in and takes out, in elements; -1 where the recording does not say."""

    kind: str
    dtype: str
    sent: int
    received: int
    root: int = -1
    """Global rank; -1 where there is none, or the recorder does not say."""
    reduce: str = ""
    """Names the reduction; empty where there is none, or the recorder does not say."""
    even: bool = False
    """True for an all-to-all that is known to have no splits, so that all members must put in equally much."""

    @property
    def wire(self) -> tuple[str, str, int, int]:
        """Return what all members must agree on. Uneven splits are legal, so each kind has a size of its own."""
        size = {
            "all_gather": self.sent if self.received < 0 else self.received,
            "scatter": self.received,
            "recv": self.received,
            "all_to_all": 0,
            "barrier": 0,
        }.get(self.kind, self.sent)
        dtype = "" if self.kind == "barrier" else self.dtype
        return ("p2p" if self.kind in P2P else self.kind, dtype, size, self.root)

    def __str__(self) -> str:
        sizes = {s for s in (self.sent, self.received) if s >= 0}
        size = f"{max(sizes, default=0):,}" if len(sizes) < 2 else f"{self.sent:,} in, {self.received:,} out"
        root = f" (root rank{self.root})" if self.root >= 0 else ""
        reduce = f" ({self.reduce})" if self.reduce not in ("", "sum") else ""
        return self.kind if self.kind == "barrier" else f"{self.kind} of {size} {self.dtype}{root}{reduce}"


MAKING = "new_group"
"""Kind of the operation that the making of a group is, where ranks are in it."""
P2P = ("send", "recv")
BALANCED = ("all_to_all", "all_gather", "reduce_scatter")
"""Kinds in which all that members put in comes out again: once, at every member, or after a reduction of all."""


class Making(NamedTuple):
    """Holds that a rank made a group, or began to."""

    number: int
    """Counts those that the rank began to make, from 1."""
    members: tuple[int, ...]
    """Global ranks that it gave; none where they are not known."""
    by_all: bool
    """True where all ranks of the job have to make the call, members or not: torch names the group by its number."""
    place: str
    time: int
    """When it began, in ns of the rank's wall clock."""
    before: int
    """Number of the event that came next."""
    done: bool


OPS = np.dtype(
    [
        ("entry", "<i8"),  # the recorder's own number
        ("time", "<i8"),  # when it was issued, in ns of the rank's wall clock; 0 where unknown
        ("sequence", "<i8"),  # of its kind (collective, p2p) in its group, from 1
        ("group", "<i4"),
        ("signature", "<i4"),
        ("site", "<i4"),  # where in the source; 0 where unknown
        ("peer", "<i4"),  # the other end of a send or recv, as a global rank; -1 for a collective
        ("tag", "<i4"),  # of a send or recv: those of one tag pair with each other
        ("status", "i1"),
    ]
)
"""Lays out one operation of one rank. `group`, `signature` and `site` index what is interned."""

Ops = npt.NDArray[np.void]

_PACKED = np.dtype([(name, "<i4" if name in ("entry", "sequence") else OPS[name]) for name in OPS.names or ()])


def packed(ops: Ops) -> Ops:
    """Return the same in less memory, if its numbers are as small as they mostly are."""
    small = all(int(ops[name].max(initial=0)) < 1 << 31 for name in ("entry", "sequence"))
    return ops.astype(_PACKED) if small else ops


class Digest(NamedTuple):
    """Sums up the first operations of a group, or of one way of sends or receives."""

    operations: int
    wire: int
    """Digest of what all members must agree on."""
    full: int
    """Digest of that and of the reductions."""


Way = tuple[int, str, int, int]
"""A group, `""` for its collectives, else `send` or `recv`, with the peer and the tag of those."""


@dataclass(frozen=True, slots=True)
class Summed:
    """Sums up what a rank did before the operations that its recording still has."""

    ways: Mapping[Way, Digest]
    limits: tuple[str, ...] = ()
    """Says what is not in the digests."""

    def renumbered(self, groups: npt.NDArray[np.int32]) -> Summed:
        """Return the same by other numbers of groups."""
        ways = {(int(groups[group]), kind, peer, tag): d for (group, kind, peer, tag), d in self.ways.items()}
        return replace(self, ways=ways)

    @property
    def operations(self) -> int:
        return sum(digest.operations for digest in self.ways.values())


@dataclass(frozen=True, slots=True)
class RankRecord:
    """Holds one rank's operations, in the order in which it issued them."""

    rank: int
    path: Path
    ops: Ops
    lost: bool
    """True where older operations are gone from the recording (a ring that overflowed, a window of time)."""
    pending_only: bool
    """True where completed operations were left out of it."""
    issued: Mapping[int, int] = field(default_factory=dict)
    """Group to the sequence number of the last collective that was issued in it, where the recorder says so."""
    gap: int | None = None
    """The first entry that is missing between others, where the recorder numbers them without gaps."""
    span: tuple[int, int] | None = None
    """From when to when this rank was recorded, in ns, where that is known."""
    ended: Ended = Ended.UNSAID
    message: str = ""
    """Text of what a failed rank raised; for people alone."""
    raised_at: str = ""
    """Place (`file:line`) where a failed rank raised it; empty where that is not recorded."""
    found_dead: int = -1
    """Rank whose process this one found to have ended, which is why it ends; -1 where there is none."""
    dropped: bool = False
    """True where the recorder had to leave something out in between."""
    unanchored: bool = False
    """True where its numbers count from where it begins, as the recorder has lost what came before and how much."""
    listens: frozenset[int] = frozenset()
    """Groups in which the rank takes what anybody sends: there, its receives are not among the operations."""
    makings: tuple[Making, ...] = ()
    """Groups that it was seen to make, in order."""
    summed: Summed | None = None
    """Sums up what came before, where the recorder did; `lost` says that it is gone."""
    anchored: bool = False
    """True where both ends of each way are known to have done as much, and alike, before what is left of it."""

    @property
    def making(self) -> Making | None:
        """Return the group that the rank is about to make; None where it is in no such call."""
        last = self.makings[-1] if self.makings else None
        return None if last is None or last.done else last

    @property
    def numbered_from_one_place(self) -> bool:
        """Return True where the Nth operation that is left of a way met the Nth at its other end."""
        return self.whole or (self.anchored and replace(self, lost=False).whole)

    @property
    def whole(self) -> bool:
        """Return True where all is there that the rank did up to its end."""
        return not (self.lost or self.pending_only or self.dropped or self.ended is Ended.TORN)


@dataclass(frozen=True, slots=True)
class Recording:
    """Holds what was recorded of one job."""

    source: str
    world: int
    groups: Sequence[Group]
    signatures: Sequence[Signature]
    sites: Sequence[str]
    ranks: Mapping[int, RankRecord]
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Rank to why its file could not be used."""
    window: bool = False
    """True where the recording is a stretch of time: what came before and after it is unknown."""
    numbered: bool = True
    """True where sequence numbers are the recorder's own; else they count from where each rank's recording begins."""
    relative: bool = False
    """True where numbers count from the last operation that each rank completed in a group: the same for all of its
    members where a job stands still, unless it is a device that does."""
    died: Mapping[int, str] = field(default_factory=dict)
    """Rank to how it ended, as its launcher or its host saw it, of ranks that wrote no end themselves."""
    sized: bool = True
    """True where it is stated how many ranks the job has; else the highest that was seen counts as the last."""

    def __repr__(self) -> str:
        return f"<Recording by {self.source}: {len(self.ranks)} of {self.world} ranks, {self.entries:,} operations>"

    @property
    def entries(self) -> int:
        return sum(len(r.ops) for r in self.ranks.values())


class Interner(Generic[T]):
    """Gives each distinct value a small number, in order of first sight."""

    def __init__(self, *values: T) -> None:
        self.values: list[T] = list(values)
        self._numbers = {value: at for at, value in enumerate(values)}

    def __call__(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Interned:
    """Holds what the ranks of a recording share."""

    def __init__(self) -> None:
        self.groups: Interner[Group] = Interner()
        self.signatures: Interner[Signature] = Interner()
        self.sites: Interner[str] = Interner("")


def renumbered(records: Sequence[RankRecord], old: Interned, new: Interned) -> list[RankRecord]:
    """Return the same records by the numbers of another interning, which takes up what it does not have."""
    groups = np.array([new.groups(group) for group in old.groups.values], dtype=np.int32)
    signatures = np.array([new.signatures(signature) for signature in old.signatures.values], dtype=np.int32)
    sites = np.array([new.sites(site) for site in old.sites.values], dtype=np.int32)
    for record in records:
        for name, numbers in (("group", groups), ("signature", signatures), ("site", sites)):
            if len(record.ops):
                record.ops[name] = numbers[record.ops[name]]
    return [
        replace(
            record,
            issued={int(groups[g]): last for g, last in record.issued.items()},
            summed=record.summed and record.summed.renumbered(groups),
        )
        for record in records
    ]


def recording(
    source: str,
    interned: Interned,
    records: Sequence[RankRecord],
    unreadable: Mapping[int, str],
    *,
    world: int = 0,
    window: bool = False,
    numbered: bool = True,
) -> Recording:
    """Put the ranks together. Groups that no recorder names the members of are made of those seen in them."""
    relative = any(r.unanchored for r in records)
    if relative:
        records = [_from_the_last_completed(r, interned) for r in records]
    ranks = {r.rank: r for r in sorted(records, key=lambda r: r.rank)}
    told = {rank for group in interned.groups.values for rank in group.members}
    sized = world > 0 or _size_is_stated(interned.groups.values)
    world = max(world, 1 + max({*ranks, *unreadable, *told}, default=-1))
    seen: dict[int, list[int]] = {}
    for rank, record in ranks.items():
        for group in {*np.unique(record.ops["group"]).tolist(), *record.issued}:
            seen.setdefault(group, []).append(rank)
    # where all groups name their members, nobody waits for a rank that is not named
    sized = sized or all(interned.groups.values[at].stated for at in seen) or _all_gather(interned, ranks, world)
    groups = [
        group if group.stated else _guessed(group, seen.get(at, []), world)
        for at, group in enumerate(interned.groups.values)
    ]
    return Recording(
        source,
        world,
        groups,
        interned.signatures.values,
        interned.sites.values,
        ranks,
        dict(unreadable),
        window,
        numbered,
        relative,
        sized=sized,
    )


def _from_the_last_completed(record: RankRecord, interned: Interned) -> RankRecord:
    """Return the record with numbers by which the last operation that completed is BASE, in each group and way."""
    ops = record.ops.astype(OPS)
    sends = np.array([s.kind == "send" for s in interned.signatures.values] or [False])[ops["signature"]]
    ways = np.stack([ops["group"], ops["peer"], np.where(ops["peer"] >= 0, sends, False)], axis=1)
    for way in np.unique(ways, axis=0):
        at = np.flatnonzero((ways == way).all(axis=1))
        done = np.flatnonzero(ops["status"][at] == Status.COMPLETED)
        ops["sequence"][at] = BASE + np.arange(len(at)) - (int(done[-1]) if len(done) else -1)
    return replace(record, ops=packed(ops), issued={}, lost=True)


BASE = 1 << 20
"""More than a ring holds, so that no number falls below 0."""
DEFAULT_GROUP = "default_pg"
OWN = "genlock"
"""Names the `source` of Genlock's own traces."""


def _size_is_stated(groups: Sequence[Group]) -> bool:
    """Return True where the members of the group of all ranks are stated, by the names that torch gives it.

    gloo states under the name "" those of the group that was made last: the same where no other was ever used.
    """
    stated = [group for group in groups if group.stated]
    if any(g.description == DEFAULT_GROUP or (g.name == "0" and g.description in ("", "undefined")) for g in stated):
        return True
    return any(not g.name for g in stated) and len({g.name for g in groups if g.name}) == 1


def _all_gather(interned: Interned, ranks: Mapping[int, RankRecord], world: int) -> bool:
    """Return True where every rank gathered, in the group of all ranks, what so many ranks put in."""
    of_all = [at for at, group in enumerate(interned.groups.values) if group.description == DEFAULT_GROUP]
    gathers = [
        at
        for at, s in enumerate(interned.signatures.values)
        if s.kind == "all_gather" and s.received == world * s.sent > 0
    ]
    return all(
        bool((np.isin(record.ops["group"], of_all) & np.isin(record.ops["signature"], gathers)).any())
        for record in ranks.values()
    )


def _guessed(group: Group, seen: Sequence[int], world: int) -> Group:
    if group.description == DEFAULT_GROUP:
        return group._replace(members=tuple(range(world)), stated=True)
    return group._replace(members=tuple(seen))
