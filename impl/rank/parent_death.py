"""Ends a process when the one that started it dies, so that no rank outlives its launcher. Linux; elsewhere a no-op."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

PDEATHSIG = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def die_with_parent(parent: int | None = None) -> None:
    """Have this process killed when its parent dies. A parent that died before it could be watched ends it at once.

    The kernel does that without this process's help, even while C code holds the interpreter. But it does it at the
    end of the *thread* that forked. So with `parent`, a process id, that thread has to outlive this process; the call
    may stand before an exec. Without it, the kernel is asked only if the parent's main thread forked, as a guardian's
    always does. Else a thread of this process watches the parent, and needs the interpreter for an instant.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    if parent is not None or _of_main_thread(expected, os.getpid()):
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    else:
        _watch(expected)
    if os.getppid() != expected:
        os._exit(1)


def _of_main_thread(parent: int, child: int) -> bool:
    """Return True if the main thread of a process has forked another; True where the kernel keeps no such record."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            return str(child) in file.read().split()
    except OSError:
        return True


def _watch(parent: int) -> None:
    """Have a thread of this process end it when the parent has ended."""
    try:
        handle = os.pidfd_open(parent)
    except OSError:  # it has gone, which the caller sees, or the kernel is older than 5.3
        return

    def wait() -> None:
        select.select([handle], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="genlock-parent", daemon=True).start()
