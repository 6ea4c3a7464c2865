"""Finds operations that ranks issued unlike at one number of a group: torch's, NCCL's and the wrapper's.

Where more than half of a group agree, those who differ have left the program that the others run. Where no such
majority is known, nothing tells who is right, and all who differ from each other are suspects.

Left out: ranks that did not issue it (`waits`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...traces.evidence import Calls, GroupName, Operation, Source, Unlike
from ..diagnosis import Wanted
from .finding import Finding, Kind, Missing, ranks_text
from .picture import P2P, Picture

Votes = Mapping[int, Operation]


def unlike(picture: Picture) -> Iterator[Finding]:
    """Yield the first operation of each group that its members issued unlike."""
    for state in picture.groups.values():
        if not state.name.shared:
            continue
        for number in sorted(state.operations):
            votes = state.operations[number]
            classes = _classes(votes)
            if len(classes) > 1:
                source = state.sources.get((number, min(votes)))
                place = f"#{number} of {state.name}" if state.name.family != "desync" else f"#{number}"
                yield _finding(
                    classes, votes, place, number, state.size if state.whole and state.vouched else 0, source, picture
                )
                break
    yield from _wrapper(picture)
    yield from _calls(picture)


def _wire(operation: Operation, fully: bool) -> tuple[object, ...]:
    """Return what all members must agree on, as far as it is stated of all of them."""
    if not fully:
        return (operation.kind,)
    size = {
        "all_gather": operation.received if operation.received >= 0 else operation.sent,
        "all_to_all": 0,
        "barrier": 0,
        "gather": operation.sent,
        "scatter": operation.received,
    }.get(operation.kind, operation.sent)
    return operation.kind, size, operation.detail


def _classes(votes: Votes) -> list[tuple[int, ...]]:
    """Return the ranks that agree with each other, the most first."""
    said = {rank: op for rank, op in votes.items() if op.kind not in (*P2P, "coalesced", "")}
    fully = all(op.kind in ("barrier",) or op.sent >= 0 or op.detail for op in said.values())
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for rank, operation in said.items():
        found[_wire(operation, fully)].append(rank)
    return sorted((tuple(sorted(ranks)) for ranks in found.values()), key=lambda c: (-len(c), c))


def _finding(
    classes: Sequence[tuple[int, ...]],
    votes: Votes,
    at: str,
    number: int,
    size: int,
    source: Source | None,
    picture: Picture,
) -> Finding:
    usual, *others = classes
    odd = tuple(sorted(rank for ranks in others for rank in ranks))
    said = "; ".join(f"{ranks_text(ranks)}: {votes[ranks[0]]}" for ranks in classes[:4])
    why = f"at {at} the ranks issued unlike operations ({said})"
    everybody = tuple(sorted(rank for ranks in classes for rank in ranks))
    if size and 2 * len(usual) > size:
        return Finding(
            Kind.UNLIKE,
            why,
            culprits=odd,
            at=at,
            observed=f"{votes[odd[0]]}, {at}",
            expected=(f"{votes[usual[0]]}, {at}",),
            number=number,
            source=source,
        )
    more = "no majority of the group agrees, so that nothing tells who is right"
    missing = (
        (Missing(Wanted.RECORDING, everybody), Missing(Wanted.WORLD_SIZE))
        if not size
        else (Missing(Wanted.RECORDING, everybody),)
    )
    return Finding(
        Kind.UNLIKE, f"{why}; {more}", suspects=everybody, at=at, number=number, source=source, missing=missing
    )


# ── the wrapper of TORCH_DISTRIBUTED_DEBUG=DETAIL ───────────────────────────────────────────────────────


def _wrapper(picture: Picture) -> Iterator[Finding]:
    found = picture.evidence.of(Unlike)
    if not found:
        return
    votes: dict[int, Operation] = {}
    for fact in found:
        votes[fact.rank] = _numbered(fact.mine, fact.number, fact)
        if fact.peer is not None and fact.theirs is not None:
            votes.setdefault(fact.peer, _numbered(fact.theirs, fact.theirs_number, fact))
            # it compares in ascending order, and says which rank is the first that differs
            for rank in range(fact.peer if fact.ascending else 0):
                if rank != fact.rank:
                    votes.setdefault(rank, votes[fact.rank])
    classes = _classes(votes)
    size = picture.world if picture.world_stated else 0
    if not all(fact.ascending for fact in found):
        size = 0  # of a smaller group, whose size nothing tells
    if len(classes) < 2:
        return
    finding = _finding(classes, votes, "one collective", max(found[0].number, 0), size, found[0].source, picture)
    if finding.culprits and len({op.kind for op in votes.values()}) == 1 and _numbers_alone(found):
        # a rank's own numbering was wrong in some versions
        finding = Finding(finding.kind, finding.why, suspects=finding.culprits, at=finding.at, source=finding.source)
    yield finding


def _numbered(operation: Operation, number: int, fact: Unlike) -> Operation:
    """Return the operation with its number as what differs, where only the numbers differ."""
    if fact.theirs is not None and fact.mine == fact.theirs and fact.number != fact.theirs_number:
        return operation._replace(detail=", ".join(filter(None, (operation.detail, f"number {number}"))))
    return operation


def _numbers_alone(found: Sequence[Unlike]) -> bool:
    return all(f.theirs is not None and f.mine == f.theirs for f in found)


# ── calls that NCCL logged ──────────────────────────────────────────────────────────────────────────────


def _calls(picture: Picture) -> Iterator[Finding]:
    groups: dict[GroupName, list[Calls]] = defaultdict(list)
    for calls in picture.evidence.of(Calls):
        if calls.group.shared:
            groups[calls.group].append(calls)
    for group, members in sorted(groups.items()):
        known = [calls for calls in members if calls.rank is not None]
        members = known or members  # what is torn may seem to be of a process that nobody knows
        ranks, whole = ranks_of(members, picture)
        if len(set(ranks)) != len(ranks):
            continue
        aligned = _align(ranks, members)
        for finding in [] if aligned is None else _first_unlike(aligned, group, ranks, members, picture):
            if whole:
                yield finding
            else:  # ranks of a smaller communicator are not the job's
                why = f"in communicator {group.name}, by the ranks in it: {finding.why}"
                yield replace(finding, why=why, culprits=(), suspects=(), missing=(Missing(Wanted.RANK_NUMBERS),))


def ranks_of(members: Sequence[Calls], picture: Picture) -> tuple[list[int], bool]:
    """Return the members' ranks in the job, and True; where nothing tells them, those in the communicator, and False.

    Of one host with as many devices as ranks, the devices are the ranks.
    """
    stated = [calls.rank for calls in members if calls.rank is not None]
    if len(stated) == len(members):
        if members[0].whole:
            return stated, True
        processes = picture.identities.by_process
        ranks = [processes.get(calls.process[:2], -1) for calls in members]
        return (ranks, True) if -1 not in ranks else (stated, False)
    devices = [calls.process[2] for calls in members]
    one_host = len({calls.process[0] for calls in members}) == 1
    if one_host and members[0].whole and sorted(devices) == list(range(members[0].size)):
        return devices, True
    return list(range(len(members))), False


class AlignedCalls(NamedTuple):
    """Holds the calls of all ranks in one communicator, one row each, by number, position at that number, and rank."""

    number: npt.NDArray[np.int64]
    within: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    operation: npt.NDArray[np.int64]


def _align(ranks: Sequence[int], members: Sequence[Calls]) -> AlignedCalls | None:
    """Return the ranks' calls side by side, those of one number by their order; None where the numbers tell nothing.

    From NCCL 2.27 on the number stands still within a host. Then the calls can be counted, if their beginning is there
    and no line is torn.
    """
    moves = any(len(c.numbers) > 1 and min(c.numbers) < max(c.numbers) for c in members)
    if not moves and any(c.torn or c.rank is None for c in members):
        return None
    collective = np.array([op.kind not in P2P for op in members[0].table])
    parts = []
    for rank, calls in zip(ranks, members, strict=True):
        operation = np.asarray(calls.operations, dtype=np.int64)
        kept = collective[operation]
        operation = operation[kept]
        number = np.asarray(calls.numbers, dtype=np.int64)[kept] if moves else np.arange(len(operation))
        order = np.argsort(number, kind="stable")
        number, operation = number[order], operation[order]
        within = np.arange(len(number)) - np.searchsorted(number, number)
        parts.append((number, within, np.full(len(number), rank), operation))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return AlignedCalls(*(column[order] for column in columns))


def _first_unlike(
    aligned: AlignedCalls, group: GroupName, ranks: Sequence[int], members: Sequence[Calls], picture: Picture
) -> Iterator[Finding]:
    new = np.ones(len(aligned.number), dtype=bool)
    new[1:] = (np.diff(aligned.number) != 0) | (np.diff(aligned.within) != 0)
    starts = np.flatnonzero(new)
    if not len(starts):
        return
    ends = np.append(starts[1:], len(new))
    unequal = np.minimum.reduceat(aligned.operation, starts) != np.maximum.reduceat(aligned.operation, starts)
    table = members[0].table
    for at in np.flatnonzero(unequal).tolist():
        rows = slice(starts[at], ends[at])
        votes = {
            rank: table[op]
            for rank, op in zip(aligned.rank[rows].tolist(), aligned.operation[rows].tolist(), strict=True)
        }
        classes = _classes(votes)
        if len(classes) < 2:
            continue
        many = 2 * (ends - starts)[:at] >= len(ranks)
        if not bool((many & ~unequal[:at]).any()):
            return  # nothing shows that these numbers are the same on all ranks
        number = int(aligned.number[starts[at]])
        where = f"opCount {number:x} of the communicator of {members[0].size} ranks"
        yield _finding(classes, votes, where, number, members[0].size, members[0].source, picture)
        return
    last = {rank: int(aligned.number[aligned.rank == rank].max(initial=-1)) for rank in ranks}
    yield from _behind(last, members)


def _behind(last: Mapping[int, int], members: Sequence[Calls]) -> Iterator[Finding]:
    """Yield the ranks whose log ends before those of the others: a sign, as a log says nothing of its own end."""
    if len(set(last.values())) < 2:
        return
    top = max(last.values())
    behind = tuple(sorted(rank for rank, number in last.items() if number < top))
    ahead = tuple(sorted(last.keys() - set(behind)))
    why = f"the last call logged of {ranks_text(behind)} comes before opCount {top:x}, which {ranks_text(ahead)} logged"
    suspects = behind if len(behind) <= len(ahead) else tuple(sorted(last))
    missing = (Missing(Wanted.STACK, behind),)
    at = f"opCount {top:x}"
    yield Finding(Kind.COUNTS, why, suspects=suspects, at=at, source=members[0].source, missing=missing)
