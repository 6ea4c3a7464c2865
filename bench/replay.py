"""Flight Recorder dumps of a hang, replayed by genlock and by torch's own analyzer, side by side in one run.

    .venv/bin/python bench/replay.py            # 64 and 512 ranks x 2,000 entries; some minutes, most of them torch's
    .venv/bin/python bench/replay.py --ranks 64

The dumps are synthetic, as torch 2.13 writes them (version 2.10, NCCL, frames): a job of tensor-parallel groups of 8
and one group of all; one rank never issues the last operation of the group of all. Left out: reading speed of the disk
(the dumps have just been written, and lie in memory).
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TP = 8
FRAMES = [
    {"name": "all_reduce", "filename": "torch/distributed/distributed_c10d.py", "line": 3245},
    {"name": "wrapper", "filename": "torch/distributed/c10d_logger.py", "line": 83},
    {"name": "forward", "filename": "model/block.py", "line": 118},
    {"name": "train", "filename": "train.py", "line": 42},
]


class Measured(NamedTuple):
    """One program on one set of dumps; seconds, MB, and whom it blames."""

    wall: float
    user: float
    memory: float
    status: int
    blamed: str


def write(folder: Path, ranks: int, entries: int, culprit: int) -> None:
    """The dumps of a hang that `culprit` causes."""
    for rank in range(ranks):
        (folder / f"trace_{rank}").write_bytes(pickle.dumps(dump(rank, ranks, entries, culprit), protocol=2))


def dump(rank: int, ranks: int, entries: int, culprit: int) -> dict[str, Any]:
    """What the ring of one rank holds: seven operations of its TP group, then one of the group of all, and so on."""
    tp = rank // TP
    members = range(tp * TP, tp * TP + TP)
    config = {
        "0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(ranks)))},
        str(1 + tp): {"name": str(1 + tp), "desc": "TENSOR_MODEL_PARALLEL_GROUP", "ranks": str(list(members))},
    }
    found = list(issued(tp, entries))
    if rank == culprit:
        found.pop()
    last = {"0": 0, "1": 0}
    for at, (number, name, about, sequence) in enumerate(found):
        done = at != entries - 1
        last[str(number)] = sequence
        found[at] = entry(at, number, name, about, sequence, done)  # type: ignore[call-overload]
    status = {
        n: dict.fromkeys(("last_enqueued_collective", "last_started_collective", "last_completed_collective"), value)
        for n, value in last.items()
    }
    return {"version": "2.10", "pg_config": config, "comm_lib_version": "2.28.9", "pg_status": status, "entries": found}


def issued(tp: int, entries: int) -> Iterator[tuple[int, str, str, int]]:
    counts = [0, 0]
    for at in range(entries):
        number = 0 if at % 8 == 7 else 1
        counts[number] += 1
        name = "0" if number == 0 else str(1 + tp)
        yield number, name, "default_pg" if number == 0 else "TENSOR_MODEL_PARALLEL_GROUP", counts[number]


def entry(at: int, number: int, name: str, about: str, sequence: int, done: bool) -> dict[str, Any]:
    start = 1_700_000_000_000_000_000 + at * 1_000_000
    return {
        "frames": [dict(frame) for frame in FRAMES],
        "record_id": at,
        "pg_id": number,
        "process_group": (name, about),
        "thread_name": "python",
        "thread_id": "139798039567232",
        "collective_seq_id": sequence,
        "p2p_seq_id": 0,
        "op_id": sequence,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": start,
        "input_sizes": [[16, 4096]],
        "input_dtypes": ["BFloat16"],
        "output_sizes": [[16, 4096]],
        "output_dtypes": ["BFloat16"],
        "state": "completed" if done else "scheduled",
        "time_discovered_started_ns": start + 1000 if done else None,
        "time_discovered_completed_ns": start + 100_000 if done else None,
        "retired": done,
        "timeout_ms": 600_000,
        "is_p2p": False,
    }


def measure(command: Sequence[str], blame: re.Pattern[str]) -> Measured:
    """Run a program to its end, and take what the kernel says that it used."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        out.seek(0)
        text = out.read().decode(errors="replace")
    said = dict.fromkeys(match.strip() for match in blame.findall(text))
    return Measured(wall, usage.ru_utime, usage.ru_maxrss / 1024, child.returncode, "; ".join(said)[:60] or "nobody")


def compare(ranks: int, entries: int, culprit: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="replay-bench-"))
    try:
        write(folder, ranks, entries, culprit)
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        print(f"{ranks} ranks x {entries:,} entries, {size:,.0f} MB; rank {culprit} never issued the last collective")
        print(f"  {'':14}{'wall s':>8}{'user s':>8}{'MB':>8}{'exit':>6}  blames")
        torch = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace", str(folder), "--prefix", "trace_"]
        programs = {
            "genlock": ([sys.executable, "-m", "genlock", "replay", str(folder)], re.compile(r"culprits +(.*)")),
            "torchfrtrace": (torch, re.compile(r"(?:[Mm]issing ranks|Culprit rank)[: ]*([^;\n]*)")),
        }
        for name, (command, blame) in programs.items():
            m = measure(command, blame)
            print(f"  {name:14}{m.wall:8.1f}{m.user:8.1f}{m.memory:8.0f}{m.status:6}  {m.blamed}", flush=True)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="*", default=[64, 512], help="multiples of 8")
    parser.add_argument("--entries", type=int, default=2000)
    given = parser.parse_args()
    for ranks in given.ranks:
        compare(ranks, given.entries, culprit=ranks // 3)


if __name__ == "__main__":
    main()
