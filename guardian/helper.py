"""Runs what may block in processes of their own, for so long at most: files, /proc, the resolver, a full stderr.

A process and not a thread: one that a hung file system holds cannot be killed, and a process with such a thread cannot
end. A guardian therefore touches nothing that can block, and takes in by a pipe what its helpers found.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from .child import HELD, PDEATHSIG, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Write = Callable[[str], None]
    Work = Callable[[Write], None]
    Then = Callable[[str, bool], None]

MOST = 1 << 20
"""Bytes that a helper may hand over."""
SPEAKS = 5.0
"""Seconds that a line may take to be written to stderr."""
DESCRIPTORS = 1 << 12


class Helpers:
    """Holds the helpers that run. `pids`, shared with `Child`, are theirs until they are reaped."""

    def __init__(self, selector: selectors.BaseSelector, pids: set[int]) -> None:
        self._selector, self._pids = selector, pids
        self._running: list[_Helper] = []
        self._lines: list[str] = []
        self._speaks = False

    @property
    def busy(self) -> bool:
        """Is True while a helper runs whose work is waited for."""
        return any(one.awaited for one in self._running)

    def run(self, work: Work, seconds: float, then: Then, keep: Sequence[int] = (), *, awaited: bool = True) -> None:
        """Start `work(write)` in a process that has `keep` as its only descriptors.

        Call `then(text, whole)` with what it wrote once it has ended, or after so many seconds: `whole` is False where
        it was cut off, and the text comes as far as it came. If no process can be started, that is at once. A guardian
        ends before work that is not `awaited`.
        """
        try:
            one = _Helper(work, time.monotonic() + seconds, then, keep, awaited)
        except OSError:
            then("", False)
            return
        self._pids.add(one.pid)
        self._running.append(one)
        self._selector.register(one.output, selectors.EVENT_READ, lambda: self._read(one))

    def look(self, now: float) -> None:
        """Cut off whatever has had its time."""
        for one in [one for one in self._running if now > one.until]:
            while one.read() and len(one.text) < MOST:
                pass
            self._end(one, one.ended)

    def say(self, line: str) -> None:
        """Print a line, after those before it. While stderr takes nothing, what is not yet printed is dropped."""
        self._lines.append(line)
        self._speak()

    def _speak(self) -> None:
        if not self._lines or self._speaks:
            return
        line, self._speaks = self._lines.pop(0), True
        self.run(lambda _: say(line), SPEAKS, self._spoken, keep=(2,))

    def _spoken(self, _: str, whole: bool) -> None:
        self._speaks = False
        if not whole:
            del self._lines[:-1]
        self._speak()

    def _read(self, one: _Helper) -> None:
        one.read()
        if one.ended or len(one.text) > MOST:
            self._end(one, one.ended)

    def _end(self, one: _Helper, whole: bool) -> None:
        self._running.remove(one)
        self._selector.unregister(one.output)
        os.close(one.output)
        if not whole and one.pid in self._pids:
            os.kill(one.pid, signal.SIGKILL)  # not reaped, so that the id is still its own
        one.then(one.text.decode(errors="surrogateescape"), whole)


class _Helper:
    def __init__(self, work: Work, until: float, then: Then, keep: Sequence[int], awaited: bool) -> None:
        self.until, self.then, self.awaited = until, then, awaited
        self.text = b""
        self.ended = False
        self.output, write = os.pipe()
        guardian = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.output)
            os.close(write)
            raise
        if self.pid == 0:
            _work(work, write, guardian, {write, *keep})
        os.close(write)
        os.set_blocking(self.output, False)

    def read(self) -> bool:
        """Take in one piece. Return True if there was one; it has `ended` if none will follow."""
        try:
            raw = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return False
        self.text += raw
        self.ended = not raw
        return bool(raw)


def _work(work: Work, output: int, guardian: int, keep: set[int]) -> None:
    """Do the work in this fork, and end with the guardian."""
    try:
        prctl(PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for held in HELD:
            signal.signal(held, signal.SIG_DFL if held == signal.SIGCHLD else signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in {0, 1, 2} - keep:
            os.dup2(nothing, number)
        for number in {number for number in _open() if number > 2} - keep:  # peers must see the guardian's end
            os.closerange(number, number + 1)
        work(lambda text: _write(output, text))
    except BaseException:
        os._exit(1)
    finally:
        os._exit(0)


def _open() -> set[int]:
    """Return the descriptors of this process; without /proc, all that it may have. To try each takes 40 ms."""
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}
    except OSError:
        return {*range(DESCRIPTORS)}


def _write(output: int, text: str) -> None:
    raw = text.encode(errors="surrogateescape")
    while raw:
        raw = raw[os.write(output, raw) :]


def say(text: str) -> None:
    """Print a line in one write, as other ranks write to the same place."""
    try:
        os.write(2, f"genlock: {text}\n".encode(errors="surrogateescape"))
    except OSError:
        return


def say_in_time(text: str) -> None:
    """Print a line, or give up after `SPEAKS` seconds."""
    selector = selectors.DefaultSelector()
    helpers = Helpers(selector, set())
    helpers.say(text)
    while helpers.busy:
        for key, _ in selector.select(0.01):
            key.data()
        helpers.look(time.monotonic())
