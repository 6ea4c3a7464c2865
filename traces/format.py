"""Defines the trace format: one append-only JSONL file a rank, a header line and then one line an event.

A line is written before the next thing happens, so that a killed rank loses nothing that it did. Events are numbered
without gaps: a hole that no `dropped` line accounts for means that somebody removed a line. A trace holds moves of a
protocol (events with a transition), operations of torch.distributed that no protocol announced (events with an empty
one), or both. docs/recording.md has an example of each.

This is format 2. What no field of it says is not recorded: a missing field is never a `no`. Fields that the recorder
does not write yet are marked so; readers take them. Format 1 is read as well, and written no more: it has places and
outcomes as texts. A fact that it tells by text alone becomes the code `untyped`, and nothing is read out of the text.

Left out: other people's formats (importers), and what a trace means (`conformance`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import CutFile, UnreadableInput
from .outcome import Code, Outcome

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)
"""Formats that are read."""
SUFFIX = ".trace.jsonl"
MAX_RANKS, LARGEST = 1_000_000, 1 << 62
MAX_LINE = 1 << 20
"""No line that the recorder writes comes near this many bytes; a longer one is not a trace."""

P2P = ("send", "recv", "recv_any_source")
"""Lists every `Event.op` that involves two ranks instead of a whole group."""

Edge = Literal["step", "enter", "exit", "wait"]
Cause = Literal["stopped", "violation", "parity", "exception", "peer_lost", "deadline", "detached"]
KnownBy = Literal["all", "members"]
Loss = Literal["write", "recorder"]


class Clock(msgspec.Struct, frozen=True):
    """Holds two clocks read together, in ns, so that the ranks' monotonic times can be laid side by side."""

    wall_ns: int
    monotonic_ns: int


class TraceHeader(msgspec.Struct, frozen=True, tag="header", tag_field="kind", omit_defaults=True):
    """Says who wrote this, under which tables: the first line."""

    format: int
    run: str
    """Names the run; the same on every rank of one start of its ranks."""
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
    """Names what the recorder could not have seen."""
    attempt: int = 0
    """Number of the start of the run, from 0: an elastic launcher starts the ranks again. Traces of one attempt belong
    together."""


class Group(msgspec.Struct, frozen=True, tag="group", tag_field="kind", omit_defaults=True, cache_hash=True):
    """Announces a process group, when it was made or else before the rank's first operation on it.

    It has no number among the events.
    """

    name: str
    """The same on every member. A name that was used before, for other members, ends in `#2`, `#3` and so on. Empty
    where this rank took part in making the group, is no member, and so has no name for it."""
    members: tuple[int, ...]
    """Global ranks, in the order of their ranks in the group."""
    backend: str = ""
    description: str = ""
    number: int | None = None
    """Number among the groups that this process took part in making, from 1, the default group aside. Ranks that make
    the same groups in the same order give one group one number. None: the group was met, not seen in the making."""
    known_by: KnownBy | None = None
    """Says who has to make the call: `all` ranks, or its `members` alone (`use_local_synchronization`)."""
    site: int | None = None
    """Number of the `Site` that made it."""


class Site(msgspec.Struct, frozen=True, tag="site", tag_field="kind", omit_defaults=True):
    """Gives a place of the program a number, before the first line that uses it. It has no number among the events."""

    number: int
    """From 1, in the order of first use in this file."""
    place: str
    """`file:line` of the program."""
    function: str = ""
    """Not written yet."""
    caller: int | None = None
    """Number of the site that called it: a short stack is a chain of sites. Not written yet."""


