"""Writes one rank's trace, one line and one write an event, from any thread.

A write that fails (a full disk) is counted and told later in a `dropped` line: the rank goes on. A forked
child has its parent's recorder, and writes nothing with it.
Left out: seeing the operations that are recorded (`impl`).
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from .format import Cause, Dropped, Edge, End, Event, Group, TraceHeader, encode, name_of


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet."""

    def __init__(self, folder: Path, header: TraceHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._process = _process
        # a signal handler may record while its thread does
        self._lock = threading.RLock()
        self._due = encode(header)
        """What has to stand before the next line."""
        self._next = 0
        self._lost = 0
        self._ended = False
        self._write(-1, b"")
        self._lost = 0  # a header is no event

    def group(self, group: Group) -> None:
        """A group that the header does not have; it is written with the next event."""
        with self._lock:
            self._due += encode(group)

    def event(self, transition: str = "", edge: Edge = "step", state: str = "", phase: str = "", **facts: Any) -> int:
        """Record one event, and return its index; `facts` are further fields of `format.Event`."""
        if self._process is not _process:
            return -1
        with self._lock:
            index = self._next
            self._write(index, encode(Event(index, time.monotonic_ns(), transition, edge, state, phase, **facts)))
            return index

    def fill(self, form: bytes, time_ns: int, sequence: int, entered: int | None = None) -> int:
        """Record an event of which the line is there already but for its index and those numbers (`blank`).

        Returns its index. Where the same events come again and again, this takes half the time.
        """
        if self._process is not _process:
            return -1
        with self._lock:
            index = self._next
            numbers = (index, time_ns, sequence) if entered is None else (index, time_ns, sequence, entered)
            self._write(index, form % numbers)
            return index

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Record why the rank ends. Only the first call counts: what came later did not cause the end."""
        if self._process is not _process:
            return
        with self._lock:
            if not self._ended:
                self._ended = True
                end = End(self._next, time.monotonic_ns(), cause, exit, message, culprit)
                self._write(self._next, encode(end))

    def _write(self, index: int, line: bytes) -> None:
        """One write, so that a killed rank leaves whole lines; all of it, or else none."""
        self._next = index + 1
        if self._due or self._lost:
            line = self._due + (encode(Dropped(index - self._lost, self._lost)) if self._lost else b"") + line
        try:
            written = _put(self._file, line)
            if written == len(line):
                self._due, self._lost = b"", 0
                return
            # half a line would make the next one unreadable
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        except OSError:
            pass
        self._lost += 1


_process = object()
"""This process: a forked child has another."""
_put = os.write
"""Found at once: between two operations each look into a module is one into cold memory."""


def _forked() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_forked)
