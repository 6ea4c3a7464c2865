"""Sends and receives side by side: the Nth of one way, group and tag at one end meets the Nth at the other.

That holds only where both ends were recorded from the beginning and without holes, or are summed up until one place
(`summed`); the rest is left alone, and so is what goes to a rank that takes what anybody sends.

Left out: sends and receives of rings and of pending operations (`stall`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...traces.collectives import Recording, Status
from .alignment import Op, ops_of

Numbers = npt.NDArray[np.int64]
CHANNEL = ("group", "source", "target", "tag")


class Pairs:
    """Holds the sends and receives of a recording that can be numbered."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        rows = self._rows()
        rows = rows[np.lexsort((rows["at"], rows["send"], *(rows[name] for name in reversed(CHANNEL))))]
        new = _changes(rows, (*CHANNEL, "send"))
        begins = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0)) if len(rows) else rows["at"]
        rows["number"] = np.arange(len(rows)) - begins
        rows = rows[np.lexsort((~rows["send"], rows["number"], *(rows[name] for name in reversed(CHANNEL))))]
        met = ~_changes(rows, (*CHANNEL, "number"))
        self.rows = rows
        self.seconds = np.flatnonzero(met)
        """Where in `rows` the receive of a pair stands; its send is the row before."""

    @cached_property
    def alone(self) -> dict[int, list[int]]:
        """Map a rank to the positions of its sends and receives that nobody met."""
        single = np.ones(len(self.rows), bool)
        single[self.seconds] = single[self.seconds - 1] = False
        found: dict[int, list[int]] = {}
        for rank, at in self.rows[["rank", "at"]][single].tolist():
            found.setdefault(rank, []).append(at)
        return found

    @cached_property
    def other(self) -> dict[tuple[int, int], int]:
        """Map (rank, position) of one end to the position of the other, at its peer."""
        ends = self.rows[["rank", "at"]]
        sends, receives = ends[self.seconds - 1].tolist(), ends[self.seconds].tolist()
        both = zip(sends, receives, strict=True)
        return {one: there[1] for a, b in both for one, there in ((a, b), (b, a))}

    def judged(self, rank: int, group: int, peer: int, kind: str) -> bool:
        """Return True if that channel can be numbered."""
        ranks = self.recording.ranks
        target = peer if kind == "send" else rank
        whole = all(r in ranks and ranks[r].numbered_from_one_place for r in (rank, peer))
        return whole and group not in ranks[target].listens

    def matched(self) -> int:
        """Count the pairs that carry the same, and that both ends left as far as their recorders say."""
        left = (self.rows["status"] == Status.COMPLETED) | (self.rows["status"] == Status.UNSAID)
        return int((self._equal & left[self.seconds] & left[self.seconds - 1]).sum())

    def unequal(self) -> list[tuple[Op, Op, list[tuple[object, ...]]]]:
        """Return the first pair a channel whose ends disagree: send, receive, and what the pairs before it carried."""
        seen: set[tuple[int, ...]] = set()
        found = []
        for at in self.seconds[~self._equal].tolist():
            channel = self.rows[list(CHANNEL)][at].item()
            if channel not in seen:
                seen.add(channel)
                before = self.rows[at - 1 - 2 * int(self.rows["number"][at]) : at - 1 : 2]
                carried = [self.recording.signatures[s].wire for s in before["signature"].tolist()]
                found.append((self._op(at - 1), self._op(at), carried))
        return found

    @cached_property
    def _equal(self) -> npt.NDArray[np.bool_]:
        wires: dict[tuple[object, ...], int] = {}
        wire = np.array([wires.setdefault(s.wire, len(wires)) for s in self.recording.signatures], np.int64)
        signature = self.rows["signature"]
        same: npt.NDArray[np.bool_] = wire[signature[self.seconds]] == wire[signature[self.seconds - 1]]
        return same

    def _op(self, row: int) -> Op:
        rank, at = int(self.rows["rank"][row]), int(self.rows["at"][row])
        return ops_of(rank, self.recording.ranks[rank].ops, [at])[0]

    def _rows(self) -> npt.NDArray[np.void]:
        sends = np.array([s.kind == "send" for s in self.recording.signatures], bool)
        parts = [np.zeros(0, ROWS)]
        for rank, record in self.recording.ranks.items():
            at = np.flatnonzero(record.ops["peer"] >= 0)
            if not len(at):
                continue
            ops = record.ops[at]
            rows = np.zeros(len(at), ROWS)
            for name in ("group", "tag", "signature", "status"):
                rows[name] = ops[name]
            rows["rank"], rows["at"], rows["send"] = rank, at, sends[ops["signature"]]
            rows["source"] = np.where(rows["send"], rank, ops["peer"])
            rows["target"] = np.where(rows["send"], ops["peer"], rank)
            ends = {(g, s, t) for g, s, t in np.unique(rows[list(CHANNEL[:3])]).tolist()}
            out = [e for e in ends if not self.judged(e[1], e[0], e[2], "send")]
            for group, source, target in out:
                rows = rows[(rows["group"] != group) | (rows["source"] != source) | (rows["target"] != target)]
            parts.append(rows)
        return np.concatenate(parts)


ROWS = np.dtype(
    [(name, "<i4") for name in ("group", "source", "target", "tag", "rank", "at", "signature", "number")]
    + [("send", "?"), ("status", "i1")]
)


def _changes(rows: npt.NDArray[np.void], names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Return where any of the columns differs from the row before; the first row differs."""
    found = np.zeros(len(rows), bool)
    found[:1] = True
    for name in names:
        found[1:] |= rows[name][1:] != rows[name][:-1]
    return found
