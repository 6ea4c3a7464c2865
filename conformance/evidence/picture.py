"""Puts the facts of a job together: who is which rank, who is in which group, who waits where, who does not wait.

Where the number of ranks is not stated, the highest rank that is named counts as the last one, and `world_stated` says
that nobody vouches for it.

Left out: who is to blame.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ...traces import evidence as facts
from ...traces.evidence import Evidence, GroupName, Operation, Source, Writer
from .stack_state import At, state_of

P2P = ("send", "recv")
PART = "part"
"""Name of a group that a report is of, where it is not that of all ranks."""
DEFAULT_NAMES = ("0", "default_pg")
FATAL_SIGNALS = (-9, -7, -11, -4, -8)
"""Ended from outside, or crashed. -6 and -15 are how torch and launchers end those that were left waiting."""


WRITTEN = (facts.Raised, facts.PeerLost, facts.PeerSilent, facts.Joined, facts.KeyWait)
"""Facts that a process wrote of itself."""


@dataclass
class GroupState:
    """Hold what is known of one group."""

    name: GroupName
    members: set[int] = field(default_factory=set)
    size: int = 0
    """0 where it is not known."""
    issued: dict[int, int] = field(default_factory=dict)
    """Rank to the number of the last operation that it is known to have issued."""
    completed: dict[int, int] = field(default_factory=dict)
    operations: dict[int, dict[int, Operation]] = field(default_factory=lambda: defaultdict(dict))
    """Number to rank to what it issued as that."""
    sources: dict[tuple[int, int], Source] = field(default_factory=dict)
    """(Number, rank) to where that was read."""
    vouched: bool = True
    """False where the size is that of the ranks that were seen: there may be more."""

    @property
    def whole(self) -> bool:
        """Tell whether all members are known."""
        return self.size > 0 and len(self.members) >= self.size

    @property
    def default(self) -> bool:
        """Tell whether it is the group of all ranks."""
        if self.name.family == "desync":
            return self.name.name != PART
        return self.name.name == "0" or self.name.description in DEFAULT_NAMES


class Picture:
    """Holds all facts of a job, by rank and by group."""

    def __init__(self, evidence: Evidence) -> None:
        evidence = evidence_of_job(evidence)
        self.evidence = evidence
        self.identities = _Identities(evidence)
        self.groups: dict[GroupName, GroupState] = {}
        self.waits: dict[int, list[facts.Waits]] = defaultdict(list)
        self.told: set[int] = set()
        """Ranks that wrote something, or of whom a state is known."""
        self.complained = {f.rank for f in evidence.of(facts.Complained)}
        self.heard = {f.rank for f in evidence.of(facts.Heard)}
        self.stacks = self._stacks()
        self.elsewhere = {f.rank for f in evidence.of(facts.Collected) if f.elsewhere}
        left: list[Written] = [*evidence.of(facts.PeerLost), *evidence.of(facts.PeerSilent)]
        self.left = {rank for fact in left if (rank := self.rank_of(fact)) is not None}
        """Ranks that another one left: alive, and in an operation, whichever it was."""
        self._take()
        self.world, self.world_stated = self._world()
        self._complete_groups()

    # ── reading the facts ───────────────────────────────────────────────────────────────────────────────

    def _take(self) -> None:
        evidence = self.evidence
        for wait in evidence.of(facts.Waits):
            self.waits[wait.rank].append(wait)
            self.told.add(wait.rank)
            if wait.group is not None and wait.number >= 0:
                state = self.group(wait.group, wait.rank)
                self._issue(state, wait.rank, wait.number, wait.operation, wait.source)
        for counters in evidence.of(facts.Counters):
            state = self.group(counters.group, counters.rank)
            rank = counters.rank
            self.told.add(rank)
            state.issued[rank] = max(state.issued.get(rank, -1), counters.enqueued)
            state.completed[rank] = max(state.completed.get(rank, -1), counters.completed)
        for member in evidence.of(facts.Membership):
            state = self.group(member.group, member.rank)
            state.size = max(state.size, member.size)
        for issued in evidence.of(facts.Issued):
            for rank in issued.ranks:
                state = self.group(issued.group, rank)
                self.told.add(rank)
                self._issue(state, rank, issued.number, issued.operation, issued.source)
                if issued.finished:
                    state.completed[rank] = max(state.completed.get(rank, -1), issued.number)
        self.told |= self.heard | set(self.stacks)
        for fact in evidence.facts:
            if not isinstance(fact, WRITTEN):
                continue
            if (known := self.rank_of(fact)) is not None:
                self.told.add(known)
        self.told |= {f.rank for f in evidence.of(facts.Exited)} | {f.rank for f in evidence.of(facts.Stuck)}
        counted = [f for f in evidence.of(facts.Counted) if f.whole]
        self.told |= {r for f in counted for by_rank in f.counts.values() for r in by_rank}
        self.told |= {f.rank for f in evidence.of(facts.Finished)} | {f.rank for f in evidence.of(facts.Unlike)}
        self.told |= {f.rank for f in evidence.of(facts.Calls) if f.rank is not None and f.whole}
        self._desync_waits()

    def _issue(self, state: GroupState, rank: int, number: int, operation: Operation, source: Source) -> None:
        state.issued[rank] = max(state.issued.get(rank, -1), number)
        if operation.kind:
            state.operations[number].setdefault(rank, operation)
        state.sources.setdefault((number, rank), source)

    def _desync_waits(self) -> None:
        """Add the waits of a desync report: of who joined an operation and did not finish it."""
        for name, state in self.groups.items():
            if name.family != "desync":
                continue
            for rank, last in state.issued.items():
                if state.completed.get(rank, -1) < last and not self.waits.get(rank):
                    operation = state.operations.get(last, {}).get(rank, Operation(""))
                    source = state.sources.get((last, rank), Source(self.evidence.files[0]))
                    self.waits[rank].append(facts.Waits(source, rank, name, last, operation))

    def group(self, name: GroupName, rank: int) -> GroupState:
        """Return the state of a group that a rank is in.

        Groups of a name that is a rank's own are kept apart.
        """
        key = name if name.shared else name._replace(name=f"{name.name} of rank{rank}")
        state = self.groups.get(key)
        if state is None and name.family == "torch" and name.shared:
            # a description comes with some lines of a group, and not with others
            state = next((s for k, s in self.groups.items() if k.family == "torch" and k.name == name.name), None)
            if state is not None and name.description and not state.name.description:
                state.name = name
        if state is None:
            state = self.groups[key] = GroupState(key)
        state.members.add(rank)
        return state

    def _stacks(self) -> dict[int, list[facts.Stack]]:
        found: dict[int, list[facts.Stack]] = defaultdict(list)
        for stack in self.evidence.of(facts.Stack):
            rank = self.rank_of(stack)
            if rank is not None:
                found[rank].append(stack)
        return dict(found)

    def rank_of(self, fact: Written) -> int | None:
        """Return the rank of the process that wrote something; None where nothing tells it."""
        return self.identities.rank_of(fact.writer, fact.source.path)[0]

    def certain(self, fact: Written) -> bool:
        """Tell whether the rank of the process that wrote something is stated, not taken from a launcher's number."""
        return self.identities.rank_of(fact.writer, fact.source.path)[1]

    # ── sizes ───────────────────────────────────────────────────────────────────────────────────────────

    def _world(self) -> tuple[int, bool]:
        evidence = self.evidence
        named = self.told | self.complained | set(self.waits)
        named |= {f.rank for f in evidence.of(facts.Exited)} | {f.rank for f in evidence.of(facts.WorkerDied)}
        named |= {rank for rank in map(self.rank_of, evidence.of(facts.Hang)) if rank is not None}
        named |= {f.rank for f in evidence.of(facts.Process)} | {f.rank for f in evidence.of(facts.Membership)}
        named |= {r for f in evidence.of(facts.NeverCame) for r in (f.by, *f.ranks)}
        for unlike in evidence.of(facts.Unlike):
            named |= {unlike.rank} | ({unlike.peer} if unlike.peer is not None else set())
        least = 1 + max(named, default=-1)
        stated = [f.of for f in evidence.of(facts.Joined)] + [f.size for f in evidence.of(facts.JobSize)]
        stated += [f.world for f in evidence.of(facts.Collected)]
        stated += [f.size for f in evidence.of(facts.Counted)] + [f.size for f in evidence.of(facts.Finished)]
        stated += [f.size for f in evidence.of(facts.Calls)]
        if evidence.recording is not None:
            stated.append(evidence.recording.world)
        for state in self.groups.values():
            stated += [state.size, *_ratios(state)] if state.default or state.size else [*_ratios(state)]
        most = max(stated, default=0)
        return max(least, most), most >= least > 0

    def _complete_groups(self) -> None:
        everybody = set(range(self.world))
        for state in self.groups.values():
            if not state.size:
                state.size = max((size for size in _ratios(state) if size >= len(state.members)), default=0)
            if state.default or state.size == self.world:
                state.vouched = self.world_stated
                state.members, state.size = set(everybody), self.world

    # ── what a rank does ────────────────────────────────────────────────────────────────────────────────

    def waiting(self, rank: int) -> bool:
        """Tell whether the rank is known to wait for others."""
        return bool(self.waits.get(rank)) or rank in self.complained or self.at(rank) is At.WAITING

    def at(self, rank: int) -> At | None:
        """Return where the rank's last stack is, and what the kernel had it in; None where there is no stack."""
        if rank not in self.stacks:
            return None
        state = state_of(self.stacks[rank][-1])
        return At.ELSEWHERE if state is At.UNSURE and rank in self.elsewhere else state

    def quiet(self, rank: int) -> bool:
        """Tell whether the rank is known not to wait in a collective, at the time when others gave up on it."""
        if self.waits.get(rank) or rank in self.complained:
            return False
        if (at := self.at(rank)) is not None:
            return at is At.ELSEWHERE
        pending = any(
            state.completed.get(rank, -1) < state.issued[rank] for state in self.groups.values() if rank in state.issued
        )
        return (rank in self.heard or rank in self.gone) and not pending

    @cached_property
    def gone(self) -> Mapping[int, facts.Exited]:
        """Return the ranks that a signal ended before anybody gave up on them.

        Signals by which torch and launchers take down those that wait do not count, nor what came long after the first
        end on the host. Where ranks that waited, or left a recording, ended by the same signal, somebody ended the
        whole job, and it tells nothing of anyone.
        """
        exits = self.evidence.of(facts.Exited)
        first = {f.host: f for f in exits if f.first}
        recorded = self.evidence.recording.ranks if self.evidence.recording is not None else {}
        others = {r for r in (*self.waits, *self.complained, *recorded) if r in recorded or self.waiting(r)}
        general = {f.code for f in exits if f.rank in others}
        return {
            f.rank: f
            for f in exits
            if f.code in FATAL_SIGNALS and f.code not in general and f.host in first and _at_once(first[f.host], f)
        }

    def absent(self) -> Iterator[int]:
        """Yield the ranks of which nothing is known."""
        return (rank for rank in range(self.world) if rank not in self.told and rank not in self.complained)


