"""Replays a few of the ranks that wrote the same for all of them, and says of the others what was found of these.

What a diagnosis asks of many equal ranks is whether they are more than others (the usual value at a place where ranks
differ). So of each kind as many are kept as it takes to stay in the majority wherever it was; where the kinds are so
many, or so evenly split, that this needs all, all are kept. Ranks keep their numbers.

Left out: finding ranks that wrote the same (`traces.identical_ranks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from ...traces.format import Trace
from ..diagnosis import Accusation, Standing, WaitingRank, accusations

T = TypeVar("T")

KEPT = 3
"""Replays so many of each kind at least, so that one of several is told apart from all of them."""


class RankClasses:
    """Groups the ranks of a run that wrote the same; `few` of them stand for all."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        kinds: dict[int, list[Trace]] = {}
        for trace in sorted(traces, key=lambda t: t.rank):
            kinds.setdefault(trace.rank if trace.same_as is None else trace.same_as, []).append(trace)
        kept = _kept([len(kind) for kind in kinds.values()])
        few = [trace for kind, size in zip(kinds.values(), kept, strict=True) for trace in kind[:size]]
        self.others: dict[int, tuple[int, ...]] = {}
        """The last rank that was kept of a kind to those that were not."""
        self.kinds: dict[int, tuple[int, ...]] = {}
        """Likewise to all that were kept."""
        for kind, size in zip(kinds.values(), kept, strict=True):
            if size < len(kind):
                self.others[kind[size - 1].rank] = tuple(t.rank for t in kind[size:])
                self.kinds[kind[size - 1].rank] = tuple(t.rank for t in kind[:size])
        self.few = [_among(trace, {t.rank for t in few}) for trace in few] if self.others else list(traces)

    def weight(self, rank: int) -> int:
        """Return how many ranks a rank that was kept stands for."""
        return 1 + len(self.others.get(rank, ()))

    def ranks(self, named: Iterable[int]) -> tuple[int, ...]:
        """Return the named ranks and, where all that were kept of a kind are among them, the others of it."""
        found = set(named)
        for last, kind in self.kinds.items():
            if found.issuperset(kind):
                found |= set(self.others[last])
        return tuple(sorted(found)) if self.others else tuple(named)

    def accused(self, named: Sequence[Accusation]) -> tuple[Accusation, ...]:
        """Return the accusations, with those of the others of each kind."""
        if not self.others or not named:
            return tuple(named)
        ranks = self.ranks(accusation.rank for accusation in named)
        return accusations(ranks, named[0].strength, named[0].case)

    def waits(self, waits: Sequence[WaitingRank]) -> tuple[WaitingRank, ...]:
        """Return the waits, with those of the others of each kind."""
        kept = [wait._replace(missing=self.ranks(wait.missing)) for wait in waits] if self.others else list(waits)
        more = [wait._replace(rank=other) for wait in kept for other in self.others.get(wait.rank, ())]
        return tuple(kept + more)

    def standings(self, found: Iterable[Standing]) -> tuple[Standing, ...]:
        """Return where each rank ended, the others of a kind where the kept ones did."""
        told = list(found)
        more = [replace(standing, rank=other) for standing in told for other in self.others.get(standing.rank, ())]
        return tuple(sorted(told + more, key=lambda s: s.rank)) if more else tuple(told)

    def each(self, found: Mapping[int, T]) -> list[tuple[int, T]]:
        """Return what was found of the ranks that were kept, for every rank."""
        others = ((other, found[last]) for last, rest in self.others.items() for other in rest)
        return sorted([*found.items(), *others], key=lambda item: item[0]) if self.others else list(found.items())

    def given(self) -> set[int]:
        """Return all ranks of which there is a trace."""
        return {trace.rank for trace in self.few} | {rank for others in self.others.values() for rank in others}


def _kept(sizes: Sequence[int]) -> list[int]:
    """Return how many of each kind it takes, so that a kind larger than all smaller ones together stays so."""
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    kept = dict(enumerate(sizes))
    even = smaller = 0  # of so many kinds, the smallest ones, all ranks have to be kept
    for place, at in enumerate(order):
        if sizes[at] <= smaller + 1:
            even = place + 1
        smaller += sizes[at]
    fewer = sum(sizes[at] for at in order[:even])
    for at in order[even:]:
        kept[at] = min(sizes[at], max(KEPT, fewer + 2))
        fewer += kept[at]
    return [kept[at] for at in range(len(sizes))]


def _among(trace: Trace, ranks: set[int]) -> Trace:
    """Return the trace as if nobody but these ranks had been in its groups."""
    groups = {name: tuple(r for r in members if r in ranks) for name, members in trace.header.groups.items()}
    return msgspec.structs.replace(trace, header=msgspec.structs.replace(trace.header, groups=groups))
