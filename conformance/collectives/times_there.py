"""Tells that a rank came to a place in the source less or more often than the others: a step too few, or too many.

Only what recordings show whole is counted, and only where all others agree. It is told beside a verdict, for people,
and never makes one.

Left out: ranks that have the wrong number of operations in a group (`sibling_ranks`, `off_by_one`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from ...traces.collectives import Recording


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
    return f"rank{rank} came to {recording.sites[site]} {times}{when}, the others {rest.pop():,}"
