"""Judges how ranks make process groups: what comes of a call that not all make, or not all with the same members.

`torch.distributed.new_group` is to be called by all ranks of the job, in one order, whoever is to be a member: torch
names a group by the number of the call. Members meet in it on some backends; a rank that gives other members, or goes
on without the call, leaves them waiting there, or in a group of two kinds of members.

A call in which a rank still is becomes an operation of the group's members, so that who waits for whom follows as for
any other (`stall`). Calls that are unlike are told by position, as unlike collectives are (`mismatches`).

Left out: `split_group`, in which each rank rightly names another group, and groups that members make alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...traces.collectives import (
    MAKING,
    OPS,
    Ended,
    Group,
    Interner,
    Making,
    RankRecord,
    Recording,
    Signature,
    Status,
    packed,
)
from .alignment import Op, ops_of
from .blame import UNLIKE, Unlike
from .mismatches import Conflict, OperationNames, making_text
from .sibling_ranks import Order

SHOWN = 8
"""So many lists of members, and ranks of each, are told."""
Calls = Mapping[int, Mapping[int, Making]]
"""Maps a rank to the calls of it that all ranks have to make, by position, from 1."""
Members = tuple[int, ...]


def calls_in(recording: Recording) -> Calls:
    """Return the calls of each rank."""
    return {
        rank: dict(enumerate((m for m in record.makings if m.by_all), 1)) for rank, record in recording.ranks.items()
    }


def with_makings(recording: Recording) -> Recording:
    """Return the recording with those calls as operations in which a rank is, or which are unlike."""
    calls = calls_in(recording)
    odd = _first_unlike(calls)
    chosen = {
        (position, making.members)
        for own in calls.values()
        for position, making in own.items()
        if making.members and (position == odd or not making.done)
    }
    if not chosen:
        return recording
    groups, signatures = Interner(*recording.groups), Interner(*recording.signatures)
    sites, ranks = Interner(*recording.sites), dict(recording.ranks)
    for rank, own in calls.items():
        rows = [
            (rank in making.members, _row(making, position, groups, signatures, sites))
            for position, making in own.items()
            if (position, making.members) in chosen
        ]
        mine = [row for member, row in rows if member]
        ranks[rank] = _with_rows(ranks[rank], mine) if mine else ranks[rank]
    return replace(recording, ranks=ranks, groups=groups.values, signatures=signatures.values, sites=sites.values)


def _row(
    making: Making, position: int, groups: Interner[Group], signatures: Interner[Signature], sites: Interner[str]
) -> tuple[int, ...]:
    """Return a call as a row of OPS."""
    group, status = groups(_group(position, making.members)), Status.COMPLETED if making.done else Status.ISSUED
    about = (signatures(Signature(MAKING, "", -1, -1)), sites(making.place), -1, 0, status)
    return (making.before, making.time, position, group, *about)


def _group(position: int, members: Members) -> Group:
    return Group(f"{MAKING} {position}", "", members)


def _with_rows(record: RankRecord, rows: Sequence[tuple[int, ...]]) -> RankRecord:
    """Return the record with further operations, each of which stands before the event that came next."""
    ops = np.concatenate([np.array(rows, OPS), record.ops.astype(OPS)])
    return replace(record, ops=packed(ops[np.argsort(ops["entry"], kind="stable")]))


def _first_unlike(calls: Calls) -> int:
    """Return the first position at which ranks gave other members; 0 where there is none."""
    for position in range(1, max(map(len, calls.values()), default=0) + 1):
        if len({own[position].members for own in calls.values() if position in own} - {()}) > 1:
            return position
    return 0


def unlike_makings(recording: Recording, order: Order, words: OperationNames) -> Iterator[Conflict]:
    """Yield the first call that ranks made with other members, or that some left out while others are in it."""
    calls = calls_in(recording)
    stuck = [position for own in calls.values() for position, making in own.items() if not making.done]
    position = min(filter(None, (_first_unlike(calls), min(stuck, default=0))), default=0)
    made = {rank: own[position] for rank, own in calls.items() if position in own}
    given: dict[int, Members] = {rank: making.members for rank, making in made.items() if making.members}
    given |= {rank: () for rank in calls if rank not in made and made and _went_on(recording, rank, made)}
    lists: dict[Members, list[int]] = {}
    for rank, members in sorted(given.items()):
        lists.setdefault(members, []).append(rank)
    if len(lists) < 2:
        return
    accused = UNLIKE.first(Unlike(given, recording.world, lambda: None, lambda: (), order))
    rank = accused[0].rank
    told = "; ".join(f"{_ranks(ranks)} {_what(members)}" for members, ranks in list(lists.items())[:SHOWN])
    why = f"each group is to be made by all ranks, in one order, of the same members: {told}"
    expected = tuple(making_text(members, position) for members in lists if members and members != given[rank])
    op = _op(recording, rank, position, made.get(rank))
    yield Conflict(op, accused, making_text(given[rank], position) if given[rank] else words.call(op), expected, why)


def _went_on(recording: Recording, rank: int, made: Mapping[int, Making]) -> bool:
    """Return True if a rank is past what others did after the call, without having made it."""
    record = recording.ranks[rank]
    if record.ended is Ended.STOPPED:
        return True
    if not record.whole:
        return False
    for number, group in enumerate(recording.groups):
        if len(group.members) == recording.world and not group.name.startswith(MAKING):
            before = max(_issued(recording.ranks[other], number, making.before) for other, making in made.items())
            if _issued(record, number, 1 << 62) > before:
                return True
    return False


def _issued(record: RankRecord, group: int, before: int) -> int:
    """Return the number of the last collective of a group that the rank issued before that event."""
    ops = record.ops
    own = ops["sequence"][(ops["group"] == group) & (ops["peer"] < 0) & (ops["entry"] < before)]
    return int(own.max(initial=0))


def _op(recording: Recording, rank: int, position: int, made: Making | None) -> Op:
    """Return the call as an operation of the rank; of one that went on without it, the last that it issued."""
    ops = recording.ranks[rank].ops
    if made is not None:
        interned = (Interner(*values) for values in (recording.groups, recording.signatures, recording.sites))
        row = _row(made, position, *interned)
        at = int(np.searchsorted(ops["entry"], made.before))
        return Op(rank, at, *row)
    return ops_of(rank, ops, [len(ops) - 1])[0] if len(ops) else Op(rank, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0)


def _ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return ", ".join(f"rank{rank}" for rank in ranks[:SHOWN]) + more


def _what(members: Members) -> str:
    return f"made it of {list(members)}" if members else "went on without it"
