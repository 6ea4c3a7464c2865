"""The trace format: one append-only JSONL file a rank, a header line and then one line an event.

A line is written before the next thing happens, so that a killed rank loses nothing that it did. Events
are numbered without gaps: a hole that no `dropped` line accounts for means that somebody removed a line.
A trace holds moves of a protocol (events with a transition), operations of torch.distributed that no
protocol announced (events with an empty one), or both. docs/recording.md has an example of each.

Left out: other people's formats (importers), and what a trace means (`conformance`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import CutFile, UnreadableInput

FORMAT_VERSION = 1
SUFFIX = ".trace.jsonl"
MAX_RANKS, LARGEST = 1_000_000, 1 << 62
MAX_LINE = 1 << 20
"""No line that the recorder writes comes near this many bytes; a longer one is not a trace."""

P2P = ("send", "recv", "recv_any_source")
"""Every `Event.op` that involves two ranks instead of a whole group."""

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
    """Name of the protocol; empty where a program was recorded that has none."""
    tables: str
    """Digest of the protocol's tables; empty without a protocol."""
    groups: dict[str, tuple[int, ...]]
    """Group name to its members, by global rank. Later ones come as `Group` lines."""
    clock: Clock
    versions: dict[str, str] = {}
    blind_spots: tuple[str, ...] = ()
    """What the recorder could not have seen."""


class Group(msgspec.Struct, frozen=True, tag="group", tag_field="kind", omit_defaults=True, cache_hash=True):
    """A process group, before the rank's first operation on it. It has no number among the events."""

    name: str
    """The same on every member. A name that was used before, for other members, ends in `#2`, `#3` and so on."""
    members: tuple[int, ...]
    """Global ranks, in the order of their ranks in the group."""
    backend: str = ""
    description: str = ""


class Event(msgspec.Struct, frozen=True, tag="event", tag_field="kind", omit_defaults=True):
    """One move of the rank, or one end of an operation (`enter`: issued, `exit`: completed for this rank).

    With an empty `transition`: an operation of torch.distributed that no protocol announced. Its `exit` comes when
    the host is done waiting, or for an asynchronous one when it has completed; a refused one has no exit.
    """

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
    """Which collective of its group, from 1. For p2p: which of those with the same op, peer and tag in the group."""
    op: str | None = None
    root: int | None = None
    """Global rank."""
    peer: int | None = None
    """Of p2p: global rank of the other end; None where any may be."""
    tag: int | None = None
    """Of p2p."""
    dtype: str | None = None
    """Several, in order and separated by commas, where tensors of several dtypes are coalesced."""
    numel: int | None = None
    """Elements that the rank puts in, over all tensors; of a scatter and a recv, those that it is to be given."""
    entered: int | None = None
    """Of an exit without transition: index of the event that issued it."""
    asynchronous: bool = False
    """The host need not wait at once, so that a missing exit need not be a wait. Always so for p2p."""
    thread: str | None = None
    """Name of the thread that issued it; None for the main thread."""
    site: str | None = None
    """`file:line` of the program that issued it."""
    outcome: str | None = None
    """None: as it should be. Otherwise what went wrong, or the note of a move; `refused: ...` was never issued."""
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
    """-1 where it is not known."""
    message: str = ""
    culprit: int | None = None


Line = TraceHeader | Group | Event | Dropped | End

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    """One line, newline included."""
    return _encoder.encode(line) + b"\n"


NUMBER: Any = msgspec.Raw(b"\0")
"""In place of a number of an event, for `blank`. No line has this byte, as JSON escapes it."""


def blank(event: Event) -> bytes:
    """The line of an event, to be filled in by `%` with whatever is a NUMBER in it, in the order of its fields."""
    return encode(event).replace(b"%", b"%%").replace(NUMBER, b"%d")


def schema() -> dict[str, Any]:
    """The JSON Schema of one line. `python -m genlock.traces.format` prints it, for docs/trace.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Line)}


class Trace(msgspec.Struct, frozen=True):
    """One rank's file, read. `lines[i]` came from line `numbers[i]` of the file; `cut` if its last line is half.

    `groups` are those of the header and of the `Group` lines, which are not among `lines`.
    """

    path: Path
    header: TraceHeader
    lines: tuple[Event | Dropped | End, ...]
    numbers: tuple[int, ...]
    cut: bool
    groups: dict[str, tuple[int, ...]] = {}
    twin: int | None = None
    """Of a large job: the rank whose lines these are, because this rank wrote the same at other times."""

    def __repr__(self) -> str:
        ended = "cut" if self.cut else self.end.cause if self.end else "without an end"
        of = f"rank {self.rank} of {self.header.world}"
        return f"<Trace {self.path.name}: {of}, {len(self.lines):,} lines, {ended}>"

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


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file and their numbers, from 1; the last may be half a line. Raises UnreadableInput."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise _bad(path, number, f"line is longer than {MAX_LINE} bytes")
                yield number, raw
    except OSError as error:
        raise UnreadableInput(str(error.strerror or error), where=str(path)) from None


def opening(path: Path, lines: Iterator[tuple[int, bytes]]) -> TraceHeader:
    """The header, taken from the lines of a file. Raises UnreadableInput, CutFile where not all of it is there."""
    number, raw = next(lines, (1, b""))
    if not raw.endswith(b"\n"):
        raise CutFile("there is no complete header line", where=str(path), do="is it a trace that genlock recorded?")
    return _header(path, decode(path, number, raw))


def read(path: Path) -> Trace:
    """One rank's trace. Raises UnreadableInput with the line where the file stops making sense.

    A last line without its newline is a cut file, not a malformed one: the rank was killed while it wrote.
    """
    rest = lines_of(path)
    header = opening(path, rest)
    groups = dict(header.groups)
    lines: list[Event | Dropped | End] = []
    numbers: list[int] = []
    cut = False
    for number, raw in rest:
        if not raw.endswith(b"\n"):
            cut = True
            break
        line = decode(path, number, raw)
        if isinstance(line, TraceHeader):
            raise _bad(path, number, "a second header line")
        if isinstance(line, Group):
            check_group(path, number, line.name, line.members)
            if groups.setdefault(line.name, line.members) != line.members:
                raise _bad(path, number, f"group {line.name} had other members before")
        else:
            lines.append(line)
            numbers.append(number)
    return Trace(path, header, tuple(lines), tuple(numbers), cut, groups)


def decode(path: Path, number: int, raw: bytes) -> Line:
    """One line, whole. Raises UnreadableInput."""
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
    if not 0 <= line.rank < line.world <= MAX_RANKS:
        raise _bad(path, 1, f"rank {line.rank} is not one of {line.world} ranks, or they are more than {MAX_RANKS:,}")
    if max(abs(line.clock.wall_ns), abs(line.clock.monotonic_ns)) >= LARGEST:
        raise _bad(path, 1, "the clock is out of bounds")
    for name, members in line.groups.items():
        check_group(path, 1, name, members)
    return line


def check_group(path: Path, number: int, name: str, members: tuple[int, ...]) -> None:
    """Raises UnreadableInput if that cannot be who is in a group."""
    if len(set(members)) != len(members) or not all(0 <= rank < MAX_RANKS for rank in members):
        raise _bad(path, number, f"the members of group {name[:80]} are not distinct ranks")


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
