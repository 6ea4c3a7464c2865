"""Ranks as `rank_zygote` forks them, one of which is struck at a place of its table.

`strike.json` beside the config says how. As the rank comes to `event` for the `nth` time, before it makes the move,
it is killed, stopped, raises, or stalls. Of kind `refuse`, a step of preflight raises: `event` is a function of it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import rank_zygote
from genlock.impl.chunk import preflight
from genlock.impl.jobs import rank_main

STOPPED_FOR = 8.0
"""Seconds after which a stopped rank is killed, so that nothing is left of a run."""


class Strike(msgspec.Struct, frozen=True):
    """Where a rank is struck, and how."""

    rank: int
    kind: str
    event: str
    nth: int = 1


class Striker:
    """Strikes this process when it comes to the place."""

    def __init__(self, strike: Strike) -> None:
        self.strike, self.left = strike, strike.nth

    def reach(self, event: str) -> None:
        if event == self.strike.event:
            self.left -= 1
            if self.left == 0:
                self.hit()

    def hit(self) -> None:
        if self.strike.kind == "raise":
            raise RuntimeError("injected")
        if self.strike.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.strike.kind == "stop":
            if os.fork() == 0:
                time.sleep(STOPPED_FOR)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)


def strike_here(strike: Strike) -> None:
    """Have this rank struck."""
    striker = Striker(strike)
    if strike.kind == "refuse":
        _refuse(strike)
        return
    watched: Any = rank_main._Watched
    step, enter = watched.step, watched.enter

    def struck_step(monitor: Any, event: str, data: Any = None) -> None:
        striker.reach(event)
        step(monitor, event, data)

    def struck_enter(monitor: Any, event: str) -> Any:
        striker.reach(event)
        return enter(monitor, event)

    watched.step, watched.enter = struck_step, struck_enter


def _refuse(strike: Strike) -> None:
    original, left = getattr(preflight, strike.event), [strike.nth]

    def fails(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("injected")
        return original(*given, **named)

    setattr(preflight, strike.event, fails)


def child(number: int, job: dict[str, Any], port: int) -> None:
    """One rank, to its end."""
    path = Path(job["config"]).with_name("strike.json")
    strike = msgspec.json.decode(path.read_bytes(), type=Strike)
    if strike.rank == number:
        strike_here(strike)
    live(number, job, port)


live = rank_zygote.child
rank_zygote.child = child

if __name__ == "__main__":
    rank_zygote.main()
