"""Compares ranks: collectives by (group, sequence), what was delivered, and which rank waits for which.

Left out: whether a rank kept to its own table (`replay_rank`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

from ...model.protocols.tp_v1_1 import HEADER
from ...model.semantics.transport import depends_on
from ...model.tables import Kind
from ...traces.format import Event
from ..diagnosis import Divergence, Observation, Seen
from .replay_rank import Meeting, RankReplay

Key = tuple[str, int]
"""Group name and sequence number: what identifies a collective across ranks."""
Facts = tuple[tuple[str, object], ...]
"""Holds what must be equal on all members, as (name, value)."""


@dataclass(frozen=True, slots=True)
class UnlikePart(Divergence):
    """Holds a part in a collective that does not fit the others."""

    accused: tuple[int, ...] = ()
    """Whose fault it is: several ranks where nothing tells which of them is right."""


@dataclass(frozen=True)
class Unfinished:
    """Holds a rank's part in a collective that it did not leave, and the members that never came."""

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
    """Holds what the ranks' collectives say, taken together."""

    collectives: int
    """Collectives that every member issued alike and left."""
    incomplete: Key | None
    """One that is not such."""
    odd: tuple[UnlikePart, ...]
    unfinished: tuple[Unfinished, ...]
    torn: frozenset[int]
    """Ranks whose trace ends before what others completed with them: what they did last is not in it."""
    clocks: Mapping[int, Sequence[int]]
    """Rank to the Lamport time of each of its lines."""
    cyclic: bool
    """True where happens-before has a cycle: the files cannot be of one run."""


def match(ranks: Mapping[int, RankReplay]) -> Matched:
    """Compare the members of every collective, and order the ranks' lines in one logical time."""
    meetings: dict[Key, dict[int, Meeting]] = {}
    for rank, replayed in ranks.items():
        for meeting in replayed.meetings:
            meetings.setdefault((meeting.group, meeting.sequence), {})[rank] = meeting
    clocks, cyclic = _clocks(ranks, meetings)
    found: list[UnlikePart] = []
    complete = 0
    incomplete: Key | None = None
    unfinished = []
    torn: set[int] = set()
    for key, parts in meetings.items():
        members = _members(ranks, key[0])
        odd = list(_odd(ranks, parts))
        absent = tuple(m for m in members if m not in parts)
        found += odd
        whole = not odd and not absent and all(p.exited for p in parts.values())
        complete += whole
        incomplete = incomplete if whole or incomplete else key
        for rank, meeting in parts.items() if absent or not whole else ():
            needed = tuple(m for m in depends_on_members(meeting, rank, members) if m in absent)
            if meeting.exited is not None:
                torn |= set(needed)
            elif not ranks[rank].gap:
                unfinished.append(Unfinished(meeting, needed or absent))
    stamped = tuple(replace(d, clock=clock_of(clocks, ranks[d.rank], d)) for d in found)
    return Matched(complete, incomplete, stamped, tuple(unfinished), frozenset(torn), clocks, cyclic)


def depends_on_members(meeting: Meeting, rank: int, members: Sequence[int]) -> Sequence[int]:
    """Return the members of its group that `rank` waits for in this collective."""
    op, among = meeting.row.op, frozenset(members)
    return [m for m in depends_on(op, rank, max(members) + 1) if m in among] if op else ()


def clock_of(clocks: Mapping[int, Sequence[int]], replayed: RankReplay, divergence: Divergence) -> int:
    """Return the Lamport time of the line at which a rank diverged; 0 where the rank has no lines."""
    if divergence.line not in replayed.trace.numbers:
        return 0
    return clocks[divergence.rank][replayed.trace.numbers.index(divergence.line)]


def roots_of(unfinished: Iterable[Unfinished]) -> frozenset[int]:
    """Return the roots of the wait-for graph: ranks that others wait for, and that wait for nobody themselves."""
    edges = {(part.rank, peer) for part in unfinished for peer in part.missing}
    return frozenset({peer for _, peer in edges} - {rank for rank, _ in edges})


def circle_of(unfinished: Iterable[Unfinished]) -> frozenset[int]:
    """Return the ranks that wait for each other in the wait-for graph, where it has no root."""
    edges = {(part.rank, peer) for part in unfinished for peer in part.missing}
    if not edges or {peer for _, peer in edges} - {rank for rank, _ in edges}:
        return frozenset()
    import networkx as nx  # not needed by most, and slow to load

    cycles = [c for c in nx.strongly_connected_components(nx.DiGraph(edges)) if len(c) > 1]
    return frozenset[int]().union(*cycles)


