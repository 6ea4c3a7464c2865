"""Guardians of ranks that play a script (`guarded.py`), without torch and without a launcher."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genlock.guardian import command
from genlock.guardian.child import children, read
from genlock.guardian.settings import GuardianSettings
from repository import PROCESSES

PROGRAM = PROCESSES / "guarded.py"
Script = Mapping[Any, Sequence[tuple[str, object]]]


class Job:
    """Guardians of some ranks, started as a launcher would, each with a rank that plays a script."""

    def __init__(self, folder: Path, script: Script, world: int = 3, flags: Mapping[int, Sequence[str]] | None = None,
                 environ: Mapping[str, str] | None = None, program: Sequence[str] = (),
                 command: Sequence[str] = tuple(command()), stderr: int = subprocess.PIPE,
                 before: Callable[[Job], object] = lambda job: None) -> None:  # fmt: skip
        self.folder, self.port = folder, free_port()
        self.mark = str(folder / "guarded")  # in every command line of this job
        texts = {str(rank): list(steps) for rank, steps in script.items()}
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        common |= {"LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "a job", "SCRIPT": json.dumps(texts)}
        self.places = GuardianSettings(["--", "x"], {**common, "RANK": "0", **(environ or {})}).places
        """Where its guardians meet."""
        before(self)
        words = list(program) or [sys.executable, str(PROGRAM), self.mark]
        self.guardians = [
            subprocess.Popen(
                [*command, f"--out={folder}/out", *(flags or {}).get(rank, (flags or {}).get(-1, ())), "--", *words],
                env={**os.environ, **common, "RANK": str(rank), **(environ or {})},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            for rank in range(world)
        ]
        self.said: list[str] = []

    def ends(self, within: float = 40) -> list[int]:
        """Each guardian's exit status, once all have ended; nothing of the job is left then."""
        self.said = [guardian.communicate(timeout=within)[1] for guardian in self.guardians]
        until(lambda: not alive(self.mark))
        return [guardian.returncode for guardian in self.guardians]

    def evidence(self, rank: int) -> str:
        return (self.folder / "out" / f"rank{rank}.evidence.txt").read_text()

    def ranks(self) -> list[int]:
        """The processes of the ranks themselves, in order."""
        watchers = self.watchers()
        return [pid for watcher in watchers for pid in children(watcher) if self.mark in read(f"/proc/{pid}/cmdline")]

    def watchers(self) -> list[int]:
        """The guardians proper, in order: what the launcher has started is their supervisor."""
        return [pid for guardian in self.guardians for pid in children(guardian.pid)]

    def started(self) -> None:
        """Wait until every rank is there."""
        until(lambda: len(self.ranks()) == len(self.guardians))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(mark: str) -> list[int]:
    """Processes with `mark` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def until(seen: Callable[[], object], within: float = 30) -> None:
    end = time.monotonic() + within
    while not seen():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


BUSY: Sequence[tuple[str, object]] = [("phase", "steady"), ("commit", "call_id=7"), ("work", 100)]
