"""Ends a process when the one that started it dies, so that no rank outlives its launcher. Linux; elsewhere a no-op."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PDEATHSIG = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies. `parent` is its process id, where it is known.

    A parent that died before it could be watched ends this process at once.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected:
        os._exit(1)