class Event(msgspec.Struct, frozen=True, tag="event", tag_field="kind", omit_defaults=True):
    """Records one move of the rank, or one end of an operation (`enter`: issued, `exit`: completed for this rank).

    With an empty `transition`: an operation of torch.distributed that no protocol announced. Its `exit` comes when
    the host is done waiting, or for an asynchronous one when it has completed; a refused one has no exit. `wait`: the
    host begins to wait for the operation whose handle is `entered` (not written yet).
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
    """Number of the collective in its group, from 1. For p2p: among those with the same op, peer and tag."""
    op: str | None = None
    root: int | None = None
    """Global rank."""
    peer: int | None = None
    """Global rank of the other end of p2p; None where any may be."""
    tag: int | None = None
    """Tag of p2p."""
    dtype: str | None = None
    """Several, in order and separated by commas, where tensors of several dtypes are coalesced."""
    numel: int | None = None
    """Elements that the rank puts in, over all tensors; of a scatter and a recv, those that it is to be given."""
    entered: int | None = None
    """Handle of the operation that an exit without transition, or a wait, belongs to: the index of its `enter`."""
    asynchronous: bool = False
    """The host need not wait at once, so that a missing exit need not be a wait. Always so for p2p."""
    thread: str | None = None
    """Name of the thread that issued it; None for the main thread."""
    site: int | None = None
    """Number of the `Site` that issued it."""
    outcome: Outcome | None = None
    """None: as it should be. Otherwise what went wrong, or why a move was made; an `enter` that has one was refused
    and never issued."""
    data: Any = None
    """The decision as this rank understood it: what the table's row was given."""
    inside: dict[str, int] | None = None
    """Collectives that a generator call issued, and the hash of their sequence."""
    reduce: str | None = None
    """Reduction of a reducing operation: sum, avg, product, min, max, band, bor, bxor, premul_sum; None: unknown."""
    splits: bool | None = None
    """True where the caller of an `all_to_all_single` gave sizes, so that they may rightly be uneven."""
    batch: int | None = None
    """Operations of one rank with the same number were issued as one batch (`batch_isend_irecv`, a coalescing manager):
    none of them waits for another. Not written yet."""
    stream: int | None = None
    """Stream of the device that it was enqueued on, as the process counts them. Not written yet."""


class Dropped(msgspec.Struct, frozen=True, tag="dropped", tag_field="kind", omit_defaults=True):
    """Marks a loss: `count` events, from number `index` on, are not in the file."""

    index: int
    count: int
    why: Loss = "write"
    """`write`: the file would not take them; `recorder`: the recorder could not make lines of them."""


class End(msgspec.Struct, frozen=True, tag="end", tag_field="kind", omit_defaults=True):
    """Says why the rank ended, and who it thinks is to blame: the last line."""

    index: int
    time_ns: int
    cause: Cause
    """`detached`: the process goes on, and is recorded no further; nothing follows from what is missing."""
    exit: int
    """-1 where it is not known."""
    message: str = ""
    """One line for people. Nothing decides by it."""
    culprit: int | None = None
    site: int | None = None
    """Number of the `Site` that raised what ended it."""


Line = TraceHeader | Group | Site | Event | Dropped | End


class FormerEvent(Event, frozen=True, tag="event", tag_field="kind", omit_defaults=True):
    """Holds an event as format 1 has it."""

    site: str | None = None  # type: ignore[assignment]
    """`file:line` of the program."""
    outcome: str | None = None  # type: ignore[assignment]


_former_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(TraceHeader | Group | FormerEvent | Dropped | End)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    """Return the bytes of one line, newline included."""
    return _encoder.encode(line) + b"\n"


NUMBER: Any = msgspec.Raw(b"\0")
"""Stands for a number of an event, for `blank`. No line has this byte, as JSON escapes it."""


def blank(event: Event) -> bytes:
    """Return the line of an event, to be filled in by `%` with its numbers: a NUMBER for each, in order of fields."""
    return encode(event).replace(b"%", b"%%").replace(NUMBER, b"%d")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one line. `python -m genlock.traces.format` prints it, for docs/trace.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Line)}


class Trace(msgspec.Struct, frozen=True):
    """Holds one rank's file, read. `lines[i]` came from line `numbers[i]` of the file; `cut` if its last line is half.

    `groups` are those of the header and of the `Group` lines, and `sites` the `file:line` of the `Site` lines by their
    number; neither kind is among `lines`.
    """

    path: Path
    header: TraceHeader
    lines: tuple[Event | Dropped | End, ...]
    numbers: tuple[int, ...]
    cut: bool
    groups: dict[str, tuple[int, ...]] = {}
    sites: Mapping[int, str] = {}
    same_as: int | None = None
    """Rank whose lines these are, in a large job, because this rank wrote the same at other times."""

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

    def place(self, event: Event) -> str:
        """Return `file:line` of the program that issued the event's operation; empty where it is not recorded."""
        return self.sites.get(event.site or 0, "")


def name_of(rank: int) -> str:
    """Return the file name of a rank's trace."""
    return f"rank{rank}{SUFFIX}"


