"""Stands above a guardian, as the process that the launcher has started, and outlives it by a moment.

A guardian that is killed takes its rank along; what the rank has started would live on. It all comes to this process
then, which kills it. It passes the launcher's signals on, and ends as the guardian ends. When it is killed itself, the
guardian ends the rank (`guardian`). It imports next to nothing, and shares its memory with the guardian that it forks.
"""

from __future__ import annotations

import os
import signal
import time
from importlib import import_module

from .attached import ASKED_TO, attached
from .child import PDEATHSIG, SUBREAPER, children, end_all, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PASSED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
KERNEL = 0x80
"""`si_code` of a signal that the terminal sends to a whole group: the guardian has it, too."""
LOOK = 2.0
ORPHANED = 15.0
"""Seconds after the launcher's end in which a guardian ends, or it is stopped and is killed."""


def main(arguments: Sequence[str]) -> int:
    """Run a guardian below this process. Return its exit status, in either process."""
    rank = attached(list(arguments))
    if not rank:
        return supervise(lambda launcher: import_module(".guardian", __package__).main(arguments, launcher))
    if os.fork():  # nobody's child: the rank has asked for it, and is not to wait for its end
        return 0
    return _beside(rank, arguments)


def _beside(rank: int, arguments: Sequence[str]) -> int:
    """Supervise a guardian of a rank that runs already, which is killed where its guardian is."""
    for number in ASKED_TO:  # they are meant for the rank, whose end says what follows
        signal.signal(number, signal.SIG_IGN)
    try:
        handle = os.pidfd_open(rank)
    except ProcessLookupError:
        return 0

    def lost() -> None:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return

    return supervise(lambda launcher: import_module(".guardian", __package__).main(arguments, launcher), 0, lost)


def supervise(run: Callable[[int], int], launcher: int | None = None, lost: Callable[[], object] = lambda: None) -> int:
    """Fork, and return `run(launcher)` in the child. Return its exit status here, once nothing of it is left.

    `launcher` is the parent, unless there is none to be watched (0). `lost` is called where the guardian was killed.
    """
    launcher = os.getppid() if launcher is None else launcher
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    passed = {number for number in PASSED if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed, signal.SIGCHLD})
    prctl(SUBREAPER, 1)
    guardian = os.fork()
    if guardian == 0:
        prctl(PDEATHSIG, signal.SIGCONT)  # a guardian that is stopped goes on, sees that it is alone, and ends
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return run(launcher)
    status = _wait(guardian, launcher, {*passed, signal.SIGCHLD})
    if status < 0:
        lost()
    end_all(lambda: list(children(os.getpid())), 5.0)
    if status < 0:  # the launcher is to see how it ended
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    return status if status >= 0 else 128 - status


def _wait(guardian: int, launcher: int, signals: set[signal.Signals]) -> int:
    """Pass signals on until the guardian has ended. Return its exit status, negative for a signal."""
    orphaned = 0.0
    while True:
        came = signal.sigtimedwait(signals, LOOK)
        if came is not None and came.si_signo != signal.SIGCHLD and came.si_code != KERNEL:
            os.kill(guardian, came.si_signo)  # not reaped, so that the id is still its own
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == guardian:
                return os.waitstatus_to_exitcode(status)
            if pid == 0:
                break
        if launcher and os.getppid() != launcher:
            orphaned = orphaned or time.monotonic()
            if time.monotonic() - orphaned > ORPHANED:
                os.kill(guardian, signal.SIGKILL)
