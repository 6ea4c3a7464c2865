"""Starts the ranks of `genlock run` under torchrun, waits for them, and sums up what their traces say.

SIGTERM or Ctrl-C drains the run: every rank is signalled at once, rank0 finishes its chunk and sends SHUTDOWN.
Each rank is the child of a guardian, and dies with it; torchrun starts the guardians. This module needs no torch
itself. Left out: when a rank is ended, and what is kept of it (`guardian`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

import msgspec

from ...errors import Exit, UnreadableInput, UsageError
from ...guardian import command as guardian
from ...guardian.child import children
from ...guardian.evidence import END
from ...guardian.settings import LIMITS, TOKEN, TRACES, Wrong, limits
from ...host import available_memory
from ...traces.format import SUFFIX, End, Trace, encode, find, name_of, read
from ...traces.perfetto import write as write_perfetto
from ..rank.devices import gpus
from ..rank.parent_death import die_with_parent
from ..rank.trace_header import header
from ..scenario import DEADLINES, RunConfig, effective, must_strike
from .stage_times import RankProfile, profile, slices
from .stage_times import as_text as profile_text

CONFIG = "run.json"
LOG = "launcher.log"
PERFETTO = "perfetto.json"


class Started(Protocol):
    """Describes a torchrun that was started as a subprocess."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


start_process: Callable[..., Started] = subprocess.Popen
"""Starts a torchrun."""


class RankEnd(msgspec.Struct, frozen=True):
    """Holds the end of one rank.

    `end` is None where its trace has no end marker: it was killed.
    """

    rank: int
    role: str
    events: int
    end: End | None
    evidence: str = ""
    """The file with what its guardian kept of it before it was ended."""


class RunResult(msgspec.Struct, frozen=True):
    """Holds the result of a finished run; its counts are rank0's."""

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
    """The time of the chunks by stage, of each rank."""


def new_run() -> str:
    """Return a name for a run, unlike any other's."""
    return uuid.uuid4().hex[:12]


def new_folder() -> Path:
    """Return `out/<time>`, where a run leaves its traces when no folder is named."""
    return Path("out") / time.strftime("%Y%m%d-%H%M%S")


