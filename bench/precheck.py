"""Compares `genlock.precheck` with torch's TORCH_DISTRIBUTED_DEBUG=DETAIL: what they cost, and what they catch.

    python bench/precheck.py [--rounds 40]

Three ranks on gloo. Cost: all-reduces of 16 floats, plain, in a group that torch has wrapped, and under precheck, in
turn; rank0's median time of an operation. Catches: in each way rank1 does other than the rest; the table has how many
of those that take part raise within 4 s, and if every error names lines of the program.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import genlock
import torch
import torch.distributed as dist

c10d: Any = dist
WORLD, BLOCK, PATIENCE = 3, 20, 4.0


def join(folder: str, rank: int) -> None:
    store = c10d.FileStore(f"{folder}/store", WORLD)
    patience = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=patience)


def wrapped() -> Any:
    """Return a group that torch checks."""
    before = c10d.get_debug_level()
    c10d.set_debug_level(c10d.DebugLevel.DETAIL)
    try:
        return dist.new_group(list(range(WORLD)), timeout=timedelta(seconds=PATIENCE))
    finally:
        c10d.set_debug_level(before)


def cost(folder: str, rank: int, rounds: int) -> None:
    join(folder, rank)
    group, tensor = wrapped(), torch.ones(16)
    times: dict[str, list[float]] = {"plain": [], "DETAIL": [], "precheck": []}

    def block(kind: str) -> None:
        own = group if kind == "DETAIL" else None
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(BLOCK):
            dist.all_reduce(tensor, group=own)
        times[kind].append((time.perf_counter() - begin) / BLOCK * 1e6)

    for turn in range(rounds):
        for kind in list(times)[turn % 3 :] + list(times)[: turn % 3]:
            if kind == "precheck":
                with genlock.precheck():
                    block(kind)
            else:
                block(kind)
    if rank == 0:
        Path(folder, "cost").write_text(" ".join(f"{kind} {median(own[3:]):.0f}" for kind, own in times.items()))
    dist.barrier()
    os._exit(0)


def _ways(bad: bool, group: Any) -> dict[str, Callable[[], object]]:
    tensor, reduce = torch.ones(4), dist.ReduceOp
    return {
        "operation": lambda: dist.broadcast(tensor, 0, group) if bad else dist.all_reduce(tensor, group=group),
        "size": lambda: dist.all_reduce(torch.ones(5 if bad else 4), group=group),
        "dtype": lambda: dist.all_reduce(tensor.double() if bad else tensor, group=group),
        "root": lambda: dist.broadcast(tensor, 1 if bad else 0, group),
        "reduction": lambda: dist.all_reduce(tensor, reduce.MAX if bad else reduce.SUM, group),
        "barrier": lambda: dist.all_reduce(tensor, group=group) if bad else dist.barrier(group),
        "absent rank": lambda: None if bad else dist.all_reduce(tensor, group=group),
        "none (a plain barrier)": lambda: dist.barrier(group),
    }


def fault(folder: str, rank: int, check: str, way: str) -> None:
    join(folder, rank)
    group = wrapped() if check == "DETAIL" else dist.group.WORLD
    act, said = _ways(rank == 1, group)[way], "-"
    try:
        if check == "precheck":
            with genlock.precheck(PATIENCE):
                act()
        else:
            act()
    except Exception as error:
        said = " ".join(str(error).split())
    Path(folder, f"{rank}").write_text(said)
    time.sleep(PATIENCE)  # so that nobody fails because of another's end
    os._exit(0)


def run(work: Callable[..., None], *given: object) -> Path:
    """Run the ranks of one job; returns the folder that they have written to."""
    folder = tempfile.mkdtemp()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=work, args=(folder, rank, *given)) for rank in range(WORLD)]
    for rank in ranks:
        rank.start()
    until = time.monotonic() + (600 if work is cost else 3 * PATIENCE)
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
        rank.kill()
    return Path(folder)


def caught(check: str, way: str) -> str:
    folder = run(fault, check, way)
    said = [(folder / str(rank)).read_text() if (folder / str(rank)).exists() else "" for rank in range(WORLD)]
    due = [text for rank, text in enumerate(said) if rank != 1 or way != "absent rank"]
    raised = [text for text in due if text not in ("", "-")]
    if not raised:
        return "hangs" if "" in due else "no"
    every = "every rank" if len(raised) == len(due) else f"{len(raised)} of {len(due)} ranks"
    lines = all(f"{Path(__file__).name}:" in text for text in raised)
    return every + (", with lines" if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    print(f"us an operation, medians of {given.rounds} rounds:", (run(cost, given.rounds) / "cost").read_text())
    print("| rank1 differs in | precheck | DETAIL |\n|---|---|---|")
    for way in _ways(False, None):
        print(f"| {way} | {caught('precheck', way)} | {caught('DETAIL', way)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
