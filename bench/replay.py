"""Times a replay: against ranks and events, in every format, and beside torch's own analyzer in one run.

    python bench/replay.py                    # all of it; some minutes, most of them torch's
    python bench/replay.py --torch 64         # beside torch with 64 ranks alone
    python bench/replay.py --torch            # not beside torch
    python bench/replay.py --case program 64 100000      # one recording alone

The recordings are synthetic. Flight Recorder dumps are as torch 2.13 writes them (2.10, NCCL, frames): tensor-parallel
groups of 8 and one of all, and one rank never issues the last operation of all. Programs are the same job as `genlock
record` writes it, healthy. Runs of TP v1.1 are simulated with three ranks, and the worker is copied.

Left out: the disk (what is read has just been written, and lies in memory).
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from genlock.traces.format import Clock, Dropped, End, Event, TraceHeader, encode, name_of, read

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))

TP = 8
FRAMES = [
    {"name": "all_reduce", "filename": "torch/distributed/distributed_c10d.py", "line": 3245},
    {"name": "wrapper", "filename": "torch/distributed/c10d_logger.py", "line": 83},
    {"name": "forward", "filename": "model/block.py", "line": 118},
    {"name": "train", "filename": "train.py", "line": 42},
]


class Measured(NamedTuple):
    """Holds one program's run on one set of dumps: seconds, MB, and the rank that it blames."""

    wall: float
    user: float
    memory: float
    status: int
    blamed: str


def culprit(ranks: int) -> int:
    """The rank that hangs the job of the dumps."""
    return ranks // 3


def write(folder: Path, ranks: int, entries: int, culprit: int) -> None:
    """The dumps of a hang that `culprit` causes."""
    for rank in range(ranks):
        (folder / f"trace_{rank}").write_bytes(pickle.dumps(dump(rank, ranks, entries, culprit), protocol=2))


def dump(rank: int, ranks: int, entries: int, culprit: int) -> dict[str, Any]:
    """Return the ring of one rank: seven operations of its TP group, then one of the group of all, and so on."""
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


# ── Genlock's own format ────────────────────────────────────────────────────────────────────────────────


