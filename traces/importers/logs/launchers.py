"""Reads what launchers say of processes that ended: torchrun's table of failures, its lines, and NVRx's.

One table is of one host. "Root cause" is the process that this host's agent saw end first: in a hang, whoever timed out
first. It is kept as that, and accuses nobody.

Left out: what the processes wrote themselves.
"""

from __future__ import annotations

import re

from ...evidence import Exited, LocalExit, Numbering, Process, Writer
from .lines import Family, Line, Sink, short

_FIELD = re.compile(r"^\s*(time|host|rank|exitcode|error_file|traceback)\s*: ?(.*)$")
_RANK = re.compile(r"(\d{1,7})(?: \(local_rank: (\d{1,5})\))?")
_EXIT = re.compile(r"(-?\d{1,4})(?: \(pid: (\d{1,10})\))?")
_FAILED = re.compile(r"failed \(exitcode: (-?\d{1,4})\) local_rank: (\d{1,5}) \(pid: (\d{1,10})\)")
_ROW = re.compile(r"^\s*\[\d{1,6}\]:\s*$")


class _Table:
    """Reads torchrun's table of failures on one host."""

    def __init__(self, first: bool) -> None:
        self.first = first
        self.fields: dict[str, str] = {}
        self.source: Line | None = None
        self.lines = 0

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the table."""
        self.lines += 1
        text = line.rest.strip()
        if text.startswith("Root Cause") or text == "Failures:":
            self.close(sink)
            self.first = text.startswith("Root Cause")
            return True
        if _ROW.match(text):
            self.close(sink)
            return True
        field = _FIELD.match(line.rest)
        if field is not None:
            self.source = self.source or line
            self.fields[field[1]] = field[2].strip()
            return True
        if text.startswith("===") or self.lines > MAX_LINES:
            return False
        if "traceback" in self.fields and len(self.fields["traceback"]) < MAX_TEXT:
            self.fields["traceback"] += f"\n{text}"
        return True

    def close(self, sink: Sink) -> None:
        """Keep the row that was read."""
        fields, self.fields, line = self.fields, {}, self.source
        self.source = None
        rank, code = _RANK.match(fields.get("rank", "")), _EXIT.match(fields.get("exitcode", ""))
        if line is None or rank is None or code is None:
            return
        pid, host = int(code[2] or 0), fields.get("host", "")
        message = _told(fields.get("traceback", ""))
        exited = Exited(line.source, int(rank[1]), host, int(code[1]), pid, self.first, fields.get("time", ""), message)
        sink.add(exited, (exited.rank, exited.code, exited.time))
        if pid:
            sink.add(Process(line.source, host, pid, int(rank[1])))
        if rank[2] is not None:
            key = (line.source.path, rank[1], rank[2])
            sink.add(Numbering(line.source, int(rank[1]), None, int(rank[2])), key)


MAX_LINES, MAX_TEXT = 100_000, 20_000


def _told(text: str) -> str:
    """Return what ended it: the last line of a traceback that a row carries."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or lines[0].startswith("To enable traceback"):
        return ""
    return short(lines[-1])


def _table(line: Line, sink: Sink) -> None:
    sink.open(line, _Table("Root Cause" in line.text))


def _row(line: Line, sink: Sink) -> None:
    """Read a row whose table has no head: a part of it, as somebody cut it out."""
    field = _FIELD.match(line.rest)
    if field is not None and field[1] == "rank" and (line.source.path, line.writer) not in sink.blocks:
        table = _Table(first=False)
        table.feed(line, sink)
        sink.open(line, table)


def _failed(line: Line, sink: Sink) -> None:
    for match in _FAILED.finditer(line.text):
        writer = Writer(local=int(match[2]), pid=int(match[3]), host=line.writer.host)
        sink.add(LocalExit(line.source, writer, int(match[1])), (match[1], match[2], match[3]))


FAMILIES = (
    Family((b"Failures:", b"Root Cause (first observed failure)"), _table),
    Family((b"(local_rank: ",), _row),
    Family((b"failed (exitcode: ",), _failed),
)
