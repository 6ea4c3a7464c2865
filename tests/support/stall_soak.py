"""Stalls at random moments of a rank that beats in a tight loop: each must end in time, with the right name.

    python tests/support/stall_soak.py [--stalls 1000] [--jobs 6] [--seed 0] [--out docs/results]

Two ranks a job, each under its guardian; one of them, in turn, stalls at a random moment: a thread takes the
interpreter and never gives it back (`gil`), a signal stops the process (`stop`), a signal handler loops for ever
(`loop`), a collective that the other rank has left is never left (`wedge`), or a write of the page never ends
(`torn`). What counts is when the last rank ends. Exit status 1 where that is more than TIME seconds after the
deadline, or anything else is named.
"""

from __future__ import annotations

import argparse
import datetime
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
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from genlock.guardian import command

KINDS = ("gil", "stop", "loop", "wedge", "torn")
DEADLINE = 1.0
"""Seconds of the phase in which a rank stalls."""
TIME = 1.0
"""Seconds after the deadline."""
LOST = 120.0
"""Seconds after which a job counts as never ended."""
BLAME = r"was ended: rank(\d) (?:made no progress|is stopped|has not left a collective)"
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
os.write(1, f"{os.getpid()}\n".encode())
if kind in ("torn", "wedge"):
    until = time.monotonic() + moment
    while time.monotonic() < until:
        beat.progress()
if kind == "wedge":
    beat.enter()
    os.write(1, f"{time.monotonic()}\n".encode())
    time.sleep(1000)
if kind == "torn":
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
with beat.waiting():
    pass
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
        words = [*command(), *flags, "--", sys.executable, "-c", RANK]
        moment = str(0.2 + chance.random())
        self.guardians = [
            subprocess.Popen(
                [*words, self.kind if rank == self.hit else "none", moment],
                env={**common, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        self.said = [b"", b""]
        self.seconds = 0.0

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Read what ranks print: the first line is a rank's id, by which its end is seen."""
        for rank, guardian in enumerate(self.guardians):
            assert guardian.stdout
            selector.register(guardian.stdout, selectors.EVENT_READ, lambda rank=rank: self._read(rank, selector))

    def _read(self, rank: int, selector: selectors.BaseSelector) -> None:
        stdout = self.guardians[rank].stdout
        assert stdout
        raw = os.read(stdout.fileno(), 4096)
        if not raw:
            selector.unregister(stdout)
            self.open -= 1
        before, self.said[rank] = self.said[rank], self.said[rank] + raw
        if b"\n" in self.said[rank] and b"\n" not in before:
            try:
                handle = os.pidfd_open(int(self.said[rank].split()[0]))
            except ProcessLookupError:  # it has ended already
                self.last = time.monotonic()
                return
            self.begun_ranks += 1
            selector.register(handle, selectors.EVENT_READ, lambda: self._ended(handle, selector))

    def _ended(self, handle: int, selector: selectors.BaseSelector) -> None:
        selector.unregister(handle)
        os.close(handle)
        self.last = time.monotonic()
        self.ended += 1

    def over(self) -> str:
        """Return what is wrong with its end; empty where all is well."""
        if not self.gone:
            for guardian in self.guardians:
                guardian.kill()
            return f"not ended: {self.ended} of {self.begun_ranks} ranks, {2 - self.open} of 2 guardians"
        texts = [guardian.stderr.read().decode() for guardian in self.guardians if guardian.stderr]
        statuses = [guardian.wait() for guardian in self.guardians]
        struck = self.said[self.hit].split()[1:]
        self.seconds = self.last - float(struck[0] if struck else "nan") - DEADLINE
        blamed = [re.findall(BLAME, text) for text in texts]
        if blamed != [[str(self.hit)]] * 2 or statuses[self.hit] != 13:
            return f"wrong: {texts}, {statuses}"
        return "" if self.seconds <= TIME else f"late: {self.seconds:.2f} s after the deadline: {texts}"

    @property
    def gone(self) -> bool:
        """Whether all is over; a rank that is ended before it could say its id ends with its guardian."""
        return not self.open and self.ended == self.begun_ranks

    ended, begun_ranks, open = 0, 0, 2
    last = 0.0


def main() -> int:
    """Stall so many ranks; 1 where one was not ended in time, or another was named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stalls", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write a dated result into this folder")
    given = parser.parse_args()
    begin = time.monotonic()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    done, wrong = Counter[str](), list[str]()
    for job, why in ended(given.stalls, given.jobs, random.Random(given.seed)):
        done[job.kind] += 1
        if why:
            wrong.append(f"{job.kind} of rank{job.hit}: {why}")
            print(wrong[-1], flush=True)
        else:
            seconds[job.kind].append(job.seconds)
    took = time.monotonic() - begin
    text = _result(done, seconds, wrong, f"seed {given.seed}, {given.jobs} jobs at a time, {took:.0f} s")
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        (given.out / f"stalls-{today}.md").write_text(text)
    return int(bool(wrong))


def ended(stalls: int, jobs: int, chance: random.Random) -> Iterator[tuple[Job, str]]:
    """Run jobs, so many at a time; yield each with what was wrong with its end."""
    with tempfile.TemporaryDirectory() as folder, selectors.DefaultSelector() as selector:
        running: list[Job] = []
        started = 0
        while started < stalls or running:
            while started < stalls and len(running) < jobs:
                running.append(Job(started, chance, Path(folder) / str(started)))
                started += 1
                running[-1].watch(selector)
            for key, _ in selector.select(0.1):
                key.data()
            for job in [job for job in running if job.gone or time.monotonic() - job.begun > LOST]:
                running.remove(job)
                yield job, job.over()


def _result(done: Counter[str], seconds: dict[str, list[float]], wrong: list[str], how: str) -> str:
    rows = "\n".join(
        f"| {kind} | {len(seconds[kind])} of {done[kind]} | {median(seconds[kind] or [0]):.2f} s "
        f"| {max(seconds[kind], default=0):.2f} s |"
        for kind in KINDS
    )
    found = "\n".join(f"- {why}" for why in wrong) or "None."
    good = sum(map(len, seconds.values()))
    return (
        f"# Stalls at random moments\n\n"
        f"{good} of {done.total()} stalls ended within {TIME:g} s after the deadline of {DEADLINE:g} s, with the right "
        f"rank named\nby both guardians; {how} (`make soak`).\n\n"
        f"| stall | ended | median after the deadline | at most |\n|---|---|---|---|\n{rows}\n\n"
        f"## Not so\n{found}\n"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
