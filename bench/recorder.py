"""Times the recorder, with and without it in turn: all-reduces of 1 ms, the ways that frameworks go, their steps.

    python bench/recorder.py [--milliseconds 1] [--rounds 240] [--backend nccl] [--format json]

Prints rank0's median of either kind and their ratio: each round times a block of both kinds, in changing order,
and the ratio is the median of the rounds' ratios. A second plain block in each round shows, by its ratio to the
first, what the machine's noise makes of no difference at all. The size is calibrated first.

Then, of each way (small tensors: what an operation itself costs) the CPU of rank0's thread and of its whole process,
plain, and what the recorder adds: medians over rounds, of differences inside a round. Then steps of FSDP2 and DDP with
tiny models, CPU of the whole process; and the bytes of trace an operation. Beside it stands what torch's profiler adds
(CPU activities, shapes, no stacks), which is what torch has to see every way with. Exit status 1 above 5 %, 25 us of
the thread on any way, 5 % CPU of a step, or 150 bytes.

Two things that are none of the recorder's are kept out, for both kinds alike. A program is recorded from its start:
the first operations after a switch, which sweeps the caches, are not timed. And gloo's event loop polls while a message
waits for its receiver: where there are fewer cores than threads, it can keep the receiver from its core for a slice of
the scheduler, so that of operations of 1 ms every third takes 4. It is given what the others leave (SCHED_IDLE).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 1.05
MICROSECONDS, BYTES = 25, 150
WAY_SHARE, WAY_BLOCK = 8, 100
STEP_SHARE, STEP_BLOCK = 10, 10
"""Of the rounds, one in so many is enough for each way, and for each kind of step."""
BLOCK = 20
"""Operations that are timed in a row."""
WARM = 6
"""Operations before them."""
ORDERS = ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1), (0, 2, 1), (1, 2, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--milliseconds", type=float, default=1.0, help="how long an all-reduce should take")
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="nccl: both ranks on one GPU")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"folder": folder, "ms": given.milliseconds, "rounds": given.rounds, "backend": given.backend}
        config = json.dumps(settings)
        command = [sys.executable, __file__, "rank", config]
        ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE) for rank in range(2)]
        try:
            result = json.loads(ranks[0].communicate(timeout=900)[0].splitlines()[-1])
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if given.format == "json":
        print(json.dumps(result))
    else:
        print(
            f"all-reduce of {result['numel']} float32 on 2 {given.backend} ranks: {result['plain_us']:.0f} us, "
            f"recorded {result['recorded_us']:.0f} us, ratio {result['ratio']:.3f} (limit {LIMIT}, "
            f"plain to plain {result['control']:.3f}), {result['events']} events recorded"
        )
        for name, (plain, more, peer, plain_all, more_all, peer_all) in result["ways"].items():
            print(
                f"{name:24} thread {plain:6.1f} us + {more:5.1f} (limit {MICROSECONDS}), profiler + {peer:5.1f}   "
                f"process {plain_all:6.1f} us + {more_all:5.1f}, profiler + {peer_all:5.1f}"
            )
        for name, (plain, ratio, peer) in result["steps"].items():
            took = f"{plain / 1000:6.2f} ms CPU a step"
            print(f"{name:24} {took}, ratio {ratio:.3f} (limit {LIMIT}), profiler {peer:.3f}")
        print(f"{result['bytes']:.0f} bytes of trace an operation (limit {BYTES})")
    over = [way[1] > MICROSECONDS for way in result["ways"].values()]
    over += [step[1] > LIMIT for step in result["steps"].values()]
    return int(result["ratio"] > LIMIT or result["bytes"] > BYTES or any(over))


def rank(config: dict[str, Any], number: int) -> None:
    """One rank; rank0 prints what it measured."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "KINETO_LOG_LEVEL": "5"}
    import torch
    import torch.distributed as dist
    from genlock.impl.rank.devices import sharing
    from genlock.impl.recording.c10d_intercept import watching
    from genlock.impl.recording.command import RecordingSettings
    from genlock.impl.recording.session import Session

    torch.set_num_threads(1)
    c10d: Any = dist
    store = c10d.FileStore(f"{config['folder']}/store", 2)
    nccl = config["backend"] == "nccl"
    if nccl:
        os.environ.update(sharing(number, 2, 1))
        torch.set_default_device("cuda:0")
    dist.init_process_group(config["backend"], store=store, rank=number, world_size=2)
    session = Session(RecordingSettings("bench", config["folder"]))
    dist.barrier()  # gloo has its threads
    for thread in Path("/proc/self/task").iterdir():
        if (thread / "comm").read_text() == "gloo_tcp_loop\n":
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))

    def block(tensor: torch.Tensor, context: Callable[[], Any]) -> list[float]:
        times = []
        with context():
            for _ in range(WARM):
                dist.all_reduce(tensor)
            for _ in range(BLOCK):
                begin = time.perf_counter()
                dist.all_reduce(tensor)
                if nccl:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
        return times

    def of(numel: int) -> float:
        took = median(median(block(torch.zeros(numel), nullcontext)) for _ in range(4))
        rank0s = torch.tensor([took], dtype=torch.float64)
        dist.broadcast(rank0s, 0)
        return float(rank0s)

    numel = calibrated(of, config["ms"] / 1000)
    tensor = torch.zeros(numel)
    kinds: tuple[Callable[[], Any], ...] = (nullcontext, lambda: watching(session), nullcontext)
    times: tuple[list[float], ...] = ([], [], [])
    for turn in range(config["rounds"]):
        for kind in ORDERS[turn % len(ORDERS)]:
            times[kind].append(median(block(tensor, kinds[kind])))
    both = partial(two_watchers, session)
    small = (
        {}
        if nccl
        else {
            "ways": ways(lambda: watching(session), both, config["rounds"]),
            "steps": steps(lambda: watching(session), config["rounds"]),
        }
    )
    session.end()
    if number == 0:
        result: dict[str, Any] = {"numel": numel, "ways": {}, "steps": {}} | small
        for name, kind in (("ratio", 1), ("control", 2)):
            result[name] = median(t / plain for t, plain in zip(times[kind], times[0], strict=True))
        result |= {"plain_us": median(times[0]) * 1e6, "recorded_us": median(times[1]) * 1e6}
        print(json.dumps(result | size_of(Path(config["folder"]) / "rank0.trace.jsonl")))
    dist.barrier()


