"""The trace format: one append-only JSONL file a rank, a header line and then one line an event.

A line is written before the next thing happens, so that a killed rank loses nothing that it did. Events
are numbered without gaps: a hole that no `dropped` line accounts for means that somebody removed a line.

Left out: other people's formats (importers), and what a trace means (`conformance`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import UnreadableInput

FORMAT_VERSION = 1
SUFFIX = ".trace.jsonl"
MAX_LINE = 1 << 20
"""No line that the recorder writes comes near this many bytes; a longer one is not a trace."""

Edge = Literal["step", "enter", "exit"]
Cause = Literal["stopped", "violation", "parity", "exception", "peer_lost", "deadline"]


class Clock(msgspec.Struct, frozen=True):
    """Two clocks read together, so that the ranks' monotonic times can be laid side by side. In ns."""

    wall_ns: int
    monotonic_ns: int


class TraceHeader(msgspec.Struct, frozen=True, tag="header", tag_field="kind", omit_defaults=True):
    """The first line: who wrote this, under which tables."""

    format: int
    run: str
    rank: int
    world: int
    role: str
    backend: str
    protocol: str
    tables: str
    """Digest of the protocol's tables."""
    groups: dict[str, tuple[int, ...]]
    """Group name to its members, by global rank."""
    clock: Clock
    versions: dict[str, str] = {}
    blind_spots: tuple[str, ...] = ()
    """What the recorder could not have seen."""


class Event(msgspec.Struct, frozen=True, tag="event", tag_field="kind", omit_defaults=True):
    """One move of the rank, or one end of a collective (`enter`: issued, `exit`: completed)."""

    index: int
    time_ns: int
    transition: str
    edge: Edge
    state: str
    """The state that it left, as the rank saw itself."""
    phase: str
    call_id: int = 0
    chunk: int = 0
    epoch: int = 0
    call: int | None = None
    """Number of the generator call, from 1."""
    group: str | None = None
    sequence: int | None = None
    """Which collective of its group, from 1."""
    op: str | None = None
    root: int | None = None
    dtype: str | None = None
    numel: int | None = None
    outcome: str | None = None
    data: Any = None
    """The decision as this rank understood it: what the table's row was given."""
    inside: dict[str, int] | None = None
    """Of a generator call: collectives that it issued, and the hash of their sequence."""


class Dropped(msgspec.Struct, frozen=True, tag="dropped", tag_field="kind"):
    """`count` events, from number `index` on, could not be written."""

    index: int
    count: int


class End(msgspec.Struct, frozen=True, tag="end", tag_field="kind", omit_defaults=True):
    """The last line: why the rank ended, and who it thinks is to blame."""

    index: int
    time_ns: int
    cause: Cause
    exit: int
    message: str = ""
    culprit: int | None = None


Line = TraceHeader | Event | Dropped | End

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    """One line, newline included."""
    return _encoder.encode(line) + b"\n"


class Trace(msgspec.Struct, frozen=True):
    """One rank's file, read. `lines[i]` came from line `numbers[i]` of the file; `cut` if its last line is half."""

    path: Path
    header: TraceHeader
    lines: tuple[Event | Dropped | End, ...]
    numbers: tuple[int, ...]
    cut: bool

    @property
    def rank(self) -> int:
        return self.header.rank

    @property
    def events(self) -> Iterator[Event]:
        return (line for line in self.lines if isinstance(line, Event))

    @property
    def end(self) -> End | None:
        last = self.lines[-1] if self.lines else None
        return last if isinstance(last, End) else None


def name_of(rank: int) -> str:
    """The file name of a rank's trace."""
    return f"rank{rank}{SUFFIX}"


def find(path: Path) -> list[Path]:
    """The trace files that `path` stands for: itself, or those in the folder. Raises UnreadableInput."""
    if path.is_dir():
        found = sorted(path.rglob(f"*{SUFFIX}"))
        if not found:
            raise UnreadableInput(f"no *{SUFFIX} file in this folder", where=str(path), do="name the folder of a run")
        return found
    if not path.exists():
        raise UnreadableInput("no such file or folder", where=str(path), do="check the path")
    return [path]


def read(path: Path) -> Trace:
    """One rank's trace. Raises UnreadableInput with the line where the file stops making sense.

    A last line without its newline is a cut file, not a malformed one: the rank was killed while it wrote.
    """
    header: TraceHeader | None = None
    lines: list[Event | Dropped | End] = []
    numbers: list[int] = []
    cut = False
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise _bad(path, number, f"line is longer than {MAX_LINE} bytes")
                if not raw.endswith(b"\n"):
                    cut = True
                    break
                line = _line(path, number, raw)
                if header is None:
                    header = _header(path, line)
                elif isinstance(line, TraceHeader):
                    raise _bad(path, number, "a second header line")
                else:
                    lines.append(line)
                    numbers.append(number)
    except OSError as error:
        raise UnreadableInput(str(error.strerror or error), where=str(path)) from None
    if header is None:
        raise _bad(path, 1, "there is no complete header line")
    return Trace(path, header, tuple(lines), tuple(numbers), cut)


def _line(path: Path, number: int, raw: bytes) -> Line:
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, number, f"not a line of a trace ({error})") from None


def _header(path: Path, line: Line) -> TraceHeader:
    if not isinstance(line, TraceHeader):
        raise _bad(path, 1, "the first line is not a header")
    if line.format != FORMAT_VERSION:
        newer = "newer" if line.format > FORMAT_VERSION else "older"
        raise UnreadableInput(
            f"trace format {line.format} is {newer} than this program's {FORMAT_VERSION}",
            where=f"{path}, line 1",
            do="replay it with the version of genlock that recorded it",
        )
    if not 0 <= line.rank < line.world:
        raise _bad(path, 1, f"rank {line.rank} is not one of {line.world} ranks")
    return line


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")
