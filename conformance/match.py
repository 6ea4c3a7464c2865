"""Holds ranks against each other: collectives by (group, sequence), what was delivered, and who waits for whom.

Left out: whether a rank kept to its own table (`replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from ..model.tables import Kind
from ..model.transport import depends_on
from .replay import Meeting, RankReplay
from .verdict import Divergence

Key = tuple[str, int]
"""Group name and sequence number: what identifies a collective across ranks."""


@dataclass(frozen=True)
class Wait:
    """A rank that ended inside a collective, and the members that never came."""

    meeting: Meeting
    missing: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.meeting.rank

    @property
    def operation(self) -> str:
        return self.meeting.entered.transition


@dataclass(frozen=True)
class Matched:
    """What the ranks' collectives say, taken together."""

    collectives: int
    """Collectives that every member issued alike and left."""
    divergences: tuple[Divergence, ...]
    waits: tuple[Wait, ...]
    clocks: Mapping[int, Sequence[int]]
    """Rank to the Lamport time of each of its lines."""
    cyclic: bool
    """Whether happens-before has a cycle: the files cannot be of one run."""


def match(ranks: Mapping[int, RankReplay]) -> Matched:
    """Compare the members of every collective, and order the ranks' lines in one logical time."""
    meetings: dict[Key, dict[int, Meeting]] = {}
    for rank, replayed in ranks.items():
        for meeting in replayed.meetings:
            meetings.setdefault((meeting.group, meeting.sequence), {})[rank] = meeting
    clocks, cyclic = _clocks(ranks, meetings)
    found: list[Divergence] = []
    complete = 0
    waits = []
    for key, parts in meetings.items():
        members = _members(ranks, key[0])
        odd = list(_odd(ranks, parts))
        found += odd
        absent = tuple(m for m in members if m not in parts)
        complete += not odd and not absent and all(p.exited for p in parts.values())
        for rank, meeting in parts.items():
            if meeting.exited is None:
                needed = depends_on_members(meeting, rank, members)
                missing = tuple(m for m in needed if m in absent) or absent
                waits.append(Wait(meeting, missing))
    stamped = tuple(replace(d, clock=clock_of(clocks, ranks[d.rank], d)) for d in found)
    return Matched(complete, stamped, tuple(waits), clocks, cyclic)


def depends_on_members(meeting: Meeting, rank: int, members: Sequence[int]) -> Sequence[int]:
    """The members of its group that `rank` waits for in this collective."""
    op = meeting.row.op
    return [m for m in depends_on(op, rank, max(members) + 1) if m in members] if op else ()


def clock_of(clocks: Mapping[int, Sequence[int]], replayed: RankReplay, divergence: Divergence) -> int:
    """Lamport time of the line at which a rank diverged."""
    at = replayed.trace.numbers.index(divergence.line)
    return clocks[divergence.rank][at]


