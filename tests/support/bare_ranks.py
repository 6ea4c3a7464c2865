"""Starts processes that stand for ranks, without torch, for tests of `genlock collect`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from repository import PROCESSES

PROGRAM = PROCESSES / "bare_rank.py"


class BareRanks:
    """Holds the processes that a test has started; all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        *words: str,
        rank: int | None = None,
        out: IO[bytes] | int | None = subprocess.DEVNULL,
        shell: bool = False,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start a process, which does what the words say, with RANK in its environment or not; or a shell that does."""
        ready = self.folder / f"ready{len(self.processes)}"
        given = {"RANK": str(rank), "WORLD_SIZE": "3"} if rank is not None else {}
        plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        command = [sys.executable, "-S", str(PROGRAM), str(ready), *words]
        process = subprocess.Popen(
            ["sh", "-c", '"$@"; true', "sh", *command] if shell else command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**plain, **given, **environment},
        )
        self.processes.append(process)
        until = time.monotonic() + 30
        while not ready.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None
        return process

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()  # ends it, and what a shell has started
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGCONT)
            process.wait(timeout=20)


@contextlib.contextmanager
def bare_ranks(folder: Path) -> Iterator[BareRanks]:
    """Yield a starter of processes, all of which end with the block."""
    ranks = BareRanks(folder)
    try:
        yield ranks
    finally:
        ranks.close()
