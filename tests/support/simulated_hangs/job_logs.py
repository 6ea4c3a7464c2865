"""Logs of jobs that hang, as torch 2.1 to 2.13 and their launchers write them; line by line, by who writes it.

`said` is a job's lines by rank; a launcher puts its prefixes before them, and `mixed` writes them into one log.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

VERSIONS = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.8", "glog")
NUMBERED = ("2.3", "2.4", "2.5", "2.6", "2.8", "glog")
"""Versions whose lines have counters."""
Said = dict[int, list[str]]


class Group(NamedTuple):
    """A process group, as its members name it."""

    guid: str
    description: str
    members: tuple[int, ...]
    local: int = 0
    """The number that each member has for it."""


class Op(NamedTuple):
    """An operation, in torch's words."""

    name: str
    sent: int
    received: int


REDUCE = Op("ALLREDUCE", 4096, 4096)


def head(version: str, rank: int, level: str = "E") -> str:
    """Return what the C++ log puts first."""
    if version == "2.1":
        return f"[{level} ProcessGroupNCCL.cpp:475] "
    if version in ("2.2", "2.3"):
        return f"[rank{rank}]:[{level} ProcessGroupNCCL.cpp:563] "
    if version == "glog":
        return f"[rank{rank}]:{level}0927 12:07:22.643702 4711 ProcessGroupNCCL.cpp:1356] "
    return f"[rank{rank}]:[{level}709 17:05:38.162814866 ProcessGroupNCCL.cpp:2271] "


def prefix(version: str, group: Group, rank: int) -> str:
    """Return what names the group and the rank in it."""
    place = group.members.index(rank)
    if version == "2.3":
        return f"[PG {group.local} Rank {place}]"
    if version == "2.4":
        told = f" ({group.description})" if group.description else ""
        return f"[PG {group.guid}{told} Rank {place}]"
    told = f"({group.description})" if group.description else ""
    return f"[PG ID {group.local} PG GUID {group.guid}{told} Rank {place}]"


def timed_out(version: str, rank: int, group: Group, number: int, op: Op, issued: int, done: int) -> list[str]:
    """The lines of a rank whose watchdog gave up on an operation."""
    sizes = "" if version == "2.1" else f"NumelIn={op.sent}, NumelOut={op.received}, "
    place = group.members.index(rank)
    lines = [
        f"{head(version, rank)}[Rank {place}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum={number}, "
        f"OpType={op.name}, {sizes}Timeout(ms)=600000) ran for 600051 milliseconds before timing out."
    ]
    if version in NUMBERED:
        lines.append(head(version, rank) + prefix(version, group, rank) + status(version, number, issued, done))
    if version not in ("2.1", "2.2"):
        lines.append(signal(version, rank, rank, None, None))
    return lines


def status(version: str, number: int, issued: int, done: int) -> str:
    """The counters of a rank that gave up."""
    old = f"last enqueued NCCL work: {issued}, last completed NCCL work: {done}."
    if version == "2.3":
        return f" Timeout at NCCL work: {number}, {old}"
    if version in ("2.4", "2.5"):
        return f" Exception (either an error or timeout) detected by watchdog at work: {number}, {old}"
    counters = f"last enqueued work: {issued}, last completed work: {done}"
    return f"  failure detected by watchdog at work sequence id: {number} PG status: {counters}"


def signal(version: str, rank: int, by: int, issued: int | None, done: int | None) -> str:
    """The line about the end of the job; from 2.5 on with the counters of the default group."""
    default = Group("0", "default_pg", tuple(range(by + rank + 1)))
    who = "this local rank" if by == rank else f" rank {by}"
    start = head(version, rank) + prefix(version, default, rank)
    if version == "2.3":
        told = "a timeout signal from this local rank" if by == rank else "a global timeout from another rank"
        return f"{start} Received {told} and will start to dump the debug info."
    counters = "" if issued is None else f" Last enqueued NCCL work: {issued}, last completed NCCL work: {done}."
    if version == "2.4":
        told = "a dump signal from this local rank" if by == rank else f"a global dump signal from rank {by}"
        return f"{start} Received {told}, and will start to dump the debug info.{counters}"
    return (
        f"{start} Received a dump signal due to a collective timeout from {who} and we will try our best to dump the "
        f"debug info.{counters}This is most likely caused by incorrect usages of collectives, e.g., wrong sizes"
    )


def options(version: str, rank: int, group: Group) -> str:
    """The line with which a rank enters a group, where INFO is shown."""
    return (
        f"{head(version, rank, 'I')}{prefix(version, group, rank)} ProcessGroupNCCL initialization options: "
        f"size: {len(group.members)}, global rank: {rank}, TIMEOUT(ms): 600000, PG Name: {group.guid}"
    )


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────


