"""The reference engine: breadth-first, exact, and plain enough to be read as the definition.

It numbers the states in the order of their discovery, so that the first state that violates something is
reached by a shortest path. Left out: speed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..network import Move, Network, NetworkState
from ..properties import (
    ALL_STOPPED,
    CRASH_OVER_HANG,
    NO_FALSE_ABORT,
    NO_STRANDING,
    Property,
)

Progress = Callable[[int, int, int], None]
"""Called now and then with the states found, the depth and the queue's length."""


@dataclass
class Graph:
    """The reachable states, their edges, and how each was first reached."""

    states: list[NetworkState] = field(default_factory=list)
    index: dict[NetworkState, int] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    edges: list[list[tuple[int, int, bool, bool]]] = field(default_factory=list)
    """Per state: (rank, target, ordinary, advances)."""
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Property name to the first edge (source, ordinal) on which a ghost named it."""

    @property
    def transitions(self) -> int:
        return sum(map(len, self.edges))


@dataclass(frozen=True)
class Verdict:
    """Whether a property holds; if not, the state (and rank) where a shortest path shows it."""

    property: Property
    holds: bool
    state: int | None = None
    rank: int | None = None
    edge: int | None = None
    """For a property seen on an edge: its ordinal among the state's moves."""


@dataclass(frozen=True)
class Result:
    """What a search found."""

    network: Network
    graph: Graph
    verdicts: tuple[Verdict, ...]
    deadlocks: int
    seconds: float

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)

    def verdict(self, name: str) -> Verdict:
        return next(v for v in self.verdicts if v.property.name == name)


def explore(network: Network, progress: Progress | None = None) -> Graph:
    """Every reachable state, breadth first."""
    graph = Graph()
    initial = network.initial()
    graph.index[initial] = 0
    graph.states.append(initial)
    graph.parent.append(-1)
    graph.depth.append(0)
    queue = deque([0])
    while queue:
        number = queue.popleft()
        edges: list[tuple[int, int, bool, bool]] = []
        for ordinal, (move, after) in enumerate(network.successors(graph.states[number])):
            target = graph.index.get(after)
            if target is None:
                target = graph.index[after] = len(graph.states)
                graph.states.append(after)
                graph.parent.append(number)
                graph.depth.append(graph.depth[number] + 1)
                queue.append(target)
            edges.append((move.rank, target, move.ordinary, move.advances))
            for name in move.seen:
                graph.seen.setdefault(name, (number, ordinal))
        graph.edges.append(edges)
        if progress is not None and number % 4096 == 0:
            progress(len(graph.states), graph.depth[number], len(queue))
    return graph


def check(
    network: Network,
    properties: Sequence[Property],
    *,
    judge_all: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Search the whole state space and judge each property.

    `judge_all`: judge `no_stranding` in every state, also after a failure (what detection is worth).
    By default it is judged until a rank fails; from there on `crash_over_hang` takes over.
    """
    begin = time.perf_counter()
    graph = explore(network, progress)
    flags = [network.violations(s) for s in graph.states]
    verdicts = tuple(_judge(network, graph, flags, p, judge_all) for p in properties)
    deadlocks = sum(1 for edges, (_, ended) in zip(graph.edges, flags, strict=True) if not edges and not ended)
    return Result(network, graph, verdicts, deadlocks, time.perf_counter() - begin)


def _judge(network: Network, graph: Graph, flags: list[tuple[bool, bool]], prop: Property, judge_all: bool) -> Verdict:
    if prop is NO_STRANDING:
        return _no_stranding(network, graph, flags, judge_all)
    if prop is CRASH_OVER_HANG:
        ends = [n for n, (_, ended) in enumerate(flags) if ended]
        safe = _can_reach(graph, ends, ordinary_only=False)
        bad = next((n for n, (failed, _) in enumerate(flags) if failed and not safe[n]), None)
        return Verdict(prop, bad is None, bad)
    if prop is NO_FALSE_ABORT:
        bad = next((n for n, (failed, _) in enumerate(flags) if failed and not graph.states[n].faults), None)
        return Verdict(prop, bad is None, bad)
    if prop is ALL_STOPPED:
        stopped = next((n for n, (failed, ended) in enumerate(flags) if ended and not failed), None)
        return Verdict(prop, stopped is not None, stopped)
    found = graph.seen.get(prop.name)
    violated = found is not None if prop.kind == "always" else found is None
    state, edge = found if found else (None, None)
    return Verdict(prop, not violated, state, None, edge)


def _no_stranding(network: Network, graph: Graph, flags: list[tuple[bool, bool]], judge_all: bool) -> Verdict:
    """AG EF per rank: from every judged state some ordinary path lets the rank advance."""
    first: tuple[int, int] | None = None
    for rank in range(network.ranks):
        advancing = (
            n
            for n, edges in enumerate(graph.edges)
            if any(r == rank and ordinary and advances for r, _, ordinary, advances in edges)
        )
        safe = _can_reach(graph, advancing, ordinary_only=True)
        for n, (failed, _) in enumerate(flags):
            if (judge_all or not failed) and not safe[n] and not network.info(graph.states[n], rank).terminal:
                first = min(first, (n, rank)) if first else (n, rank)
                break
    return Verdict(NO_STRANDING, first is None, *(first or (None, None)))


def _can_reach(graph: Graph, goal: Iterable[int], *, ordinary_only: bool) -> list[bool]:
    """For each state, whether some path leads from it into `goal`."""
    back: list[list[int]] = [[] for _ in graph.states]
    for n, edges in enumerate(graph.edges):
        for _, target, ordinary, _ in edges:
            if ordinary or not ordinary_only:
                back[target].append(n)
    reached = [False] * len(graph.states)
    stack = []
    for n in goal:
        if not reached[n]:
            reached[n] = True
            stack.append(n)
    while stack:
        for source in back[stack.pop()]:
            if not reached[source]:
                reached[source] = True
                stack.append(source)
    return reached


def replay(network: Network, graph: Graph, numbers: Sequence[int]) -> list[tuple[Move, NetworkState]]:
    """The moves between consecutive states, asked of the network again."""
    path = []
    for here, there in pairwise(numbers):
        target = graph.states[there]
        path.append(next((m, s) for m, s in network.successors(graph.states[here]) if s == target))
    return path


def path_to(network: Network, graph: Graph, verdict: Verdict) -> list[tuple[Move, NetworkState]]:
    """A shortest path to where `verdict` shows, replayed through the network."""
    if verdict.state is None:
        return []
    numbers = [verdict.state]
    while graph.parent[numbers[-1]] >= 0:
        numbers.append(graph.parent[numbers[-1]])
    path = replay(network, graph, numbers[::-1])
    if verdict.edge is not None:
        path.append(list(network.successors(graph.states[verdict.state]))[verdict.edge])
    return path
