"""Tells that a rank came to a place in the source less or more often than the others, or left an operation out there.

Only what recordings show whole is counted, and only where all others agree. It is told beside a verdict, for people,
and never makes one.

Left out: ranks that have the wrong number of operations in a group (`sibling_ranks`, `off_by_one`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from ...traces.collectives import Recording
from .alignment import Op


def times_there(recording: Recording, rank: int, others: Iterable[int], group: int, site: int) -> str:
    """Return `rank1 came to train.py:14 3 times, the others 5`; empty where they do not differ, or nothing is known."""
    known = [recording.ranks.get(r) for r in (rank, *(other for other in others if other != rank))]
    if not site or len(known) < 2 or any(record is None or not record.whole for record in known):
        return ""
    there = [r.ops[(r.ops["group"] == group) & (r.ops["site"] == site) & (r.ops["peer"] < 0)] for r in known if r]
    own, rest = len(there[0]), {len(ops) for ops in there[1:]}
    if len(rest) != 1 or own in rest:
        return ""
    last = int(np.max(there[0]["time"], initial=0))
    when = f" (last at {datetime.fromtimestamp(last / 1e9, tz=UTC):%H:%M:%S} UTC)" if last else ""
    times = "once" if own == 1 else f"{own:,} times" if own else "never"
    usual = rest.pop()
    return f"rank{rank} came to {recording.sites[site]} {times}{when}, the others {'once' if usual == 1 else usual}"


def left_out(recording: Recording, odd: Op, usual: Op) -> str:
    """Return that a rank seems to have left out what the others issued: in its own past, what it did came right after.

    Empty where its past says something else, or nothing.
    """
    record = recording.ranks[odd.rank]
    own = record.ops[
        (record.ops["group"] == odd.group) & (record.ops["peer"] < 0) & (record.ops["sequence"] < odd.sequence)
    ]
    done = own[["signature", "site"]].tolist()
    after = [done[at + 1] for at in range(len(done) - 1) if done[at] == (usual.signature, usual.site)]
    if not after or set(after) != {(odd.signature, odd.site)}:
        return ""
    return f"rank{odd.rank} seems to have left that out: what it did came right after it before"
