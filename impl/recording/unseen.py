"""Finds processes of a recorded program that have loaded torch, and not the recorder.

Nothing reaches a Python that is started with `-S`, `-I` or `-E`, or without the environment. It cannot be recorded, and
must not be silence: the process that records looks at what its program's processes have in memory. Where the import
hook is, there are a region and an open file of a name of ours, which a forked child keeps and a new program loses.
Linux alone: elsewhere nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

REGION = b"/memfd:genlock-recorder"
"""Name of the region, which `attach` makes before the program begins."""
TORCH = b"/libtorch_python.so"
EVERY = 0.5
"""Seconds between two looks; more where a look takes long."""


class Process(NamedTuple):
    """Holds a process that is not recorded."""

    pid: int
    command: str


class Unseen:
    """Looks again and again at the processes below one, and keeps those that are not recorded."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.found: dict[int, Process] = {}
        self._next = 0.0

    def look(self) -> None:
        """Look once, if it is time."""
        begin = time.monotonic()
        if begin < self._next:
            return
        for pid in descendants(self.root):
            if pid not in self.found and _is_unseen(pid):
                self.found[pid] = Process(pid, command_of(pid))
        self._next = time.monotonic() + max(EVERY, 20 * (time.monotonic() - begin))


def descendants(root: int) -> list[int]:
    """Return a process and all those that it started, directly or not, and that are still below it."""
    parents: dict[int, list[int]] = {}
    for pid, parent in _parents():
        parents.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += parents.get(pid, ())
    return found


def _parents() -> Iterator[tuple[int, int]]:
    if not os.path.isdir("/proc/self"):
        return
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


def command_of(pid: int) -> str:
    """Return the command line of a process, shortened; empty where it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(400).replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""


def _is_unseen(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            maps = file.read()
    except OSError:
        return False
    return TORCH in maps and REGION not in maps and not _has_file(pid)


def _has_file(pid: int) -> bool:
    """Return True where a process has the region's file open, which Python does not close when it ends."""
    try:
        files = os.listdir(folder := f"/proc/{pid}/fd")
    except OSError:
        return True  # it is gone, or not ours to look at
    for file in files:
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{file}").encode().startswith(REGION):
                return True
    return not files