def _members(ranks: Mapping[int, RankReplay], group: str) -> Sequence[int]:
    for replayed in ranks.values():
        if group in replayed.trace.header.groups:
            return replayed.trace.header.groups[group]
    return sorted(ranks)


# ── parts that do not fit ───────────────────────────────────────────────────────────────────────────────


def _odd(ranks: Mapping[int, RankReplay], parts: Mapping[int, Meeting]) -> Iterator[UnlikePart]:
    """Yield the members that took part in another collective than the others, or were given something else."""
    for facts, name in ((_shape, "collective"), (_meaning, "part"), (_inside, "inside of the call")):
        values = {rank: facts(part) for rank, part in parts.items()}
        known = {rank: value for rank, value in values.items() if value is not None}
        if len(set(known.values())) > 1:
            yield from _minority(ranks, parts, known, name)
            return
    yield from _delivered(ranks, parts)


def _minority(
    ranks: Mapping[int, RankReplay], parts: Mapping[int, Meeting], known: Mapping[int, Facts], name: str
) -> Iterator[UnlikePart]:
    """Yield the members that differ from more than half; without such a majority, nothing tells who is right."""
    values = list(known.values())
    usual = max(values, key=lambda v: (values.count(v), -values.index(v)))
    tied = tuple(known) if 2 * values.count(usual) <= len(values) else ()
    for rank, value in known.items():
        if value != usual:
            where = _at_exit if name.startswith("inside") else _at_entry
            yield where(ranks[rank], parts[rank], f"of the {name}, {_differs(value, usual)} elsewhere", tied or (rank,))


def _shape(part: Meeting) -> Facts:
    e = part.entered
    return (("op", e.op), ("root", e.root), ("dtype", e.dtype), ("numel", e.numel))


def _meaning(part: Meeting) -> Facts | None:
    op = part.row.op
    if op is None or op.kind is Kind.BROADCAST:
        return None
    return (("event", op.name), ("sent", part.sent))


def _inside(part: Meeting) -> Facts | None:
    inside = part.exited.inside if part.exited else None
    return tuple(sorted(inside.items())) if inside else None


def _differs(value: Facts, usual: Facts) -> str:
    """Return what is not alike, down to the fields of what was sent: `numel is 7 here and 6`."""
    ours, theirs = dict(value), dict(usual)
    told = []
    for name in {**ours, **theirs}:
        mine, its = ours.get(name), theirs.get(name)
        if is_dataclass(mine) and type(mine) is type(its):
            odd = [f.name for f in fields(mine) if getattr(mine, f.name) != getattr(its, f.name)]
            told += [f"{name} {field} is {getattr(mine, field)} here and {getattr(its, field)}" for field in odd]
        elif mine != its:
            told.append(f"{name} is {mine} here and {its}")
    return "; ".join(told)


def _delivered(ranks: Mapping[int, RankReplay], parts: Mapping[int, Meeting]) -> Iterator[UnlikePart]:
    """Yield what is odd where members of a broadcast were given something else than its root says that it sent.

    Members that were given something else are odd one by one, unless all of them were given the same: then, if
    they are several, it is the root that sent it; if there is one, nothing tells which end is wrong, unless it is a
    header of before: a member takes each into an empty buffer, so that it can only have come from the root again.
    """
    root = next((p for rank, p in parts.items() if p.entered.op == Kind.BROADCAST and p.entered.root == rank), None)
    if root is None or root.exited is None:
        return
    given = {r: p for r, p in parts.items() if r != root.rank and p.exited is not None}
    other = {r: p for r, p in given.items() if p.exited and p.exited.data != root.exited.data}
    values = {repr(p.exited.data) for p in other.values() if p.exited}
    again = bool(other) and all(_sent_before(ranks[root.rank], part) for part in other.values())
    if (len(other) > 1 or again) and len(other) == len(given) and len(values) == 1:
        why = f"what arrived on {_ranks(other)} is not what it says that it sent"
        yield _at_entry(ranks[root.rank], root, why, (root.rank,))
        return
    for rank, part in other.items():
        accused = (rank,) if len(given) > 1 else tuple(sorted((rank, root.rank)))
        yield _at_exit(ranks[rank], part, f"what arrived is not what rank{root.rank} sent", accused)


def _sent_before(root: RankReplay, part: Meeting) -> bool:
    """Return True if what a member was given is a header that the root says it sent earlier."""
    if part.row.op is not HEADER or part.exited is None:
        return False
    given = _named(part.exited.data)
    return given is not None and any(
        (m.group, m.row.op) == (part.group, HEADER)
        and m.sequence < part.sequence
        and m.exited is not None
        and _named(m.exited.data) == given
        for m in root.meetings
    )


