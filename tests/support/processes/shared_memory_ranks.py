"""Payloads between real gloo ranks, large ones by the memory that they have in common: `commons_ranks.py FOLDER`.

Each of JOBS is a group of its own, of ranks that are forked; FOLDER/JOB-RANK.json has what a rank found.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import forked
from genlock.errors import ContractViolation
from genlock.impl.rank import shared_memory
from genlock.impl.rank.operations import Exchange
from genlock.impl.rank.shared_memory import LARGE
from genlock.impl.rank.transport import TorchTransport
from genlock.impl.recording.c10d_intercept import Operation, watching
from genlock.model.protocols.tp_v1_1 import PAYLOAD

JOBS = {"one": 1, "two": 2, "three": 3, "apart": 3, "another file": 3, "size": 3, "hasty": 3}
"""Ranks of each. On rank2 `apart` cannot have the memory, and `another file` is given another; in `size` the root
sends twice the bytes, in `hasty` it writes again before all have taken what was written.
"""
SIZES = (LARGE, 7, 5_000_001, 1 << 20, LARGE - 1)
"""Bytes of the payloads that each job sends first."""


class Sizes:
    """Elements of each broadcast."""

    def __init__(self) -> None:
        self.all: list[int | None] = []

    def issue(self, operation: Operation) -> None:
        if operation.op == "broadcast":
            self.all.append(operation.numel)


class Issued:
    """The names of all collectives."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def issue(self, operation: Operation) -> None:
        self.all.append(operation.op)


class Rank:
    """One rank of a job, with all that it finds."""

    def __init__(self, number: int) -> None:
        self.number, world = number, dist.group.WORLD
        assert world is not None
        groups = {"control": dist.new_group(), "device": world}
        issued = Issued()
        with watching(issued):
            self.transport = TorchTransport.over(groups)
        self.found: dict[str, Any] = {"joined_by": issued.all}

    def sent(self, size: int, seed: int = 0) -> bool:
        """Whether this rank has what the root sent."""
        given = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        own = torch.zeros_like(given) if self.number else given
        got = self.transport.perform(PAYLOAD, Exchange("payload", own, lambda _: None))
        return bool((got == given).all())

    def taken(self, size: int, seed: int) -> bool:
        equal = self.sent(size, seed)
        dist.barrier()  # as acks do: the root hears that all have taken it
        return equal

    def named(self, do: Callable[[], object]) -> None:
        try:
            do()
        except ContractViolation as error:
            self.found["error"] = str(error)

    def hurry(self) -> None:
        """The root writes twice, and says so of the first."""
        memory = self.transport._memory
        assert memory is not None
        token = torch.empty(shared_memory.TOKEN, dtype=torch.uint8)
        if self.number == 0:
            token = memory.put(torch.zeros(1 << 20, dtype=torch.uint8))
            memory.put(torch.ones(1 << 20, dtype=torch.uint8))
        dist.broadcast(token, 0)
        if self.number:
            memory.take(token, torch.empty(1 << 20, dtype=torch.uint8), f"rank{self.number}, payload")


def live(folder: Path, job: str, number: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{job.replace(' ', '-')}.store"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=JOBS[job])
    if number == 2:
        spoil(job)
    rank, sizes = Rank(number), Sizes()
    with watching(sizes):
        rank.found["equal"] = [rank.taken(size, seed) for seed, size in enumerate(SIZES)]
    rank.found["sizes"] = sizes.all
    if job == "size":
        rank.named(lambda: rank.sent(1 << 20 if number else 1 << 21))
    if job == "hasty":
        rank.named(rank.hurry)
    dist.barrier()
    rank.transport.close()
    rank.found["left"] = left()
    (folder / f"{job}-{number}.json").write_text(json.dumps(rank.found))


def spoil(job: str) -> None:
    own = shared_memory._open
    if job == "apart":
        shared_memory._open = lambda pid, number, secret: None
    if job == "another file":
        shared_memory._open = lambda pid, number, secret: own(pid, number, secret + 1)


def left() -> bool:
    """Whether anything of the memory is open or mapped."""
    names = [os.readlink(entry) if entry.is_symlink() else "" for entry in Path("/proc/self/fd").iterdir()]
    return "memfd" in Path("/proc/self/maps").read_text() or any("memfd" in name for name in names)


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place = Path(sys.argv[1])
    for name, count in JOBS.items():
        if any(forked([partial(live, place, name, number) for number in range(count)])):
            sys.exit(f"ranks of `{name}` failed")
