"""How long the others live on when one rank dies or stalls: under guardians, under torchrun alone, with gloo alone.

    python bench/detect.py [--injections 50] [--ranks 2 4] [--gb 0 2] [--layouts agent agents] [--faults kill stop]

From the injection to the exit of the last rank but the one that was hit, by its process (pidfd), p50 and p99; for
faults that only a deadline can find (stop, loop, gil) from that deadline on. `agent`: one torchrun for all ranks;
`agents`: one each, as on several machines. The rank that is hit goes round, rank0 among them; ranks sleep between
beats (idle), so that nothing but a guardian can notice. torchrun restarts the ranks after each injection, so one start
serves many. Beside it, fewer times: torchrun without guardians, and gloo ranks in an all-reduce or idle. Exit status
1 where a bar of DESIGN.md is missed or somebody else was blamed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

DEADLINE = 0.5
BARS = {"kill": 0.250, "stop": 1.0, "loop": 1.0, "gil": 1.0}
"""Seconds, p99."""
CAP = 15.0
"""Whoever lives longer is not waited for."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Case(NamedTuple):
    """What is measured: `guarded`, or what is beside it."""

    kind: str
    layout: str
    ranks: int
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
        return self.case.kind == "guarded" and (self.misnamed > 0 or self.p50_p99[1] > BARS[self.case.fault])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--injections", type=int, default=50)
    parser.add_argument("--beside", type=int, default=3, help="injections without guardians")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--gb", type=float, nargs="+", default=[0, 0.5, 2], help="resident size of a rank")
    parser.add_argument("--layouts", nargs="+", choices=("agent", "agents"), default=["agent", "agents"])
    parser.add_argument("--faults", nargs="+", choices=tuple(BARS), default=["kill"])
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    results = []
    for case in cases(given):
        result = measure(case, given.injections if case.kind == "guarded" else given.beside)
        results.append(result)
        if given.format == "text":
            print(as_text(result), flush=True)
    if given.format == "json":
        rows = [{**r.case._asdict(), "seconds": r.seconds, "misnamed": r.misnamed} for r in results]
        print(json.dumps({"deadline": DEADLINE, "cap": CAP, "results": rows}))
    return int(any(result.missed for result in results))


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for layout in given.layouts:
        for ranks in given.ranks:
            for gb in given.gb:
                for fault in given.faults:
                    yield Case("guarded", layout, ranks, gb, fault)
    if given.beside:
        for layout in given.layouts:
            yield Case("torchrun alone", layout, given.ranks[0], 0, "kill")
        for work in ("in an all-reduce", "idle"):
            yield Case(f"gloo alone, {work}", "none", given.ranks[0], 0, "kill")


def as_text(result: Result) -> str:
    case = result.case
    p50, p99 = (f"over {CAP:g} s" if x >= CAP else f"{x * 1000:.0f} ms" for x in result.p50_p99)
    bad = f", MISNAMED {result.misnamed}" if result.misnamed else ""
    late = ", MISSED" if result.missed else ""
    of = f"{case.kind}, {case.layout}, {case.ranks} ranks of {case.gb:g} GB, {case.fault}"
    return f"{of}: p50 {p50}, p99 {p99}, {len(result.seconds)} injections{bad}{late}"


def measure(case: Case, injections: int) -> Result:
    """One start of the ranks for all injections, where torchrun starts them anew; else a start for each."""
    seconds: list[float] = []
    misnamed = 0
    restarts = case.kind == "guarded" or case.layout == "agent"
    starts = [injections] if restarts else [1] * injections
    for count in starts:
        with tempfile.TemporaryDirectory() as folder, started(case, Path(folder), count) as log:
            for n in range(count):
                hit = (len(seconds)) % case.ranks
                before = len(log.read_text())
                seconds.append(inject(case, Path(folder), n, hit))
                if case.kind == "guarded":
                    misnamed += not named(log, before, hit, case.ranks)
    return Result(case, seconds, misnamed)


