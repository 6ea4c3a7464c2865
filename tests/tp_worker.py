"""One of four gloo ranks: runs the same scenario in worlds of 1, 2, 3 and 4 ranks and saves what it saw.

Run as `python tests/tp_worker.py RANK FOLDER`, all four at once; `test_generator` reads the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from genlock.impl.generator import Distributed, Generator, Solo, TensorParallel, tiny
from torch import Tensor

RANKS = 4
CONFIG = tiny()
CONTEXT_FRAMES = CONFIG.cache_frames - CONFIG.chunk_frames
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
)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fields(index: int, state: dict[str, Any], outputs: list[Tensor]) -> dict[str, Any]:
    """The envelope of a chunk, in float32 (the wire's bfloat16 would round differently in each world)."""
    chunk = SCENARIO[index]
    cut, recompute = chunk.get("cut", False), chunk.get("recompute", False)
    updated = cut or chunk["prompt"] != state["prompt"]
    state["prompt"] = chunk["prompt"]
    state["epoch"] += cut
    state["frame"] = 0 if cut else state["frame"] + CONFIG.chunk_frames
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
        "latents": seeded(index, 1, CONFIG.chunk_frames, CONFIG.latent_channels, HEIGHT, WIDTH),
        "conditioning_embeds": seeded(100 + chunk["prompt"], 1, 5, CONFIG.text_dim),
        "context_frames_override": torch.cat(outputs, 1)[:, -CONTEXT_FRAMES:] if recompute else None,
    }


def run(comm: TensorParallel) -> dict[str, Any]:
    generator = Generator(CONFIG, comm)
    state: dict[str, Any] = {"prompt": None, "epoch": 0, "frame": 0}
    outputs: list[Tensor] = []
    chunks = []
    for index in range(len(SCENARIO)):
        chunk = generator.chunk(fields(index, state, outputs))
        per_call = []
        for call in chunk.calls:
            before = comm.observed
            call()
            per_call.append(comm.observed - before)
        outputs.append(chunk.result())
        chunks.append(
            {
                "latents": outputs[-1],
                "per_call": per_call,
                "sequence_hash": comm.sequence_hash,
                "scalars": tuple(generator.cache.scalars),
                "resident": generator.cache.resident,
            }
        )
    return {
        "chunks": chunks,
        "shard": generator.shard_fingerprint(),
        "replica": generator.replica_fingerprint(),
        "real_all_reduces": real_all_reduces(generator, state["frame"] + CONFIG.chunk_frames),
    }


def real_all_reduces(generator: Generator, start_frame: int) -> int:
    """How many all-reduces reach torch's c10d in one generator call, as its profiler counts them."""
    latents = seeded(0, 1, CONFIG.chunk_frames, CONFIG.latent_channels, HEIGHT, WIDTH)
    with torch.autograd.profiler.profile(use_kineto=False) as profile:  # kineto takes seconds to start
        generator(latents, 500, None, start_frame=start_frame)
    return sum(event.name == "c10d::allreduce_" for event in profile.function_events or ())


def worlds(rank: int) -> Iterator[tuple[str, TensorParallel]]:
    """Each world that this rank is in; torch wants every rank to call `new_group` for every group."""
    if rank == 0:
        yield "1", Solo()
    for world in range(2, RANKS + 1):
        group = dist.new_group(list(range(world)))
        if rank < world:
            yield str(world), Distributed(group)
            if world == 2:
                yield "2-functional", Distributed(group, functional=True)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=90),
    )
    for world, comm in worlds(rank):
        torch.save(run(comm), folder / f"world{world}-rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
