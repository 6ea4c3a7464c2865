"""Judges what a protocol claims of its whole state, on the states and moves that any engine has found.

A claim asks about states, so that none may stand for others: symmetry and reduction are refused with claims.

Left out: the properties that every protocol has (`reference.py`, `fast/properties.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

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


def judge(network: Network, graph: StateGraph, prop: Property) -> Verdict:
    """Return whether a claim of the protocol holds in a graph that is whole."""
    claim = _claim(network, prop)
    if isinstance(claim, Invariant):
        bad = next(_where(network, graph, claim, claim.holds, wanted=False), None)
        return Verdict(prop, bad is None, bad)
    if isinstance(claim, LeadsTo) and not prop.name.endswith(WHEN):
        return _leads_to(network, graph, prop, claim)
    predicate = claim.when if isinstance(claim, LeadsTo) else claim.seen
    seen = next(_where(network, graph, claim, predicate, wanted=True), None)
    return Verdict(prop, seen is not None, seen)


def known_early(network: Network, graph: StateGraph, properties: Iterable[Property]) -> tuple[Verdict, ...]:
    """Return what an unfinished search has shown: the invariants that some state violates."""
    found = (judge(network, graph, p) for p in properties if isinstance(_claim(network, p), Invariant))
    return tuple(v for v in found if not v.holds)


def _claim(network: Network, prop: Property) -> Claim:
    return next(c for c in network.protocol.claims if prop.name in (c.name, c.name + WHEN))


def _where(
    network: Network, graph: StateGraph, claim: Claim, predicate: Callable[[Whole], bool], *, wanted: bool
) -> Iterator[int]:
    """Yield the states in which a predicate says what is wanted."""
    for number in range(len(graph.states)):
        if _asked(network, graph, claim, predicate, number) is wanted:
            yield number


def _asked(network: Network, graph: StateGraph, claim: Claim, predicate: Callable[[Whole], bool], number: int) -> bool:
    """Ask a predicate about a state. Raise ModelError, naming the claim, for one that raises or says nothing."""
    where = f"{network.protocol.name}, claim `{claim.name}`"
    try:
        answer = predicate(Whole(network, graph.states[number]))
    except ModelError as error:
        raise ModelError(error.what, where=where, do=error.do) from error
    except Exception as error:
        do = "a predicate answers yes or no for every state"
        raise ModelError(f"`{named(predicate)}` raised {type(error).__name__}: {error}", where=where, do=do) from error
    if answer is None:
        raise ModelError(f"`{named(predicate)}` returned None", where=where, do="return True or False from it")
    return bool(answer)


# ── what must come in the end ───────────────────────────────────────────────────────────────────────


def _leads_to(network: Network, graph: StateGraph, prop: Property, claim: LeadsTo) -> Verdict:
    """Judge whether every fair run from `when` comes to `then`.

    Where one does not, some path from a state of `when` leads, past no state of `then`, to where a fair run can stay:
    in one state where nothing is owed, or in a strongly connected component in which each action that is owed in all
    of its states is taken inside. (Weak fairness: a larger component can only take more, and owe less.)
    """
    short = set(_where(network, graph, claim, claim.then, wanted=False))
    begins = [n for n in _where(network, graph, claim, claim.when, wanted=True) if n in short]
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
