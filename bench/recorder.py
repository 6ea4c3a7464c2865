"""Times the recorder: all-reduces of about 1 ms between two ranks, with and without it, in turn.

    python bench/recorder.py [--milliseconds 1] [--rounds 240] [--backend nccl] [--format json]

Prints rank0's median of either kind and their ratio: each round times a block of both kinds, in changing order,
and the ratio is the median of the rounds' ratios. A second plain block in each round shows, by its ratio to the
first, what the machine's noise makes of no difference at all. The size is calibrated first. Exit status 1 above 5 %.

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
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 1.05
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
            result = json.loads(ranks[0].communicate(timeout=300)[0])
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
    return int(result["ratio"] > LIMIT)


def rank(config: dict[str, Any], number: int) -> None:
    """One rank; rank0 prints what it measured."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist
    from genlock.impl.rank.devices import sharing
    from genlock.impl.recording.c10d_intercept import watching
    from genlock.impl.recording.command import RecordingSettings
    from genlock.impl.recording.session import Session
    from genlock.traces.format import read

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
    session.end()
    if number == 0:
        result: dict[str, float] = {"numel": numel}
        for name, kind in (("ratio", 1), ("control", 2)):
            result[name] = median(t / plain for t, plain in zip(times[kind], times[0], strict=True))
        result |= {"plain_us": median(times[0]) * 1e6, "recorded_us": median(times[1]) * 1e6}
        result["events"] = sum(1 for _ in read(Path(config["folder"]) / "rank0.trace.jsonl").events)
        print(json.dumps(result))
    dist.barrier()


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
