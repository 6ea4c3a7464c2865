"""Finds the few lines of a log that say something, and has them read by the families that know them.

A log may be gigabytes of which a few lines matter. It is read in blocks; in each, a search for fixed words, which
costs next to nothing, finds the lines that are then looked at one by one. The lines after one that opens a block (a
traceback, a table, a stack) are looked at until it is closed. Memory is bounded by the size of a block and MAX_FACTS.

Left out: opening files and archives (`detect`), and every form of line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ...evidence import Fact, Source
from . import (
    connections,
    engines,
    inspector,
    job_sizes,
    launchers,
    ras,
    stacks,
    torch_reports,
    torch_watchdog,
    tracebacks,
)
from .lines import Family, Line, Sink, split
from .nccl import NcclCalls
from .stacks import rank_in_name

BLOCK = 4 << 20
MAX_LINE = 1 << 20
"""A longer line is taken apart where this many bytes end."""
PATIENCE = 5000
"""So many lines after the last one that a block took, all blocks are closed."""

Read = Callable[[Line, Sink], None]

FAMILIES: tuple[Family, ...] = (
    *torch_watchdog.FAMILIES,
    *torch_reports.FAMILIES,
    *launchers.FAMILIES,
    *tracebacks.FAMILIES,
    *connections.FAMILIES,
    *engines.FAMILIES,
    *stacks.FAMILIES,
    *ras.FAMILIES,
    *inspector.FAMILIES,
    *job_sizes.FAMILIES,
)
_NEAR: dict[bytes, list[tuple[bytes, Read]]] = {}
for _family in FAMILIES:
    _NEAR.setdefault(_family.near, []).extend((marker, _family.read) for marker in _family.markers)


class Logs:
    """Reads the logs of one job, one after another."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.nccl = NcclCalls()

    def scan(self, path: Path, stream: BinaryIO) -> bool:
        """Read a log to its end; return True if it said anything.

        `path` names it in what is said of it.
        """
        before = self._said()
        walker = _Walker(path, self.sink, self.nccl)
        tail = b""
        while data := stream.read(BLOCK):
            data = tail + data
            cut = data.rfind(b"\n") + 1
            if not cut and len(data) >= MAX_LINE:
                cut = len(data)
            tail = data[cut:]
            walker.walk(data[:cut])
        walker.walk(tail)
        self.sink.close()
        return self._said() > before

    def _said(self) -> int:
        sink, nccl = self.sink, self.nccl
        return len(sink.facts) + len(sink.assumed) + len(sink.completed) + nccl.count + len(nccl.streams)

    def finish(self) -> list[Fact]:
        """Return all facts, when all files are read."""
        self.sink.finish()
        for fact in inspector.finished(self.sink.completed):
            self.sink.add(fact)
        self.nccl.finish(self.sink)
        return self.sink.facts


class _Walker:
    """Goes through one file's blocks."""

    def __init__(self, path: Path, sink: Sink, nccl: NcclCalls) -> None:
        self.path, self.sink, self.nccl = path, sink, nccl
        self.rank = rank_in_name(path)
        local = re.search(r"(?:^|/)(\d{1,5})/(?:std(?:out|err)(?:\.log)?|error\.json)$", path.as_posix())
        self.local = int(local[1]) if local is not None else None
        """As torchrun's --redirects names its folders."""
        self.number = 1
        self.idle = 0
        self.head: Line | None = None
        """The last line that began a message of several."""

    def walk(self, data: bytes) -> None:
        """Read one block, of whole lines."""
        self.nccl.read(self.path, data, self.sink, self.number)
        hits = _hits(data)
        starts = sorted(hits)
        at = counted = index = 0
        number = self.number
        while True:
            if not self.sink.blocks:
                while index < len(starts) and starts[index] < at:
                    index += 1
                if index == len(starts):
                    break
                at = starts[index]
            if at >= len(data):
                break
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            number += data.count(b"\n", counted, at)
            counted = at
            text = data[at : min(end, at + MAX_LINE)].decode("utf-8", "replace")
            self._line(self._named(split(text, Source(self.path, number))), hits.get(at, ()))
            at = end + 1
        self.number += data.count(b"\n")

    def _named(self, line: Line) -> Line:
        """Return the line, with what the file's name says of who wrote it, where its prefixes do not."""
        writer = line.writer
        if writer.rank is None and not writer.worker:
            if self.rank is not None:
                return line._replace(writer=writer._replace(rank=self.rank))
            if self.local is not None and writer.local is None:
                return line._replace(writer=writer._replace(local=self.local))
        return line

    def _line(self, line: Line, families: tuple[Read, ...] | list[Read]) -> None:
        sink, head = self.sink, self.head
        self.idle += 1
        sink.writes(line)
        if line.heads:
            self.head = head = line
        if not self._taken(line) and head is not None and line.writer == head.writer._replace(worker=()):
            # SGLang names who writes in a message's first line alone; of what follows the block, nothing says it
            whole = line._replace(writer=head.writer)
            line = whole if self._taken(whole) else line
        for read in dict.fromkeys(families):
            read(line, sink)
        if self.idle > PATIENCE and sink.blocks:
            sink.close_blocks()

    def _taken(self, line: Line) -> bool:
        """Give the line to the block of its writer; False where there is none, or it has come to its end."""
        key = (line.source.path, line.writer)
        block = self.sink.blocks.get(key)
        if block is None:
            return False
        if block.feed(line, self.sink):
            self.idle = 0
            return True
        self.sink.blocks.pop(key).close(self.sink)
        return False


def _hits(data: bytes) -> dict[int, list[Read]]:
    """Return where the lines begin that a family may know, and which."""
    hits: dict[int, list[Read]] = {}
    markers = [found for near, markers in _NEAR.items() if near in data for found in markers]
    for marker, read in markers:
        at = data.find(marker)
        while at >= 0:
            hits.setdefault(data.rfind(b"\n", 0, at) + 1, []).append(read)
            end = data.find(b"\n", at)
            if end < 0:
                break
            at = data.find(marker, end)
    return hits
