"""Times getting a chunk's inputs to every rank, and an ack back: Genlock's envelope beside other designs.

    python bench/envelope.py [--ranks 2 4] [--rounds 60] [--format json]

5.39 MB a chunk (latents 1x3x16x60x104 and context like them, conditioning 1x512x4096, all bf16, and 4 steps), gloo
on loopback. The designs take turns in every round, so that all of them see the same machine; what is printed is
rank0's median time and the median of the rounds' ratios to the common pattern: pickled metadata, then one broadcast
per tensor, each waited for. The big serving engines have them all under way at once, a line of its own: that saves
waiting, where cores are idle. Genlock's lines are its real coroutines, tables, preflight and all digests included, of
which the others have none; only the generator does nothing. Its payload goes by memory that all ranks of a host have in
common (impl/rank/shared_memory.py); between hosts it would go as the others' do. Exit status 1 where a ratio is above
its bar at 4 ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

COMMON = "pickled metadata, a broadcast per tensor"
DESIGNS = (
    "broadcast_object_list of everything",
    COMMON,
    "the same, all broadcasts at once",
    "genlock, all inputs every chunk",
    "genlock, conditioning by epoch",
    "header, payload in shared memory",
)
BARS = {"genlock, all inputs every chunk": 0.85, "genlock, conditioning by epoch": 0.45}
"""Ratios to the common pattern that must be met at 4 ranks."""
STEPS = 4
ALIKE = {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    # memory that one design frees is there for the next: else each would pay for page faults by what came before it
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
}
"""The environment of every rank."""


def main() -> int:
    """Measure each world size in a run of its own; exit status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    results = {world: measure(world, given.rounds) for world in given.ranks}
    missed = [name for name, bar in BARS.items() if 4 in results and results[4][name]["ratio"] > bar]
    if given.format == "json":
        print(json.dumps({str(world): found for world, found in results.items()}))
    else:
        print(table(results))
        print(f"load of the machine before: {load:.1f} on {os.cpu_count()} cores")
        for name in missed:
            print(f"above its bar: {name}, {results[4][name]['ratio']:.2f} > {BARS[name]}")
    return int(bool(missed))


