"""Reads what the kernel tells of a process, through a handle that a process id given anew cannot fool.

Linux alone. Left out: which processes are ranks (`ranks`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import UnreadableInput

LIMIT = 1 << 20
"""Bytes that are read of a file of the kernel's."""
MAPS = 32 << 20
_TORCH = re.compile(rb"(/[^\n]*/torch)/lib/libtorch(?:_cpu|_python)?\.so")

_NCCL = re.compile(rb"/libnccl[^/\n]*\.so|/libtorch_cuda\.so|/librccl")


class OpenFile(NamedTuple):
    """Identifies what one of a process's descriptors leads to."""

    target: str
    """Path, or `pipe:[123]`, `socket:[123]`."""
    regular: bool
    device: int
    inode: int

    @property
    def key(self) -> str:
        """Return what the same file has in another process."""
        return f"{self.device:x}-{self.inode:x}"


class Process:
    """Holds a process open: once it has ended nothing is read, whoever has its number then."""

    def __init__(self, pid: int) -> None:
        """Raises OSError where there is none, or it may not be looked at."""
        self.pid = pid
        self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._folder)
        """Lets go of the process; so does whoever forgets it."""

    def read(self, name: str, limit: int = LIMIT) -> bytes:
        """Return a file of its folder in /proc, at most `limit` bytes. Raises OSError."""
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            parts: list[bytes] = []
            while limit > 0 and (part := os.read(file, min(limit, 1 << 16))):
                parts.append(part)
                limit -= len(part)
            return b"".join(parts)
        finally:
            os.close(file)

    def link(self, name: str) -> str:
        """Return where a link in its folder in /proc leads. Raises OSError."""
        return os.readlink(name, dir_fd=self._folder)

    def names(self, name: str) -> list[str]:
        """Return the names in a folder of its folder in /proc; none where it may not be looked at."""
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError:
            return []
        try:
            return os.listdir(folder)
        except OSError:
            return []
        finally:
            os.close(folder)

    def stat(self) -> list[str]:
        """Return the fields of `stat` from the state on. Raises OSError."""
        # the name, in parentheses, may hold anything
        fields = self.read("stat").decode(errors="replace").rpartition(")")[2].split()
        if len(fields) < 20:
            raise ProcessLookupError(f"process {self.pid} is gone")
        return fields

    @property
    def parent(self) -> int:
        """Return the process that started it, or inherited it. Raises OSError."""
        return int(self.stat()[1])

    @property
    def start(self) -> int:
        """Return when it started, in ticks since the machine did. Raises OSError."""
        return int(self.stat()[19])

    @property
    def state(self) -> str:
        """Return the letter of its state: T stopped by a signal, t held by a debugger, Z ended. Raises OSError."""
        return self.stat()[0]

    @property
    def alive(self) -> bool:
        """Return True while it has not ended."""
        try:
            return self.state not in "ZX"
        except OSError:
            return False

    def switches(self) -> str:
        """Return how often its main thread was taken off a processor: alike twice, it never ran in between.

        Empty while it runs. Raises OSError.
        """
        text = self.read(f"task/{self.pid}/status").decode(errors="replace")
        counts = [line.split()[-1] for line in text.splitlines() if "ctxt_switches" in line]
        return "" if re.search(r"^State:\s*R", text, re.MULTILINE) else " ".join(counts)

    def waits_in(self) -> str:
        """Return the function of the kernel in which its main thread waits.

        Empty where it runs, or that may not be looked at. Raises OSError.
        """
        name = self.read("wchan").decode(errors="replace").strip("\0\n ")
        return "" if name == "0" else name

    def status(self, name: str) -> str:
        """Return a field of `status`; empty where it has none. Raises OSError."""
        for line in self.read("status").decode(errors="replace").splitlines():
            field, _, value = line.partition(":")
            if field == name:
                return value.strip()
        return ""

    @property
    def user(self) -> int:
        """Return the number of the user whose rights it has. Raises OSError."""
        return int((self.status("Uid").split() or ["-1", "-1"])[1])

    def environment(self) -> dict[str, str]:
        """Return the environment with which it was started. Raises OSError."""
        pairs = (entry.partition(b"=") for entry in self.read("environ", 4 * LIMIT).split(b"\0"))
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, sign, value in pairs if sign}

    def arguments(self) -> list[str]:
        """Return its command line. Raises OSError."""
        return self.read("cmdline").decode(errors="replace").rstrip("\0").split("\0")

    def torch(self) -> tuple[str, bool]:
        """Return the folder of the torch that it has loaded, empty where it has none, and whether it has NCCL.

        Raises OSError.
        """
        maps = self.read("maps", MAPS)
        found = _TORCH.search(maps)
        return found[1].decode(errors="replace") if found else "", _NCCL.search(maps) is not None

    def open_files(self) -> Iterator[tuple[int, str]]:
        """Yield its descriptors, with where each leads."""
        for name in self.names("fd"):
            with contextlib.suppress(OSError):
                yield int(name), self.link(f"fd/{name}")

    def open_file(self, descriptor: int) -> OpenFile:
        """Return what a descriptor leads to. Raises OSError."""
        about = os.stat(f"fd/{descriptor}", dir_fd=self._folder)
        return OpenFile(self.link(f"fd/{descriptor}"), stat.S_ISREG(about.st_mode), about.st_dev, about.st_ino)

    def reopen(self, descriptor: int) -> int:
        """Open anew, for reading, the regular file that a descriptor of it leads to. Raises OSError.

        Nothing else is opened: what is read from a pipe is lost to whom it was meant for.
        """
        about = self.open_file(descriptor)
        if not about.regular:
            raise UnreadableInput("no regular file", where=about.target)
        file = os.open(
            f"fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._folder
        )
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (about.device, about.inode):
            os.close(file)
            raise UnreadableInput("another file by now", where=about.target)
        return file

    def path(self, path: str) -> str:
        """Return by which path of ours an absolute path of the process is reached: it may live in a container."""
        try:
            same = self.link("ns/mnt") == os.readlink("/proc/self/ns/mnt")
        except OSError:
            same = True
        return path if same else f"/proc/{self.pid}/root{path}"

    def others_sleep(self) -> bool:
        """Return True if none of its threads but the main one runs now. Raises OSError."""
        threads = [name for name in self.names("task") if name != str(self.pid)]
        # the name, in parentheses, may hold anything
        return all(self.read(f"task/{name}/stat").rpartition(b")")[2].split()[:1] == [b"S"] for name in threads)

    def catches(self, number: int) -> bool:
        """Tell whether it handles a signal itself, now. Raises OSError."""
        return bool(int(self.status("SigCgt") or "0", 16) >> (number - 1) & 1)

    def send(self, number: int) -> None:
        """Send a signal that the process handles itself. Raises OSError where it does not, or is not this process."""
        handle = os.pidfd_open(self.pid)
        try:
            # asked after the handle is there: if our folder still answers, the handle is of the same process
            if not self.alive or not self.catches(number):
                raise ProcessLookupError(f"process {self.pid} does not handle {name_of(number)}")
            signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def name_of(number: int) -> str:
    """Return what a signal is called."""
    return signal.Signals(number).name if number in [int(known) for known in signal.Signals] else f"signal {number}"


def every() -> list[int]:
    """Return the numbers of all processes."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
