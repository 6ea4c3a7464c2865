"""What one rank of a program does wrong, in one step: `python PROGRAM KIND WAY`.

The line that a verdict has to name is marked: `LINE raise`, `LINE extra` and so on, or `LINE step` where the rank
leaves out what it would have done there.
"""

from __future__ import annotations

import os
import signal
import sys
import time

KIND, WAY = os.environ.get("FRAMEWORK", "").split() or (sys.argv[1], sys.argv[2])  # an actor has other arguments
BAD, AT, STEPS = 1, 3, 6


def strikes(rank: int, step: int, *ways: str) -> bool:
    """True where this rank is to do one of these wrong, in this step."""
    return WAY in ways and (rank, step) == (BAD, AT)


def end(rank: int, step: int) -> None:
    """Kill or stop this rank, if it is its turn."""
    if strikes(rank, step, "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if strikes(rank, step, "stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if strikes(rank, step, "sleep"):
        time.sleep(3600)