def write_program(folder: Path, ranks: int, events: int) -> None:
    """Traces of a program without a protocol; each operation is two events."""
    for rank in range(ranks):
        tp = rank // TP
        groups = {"0": tuple(range(ranks)), str(1 + tp): tuple(range(tp * TP, tp * TP + TP))}
        header = TraceHeader(1, "bench", rank, ranks, "", "gloo", "", "", groups, Clock(0, 0))
        lines = [encode(header)]
        for at, (_, name, _, sequence) in enumerate(issued(tp, events // 2)):
            facts: dict[str, Any] = {"group": name, "sequence": sequence, "op": "all_reduce"}
            begin = at * 1_000_000 + rank
            enter = {"dtype": "bfloat16", "numel": 65536, "site": "train.py:42", **facts}
            lines.append(encode(Event(2 * at, begin, "", "enter", "", "", **enter)))
            lines.append(encode(Event(2 * at + 1, begin + 500_000, "", "exit", "", "", entered=2 * at, **facts)))
        lines.append(encode(End(events, 0, "stopped", 0)))
        (folder / name_of(rank)).write_bytes(b"".join(lines))


def write_run(folder: Path, ranks: int, events: int) -> None:
    """Traces of TP v1.1; a worker has about as many events as asked for, rank0 half as many again."""
    from simulated import Job, fields  # of the tests

    with tempfile.TemporaryDirectory() as few:
        job = Job(folder=Path(few))
        worker = Path(few) / name_of(1)
        while worker.read_bytes().count(b"\n") < events - EVENTS_OF_A_CHUNK:
            job.run(job.rank0.chunk(fields()))
        job.stop()
        own = [read(Path(few) / name_of(rank)) for rank in (0, 1)]
    for rank in range(ranks):
        trace = own[min(rank, 1)]
        groups = {name: tuple(range(ranks)) for name in trace.header.groups}
        changes = {"rank": rank, "world": ranks, "groups": groups}
        lines = [encode(msgspec.structs.replace(trace.header, **changes))]
        for line in trace.lines:
            assert not isinstance(line, Dropped)
            lines.append(encode(msgspec.structs.replace(line, time_ns=line.time_ns + rank)))
        (folder / name_of(rank)).write_bytes(b"".join(lines))


EVENTS_OF_A_CHUNK = 12

FORMATS: Mapping[str, Callable[[Path, int, int], None]] = {
    "TP v1.1": write_run,
    "program": write_program,
    "Flight Recorder": lambda folder, ranks, entries: write(folder, ranks, entries, culprit(ranks)),
}


def grow(cases: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    """Time a replay of each of these formats, for (ranks, events)."""
    print("genlock replay, by ranks and events a rank")
    print(f"  {'':16}{'ranks':>6}{'events':>8}{'files MB':>10}{'wall s':>8}{'user s':>8}{'MB':>6}")
    for name in names:
        for ranks, events in cases:
            folder = Path(tempfile.mkdtemp(prefix="replay-bench-"))
            try:
                make(name, folder, ranks, events)
                size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
                m = measure([*GENLOCK, str(folder)], re.compile("culprits +(.*)"))
                sizes = f"{ranks:>6}{events:>8,}{size:>10,.0f}"
                print(f"  {name:16}{sizes}{m.wall:>8.1f}{m.user:>8.1f}{m.memory:>6.0f}", flush=True)
            finally:
                shutil.rmtree(folder)


def make(name: str, folder: Path, ranks: int, events: int) -> None:
    """Write a recording in a process of its own: the kernel counts a parent's memory as its child's."""
    command = [sys.executable, __file__, "--write", name, str(folder), str(ranks), str(events)]
    subprocess.run(command, check=True)


GENLOCK = [sys.executable, "-m", "genlock", "replay"]


# ── beside torch ────────────────────────────────────────────────────────────────────────────────────────


def compare(ranks: int, entries: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="replay-bench-"))
    try:
        make("Flight Recorder", folder, ranks, entries)
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        what = f"{ranks} ranks x {entries:,} entries, {size:,.0f} MB"
        print(f"{what}; rank {culprit(ranks)} never issued the last collective")
        print(f"  {'':14}{'wall s':>8}{'user s':>8}{'MB':>8}{'exit':>6}  blames")
        torch = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace", str(folder), "--prefix", "trace_"]
        programs = {
            "genlock": ([*GENLOCK, str(folder)], re.compile(r"culprits +(.*)")),
            "torchfrtrace": (torch, re.compile(r"(?:[Mm]issing ranks|Culprit rank)[: ]*([^;\n]*)")),
        }
        for name, (command, blame) in programs.items():
            m = measure(command, blame)
            print(f"  {name:14}{m.wall:8.1f}{m.user:8.1f}{m.memory:8.0f}{m.status:6}  {m.blamed}", flush=True)
    finally:
        shutil.rmtree(folder)


CASES = [(64, 2000), (128, 2000), (256, 2000), (512, 2000), (512, 500), (512, 1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch", type=int, nargs="*", default=[64, 512], help="ranks, multiples of 8")
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=3, metavar=("FORMAT", "RANKS", "EVENTS"))
    given = parser.parse_args()
    if given.case:
        name, ranks, events = given.case
        if name not in FORMATS or not (ranks + events).isdecimal():
            parser.error(f"--case takes one of {', '.join(FORMATS)}, and two numbers")
        grow([(int(ranks), int(events))], [name])
        return
    if given.write:
        name, folder, ranks, events = given.write
        FORMATS[name](Path(folder), int(ranks), int(events))
        return
    grow(CASES, list(FORMATS))
    for ranks in given.torch:
        compare(ranks, 2000)


if __name__ == "__main__":
    main()
