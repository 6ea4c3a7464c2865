"""Proves safety and freedom from deadlock for every number of workers in one search: `genlock check --any-world-size`.

Every state of a network of any size is one of the states searched here (`docs/any-world-size.md` has the theorem), so
that what holds in these holds at every size. What fails here may be a state that no network has: it is looked for on
real networks, from two ranks up, and called possibly spurious where none shows it.

Left out: claims about what comes in the end (no_stranding, crash_over_hang, clean_shutdown) and how many steps anything
takes; of these a set of workers tells nothing. What was reached at all is asked of networks (`reached.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....errors import Exit, UsageError
from ...semantics.network import Network
from ...semantics.properties import NO_FALSE_ABORT, NO_LIVELOCK, NO_STRANDING, Property, properties_of
from ...semantics.query import Query
from ...semantics.run import Counterexample
from ..counterexample import counterexample
from ..coverage import refuse_unknown
from ..limits import Ended, Limit, limit
from ..reference import INTERRUPTED, Progress, Result, StateGraph, Taken, Verdict, check
from ..report import EXIT, Answer
from .abstract_network import AbstractNetwork, Hop
from .abstract_state import DRIVER, WORKER, AbstractState
from .reached import STATES as CONFIRM_STATES
from .reached import UP_TO as CONFIRM_UP_TO
from .reached import Reached, reached

NO_DEADLOCK = Property(
    "no_deadlock", "always", "until a rank fails or stalls or all have ended, some rank is bound to be able to go on"
)
"""The part that is left of `no_stranding`: that everybody stands still is seen, that one rank is left behind is not."""


def covered(protocol: str) -> tuple[Property, ...]:
    """Return the properties of a protocol that a set of workers can show to hold."""
    return (
        NO_DEADLOCK,
        *(p for p in properties_of(protocol) if p.kind == "always" and p not in (NO_STRANDING, NO_LIVELOCK)),
    )


@dataclass
class Search:
    """Holds the states found, how each was first reached, and where each property was first violated."""

    states: list[AbstractState] = field(default_factory=list)
    index: dict[AbstractState, int] = field(default_factory=dict)
    parent: list[tuple[int, Hop | None]] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    hops: int = 0
    seen: dict[str, tuple[int, Hop | None]] = field(default_factory=dict)
    """Name of a property to the first state where it was named, and by which move from there (None: the state)."""
    taken: set[Taken] = field(default_factory=set)
    stopped: str | None = None
    """Why the search did not come to its end."""

    def path(self, name: str) -> list[Hop]:
        """Return the moves by which a property was first violated."""
        number, last = self.seen[name]
        moves = [last] if last else []
        while number > 0:
            number, hop = self.parent[number]
            moves += [hop] if hop else []
        return moves[::-1]


def explore(
    abstraction: AbstractNetwork,
    properties: Sequence[Property],
    progress: Progress | None = None,
    limit: Limit | None = None,
) -> Search:
    """Return every state of an abstraction, breadth first, until each of these properties is violated."""
    wanted = {p.name for p in properties}
    found = Search()
    queue: deque[int] = deque()

    def number(state: AbstractState, parent: int, hop: Hop | None) -> None:
        if state not in found.index:
            found.index[state] = len(found.states)
            found.depth.append(found.depth[parent] + 1 if found.states else 0)
            queue.append(len(found.states))
            found.states.append(state)
            found.parent.append((parent, hop))

    first, names, taken = abstraction.initial()
    number(first, 0, None)
    found.taken.update(taken)
    found.seen.update((name, (0, None)) for name in names)
    try:
        while queue and not wanted <= found.seen.keys():
            here = queue.popleft()
            certain = False
            for hop, after in abstraction.successors(found.states[here]):
                found.hops += 1
                certain |= hop.certain
                number(after, here, hop)
                found.taken.update(hop.taken)
                for name in hop.seen:
                    found.seen.setdefault(name, (here, hop))
            for name in judged(abstraction, found.states[here], certain):
                found.seen.setdefault(name, (here, None))
            if limit is not None and here % 64 == 0:
                limit(len(found.states))
            if progress is not None and here % 1024 == 0:
                progress(len(found.states), found.depth[here], len(queue))
    except KeyboardInterrupt:
        found.stopped = INTERRUPTED
    except Ended as ended:
        found.stopped = str(ended)
    return found


def judged(abstraction: AbstractNetwork, state: AbstractState, certain: bool) -> Iterator[str]:
    """Yield the properties that a state violates by itself.

    `certain`: somebody is bound to be able to go on.
    """
    infos = [
        abstraction.lanes.info(DRIVER, state.driver),
        *(abstraction.lanes.info(WORKER, n) for n in state.workers()),
    ]
    if state.failed and not state.faults:
        yield NO_FALSE_ABORT.name
    if not certain and not state.failed and not any(i.stalled for i in infos) and not all(i.terminal for i in infos):
        yield NO_DEADLOCK.name


@dataclass(frozen=True)
class Proof:
    """Holds what a search over any number of workers found."""

    question: Query
    network: Network
    """The network whose protocol it is; its number of ranks plays no part."""
    search: Search
    properties: tuple[Property, ...]
    confirmed: Mapping[str, Counterexample]
    """For what is violated: the run of a real network that shows it, if one was found."""
    tried: int
    """Networks of two to so many ranks were searched for one; 0: none."""
    reached: Reached | None
    """Says what was not reached; None where something is violated, or the search ended early or was not made."""
    seconds: float

    def holds(self, prop: Property) -> bool | None:
        """Return whether a property holds at every world size.

        None: it fails in the abstraction alone, as far as is known, or the search ended early.
        """
        if prop.name not in self.search.seen:
            return None if self.search.stopped else True
        return False if prop.name in self.confirmed else None

    @property
    def counterexample(self) -> Counterexample | None:
        return next(iter(self.confirmed.values()), None)

    @property
    def spurious(self) -> tuple[Property, ...]:
        """Return what fails in the abstraction, and on no network that was tried."""
        return tuple(p for p in self.properties if p.name in self.search.seen and self.holds(p) is None)

    @property
    def not_covered(self) -> tuple[Property, ...]:
        """Return the properties of the protocol about which nothing is said."""
        return tuple(
            p for p in properties_of(self.network.protocol.name) if p not in covered(self.network.protocol.name)
        )

    @property
    def verdict(self) -> Answer:
        if self.confirmed:
            return Answer.VIOLATED
        if self.spurious or self.search.stopped or self.reached is None:
            return Answer.UNKNOWN
        if self.reached.never.vacuous:
            return Answer.VACUOUS
        return Answer.UNKNOWN if self.reached.undecided.vacuous else Answer.HOLDS

    @property
    def status(self) -> Exit:
        return EXIT[self.verdict]


def prove(
    question: Query,
    properties: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    max_states: int | None = None,
    timeout: float | None = None,
    allow_unreached: Sequence[str] = (),
) -> Proof:
    """Check a protocol at every world size; the number of ranks in the question plays no part.

    `allow_unreached` are rows, and names of properties, that no network need reach. Raises UsageError for a property
    that a set of workers tells nothing of, ModelError for a protocol in which workers differ, naming the row.
    """
    begin = time.perf_counter()
    network = question.network()
    own = properties_of(network.protocol.name)
    refuse_unknown(network.protocol, own, allow_unreached)
    known = {p.name: p for p in covered(network.protocol.name)}
    for name in properties:
        if name not in known:
            choices = ", ".join(known)
            raise UsageError(f"`{name}` is not covered by --any-world-size", do=f"choose from {choices}")
    chosen = tuple(known[name] for name in properties) or tuple(known.values())
    search = explore(AbstractNetwork(network), chosen, progress, limit(max_states, timeout))
    violated = [p for p in chosen if p.name in search.seen]
    confirmed, tried = confirm(question, violated)
    missing = None
    if not violated and not search.stopped:
        sometimes = [p for p in own if p.kind == "sometimes" and not properties]

        def seconds_left() -> float | None:
            return None if timeout is None else max(0.0, begin + timeout - time.perf_counter())

        missing = reached(question, sometimes, allow_unreached, search.taken, progress, seconds_left)
    return Proof(question, network, search, chosen, confirmed, tried, missing, time.perf_counter() - begin)


# ── on real networks ────────────────────────────────────────────────────────────────────────────────


class _TooLarge(Exception):
    """Says that a network has more states than `CONFIRM_STATES`."""


def confirm(question: Query, violated: Sequence[Property]) -> tuple[dict[str, Counterexample], int]:
    """Return a counterexample to each property on the smallest network that has one, and how many ranks were tried."""
    confirmed: dict[str, Counterexample] = {}
    tried = 0
    while tried < CONFIRM_UP_TO and (wanted := [p for p in violated if p.name not in confirmed]):
        ranks = max(2, tried + 1)
        network = replace(question, scope=replace(question.scope, ranks=ranks)).network()
        try:
            result = check(network, [p for p in wanted if p is not NO_DEADLOCK], progress=_within_bounds)
        except _TooLarge:
            break
        if result.stopped:
            break
        tried = ranks
        for prop in wanted:
            example = _deadlock(result) if prop is NO_DEADLOCK else counterexample(result, result.verdict(prop.name))
            if example is not None:
                confirmed[prop.name] = example
    return confirmed, tried


def _within_bounds(states: int, depth: int, queue: int) -> None:
    if states > CONFIRM_STATES:
        raise _TooLarge


def _deadlock(result: Result) -> Counterexample | None:
    """Return the shortest way to a state in which everybody stands still, with the ranks that each waits for."""
    numbers = range(len(result.graph.states))
    state = next((n for n in numbers if stands_still(result.network, result.graph, n)), None)
    if state is None:
        return None
    shown = counterexample(result, Verdict(NO_STRANDING, False, state))
    return shown and replace(shown, claim=NO_DEADLOCK.name, text=NO_DEADLOCK.text)


def stands_still(network: Network, graph: StateGraph, state: int) -> bool:
    """Return whether a state of a network violates `no_deadlock`."""
    if any(edge.ordinary and edge.target != state for edge in graph.edges[state]):
        return False
    failed, ended = network.verdict(graph.states[state])
    return not failed and not ended
