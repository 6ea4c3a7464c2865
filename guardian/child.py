"""Runs the rank as a child process: starts it, reports how it is, and leaves nothing of it.

The kernel kills the rank when the guardian dies. That is sound because a guardian has one thread: the kernel looks at
the thread that forked, not at the process. A guardian itself watches the process that has started it. On Linux alone;
elsewhere the kernel does neither, and there is no /proc.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LINUX = sys.platform == "linux"
PDEATHSIG, SUBREAPER = 1, 36
FLAGS, EXIT_CODE, PF_EXITING = 6, 49, 4
"""Two fields of /proc/PID/stat, counted after the name, and a flag in the first."""
HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
"""Signals that a guardian handles, but for those that it was started to ignore. Its child starts with the defaults of
the others.
"""
PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores by itself, and that programs expect with their defaults."""
ATTACH = "--attach"
"""Names the process to be guarded, in the command line of a guardian that was asked for from inside of it."""
become: Callable[[str, list[str], dict[str, str]], object] = os.execvpe
"""Turns the child into its program; tests put something else here."""


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, on Linux."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Watched:
    """Watches a process that is not a child, such as the launcher: the process, and not the thread that forked."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is no such process. 0, a parent in another namespace, never ends."""
        self.pid, self.handle = pid, -1
        if pid <= 0 or not LINUX:
            return
        try:
            self.handle = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError:  # a kernel before 5.3, or a sandbox
            return

    def ended(self) -> bool:
        """Return True if it has ended, or is about to: its pipes close before its parent can reap it."""
        if self.pid <= 0:
            return False
        if self.handle >= 0:
            return bool(select.select([self.handle], [], [], 0)[0]) or _exiting(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # it has another user
        return _exiting(self.pid)


def _exiting(pid: int) -> bool:
    """Return True if the kernel takes a process down. /proc/PID/stat needs no lock that a process could hold."""
    return _leaving(f"/proc/{pid}/stat") and all(
        _leaving(f"/proc/{pid}/task/{task}/stat") for task in _listed(f"/proc/{pid}/task")
    )


def _leaving(path: str) -> bool:
    facts = read(path).rpartition(")")[2].split()
    return len(facts) > FLAGS and bool(int(facts[FLAGS]) & PF_EXITING)


class Child:
    """Runs a program as this process's child."""

    def __init__(self, program: Sequence[str], environ: Mapping[str, str], helpers: set[int]) -> None:
        """Start the program. Raises OSError where there is none.

        `helpers` are further children of this process, which are no part of the program.
        """
        prctl(SUBREAPER, 1)  # so that what a killed rank leaves behind comes to us
        self._helpers = helpers
        read, write = os.pipe()  # closed by a program that has started, else it tells the error
        me = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become(program, environ, me, write)
        os.close(write)
        with os.fdopen(read, "rb") as failed:
            number = failed.read()
        self.status: int | None = None
        self.stopped = False
        self.how = ""
        """Says how it ended, where more is known than the status."""
        if number:
            os.waitpid(self.pid, 0)
            raise OSError(int(number), os.strerror(int(number)), program[0])

    def reap(self) -> bool:
        """Reap children that have ended. Return True if the program is among them, now or before."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return self.status is not None
            if pid == 0:
                return self.status is not None
            if not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
                self._helpers.discard(pid)
            if pid != self.pid:
                continue
            if os.WIFSTOPPED(status):
                self.stopped = True
            elif os.WIFCONTINUED(status):
                self.stopped = False
            else:
                self.status = os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)  # not reaped, so that the id is still its own

    def dying(self) -> int:
        """Return the exit status with which the kernel takes the program down; 0 while it does not, or if all is well.

        Giving back gigabytes takes a while, and the parent gets its signal only after that.
        """
        if self.status is not None:
            return 0
        facts = read(f"/proc/{self.pid}/stat").rpartition(")")[2].split()
        if len(facts) <= EXIT_CODE or not int(facts[FLAGS]) & PF_EXITING:
            return 0
        return os.waitstatus_to_exitcode(int(facts[EXIT_CODE]))

    @property
    def alive(self) -> bool:
        return self.status is None and not self.dying()

    def gone(self) -> bool:
        """Kill what the program has left behind. Return True if nothing is left, itself included."""
        if not self.reap():
            return False
        left = self._left()
        for pid in left:
            if not is_beside(pid):
                _kill(pid)
        return not left

    def _left(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if pid not in self._helpers] if LINUX else []

    def end(self, seconds: float = 5.0) -> None:
        """Kill the program and what it leaves behind, and wait for their end."""
        self.send(signal.SIGKILL)
        until = time.monotonic() + seconds
        while not self.gone() and time.monotonic() < until:
            time.sleep(0.001)


def end_all(left: Callable[[], list[int]], seconds: float) -> None:
    """Kill the children that `left` returns, again and again, until there are none or the time is over."""
    until = time.monotonic() + seconds
    while (pids := left()) and time.monotonic() < until:
        for pid in pids:
            _kill(pid)
        time.sleep(0.001)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _become(program: Sequence[str], environ: Mapping[str, str], guardian: int, failed: int) -> None:
    """Turn this child into the program, to die with the guardian. Write the error number to `failed` if that fails."""
    try:
        prctl(PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it died before the kernel was asked
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in HELD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, and a shell's `&`, mean the program
                signal.signal(number, signal.SIG_DFL)
        for number in PYTHON:
            signal.signal(number, signal.SIG_DFL)
        become(program[0], list(program), dict(environ))
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(127)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def children(pid: int) -> Iterator[int]:
    """Yield the processes that `pid` has started or inherited, and that are not reaped."""
    for task in _listed(f"/proc/{pid}/task"):
        for number in read(f"/proc/{pid}/task/{task}/children").split():
            yield int(number)


def is_beside(pid: int) -> bool:
    """Return True for a guardian that was asked for from inside of its rank, or its supervisor: it ends by itself."""
    words = read(f"/proc/{pid}/cmdline").split("\0")
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    return here in words and any(word.startswith(f"{ATTACH}=") for word in words)


def descends(pid: int, ancestor: int) -> bool:
    """Return True if `pid` is `ancestor`, or was started by it or by its descendants."""
    for _ in range(64):
        if pid == ancestor:
            return True
        try:
            # the name, in parentheses, may hold anything; the state and the parent's number follow it
            pid = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
        except (IndexError, ValueError):
            return False
    return False


def stopped(pid: int) -> bool:
    """Return True if a signal has stopped a process; a debugger's stop does not count."""
    return pid > 0 and read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] == ["T"]


def traced(pid: int) -> bool:
    """Return True if a debugger is attached to a process."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("TracerPid:"):
            return line.split()[1] != "0"
    return False


def how_it_ended(status: int) -> str:
    """Return an exit status in words: `died by SIGKILL`, or `exited with 1`."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"died by {signal.Signals(-status).name}"
    except ValueError:
        return f"died by signal {-status}"


def read(path: str, limit: int = 1 << 16) -> str:
    """Read a small file of the kernel. Return an empty text where there is none, or it may not be read."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
