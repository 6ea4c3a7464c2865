"""Searches breadth-first and exactly, plain enough to be read as the definition: the reference engine.

It numbers the states in the order of their discovery, so that the first state that violates something is
reached by a shortest path. Left out: speed.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from ..semantics.network import CRASH, STALL, Move, Network, NetworkState
from ..semantics.properties import (
    ALL_ENDED,
    ALL_STOPPED,
    CLEAN_SHUTDOWN,
    CRASH_OVER_HANG,
    NO_FALSE_ABORT,
    NO_LIVELOCK,
    NO_STRANDING,
    TAKES_PART,
    Property,
)
from .limits import Ended, Limit


class Edge(NamedTuple):
    """Holds a move, as far as the properties ask for it."""

    rank: int
    target: int
    ordinary: bool
    advances: bool
    detects: bool
    takes_part: bool
    """An ordinary step in which the rank does more than go on by itself."""


TAKING_PART, ORDINARY, ADVANCES, DETECTS = 8, 4, 2, 1
ANY = TAKING_PART | ORDINARY | ADVANCES | DETECTS | 16
"""Bits of a packed edge. Bit 16 of a reversed one is always set, so that ANY counts every edge."""
Taken = tuple[int, str, str]
"""A row that was taken: the number of its role, state and event. A crash or stall is an event of no state."""


class Edges(Sequence[list[Edge]]):
    """Holds the edges of every state, packed: millions of them fit into memory."""

    def __init__(self) -> None:
        self._starts = array("q", [0])
        self._packed = array("q")

    def append(self, edges: Iterable[Edge]) -> None:
        """Append the edges of the next state."""
        for rank, target, ordinary, advances, detects, part in edges:
            self._packed.append(target << 13 | rank << 4 | part << 3 | ordinary << 2 | advances << 1 | detects)
        self._starts.append(len(self._packed))

    @property
    def total(self) -> int:
        return len(self._packed)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def packed(self, number: int) -> Sequence[int]:
        """Return the edges of a state as they are kept: target, rank, and the four bits."""
        return self._packed[self._starts[number] : self._starts[number + 1]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edges) and (self._starts, self._packed) == (other._starts, other._packed)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return [
            Edge(p >> 4 & 511, p >> 13, bool(p & 4), bool(p & 2), bool(p & 1), bool(p & 8))
            for p in self._packed[self._starts[number] : self._starts[number + 1]]
        ]


INTERRUPTED = "interrupted"
Progress = Callable[[int, int, int], None]
"""Called now and then with the states found, the depth and the queue's length."""


class StateGraph(Protocol):
    """Holds what every engine leaves behind: states numbered in the order of their discovery, breadth first."""

    @property
    def seen(self) -> dict[str, tuple[int, int]]:
        """Return, by property name, the first edge (source, ordinal) on which a ghost named it."""
        ...

    @property
    def taken(self) -> frozenset[Taken]:
        """Return the rows that some run takes, as far as was searched."""
        ...

    @property
    def states(self) -> Sequence[NetworkState]: ...
    @property
    def edges(self) -> Sequence[list[Edge]]: ...
    @property
    def parent(self) -> Sequence[int]: ...
    @property
    def depth(self) -> Sequence[int]: ...
    @property
    def counts(self) -> tuple[int, int]:
        """Return the numbers of states and transitions, those counted too that stand for others under symmetry."""
        ...

    def stands_for(self, number: int, state: NetworkState) -> bool:
        """Return whether `state` is the one of this number, up to the order of its workers where that is free."""
        ...


@dataclass
class Graph:
    """Holds the reachable states, their edges, and how each was first reached."""

    states: list[NetworkState] = field(default_factory=list)
    index: dict[NetworkState, int] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    edges: Edges = field(default_factory=Edges)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    taken_rows: set[Taken] = field(default_factory=set)
    stopped: str | None = None

    @property
    def taken(self) -> frozenset[Taken]:
        return frozenset(self.taken_rows)

    @cached_property
    def reversed(self) -> list[list[int]]:
        """Return, per state, (source, bits) of each edge into it, packed."""
        back: list[list[int]] = [[] for _ in self.states]
        for n in range(len(self.edges)):
            for edge in self.edges.packed(n):
                back[edge >> 13].append(n << 5 | 16 | edge & 15)
        return back

    @property
    def transitions(self) -> int:
        return self.edges.total

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.states), self.transitions

    def stands_for(self, number: int, state: NetworkState) -> bool:
        return self.states[number] == state