ESCALATION = 20
"""Seconds: torchrun takes the other ranks down by SIGKILL only when 30 have passed since the first one ended."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d")


def _at_once(first: facts.Exited, other: facts.Exited) -> bool:
    """Tell whether a process ended with the first one of its host, and not by its launcher's hand."""
    if other.first:
        return True
    times = [datetime.strptime(f.time, "%Y-%m-%d_%H:%M:%S") for f in (first, other) if _TIME.fullmatch(f.time)]
    return len(times) == 2 and abs((times[1] - times[0]).total_seconds()) < ESCALATION


def _ratios(state: GroupState) -> Iterator[int]:
    """Yield the group's size, as gathers and scatters tell it."""
    for by_rank in state.operations.values():
        for operation in by_rank.values():
            one, all_ = sorted((operation.sent, operation.received))
            if operation.kind in ("all_gather", "reduce_scatter") and one > 0 and all_ % one == 0 and all_ > one:
                ratio = all_ // one
                if ratio <= MAX_RATIO:
                    yield ratio


MAX_RATIO = 1 << 17


class _Identities:
    """Tells which rank a process is."""

    def __init__(self, evidence: Evidence) -> None:
        self.by_process: dict[tuple[str, int], int] = {}
        self.by_pid: dict[int, set[int]] = defaultdict(set)
        for process in evidence.of(facts.Process):
            self.by_process[process.host, process.pid] = process.rank
            self.by_pid[process.pid].add(process.rank)
        self.tasks: dict[tuple[Path, int | None], set[int]] = defaultdict(set)
        self.locals: dict[tuple[Path, int | None], set[int]] = defaultdict(set)
        self.tasks_are_ranks = self.locals_are_ranks = True
        numbers = evidence.of(facts.Numbering)
        for found in numbers:
            self.tasks[found.source.path, found.task].add(found.rank)
            self.locals[found.source.path, found.local].add(found.rank)
            self.tasks_are_ranks &= found.task in (None, found.rank)
            self.locals_are_ranks &= found.local in (None, found.rank)
        self.axes: dict[str, int] = {}
        for writer in _writers(evidence):
            if writer.pid is not None and writer.rank is not None:
                self.by_pid[writer.pid].add(writer.rank)
            for axis, index in writer.worker:
                self.axes[axis] = max(self.axes.get(axis, 0), index)

    def rank_of(self, writer: Writer, path: Path) -> tuple[int | None, bool]:
        """Return the rank of a process, None where nothing tells it; and whether that is certain."""
        if writer.rank is not None:
            return writer.rank, True
        if writer.pid is not None:
            found = self.by_process.get((writer.host, writer.pid))
            if found is not None:
                return found, True
            if len(ranks := self.by_pid.get(writer.pid, set())) == 1:
                return next(iter(ranks)), True
        for number, known, same in (
            (writer.task, self.tasks, self.tasks_are_ranks),
            (writer.local, self.locals, self.locals_are_ranks),
        ):
            if number is not None:
                ranks = known.get((path, number), set())
                if len(ranks) == 1:
                    return next(iter(ranks)), True
                elsewhere = {rank for (_, other), found in known.items() if other == number for rank in found}
                if not ranks and len(elsewhere) == 1:
                    return next(iter(elsewhere)), False  # unless this file is of another host
                # a number of the launcher's is the rank on one host, or with one task a rank
                return (number if same and not ranks else None), False
        place = dict(writer.worker)
        if "TP" in place or "PP" in place:
            # engines number workers by pipeline stage, then by tensor-parallel index; DP ranks are jobs of their own
            return place.get("PP", 0) * (self.axes.get("TP", 0) + 1) + place.get("TP", 0), True
        return None, False


