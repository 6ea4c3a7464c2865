"""Jobs of three ranks that multiprocessing starts; in each rank1 does what the way says. All jobs run at once.

    python guarded_inside.py FOLDER START WAY…

START is `fork`, `spawned` (as mp.spawn starts them, forked) or `spawn`. Each job's exit statuses go to FOLDER/WAY.json,
and what its ranks and their guardians say to FOLDER/WAY.said. With `guard`, ranks ask for a guardian.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import genlock
import torch
import torch.distributed as dist
import torch.multiprocessing
import unaware

c10d: Any = dist
spawner: Any = torch.multiprocessing
WORLD, BAD, AT = 3, 1, 3
DEADLINES = {"steady": 3.0, "collective": 5.0}


def rank_of(rank: int, folder: str, way: str, asks: bool) -> None:
    said = os.open(f"{folder}/{way}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 2)
    os.chdir(folder)
    if asks:
        genlock.guard(DEADLINES)
    for turn in range(2 if way == "twice" else 1):
        store = c10d.FileStore(f"{folder}/{way}.store{turn}", WORLD)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
        for step in range(6):
            if (rank, step) == (BAD, AT):
                if way == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if way == "raise":
                    raise ValueError("bad batch")
                if way == "leave":
                    break
                unaware.stall(way)
            dist.all_reduce(torch.ones(3))
        if way != "leave":
            dist.barrier()
        dist.destroy_process_group()
    if way == "leave":
        time.sleep(1000)
    if way == "left" and rank == BAD:
        os.kill(os.getpid(), signal.SIGKILL)


def job(folder: str, start: str, way: str, asks: bool) -> None:
    """Run one job, and write how each of its ranks has ended."""
    os.setsid()
    if start == "fork":
        context = multiprocessing.get_context("fork")
        ranks: list[Any] = [context.Process(target=rank_of, args=(rank, folder, way, asks)) for rank in range(WORLD)]
        for each in ranks:
            each.start()
    else:
        method = "spawn" if start == "spawn" else "fork"
        started = spawner.start_processes(rank_of, (folder, way, asks), WORLD, join=False, start_method=method)
        ranks = started.processes
    for each in ranks:
        each.join()
    Path(folder, f"{way}.json").write_text(json.dumps([each.exitcode for each in ranks]))


def main(folder: str, start: str, asks: bool, ways: list[str]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    jobs = []
    for way in ways:
        pid = os.fork()
        if pid == 0:
            job(folder, start, way, asks)
            os._exit(0)
        jobs.append(pid)
    for pid in jobs:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "guard" in sys.argv[3:], [way for way in sys.argv[3:] if way != "guard"])