def world(ranks: int) -> Group:
    return Group("0", "default_pg", tuple(range(ranks)))


def one_behind(version: str = "2.6", ranks: int = 4, behind: Sequence[int] = (2,), number: int = 1518) -> Said:
    """Ranks never issue an operation that all others wait in."""
    group = world(ranks)
    others = [rank for rank in range(ranks) if rank not in behind]
    said: Said = {r: timed_out(version, r, group, number, REDUCE, number + 2, number - 1) for r in others}
    if version in NUMBERED:
        said |= {r: [signal(version, r, others[0], number - 1, number - 1)] for r in behind}
    return said


def unlike(version: str = "2.6", ranks: int = 4, odd: Sequence[int] = (2,)) -> Said:
    """Ranks issue another operation at one number."""
    group = world(ranks)
    gather = Op("_ALLGATHER_BASE", 1024, 1024 * ranks)
    return {r: timed_out(version, r, group, 88, gather if r in odd else REDUCE, 88, 87) for r in range(ranks)}


def one_ahead(version: str = "2.6", ranks: int = 4, ahead: int = 0) -> Said:
    """A rank did one operation too many in one group, and all others wait for it in another."""
    default, data = world(ranks), Group("1", "train_dp", tuple(range(ranks)), 1)
    gather = Op("_ALLGATHER_BASE", 1024, 1024 * ranks)
    said = {ahead: timed_out(version, ahead, default, 11, REDUCE, 11, 10)}
    for rank in range(ranks):
        if rank != ahead:
            said[rank] = timed_out(version, rank, data, 340, gather, 340, 339)
            said[rank].append(signal(version, rank, rank, 10, 10))
    return said


def grid(version: str = "2.6", still: int = 5, *, told: bool = True) -> Said:
    """Eight ranks in groups of two, tensor by data by pipeline; one stands still. `told`: INFO lines are shown."""
    groups: list[Group] = []
    for at, step in enumerate((2, 1, 4), 1):
        for low in range(8):
            if not low & step:
                groups.append(Group(str(len(groups) + 1), ("dp", "tp", "pp")[at - 1], (low, low + step), at))
    waits: dict[int, tuple[Group, int]] = {}
    near = [still]
    while near:
        one = near.pop(0)
        for group in groups:
            other = sum(group.members) - one
            if one in group.members and other != still and other not in waits:
                waits[other] = (group, group.local)
                near.append(other)
    ops = {1: Op("_REDUCE_SCATTER_BASE", 4096, 2048), 2: REDUCE, 3: REDUCE}
    said: Said = {rank: [] for rank in range(8)}
    for rank in range(8):
        said[rank] += [options(version, rank, group) for group in groups if told and rank in group.members]
        if rank in waits:
            group, at = waits[rank]
            said[rank] += timed_out(version, rank, group, 60 + at, ops[at], 60 + at, 59 + at)
        said[rank].append(signal(version, rank, rank if rank in waits else min(waits), 3, 3))
    return said


# ── launchers ───────────────────────────────────────────────────────────────────────────────────────────

LAUNCHERS: Mapping[str, Callable[[int, str], str]] = {
    "none": lambda rank, line: line,
    "torchrun": lambda rank, line: f"[default{rank % 4}]:{line}",
    "srun": lambda rank, line: f"{rank:2d}: {line}",
    "mpirun": lambda rank, line: f"[1,{rank}]<stderr>:{line}",
    "kubectl": lambda rank, line: f"[pod/job-worker-{rank // 4}/train] {line}",
    "stern": lambda rank, line: f"job-worker-{rank // 4} train {line}",
    "ray": lambda rank, line: f"(TrainWorker pid={7000 + rank}, ip=10.9.0.{rank // 4}) {line}",
    "coloured": lambda rank, line: f"\x1b[36m(RayTrainWorker pid={7000 + rank})\x1b[0m {line}",
    "container": lambda rank, line: f"2026-01-02T03:04:05.123456789Z stderr F {line}",
    "srun of torchrun": lambda rank, line: f"{rank // 4}: [default{rank % 4}]:{line}",
}


def mixed(said: Said, launcher: str = "none", seed: int = 0) -> bytes:
    """One log of all ranks: lines of each in their order, ranks in any."""
    chance = random.Random(seed)
    left = {rank: list(lines) for rank, lines in said.items() if lines}
    out = []
    while left:
        rank = chance.choice(sorted(left))
        out.append(LAUNCHERS[launcher](rank, left[rank].pop(0)))
        if not left[rank]:
            del left[rank]
    return "".join(f"{line}\n" for line in out).encode()