@contextlib.contextmanager
def started(case: Case, folder: Path, injections: int) -> Iterator[Path]:
    """The ranks of a case, with a log of what they say."""
    log = folder / "log"
    program = [sys.executable, __file__, "rank", str(folder), case.kind, str(case.gb)]
    port = free_port()
    limit = 60 if case.fault == "kill" else DEADLINE  # no deadline may pass on a busy machine before the injection
    environ = {**os.environ, "GENLOCK_DEADLINES": f"steady={limit}", "MASTER_ADDR": "127.0.0.1"}
    environ |= {"OMP_NUM_THREADS": "1", "GENLOCK_EVIDENCE": str(folder / "evidence"), "GLOO_SOCKET_IFNAME": "lo"}
    environ |= {"PYTHONWARNINGS": "ignore", "MASTER_PORT": str(port), "LOGLEVEL": "CRITICAL"}
    if case.kind == "guarded":
        from genlock.guardian import command

        program = [*command(), "--", *program]
    common = [*TORCHRUN, f"--max-restarts={injections}", "--monitor-interval=0.05", "--no-python"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=bench", "--local-addr=127.0.0.1"]
    starts: list[tuple[list[str], dict[str, str]]]
    if case.layout == "agent":
        starts = [([*common, "--standalone", f"--nproc-per-node={case.ranks}", *program], environ)]
    elif case.layout == "agents":
        starts = [([*common, *meet, f"--nnodes={case.ranks}", "--nproc-per-node=1", *program], environ)] * case.ranks
    else:
        world = {**environ, "WORLD_SIZE": str(case.ranks)}
        starts = [(program, {**world, "RANK": str(rank)}) for rank in range(case.ranks)]
    with log.open("w") as out:
        processes = [subprocess.Popen(c, env=e, stdout=out, stderr=out, start_new_session=True) for c, e in starts]
        try:
            yield log
        finally:
            for process in processes:
                process.terminate()
            end_all(folder)
            for process in processes:
                process.kill()
                process.wait()


def end_all(folder: Path) -> None:
    """No rank of any start is left."""
    for path in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):  # it is gone already
            pid = int(path.read_text())
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def inject(case: Case, folder: Path, n: int, hit: int) -> float:
    """Hit one rank of the n-th start of the ranks; seconds until all others have gone, CAP at most."""
    paths = [folder / f"{n}.{rank}.pid" for rank in range(case.ranks)]
    until = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        if time.monotonic() > until:
            raise SystemExit(f"the ranks did not start: {(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.01)
    time.sleep(0.3)  # all of them in steady state, their guardians met
    pids = [int(path.read_text()) for path in paths]
    try:
        handles = [os.pidfd_open(pid) for rank, pid in enumerate(pids) if rank != hit]
    except ProcessLookupError:
        raise SystemExit(f"a rank ended by itself: {(folder / 'log').read_text()[-2000:]}") from None
    (folder / "fault").write_text(case.fault)
    begin = time.monotonic()
    os.kill(pids[hit], {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(case.fault, signal.SIGUSR1))
    begin += 0.0 if case.fault == "kill" else DEADLINE
    for handle in handles:
        select.select([handle], [], [], max(0.0, begin + CAP - time.monotonic()))
        os.close(handle)
    return min(CAP, time.monotonic() - begin)


def named(log: Path, before: int, hit: int, ranks: int) -> bool:
    """Whether each guardian blamed the rank that was hit."""
    until = time.monotonic() + 10
    blamed: Sequence[str] = ()
    while len(blamed) < ranks and time.monotonic() < until:
        time.sleep(0.01)
        blamed = re.findall(r"genlock: rank\d+ was ended: rank(\d+) ", log.read_text()[before:])
    return list(blamed) == [str(hit)] * ranks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rank(folder: str, kind: str, gb: str) -> None:
    """One rank: fills its memory, says that it is there, and does next to nothing from then on."""
    number, start = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    work = None
    if kind.startswith("gloo"):
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        if "all-reduce" in kind:
            work = lambda: dist.all_reduce(torch.zeros(1))  # noqa: E731  either, or nothing
    from genlock.impl.beat import Beat

    beat = Beat.open()
    beat.phase("startup")
    held = bytearray(int(float(gb) * 1e9))
    held[::4096] = b"\1" * len(held[::4096])
    beat.phase("steady")

    def stall(*_: object) -> None:
        if (Path(folder) / "fault").read_text() == "loop":
            while True:
                pass
        ctypes.PyDLL(None).sleep(600)

    signal.signal(signal.SIGUSR1, stall)
    path = Path(folder) / f"{start}.{number}.pid"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    while True:
        if work:
            work()
        else:
            time.sleep(0.02)
        beat.progress()


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    else:
        sys.exit(main())
