"""Forks the ranks of real runs from one process that has torch loaded, so that a run takes a second and not five.

Each line on stdin is a job, `{"config": PATH, "ranks": N, "facts": {rank: {key: value}}, "deaf": [rank], "limit":
seconds}`; the answer on stdout is a list with each rank's exit status. Every rank is a process of its own that
runs `genlock.impl.jobs.rank_main.main`, as under torchrun. This process plays the launcher: on SIGTERM it signals all
ranks but the deaf ones at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from genlock.impl.chunk import parity
from genlock.impl.jobs import rank_main

RANKS: list[int] = []
DEAF: list[int] = []
"""Ranks that are not signalled."""


def child(number: int, job: dict[str, Any], port: int) -> None:
    """One rank, to its end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(f"{job['config']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(job["ranks"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    odd = job["facts"].get(str(number), {})
    own = parity.own_facts
    parity.own_facts = lambda *given: {**own(*given), **odd}
    status = 1
    with contextlib.suppress(BaseException):
        status = rank_main.main(job["config"])
    os._exit(status)


def forward() -> None:
    """Signal every rank at once, as the launcher does."""
    for number, pid in enumerate(RANKS):
        if number not in DEAF:
            os.kill(pid, signal.SIGTERM)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: forward())
    for line in sys.stdin:
        job = json.loads(line)
        DEAF[:] = job["deaf"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for number in range(job["ranks"]):
            pid = os.fork()
            if pid == 0:
                child(number, job, port)
            RANKS.append(pid)
        until = time.monotonic() + job["limit"]
        statuses: dict[int, int] = {}
        while len(statuses) < len(RANKS):
            for pid in set(RANKS) - set(statuses):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        print(json.dumps([statuses[pid] for pid in RANKS]), flush=True)
        RANKS.clear()


if __name__ == "__main__":
    main()
