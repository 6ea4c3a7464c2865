"""Finds where all waits end: the rank that does not wait itself, ranks of which nothing is known, or a circle.

A rank that waits in operation n of a group waits for the members that have not issued it, or that wait elsewhere with
it behind that. Numbers are compared inside of one group alone. Whoever is at the end of all waits is to blame only if
it is known not to wait, nobody is missing, and its program goes on: most members issued what is due from it, or others
wait for it in several groups. Else those that wait may have done one operation too many.

Left out: unlike operations (`operations`), and counts that tools asked for (`counts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...traces import evidence as facts
from ...traces.evidence import Waits
from ..diagnosis import WaitingRank, Wanted
from .finding import Finding, Kind, Missing, ranks_text, verb
from .picture import P2P, GroupState, Picture


@dataclass
class Graph:
    """Holds which rank waits for which, and where."""

    edges: dict[int, dict[int, Waits]] = field(default_factory=lambda: defaultdict(dict))
    joint: dict[tuple[str, int], list[Waits]] = field(default_factory=lambda: defaultdict(list))
    """Operations that all members have issued, by group and number."""
    open_ended: list[Waits] = field(default_factory=list)
    """Waits for somebody that the facts do not name."""

    def reached(self, start: int) -> set[int]:
        """Return the ranks that a rank waits for, however far around."""
        found: set[int] = set()
        todo = list(self.edges.get(start, ()))
        while todo:
            rank = todo.pop()
            if rank not in found:
                found.add(rank)
                todo += self.edges.get(rank, ())
        return found

    def circles(self) -> set[int]:
        """Return the ranks that wait for each other, whoever else they wait for."""
        if not self.edges:
            return set()
        import networkx as nx  # not needed by most, and slow to load

        graph: nx.DiGraph[int] = nx.DiGraph([(rank, other) for rank, others in self.edges.items() for other in others])
        return set[int]().union(*(found for found in nx.strongly_connected_components(graph) if len(found) > 1))

    def waiting_for(self, rank: int) -> list[Waits]:
        """Return the operations that others wait in for a rank."""
        return [others[rank] for others in self.edges.values() if rank in others]


def graph_of(picture: Picture) -> Graph:
    """Return the wait-for graph of all waits that are known."""
    graph = Graph()
    for rank, waits in picture.waits.items():
        for wait in waits:
            _add(graph, rank, wait, picture)
    return graph


def _add(graph: Graph, rank: int, wait: Waits, picture: Picture) -> None:
    if wait.group is None or wait.number < 0:
        graph.open_ended.append(wait)
        return
    state = picture.group(wait.group, rank)
    p2p = wait.operation.kind in P2P
    if p2p and state.size != 2:
        graph.open_ended.append(wait)  # a send or receive does not name its peer
        return
    if state.size == 0 or not state.whole:
        graph.open_ended.append(wait)
    targets = [m for m in sorted(state.members - {rank}) if not _joined(m, state, wait, picture)]
    for member in targets:
        graph.edges[rank].setdefault(member, wait)
    if not targets and state.whole:
        graph.joint[str(state.name), wait.number].append(wait)


def _joined(member: int, state: GroupState, wait: Waits, picture: Picture) -> bool:
    """Tell whether a member is known, or may be taken, to have issued the operation that another one waits in."""
    own = [w for w in picture.waits.get(member, ()) if w.group is not None and picture.group(w.group, member) is state]
    if wait.operation.kind in P2P:
        mirrored = {"send": "recv", "recv": "send"}[wait.operation.kind]
        return any(w.operation.kind == mirrored for w in own)
    if any(w.number < wait.number for w in own):
        # it waits in an earlier one, with this one queued behind it or not
        return state.issued.get(member, -1) >= wait.number
    if member in state.issued:
        # of another group it waits in something older
        elsewhere = not own and any(w.group is not None and w.number >= 0 for w in picture.waits.get(member, ()))
        return state.issued[member] >= wait.number and not elsewhere
    # a rank whose time-out others heard of waits itself, and so does one that lost a peer; nothing says where
    return (member in picture.complained and member not in picture.told) or member in picture.left


def stalls(picture: Picture) -> Iterator[Finding]:
    """Yield what the ends of all waits show."""
    graph = graph_of(picture)
    if not picture.waits:
        return
    waiting = set(picture.waits) | picture.complained
    awaited = {rank for edges in graph.edges.values() for rank in edges}
    ends = {rank for rank in awaited if not graph.edges.get(rank)}
    quiet = tuple(sorted(r for r in ends if picture.quiet(r)))
    silent = tuple(sorted(r for r in ends if r not in quiet and r not in picture.told))
    unsure = tuple(sorted(ends - {*quiet, *silent} - set(picture.waits)))
    circle = _circle(graph) if not ends else ()
    if quiet and not silent and not unsure:
        yield _still(quiet, waiting, graph, picture)
    elif ends - set(picture.waits):
        yield _nothing_known(quiet, silent, unsure, graph, picture)
    elif circle:
        yield _around(circle, graph, picture)
    elif graph.joint or graph.open_ended:
        yield _joint(graph, picture)


def _owed(culprit: int, graph: Graph) -> Waits:
    """Return the operation that most ranks wait in for one."""
    waits = [edges[culprit] for edges in graph.edges.values() if culprit in edges]
    alike = {w: sum(w.number == o.number and w.group == o.group for o in waits) for w in waits}
    # of a send or receive, the other end would be due
    return max(waits, key=lambda w: (w.operation.kind not in P2P, alike[w], -w.rank))


def _goes_on(rank: int, graph: Graph, picture: Picture) -> bool:
    """Tell whether a rank that waits in nothing is certainly not where its program ends: the others go on.

    More than half of a group issued what is due from it, or several ranks wait for it in different groups.
    """
    owed = [(wait, picture.group(wait.group, wait.rank)) for wait in graph.waiting_for(rank) if wait.group is not None]
    if any(_in_order(wait, picture) for wait, _ in owed):
        return True
    return len({str(state.name) for _, state in owed}) > 1 < len({wait.rank for wait, _ in owed})


def _in_order(wait: Waits, picture: Picture) -> bool:
    """Tell whether an operation has its place in the program: more than half of its group is known to be in it."""
    if wait.group is None or wait.operation.kind in P2P:
        return False
    state = picture.group(wait.group, wait.rank)
    issued = {rank for rank, last in state.issued.items() if last >= wait.number}
    # a rank whose time-out others heard of waits itself; nothing says where
    waits = {rank for rank in picture.complained if rank in state.members and rank not in picture.told}
    return 2 * len(issued | waits) > state.size > 2


def _still(quiet: tuple[int, ...], waiting: set[int], graph: Graph, picture: Picture) -> Finding:
    sure = tuple(rank for rank in quiet if _goes_on(rank, graph, picture))
    wait = _owed((sure or quiet)[0], graph)
    at = name_of(wait)
    left = tuple(sorted(r for r in waiting if r not in quiet))
    named = sure or quiet
    known = f"{ranks_text(named)} never issued {at}, and nothing shows {verb(named, 'it', 'them')} waiting"
    why = f"{known}{_counted(named[0], wait, picture)}; {ranks_text(left)} {verb(left, 'waits', 'wait')}"
    if sure:
        return Finding(
            Kind.STANDS_STILL,
            why,
            culprits=sure,
            at=f"before {at}",
            observed="nothing",
            expected=_due(sure[0], graph, at),
            number=wait.number,
            source=wait.source,
        )
    doubted = {w.rank for rank in quiet for w in graph.waiting_for(rank)}
    both = tuple(sorted({*quiet, *doubted, *graph.circles()}))
    few = tuple(sorted(doubted))
    are = verb(few, "is", "are")
    why += f"; or {ranks_text(few)} did one operation too many, as no more than half of the group {are} in it"
    return Finding(
        Kind.STANDS_STILL,
        why,
        suspects=both,
        at=at,
        number=wait.number,
        source=wait.source,
        missing=(Missing(Wanted.STACK, quiet),),
    )


def _due(rank: int, graph: Graph, first: str) -> tuple[str, ...]:
    """Return what is due from a rank: one operation, or each of several, which it has all not come to."""
    due = dict.fromkeys([first, *(name_of(wait) for wait in graph.waiting_for(rank) if wait.operation.kind not in P2P)])
    return tuple(due)[:MOST_DUE]


MOST_DUE = 6


def _counted(rank: int, wait: Waits, picture: Picture) -> str:
    """Return how many operations of the group the rank and the one that waits issued, where both are known."""
    if wait.group is None or wait.operation.kind in P2P:
        return ""
    issued = picture.group(wait.group, wait.rank).issued
    if rank not in issued or wait.rank not in issued or issued[rank] < 0:
        return ""
    return f": its last is #{issued[rank]}, that of rank{wait.rank} #{issued[wait.rank]}"


def _nothing_known(
    quiet: tuple[int, ...], silent: tuple[int, ...], unsure: tuple[int, ...], graph: Graph, picture: Picture
) -> Finding:
    ends, circles = {*quiet, *silent, *unsure}, graph.circles()
    due = [*graph.open_ended, *(w for rank in ends for w in graph.waiting_for(rank))]
    doubted = {w.rank for w in due if not _in_order(w, picture)}
    # where the members of a group are not known, anybody may be one of them who is owed
    suspects = tuple(range(picture.world)) if graph.open_ended else tuple(sorted({*ends, *circles, *doubted}))
    wait = _owed(min(ends), graph)
    at = name_of(wait)
    parts = []
    if quiet:
        parts.append(f"{ranks_text(quiet)} did not issue {at}, and may wait for those")
    if silent:
        parts.append(f"nothing is known of {ranks_text(silent)}")
    if unsure:
        parts.append(f"nothing says whether {ranks_text(unsure)} issued {at}")
    if circles:
        parts.append(f"{ranks_text(circles)} wait for each other besides")
    if doubted:
        few = verb(doubted, "is", "are")
        parts.append(
            f"or {ranks_text(doubted)} did one operation too many, as no more than half {few} known to be in it"
        )
    if left_open := sorted({w.rank for w in graph.open_ended}):
        parts.append(f"for whom {ranks_text(tuple(left_open))} {verb(left_open, 'waits', 'wait')} is not stated")
    why = f"{_each_where([waits[0] for waits in picture.waits.values()])}; " + "; ".join(parts)
    missing = [Missing(Wanted.LOG, silent)] if silent else []
    missing.append(Missing(Wanted.STACK, tuple(sorted(ends))))
    if not picture.world_stated:
        missing.append(Missing(Wanted.WORLD_SIZE))
    return Finding(
        Kind.ABSENT, why, suspects=suspects, at=at, number=wait.number, source=wait.source, missing=tuple(missing)
    )


def _circle(graph: Graph) -> tuple[int, ...]:
    """Return the ranks that wait for each other, and for nobody else."""
    best: tuple[int, ...] = ()
    for rank in sorted(graph.edges):
        found = graph.reached(rank)
        if rank in found and all(graph.reached(other) == found for other in found):
            best = best or tuple(sorted(found))
    return best


def _around(circle: tuple[int, ...], graph: Graph, picture: Picture) -> Finding:
    where: dict[tuple[str, int], list[int]] = defaultdict(list)
    for rank in circle:
        wait = next(iter(graph.edges[rank].values()))
        where[str(wait.group), wait.number].append(rank)
    classes = sorted(where.values(), key=lambda ranks: (-len(ranks), ranks))
    told = "; ".join(
        f"{ranks_text(ranks)} in {name_of(next(iter(graph.edges[ranks[0]].values())))}" for ranks in classes
    )
    why = f"{ranks_text(circle)} wait for each other: {told}"
    wait = next(iter(graph.edges[classes[-1][0]].values()))
    odd = tuple(sorted(rank for ranks in classes[1:] for rank in ranks))
    if odd and 2 * len(classes[0]) > len(circle) and _all_together(circle, graph, picture):
        usual = next(iter(graph.edges[classes[0][0]].values()))
        return Finding(
            Kind.OUT_OF_STEP,
            f"{why}; most ranks went on to the same operation",
            culprits=odd,
            at=f"in {name_of(wait)}",
            observed=name_of(wait),
            expected=(name_of(usual),),
            number=wait.number,
            source=wait.source,
        )
    missing = (Missing(Wanted.RECORDING, circle),)
    return Finding(
        Kind.CIRCLE, why, suspects=circle, at=name_of(wait), number=wait.number, source=wait.source, missing=missing
    )


def _all_together(circle: tuple[int, ...], graph: Graph, picture: Picture) -> bool:
    """Tell whether every group that somebody of the circle waits in has all of its ranks as members, and no others."""
    groups = [picture.group(w.group, w.rank) for r in circle for w in graph.edges[r].values() if w.group is not None]
    return all(set(circle) <= state.members and state.vouched for state in groups)


def _joint(graph: Graph, picture: Picture) -> Finding:
    """Return the finding where all that are known have joined.

    It lies with the device or the network, or with somebody who is not in what was given.
    """
    waits = [w for found in graph.joint.values() for w in found] or graph.open_ended
    wait = min(waits, key=lambda w: (w.number, w.rank))
    left = tuple(sorted({w.rank for w in waits}))
    at = name_of(wait)
    lost = {f.address for f in picture.evidence.of(facts.PeerLost) if f.address}
    if graph.joint:
        why = f"all ranks that are known, {ranks_text(left)}, issued {at}, and none finished it"
        why += "" if lost else ": a device or the network, or a rank that is not in what was given"
    else:
        why = f"{_each_where(waits)}; for whom is not stated"
    missing = [Missing(Wanted.DEVICE_HEALTH, left)] if graph.joint else [Missing(Wanted.RECORDING, left)]
    if not picture.world_stated:
        missing.append(Missing(Wanted.WORLD_SIZE))
    suspects = left if picture.world_stated and graph.joint and not lost else ()
    rest = tuple(r for r in range(picture.world) if not picture.waiting(r))
    if not graph.joint and rest:
        in_step = len({(w.number, w.operation.kind) for w in waits}) == 1
        most = 2 * len(left) > picture.world > 2 if waits[0].group is None else _in_order(waits[0], picture)
        alike = in_step and most
        suspects = rest if alike else tuple(range(picture.world))
        missing[0] = Missing(Wanted.STACK, rest)
        why += f", and of {ranks_text(rest)} no wait is known"
    elif graph.joint and wait.group is not None:
        state = picture.group(wait.group, wait.rank)
        done = tuple(sorted(r for r, last in state.completed.items() if last >= wait.number))
        if done:
            stuck = tuple(r for r in left if r not in done)
            why = f"{ranks_text(done)} finished {at}, and {ranks_text(stuck)} did not: the device there, or its network"
            suspects = stuck
    if graph.joint and graph.open_ended:
        suspects = tuple(range(picture.world)) if picture.world_stated else ()
        left_open = sorted({w.rank for w in graph.open_ended})
        why += f"; for whom {ranks_text(left_open)} {verb(left_open, 'waits', 'wait')} is not stated"
    elif circles := graph.circles():
        suspects = tuple(sorted({*suspects, *left, *circles}))
        why += f"; {ranks_text(circles)} wait for each other besides"
    return Finding(
        Kind.DEVICE, why, suspects=suspects, at=at, number=wait.number, source=wait.source, missing=tuple(missing)
    )


MOST_PLACES = 4
"""So many operations in which ranks wait are told."""


def _each_where(waits: list[Waits]) -> str:
    """Say which ranks wait in which operation: where most do first, and of as many the earliest."""
    where: dict[str, set[int]] = defaultdict(set)
    for wait in sorted(waits, key=lambda w: (w.number, w.rank)):
        where[name_of(wait)].add(wait.rank)
    sets = sorted(where.items(), key=lambda item: -len(item[1]))
    told = [
        f"{ranks_text(tuple(sorted(ranks)))} {verb(ranks, 'waits', 'wait')} in {name}"
        for name, ranks in sets[:MOST_PLACES]
    ]
    if rest := {rank for _, ranks in sets[MOST_PLACES:] for rank in ranks}:
        told.append(f"{ranks_text(tuple(sorted(rest)))} in others")
    return "; ".join(told)


def left_waiting(picture: Picture) -> list[WaitingRank]:
    """Return each rank that waits, with where and for which ranks."""
    graph = graph_of(picture)
    found = []
    for rank in sorted(picture.waits):
        wait = next(iter(graph.edges.get(rank, {}).values()), picture.waits[rank][0])
        missing = tuple(r for r, w in sorted(graph.edges.get(rank, {}).items()) if w is wait)
        found.append(WaitingRank(rank, name_of(wait), missing))
    return found


def name_of(wait: Waits) -> str:
    """Return the operation that is waited in, in words."""
    what = wait.operation.kind or "an operation"
    number = f" #{wait.number}" if wait.number >= 0 else ""
    group = ""
    if wait.group is not None and wait.group.family == "torch":
        group = f" of {wait.group}"
    return f"{what}{number}{group}"
