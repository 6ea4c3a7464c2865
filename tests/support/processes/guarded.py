"""A rank for the tests of the guardian: no torch, so that it starts at once. Its script comes by the environment.

`SCRIPT` is JSON: rank to a list of [word, argument], done in order; `*` is for the ranks that have none of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genlock.guardian.status_page import EDITIONS, RECORD, SLOT, VARIABLE
from genlock.impl.rank.heartbeat import Beat

beat = Beat.open()


def work(seconds: float) -> None:
    """With a beat every 10 ms."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
        beat.progress()


def loop(_: object) -> None:
    while True:
        pass


def gil(_: object) -> None:
    """Hold the interpreter in C, whatever signal comes: a mutex that is locked twice."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def torn(_: object) -> None:
    """Stall for ever in the middle of a write of the page: half a slot is written."""
    half = RECORD.size // 2
    with open(os.environ[VARIABLE], "r+b", buffering=0) as file:
        written = file.read(2 * SLOT)
        file.seek((max(EDITIONS.unpack_from(written)) + 1) % 2 * SLOT + half)
        file.write(b"?" * half)
    loop(None)


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def helper(_: object) -> None:
    """Leave a process behind that outlives its parent."""
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", *sys.argv[1:]])


def go_on(path: str) -> None:
    """Work until there is such a file."""
    while not Path(path).exists():
        work(0.05)


def meet(path: str) -> None:
    """Go on once every rank has come here."""
    Path(f"{path}{os.environ['RANK']}").touch()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        go_on(f"{path}{rank}")


def keep(path: str) -> None:
    beat.last_words(lambda: Path(path).write_text("kept"))


def fail(_: object) -> None:
    raise RuntimeError("a mistake")


WORDS: dict[str, Callable[[Any], Any]] = {
    "phase": lambda name: beat.phase(name),
    "allowed": lambda seconds: beat.phase("decode", deadline=seconds),
    "commit": beat.commit,
    "work": work,
    "sleep": time.sleep,
    "enter": lambda rank: beat.enter() if rank is None else beat.enter(rank),
    "leave": lambda _: beat.leave(),
    "kill": die,
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "loop": loop,
    "gil": gil,
    "torn": torn,
    "exit": sys.exit,
    "raise": fail,
    "helper": helper,
    "until": go_on,
    "meet": meet,
    "keep": keep,
    "slow": lambda _: beat.last_words(lambda: time.sleep(60)),
    "traced": lambda _: ctypes.CDLL(None).ptrace(0, 0, 0, 0),
    "say": lambda text: print(text, flush=True),
}

if __name__ == "__main__":
    script = json.loads(os.environ["SCRIPT"])
    for word, argument in script.get(os.environ["RANK"], script.get("*", [])):
        WORDS[word](argument)
