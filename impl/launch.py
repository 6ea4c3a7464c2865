"""Starts the ranks of `genlock run` under torchrun, waits for them, and sums up what their traces say.

SIGTERM or Ctrl-C drains the run: every rank is signalled at once, rank0 finishes its chunk and sends SHUTDOWN.
This module needs no torch itself. Left out: guarding the ranks (each watches its own deadline).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import msgspec

from ..errors import Exit, UsageError
from ..traces.format import End, Trace, find, name_of, read
from ..traces.perfetto import write as write_perfetto
from .devices import gpus
from .profile import RankProfile, profile, slices
from .profile import as_text as profile_text
from .scenario import DEADLINES, RunConfig

CONFIG = "run.json"
LOG = "launcher.log"
PERFETTO = "perfetto.json"


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
    profiles: tuple[RankProfile, ...] = ()
    """Where the chunks' time went, by rank."""


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

    `echo` is given each line that a rank has for the user. After `limit` seconds everything is killed. Called in
    the main thread, it drains the run on the first SIGTERM or Ctrl-C, and ends it on the second.
    """
    require_torch()
    if config.backend == "nccl" and gpus() == 0:
        raise UsageError("NCCL needs a GPU, and there is none here", where="--backend nccl", do="use --backend gloo")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if list(out.glob("*.trace.jsonl")):
        raise UsageError("there are traces in this folder already", where=str(out), do="choose another --out")
    (out / CONFIG).write_bytes(msgspec.json.encode(msgspec.structs.replace(config, launcher=os.getpid())))
    command = [
        sys.executable,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
        *("--monitor-interval", "0.1", "-m", "genlock.impl.rank", str(out / CONFIG)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with (out / LOG).open("w") as log, _signals(echo) as asked:
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
            threading.Thread(target=_drain, args=(asked, process, out, ranks), daemon=True).start()
            _follow(process, log.write, echo, begin + limit)
        finally:
            _end(process)
    return summarise(out, process.returncode, time.monotonic() - begin)


@contextlib.contextmanager
def _signals(echo: Callable[[str], None]) -> Iterator[threading.Event]:
    """Set once SIGTERM or Ctrl-C has come; a second one is a KeyboardInterrupt."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        echo(f"{signal.Signals(number).name}: draining; once more to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(asked: threading.Event, process: subprocess.Popen[str], out: Path, ranks: int) -> None:
    """When asked to, signal every rank, as soon as all of them hold signals: they do once they have a trace."""
    asked.wait()
    while process.poll() is None:
        if all((out / name_of(rank)).exists() for rank in range(ranks)):
            for child in _children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            return
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    """The processes that `pid` has started and that still are."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            # the name, in parentheses, may hold anything; the state and the parent's number follow it
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


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
    """Make sure that the ranks are gone, which hold gentler signals, and then their launcher."""
    if process.poll() is None:
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def summarise(out: Path, status: int, seconds: float) -> RunResult:
    """What the traces in `out` say about the run, and `perfetto.json` of it beside them.

    Raises UnreadableInput where no rank got as far as a trace.
    """
    traces = sorted((read(path) for path in find(out)), key=lambda t: t.rank)
    ends = tuple(RankEnd(t.rank, t.header.role, sum(1 for _ in t.events), t.end) for t in traces)
    failed = sorted((e.end.time_ns, e.end.exit) for e in ends if e.end is not None and e.end.exit != Exit.OK)
    code = failed[0][1] if failed else (Exit.OK if status == 0 else Exit.PEER_DIED)
    driver = next((t for t in traces if t.rank == 0), None)
    write_perfetto(traces, out / PERFETTO, [piece for trace in traces for piece in slices(trace)])
    return RunResult(out, code, seconds, ends, *_counts(driver), tuple(profile(trace) for trace in traces))


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
    lines += profile_text(result.profiles)
    lines.append(f"traces in {result.out}, {PERFETTO} for ui.perfetto.dev; next: genlock replay {result.out}")
    return "\n".join(lines)
