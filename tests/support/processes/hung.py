"""Forks the ranks of gloo jobs that hang, one job for each line `RANKS BROKEN WAY` on stdin.

Rank BROKEN sleeps in its own code (`sleep`), or is stopped by a signal (`stop`), before an all_reduce in which the
others wait; or it only comes late, again and again (`slow`); or it waits by a handle while the others do by a call, for
another operation (`handle`). Prints the process ids, in the order of ranks, once all
are under way, and ends them at the next line.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def rank(number: int, world: int, store: str, broken: int, way: str) -> None:
    c10d: Any = dist
    shared = c10d.FileStore(store, world)
    dist.init_process_group("gloo", store=shared, rank=number, world_size=world)
    dist.all_reduce(torch.ones(2))
    Path(f"{store}.{number}").touch()
    if number == broken and way == "sleep":
        time.sleep(3600)
    if number == broken and way == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if number == broken and way == "handle":
        handle = dist.all_reduce(torch.ones(2), async_op=True)
        handle.wait()
    if way == "handle":
        time.sleep(0.1)
        dist.broadcast(torch.ones(2), src=broken)
    while True:
        if number == broken and way == "slow":
            time.sleep(0.05)
        dist.all_reduce(torch.ones(2))


def start(world: int, broken: int, way: str, store: str) -> list[int]:
    pids = []
    for number in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                rank(number, world, store, broken, way)
            finally:
                os._exit(1)
        pids.append(pid)
    while not all(Path(f"{store}.{number}").exists() for number in range(world)):
        time.sleep(0.02)
    return pids


def main() -> None:
    torch.set_num_threads(1)
    pids: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for job, line in enumerate(sys.stdin):
                end(pids)
                world, broken, way = line.split()
                pids = start(int(world), int(broken), way, f"{folder}/{job}")
                print(*pids, flush=True)
        finally:
            end(pids)


def end(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pids.clear()


if __name__ == "__main__":
    main()
