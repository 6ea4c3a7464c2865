"""Starts the ranks of `genlock run` under torchrun, waits for them, and sums up what their traces say.

This module needs no torch itself. Left out: guarding the ranks (each watches its own deadline).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ..errors import Exit, UsageError
from ..traces.format import End, Trace, find, read
from .scenario import DEADLINES, RunConfig

CONFIG = "run.json"
LOG = "launcher.log"


class RankEnd(msgspec.Struct, frozen=True):
    """How one rank ended. `end` is None where its trace has no end marker: it was killed."""

    rank: int
    role: str
    events: int
    end: End | None


class RunResult(msgspec.Struct, frozen=True):
    """A finished run. Counts are rank0's."""

    out: Path
    exit: int
    seconds: float
    ranks: tuple[RankEnd, ...]
    chunks: int
    refused: int
    heartbeats: int
    hard_cuts: int
    recomputes: int


def new_run() -> str:
    """A name for a run, unlike any other's."""
    return uuid.uuid4().hex[:12]


def new_folder() -> Path:
    """`out/<time>`: where a run leaves its traces when no folder is named."""
    return Path("out") / time.strftime("%Y%m%d-%H%M%S")


def check_deadlines(seconds: Mapping[str, float]) -> None:
    """Raises UsageError for a phase that has no deadline."""
    for phase in seconds:
        if phase not in DEADLINES:
            raise UsageError(f"no phase `{phase}`", where="--deadline", do=f"choose from {', '.join(DEADLINES)}")


def require_torch() -> None:
    """Raises UsageError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("torch is not installed", do="pip install 'genlock[run]'")


def launch(config: RunConfig, ranks: int, *, echo: Callable[[str], None], limit: float = 600.0) -> RunResult:
    """Run `ranks` ranks, and wait until all of them are gone.

    `echo` is given each line that a rank has for the user. After `limit` seconds everything is killed.
    """
    require_torch()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if list(out.glob("*.trace.jsonl")):
        raise UsageError("there are traces in this folder already", where=str(out), do="choose another --out")
    (out / CONFIG).write_bytes(msgspec.json.encode(config))
    command = [
        sys.executable,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
        *("--monitor-interval", "0.1", "-m", "genlock.impl.rank", str(out / CONFIG)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with (out / LOG).open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        try:
            _follow(process, log.write, echo, begin + limit)
        finally:
            _end(process)
    return summarise(out, process.returncode, time.monotonic() - begin)


def _follow(
    process: subprocess.Popen[str], log: Callable[[str], object], echo: Callable[[str], None], until: float
) -> None:
    if process.stdout is None:
        return
    for line in process.stdout:
        log(line)
        if line.startswith("genlock: "):
            echo(line.removeprefix("genlock: ").rstrip())
        if time.monotonic() > until:
            break
    process.wait(timeout=max(1.0, until - time.monotonic()))


def _end(process: subprocess.Popen[str]) -> None:
    """Make sure that the launcher is gone; its ranks die with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def summarise(out: Path, status: int, seconds: float) -> RunResult:
    """What the traces in `out` say about the run. Raises UnreadableInput where no rank got as far as a trace."""
    traces = sorted((read(path) for path in find(out)), key=lambda t: t.rank)
    ends = tuple(RankEnd(t.rank, t.header.role, sum(1 for _ in t.events), t.end) for t in traces)
    failed = sorted((e.end.time_ns, e.end.exit) for e in ends if e.end is not None and e.end.exit != Exit.OK)
    code = failed[0][1] if failed else (Exit.OK if status == 0 else Exit.PEER_DIED)
    driver = next((t for t in traces if t.rank == 0), None)
    return RunResult(out, code, seconds, ends, *_counts(driver))


def _counts(driver: Trace | None) -> tuple[int, int, int, int, int]:
    if driver is None:
        return (0, 0, 0, 0, 0)
    seen: dict[str, int] = {}
    cuts = recomputes = 0
    plan: dict[str, object] = {}
    for event in driver.events:
        key = event.transition if event.edge != "enter" else ""
        seen[key] = seen.get(key, 0) + 1
        if event.transition == "preflight_schema" and isinstance(event.data, dict):
            plan = event.data
        if event.transition == "acks_agree":
            cuts += bool(plan.get("init_cache"))
            recomputes += bool(plan.get("recompute"))
    return (seen.get("acks_agree", 0), seen.get("refuse", 0), seen.get("send_noop", 0), cuts, recomputes)


def as_text(result: RunResult) -> str:
    """What was done, how each rank ended, and where to look."""
    lines = [
        f"{result.chunks} chunks ({result.hard_cuts} hard cuts, {result.recomputes} recomputes), "
        f"{result.refused} refused, {result.heartbeats} heartbeats, in {result.seconds:.1f} s"
    ]
    for rank in result.ranks:
        end = rank.end
        how = "killed: the trace has no end marker" if end is None else f"{end.cause}, exit {end.exit}"
        why = f": {end.message}" if end is not None and end.message else ""
        lines.append(f"  rank{rank.rank} ({rank.role}) {rank.events} events, {how}{why}")
    lines.append(f"traces in {result.out}; next: genlock replay {result.out}")
    return "\n".join(lines)
