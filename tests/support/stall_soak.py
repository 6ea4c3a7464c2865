"""Stalls at random moments of a rank that beats in a tight loop: each must end in time, with the right name.

    python tests/support/stall_soak.py [--stalls 1000] [--jobs 6] [--seed 0]

Two ranks a job, each under its guardian; one of them, in turn, stalls at a random moment: a thread takes the
interpreter and never gives it back (`gil`), a signal stops the process (`stop`), a signal handler loops for ever
(`loop`), or a write of the page never ends (`torn`). Nothing is waited for but the guardians' ends. Exit status 1 where
one did not come in TIME seconds after its deadline, or named anything else.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles

from genlock.guardian import command

KINDS = ("gil", "stop", "loop", "torn")
DEADLINE = 1.0
TIME = 1.0
"""Seconds after the deadline."""
LOST = 30.0
RANK = r"""
import ctypes, os, random, signal, sys, threading, time
from genlock.guardian.status_page import EDITIONS, RECORD, SLOT, VARIABLE
from genlock.impl.rank.heartbeat import Beat
kind, moment = sys.argv[1], float(sys.argv[2])
def loop(*_):
    while True:
        pass
def strike():
    time.sleep(moment)
    said = f"{time.monotonic()}\n".encode()
    if kind == "loop":
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    else:
        os.write(1, said)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "gil":
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
def handler(*_):
    os.write(1, f"{time.monotonic()}\n".encode())
    loop()
signal.signal(signal.SIGUSR1, handler)
beat = Beat.open()
beat.phase("steady")
if kind == "torn":
    until = time.monotonic() + moment
    while time.monotonic() < until:
        beat.progress()
    with open(os.environ[VARIABLE], "r+b", buffering=0) as file:
        written = file.read(2 * SLOT)
        caught = random.randrange(RECORD.size)
        file.seek((max(EDITIONS.unpack_from(written)) + 1) % 2 * SLOT + caught)
        file.write(b"?" * (RECORD.size - caught))
    os.write(1, f"{time.monotonic()}\n".encode())
    loop()
if kind != "none":
    threading.Thread(target=strike, daemon=True).start()
    while True:
        beat.progress()
while True:
    beat.progress()
    time.sleep(0.05)
"""


class Job:
    """Guardians of two ranks, of which one stalls."""

    def __init__(self, number: int, chance: random.Random, folder: Path) -> None:
        self.kind, self.hit = KINDS[number % len(KINDS)], number // len(KINDS) % 2
        self.begun = time.monotonic()
        common = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": f"{folder}"}
        flags = [f"--deadline=steady={DEADLINE}", "--deadline=meet=300", f"--out={folder}"]
        moment = str(0.2 + chance.random())
        self.guardians = [
            subprocess.Popen(
                [
                    *command(),
                    *flags,
                    "--",
                    sys.executable,
                    "-c",
                    RANK,
                    self.kind if rank == self.hit else "none",
                    moment,
                ],
                env={**common, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        self.ends = {os.pidfd_open(guardian.pid): guardian for guardian in self.guardians}
        self.seconds = 0.0

    def over(self) -> str:
        """What is wrong with its end; empty where all is well."""
        for guardian in self.guardians:
            guardian.kill()
        said = [guardian.communicate() for guardian in self.guardians]
        if self.ends:
            return "not ended"
        struck = float(said[self.hit][0] or "nan")
        self.seconds = self.last - struck - DEADLINE
        blamed = [re.findall(r"was ended: rank(\d) (?:made no progress|is stopped)", text) for _, text in said]
        if blamed != [[str(self.hit)]] * 2 or self.guardians[self.hit].returncode != 13:
            return f"wrong: {[text for _, text in said]}, {[guardian.returncode for guardian in self.guardians]}"
        if self.seconds <= TIME:
            return ""
        return f"late: {self.seconds:.2f} s after the deadline: {[text for _, text in said]}"

    last = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stalls", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, seconds, wrong = random.Random(given.seed), list[float](), Counter[str]()
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, selectors.DefaultSelector() as selector:
        running: list[Job] = []
        started = 0
        while started < given.stalls or running:
            while started < given.stalls and len(running) < given.jobs:
                running.append(Job(started, chance, Path(folder) / str(started)))
                started += 1
                for handle in running[-1].ends:
                    selector.register(handle, selectors.EVENT_READ, running[-1])
            for key, _ in selector.select(0.1):
                job: Job = key.data
                job.ends.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                job.last = time.monotonic()
            for job in [job for job in running if not job.ends or time.monotonic() - job.begun > LOST]:
                running.remove(job)
                for handle in job.ends:
                    selector.unregister(handle)
                why = job.over()
                done[job.kind] += 1
                if why:
                    wrong[job.kind] += 1
                    print(f"{job.kind} of rank{job.hit}: {why}", flush=True)
                else:
                    seconds.append(job.seconds)
    p50, p99 = (quantiles(seconds, n=100, method="inclusive")[k] for k in (49, 98)) if len(seconds) > 1 else (0.0, 0.0)
    good = {kind: done[kind] - wrong[kind] for kind in KINDS}
    print(f"{sum(good.values())} of {given.stalls} ended in time with the right name {good}")
    print(f"after the deadline: p50 {p50:.2f} s, p99 {p99:.2f} s, at most {max(seconds, default=0):.2f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
