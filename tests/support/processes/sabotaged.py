"""`sabotaged.py FOLDER` runs the programs of examples/hang.py on three gloo ranks, healthy and broken in each way.

All at once, in forked ranks: the parent has imported torch, and is no rank. Each leaves its traces in a folder of its
own, because to the recorder it is another elastic restart.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo  # which each rank would import for itself
import torch.distributed as dist
from genlock.examples.hang import PROGRAMS, WAYS, run

RANKS = 3
BROKEN = 1
RUNS = [(program, way) for program in PROGRAMS for way in (None, *WAYS)]
PATIENCE = 10.0
"""Seconds after which a rank that waits gives up; those that have not ended long after that are killed."""


def start(number: int, folder: str) -> Iterator[int]:
    """Fork the ranks of a run; yields their process ids."""
    program, way = RUNS[number]
    c10d: Any = dist
    for rank in range(RANKS):
        pid = os.fork()
        if pid:
            yield pid
            continue
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        try:
            store = c10d.FileStore(f"{folder}/store{number}", RANKS)
            run(program, way, BROKEN, PATIENCE, store=store, rank=rank, world_size=RANKS)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(1)
        sys.exit()


def main(folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    left = [pid for number in range(len(RUNS)) for pid in start(number, folder)]
    until = time.monotonic() + 4 * PATIENCE
    stalled = sum(way == "stall" for _, way in RUNS)
    while len(left) > stalled and time.monotonic() < until:
        left = [pid for pid in left if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
