"""Writes one rank's trace, one line and one write an event.

A write that fails (a full disk) is counted and told later in a `dropped` line: the rank goes on.
Left out: seeing collectives that the rank did not announce.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .format import Cause, Dropped, Edge, End, Event, TraceHeader, encode, name_of


class Recorder:
    """Appends to `folder/rank<N>.trace.jsonl`; the file must not exist yet."""

    def __init__(self, folder: Path, header: TraceHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name_of(header.rank)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._next = 0
        self._lost = 0
        self._ended = False
        self._size = os.write(self._file, encode(header))

    def event(self, transition: str, edge: Edge, state: str, phase: str, **facts: Any) -> None:
        """Record one event; `facts` are further fields of `format.Event`."""
        self._write(Event(self._next, time.monotonic_ns(), transition, edge, state, phase, **facts))

    def end(self, cause: Cause, exit: int, message: str = "", culprit: int | None = None) -> None:
        """Record why the rank ends. Only the first call counts: what came later did not cause the end."""
        if not self._ended:
            self._ended = True
            self._write(End(self._next, time.monotonic_ns(), cause, exit, message, culprit))

    def _write(self, line: Event | End) -> None:
        self._next += 1
        raw = encode(line)
        if self._lost:
            raw = encode(Dropped(line.index - self._lost, self._lost)) + raw
        try:
            # one write, so that no other thread's line and no signal can come between
            written = os.write(self._file, raw)
        except OSError:
            written = 0
        if written == len(raw):
            self._size += written
            self._lost = 0
        else:
            self._lost += 1
            os.ftruncate(self._file, self._size)  # half a line would make the next one unreadable
