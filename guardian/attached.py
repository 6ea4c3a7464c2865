"""Watches a rank that has asked for its guardian from inside: it runs already, and is no child of this process.

It says itself when it leaves its job, and what it raised at its end. Where it cannot, its process's end is seen, and
the exit status for as long as its parent has not asked for it. Left out: that the kernel ends such a rank with its
guardian; `supervisor` does.
"""

from __future__ import annotations

import os
import select
import signal
import time

from .child import ATTACH, EXIT_CODE, FLAGS, PF_EXITING, children, how_it_ended, is_beside, read
from .exit_cause import PEER_DIED
from .status_page import HAS_FAILED, HAS_LEFT, HAS_LOST, Page

ASKED_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which a launcher ends its ranks: of one that ends by these, peers may wait, and it is no failure yet."""
UNKNOWN = -128
"""Stands for the exit status of a process that ended without a word, and was reaped at once."""


class Attached:
    """Holds the process that a guardian was asked to guard; as `Child`, as far as that goes."""

    def __init__(self, pid: int, memory: memoryview) -> None:
        """Raises OSError where there is no such process any more."""
        self.pid, self._memory = pid, memory
        self._handle = os.pidfd_open(pid)
        self.status: int | None = None
        self.stopped = False
        self.how = ""

    def reap(self) -> bool:
        """Return True if the rank has left its job, or has ended; `status` and `how` say how."""
        if self.status is None:
            page = Page.read(self._memory)
            if page is not None and page.flags & HAS_LEFT:
                self.status = 0
            elif page is not None and page.flags & HAS_FAILED:
                self.status, self.how = PEER_DIED if page.flags & HAS_LOST else 1, page.commit
            elif (status := _exit_status(self.pid)) is not None:
                self._take(status)
            elif self._ended():
                self._take(UNKNOWN)
        return self.status is not None

    def _take(self, status: int) -> None:
        asked = -status in ASKED_TO
        self.status = 0 if asked else status
        self.how = "ended without a word" if status == UNKNOWN else how_it_ended(status)

    def _ended(self) -> bool:
        return bool(select.select([self._handle], [], [], 0)[0])

    def send(self, number: int) -> None:
        """Send a signal; SIGKILL to what the rank has started as well. One that has left, or is ending, gets none."""
        if self.status is not None:
            return
        below = _below(self.pid) if number == signal.SIGKILL else []
        try:
            signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            return
        for pid in below:
            if not is_beside(pid):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

    def dying(self) -> int:
        """Return 0: this is seen once it has ended."""
        return 0

    @property
    def alive(self) -> bool:
        return not self.reap()

    def gone(self) -> bool:
        """Return True once the rank has ended, or is none any more."""
        return self.reap()

    def end(self, seconds: float = 5.0) -> None:
        """Kill the rank if it is one still: nobody would guard it."""
        if self.reap():
            return
        self.send(signal.SIGKILL)
        until = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < until:
            time.sleep(0.001)


def attached(arguments: list[str]) -> int:
    """Return the process that a guardian is to attach to; 0 where it starts its rank itself."""
    for word in arguments:
        name, _, value = word.partition("=")
        if name in ("--", ATTACH):
            return int(value) if name == ATTACH and value.isdecimal() else 0
    return 0


def _exit_status(pid: int) -> int | None:
    """Return the exit status of a process that the kernel takes down, negative for a signal; None of any other.

    Its connections close before its end can be waited for: whoever is asked for the cause then has to know it.
    """
    facts = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(facts) <= EXIT_CODE or not int(facts[FLAGS]) & PF_EXITING:
        return None
    return os.waitstatus_to_exitcode(int(facts[EXIT_CODE]))


def _below(pid: int) -> list[int]:
    """Return the processes that a process has started, directly or not, and that are still below it."""
    found = [pid]
    for one in found:
        found += children(one)
    return found[1:]
