"""Runs one of three small programs that know nothing of Genlock, whole or with one of its ranks broken in a known way.

    genlock record --out traces -- torchrun --nproc-per-node 4 examples/hang.py pipeline --way skip --rank 1
    genlock replay traces

Data-parallel training, a pipeline of sends and receives, and sharded training by functional collectives. Without
`--way` they are healthy. Left out: anything that would make them useful.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel

STEPS = 4
BREAKS_AT = 2
"""The step, from 0, in which the rank does what it should not."""


class Move(NamedTuple):
    """Holds an operation of the program, and what a broken rank does in its place."""

    right: Callable[[], torch.Tensor]
    other: Callable[[], torch.Tensor]
    """Another operation."""
    larger: Callable[[], torch.Tensor]
    """The same of another size."""
    nothing: torch.Tensor


Way = Callable[[Move], torch.Tensor]


def skip(move: Move) -> torch.Tensor:
    """Leave the operation out."""
    return move.nothing


def extra(move: Move) -> torch.Tensor:
    """Do the operation once more."""
    move.right()
    return move.right()


def other(move: Move) -> torch.Tensor:
    """Do another operation."""
    return move.other()


def size(move: Move) -> torch.Tensor:
    """Put in more elements than the other ranks."""
    return move.larger()


def stall(move: Move) -> torch.Tensor:
    """Sleep before the operation, for longer than anyone waits."""
    time.sleep(3600)
    return move.right()


def die(move: Move) -> torch.Tensor:
    """Die by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    return move.right()


def fail(move: Move) -> torch.Tensor:
    """Raise an exception."""
    raise ValueError("no such layer")


WAYS: Mapping[str, Way] = {way.__name__: way for way in (skip, extra, other, size, stall, die, fail)}
Do = Callable[[int, Move], torch.Tensor]
"""Makes the move of a step, rightly or not."""


def train(rank: int, world: int, do: Do) -> None:
    """Train data-parallel: gradients are reduced behind the scenes, the loss for the log."""
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).mean()
        loss.backward()
        optimizer.step()
        shown = loss.detach()
        do(step, Move(partial(reduced, shown), partial(sent, shown, rank), partial(reduced, torch.ones(2)), shown))


def pipeline(rank: int, world: int, do: Do) -> None:
    """Send activations on and gradients back; the broken move is the rank's first send in a step."""
    before, after, last = rank - 1, rank + 1, rank == world - 1
    for step in range(STEPS):
        x = torch.ones(16)
        if rank:
            dist.recv(x, before)
        if not last:
            do(step, towards(after, x, rank))
            dist.recv(x, after)
        if rank and last:
            do(step, towards(before, x, rank))
        elif rank:
            dist.send(x, before)


def towards(peer: int, x: torch.Tensor, rank: int) -> Move:
    return Move(partial(moved, x, peer), partial(sent, x, rank), partial(moved, torch.ones(32), peer), x)


def sharded(rank: int, world: int, do: Do) -> None:
    """Keep a shard on each rank, gathered for a step; its gradient is scattered after it."""
    shard, ranks = torch.ones(4), list(range(world))

    def gathered(tensor: torch.Tensor) -> torch.Tensor:
        return functional.all_gather_tensor(tensor, 0, ranks)[: 4 * world] * 2

    def summed(tensor: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = functional.all_reduce(tensor, "sum", ranks)
        return total.repeat(world)

    for step in range(STEPS):
        larger = partial(gathered, shard.repeat(2))
        move = Move(partial(gathered, shard), partial(summed, shard), larger, shard.repeat(world))
        shard = functional.reduce_scatter_tensor(do(step, move), "sum", 0, ranks) / (2 * world)


def reduced(tensor: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(tensor)
    return tensor


def moved(tensor: torch.Tensor, peer: int) -> torch.Tensor:
    dist.send(tensor, peer)
    return tensor


def sent(tensor: torch.Tensor, root: int) -> torch.Tensor:
    dist.broadcast(tensor, root)
    return tensor


PROGRAMS: Mapping[str, Callable[[int, int, Do], None]] = {"train": train, "pipeline": pipeline, "sharded": sharded}


def run(program: str, way: str | None, broken: int, patience: float, **init: object) -> None:
    """Run one rank of a program. A rank that waits for a broken one gives up after `patience` seconds."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=patience), **init)  # type: ignore[arg-type]
    rank = dist.get_rank()

    def do(step: int, move: Move) -> torch.Tensor:
        wrong = way is not None and (rank, step) == (broken, BREAKS_AT)
        return WAYS[way](move) if way is not None and wrong else move.right()

    PROGRAMS[program](rank, dist.get_world_size(), do)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--rank", type=int, default=1, help="which rank is broken")
    parser.add_argument("--patience", type=float, default=20, help="seconds")
    given = parser.parse_args()
    run(given.program, given.way, given.rank, given.patience)


if __name__ == "__main__":
    main()
