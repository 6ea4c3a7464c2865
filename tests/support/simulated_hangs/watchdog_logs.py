"""Logs of simulated hangs, as torch's watchdogs and torchrun write them: what is left of a job that kept no dumps.

Each rank that left something writes the time-out of the operation that waits the longest, with the counters of its
group; a rank that waits in nothing hears of it. Left out: lines that say nothing of operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hangs import P2P, Hang, Issued, Rank
from job_logs import Group, Op, Said, options, signal, timed_out

NAMES = {
    "all_gather": "_ALLGATHER_BASE",
    "reduce_scatter": "_REDUCE_SCATTER_BASE",
    "all_to_all": "ALLTOALL_BASE",
    "all_reduce": "ALLREDUCE",
}


def said_of(job: Hang, version: str = "2.6", *, told: bool = True) -> Said:
    """Return the lines of each rank. `told`: those in which ranks enter their groups are there."""
    waiting = {r.rank: op for r in job.ranks if (op := _first_pending(r)) is not None and r.rank not in job.crashed}
    said: Said = {}
    for rank in job.ranks:
        if rank.rank in job.crashed:
            continue
        own = _groups(job, rank.rank)
        lines = [options(version, rank.rank, group) for group in own.values()] if told else []
        op = waiting.get(rank.rank)
        issued, done = _counters(rank, "0", p2p=False)
        if op is not None:
            group, p2p = own[op.step.group], op.step.kind in P2P
            number = op.p2p if p2p else op.collective
            lines += timed_out(
                version, rank.rank, group, number, _words(op, group), *_counters(rank, group.guid, p2p=p2p)
            )
            lines.append(signal(version, rank.rank, rank.rank, issued, done))
        elif waiting:
            lines.append(signal(version, rank.rank, min(waiting), issued, done))
        said[rank.rank] = lines
    return said


def table_of(ended: Collection[int], code: int = -9, host: str = "node-a") -> str:
    """Return torchrun's table of processes that a signal ended, the first of them first; empty for none."""
    rows = [
        f"[{at}]:\n  time      : 2026-01-26_01:19:30\n  host      : {host}\n  rank      : {rank} (local_rank: {rank})\n"
        f"  exitcode  : {code} (pid: {4000 + rank})\n  error_file: <N/A>\n"
        f"  traceback : Signal {-code} received by PID {4000 + rank}\n"
        for at, rank in enumerate(sorted(ended))
    ]
    if not rows:
        return ""
    rest = "".join(rows[1:]) or "  <NO_OTHER_FAILURES>\n"
    line, thin = "=" * 55 + "\n", "-" * 55 + "\n"
    return f"{line}train.py FAILED\n{thin}Failures:\n{rest}{thin}Root Cause (first observed failure):\n{rows[0]}{line}"


def _groups(job: Hang, rank: int) -> dict[str, Group]:
    own = [(name, about, members) for name, (about, members) in job.groups.items() if rank in members]
    return {name: Group(name, about, members, at) for at, (name, about, members) in enumerate(own)}


def _pending(rank: Rank) -> Iterator[Issued]:
    return (op for op in rank.issued if not (op.done and op.noticed))


def _first_pending(rank: Rank) -> Issued | None:
    return next(_pending(rank), None)


def _counters(rank: Rank, group: str, *, p2p: bool) -> tuple[int, int]:
    """Return the numbers of the last operation that was issued in the group, and of the last that completed."""
    own = [op for op in rank.issued if op.step.group == group and (op.step.kind in P2P) == p2p]
    numbers = [op.p2p if p2p else op.collective for op in own]
    done = [number for op, number in zip(own, numbers, strict=True) if op.done and op.noticed]
    return max(numbers, default=-1), max(done, default=-1)


def _words(op: Issued, group: Group) -> Op:
    step, many = op.step, len(group.members)
    name = NAMES.get(step.kind, step.kind.upper())
    sent = step.size * (many if step.kind == "reduce_scatter" else 1)
    return Op(name, sent, step.size * (many if step.kind == "all_gather" else 1))
