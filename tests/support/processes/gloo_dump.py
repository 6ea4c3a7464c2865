"""Real gloo jobs, at the same time, that leave torch's own dumps in FOLDER/WHAT: `gloo_dump.py FOLDER WORLD WHAT…`.

The ranks are forked from a process that has torch loaded. `healthy` goes through every kind of collective, on the group
of all and on one of two; `skip` leaves one out on rank 1, `strand` ends rank 1 before the last one. Whoever waits then
gives up, and dumps all the same.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

os.environ.update(TORCH_FR_BUFFER_SIZE="2000", TORCH_NCCL_TRACE_BUFFER_SIZE="2000")  # torch reads them once

import torch
import torch.distributed as dist
from forked import forked
from torch._C._distributed_c10d import _dump_fr_trace  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _set_pg_timeout

GIVES_UP = 5
"""Seconds for which a rank waits for a broken one."""


def job(folder: Path, rank: int, world: int, what: str) -> None:
    store = f"file://{folder}/{what}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    pair = dist.new_group([0, 1], backend="gloo")
    if what != "healthy":
        dist.barrier()  # from here on, nobody is late by starting late
        _set_pg_timeout(timedelta(seconds=GIVES_UP))
    with suppress(RuntimeError):
        if what == "healthy":
            everything(rank, world)
            if rank < 2:
                dist.all_reduce(torch.ones(3), group=pair)
        else:
            for step in range(4):
                if what == "strand" and rank == 1 and step == 3:
                    break
                if not (what == "skip" and rank == 1 and step == 1):
                    dist.all_reduce(torch.ones(8))
                dist.broadcast(torch.ones(4), src=0)
    (folder / what / f"trace_{rank}").write_bytes(_dump_fr_trace())


def everything(rank: int, world: int) -> None:
    """Each kind of collective that gloo has, as a program would call it."""
    one, many = torch.ones(4), [torch.ones(4) for _ in range(world)]
    dist.broadcast(one, src=1)
    dist.all_reduce(one)
    dist.reduce(one, dst=1)
    dist.all_gather(many, one)
    dist.all_gather_into_tensor(torch.ones(4 * world), one)
    dist.gather(one, many if rank == 1 else None, dst=1)
    dist.scatter(one, many if rank == 1 else None, src=1)
    dist.reduce_scatter_tensor(one, torch.ones(4 * world))
    dist.all_to_all_single(torch.ones(world), torch.ones(world))
    dist.all_gather_object([None] * world, {"rank": rank, "text": "x" * rank})
    dist.broadcast_object_list([rank], src=0)
    dist.barrier()


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    for what in sys.argv[3:]:
        (folder / what).mkdir()
    jobs = [partial(job, folder, rank, world, what) for what in sys.argv[3:] for rank in range(world)]
    sys.exit(any(forked(jobs)))
