"""Four gloo ranks that run the same 20 chunks in worlds of 1, 2, 3 and 4 ranks and save what they saw.

Run as `tp_worker.py FOLDER WORLD…`; `test_tensor_parallel` reads the folder. A world is its
number of ranks, and after a dash how it sums: `functional`, or compiled by the torch.compile backend named. Each rank
is a process of its own, forked once torch is loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from genlock.impl.chunk import digest
from genlock.impl.rank.parent_death import die_with_parent
from genlock.impl.recording.c10d_intercept import Operation, watching
from genlock.impl.video.config import GeneratorConfig, tiny
from genlock.impl.video.generator import Generator
from genlock.impl.video.tensor_parallel import Distributed, Solo, TensorParallel
from torch import Tensor

RANKS = 4
CONTEXT_FRAMES = tiny().cache_frames - tiny().chunk_frames
HEIGHT, WIDTH = 6, 8
SCENARIO: tuple[dict[str, Any], ...] = (
    {"cut": True, "prompt": 0},
    {"prompt": 0},
    {"prompt": 0},
    {"prompt": 0, "bias": -0.7},  # evicts
    {"prompt": 0, "recompute": True},
    {"prompt": 1},  # evicts, prompt changes
    {"prompt": 1, "bias": 0.4},
    {"prompt": 2, "cut": True},
    {"prompt": 2, "reset_kv": True},
    {"prompt": 2},
    {"prompt": 2, "recompute": True},
    {"prompt": 0},
    {"prompt": 0},  # evicts from here on
    {"prompt": 0, "recompute": True, "bias": -0.2},
    {"prompt": 1, "recompute": True},
    {"prompt": 1, "reset_kv": True},
    {"prompt": 1},
    {"prompt": 1, "cut": True},  # a cut without a new prompt
    {"prompt": 1},
    {"prompt": 3},
)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fields(index: int, state: dict[str, Any], outputs: list[Tensor]) -> dict[str, Any]:
    """The envelope of a chunk, in float32 (the wire's bfloat16 would round differently in each world)."""
    config, chunk = tiny(), SCENARIO[index]
    cut, recompute = chunk.get("cut", False), chunk.get("recompute", False)
    updated = cut or chunk["prompt"] != state["prompt"]
    state["prompt"] = chunk["prompt"]
    state["epoch"] += cut
    state["frame"] = 0 if cut else state["frame"] + config.chunk_frames
    context = min(CONTEXT_FRAMES, state["frame"])
    return {
        "cache_epoch": state["epoch"],
        "current_start_frame": state["frame"],
        "init_cache": cut,
        "manage_cache": True,
        "tp_reset_kv_cache": chunk.get("reset_kv", False),
        "tp_reset_crossattn_cache": updated,
        "conditioning_embeds_updated": updated,
        "kv_cache_attention_bias": chunk.get("bias", 0.0),
        "tp_do_kv_recompute": recompute,
        "denoising_step_list": torch.tensor([1000, 600]),
        "latents": seeded(index, 1, config.chunk_frames, config.latent_channels, HEIGHT, WIDTH),
        "conditioning_embeds": seeded(100 + chunk["prompt"], 1, 5, config.text_dim),
        "context_frames_override": torch.cat(outputs, 1)[:, -context:] if recompute else None,
    }


class Issued:
    """What reaches torch's c10d, counted and hashed as the fence does it: compiled code keeps no ledger."""

    def __init__(self) -> None:
        self.count, self.sequence = 0, digest.SEQUENCE_START

    def issue(self, operation: Operation) -> None:
        self.count += 1
        self.sequence = digest.chain(self.sequence, operation.op, operation.dtype, operation.numel)


def run(config: GeneratorConfig, comm: TensorParallel) -> dict[str, Any]:
    generator = Generator(config, comm)
    state: dict[str, Any] = {"prompt": None, "epoch": 0, "frame": 0}
    outputs: list[Tensor] = []
    chunks = []
    for index in range(len(SCENARIO)):
        issued = Issued()
        with watching(issued):
            chunk = generator.chunk(fields(index, state, outputs))
            for call in chunk.calls:
                call()
            outputs.append(chunk.result())
        chunks.append(
            {
                "latents": outputs[-1],
                "calls": len(chunk.calls),
                "ledger": generator.counted(),
                "issued": (issued.count, issued.sequence),
                "scalars": tuple(generator.cache.scalars),
                "resident": generator.cache.resident,
            }
        )
    fingerprints = {"shard": generator.shard_fingerprint(), "replica": generator.replica_fingerprint()}
    return {"chunks": chunks, "graphs": dict(GRAPHS), **fingerprints}


GRAPHS: dict[str, int] = {}
"""Of what was compiled: graphs, and all-reduces in them."""


def spied(backend: str) -> str:
    """The name of a torch.compile backend like `backend`, which counts the graphs that it is given."""
    from torch._dynamo.backends.registry import lookup_backend, register_backend

    GRAPHS.update(graphs=0, all_reduces=0)
    inner = lookup_backend(backend)

    def spy(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        GRAPHS["graphs"] += 1
        GRAPHS["all_reduces"] += sum("all_reduce" in str(node.target) for node in graph.graph.nodes)
        return inner(graph, inputs, **options)

    name = f"spied_{backend}"
    register_backend(spy, name=name)
    return name


def worlds(rank: int, wanted: list[str]) -> Iterator[tuple[str, GeneratorConfig, TensorParallel]]:
    """Each world that this rank is in; torch wants every rank to call `new_group` for every group."""
    for name in wanted:
        size, _, way = name.partition("-")
        members = list(range(int(size)))
        group = dist.new_group(members)
        if rank not in members:
            continue
        config = tiny()
        if way not in ("", "functional"):
            config = replace(config, compile=spied(way))  # type: ignore[arg-type]
        yield name, config, Distributed(group, functional=way == "functional") if len(members) > 1 else Solo()


def work(rank: int, folder: Path, wanted: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=300),
    )
    for world, config, comm in worlds(rank, wanted):
        torch.save(run(config, comm), folder / f"world{world}-rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def child(parent: int, rank: int, folder: Path, wanted: list[str]) -> None:
    """One rank, to its end."""
    die_with_parent(parent)
    try:
        work(rank, folder, wanted)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder: Path, wanted: list[str]) -> int:
    """All ranks; the others are ended with the first one that fails."""
    parent = os.getpid()
    for rank in range(RANKS):
        if os.fork() == 0:
            child(parent, rank, folder, wanted)
    for _ in range(RANKS):
        _, status = os.wait()
        if status:
            return 1  # and die_with_parent does the rest
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
