"""A job of two ranks that stands still, or is slow: `stalls.py WAY`. The ranks write traces without torch, at once.

For `genlock record --stall`, which knows of a job what its traces say, who has them open, and what its ranks answer.
`torch` is a real one, of which a signal stops rank 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

RANKS = 2
STALL = 1.0
"""What `--stall` is given."""


def main() -> None:
    way, *number = sys.argv[1:]
    if not number:
        ranks = [subprocess.Popen([sys.executable, __file__, way, str(rank)]) for rank in range(RANKS)]
        sys.exit(max(rank.wait() for rank in ranks))
    (stopped if way == "torch" else written)(way, int(number[0]))


def written(way: str, rank: int) -> None:
    """Issue two barriers as the recorder would write them; rank 1 may not come to the second."""
    from genlock.impl.recording.command import RecordingSettings
    from genlock.impl.recording.standstill import answer
    from genlock.traces.format import FORMAT_VERSION, Clock, Group, RepeatedOperation, TraceHeader
    from genlock.traces.recorder import Recorder

    settings = RecordingSettings.inherited()
    assert settings is not None
    folder, now = Path(settings.out), Clock(time.time_ns(), time.monotonic_ns())
    writer = Recorder(folder, TraceHeader(FORMAT_VERSION, settings.run, rank, RANKS, "", "gloo", "", "", {}, now))
    answer(folder, rank)
    writer.group(Group("0", tuple(range(RANKS)), "gloo"))
    operations, there = [], writer.stack([(f"{__file__}:1", "step")])
    numbers = count(1)
    for op in ("barrier", "all_reduce"):
        about = RepeatedOperation(0, op, "0", site=there)
        operations.append(writer.operation(about, numbers, lambda error: None))
    step, other = operations
    step.end(step.begin(time.monotonic_ns()), time.monotonic_ns())
    if way == "slow":  # longer than the limit, but nobody waits
        time.sleep(2.5 * STALL)
    elif way == "sleep" and rank == 1:
        time.sleep(1000)
    begun = (other if way == "wedged" and rank == 1 else step).begin(time.monotonic_ns())
    if way in ("sleep", "wedged"):
        in_the_collective()
    step.end(begun, time.monotonic_ns())
    writer.end("stopped", 0)


def in_the_collective() -> None:
    while True:
        signal.pause()


def stopped(way: str, rank: int) -> None:
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    c10d: Any = dist
    store = c10d.FileStore(os.environ["STALLS_STORE"], RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    main()
