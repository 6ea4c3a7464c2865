"""Orders recorded events from left to right by Lamport times: an end comes after everything that it waits for.

Left out: what that says about the run (`conformance.protocol.match_ranks`). This order
goes on past the first divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..model.tables import Kind

OpEnd = tuple[Any, str, str | None, int | None, tuple[int, ...]]
"""Operation (None: a plain step), edge, kind, root, members."""


def columns(ranks: Mapping[int, Sequence[OpEnd]]) -> dict[int, list[int]]:
    """Return the column of each line, by rank; where ranks wait in a circle, as if the first of them did not."""
    entered = {(rank, end[0]): at for rank, ends in ranks.items() for at, end in enumerate(ends) if end[1] == "enter"}
    times: dict[int, list[int]] = {rank: [] for rank in ranks}
    waiting = dict.fromkeys(sorted(ranks))
    while waiting:
        moved = [rank for rank in list(waiting) if _advance(rank, ranks, entered, times)]
        for rank in list(waiting):
            if len(times[rank]) == len(ranks[rank]):
                del waiting[rank]
        if waiting and not moved:
            rank = next(iter(waiting))
            times[rank].append(times[rank][-1] + 1 if times[rank] else 0)
    return times


def _advance(
    rank: int, ranks: Mapping[int, Sequence[OpEnd]], entered: Mapping[tuple[int, Any], int], times: dict[int, list[int]]
) -> bool:
    """Give times to a rank's lines, up to one that waits for a line without a time. Return True if any got one."""
    mine, ends = times[rank], ranks[rank]
    start = len(mine)
    while len(mine) < len(ends):
        end = ends[len(mine)]
        time = mine[-1] + 1 if mine else 0
        if end[1] == "exit":
            for member in _needed(rank, end):
                at = entered.get((member, end[0]))
                if at is None or member not in times:
                    continue
                if at >= len(times[member]):
                    return len(mine) > start
                time = max(time, times[member][at] + 1)
        mine.append(time)
    return len(mine) > start


def _needed(rank: int, end: OpEnd) -> Sequence[int]:
    """Return the members whose part an operation's end cannot come before."""
    _, _, kind, root, members = end
    if root is not None and kind in (Kind.BROADCAST, Kind.GATHER, "scatter", "reduce"):
        gathers = kind in (Kind.GATHER, "reduce")
        return members if gathers and rank == root else (root,)
    return members