def table(results: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """A line a design: milliseconds and ratio for each world size."""
    lines = [f"{'ms a chunk, incl. ack (ratio)':40}" + "".join(f"{world} ranks".rjust(18) for world in results)]
    for name in DESIGNS:
        cells = (f"{found[name]['ms']:.2f} ({found[name]['ratio']:.2f})".rjust(18) for found in results.values())
        lines.append(f"{name:40}" + "".join(cells))
    bars = ", ".join(f"{name.removeprefix('genlock, ')} <= {bar}" for name, bar in BARS.items())
    return "\n".join([*lines, f"bars at 4 ranks: {bars}"])


def measure(world: int, rounds: int) -> dict[str, dict[str, float]]:
    """Start `world` ranks, and take rank0's times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "rank", folder, str(world), str(rounds)]
        environment = {**os.environ, **ALIKE}
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, env=environment) for rank in range(world)
        ]
        try:
            found: dict[str, list[float]] = json.loads(ranks[0].communicate(timeout=600)[0])
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    ratios = {name: median(a / b for a, b in zip(found[name], found[COMMON], strict=True)) for name in DESIGNS}
    return {name: {"ms": 1000 * median(found[name]), "ratio": ratios[name]} for name in DESIGNS}


# ── one rank ────────────────────────────────────────────────────────────────────────────────────────


def rank(folder: str, world: int, rounds: int, number: int) -> None:
    """One rank; rank0 prints the seconds of each design in each round."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=world)
    designs = make(Ends(number, world, dist.new_group(backend="gloo"), folder))
    times: dict[str, list[float]] = {name: [] for name in DESIGNS}
    for turn in range(-5, rounds):
        for name in DESIGNS:
            dist.barrier()
            begin = time.perf_counter()
            designs[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - begin)
    dist.barrier()
    if number == 0:
        print(json.dumps(times), flush=True)


class Ends(NamedTuple):
    """Holds a rank's place: its number, the world, the control group, a folder that all ranks share."""

    rank: int
    world: int
    control: Any
    folder: str


@cache
def tensors() -> dict[str, Any]:
    """The inputs: the same memory for every design, so that none finds it colder than another."""
    import torch

    shape = (1, 3, 16, 60, 104)
    return {
        "denoising_step_list": torch.arange(STEPS),
        "latents": torch.ones(shape, dtype=torch.bfloat16),
        "context_frames_override": torch.ones(shape, dtype=torch.bfloat16),
        "conditioning_embeds": torch.ones(1, 512, 4096, dtype=torch.bfloat16),
    }


def chunk_fields(epoch: int | None = None, send: bool = True) -> dict[str, Any]:
    """A chunk of 5.39 MB, as an application hands it to rank0; `epoch` in optimize mode."""
    return {
        "tp_plan": "v1_generator_only",
        "tp_envelope_version": 1,
        "height": 480,
        "width": 832,
        "current_start_frame": 0,
        "init_cache": False,
        "manage_cache": True,
        "tp_reset_kv_cache": False,
        "tp_reset_crossattn_cache": False,
        "conditioning_embeds_updated": False,
        "base_seed": 0,
        "kv_cache_attention_bias": 0.0,
        "tp_do_kv_recompute": True,
        "tp_num_denoise_steps": STEPS,
        "tp_expected_generator_calls": STEPS + 1,
        **tensors(),
        **({} if send else {"conditioning_embeds": None}),
        **({} if epoch is None else {"conditioning_epoch": epoch}),
    }


def make(ends: Ends) -> dict[str, Callable[[], object]]:
    """One chunk of each design, as a function that every rank calls."""
    made = (
        objects(ends),
        common(ends),
        common(ends, at_once=True),
        genlock(ends, epochs=False),
        genlock(ends, epochs=True),
        shared(ends),
    )
    return dict(zip(DESIGNS, made, strict=True))


def acked(ends: Ends) -> None:
    """The ack of the designs that are not Genlock's: the same size, unread."""
    import torch
    import torch.distributed as dist

    mine = torch.zeros(13, dtype=torch.int64)
    everyone = [torch.empty_like(mine) for _ in range(ends.world)] if ends.rank == 0 else None
    dist.gather(mine, everyone, 0, group=ends.control)


def objects(ends: Ends) -> Callable[[], object]:
    """Everything pickled, tensors too."""
    import torch.distributed as dist

    fields = chunk_fields() if ends.rank == 0 else None

    def run() -> None:
        dist.broadcast_object_list([fields], 0, group=ends.control)
        acked(ends)

    return run


def common(ends: Ends, *, at_once: bool = False) -> Callable[[], object]:
    """Metadata pickled, with dtype and shape for each tensor; then the tensors, one after the other or `at_once`."""
    import torch
    import torch.distributed as dist

    fields = chunk_fields() if ends.rank == 0 else {}

    def run() -> None:
        told: list[Any] = [None]
        if ends.rank == 0:
            told = [
                [(k, (v.dtype, v.shape) if isinstance(v, torch.Tensor) else v) for k, v in fields.items()],
            ]
        dist.broadcast_object_list(told, 0, group=ends.control)
        found = dict(fields)
        works = []
        for key, value in told[0]:
            if isinstance(value, tuple) and isinstance(value[0], torch.dtype):
                if ends.rank:
                    found[key] = torch.empty(value[1], dtype=value[0])
                works.append(dist.broadcast(found[key], 0, async_op=at_once))
        for work in filter(None, works):
            work.wait()
        acked(ends)

    return run


def shared(ends: Ends) -> Callable[[], object]:
    """A header, and the payload in shared memory of this host: copied in by rank0, read in place by the others."""
    import torch
    import torch.distributed as dist

    sent = list(tensors().values())
    size, path = sum(t.numel() * t.itemsize for t in sent), Path(ends.folder) / "shm"
    if ends.rank == 0:
        memory = SharedMemory(create=True, size=size)
        path.write_text(memory.name)
    dist.barrier()
    if ends.rank:
        memory = SharedMemory(path.read_text())
        resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
    payload = torch.frombuffer(memory.buf, dtype=torch.uint8)[:size]
    header = torch.zeros(526, dtype=torch.int64)

    def run() -> object:
        from genlock.impl.chunk import digest

        if ends.rank == 0:
            at = 0
            for tensor in sent:
                raw = tensor.view(-1).view(torch.uint8)
                payload[at : at + len(raw)].copy_(raw)
                at += len(raw)
        dist.broadcast(header, 0, group=ends.control)
        digest.of_tensor(payload)
        acked(ends)
        return memory

    if ends.rank == 0:
        import atexit

        atexit.register(memory.unlink)
    return run


def genlock(ends: Ends, *, epochs: bool) -> Callable[[], object]:
    """Genlock's own rank0 and worker. With `epochs` the conditioning goes with the first chunk alone."""
    import torch.distributed as dist
    from genlock.impl.chunk import parity
    from genlock.impl.chunk.schema import Mode
    from genlock.impl.rank.conductor import Conductor
    from genlock.impl.rank.monitor import Monitor
    from genlock.impl.rank.roles import Rank0, Settings, Worker
    from genlock.impl.rank.transport import TorchTransport
    from genlock.model.protocols.tp_v1_1 import TP_V1_1

    monitor = Monitor(TP_V1_1.role(ends.rank), ends.rank)
    mode = Mode.OPTIMIZE if epochs else Mode.BRING_UP
    settings = Settings(parity.own_facts(TP_V1_1, ends.world, {}), mode)
    world: Any = dist.group.WORLD
    conductor, transport = Conductor(monitor), TorchTransport.over({"control": ends.control, "device": world})
    if ends.rank:
        pending = conductor.start(Worker(monitor, settings, Nothing()).serve())
        assert pending is not None
        waiting = [conductor.advance(transport.perform(*pending))]

        def serve() -> None:
            """As far as the next chunk's header."""
            while waiting[0] is not None:
                waiting[0] = conductor.advance(transport.perform(*waiting[0]))
                if monitor.state == "AWAIT_HEADER":
                    return

        return serve
    rank0 = Rank0(monitor, settings, Nothing())
    transport.run(conductor, rank0.startup())
    first, later = (chunk_fields(1 if epochs else None, send) for send in (True, not epochs))
    chunks = count()
    return lambda: transport.run(conductor, rank0.chunk(later if next(chunks) else first))


class Nothing:
    """A generator that makes no collectives; its output is as large as the latents."""

    def __init__(self) -> None:
        self.output = chunk_fields()["latents"]
        self.calls: list[Callable[[], None]] = [lambda: None] * (STEPS + 1)

    def chunk(self, fields: Mapping[str, Any]) -> Nothing:
        return self

    def result(self) -> Any:
        return self.output

    def counted(self) -> tuple[int, int]:
        return 0, 0

    def scalars(self) -> Any:
        return Indices(0, 0, 0)


class Indices(NamedTuple):
    """The indices of a cache that is none."""

    start_frame: int
    global_end_index: int
    local_end_index: int


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        sys.exit(main())
