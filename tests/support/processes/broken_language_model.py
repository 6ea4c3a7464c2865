"""The example's language model, broken in each of `WAYS`, on two ranks each.

    python tests/support/processes/broken_language_model.py FOLDER

`weight` changes a weight of rank1 before its third chunk; `past` has rank0 call its generator past the entry point.
Each rank is a process of its own, forked once torch is loaded, with the environment that torchrun would give it; the
traces of each way are in a folder by its name. Printed: for each way, whether all its ranks failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from genlock.impl.rank.parent_death import die_with_parent
from genlock.impl.rank.serve import Driver, RankModel, serve

_spec = importlib.util.spec_from_file_location(
    "language_model", Path(__file__).parents[3] / "examples" / "language_model.py"
)
assert _spec
assert _spec.loader
example: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
WAYS = ("weight", "past")
RANKS = 2
made: list[RankModel] = []
how = ""


def mine(group: Any, device: torch.device) -> RankModel:
    whole: RankModel = example.build(group, device)
    made.append(whole)

    def chunk(fields: Any) -> Generator[None, None, torch.Tensor]:
        if how == "weight" and group.rank() == 1 and fields["chunk_index"] == 3:
            next(iter(whole.shard.values())).view(-1)[0] += 1
        return (yield from whole.chunk(fields))

    return replace(whole, chunk=chunk)


def converse(driver: Driver) -> None:
    if how == "past":
        noise = torch.zeros(1, 1, example.BYTES)
        fields = {"init_cache": True, "current_start_frame": 0, "conditioning_embeds_updated": False, "latents": noise}
        next(made[0].chunk({**fields, "conditioning_embeds": torch.zeros(1, 1, example.WIDTH)}))
    example.converse(driver)


def child(parent: int, way: str, rank: int, port: int) -> None:
    """One rank, to its end; `serve` ends it where it fails."""
    global how
    die_with_parent(parent)
    how = way
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os._exit(serve(mine, converse, out=f"{sys.argv[1]}/{way}"))


def main() -> None:
    parent, ways = os.getpid(), {}
    for way in WAYS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                child(parent, way, rank, port)
            ways[pid] = way
    failed = [ways[pid] for pid, status in (os.wait() for _ in ways) if status]
    print(json.dumps({way: failed.count(way) == RANKS for way in WAYS}))


if __name__ == "__main__":
    main()