@dataclass(frozen=True)
class Verdict:
    """Says whether a property holds; if not, the state (and rank) where a shortest path shows it."""

    property: Property
    holds: bool
    state: int | None = None
    rank: int | None = None
    edge: int | None = None
    """For a property seen on an edge: its ordinal among the state's moves."""
    path: tuple[int, ...] = ()
    """The states of a run that shows it, from the initial one on, where that is not the shortest way to the state."""
    then: str = ""
    """Says how such a run may go on for ever."""


@dataclass(frozen=True)
class Result:
    """Holds what a search found."""

    network: Network
    graph: StateGraph
    verdicts: tuple[Verdict, ...]
    deadlocks: int
    seconds: float
    worst_steps: int | None = None
    """From a failure to the last rank's end, at worst, if nobody does anything else meanwhile."""
    engine: str = "reference"
    symmetric: bool = False
    reduced: bool = False
    """Moves were left out that lead to nothing new: see `partial_order_reduction`."""
    stopped: str | None = None
    """Why the search did not come to its end; then only what is violated already is among the verdicts."""
    search_seconds: float = 0.0
    """Seconds of these to find the states; the rest went into judging them."""
    flags: list[tuple[bool, bool]] = field(default_factory=list)
    """Per state: whether a rank has failed, whether all have ended. Of the reference engine alone."""

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)

    def verdict(self, name: str) -> Verdict:
        return next(v for v in self.verdicts if v.property.name == name)


def explore(network: Network, progress: Progress | None = None, limit: Limit | None = None) -> Graph:
    """Return every reachable state, breadth first. `limit` may end the search early."""
    graph = Graph()
    initial = network.initial()
    graph.index[initial] = 0
    graph.states.append(initial)
    graph.parent.append(-1)
    graph.depth.append(0)
    try:
        _expand(network, graph, progress, limit)
    except KeyboardInterrupt:
        graph.stopped = INTERRUPTED
    except Ended as ended:
        graph.stopped = str(ended)
    return graph


def _expand(network: Network, graph: Graph, progress: Progress | None, limit: Limit | None) -> None:
    queue = deque([0])
    while queue:
        number = queue.popleft()
        edges: list[Edge] = []
        for ordinal, (move, after) in enumerate(network.successors(graph.states[number])):
            target = graph.index.get(after)
            if target is None:
                target = graph.index[after] = len(graph.states)
                graph.states.append(after)
                graph.parent.append(number)
                graph.depth.append(graph.depth[number] + 1)
                queue.append(target)
            part = move.ordinary and move.takes_part
            edges.append(Edge(move.rank, target, move.ordinary, move.advances, move.detects, part))
            if move.row is not None:  # of a collective: it has completed, or the host goes on without
                graph.taken_rows.add((network.role_of[move.rank], *move.row))
            elif move.edge in (CRASH, STALL):
                graph.taken_rows.add((network.role_of[move.rank], "", move.edge))
            for name in move.seen:
                graph.seen.setdefault(name, (number, ordinal))
        graph.edges.append(edges)
        if limit is not None and number % 64 == 0:
            limit(len(graph.states))
        if progress is not None and number % 4096 == 0:
            progress(len(graph.states), graph.depth[number], len(queue))


def check(
    network: Network,
    properties: Sequence[Property],
    *,
    judge_all: bool = False,
    progress: Progress | None = None,
    limit: Limit | None = None,
) -> Result:
    """Search the whole state space and judge each property.

    `judge_all`: judge `no_stranding` in every state, also after a failure (what detection is worth).
    By default it is judged until a rank fails; from there on `crash_over_hang` takes over.
    """
    begin = time.perf_counter()
    graph = explore(network, progress, limit)
    searched = time.perf_counter() - begin
    if graph.stopped:
        return Result(network, graph, known_early(graph, properties), 0, searched, stopped=graph.stopped)
    flags = [network.verdict(s) for s in graph.states]
    verdicts = tuple(_judge(network, graph, flags, p, judge_all) for p in properties)
    deadlocks = sum(1 for edges, (_, ended) in zip(graph.edges, flags, strict=True) if not edges and not ended)
    worst = worst_steps_to_end(graph, flags)
    seconds = time.perf_counter() - begin
    return Result(network, graph, verdicts, deadlocks, seconds, worst, search_seconds=searched, flags=flags)


def known_early(graph: StateGraph, properties: Iterable[Property]) -> tuple[Verdict, ...]:
    """Return what an unfinished search has shown: the claims that a ghost has named as violated."""
    verdicts = (seen_on_an_edge(graph.seen, p) for p in properties if p.kind == "always")
    return tuple(v for v in verdicts if not v.holds)


