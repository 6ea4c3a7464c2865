"""Finds how the ranks' recordings end, which Genlock's own traces tell: whose file is torn, who failed.

A trace is written line by line, before anything happens. So a rank that was killed, or stands still, leaves all that
it did, and no last word; but so does a file that somebody cut between two lines. The others tell the two
apart: if one of them completed what cannot be completed without this rank, its file is torn.

Left out: which rank waits for which (`stall`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...traces.collectives import Ended, RankRecord, Recording, Status
from .send_recv import Pairs

SYNCHRONISING = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")
"""Kinds that nobody can finish before every member has taken part."""
FROM_ROOT = ("broadcast", "scatter")
"""Kinds that nobody else can finish before the root has taken part."""


def with_torn_marked(recording: Recording) -> Recording:
    """Return the recording with the files marked as torn that end too early, by what its ranks say of each other."""
    opened = {rank for rank, record in recording.ranks.items() if record.ended is Ended.OPEN}
    torn = {rank for rank in opened if rank in _passed(recording, opened) | _received(recording, opened)}
    if not torn:
        return recording
    ranks = {r: replace(k, ended=Ended.TORN) if r in torn else k for r, k in recording.ranks.items()}
    return replace(recording, ranks=ranks)


def _passed(recording: Recording, opened: set[int]) -> set[int]:
    """Return the ranks without which others completed a collective that they are due in."""
    if not opened:
        return set()
    last = {(rank, group): 0 for rank in opened for group in range(len(recording.groups))}
    done: dict[tuple[int, int], int] = {}
    signatures = recording.signatures
    synchronising = np.array([s.kind in SYNCHRONISING for s in signatures], bool)
    roots = np.array([s.root if s.kind in FROM_ROOT else -1 for s in signatures], np.int64)
    for rank, record in recording.ranks.items():
        ops = record.ops[record.ops["peer"] < 0]
        left = ops["status"] == Status.COMPLETED
        root = roots[ops["signature"]]
        for group in np.unique(ops["group"]).tolist():
            own = ops["group"] == group
            if rank in opened:
                last[rank, group] = int(ops["sequence"][own].max())
            for due in (-1, *(set(root[own & left].tolist()) - {-1, rank})):
                of_all = synchronising[ops["signature"]] if due < 0 else root == due
                numbers = ops["sequence"][own & left & of_all]
                done[group, due] = max(done.get((group, due), 0), int(numbers.max(initial=0)))
    return {
        rank
        for (rank, group), issued in last.items()
        if rank in recording.groups[group].members and any(done.get((group, due), 0) > issued for due in (-1, rank))
    }


def _received(recording: Recording, opened: set[int]) -> set[int]:
    """Return the ranks from which others received what they are not seen to have sent."""
    alone = Pairs(recording).alone if opened else {}
    return {
        int(record.ops["peer"][at])
        for rank, record in recording.ranks.items()
        for at in alone.get(rank, ())
        if record.ops["status"][at] == Status.COMPLETED
        and recording.signatures[int(record.ops["signature"][at])].kind == "recv"
    }


def limits(recording: Recording) -> list[str]:
    """Return what is not known because of how recordings end."""
    reasons = []
    for rank, record in recording.ranks.items():
        if record.dropped:
            reasons.append(f"rank{rank}: events were dropped")
        if record.ended is Ended.TORN:
            reasons.append(f"rank{rank}: its trace ends in the middle of what it did")
        elif record.ended is Ended.OPEN:
            reasons.append(f"rank{rank}: its trace has no end: it was killed, or stands still, or the file was cut")
    return reasons


def ending_text(recording: Recording, rank: int) -> str:
    """Return what is known of how a rank ended, as half a sentence; empty where nothing is."""
    record = recording.ranks.get(rank)
    ended = Ended.UNSAID if record is None else record.ended
    return {
        Ended.STOPPED: "it came to its end without it",
        Ended.FAILED: f"it ended by an exception: {_raised(record)}" if record else "",
        Ended.OPEN: "its trace ends there: it was killed, or stands still",
        Ended.TORN: "its trace is cut off before",
    }.get(ended, "")


def _raised(record: RankRecord) -> str:
    """Return what a rank raised, and where, in one line."""
    text = " ".join(record.message.split())[:120]
    return f"{text} at {record.raised_at}" if record.raised_at else text
