"""Holds against each other what ranks did before the part of their recordings that was kept, by its digests.

Ranks cut their recordings at other places. So the digests of all members of a group are carried on to one operation,
the last at which any of them begins to be known by itself; the digests of sends, to those of the receives. Where they
are equal, the members issued the same operations up to there, in the same order: all of them are in the digests, and a
rank leaves an operation out of none. What is left are operations that are known one by one, from one place on.

Where digests of what members must agree on differ, they issued unlike operations: it is known that, not where. That
reductions differ is not known, as some ways into torch.distributed do not tell them.
Left out: how digests are made (`traces.digests`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...traces.collectives import OPS, Digest, RankRecord, Recording, Way, packed
from ...traces.digests import MASK, Digests, all_mixed, tokens

NOTHING = Digest(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Unlike:
    """Says that the digests of a group's members, or of the ends of one way, differ."""

    group: int
    what: str
    upto: int
    """The operations that are summed up are those up to this number."""
    parts: Sequence[tuple[int, ...]]
    """Ranks whose digests are equal, the most first."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Holds a recording from one place on, and what is known of all that was before it."""

    recording: Recording
    matched: int = 0
    """Collectives, and pairs of a send and a receive, that are summed up."""
    entries: int = 0
    """Operations of all ranks that are summed up."""
    reasons: tuple[str, ...] = ()
    """Says what is not entailed of what came before."""
    unlike: tuple[Unlike, ...] = ()


class _Ranks:
    """Holds, for each rank and way, what the rank did in it."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        found = [tokens(signature) for signature in recording.signatures]
        self.tokens: Digests = np.array(found, np.uint64).reshape(-1, 2)
        self.ways = {rank: _ways(recording, record) for rank, record in recording.ranks.items()}
        """Maps a rank and a way to where, among the rank's operations, those of the way stand."""

    def summed(self, rank: int, way: Way) -> Digest:
        """Return the digest of what is not known by itself."""
        record = self.recording.ranks[rank]
        return NOTHING if record.summed is None else record.summed.ways.get(way, NOTHING)

    def carried(self, rank: int, way: Way, upto: int) -> Digest | None:
        """Return the digest of all operations up to a number; None where the rank did not come so far."""
        base, ops = self.summed(rank, way), self.recording.ranks[rank].ops
        at = self.ways[rank].get(way, np.zeros(0, np.int64))
        at = at[ops["sequence"][at] <= upto]
        if base.operations + len(at) != upto:
            return None
        sequences = ops["sequence"][at].astype(np.int64)
        added = [int(all_mixed(of, sequences).sum(dtype=np.uint64)) for of in self.tokens[ops["signature"][at]].T]
        return Digest(upto, (base.wire + added[0]) & MASK, (base.full + added[1]) & MASK)

    def matching(self) -> Iterator[dict[int, Way]]:
        """Yield the ways that have to be alike, each as rank to its own end, of which some is summed up."""
        groups, pairs = set[int](), set[tuple[int, int, int, int]]()
        for rank, record in self.recording.ranks.items():
            for group, kind, peer, tag in () if record.summed is None else record.summed.ways:
                if not kind:
                    groups.add(group)
                else:
                    pairs.add((group, *((rank, peer) if kind == "send" else (peer, rank)), tag))
        for group in sorted(groups):
            yield dict.fromkeys(self.recording.groups[group].members, (group, "", -1, 0))
        for group, source, target, tag in sorted(pairs):
            known = self.recording.ranks.get(target)
            if known is None or group not in known.listens:
                yield {source: (group, "send", target, tag), target: (group, "recv", source, tag)}


def _ways(recording: Recording, record: RankRecord) -> dict[Way, npt.NDArray[np.int64]]:
    ops, found = record.ops, dict[Way, npt.NDArray[np.int64]]()
    kinds = np.array([{"send": 1, "recv": 2}.get(s.kind, 0) for s in recording.signatures] or [0])[ops["signature"]]
    columns = np.stack([ops["group"], kinds, ops["peer"], np.where(kinds, ops["tag"], 0)], axis=1)
    rows, back = np.unique(columns, axis=0, return_inverse=True)
    order = np.argsort(back.ravel(), kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(back.ravel(), minlength=len(rows)))[:-1]) if len(rows) else []
    for (group, kind, peer, tag), at in zip(rows.tolist(), parts, strict=True):
        found[group, ("", "send", "recv")[kind], peer, tag] = at
    return found


def settle(recording: Recording) -> Settled:
    """Return the recording from where on all of it is known by itself, and what its digests say of what was before."""
    if not any(record.summed is not None for record in recording.ranks.values()):
        return Settled(recording)
    ranks = _Ranks(recording)
    reasons = [f"rank{rank}: {why}" for rank, r in recording.ranks.items() if r.summed for why in r.summed.limits]
    upto: dict[tuple[int, Way], int] = {}
    unlike: list[Unlike] = []
    matched = 0
    for ends in ranks.matching():
        here = {rank: way for rank, way in ends.items() if rank in recording.ranks}
        last = max(ranks.summed(rank, way).operations for rank, way in here.items())
        if not last:
            continue
        what = _what(recording, ends, last)
        digests = {rank: ranks.carried(rank, way, last) for rank, way in here.items()}
        found = {rank: digest for rank, digest in digests.items() if digest is not None}
        if len({digest.wire for digest in found.values()}) > 1:
            unlike.append(Unlike(next(iter(ends.values()))[0], what, last, _parts(found)))
        elif len(found) < len(ends):
            short = ", ".join(f"rank{rank}" for rank in ends if rank not in found)
            reasons.append(f"{what} are known by a digest alone, and {short} cannot be held against it")
        else:
            if len({digest.full for digest in found.values()}) > 1:
                reasons.append(f"{what} are known by a digest alone, and not that their reductions were alike")
            matched += last
            upto |= dict.fromkeys(here.items(), last)
    records = {rank: _from(ranks, rank, upto, whole=not (reasons or unlike)) for rank in recording.ranks}
    entries = sum(record.summed.operations for record in recording.ranks.values() if record.summed)
    entries += sum(len(recording.ranks[rank].ops) - len(record.ops) for rank, record in records.items())
    return Settled(replace(recording, ranks=records), matched, entries, tuple(reasons), tuple(unlike))


def _from(ranks: _Ranks, rank: int, upto: Mapping[tuple[int, Way], int], *, whole: bool) -> RankRecord:
    """Return a rank's operations without those that are summed up."""
    record = ranks.recording.ranks[rank]
    kept = np.ones(len(record.ops), bool)
    for way, at in ranks.ways[rank].items():
        if (rank, way) in upto:
            kept[at] = record.ops["sequence"][at] > upto[rank, way]
    return replace(record, ops=packed(record.ops[kept].astype(OPS)), anchored=whole)


def _parts(digests: Mapping[int, Digest]) -> tuple[tuple[int, ...], ...]:
    parts: dict[int, list[int]] = {}
    for rank, digest in digests.items():
        parts.setdefault(digest.wire, []).append(rank)
    return tuple(sorted(map(tuple, parts.values()), key=lambda ranks: (-len(ranks), ranks)))


def _what(recording: Recording, ends: Mapping[int, Way], last: int) -> str:
    """Return a name for operations that are summed up."""
    group, kind, _, tag = next(iter(ends.values()))
    name = recording.groups[group].name
    if not kind:
        return f"the first {last:,} collectives of group {name}"
    source, target = ends
    return f"the first {last:,} sends from rank{source} to rank{target} (group {name}, tag {tag})"