def size_of(trace: Path) -> dict[str, float]:
    """Return how many events a trace has, and its bytes an operation."""
    from genlock.traces.format import read

    edges = [event.edge for event in read(trace).events]
    return {"events": len(edges), "bytes": trace.stat().st_size / edges.count("enter")}


@contextmanager
def two_watchers(session: Any) -> Iterator[None]:
    """Have another watcher beside the recorder, as a guard is."""
    from genlock.impl.recording.c10d_intercept import watching

    class Guard:
        def issue(self, operation: Any) -> Callable[[Any], None]:
            return lambda outcome: None

    with watching(session), watching(Guard()):
        yield


def profiled() -> Any:
    """Have torch's profiler see what is issued."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU], record_shapes=True)


def ways(recorded: Callable[[], Any], two: Callable[[], Any], rounds: int) -> dict[str, tuple[float, ...]]:
    """Way to the CPU in us an operation, of the thread and of the process: plain, what the recorder and a peer add."""
    import torch
    import torch.distributed as dist
    import torch.distributed._functional_collectives as collectives

    functional: Any = collectives
    x, whole = torch.ones(16), torch.ones(16 * dist.get_world_size())
    peer, world = 1 - dist.get_rank(), dist.group.WORLD
    group: Any = world

    def both_ways() -> None:
        for work in (dist.isend(x, peer), dist.irecv(whole[:16], peer)):
            if work is not None:
                work.wait()

    every: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(x),
        "all_reduce, async": lambda: dist.all_reduce(x, async_op=True).wait(),
        "broadcast": lambda: dist.broadcast(x, 0),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, x),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(x, whole),
        "all_to_all_single": lambda: dist.all_to_all_single(whole, whole.clone()),
        "barrier": lambda: dist.barrier(),
        "send and recv": lambda: dist.send(x, 1) if dist.get_rank() == 0 else dist.recv(x, 0),
        "isend and irecv, both": both_ways,
        "of the ProcessGroup": lambda: group.allreduce([x]).wait(),
        "functional all_reduce": lambda: functional.wait_tensor(functional.all_reduce(x, "sum", group)),
        "all_reduce, two watchers": lambda: dist.all_reduce(x),
    }
    return {
        name: _way(operation, two if "two" in name else recorded, 2 if "both" in name else 1, rounds)
        for name, operation in every.items()
    }


def _way(operation: Callable[[], Any], recorded: Callable[[], Any], operations: int, rounds: int) -> tuple[float, ...]:
    kinds = (nullcontext, recorded, profiled)
    taken: tuple[list[tuple[float, float]], ...] = ([], [], [])
    for turn in range(max(1, rounds // WAY_SHARE)):
        for kind in ORDERS[turn % len(ORDERS)]:
            with kinds[kind]():
                for _ in range(WARM):
                    operation()
                before = time.thread_time(), time.process_time()
                for _ in range(WAY_BLOCK):
                    operation()
                after = time.thread_time(), time.process_time()
            per = WAY_BLOCK * operations / 1e6
            taken[kind].append(((after[0] - before[0]) / per, (after[1] - before[1]) / per))
    found: list[float] = []
    for clock in range(2):
        plain = [each[clock] for each in taken[0]]
        found.append(median(plain))
        for kind in (1, 2):
            found.append(median(each[clock] - p for each, p in zip(taken[kind], plain, strict=True)))
    return tuple(found)


def steps(recorded: Callable[[], Any], rounds: int) -> dict[str, tuple[float, ...]]:
    """Kind of training to the CPU of the process in us a step, plain, and the ratios with the recorder and a peer."""
    import torch
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(4)])

    sharded = model()
    for block in sharded:
        fully_shard(block)
    fully_shard(sharded)
    return {
        "FSDP2": _step(sharded, recorded, rounds),
        "DDP": _step(DistributedDataParallel(model()), recorded, rounds),
    }


def _step(model: Any, recorded: Callable[[], Any], rounds: int) -> tuple[float, ...]:
    import torch

    optimiser = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> None:
        model(torch.randn(8, 64)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    kinds = (nullcontext, recorded, profiled)
    taken: tuple[list[float], ...] = ([], [], [])
    for turn in range(max(1, rounds // STEP_SHARE)):
        for kind in ORDERS[turn % len(ORDERS)]:
            with kinds[kind]():
                for _ in range(3):
                    step()
                before = time.process_time()
                for _ in range(STEP_BLOCK):
                    step()
                taken[kind].append((time.process_time() - before) * 1e6 / STEP_BLOCK)
    ratios = [median(r / p for r, p in zip(taken[kind], taken[0], strict=True)) for kind in (1, 2)]
    return median(taken[0]), *ratios


def calibrated(of: Callable[[int], float], seconds: float) -> int:
    """Elements of an all-reduce that takes about so long: the median of what is found again and again."""
    tried = [1 << 16]
    for _ in range(14):
        tried.append(max(1, round(tried[-1] * min(2.0, max(0.5, seconds / of(tried[-1]))))))
    return round(median(tried[-9:]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
