"""Times how long the others live on when a rank dies or stalls: under guardians, torchrun alone, or gloo alone.

    python bench/detect.py [--only kill stop loop gil beside] [--layouts agent agents] [--gb 0 0.5 2] [--keep FILE]
    python bench/detect.py --table FILE

From the injection to the exit of the last rank but the one that was hit, by its process (pidfd), p50 and p99; for
faults that only a deadline can find (stop, loop, gil) from that deadline on. `agent`: one torchrun for all ranks;
`agents`: one each, as on several machines. Which rank is hit goes round, rank0 among them; ranks sleep between beats
(idle), so that nothing but a guardian can notice. The torchruns are forked from a process that has torch loaded;
guardians and ranks are started. Several jobs wait ready while one is hit; none starts meanwhile. Beside it, fewer
times: torchrun without guardians, and gloo ranks in an all-reduce or idle, for CAP seconds at most; and ranks that are
all killed at once, which is what the kernel needs.

With --keep each row is also added to a file, so that the whole can be run in parts; --table prints what a file has.
Exit status 1 where a bar of DESIGN.md is missed or somebody else was blamed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import msgspec
from genlock.guardian import command as guardian
from genlock.impl.faults.process_faults import blow
from genlock.impl.jobs.zygote import Process, Zygote
from genlock.impl.rank.heartbeat import Beat
from genlock.impl.rank.parent_death import die_with_parent

DEADLINE = 0.5
BARS = {"kill": 0.250, "stop": 1.0, "loop": 1.0, "gil": 1.0}
"""Seconds, p99."""
CAP = 15.0
"""Whoever lives longer is not waited for."""
SETTLE = 0.4
"""Seconds after which ranks are in steady state, and their guardians have met."""
APART = 0.25
"""Seconds between the injections into two jobs."""
JOBS, GB = 5, 8.0
"""Jobs that are ready at once, and what their ranks may hold."""
POPULATE, NO_HUGE_PAGES = 23, 15
"""MADV_POPULATE_WRITE and MADV_NOHUGEPAGE."""
GUARDED = "guardians"
AT_ONCE = "all killed at once"
"""No faster can it be: what the kernel needs to end such ranks, on this machine, as busy as it is."""


class Case(NamedTuple):
    """Names what is measured: under `guardians`, or what is beside it; over these numbers of ranks, in turn."""

    kind: str
    layout: str
    ranks: tuple[int, ...]
    gb: float
    fault: str


class Result(NamedTuple):
    """Seconds of each injection, and how often another rank was blamed, or none."""

    case: Case
    seconds: list[float]
    misnamed: int

    @property
    def p50_p99(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return (self.seconds[0], self.seconds[0])
        cuts = quantiles(self.seconds, n=100, method="inclusive")
        return cuts[49], cuts[98]

    @property
    def missed(self) -> bool:
        return self.case.kind == GUARDED and (self.misnamed > 0 or self.p50_p99[1] > BARS[self.case.fault])

    def cells(self) -> list[str]:
        case = self.case
        p50, p99 = (f"over {CAP:g} s" if x >= CAP else f"{x * 1000:.0f} ms" for x in self.p50_p99)
        size = "tiny" if not case.gb else f"{case.gb:g} GB"
        ranks = ", ".join(map(str, case.ranks))
        bad = f"{self.misnamed} misnamed" if self.misnamed else "missed" if self.missed else ""
        return [case.kind, case.fault, case.layout, ranks, size, p50, p99, str(len(self.seconds)), bad]


HEAD = ["", "fault", "launcher", "ranks", "each holds", "p50", "p99", "injections", ""]


def main() -> int:
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    if sys.argv[1:2] == ["launch"]:
        return launch(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--injections", type=int, default=50, help="of each row, at least")
    parser.add_argument("--beside", type=int, default=2, help="injections without guardians")
    parser.add_argument("--only", nargs="+", choices=(*BARS, "beside"), default=[*BARS, "beside"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--gb", type=float, nargs="+", default=[0, 0.5, 2], help="resident size of a rank")
    parser.add_argument("--layouts", nargs="+", choices=("agent", "agents"), default=["agent", "agents"])
    parser.add_argument("--keep", type=Path, help="add each row to this file")
    parser.add_argument("--table", type=Path, help="print the rows of this file, and measure nothing")
    given = parser.parse_args()
    if given.table:
        results = [msgspec.json.decode(line, type=Result) for line in given.table.read_text().splitlines()]
        for cells in (HEAD, ["---"] * len(HEAD), *(result.cells() for result in results)):
            print(f"| {' | '.join(cells)} |")
        return int(any(result.missed for result in results))
    missed = False
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # so that a zygote can load this file as a program
    with Zygote(["detect"]) as zygote:
        for result in measured(given, zygote):
            missed |= result.missed
            print(", ".join(filter(None, result.cells())), flush=True)
            if given.keep:
                with given.keep.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return int(missed)


def measured(given: argparse.Namespace, zygote: Zygote) -> Iterator[Result]:
    """Deaths for each number of ranks; stalls, whose bar is wide, over all of them; what is beside it, at once."""
    for fault in [fault for fault in given.only if fault in BARS]:
        for layout in given.layouts:
            for gb in given.gb:
                for ranks in [(n,) for n in given.ranks] if fault == "kill" else [tuple(given.ranks)]:
                    yield measure(Case(GUARDED, layout, ranks, gb, fault), given.injections, zygote)
    if "beside" in given.only:
        cases = [Case("torchrun alone", layout, (3,), 0, f) for f in ("kill", "stop") for layout in given.layouts]
        works = ("gloo alone, in an all-reduce", "gloo alone, idle")
        cases += [Case(work, "none", (3,), 0, f) for f in ("kill", "stop") for work in works]
        cases += [Case(AT_ONCE, "none", (4,), gb, "kill") for gb in given.gb]
        rounds: list[list[tuple[float, bool]]] = [[] for _ in cases]
        for n in range(given.beside):
            for some in (range(k, len(cases), 3) for k in range(3)):
                jobs = [(cases[k], cases[k].ranks[0], n % 3) for k in some]
                for k, found in zip(some, hit_all(jobs, zygote), strict=True):
                    rounds[k].append(found)
        yield from (
            Result(case, [seconds for seconds, _ in found], 0) for case, found in zip(cases, rounds, strict=True)
        )


def measure(case: Case, injections: int, zygote: Zygote) -> Result:
    """As many jobs at once as there is memory for."""
    jobs = iter([(case, ranks, n % ranks) for n in range(-(-injections // len(case.ranks))) for ranks in case.ranks])
    at_once = min(JOBS, int(GB / max(case.gb * max(case.ranks), 0.1)))
    found: list[tuple[float, bool]] = []
    while batch := list(islice(jobs, max(1, at_once))):
        found += hit_all(batch, zygote)
    return Result(case, [seconds for seconds, _ in found], sum(not named for _, named in found))


def hit_all(jobs: Sequence[tuple[Case, int, int]], zygote: Zygote) -> list[tuple[float, bool]]:
    """Start jobs (case, ranks, the one that is hit), and when all are ready hit one after the other."""
    with contextlib.ExitStack() as stack:
        ready = [stack.enter_context(Job(case, ranks, hit, zygote)) for case, ranks, hit in jobs]
        for job in ready:
            job.await_ranks()
        time.sleep(SETTLE)
        for job in ready:
            job.strike()
            until = time.monotonic() + APART
            alone = job.case.kind in (GUARDED, AT_ONCE) and job.case.fault in ("kill", "loop")
            while time.monotonic() < until or (alone and not job.over):
                watch(ready)
        while not all(job.over for job in ready):
            watch(ready)
        return [(job.seconds, job.named()) for job in ready]


def watch(jobs: Sequence[Job]) -> None:
    """Take note of the ranks that have ended by now."""
    handles = {handle: job for job in jobs for handle in job.handles}
    for handle in select.select(list(handles), [], [], 0.05)[0]:
        handles[handle].ended(handle)


class Job:
    """The ranks of a case, one of which is hit, and how long the others lived on."""

    def __init__(self, case: Case, ranks: int, hit: int, zygote: Zygote) -> None:
        self.case, self.ranks, self.hit, self._zygote = case, ranks, hit, zygote
        self.handles: list[int] = []
        self.begun = float("inf")
        self.seconds = 0.0

    def __enter__(self) -> Job:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        words = [sys.executable, "-m", "detect", "launch", str(self.folder), json.dumps(self.case), str(self.ranks)]
        self._process: Process = self._zygote.start(words, self.folder / "log")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # and with it its torchruns, and with them the guardians and ranks
        self._process.wait()
        for path in self.folder.glob("*.pid"):
            with contextlib.suppress(OSError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        for handle in self.handles:
            os.close(handle)
        self._temporary.cleanup()

    def await_ranks(self) -> None:
        paths = [self.folder / f"{number}.pid" for number in range(self.ranks)]
        until = time.monotonic() + 60
        while not all(path.exists() for path in paths):
            if time.monotonic() > until:
                raise SystemExit(f"the ranks did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)
        self.pids = [int(path.read_text()) for path in paths]

    def strike(self) -> None:
        self.handles = [os.pidfd_open(pid) for number, pid in enumerate(self.pids) if number != self.hit]
        (self.folder / "fault").write_text(self.case.fault)
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(self.case.fault, signal.SIGUSR1)
        self.begun = time.monotonic()
        for pid in self.pids if self.case.kind == AT_ONCE else [self.pids[self.hit]]:
            os.kill(pid, number)
        self.begun += 0.0 if self.case.fault == "kill" else DEADLINE

    def ended(self, handle: int) -> None:
        self.seconds = time.monotonic() - self.begun
        self.handles.remove(handle)
        os.close(handle)

    @property
    def over(self) -> bool:
        if self.handles and time.monotonic() - self.begun > CAP:
            self.seconds = CAP
            return True
        return not self.handles and self.begun < float("inf")

    def named(self) -> bool:
        """Return whether each guardian blamed the rank that was hit."""
        until = time.monotonic() + (10 if self.case.kind == GUARDED else 0)
        blamed: Sequence[str] = ()
        while len(blamed) < self.ranks and time.monotonic() < until:
            time.sleep(0.01)
            blamed = re.findall(r"genlock: rank\d+ was ended: rank(\d+) ", (self.folder / "log").read_text())
        return list(blamed) == [str(self.hit)] * self.ranks


# ── in a fork of a zygote ───────────────────────────────────────────────────────────────────────────


def launch(folder: str, case_text: str, ranks_text: str) -> int:
    """Start the torchruns of a job, or its ranks, and stay until all have ended."""
    from genlock.impl.jobs import zygote

    kind, layout, _, gb, fault = json.loads(case_text)
    ranks = int(ranks_text)
    program = [sys.executable, __file__, "rank", folder, kind, str(gb)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    limit = 60 if fault == "kill" else DEADLINE  # no deadline may pass on a busy machine before the injection
    environ = {**os.environ, "GENLOCK_DEADLINES": f"steady={limit}", "MASTER_ADDR": "127.0.0.1"}
    environ |= {"OMP_NUM_THREADS": "1", "GENLOCK_EVIDENCE": f"{folder}/evidence", "GLOO_SOCKET_IFNAME": "lo"}
    environ |= {"MASTER_PORT": str(port), "LOGLEVEL": "CRITICAL"}
    if kind == GUARDED:
        program = [*guardian(), "--", *program]
        zygote.PROGRAMS.pop("")  # a guardian is started, not forked
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.1", "--no-python"]
    meet = [f"--nnodes={ranks}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    starts: list[tuple[list[str], dict[str, str]]]
    if layout == "agent":
        starts = [([*torchrun, "--standalone", f"--nproc-per-node={ranks}", *program], environ)]
    elif layout == "agents":
        starts = [([*torchrun, *meet, f"--node-rank={n}", *program], environ) for n in range(ranks)]
    else:
        world = {**environ, "WORLD_SIZE": str(ranks)}
        forked = [sys.executable, "-m", "detect", *program[2:]]
        starts = [(program if kind == AT_ONCE else forked, {**world, "RANK": str(n)}) for n in range(ranks)]
    end = partial(die_with_parent, os.getpid())
    running = [zygote.Forked(words, env=env, start_new_session=True, preexec_fn=end) for words, env in starts]
    for process in running:
        process.wait()
    return 0


# ── a rank ──────────────────────────────────────────────────────────────────────────────────────────


def rank(folder: str, kind: str, gb: str) -> None:
    """One rank: fills its memory, says that it is there, and does next to nothing from then on."""
    die_with_parent()
    work = None
    if kind.startswith("gloo"):
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        if "all-reduce" in kind:
            work = lambda: dist.all_reduce(torch.zeros(1))  # noqa: E731  either, or nothing
    beat = Beat.open()
    beat.phase("startup")
    if float(gb):
        held = mmap.mmap(-1, int(float(gb) * 1e9), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.madvise(NO_HUGE_PAGES)
        held.madvise(POPULATE)
    beat.phase("steady")
    signal.signal(signal.SIGUSR1, lambda *_: blow((Path(folder) / "fault").read_text(), 0))
    path = Path(folder) / f"{os.environ['RANK']}.pid"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    while True:
        if work:
            work()
        else:
            time.sleep(0.02)
        beat.progress()


if __name__ == "__main__":
    sys.exit(main())
