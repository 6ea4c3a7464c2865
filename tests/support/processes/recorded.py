"""Programs to be recorded, which know nothing of it: each runs on two gloo ranks, healthy or with rank1 broken.

`genlock record -- python …/recorded.py FOLDER` runs all of them, in forked ranks: the parent has imported
torch, and is no rank. Traces of the Nth lie in `restartN`, as after an elastic restart.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # which each rank would import for itself
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
BREAKS_AT = 1
"""The step, from 0, in which rank1 does what it should not."""


def train(rank: int) -> None:
    """Data-parallel training; a subgroup averages the loss; a forked child of each rank, as a data loader has."""
    group = dist.new_group([1, 0])
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).mean()
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss.detach(), group=group)


def pipeline(rank: int) -> None:
    """Activations go on, gradients come back."""
    for step in range(STEPS):
        if rank == 0:
            work = dist.isend(torch.ones(16), 1, tag=step)
            assert work is not None
            work.wait()
            dist.recv(torch.empty(16), 1)
        else:
            dist.recv(torch.empty(16), 0, tag=step)
            dist.send(torch.ones(16), 0)


def sharded(rank: int) -> None:
    """Functional collectives, as in fully sharded training."""
    shard, world = torch.ones(4), list(range(dist.get_world_size()))
    for _ in range(STEPS):
        full = functional.all_gather_tensor(shard, 0, world)
        shard = functional.reduce_scatter_tensor(full * 2, "sum", 0, world) / 4


def reduce(rank: int, broken: Callable[[], None] | None = None) -> None:
    """A loop of all-reduces; in one step rank1 does something else."""
    for step in range(STEPS):
        if broken is not None and (rank, step) == (1, BREAKS_AT):
            broken()
        else:
            dist.all_reduce(torch.ones(4))


def left_out() -> None:
    """Rank1 leaves one out."""


def another_operation() -> None:
    """Rank1 issues a broadcast instead."""
    dist.broadcast(torch.ones(4), 1)


def another_size() -> None:
    """Rank1 has twice the elements."""
    dist.all_reduce(torch.ones(8))


def raises() -> None:
    """Rank1 raises."""
    raise ValueError("no such layer")


def killed() -> None:
    """Rank1 is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def stalls() -> None:
    """Rank1 never comes back."""
    time.sleep(60)


HEALTHY: Mapping[str, Callable[[int], None]] = {"train": train, "pipeline": pipeline, "sharded": sharded}
PROGRAMS: Mapping[str, Callable[[int], None]] = {
    **HEALTHY,
    **{
        broken.__name__: lambda rank, broken=broken: reduce(rank, broken)  # type: ignore[misc]
        for broken in (left_out, another_operation, another_size, raises, killed, stalls)
    },
}
PATIENCE = 2.0
"""Seconds after which a rank that waits for a broken one gives up. What is left later is killed."""


def live(name: str, rank: int, store: str) -> None:
    """The process of one rank."""
    c10d: Any = dist
    try:
        dist.init_process_group(
            "gloo",
            store=c10d.FileStore(store, 2),
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=60 if name in HEALTHY else PATIENCE),
        )
        PROGRAMS[name](rank)
        dist.destroy_process_group()
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(1)


def start(name: str, number: int, folder: str) -> list[int]:
    """Fork the two ranks of a program; returns their process ids."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    ranks = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            live(name, rank, f"{folder}/store{number}")
            sys.exit()
        ranks.append(pid)
    return ranks


def end(ranks: list[int], until: float) -> None:
    """Wait for ranks until that time, and kill those that are left."""
    while ranks and time.monotonic() < until:
        ranks = [pid for pid in ranks if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        time.sleep(0.02)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main(folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    broken = []
    for number, name in enumerate(PROGRAMS):
        if name in HEALTHY:
            end(start(name, number, folder), time.monotonic() + 60)
        else:
            broken += start(name, number, folder)
    end(broken, time.monotonic() + 3 * PATIENCE)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception:
        traceback.print_exc()
        os._exit(1)