class Written(Protocol):
    """Stands for a fact that somebody wrote."""

    @property
    def source(self) -> Source: ...
    @property
    def writer(self) -> Writer: ...


def _writers(evidence: Evidence) -> list[Writer]:
    found: dict[Writer, None] = {}
    for fact in evidence.facts:
        writer = getattr(fact, "writer", None)
        if isinstance(writer, Writer):
            found[writer] = None
    return list(found)


def stated(ranks: Iterable[int | None]) -> tuple[int, ...]:
    """Return the ranks that are known, in order."""
    return tuple(sorted({rank for rank in ranks if rank is not None}))


def evidence_of_job(evidence: Evidence) -> Evidence:
    """Return the evidence with the ranks of torch's reports as ranks of the job.

    They are ranks in the group that was checked. Where the writers show that these are others than the job's, ranks
    are left out where nothing tells which ranks of the job they are.
    """
    places: dict[str, dict[int, int]] = {"desync": {}, "other": {}}
    for fact in evidence.facts:
        if isinstance(fact, facts.Membership) and fact.group.family == "desync":
            places["desync"][fact.position] = fact.rank
        elif isinstance(fact, facts.Unlike) and fact.writer is not None:
            places["other"][fact.rank] = fact.writer
        elif isinstance(fact, facts.NeverCame) and fact.writer is not None:
            places["other"][fact.by] = fact.writer
    moved = {name: any(place != rank for place, rank in known.items()) for name, known in places.items()}
    if not any(moved.values()):
        return evidence
    found: list[facts.Fact] = []
    for fact in evidence.facts:
        if isinstance(fact, facts.Issued) and fact.group.family == "desync" and moved["desync"]:
            ranks = tuple(places["desync"][r] for r in fact.ranks if r in places["desync"])
            found.append(fact._replace(ranks=ranks, group=fact.group._replace(name=PART)))
        elif isinstance(fact, facts.Membership) and fact.group.family == "desync" and moved["desync"]:
            found.append(fact._replace(group=fact.group._replace(name=PART)))
        elif isinstance(fact, facts.Unlike) and moved["other"]:
            peer = None if fact.peer is None else places["other"].get(fact.peer)
            if fact.writer is not None:
                found.append(fact._replace(rank=fact.writer, peer=peer, ascending=False))
        elif isinstance(fact, facts.NeverCame) and moved["other"]:
            ranks = tuple(places["other"][r] for r in fact.ranks if r in places["other"])
            if fact.writer is not None and ranks:
                found.append(fact._replace(by=fact.writer, ranks=ranks))
        else:
            found.append(fact)
    return Evidence(found, evidence.recording, evidence.files)
