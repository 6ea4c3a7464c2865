"""Does to a process what OM-13 asks: it ends, or stands still, in four ways; or its guardian or the launcher dies.

It is done by the rank itself, so that it happens exactly where it is meant to. When it happened stands in
`struck.json` beside the traces. Left out: when it is due (`inject`), and what must follow (`breakit`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import msgspec

from ...errors import UsageError
from ...guardian.status_page import VARIABLE

STRUCK = "struck.json"
OUTLIVES = 60.0
"""Seconds that a rank waits for the end that its guardian's or the launcher's death must bring it."""


class Struck(msgspec.Struct, frozen=True):
    """Says when a fault came to a rank, by the monotonic clock of its host."""

    rank: int
    time_ns: int


def note(out: Path, rank: int) -> None:
    """Keep the moment; the first one of a run counts."""
    with (out / f"{STRUCK}.{rank}").open("wb") as file:
        file.write(msgspec.json.encode(Struck(rank, time.monotonic_ns())))
    if not (out / STRUCK).exists():
        (out / f"{STRUCK}.{rank}").rename(out / STRUCK)


def struck(out: Path) -> Struck | None:
    """Return when the fault of a finished run came; None where it is not known."""
    path = out / STRUCK
    return msgspec.json.decode(path.read_bytes(), type=Struck) if path.exists() else None


def blow(kind: str, launcher: int) -> None:
    """Strike this process. Raises UsageError where there is no guardian, or no launcher, to be killed."""
    me = os.getpid()
    if kind == "kill":
        os.kill(me, signal.SIGKILL)
    elif kind == "stop":
        os.kill(me, signal.SIGSTOP)
    elif kind == "loop":
        while True:
            pass
    elif kind == "gil":
        # C code that never gives the interpreter back, also after a signal: a mutex that is locked twice
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    else:
        victim = launcher if kind == "launcher" else os.getppid() if VARIABLE in os.environ else 0
        if not victim:
            raise UsageError(f"there is no {kind} to kill", where="--inject OM-13", do="use `genlock run`")
        os.kill(victim, signal.SIGKILL)
        time.sleep(OUTLIVES)