def _named(header: object) -> dict[str, object] | None:
    """Return all that a header says, but not how it was found to be; None for one that could not be read."""
    if not isinstance(header, dict) or not header.get("call_id"):
        return None
    return {name: value for name, value in header.items() if name != "intact"}


def _ranks(ranks: Iterable[int]) -> str:
    return " and ".join(f"rank{r}" for r in ranks)


def _at_entry(replayed: RankReplay, part: Meeting, why: str, accused: tuple[int, ...]) -> UnlikePart:
    return _at(replayed, part, part.entered, part.entered_at, why, accused)


def _at_exit(replayed: RankReplay, part: Meeting, why: str, accused: tuple[int, ...]) -> UnlikePart:
    if part.exited is None or part.exited_at is None:
        return _at_entry(replayed, part, why, accused)
    return _at(replayed, part, part.exited, part.exited_at, why, accused)


def _at(replayed: RankReplay, part: Meeting, event: Event, at: int, why: str, accused: tuple[int, ...]) -> UnlikePart:
    return UnlikePart(
        part.rank,
        replayed.trace.numbers[at],
        event.index,
        event.chunk,
        event.phase,
        event.call,
        event.call_id,
        event.state,
        f"{event.transition} ({event.edge})",
        (f"{part.row.event} as elsewhere",),
        why,
        facts=Observation(Seen.MOVE, event.transition, event.edge, event.outcome),
        accused=accused,
    )


# ── logical time ────────────────────────────────────────────────────────────────────────────────────────


class _Issued:
    """Holds the members of one collective whose issue has a time already."""

    def __init__(self, parts: Mapping[int, Meeting]) -> None:
        self.parts = parts
        self.times: dict[int, int] = {}
        self.latest = 0

    def add(self, rank: int, time: int) -> None:
        self.times[rank] = time
        self.latest = max(self.latest, time)

    def before(self, needed: Sequence[int]) -> int | None:
        """Return the latest issue that a completion depends on; None while one of them has no time yet."""
        if len(needed) == 1:
            return self.times.get(needed[0]) if needed[0] in self.parts else 0
        return self.latest if len(self.times) >= len(self.parts) else None


class _Lane:
    """Holds the lines of one rank, and which of them are ends of collectives."""

    def __init__(self, replayed: RankReplay, members: Mapping[str, Sequence[int]]) -> None:
        self.rank, self.lines, self.clock = replayed.trace.rank, len(replayed.trace.lines), list[int]()
        self.entries = {m.entered_at: (m.group, m.sequence) for m in replayed.meetings}
        self.exits = {m.exited_at: m for m in replayed.meetings if m.exited_at is not None}
        self._members = members
        self._needed: dict[str, Sequence[int]] = {}

    def advance(self, issued: Mapping[Key, _Issued]) -> bool:
        """Give times to as many lines as possible; whether any got one."""
        begin = len(self.clock)
        for at in range(begin, self.lines):
            time = self.clock[-1] + 1 if self.clock else 1
            if meeting := self.exits.get(at):
                after = issued[meeting.group, meeting.sequence].before(self._needs(meeting))
                if after is None:
                    break
                time = max(time, after + 1)
            elif key := self.entries.get(at):
                issued[key].add(self.rank, time)
            self.clock.append(time)
        return len(self.clock) > begin

    def _needs(self, meeting: Meeting) -> Sequence[int]:
        event = meeting.row.event
        if event not in self._needed:
            self._needed[event] = depends_on_members(meeting, self.rank, self._members[meeting.group])
        return self._needed[event]


def _clocks(
    ranks: Mapping[int, RankReplay], meetings: Mapping[Key, Mapping[int, Meeting]]
) -> tuple[dict[int, list[int]], bool]:
    """Return the Lamport times of all lines; a completion comes after the issues that it depends on."""
    issued = {key: _Issued(parts) for key, parts in meetings.items()}
    members = {group: _members(ranks, group) for group, _ in meetings}
    lanes = [_Lane(ranks[rank], members) for rank in sorted(ranks)]
    waiting = lanes
    while waiting:
        moved = [lane.advance(issued) for lane in waiting]
        waiting = [lane for lane in waiting if len(lane.clock) < lane.lines]
        if not any(moved):
            break
    for lane in waiting:
        clock = lane.clock
        clock += range(clock[-1] + 1 if clock else 1, lane.lines + 2)
    return {lane.rank: lane.clock for lane in lanes}, bool(waiting)
