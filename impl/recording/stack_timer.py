"""Writes the stacks of a process that has issued nothing for a while, though nothing in it moves any more.

A thread in Python would stand still with it. The timer of `faulthandler` needs no GIL: it is set anew as the process
goes on, and fires where it does not. The stacks lie beside the trace, `rank<N>.stacks.txt`, where `genlock replay`
finds them; a process that goes on takes them back. A process has one such timer: a program that sets it has it.

Left out: reading stacks (`traces.importers.logs.stacks`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEVER = 1 << 62
SECOND = 1_000_000_000


class _Timer:
    """Shares faulthandler's timer with the program."""

    def __init__(self) -> None:
        self.start, self.stop = faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later
        self.theirs = False
        """True while the program has set it for itself."""

    def follow(self, put_in_place_of: Callable[[Any, Any], None]) -> None:
        """See from now on when the program sets the timer, and when it lets go of it."""

        @functools.wraps(self.start)
        def dump_traceback_later(*given: Any, **named: Any) -> Any:
            self.theirs = True
            return self.start(*given, **named)

        @functools.wraps(self.stop)
        def cancel_dump_traceback_later() -> Any:
            self.theirs = False
            return self.stop()

        put_in_place_of(self.start, dump_traceback_later)
        put_in_place_of(self.stop, cancel_dump_traceback_later)


timer = _Timer()


class StackTimer:
    """Writes the stacks of this process to a file, `after` seconds in which `moved` was not called."""

    def __init__(self, path: Path, after: float) -> None:
        self.path, self.after = path, after
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._process = os.getpid()

    def moved(self, time_ns: int) -> int:
        """Take note that the process goes on, now (monotonic); returns from when on this is to be called again."""
        if self._file == -1 or os.getpid() != self._process:
            return NEVER
        if not timer.theirs:
            if os.fstat(self._file).st_size:
                os.ftruncate(self._file, 0)
            timer.start(self.after, file=self._file)
        return time_ns + int(self.after * SECOND / 2)

    def close(self, *, keep: bool) -> None:
        """Write no stacks any more; those that are written stay where they are to be kept."""
        file, self._file = self._file, -1
        if file == -1 or os.getpid() != self._process:
            return
        if not timer.theirs:
            timer.stop()
        with contextlib.suppress(OSError):
            if not keep or not os.fstat(file).st_size:
                self.path.unlink()
        os.close(file)
