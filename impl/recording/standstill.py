"""Finds out that a recorded job stands still, has its ranks say where, and ends it.

A trace that does not grow is no standstill: ranks may compute, or talk past torch.distributed. So whoever judges traces
is asked, once a job's have not grown for as long as was given, and says if a rank is left waiting in them.
Left out: judging (`conformance`), and how long to wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ...traces import journal
from ...traces.format import SUFFIX, name_of
from .unseen import descendants

ASK = getattr(signal, "SIGRTMAX", signal.SIGUSR2) - 5
"""Signal by which a rank is asked for its stacks: one that no program is known to use."""
STACKS = ".stacks.txt"
EVERY, PATIENCE = 1.0, 2.0
"""Seconds between two looks, and for ranks to say where they are."""

Waits = Callable[[list[Path]], bool]
"""Says if a rank is left waiting in some traces of one job."""


class Standstill:
    """Watches the traces below a folder."""

    def __init__(self, root: int, folder: Path, seconds: float, waits: Waits) -> None:
        self.root, self.folder, self.seconds, self.waits = root, folder, seconds, waits
        self._sizes: dict[Path, tuple[int, float]] = {}
        """Folder of a job to the bytes of its traces, and when they last grew."""
        self._judged: dict[Path, int] = {}
        self._next = 0.0

    def found(self) -> bool:
        """Return True once a job stands still; looks from time to time."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + EVERY
        jobs: dict[Path, list[Path]] = {}
        for path in sorted(self.folder.rglob(f"*{SUFFIX}")):
            jobs.setdefault(path.parent, []).append(path)
        return any(self._stands(job, files, now) for job, files in jobs.items()) or self._joins(now)

    def _joins(self, now: float) -> bool:
        """Return True where ranks have been in the call by which they join their job, and nobody came or left."""
        file = self.folder / journal.NAME
        size = file.stat().st_size if file.is_file() else -1
        before, grew = self._sizes.get(file, (-1, now))
        self._sizes[file] = size, now if size != before else grew
        if size != before or now - grew < self.seconds or self._judged.get(file) == size:
            return False
        self._judged[file] = size
        return bool(journal.Journal(self.folder).joining & set(descendants(self.root))) and self.waits([file])

    def _stands(self, job: Path, files: list[Path], now: float) -> bool:
        size = sum(file.stat().st_size for file in files)
        before, grew = self._sizes.get(job, (-1, now))
        self._sizes[job] = size, now if size != before else grew
        if size != before or now - grew < self.seconds or self._judged.get(job) == size:
            return False
        self._judged[job] = size
        return not _held(self.root).isdisjoint(map(str, files)) and self.waits(files)


def _held(root: int) -> set[str]:
    """Return the files that processes from `root` down have open: a job whose ranks are gone stands still for good."""
    found: set[str] = set()
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            for file in os.listdir(folder := f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"{folder}/{file}"))
    return found


def answer(folder: Path, rank: int) -> None:
    """Have this process write its stacks beside its rank's trace whenever it is asked."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # not in the main thread, or no such signal here
        # in force again once Python, on its way out, has let go of faulthandler
        signal.signal(ASK, signal.SIG_IGN)
        file = os.open(_stacks(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        faulthandler.register(ASK, file=file, all_threads=True)


def _stacks(folder: Path, rank: int) -> Path:
    return folder / (name_of(rank).removesuffix(SUFFIX) + STACKS)


def end(root: int, folder: Path) -> None:
    """Have the ranks below a process write their stacks, and end all of them with it."""
    below = descendants(root)
    for pid in filter(_answers, below):
        _send(pid, ASK)
    expected = list(folder.rglob(f"*{STACKS}"))
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and any(file.stat().st_size == 0 for file in expected):
        time.sleep(0.05)
    # none may write what its peers' end does to it: first all are stopped
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in below:
            _send(pid, number)
    for pid in descendants(root)[1:]:
        _send(pid, signal.SIGKILL)


def tidy(folder: Path) -> None:
    """Remove the files of those that were not asked, or could not say."""
    for file in [file for file in folder.rglob(f"*{STACKS}") if file.stat().st_size == 0]:
        file.unlink()


def _answers(pid: int) -> bool:
    """Return True where a process has a handler for the signal: else it would end by it."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
        caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (ASK - 1) & 1)
    return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)
