"""Ranks that no torchrun starts: mp.spawn, multiprocessing's fork, a pool, Ray actors."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import way

WORLD = 3


def work(rank: int, store: str) -> None:
    join: Any = dist
    dist.init_process_group("gloo", store=join.FileStore(store, WORLD), rank=rank, world_size=WORLD)
    for step in range(way.STEPS):
        way.end(rank, step)
        if way.strikes(rank, step, "uneven"):
            break
        if way.strikes(rank, step, "skip"):
            continue
        if way.strikes(rank, step, "raise"):
            raise ValueError("bad batch")  # LINE raise
        if way.strikes(rank, step, "extra"):
            dist.barrier()  # LINE extra
        if way.strikes(rank, step, "other"):
            dist.broadcast(torch.ones(3), way.BAD)  # LINE other
            continue
        dist.all_reduce(torch.ones(3))  # LINE step
    dist.barrier()  # LINE step
    dist.destroy_process_group()


def main() -> None:
    store = tempfile.mkdtemp() + "/store"
    if way.KIND == "spawn":
        mp.spawn(work, args=(store,), nprocs=WORLD)
    elif way.KIND in ("fork", "forkserver"):
        context = mp.get_context(way.KIND)
        ranks = [context.Process(target=work, args=(rank, store)) for rank in range(WORLD)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        sys.exit(max(abs(rank.exitcode or 0) for rank in ranks))
    else:
        import ray

        ray.init(num_cpus=WORLD, include_dashboard=False, _temp_dir=tempfile.mkdtemp(dir="/tmp", prefix="ray"))
        there = ray.remote(num_cpus=1)(work)
        ray.get([there.remote(rank, store) for rank in range(WORLD)], timeout=60)
        ray.shutdown()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    main()
