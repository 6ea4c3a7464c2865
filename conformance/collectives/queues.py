"""Finds how far each rank came, and what it has not completed, as far as its recording says.

Left out: whose fault that is (`stall`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from ...traces.collectives import Ended, RankRecord, Recording, Status
from .alignment import Key, Op, ops_of
from .send_recv import Pairs


class Progress:
    """Says how far each rank came in each group, as far as the recording says."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._last: dict[tuple[int, int], int] = {}
        self.mixed: set[int] = set()
        """Groups with both collectives and p2p, in which a rank's last number may be of either."""
        for rank, record in recording.ranks.items():
            ops = record.ops
            collective = ops["peer"] < 0
            self.mixed |= set(np.unique(ops["group"][~collective]).tolist())
            groups, sequences = ops["group"][collective], ops["sequence"][collective]
            for group in np.unique(groups).tolist():
                self._last[rank, group] = int(sequences[groups == group].max())

    @cache  # noqa: B019 - lives as long as one diagnosis
    def last_issued(self, rank: int, group: int) -> int | None:
        """Return the last collective that the rank issued in the group, 0 for none; None where it is not known."""
        record = self.recording.ranks.get(rank)
        if record is None:
            return None
        seen = self._last.get((rank, group))
        told = None if group in self.mixed else record.issued.get(group)
        if seen is None and told is None:
            return None if record.lost or record.pending_only else 0
        return max(seen or 0, told or 0)

    def issued_by_all(self, group: int) -> int | None:
        """Return the last collective that all members are known to have issued; None if nobody's progress is known."""
        members = [m for m in self.recording.groups[group].members if not self.torn(m)]
        known = [last for m in members if (last := self.last_issued(m, group)) is not None]
        return min(known, default=None)

    def torn(self, rank: int) -> bool:
        """Return True if the rank may have issued more than its recording shows."""
        record = self.recording.ranks.get(rank)
        return record is not None and record.ended is Ended.TORN


class Queues:
    """Holds what each rank has not completed."""

    def __init__(self, recording: Recording, progress: Progress, pairs: Pairs) -> None:
        self.recording, self.progress, self.pairs = recording, progress, pairs
        reached = {g: progress.issued_by_all(g) for g in range(len(recording.groups))}
        self.pending = {rank: self._pending(record, reached) for rank, record in recording.ranks.items()}
        self.first = {rank: int(found[0]) for rank, found in self.pending.items() if len(found)}
        """Rank to the position of the first operation that it has not completed."""
        self.states: dict[int, dict[tuple[int, int], int]] = {}
        """Rank to its pending collectives: (group, sequence) to status."""
        for rank, found in self.pending.items():
            ops = recording.ranks[rank].ops[found]
            ops = ops[ops["peer"] < 0]
            keys = zip(ops["group"].tolist(), ops["sequence"].tolist(), strict=True)
            self.states[rank] = dict(zip(keys, ops["status"].tolist(), strict=True))

    def _pending(self, record: RankRecord, reached: Mapping[int, int | None]) -> Sequence[int]:
        """Return the positions of what has not completed or, if the recorder does not say, of what not all issued."""
        ops = record.ops
        if record.ended is Ended.TORN:
            return []
        said = (ops["status"] == Status.ISSUED) | (ops["status"] == Status.STARTED)
        limits = np.array([np.iinfo(np.int64).max if n is None else n for n in reached.values()], dtype=np.int64)
        left = (ops["status"] == Status.UNSAID) & (ops["peer"] < 0)
        beyond = left & (ops["sequence"] > limits[ops["group"]]) if len(limits) else left
        alone = np.zeros(len(ops), bool)
        alone[self.pairs.alone.get(record.rank, [])] = True
        return np.flatnonzero(said | beyond | (alone & (ops["status"] == Status.UNSAID))).tolist()

    def heads(self, rank: int) -> list[Op]:
        """Return the rank's first pending operation in each group, and towards each peer."""
        ops = self.recording.ranks[rank].ops
        seen: dict[tuple[int, int, int], int] = {}
        for at in self.pending[rank]:
            op = ops[at]
            peer = int(op["peer"])
            way = int(op["signature"]) if peer >= 0 else -1
            seen.setdefault((int(op["group"]), peer, self._way(way)), at)
        return ops_of(rank, ops, sorted(seen.values()))

    def _way(self, signature: int) -> int:
        return -1 if signature < 0 else int(self.recording.signatures[signature].kind == "send")

    def channel(self, rank: int, group: int, peer: int, kind: str, tag: int) -> list[int]:
        """Return the positions of the rank's sends to, or receives from, a peer in a group."""
        ops = self.recording.ranks[rank].ops
        found = np.flatnonzero((ops["group"] == group) & (ops["peer"] == peer) & (ops["tag"] == tag))
        return [at for at in found.tolist() if self.recording.signatures[int(ops["signature"][at])].kind == kind]

    def finished(self, rank: int, key: Key) -> bool:
        """Return True if the rank is known to have completed a collective."""
        if key in self.states[rank]:
            return False
        last = self.progress.last_issued(rank, key.group)
        if last is None or last < key.sequence:
            return False
        at = self.place(rank, key)
        return at < 0 or self.recording.ranks[rank].ops["status"][at] != Status.UNSAID

    def place(self, rank: int, key: Key) -> int:
        """Return the place, among what is listed of the rank, at which it issued a collective, or -1."""
        return self.at(rank, key.group, -1, key.sequence)

    def at(self, rank: int, group: int, peer: int, sequence: int) -> int:
        """Return the place, likewise, of any operation."""
        ops = self.recording.ranks[rank].ops
        found = np.flatnonzero((ops["sequence"] == sequence) & (ops["group"] == group) & (ops["peer"] == peer))
        return int(found[0]) if len(found) else -1