def _judge(network: Network, graph: Graph, flags: list[tuple[bool, bool]], prop: Property, judge_all: bool) -> Verdict:
    if prop in (NO_STRANDING, NO_LIVELOCK):
        return _always_again(network, graph, flags, judge_all, prop)
    if prop is TAKES_PART:
        part = next((n for n in range(len(graph.edges)) if any(e.takes_part for e in graph.edges[n])), None)
        return Verdict(prop, part is not None, part)
    if prop is CRASH_OVER_HANG:
        bad = first_hang(graph, flags)
        return Verdict(prop, bad is None, bad)
    if prop is CLEAN_SHUTDOWN:
        bad = _unclean(network, graph, flags)
        return Verdict(prop, bad is None, bad)
    if prop is NO_FALSE_ABORT:
        bad = next((n for n, (failed, _) in enumerate(flags) if failed and not graph.states[n].faults), None)
        return Verdict(prop, bad is None, bad)
    if prop is ALL_STOPPED:
        stopped = next((n for n, (failed, ended) in enumerate(flags) if ended and not failed), None)
        return Verdict(prop, stopped is not None, stopped)
    if prop is ALL_ENDED:
        done = next((n for n, (failed, ended) in enumerate(flags) if ended and failed), None)
        return Verdict(prop, done is not None or not any(failed for failed, _ in flags), done)
    return seen_on_an_edge(graph.seen, prop)


def seen_on_an_edge(seen: Mapping[str, tuple[int, int]], prop: Property) -> Verdict:
    """Return whether a ghost named the property, and where first."""
    found = seen.get(prop.name)
    violated = found is not None if prop.kind == "always" else found is None
    state, edge = found if found else (None, None)
    return Verdict(prop, not violated, state, None, edge)


def _always_again(
    network: Network, graph: Graph, flags: list[tuple[bool, bool]], judge_all: bool, prop: Property
) -> Verdict:
    """Judge AG EF per rank: from every judged state some path lets the rank advance (NO_STRANDING).

    NO_LIVELOCK asks that some path lets it take part, or come to where it is stranded: else it goes round for ever.
    Until a fault the path is of ordinary steps alone; after one, detection may help, unless `judge_all`. Once a rank
    has failed, `crash_over_hang` takes over.
    """
    first: tuple[int, int] | None = None
    judged = [judge_all or not failed for failed, _ in flags]
    for rank in range(network.ranks):
        alone = _goes_well(graph, rank, prop, judged, detection=False)
        helped = alone if judge_all else _goes_well(graph, rank, prop, judged, detection=True)
        for n, state in enumerate(graph.states):
            safe = helped if state.faults else alone
            if safe[n] or not judged[n]:
                continue
            info = network.info(state, rank)
            if not info.terminal and not info.stalled:
                first = min(first, (n, rank)) if first else (n, rank)
                break
    return Verdict(prop, first is None, *(first or (None, None)))


def _goes_well(graph: Graph, rank: int, prop: Property, judged: Sequence[bool], *, detection: bool) -> list[bool]:
    """Return, for each state, whether it is as the property asks for `rank`."""
    advances = _can_get_to(graph, rank, ADVANCES, detection=detection)
    if prop is NO_STRANDING:
        return advances
    takes_part = _can_get_to(graph, rank, TAKING_PART, detection=detection)
    stands = [n for n, on in enumerate(advances) if judged[n] and not on]
    comes_to_stand = _can_reach(graph, stands, ORDINARY | (DETECTS if detection else 0))
    return [part or stuck for part, stuck in zip(takes_part, comes_to_stand, strict=True)]


def _can_get_to(graph: Graph, rank: int, goal: int, *, detection: bool) -> list[bool]:
    """Return, for each state, whether some path leads to an ordinary step of `rank` that has the bit `goal`.

    With `detection` the path may use its steps, and one that moves the rank will do.
    """
    ends = (ORDINARY | goal, DETECTS | ADVANCES) if detection else (ORDINARY | goal,)
    found = [
        n
        for n in range(len(graph.edges))
        if any(e >> 4 & 511 == rank and any(e & end == end for end in ends) for e in graph.edges.packed(n))
    ]
    return _can_reach(graph, found, ORDINARY | (DETECTS if detection else 0))


