"""Collects and replays real gloo hangs of every launcher, and writes what came of each: `make collect-hangs`.

Each job hangs in a known rank; graded is whether replay names it from the archive alone, whether somebody else is
called a culprit, and whether the job is as it was afterwards. Takes some minutes. Left out: NCCL, and several nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from genlock.collect.process import Process
from genlock.collect.stacks import py_spy

RANKS, BROKEN = 3, 1
BIN = Path(sys.executable).parent
PROGRAM = """
import datetime, faulthandler, os, signal, sys, time
import torch, torch.distributed as dist
faulthandler.register(signal.SIGUSR1)
FOLDER, WAY = sys.argv[1:3]

def main(rank=None):
    patience = datetime.timedelta(seconds=3600)
    if rank is None:
        dist.init_process_group("gloo", timeout=patience)
    else:
        dist.init_process_group("gloo", init_method=f"file://{FOLDER}/met", rank=rank, world_size=3, timeout=patience)
    rank = dist.get_rank()
    for step in range(3):
        dist.all_reduce(torch.ones(2))
    open(f"{FOLDER}/there{rank}", "w").write(str(os.getpid()))
    if rank == 1 and WAY == "sleep":
        time.sleep(3600)
    if rank == 1 and WAY == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if rank == 1 and WAY == "skip":
        dist.barrier()
    while True:
        dist.all_reduce(torch.ones(2))

if __name__ == "__main__":
    if len(sys.argv) > 3:
        import torch.multiprocessing as mp
        mp.spawn(main, nprocs=3)
    else:
        main()
"""
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "3", "PROGRAM", "FOLDER", "WAY"],
    "torchrun, a log a rank": [
        *(
            str(BIN / "torchrun"),
            "--standalone",
            "--redirects",
            "3",
            "--log-dir",
            "FOLDER/logs",
            "--nproc-per-node",
            "3",
        ),
        *("PROGRAM", "FOLDER", "WAY"),
    ],
    "mp.spawn": [sys.executable, "PROGRAM", "FOLDER", "WAY", "spawn"],
    "genlock record, torchrun": [
        *(str(BIN / "genlock"), "record", "--out", "FOLDER/traces", "--"),
        *(str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "3", "PROGRAM", "FOLDER", "WAY"),
    ],
}
WAYS = ("sleep", "stop", "skip")


class Graded(NamedTuple):
    """Holds what came of one job."""

    launcher: str
    way: str
    stacks: str
    verdict: str
    named: str
    innocent: bool
    alive: bool


@contextlib.contextmanager
def hung(launcher: str, way: str, folder: Path) -> Iterator[tuple[int, list[int]]]:
    """Yield the launcher and the ranks of a job, once all stand where they stay."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    words = {"PROGRAM": str(program), "WAY": way}
    command = [words.get(word, word.replace("FOLDER", str(folder))) for word in LAUNCHERS[launcher]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        ) as process,
    ):
        pids: list[int] = []
        try:
            while len(pids) < RANKS:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
                there = [folder / f"there{rank}" for rank in range(RANKS)]
                pids = [int(path.read_text() or 0) for path in there if path.exists() and path.read_text()]
            time.sleep(1)
            yield process.pid, pids
        finally:
            for pid in (process.pid, *pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def graded(launcher: str, way: str, stacks: str) -> Graded:
    """Collect a job, replay the archive, and hold the verdict against what was broken."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with hung(launcher, way, folder) as (pid, pids):
            before = [Process(rank).state for rank in pids]
            given = ["--pid", str(pid), "--apart", "2", "--out", f"{folder}/out.zip"]
            given += ["--stack-signal", "SIGUSR1"] if stacks == "faulthandler" else []
            hidden = {"PATH": "/nowhere"} if stacks != "py-spy" else {}
            python = [sys.executable, "-c", HIDE] if stacks != "py-spy" else [sys.executable, "-m", "genlock"]
            done = subprocess.run(
                [*python, "collect", *given], env={**os.environ, **hidden}, capture_output=True, text=True
            )
            assert done.returncode in (0, 3), done.stderr
            after = [Process(rank).state for rank in pids]
        replay = [sys.executable, "-m", "genlock", "replay", "--format", "json", f"{folder}/out.zip"]
        said = json.loads(subprocess.run(replay, capture_output=True, text=True).stdout)
    culprits = [accused["rank"] for accused in said["accused"] if accused["strength"] == "culprit"]
    suspects = [accused["rank"] for accused in said["accused"] if accused["strength"] == "suspect"]
    named = f"culprit {culprits}" if culprits else f"suspects {suspects}" if suspects else "nobody"
    return Graded(
        launcher,
        way,
        stacks,
        said["verdict"],
        named,
        bool(set(culprits) - {BROKEN}),
        before.count("T") == after.count("T"),
    )


HIDE = "import genlock.collect.stacks as s; s.py_spy = lambda: None; from genlock.__main__ import main; main()"
"""Runs the command as where py-spy is not installed."""


def main() -> None:
    """Grade every launcher, way and kind of stacks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no job outlives it
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    out = parser.parse_args().out
    jobs = [(launcher, way, "py-spy") for launcher in LAUNCHERS for way in WAYS if py_spy()]
    jobs += [("torchrun, a log a rank", way, stacks) for way in WAYS[:2] for stacks in ("faulthandler", "none")]
    rows = []
    for job in jobs:
        rows.append(graded(*job))
        print(*rows[-1], sep=" | ", flush=True)
    table = ["| launcher | rank 1 | stacks by | verdict | named |", "|---|---|---|---|---|"]
    table += [f"| {r.launcher} | {r.way} | {r.stacks} | {r.verdict} | {r.named} |" for r in rows]
    blamed, ended = sum(r.innocent for r in rows), sum(not r.alive for r in rows)
    exact = sum(r.named == f"culprit [{BROKEN}]" for r in rows)
    held = sum(str(BROKEN) in r.named for r in rows)
    head = f"{len(rows)} gloo jobs of {RANKS} ranks, of which rank {BROKEN} hangs: culprit named {exact}, "
    head += f"among those named {held}, an innocent called a culprit {blamed}, jobs changed {ended}."
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"collect-hangs-{datetime.date.today()}.md"
    path.write_text("\n".join(["# genlock collect on real hangs", "", head, "", *table, ""]))
    print(head, path, sep="\n")
    sys.exit(1 if blamed or ended else 0)


if __name__ == "__main__":
    main()