def find(path: Path) -> list[Path]:
    """Return the trace files that `path` stands for: itself, or those in the folder. Raises UnreadableInput."""
    if path.is_dir():
        files = sorted(path.rglob(f"*{SUFFIX}"))
        if not files:
            raise UnreadableInput(f"no *{SUFFIX} file in this folder", where=str(path), do="name the folder of a run")
        return files
    if not path.exists():
        raise UnreadableInput("no such file or folder", where=str(path), do="check the path")
    return [path]


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file and their numbers, from 1; the last may be half a line. Raises UnreadableInput."""
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
    """Take the header from the lines of a file. Raises UnreadableInput, CutFile where not all of it is there."""
    number, raw = next(lines, (1, b""))
    if not raw.endswith(b"\n"):
        raise CutFile("there is no complete header line", where=str(path), do="is it a trace that genlock recorded?")
    return _header(path, _decode(path, number, raw, _decoder))


def read(path: Path) -> Trace:
    """Read one rank's trace, of any readable format. Raises UnreadableInput with the line that makes no sense.

    A last line without its newline is a cut file, not a malformed one: the rank was killed while it wrote.
    """
    rest = lines_of(path)
    header = opening(path, rest)
    reader = LineReader(path, header)
    lines: list[Event | Dropped | End] = []
    numbers: list[int] = []
    cut = False
    for number, raw in rest:
        if not raw.endswith(b"\n"):
            cut = True
            break
        line = reader.take(number, raw)
        if isinstance(line, Event | Dropped | End):
            lines.append(line)
            numbers.append(number)
    return Trace(path, header, tuple(lines), tuple(numbers), cut, reader.groups, reader.sites)


class LineReader:
    """Reads the lines after a header one by one, and keeps the groups and sites that they announce."""

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.path, self.groups = path, dict(header.groups)
        self.sites: dict[int, str] = {}
        """Number of a site to its `file:line`."""
        self._former: dict[str, int] | None = None if header.format == FORMAT_VERSION else {}
        """Numbers that the places of a file of format 1 are given."""

    def take(self, number: int, raw: bytes) -> Group | Site | Event | Dropped | End:
        """Return one whole line. Raises UnreadableInput."""
        if self._former is not None:
            line, place = to_event(decode(self.path, number, raw, format=1))
            if place is not None:
                line = msgspec.structs.replace(line, site=self._former.setdefault(place, len(self._former) + 1))
                self.sites[self._former[place]] = place
        else:
            line = decode(self.path, number, raw)
        if isinstance(line, Event | End):
            if line.site is not None and line.site not in self.sites:
                raise _bad(self.path, number, f"nothing says where site {line.site} is")
        elif isinstance(line, TraceHeader):
            raise _bad(self.path, number, "a second header line")
        elif isinstance(line, Group):
            check_group(self.path, number, line.name, line.members)
            if line.name and self.groups.setdefault(line.name, line.members) != line.members:
                raise _bad(self.path, number, f"group {line.name} had other members before")
        elif isinstance(line, Site) and self.sites.setdefault(line.number, line.place) != line.place:
            raise _bad(self.path, number, f"site {line.number} was another place before")
        return line


def decode(path: Path, number: int, raw: bytes, format: int = FORMAT_VERSION) -> Line:
    """Return one whole line as that format has it. Raises UnreadableInput."""
    line: Line = _decode(path, number, raw, _decoder if format == FORMAT_VERSION else _former_decoder)
    return line


def _decode(path: Path, number: int, raw: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, number, f"not a line of a trace ({error})") from None


def to_event(line: Line) -> tuple[Line, str | None]:
    """Return a line of format 1 as format 2 has it, but for the site of an event; and that site's place.

    What its structure tells is kept: an operation whose `enter` has an outcome was refused, one whose `exit` has one
    failed.
    """
    if not isinstance(line, FormerEvent):
        return line, None
    facts: dict[str, Any] = {name: getattr(line, name) for name in Event.__struct_fields__}
    facts |= {"site": None, "outcome": None if line.outcome is None else _former_outcome(line, line.outcome)}
    return Event(**facts), line.site


def _former_outcome(event: FormerEvent, text: str) -> Outcome:
    if not event.transition and event.edge != "step":
        return Outcome(Code.COLLECTIVE if event.edge == "enter" else Code.BACKEND, text=text)
    return Outcome(Code.UNTYPED, text=text)


def _header(path: Path, line: Line) -> TraceHeader:
    if not isinstance(line, TraceHeader):
        raise _bad(path, 1, "the first line is not a header")
    if line.format not in READABLE:
        newer = "newer" if line.format > FORMAT_VERSION else "older"
        raise UnreadableInput(
            f"trace format {line.format} is {newer} than what this program reads, {READABLE[0]} to {READABLE[-1]}",
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
    """Raise UnreadableInput if that cannot be who is in a group."""
    if len(set(members)) != len(members) or not all(0 <= rank < MAX_RANKS for rank in members):
        raise _bad(path, number, f"the members of group {name[:80]} are not distinct ranks")


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