def blamed(waits: Iterable[Wait]) -> tuple[int, ...]:
    """The ranks at the root of the wait-for graph: waited for, and not waiting themselves; or a cycle of them."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    for wait in waits:
        graph.add_edges_from((wait.meeting.rank, peer) for peer in wait.missing)
    roots = sorted(n for n in graph if graph.out_degree(n) == 0)
    if roots:
        return tuple(roots)
    cycles = [c for c in nx.strongly_connected_components(graph) if len(c) > 1]
    return tuple(sorted(set().union(*cycles))) if cycles else ()


def _members(ranks: Mapping[int, RankReplay], group: str) -> Sequence[int]:
    for replayed in ranks.values():
        if group in replayed.trace.header.groups:
            return replayed.trace.header.groups[group]
    return sorted(ranks)


def _odd(ranks: Mapping[int, RankReplay], parts: Mapping[int, Meeting]) -> Iterable[Divergence]:
    """The members that took part in another collective than the others, or were given something else."""
    for facts, name in ((_shape, "collective"), (_meaning, "meaning"), (_inside, "inside of the call")):
        values = {rank: facts(part) for rank, part in parts.items()}
        known = {rank: value for rank, value in values.items() if value is not None}
        if len(set(known.values())) > 1:
            usual = _usual(known)
            for rank, value in known.items():
                if value != usual:
                    why = f"the {name} is {_differs(value, usual)} on the other ranks"
                    yield _at(ranks[rank], parts[rank], why)
            return
    yield from _delivered(ranks, parts)


def _shape(part: Meeting) -> tuple[object, ...]:
    e = part.entered
    return (("op", e.op), ("root", e.root), ("dtype", e.dtype), ("numel", e.numel))


def _meaning(part: Meeting) -> tuple[object, ...] | None:
    op = part.row.op
    if op is None or op.kind is Kind.BROADCAST:
        return None
    return (("event", op.name), ("sent", part.sent))


def _inside(part: Meeting) -> tuple[object, ...] | None:
    inside = part.exited.inside if part.exited else None
    return tuple(sorted(inside.items())) if inside else None


def _usual(known: Mapping[int, tuple[object, ...]]) -> tuple[object, ...]:
    """What most ranks have; where they are split evenly, what the lowest of them has."""
    values = list(known.values())
    return max(values, key=lambda v: (values.count(v), -values.index(v)))


def _differs(value: tuple[object, ...], usual: tuple[object, ...]) -> str:
    pairs = [(a, b) for a, b in zip(value, usual, strict=True) if a != b]
    return "; ".join(f"{a} here and {b}" for a, b in pairs)


def _delivered(ranks: Mapping[int, RankReplay], parts: Mapping[int, Meeting]) -> Iterable[Divergence]:
    """Members of a broadcast that were given something else than its root sent."""
    for rank, part in parts.items():
        root = parts.get(part.entered.root) if part.entered.root is not None else None
        if part.entered.op != Kind.BROADCAST or root is None or root.exited is None or part.exited is None:
            continue
        if part.exited.data != root.exited.data:
            yield _at(ranks[rank], part, f"what arrived is not what rank{root.rank} sent")


def _at(replayed: RankReplay, part: Meeting, why: str) -> Divergence:
    event = part.exited or part.entered
    at = part.exited_at if part.exited_at is not None else part.entered_at
    return Divergence(
        part.rank,
        replayed.trace.numbers[at],
        event.index,
        event.chunk,
        event.phase,
        event.call,
        event.call_id,
        event.state,
        f"{event.transition} ({event.edge})",
        (f"{part.row.event} as on the other ranks",),
        why,
    )


def _clocks(
    ranks: Mapping[int, RankReplay], meetings: Mapping[Key, Mapping[int, Meeting]]
) -> tuple[dict[int, list[int]], bool]:
    """Lamport times of all lines; a completion comes after the issues that it depends on."""
    clocks: dict[int, list[int]] = {rank: [] for rank in ranks}
    exits = {rank: {m.exited_at: m for m in r.meetings if m.exited_at is not None} for rank, r in ranks.items()}
    waiting = set(ranks)
    while waiting:
        moved = False
        for rank in sorted(waiting):
            lines = ranks[rank].trace.lines
            clock = clocks[rank]
            while len(clock) < len(lines):
                time = clock[-1] + 1 if clock else 1
                meeting = exits[rank].get(len(clock))
                if meeting is not None:
                    after = _after(meeting, meetings[meeting.group, meeting.sequence], clocks, ranks)
                    if after is None:
                        break
                    time = max(time, after + 1)
                clock.append(time)
                moved = True
            if len(clock) == len(lines):
                waiting.discard(rank)
        if waiting and not moved:
            for rank in waiting:
                clock = clocks[rank]
                clock += range(clock[-1] + 1 if clock else 1, len(ranks[rank].trace.lines) + 2)
            return clocks, True
    return clocks, False


def _after(
    meeting: Meeting,
    parts: Mapping[int, Meeting],
    clocks: Mapping[int, Sequence[int]],
    ranks: Mapping[int, RankReplay],
) -> int | None:
    """The latest issue that this completion depends on; None while one of them has no time yet."""
    latest = 0
    for member in depends_on_members(meeting, meeting.rank, _members(ranks, meeting.group)):
        part = parts.get(member)
        if part is None:
            continue
        if part.entered_at >= len(clocks[member]):
            return None
        latest = max(latest, clocks[member][part.entered_at])
    return latest
