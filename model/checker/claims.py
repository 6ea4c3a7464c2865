"""Judges what a protocol claims of its whole state, on the states and moves that any engine has found.

A claim asks about states, so that none may stand for others: symmetry and reduction are refused with claims.

Left out: the properties that every protocol has (`reference.py`, `fast/properties.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from ...errors import ModelError
from ..claims import Claim, Fair, Invariant, LeadsTo
from ..semantics.network import Move, Network
from ..semantics.properties import WHEN, Property, own_properties
from ..semantics.whole import Whole
from ..tables import named
from .reference import Edge, StateGraph, Verdict, components

STILL = "nothing that is owed can happen from there"
Action = tuple[int, bool]
"""Names what is owed: a rank's host, or (True) its device, goes on."""


def own(network: Network, properties: Iterable[Property]) -> tuple[Property, ...]:
    """Return those of the properties that the protocol itself claims."""
    mine = own_properties(network.protocol)
    return tuple(p for p in properties if p in mine)


Where = Callable[[Any, Callable[[Whole], bool], bool], Iterator[int]]
"""Given a graph, a predicate and what is wanted of it: yields the states of which it says so, in order."""


class Judge:
    """Judges what the protocol of a network claims, in a graph. An engine may bring its own way to ask predicates."""

    def __init__(self, network: Network, graph: StateGraph, where: Where | None = None) -> None:
        self._network, self._graph = network, graph
        self._asks = where or partial(_one_by_one, network)

    def verdict(self, prop: Property) -> Verdict:
        """Return whether a claim of the protocol holds in a graph that is whole."""
        claim = _claim(self._network, prop)
        if isinstance(claim, Invariant):
            bad = next(self._where(claim, claim.holds, wanted=False), None)
            return Verdict(prop, bad is None, bad)
        if isinstance(claim, LeadsTo) and not prop.name.endswith(WHEN):
            short = set(self._where(claim, claim.then, wanted=False))
            begins = [n for n in self._where(claim, claim.when, wanted=True) if n in short]
            return _leads_to(self._network, self._graph, prop, claim, begins, short)
        predicate = claim.when if isinstance(claim, LeadsTo) else claim.seen
        seen = next(self._where(claim, predicate, wanted=True), None)
        return Verdict(prop, seen is not None, seen)

    def known_early(self, properties: Iterable[Property]) -> tuple[Verdict, ...]:
        """Return what an unfinished search has shown: the invariants that some state violates."""
        found = (self.verdict(p) for p in properties if isinstance(_claim(self._network, p), Invariant))
        return tuple(v for v in found if not v.holds)

    def _where(self, claim: Claim, predicate: Callable[[Whole], bool], *, wanted: bool) -> Iterator[int]:
        """Yield the states of which a predicate says what is wanted."""
        return self._asks(self._graph, partial(_asked, self._network, claim, predicate), wanted)


def _claim(network: Network, prop: Property) -> Claim:
    return next(c for c in network.protocol.claims if prop.name in (c.name, c.name + WHEN))


def _one_by_one(network: Network, graph: StateGraph, asked: Callable[[Whole], bool], wanted: bool) -> Iterator[int]:
    for number, state in enumerate(graph.states):
        if asked(Whole(network, state)) is wanted:
            yield number


def _asked(network: Network, claim: Claim, predicate: Callable[[Whole], bool], whole: Whole) -> bool:
    """Ask a predicate about a state. Raise ModelError, naming the claim, for one that raises or says nothing."""
    where = f"{network.protocol.name}, claim `{claim.name}`"
    try:
        answer = predicate(whole)
    except ModelError as error:
        raise ModelError(error.what, where=where, do=error.do) from error
    except Exception as error:
        do = "a predicate answers yes or no for every state"
        raise ModelError(f"`{named(predicate)}` raised {type(error).__name__}: {error}", where=where, do=do) from error
    if answer is None:
        raise ModelError(f"`{named(predicate)}` returned None", where=where, do="return True or False from it")
    return bool(answer)


# ── what must come in the end ───────────────────────────────────────────────────────────────────────


def _leads_to(
    network: Network, graph: StateGraph, prop: Property, claim: LeadsTo, begins: Sequence[int], short: set[int]
) -> Verdict:
    """Judge whether every fair run from `begins`, where `when` holds, leaves `short`, where `then` does not.

    Where one does not, some path from a state of `when` leads, past no state of `then`, to where a fair run can stay:
    in one state where nothing is owed, or in a strongly connected component in which each action that is owed in all
    of its states is taken inside. (Weak fairness: a larger component can only take more, and owe less.)
    """
    came = _spread(graph, begins, short)
    owed = {n: list(_owed(network, graph, n, claim.fair)) for n in came}
    traps = {n: STILL for n in came if not any(action is not None for action, _ in owed[n])}
    for component in components(graph.edges, sorted(came), set(came)):
        if _stays(component, owed):
            traps |= {n: f"a fair run may go round for ever from there, through {len(component):,} states"
                      for n in component if n not in traps}  # fmt: skip
    if not traps:
        return Verdict(prop, True)
    end = min(traps, key=lambda n: (came[n][0], n))
    path = [end]
    while (before := came[path[-1]][1]) >= 0:
        path.append(before)
    start = path[-1]
    while graph.parent[start] >= 0:
        start = int(graph.parent[start])
        path.append(start)
    return Verdict(prop, False, end, path=tuple(path[::-1]), then=traps[end])


def _spread(graph: StateGraph, begins: Sequence[int], inside: set[int]) -> dict[int, tuple[int, int]]:
    """Return what can be reached from `begins` without leaving `inside`: the steps of the shortest run, and from where.

    A run begins at the initial state, and goes to one of `begins` by the shortest way (from where: -1).
    """
    came: dict[int, tuple[int, int]] = {}
    queue = [(int(graph.depth[n]), -1, n) for n in begins]
    heapq.heapify(queue)
    while queue:
        steps, before, here = heapq.heappop(queue)
        if here in came:
            continue
        came[here] = (steps, before)
        for edge in graph.edges[here]:
            if edge.target in inside and edge.target not in came:
                heapq.heappush(queue, (steps + 1, here, edge.target))
    return came


def _owed(network: Network, graph: StateGraph, number: int, fair: Fair) -> Iterator[tuple[Action | None, int]]:
    """Yield for each move from a state which action it is of those that are owed, and where it leads."""
    moves = network.successors(graph.states[number])
    edges: Sequence[Edge] = graph.edges[number]
    for (move, _), edge in zip(moves, edges, strict=True):
        owed = (move.ordinary and not move.asked_for) or move.detects
        yield (_action(move, fair) if owed else None), edge.target


def _action(move: Move, fair: Fair) -> Action:
    return (-1, False) if fair is Fair.PROGRESS else (move.rank, move.edge == "device")


def _stays(component: Sequence[int], owed: dict[int, list[tuple[Action | None, int]]]) -> bool:
    """Return whether a fair run can go round in a component for ever."""
    here = frozenset(component)
    taken = {action for n in component for action, target in owed[n] if target in here}
    if not taken:  # no edge inside, not even one that nobody owes
        return False
    always = frozenset.intersection(*(frozenset(a for a, _ in owed[n] if a is not None) for n in component))
    return always <= taken
