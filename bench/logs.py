"""Measures what reading a large log costs: 100 MB of 64 ranks that write into each other, in at most 10 s and 300 MB.

    python bench/logs.py                  # both kinds of log
    python bench/logs.py --mb 20          # smaller ones

The first log is of training steps under torchrun and srun prefixes, coloured here and there, in which one rank stands
still and the watchdogs of the others end the job. The second has a line of NCCL for each collective, which are the
most lines that a log can have that say something; one rank issues another operation at one number.

Beside it, in the same run: `grep` for the same words, which finds the lines and understands none.

Left out: the disk (what is read has just been written, and lies in memory).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RANKS, STILL = 64, 37
SECONDS, MEGABYTES = 10.0, 300.0
"""Bounds what it may take, for 100 MB."""


def training(size: int) -> Iterator[str]:
    """Lines of steps, and the end of the job: rank STILL never issued operation 9000."""
    chance = random.Random(0)
    written = step = 0
    while written < size:
        step += 1
        for rank in chance.sample(range(RANKS), RANKS):
            colour = ("\x1b[36m", "\x1b[0m") if rank % 16 == 0 else ("", "")
            head = f"{rank:2d}: {colour[0]}[default{rank % 8}]:{colour[1]}[rank{rank}]: "
            line = (
                f"{head}2026-03-04 05:06:07,{step % 1000:03d} INFO trainer: step {step} "
                f"loss {chance.random():.4f} grad_norm {chance.random():.3f} lr 3.0e-04 tokens/s 12345\n"
            )
            written += len(line)
            yield line
    for rank in chance.sample(range(RANKS), RANKS):
        head = f"{rank:2d}: [default{rank % 8}]:[rank{rank}]:[E304 05:16:07.{rank:09d} ProcessGroupNCCL.cpp"
        group = f"[PG ID 0 PG GUID 0(default_pg) Rank {rank}]"
        if rank == STILL:
            yield f"{head}:1682] {group} Observed flight recorder dump signal from another rank via TCPStore.\n"
        else:
            yield (
                f"{head}:632] [Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9000, "
                "OpType=ALLREDUCE, NumelIn=4096, NumelOut=4096, Timeout(ms)=600000) ran for 600001 milliseconds "
                "before timing out.\n"
            )
            yield (
                f"{head}:2271] {group}  failure detected by watchdog at work sequence id: 9000 PG status: "
                "last enqueued work: 9002, last completed work: 8999\n"
            )
        issued, completed = (8999, 8999) if rank == STILL else (9002, 8999)
        yield (
            f"{head}:1746] {group} Received a dump signal due to a collective timeout from  rank 0 and we will try our "
            f"best to dump the debug info. Last enqueued NCCL work: {issued}, last completed NCCL work: {completed}."
            "This is most likely caused by incorrect usages of collectives\n"
        )


def calls(size: int) -> Iterator[str]:
    """Lines of NCCL; rank STILL issues a broadcast where the others reduce, in the middle."""
    chance = random.Random(0)
    head = "node{node}:{pid}:{pid} [{device}] NCCL INFO "
    heads = [head.format(node=rank // 8, pid=4000 + rank, device=rank % 8) for rank in range(RANKS)]
    for rank in range(RANKS):
        yield (
            f"{heads[rank]}ncclCommInitRank comm 0x55d0{rank:08x} rank {rank} nranks {RANKS} cudaDev {rank % 8} "
            f"nvmlDev {rank % 8} busId 18000 commId 0x6b1fd20c55aa9e01 - Init COMPLETE\n"
        )
    written = number = 0
    while written < size:
        number += 1
        odd = written > size // 2 > written - RANKS * 200
        for rank in chance.sample(range(RANKS), RANKS):
            name, count = ("Broadcast", 512) if odd and rank == STILL else ("AllReduce", 262144)
            line = (
                f"{heads[rank]}{name}: opCount {number:x} sendbuff 0x7f01a0200000 recvbuff 0x7f01a0200000 "
                f"count {count} datatype 7 op 0 root 0 comm 0x55d0{rank:08x} [nranks={RANKS}] stream 0x55d0b0000000\n"
            )
            written += len(line)
            yield line


class Measured(NamedTuple):
    """One replay, in a process of its own."""

    wall: float
    cpu: float
    """Seconds that it computed: what counts where others use the machine too, as it is one thread."""
    megabytes: float
    culprits: list[int]


def measure(path: Path) -> Measured:
    """Replay a log."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--judge", str(path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return Measured(time.perf_counter() - begin, found["cpu"], found["megabytes"], found["culprits"])


WORDS = "Watchdog caught|last enqueued|Received a dump signal|opCount|Init COMPLETE|Traceback"


def grepped(path: Path) -> float:
    """Return the CPU seconds that grep takes to count the lines with one of some words."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["grep", "-cE", WORDS, str(path)], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def judge(path: Path) -> None:
    """Replay and print what it took."""
    from genlock.conformance.replay import replay

    found = replay([path]).diagnosis
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(json.dumps({"megabytes": peak, "cpu": used.ru_utime + used.ru_stime, "culprits": found.culprits}))


def main() -> int:
    """Measure both logs; 1 where a bound is missed or the wrong rank is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100, help="size of each log")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge is not None:
        judge(given.judge)
        return 0
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("training", training), ("NCCL calls", calls)):
            path = Path(folder) / "job.log"
            with path.open("w") as out:
                out.writelines(lines(given.mb << 20))
            found = measure(path)
            scale = max(1.0, given.mb / 100)
            good = found.culprits == [STILL] and found.cpu <= SECONDS * scale and found.megabytes <= MEGABYTES
            missed += not good
            size = path.stat().st_size / (1 << 20)
            told = (
                f"{name:12} {size:6.0f} MB in {found.cpu:5.2f} s CPU ({found.wall:5.2f} s), {found.megabytes:4.0f} MB"
            )
            told += f", rank {found.culprits}; grep {grepped(path):5.2f} s CPU"
            print(told + ("" if good else " MISSED"), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
