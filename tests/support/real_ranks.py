"""Runs of real ranks for the tests: forked by `rank_zygote`, on gloo, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.protocol.diagnose import diagnose
from genlock.impl import scenario
from genlock.impl.jobs import launch
from genlock.impl.scenario import Injection, RunConfig, Scenario
from genlock.traces.format import Trace, find, read
from repository import PROCESSES

ZYGOTE = PROCESSES / "rank_zygote.py"
DEADLINES = {"startup": 30.0, "header": 5.0, "payload": 5.0, "generate": 10.0, "ack": 5.0, "idle": 30.0}


class Ended(NamedTuple):
    """A run: each rank's exit status and trace, and the lines for the user."""

    statuses: list[int]
    traces: list[Trace]
    said: list[str]

    def messages(self) -> dict[int, str]:
        """Why each rank ended, by its own word."""
        return {t.rank: t.end.message for t in self.traces if t.end}

    def causes(self) -> list[str | None]:
        return [t.end.cause if t.end else None for t in self.traces]

    def events(self, rank: int, transition: str) -> int:
        """How often a rank made a move, or issued a collective."""
        return sum(e.transition == transition and e.edge != "exit" for e in self.traces[rank].events)

    def replayed(self) -> Diagnosis:
        return diagnose(self.traces)


class Ranks:
    """One zygote, which runs one job after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ZYGOTE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    def run(
        self,
        out: Path,
        steps: Scenario,
        fault: Injection | None = None,
        *,
        ranks: int = 3,
        facts: Mapping[int, Mapping[str, str]] | None = None,
        deadlines: Mapping[str, float] | None = None,
        deaf: Sequence[int] = (),
    ) -> Ended:
        """A run to the end of all its ranks."""
        out.mkdir(parents=True, exist_ok=True)
        limits = {**DEADLINES, **(deadlines or {})}
        config = RunConfig(launch.new_run(), str(out), "gloo", steps, limits, fault, self.process.pid)
        path = out / launch.CONFIG
        path.write_bytes(msgspec.json.encode(config))
        odd = {str(rank): dict(values) for rank, values in (facts or {}).items()}
        job = {"config": str(path), "ranks": ranks, "facts": odd, "deaf": list(deaf), "limit": 60}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        said = Path(f"{path}.log").read_text().splitlines()
        traces = sorted((read(p) for p in find(out)), key=lambda t: t.rank)
        told = [line.removeprefix("genlock: ") for line in said if line.startswith("genlock: ")]
        return Ended(statuses, traces, told)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=20)


def alive(text: str) -> list[int]:
    """Processes whose command line has `text` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


def inject(text: str) -> Injection:
    """A fault as on the command line: `OM-16,kind=stale`."""
    name, *settings = text.split(",")
    return scenario.injection(name, dict(s.split("=") for s in settings))