def deadlines_of(flags: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds by phase, as flags and the environment say.

    Raises UsageError for a phase that has no deadline.
    """
    try:
        told = limits(os.environ.get(LIMITS, "").split(","), LIMITS)
    except Wrong as error:
        raise UsageError(str(error), do=f"name phases, as in {LIMITS}=header=5,ack=5") from None
    for where, seconds in ((LIMITS, told), ("--deadline", flags)):
        for phase in seconds:
            if phase not in DEADLINES:
                raise UsageError(f"no phase `{phase}`", where=where, do=f"choose from {', '.join(DEADLINES)}")
    return {**told, **flags}


def require_torch() -> None:
    """Raise UsageError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("torch is not installed", do="pip install 'genlock[run]'")


RANK_BYTES = {"gloo": 200 << 20, "nccl": 1 << 30}
"""Memory of a rank and its guardian that no other process shares; on gloo measured, on NCCL by what CUDA takes."""
AGENT_BYTES = 150 << 20
"""Memory of a torchrun."""
START_SECONDS = 2.0
"""Time of a core that a rank takes to start."""


def require_room(config: RunConfig, ranks: int, agents: int) -> None:
    """Raise UsageError where the machine has not the memory for so many ranks, or not the cores to start them in time.

    `agents` is the number of torchruns.
    """
    where, do = f"--ranks {ranks}", "ask for fewer, or insist with --oversubscribe"
    need, have = ranks * RANK_BYTES[config.backend] + agents * AGENT_BYTES, available_memory()
    if have is not None and need > have:
        text = f"they need about {need / (1 << 30):,.1f} GiB, and {have / (1 << 30):,.1f} GiB are left"
        raise UsageError(text, where=where, do=do)
    cores = len(os.sched_getaffinity(0))
    limit = max(DEADLINES["startup"], config.deadlines.get("startup", 0.0))  # a shorter one is meant to pass
    seconds = ranks * START_SECONDS / cores
    if seconds > limit:
        text = f"on {cores} cores they need about {seconds:,.0f} s to start, and the deadline of startup is {limit:g} s"
        raise UsageError(text, where=where, do=do)


def launch(
    config: RunConfig,
    ranks: int,
    *,
    echo: Callable[[str], None],
    limit: float | None = None,
    observe: bool = False,
    agent_per_rank: bool = False,
    oversubscribe: bool = False,
) -> RunResult:
    """Run `ranks` ranks, each under its guardian, and wait until all of them are gone.

    `echo` is given each line that a rank or its guardian has for the user. After `limit` seconds everything is killed;
    by itself the ranks' deadlines alone end a run, as a healthy one may be idle or drain for longer than any limit.
    With `observe` guardians only report. One torchrun starts all ranks, or one each, as on several machines. Called in
    the main thread, it drains the run on the first SIGTERM or Ctrl-C, and ends it on the second.

    Raises UsageError before anything is started: for a fault that cannot strike in this run, and, without
    `oversubscribe`, for more ranks than the machine can hold.
    """
    require_torch()
    if config.injection is not None:
        must_strike(config.injection, config.scenario, ranks)
    if not oversubscribe:
        require_room(config, ranks, ranks if agent_per_rank else 1)
    if config.backend == "nccl" and gpus() == 0:
        raise UsageError("NCCL needs a GPU, and there is none here", where="--backend nccl", do="use --backend gloo")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if list(out.glob(f"*{SUFFIX}")):
        raise UsageError("there are traces in this folder already", where=str(out), do="choose another --out")
    for left in out.glob(f"*{END}"):  # of a run that nobody saw to its end
        left.unlink()
    (out / CONFIG).write_bytes(msgspec.json.encode(msgspec.structs.replace(config, launcher=os.getpid())))
    deadlines = {name: s for name, s in effective(config.deadlines).items() if name != "drain"}
    guarded = [*guardian(), *(f"--deadline={name}={s:g}" for name, s in deadlines.items()), *["--observe"] * observe]
    program = [*guarded, "--", sys.executable, "-m", "genlock.impl.jobs.rank_main", str(out / CONFIG)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", TOKEN: secrets.token_hex(), TRACES: str(out)}
    begin = time.monotonic()
    with (out / LOG).open("w", buffering=1) as log, _signals(echo) as asked:
        agents, said = _start(_agents(config.run, ranks, agent_per_rank), program, {**os.environ, **own})
        try:
            threading.Thread(target=_drain, args=(asked, agents, out, ranks), daemon=True).start()
            threading.Thread(target=_release, args=(agents,), daemon=True).start()
            _follow(agents, said, log.write, echo, None if limit is None else begin + limit)
        finally:
            said.close()
            _end_all(agents)
    _begin_traces(config, ranks)
    return summarise(out, max(abs(agent.returncode or 0) for agent in agents), time.monotonic() - begin)


def _agents(run: str, ranks: int, agent_per_rank: bool) -> list[list[str]]:
    """Return the flags of each torchrun."""
    if not agent_per_rank:
        return [["--standalone", f"--nproc-per-node={ranks}"]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meet = ["--master-addr=127.0.0.1", f"--master-port={port}", f"--rdzv-id={run}", "--nproc-per-node=1"]
    return [[*meet, f"--nnodes={ranks}", f"--node-rank={rank}"] for rank in range(ranks)]


def _start(
    agents: Sequence[Sequence[str]], program: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[Started], TextIO]:
    """Start the torchruns; return them, and what they and all ranks say."""
    read, write = os.pipe()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.1", "--no-python"]
    own, started = os.getpid(), []
    for flags in agents:
        process = start_process(
            [*torchrun, *flags, *program],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            env=environ,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, own),
        )
        started.append(process)
    os.close(write)
    return started, os.fdopen(read, encoding="utf-8", errors="replace")


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


def _drain(asked: threading.Event, agents: Sequence[Started], out: Path, ranks: int) -> None:
    """Signal every rank, when asked to, as soon as all of them hold signals: they do once they have a trace."""
    asked.wait()
    while any(agent.poll() is None for agent in agents):
        if all((out / name_of(rank)).exists() for rank in range(ranks)):
            for child in [child for agent in agents for child in children(agent.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)  # its guardian passes it on
            return
        time.sleep(0.02)


def _release(agents: Sequence[Started]) -> None:
    """End, once one torchrun has failed, those whose ranks are gone: they would wait 300 s for it at their exit."""
    idle = 0
    while any(agent.poll() is None for agent in agents):
        time.sleep(0.1)
        left = [agent for agent in agents if agent.poll() is None]
        failed = any(agent.poll() for agent in agents)
        idle = idle + 1 if failed and not any(True for agent in left for _ in children(agent.pid)) else 0
        if idle > 5:
            for agent in left:
                agent.kill()  # it waits in C++, where no signal is handled
            return


def _follow(
    agents: Sequence[Started],
    said: TextIO,
    log: Callable[[str], object],
    echo: Callable[[str], None],
    until: float | None,
) -> None:
    watchdog = threading.Timer(0 if until is None else until - time.monotonic(), _end_all, (agents,))
    watchdog.daemon = True
    if until is not None:
        watchdog.start()
    for line in said:
        log(line)
        if line.startswith("genlock: "):
            echo(line.removeprefix("genlock: ").rstrip())
    for agent in agents:
        agent.wait()
    watchdog.cancel()


def _end_all(agents: Sequence[Started]) -> None:
    for agent in agents:
        _end(agent)


def _end(agent: Started) -> None:
    """Make sure that the guardians are gone, which hold gentler signals, and with them their ranks; then torchrun."""
    if agent.poll() is None:
        for child in children(agent.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        agent.terminate()
        try:
            agent.wait(timeout=10)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def _begin_traces(config: RunConfig, ranks: int) -> None:
    """Write a trace without an event, of the guardian's word, for each rank that was ended before it had begun one."""
    out = Path(config.out)
    for rank in range(ranks):
        path = out / name_of(rank)
        left = path.with_name(path.name + END)
        if left.exists() and not (path.exists() and path.stat().st_size):
            begun = header(config.run, rank, ranks, config.backend, {}, ())
            path.write_bytes(encode(begun) + left.read_bytes())
        left.unlink(missing_ok=True)


def summarise(out: Path, status: int, seconds: float) -> RunResult:
    """Sum up a run from the traces in `out`, and write `perfetto.json` beside them.

    Raises UnreadableInput where there is none.
    """
    if not list(out.glob(f"*{SUFFIX}")):
        raise UnreadableInput("no rank came as far as a trace", where=str(out), do=f"see its {LOG}")
    traces = sorted((read(path) for path in find(out)), key=lambda t: t.rank)
    ends = tuple(_rank_end(out, t) for t in traces)
    code = _exit_of([e for e in ends if e.end is None or e.end.exit != Exit.OK], status)
    driver = next((t for t in traces if t.rank == 0), None)
    write_perfetto(traces, out / PERFETTO, [piece for trace in traces for piece in slices(trace)])
    return RunResult(out, code, seconds, ends, *_counts(driver), tuple(profile(trace) for trace in traces))


def _rank_end(out: Path, trace: Trace) -> RankEnd:
    evidence = out / f"rank{trace.rank}.evidence.txt"
    events = sum(1 for _ in trace.events)
    return RankEnd(trace.rank, trace.header.role, events, trace.end, evidence.name if evidence.exists() else "")


def _exit_of(failed: Sequence[RankEnd], status: int) -> int:
    """Return the culprit's status, where one is named and had a word to say; else that of the first to fail."""
    if not failed:
        return Exit.OK if status == 0 else Exit.PEER_DIED
    told = sorted((e.end.time_ns, e.end, e.rank) for e in failed if e.end is not None)
    culprits = {end.culprit for _, end, _ in told if end.culprit is not None}
    statuses = [end.exit for _, end, rank in told if not culprits or rank in culprits]
    return statuses[0] if statuses and statuses[0] in (*Exit,) else Exit.PEER_DIED


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
    """Say what was done, how each rank ended, and where to look."""
    lines = [
        f"{result.chunks} chunks ({result.hard_cuts} hard cuts, {result.recomputes} recomputes), "
        f"{result.refused} refused, {result.heartbeats} heartbeats, in {result.seconds:.1f} s"
    ]
    for rank in result.ranks:
        end = rank.end
        how = "killed: the trace has no end marker" if end is None else f"{end.cause}, exit {end.exit}"
        why = f": {end.message}" if end is not None and end.message else ""
        at = f"; evidence in {rank.evidence}" if rank.evidence else ""
        lines.append(f"  rank{rank.rank} ({rank.role}) {rank.events} events, {how}{why}{at}")
    lines += profile_text(result.profiles)
    lines.append(f"traces in {result.out}, {PERFETTO} for ui.perfetto.dev; next: genlock replay {result.out}")
    return "\n".join(lines)
