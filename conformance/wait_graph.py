"""Finds which rank waits for which, across all groups: the culprits are the roots of this graph, or a circle in it.

Ranks that wait in the same operation for the same ranks, and for which the same ranks wait, are one node, so that a job
of thousands is a graph of a few.

Left out: how it is found (`stall`, `match`), and its picture (`drawn`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from .diagnosis import Diagnosis


class Edge(NamedTuple):
    """Holds the ranks that wait in one operation for the same ranks."""

    operation: str
    ranks: tuple[int, ...]
    waits_for: tuple[int, ...]


class Node(NamedTuple):
    """Holds the ranks that the graph does not tell apart."""

    ranks: tuple[int, ...]
    role: str
    """`culprit`, `circle`, `root` (others wait for it, it waits for nobody) or `waiting`."""


class WaitGraph:
    """Holds the wait-for graph of a diagnosis."""

    def __init__(self, found: Diagnosis) -> None:
        self.culprits, self.stall, self.verdict = found.culprits, found.stall, found.verdict
        together: dict[tuple[str, tuple[int, ...]], set[int]] = {}
        for wait in found.waits:
            if wait.missing:
                together.setdefault((wait.operation, tuple(sorted(set(wait.missing)))), set()).add(wait.rank)
        self.waits = sorted(Edge(what, tuple(sorted(ranks)), due) for (what, due), ranks in together.items())

    @cached_property
    def roots(self) -> tuple[int, ...]:
        """Return the ranks that others wait for and that wait for nobody."""
        waiting = {rank for wait in self.waits for rank in wait.ranks}
        return tuple(sorted({rank for wait in self.waits for rank in wait.waits_for} - waiting))

    @cached_property
    def circle(self) -> tuple[int, ...]:
        """Return the ranks that wait for each other and, in the end, for nobody else; none if there are roots."""
        waits: dict[int, set[int]] = {}
        for wait in self.waits:
            for rank in wait.ranks:
                waits.setdefault(rank, set()).update(wait.waits_for)
        if self.roots or not waits:
            return ()
        import networkx as nx  # slow to load

        graph: nx.DiGraph[int] = nx.DiGraph((rank, peer) for rank, peers in waits.items() for peer in peers)
        return tuple(sorted(set().union(*nx.attracting_components(graph))))

    @cached_property
    def nodes(self) -> list[Node]:
        """Return all ranks of the graph, those that it does not tell apart together."""
        places: dict[int, list[tuple[int, str]]] = {rank: [] for rank in self.culprits}
        for number, wait in enumerate(self.waits):
            for end, ranks in (("waits", wait.ranks), ("is due", wait.waits_for)):
                for rank in ranks:
                    places.setdefault(rank, []).append((number, end))
        alike: dict[tuple[object, ...], list[int]] = {}
        for rank, place in sorted(places.items()):
            alike.setdefault((self._role(rank), *place), []).append(rank)
        return [Node(tuple(ranks), str(key[0])) for key, ranks in alike.items()]

    def _role(self, rank: int) -> str:
        named = {"culprit": self.culprits, "circle": self.circle, "root": self.roots}
        return next((name for name, ranks in named.items() if rank in ranks), "waiting")

    def arrows(self) -> Iterator[tuple[Edge, list[Node], list[Node]]]:
        """Yield each wait with the nodes that wait, and those that they wait for."""
        for wait in self.waits:
            one, other = ([n for n in self.nodes if n.ranks[0] in ranks] for ranks in (wait.ranks, wait.waits_for))
            yield wait, one, other

    def as_json(self) -> dict[str, Any]:
        """Return what `replay --format json` has as `wait_for_graph`."""
        return {
            "waits": [
                {"operation": w.operation, "ranks": [*w.ranks], "waiting_for": [*w.waits_for]} for w in self.waits
            ],
            "roots": list(self.roots),
            "circle": list(self.circle),
        }

    def title(self) -> str:
        """Return the graph in a line."""
        if not self.waits:
            return f"{self.verdict}: nobody is left waiting"
        known = set(self.culprits) == {*self.roots, *self.circle}
        end = f"a circle of {named(self.circle)}" if self.circle else f"wait for {named(self.roots)}"
        if known:
            return ("" if self.circle else "all ") + end + (f" ({self.stall} stall)" if self.stall else "")
        return ("" if self.circle else "some ") + f"{end}; to blame is {named(self.culprits) or 'who is not known'}"


def named(ranks: Collection[int]) -> str:
    """Return ranks as in `rank0, rank2 to rank5`."""
    runs: list[list[int]] = []
    for before, rank in pairwise([-2, *sorted(ranks)]):
        runs.append([rank]) if rank != before + 1 else runs[-1].append(rank)
    return ", ".join(f"rank{run[0]}" + (f" to rank{run[-1]}" if len(run) > 2 else _second(run)) for run in runs)


def _second(run: Sequence[int]) -> str:
    return f", rank{run[1]}" if len(run) > 1 else ""