def first_hang(graph: Graph, flags: list[tuple[bool, bool]]) -> int | None:
    """Return the first state after a failure from which some fair run goes on for ever, or stands still.

    Fair means that what detection may do to a rank all the time, it does in the end. Then a run can stay for ever
    only in a state that no move leaves, or in a strongly connected component that has no rank which detection
    would take out of it from every state.
    """
    troubled = [n for n, (failed, ended) in enumerate(flags) if failed and not ended]
    inside = set(troubled)
    traps = [n for n in troubled if all(e.target == n for e in graph.edges[n])]
    for component in components(graph.edges, troubled, inside):
        if is_trap(graph.edges, component):
            traps += component
    if not traps:
        return None
    doomed = _can_reach(graph, traps, ANY)
    return next(n for n in troubled if doomed[n])


def is_trap(edges: Sequence[list[Edge]], component: Sequence[int]) -> bool:
    """Return whether a fair run can stay in a component: it goes round, and detection takes no rank out always."""
    if len(component) == 1 and not any(e.target == component[0] and e.advances for e in edges[component[0]]):
        return False
    here = frozenset(component)
    detected = (frozenset(e.rank for e in edges[n] if e.detects and e.target not in here) for n in component)
    return not frozenset.intersection(*detected)


def worst_steps_to_end(graph: Graph, flags: list[tuple[bool, bool]]) -> int | None:
    """Return the most steps that it takes from a failure that has just happened until all have ended.

    Nobody does anything else meanwhile. None where nothing ever fails.
    """
    far = {n: 0 for n, (_, ended) in enumerate(flags) if ended}
    queue = deque(far)
    while queue:
        here = queue.popleft()
        for edge in graph.reversed[here]:
            if edge >> 5 not in far:
                far[edge >> 5] = far[here] + 1
                queue.append(edge >> 5)
    sound = (n for n, (failed, _) in enumerate(flags) if not failed)
    starts = {e >> 13 for n in sound for e in graph.edges.packed(n) if flags[e >> 13][0]}
    return max((far[n] for n in starts if n in far), default=None)


def _unclean(network: Network, graph: Graph, flags: list[tuple[bool, bool]]) -> int | None:
    """Return the first state where rank0 shuts down, nothing failed and some run does not end with all STOPPED."""
    inside = {
        n
        for n, (failed, _) in enumerate(flags)
        if not failed and not graph.states[n].faults and network.shutting_down(graph.states[n])
    }
    stopped = _can_reach(graph, [n for n in inside if flags[n][1]], ORDINARY)
    for n in sorted(inside):
        if not stopped[n]:
            return n
    round_and_round = (min(c) for c in components(graph.edges, sorted(inside), inside) if len(c) > 1)
    return min(round_and_round, default=None)


def components(edges: Sequence[list[Edge]], roots: Iterable[int], inside: set[int]) -> Iterator[list[int]]:
    """Yield the strongly connected components of the states `inside` (Tarjan, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in roots:
        if root in order:
            continue
        work = [(root, iter([e.target for e in edges[root]]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in inside:
                    continue
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter([e.target for e in edges[target]])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    yield component


def _can_reach(graph: Graph, goal: Iterable[int], bits: int) -> list[bool]:
    """Return, for each state, whether some path of edges with one of these bits leads from it into `goal`."""
    reached = [False] * len(graph.states)
    stack = []
    for n in goal:
        if not reached[n]:
            reached[n] = True
            stack.append(n)
    while stack:
        for edge in graph.reversed[stack.pop()]:
            if edge & bits and not reached[edge >> 5]:
                reached[edge >> 5] = True
                stack.append(edge >> 5)
    return reached


def replay(
    network: Network, graph: StateGraph, numbers: Sequence[int], here: NetworkState
) -> list[tuple[Move, NetworkState]]:
    """Return the moves from `here` through the states of these numbers, asked of the network again."""
    path = []
    for there in numbers:
        move, here = next((m, s) for m, s in network.successors(here) if graph.stands_for(there, s))
        path.append((move, here))
    return path


def path_to(network: Network, graph: StateGraph, verdict: Verdict) -> list[tuple[Move, NetworkState]]:
    """Return a shortest path to where `verdict` shows, replayed through the network."""
    if verdict.state is None:
        return []
    if verdict.path:
        return replay(network, graph, verdict.path[1:], network.initial())
    numbers = [verdict.state]
    while graph.parent[numbers[-1]] >= 0:
        numbers.append(int(graph.parent[numbers[-1]]))
    path = replay(network, graph, numbers[-2::-1], network.initial())
    if verdict.edge is not None:
        here = path[-1][1] if path else network.initial()
        path.append(next((m, s) for m, s in network.successors(here) if verdict.property.name in m.seen))
    return path
