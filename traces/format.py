"""Defines the trace format: one append-only JSONL file a rank, a header line and then one line an event.

A line is written before the next thing happens, so that a killed rank loses nothing that it did. Events are numbered
without gaps: a hole that no `dropped` line accounts for means that somebody removed a line. A trace holds moves of a
protocol (events with a transition), operations of torch.distributed that no protocol announced (events with an empty
one), or both. docs/recording.md has an example of each.

A recording with a cap keeps the newest part of a rank's lines: a file, and the one that was filled before it, which is
`rank<N>.earlier.jsonl`. What came before is summed up, by `past` lines and a `history` line at the head of each file.

This is format 3. What no field of it says is not recorded: a missing field is never a `no`. Fields that the recorder
does not write yet are marked so; readers take them. An operation that a program repeats is described once, by an
`operation` line; its events are then short lists, `enter`, `wait` and `exit`, which readers get as the `Event` that
they stand for. Format 2, which has no such lists and no stacks, is read as well. So is format 1: it has places and
outcomes as texts. A fact that it tells by text alone becomes the code `untyped`, and nothing is read out of the text.

Reading is strict, so that a damaged line is never taken for another one: numbers have bounds, a field that is not
known or stands twice is refused, and so is a line that is anything but one object.

Left out: other people's formats (importers), and what a trace means (`conformance`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..errors import CutFile, UnreadableInput
from .outcome import Code, Outcome

FORMAT_VERSION = 3
READABLE = (1, 2, FORMAT_VERSION)
"""Formats that are read."""
SUFFIX = ".trace.jsonl"
EARLIER = ".earlier.jsonl"
"""Ends the name of the file that was filled before a rank's trace, in a recording with a cap."""
NEW = ".new"
"""Ends the name of a file that is not complete yet."""
MAX_RANKS, LARGEST = 1_000_000, 1 << 62
SHORT = b"["
"""Begins a line that is a list."""
MAX_STACK = 64
"""A short stack has fewer frames."""
TAIL = 1 << 17
"""So many bytes at the end of a file have its last line."""
MAX_LINE = 1 << 20
"""No line that the recorder writes comes near this many bytes; a longer one is not a trace."""

Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Small = Annotated[int, Meta(ge=0, lt=1 << 31)]
Rank = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Counter = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""Holds what a protocol counts. Its tables say what it may be."""

CHANNEL = "channel"
"""Names the backend of what passes by a queue of the program's own."""
P2P = ("send", "recv", "recv_any_source")
"""Lists every `Event.op` that involves two ranks instead of a whole group."""

Edge = Literal["step", "enter", "exit", "wait"]
Cause = Literal["stopped", "violation", "parity", "exception", "peer_lost", "deadline", "detached"]
KnownBy = Literal["all", "members"]
Maker = Literal["new_group", "split_group"]
Loss = Literal["write", "recorder"]


class Clock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds two clocks read together, in ns, so that the ranks' monotonic times can be laid side by side."""

    wall_ns: Count
    monotonic_ns: Count


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True):
    pass


class TraceHeader(_Line, frozen=True, tag="header"):
    """Says who wrote this, under which tables: the first line."""

    format: int
    run: str
    """Names the run; the same on every rank of one start of its ranks."""
    rank: Rank
    world: Annotated[int, Meta(ge=1, le=MAX_RANKS)]
    role: str
    backend: str
    protocol: str
    """Name of the protocol; empty where a program was recorded that has none."""
    tables: str
    """Digest of the protocol's tables; empty without a protocol."""
    groups: dict[str, tuple[Rank, ...]]
    """Group name to its members, by global rank. Later ones come as `Group` lines."""
    clock: Clock
    versions: dict[str, str] = {}
    blind_spots: tuple[str, ...] = ()
    """Names what the recorder could not have seen."""
    process: str = ""
    """Names the process, by its host and number: one may be a rank of several jobs."""
    attempt: Small = 0
    """Number of the start of the run, from 0: an elastic launcher starts the ranks again. Traces of one attempt belong
    together."""
    recording: str = ""
    """Names the recording that it is part of, which keeps a journal: without that, nothing says what went unrecorded.
    Empty where there is no journal."""


class Group(_Line, frozen=True, tag="group", cache_hash=True):
    """Announces a process group, when it was made or else before the rank's first operation on it.

    It has no number among the events.
    """

    name: str
    """The same on every member. A name that was used before, for other members, ends in `#2`, `#3` and so on. Empty
    where this rank took part in making the group, is no member, and so has no name for it."""
    members: tuple[Rank, ...]
    """Global ranks, in the order of their ranks in the group."""
    backend: str = ""
    description: str = ""
    number: Small | None = None
    """Number among the groups that this process took part in making, from 1, the default group aside. Ranks that make
    the same groups in the same order give one group one number. None: the group was met, not seen in the making."""
    known_by: KnownBy | None = None
    """Says who has to make the call: `all` ranks, or its `members` alone (`use_local_synchronization`)."""
    site: Small | None = None
    """Number of the `Site` that made it."""


class Making(_Line, frozen=True, tag="making"):
    """Says that the rank begins to make a group: it is in that call until a `Group` line has the number.

    It has no number among the events.
    """

    number: Annotated[int, Meta(ge=1, lt=1 << 31)]
    """As in `Group`."""
    time_ns: Count
    by: Maker
    members: tuple[Rank, ...]
    """Global ranks that the caller gave, in their order; none where they are not known, as before a split."""
    known_by: KnownBy = "all"
    """As in `Group`."""
    site: Small | None = None
    """Number of the `Site` that makes it."""


class Site(_Line, frozen=True, tag="site"):
    """Gives a place a number, before the first line that uses it. It has no number among the events.

    A short stack is a chain of sites: from the innermost call, which an event names, to the program's line.
    """

    number: Small
    """From 1, in the order of first use in this file."""
    place: str
    """`file:line`."""
    function: str = ""
    caller: Small | None = None
    """Number of the site that called it; None where the stack ends, in the program as a rule."""


class RepeatedOperation(_Line, frozen=True, tag="operation"):
    """Gives an operation of the program a number, before its first `enter`: all of it that does not change.

    Fields as in `Event`. It has no number among the events.
    """

    number: Small
    """From 1, in the order of first use in this file."""
    op: str
    group: str
    root: Rank | None = None
    peer: Rank | None = None
    tag: Small | None = None
    dtype: str | None = None
    numel: Count | None = None
    asynchronous: bool = False
    thread: str | None = None
    site: Small | None = None
    reduce: str | None = None
    splits: bool | None = None


class Enter(msgspec.Struct, frozen=True, tag="enter", array_like=True, forbid_unknown_fields=True):
    """Says that a repeated operation is issued: `["enter",index,time_ns,operation,sequence]`."""

    index: Count
    time_ns: Count
    operation: Small
    """Number of the `RepeatedOperation`."""
    sequence: Count


class Wait(msgspec.Struct, frozen=True, tag="wait", array_like=True, forbid_unknown_fields=True):
    """Says that the host begins to wait for an operation: `["wait",index,time_ns,entered]`."""

    index: Count
    time_ns: Count
    entered: Count
    """Index of the operation's `Enter`."""


class Exit(msgspec.Struct, frozen=True, tag="exit", array_like=True, forbid_unknown_fields=True):
    """Says that an operation has completed for this rank, as it should: `["exit",index,time_ns,entered]`."""

    index: Count
    time_ns: Count
    entered: Count
    """Index of the operation's `Enter`."""


class Past(_Line, frozen=True, tag="past"):
    """Sums up the operations of a group, or of one way of sends and receives, before the `history` line that follows.

    It has no number among the events.
    """

    group: str
    count: Count
    """Sequence number of the last one."""
    wire: str
    """Digest of what all members must agree on, of all of them in order (`traces.digests`)."""
    full: str
    """Digest of that and the reductions, as far as they are known."""
    last: tuple[tuple[Small, Count, Count], ...] = ()
    """The last ones: number of the `RepeatedOperation`, index of the `enter`, time."""
    op: str | None = None
    """Of p2p, as in `Event`, with peer and tag; None for the collectives of the group."""
    peer: Rank | None = None
    tag: Small | None = None


class History(_Line, frozen=True, tag="history"):
    """Says that all events before one are not in the file, but summed up by the `past` lines before this line.

    It has no number among the events.
    """

    index: Count
    """Number of the first event that follows."""
    time_ns: Count
    began_ns: Count
    """When the first event was written."""
    operations: Count
    """Number of operations before it."""
    open: tuple[tuple[Count, Small, Count, Count, bool], ...] = ()
    """Those that had not completed: index of the `enter`, number of the `RepeatedOperation`, sequence number, time, and
    whether the host waits for it."""
    forgotten: Count = 0
    """Asynchronous ones of which nothing told the end, and which are not among `open` any more."""
    lost: Count = 0
    """Events before it that could not be written, or were no operations that repeat."""
    overflown: bool = False
    """True where there were more groups and ways than are counted."""


class Event(_Line, frozen=True, tag="event"):
    """Records one move of the rank, or one end of an operation (`enter`: issued, `exit`: completed for this rank).

    With an empty `transition`: an operation of torch.distributed that no protocol announced. Its `exit` comes when
    the host is done waiting, or for one that the host does not wait for when it has completed; a refused one has no
    exit. `wait`: the host begins to wait for the asynchronous operation whose handle is `entered`.
    """

    index: Count
    time_ns: Count
    transition: str
    edge: Edge
    state: str
    """The state that it left, as the rank saw itself."""
    phase: str
    call_id: Counter = 0
    chunk: Counter = 0
    epoch: Counter = 0
    call: Counter | None = None
    """Number of the generator call, from 1."""
    group: str | None = None
    sequence: Count | None = None
    """Number of the collective in its group, from 1. For p2p: among those with the same op, peer and tag."""
    op: str | None = None
    root: Rank | None = None
    """Global rank."""
    peer: Rank | None = None
    """Global rank of the other end of p2p; None where any may be."""
    tag: Small | None = None
    """Tag of p2p."""
    dtype: str | None = None
    """Several, in order and separated by commas, where tensors of several dtypes are coalesced."""
    numel: Count | None = None
    """Elements that the rank puts in, over all tensors; of a scatter and a recv, those that it is to be given."""
    entered: Count | None = None
    """Handle of the operation that an exit without transition, or a wait, belongs to: the index of its `enter`."""
    asynchronous: bool = False
    """The host need not wait at once, so that a missing exit need not be a wait. Always so for p2p."""
    thread: str | None = None
    """Name of the thread that issued it; None for the main thread."""
    site: Small | None = None
    """Number of the `Site` that issued it."""
    outcome: Outcome | None = None
    """None: as it should be. Otherwise what went wrong, or why a move was made; an `enter` that has one was refused
    and never issued."""
    data: Any = None
    """The decision as this rank understood it: what the table's row was given."""
    inside: dict[str, Counter] | None = None
    """Collectives that a generator call issued, and the hash of their sequence."""
    reduce: str | None = None
    """Reduction of a reducing operation: sum, avg, product, min, max, band, bor, bxor, premul_sum; None: unknown."""
    splits: bool | None = None
    """True where the caller of an `all_to_all_single` gave sizes, so that they may rightly be uneven."""
    batch: Count | None = None
    """Operations of one rank with the same number were issued as one batch (`batch_isend_irecv`, a coalescing manager):
    none of them waits for another. Not written yet."""
    stream: Small | None = None
    """Stream of the device that it was enqueued on, as the process counts them. Not written yet."""


class Dropped(_Line, frozen=True, tag="dropped"):
    """Marks a loss: `count` events, from number `index` on, are not in the file."""

    index: Count
    count: Annotated[int, Meta(ge=1, le=LARGEST)]
    why: Loss = "write"
    """`write`: the file would not take them; `recorder`: the recorder could not make lines of them."""


class End(_Line, frozen=True, tag="end"):
    """Says why the rank ended, and who it thinks is to blame: the last line."""

    index: Count
    time_ns: Count
    cause: Cause
    """`detached`: the process goes on, and is recorded no further; nothing follows from what is missing."""
    exit: Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
    """-1 where it is not known."""
    message: str = ""
    """One line for people. Nothing decides by it."""
    culprit: Rank | None = None
    site: Small | None = None
    """Number of the `Site` that raised what ended it."""


Short = Enter | Wait | Exit
Line = TraceHeader | Group | Making | Site | RepeatedOperation | Past | History | Event | Dropped | End | Short


class FormerEvent(Event, frozen=True, tag="event"):
    """Holds an event as format 1 has it."""

    site: str | None = None  # type: ignore[assignment]
    """`file:line` of the program."""
    outcome: str | None = None  # type: ignore[assignment]


_former_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(TraceHeader | Group | FormerEvent | Dropped | End)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    TraceHeader | Group | Making | Site | RepeatedOperation | Past | History | Event | Dropped | End
)
_short_decoder: msgspec.json.Decoder[Short] = msgspec.json.Decoder(Short)


def encode(line: Line) -> bytes:
    """Return the bytes of one line, newline included."""
    return _encoder.encode(line) + b"\n"


NUMBER: Any = msgspec.Raw(b"\0")
"""Stands for a number of a line, for `blank`. No line has this byte, as JSON escapes it."""


def blank(line: Line) -> bytes:
    """Return a line to be filled in by `%` with its numbers: a NUMBER for each, in order of fields."""
    return encode(line).replace(b"%", b"%%").replace(NUMBER, b"%d")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one line. `python -m genlock.traces.format` prints it, for docs/trace.schema.json."""
    kinds = (TraceHeader, Group, Making, Site, RepeatedOperation, Past, History, Event, Dropped, End, Enter, Wait, Exit)
    schemas, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [*schemas], "$defs": parts}


class Trace(msgspec.Struct, frozen=True):
    """Holds one rank's file, read. `lines[i]` came from line `numbers[i]` of the file; `cut` if its last line is half.

    `groups` are those of the header and of the `Group` lines, and `sites` the `Site` lines by their number; neither
    kind is among `lines`, nor are repeated operations: each event says all that it stands for.
    """

    path: Path
    header: TraceHeader
    lines: tuple[Event | Dropped | End, ...]
    numbers: tuple[int, ...]
    cut: bool
    groups: dict[str, tuple[int, ...]] = {}
    sites: Mapping[int, Site] = {}
    history: History | None = None
    """Says how much came before the lines, and is not there any more; None where all is there."""
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
        return place_in(self.sites, event.site)


def name_of(rank: int) -> str:
    """Return the file name of a rank's trace."""
    return f"rank{rank}{SUFFIX}"


def earlier(path: Path) -> Path:
    """Return the name of the file that was filled before a trace."""
    return path.with_name(path.name.removesuffix(SUFFIX) + EARLIER)


def files_of(path: Path) -> list[Path]:
    """Return the files that a trace consists of: itself, and before it the earlier one, where that leads up to it.

    It does not where the rank went on to another file meanwhile, or somebody changed one.
    """
    former = earlier(path)
    try:
        return [former, path] if path.name.endswith(SUFFIX) and _leads_to(former, path) else [path]
    except (OSError, UnreadableInput, msgspec.MsgspecError):
        return [path]


def _leads_to(former: Path, path: Path) -> bool:
    with former.open("rb") as file:
        head = file.readline(MAX_LINE)
        file.seek(max(0, former.stat().st_size - TAIL))
        *_, last = file.read().splitlines(keepends=True) or [b""]
    with path.open("rb") as file:
        if file.readline(MAX_LINE) != head or not last.endswith(b"\n"):
            return False
        for raw in file:
            if raw.startswith(b'{"kind":"history"'):
                end, history = decode(former, 0, last), decode(path, 0, raw)
                lost = end.count if isinstance(end, Dropped) else 1
                index = getattr(end, "index", None)
                return isinstance(history, History) and index is not None and index + lost == history.index
            if not raw.startswith(b"{") or raw.startswith(b'{"kind":"event"'):
                return False
    return False


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
    """Yield the lines of a trace and their numbers, from 1; the last may be half a line. Raises UnreadableInput.

    Those of an earlier file come first, and are counted; the header of the second one is left out.
    """
    number = 0
    try:
        for file_path in files_of(path):
            with file_path.open("rb") as file:
                if number:
                    file.readline()
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
    return Trace(path, header, tuple(lines), tuple(numbers), cut, reader.groups, reader.sites, reader.history)


class LineReader:
    """Reads the lines after a header one by one, and keeps what they announce: groups, sites, repeated operations."""

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.path, self.world, self.groups, self._format = path, header.world, dict(header.groups), header.format
        self.sites: dict[int, Site] = {}
        self.operations: dict[int, RepeatedOperation] = {}
        self.makings: dict[int, Making] = {}
        self._open: dict[int, tuple[RepeatedOperation, int]] = {}
        """Operations that have not completed, with their sequence numbers, by the index of their `enter`."""
        self._lossy = False
        """True where lines are known to be missing."""
        self.past: list[Past] = []
        self.history: History | None = None
        self._next: int | None = None
        """Index of the next event, once there was one."""
        self._former: dict[str, int] = {}
        """Numbers that the places of a file of format 1 are given."""

    def take(
        self, number: int, raw: bytes
    ) -> Group | Making | Site | RepeatedOperation | Past | History | Event | Dropped | End:
        """Return one whole line, a short one as the event that it stands for. Raises UnreadableInput."""
        line: Any = decode(self.path, number, raw, self._format)
        if isinstance(line, Enter | Wait | Exit | Event | End):
            self._next = line.index + 1
        if isinstance(line, Enter | Wait | Exit):
            return self._event(number, line)
        if self._format == 1:
            line, place = to_event(line)
            if place is not None:
                line = msgspec.structs.replace(line, site=self._former.setdefault(place, len(self._former) + 1))
                self.sites[self._former[place]] = Site(self._former[place], place)
        if isinstance(line, TraceHeader):
            raise _bad(self.path, number, "a second header line")
        if (
            isinstance(line, Event | RepeatedOperation | Making | End)
            and line.site is not None
            and line.site not in self.sites
        ):
            raise _bad(self.path, number, f"nothing says where site {line.site} is")
        if isinstance(line, Group):
            check_group(self.path, number, line.name, line.members, self.world)
            if line.name and self.groups.setdefault(line.name, line.members) != line.members:
                raise _bad(self.path, number, f"group {line.name} had other members before")
        elif isinstance(line, Making):
            check_making(self.path, number, line, self.makings, self.world)
        elif isinstance(line, Site):
            check_site(self.path, number, line, self.sites)
        elif isinstance(line, RepeatedOperation):
            check_operation(self.path, number, line, self.operations)
        elif isinstance(line, Past | History):
            check_history(self.path, number, line, self.operations, self._next)
            self._begin(line)
        self._lossy |= isinstance(line, Dropped)
        known: Group | Making | Site | RepeatedOperation | Past | History | Event | Dropped | End = line
        return known

    def _begin(self, line: Past | History) -> None:
        """Take up what came before the first event; in the midst of events, it is what was read."""
        if self._next is not None:
            return
        if isinstance(line, Past):
            self.past.append(line)
            return
        self.history, self._next = line, line.index
        self._lossy |= bool(line.forgotten or line.lost)
        self._open = {enter: (self.operations[of], sequence) for enter, of, sequence, _, _ in line.open}

    def _event(self, number: int, line: Short) -> Event:
        if isinstance(line, Enter):
            about = self.operations.get(line.operation)
            if about is None:
                raise _bad(self.path, number, f"nothing says what operation {line.operation} is")
            self._open[line.index] = about, line.sequence
            return entered_event(line, about)
        known = self._open.get(line.entered)
        if known is None and not self._lossy:
            raise _bad(self.path, number, f"no operation that is open was issued as {line.entered}")
        if isinstance(line, Exit):
            self._open.pop(line.entered, None)
        facts: dict[str, Any] = {"entered": line.entered}
        if known is not None:
            facts |= {"group": known[0].group, "sequence": known[1], "op": known[0].op, "peer": known[0].peer}
        edge: Edge = "wait" if isinstance(line, Wait) else "exit"
        return Event(line.index, line.time_ns, "", edge, "", "", **facts)


def entered_event(line: Enter, about: RepeatedOperation) -> Event:
    """Return the event that an `enter` stands for."""
    facts = {name: getattr(about, name) for name in RepeatedOperation.__struct_fields__[1:]}
    return Event(line.index, line.time_ns, "", "enter", "", "", sequence=line.sequence, **facts)


def check_making(path: Path, number: int, line: Making, makings: dict[int, Making], world: int) -> None:
    """Take up the making of a group. Raises UnreadableInput where its number is taken, or its members cannot be."""
    check_group(path, number, f"number {line.number}", line.members, world)
    if makings.setdefault(line.number, line) != line:
        raise _bad(path, number, f"the making of group number {line.number} is there twice")


def check_site(path: Path, number: int, line: Site, sites: dict[int, Site]) -> None:
    """Take up a site. Raises UnreadableInput where its number is taken, or nothing says what called it."""
    if line.caller is not None and line.caller not in sites:
        raise _bad(path, number, f"nothing says where site {line.caller} is")
    if sites.setdefault(line.number, line) != line:
        raise _bad(path, number, f"site {line.number} was another place before")


def check_operation(path: Path, number: int, line: RepeatedOperation, known: dict[int, RepeatedOperation]) -> None:
    """Take up a repeated operation. Raises UnreadableInput where its number is taken."""
    if known.setdefault(line.number, line) != line:
        raise _bad(path, number, f"operation {line.number} was another before")


def check_history(
    path: Path, number: int, line: Past | History, known: Mapping[int, RepeatedOperation], following: int | None
) -> None:
    """Raise UnreadableInput where a summary names what was not announced, or does not stand where it belongs.

    `following` is the index of the next event, once there was one.
    """
    if isinstance(line, History):
        if following is not None and line.index != following:
            raise _bad(path, number, f"it sums up what came before event {line.index}, and event {following} follows")
        used = [operation for _, operation, *_ in line.open]
        indices = [enter for enter, *_ in line.open]
    else:
        used = [operation for operation, *_ in line.last]
        indices = [enter for _, enter, _ in line.last]
        if len(used) > line.count or not all(_DIGEST(digest) for digest in (line.wire, line.full)):
            raise _bad(path, number, "not a summary of operations")
    if missing := [operation for operation in used if operation not in known]:
        raise _bad(path, number, f"nothing says what operation {missing[0]} is")
    if sorted(set(indices)) != indices:
        raise _bad(path, number, "the operations that it names are not in order")


_DIGEST = re.compile("[0-9a-f]{16}").fullmatch


def frames_of(sites: Mapping[int, Site], number: int | None) -> list[Site]:
    """Return the short stack that begins at a site, innermost call first; empty of None."""
    frames: list[Site] = []
    while number is not None and number in sites and len(frames) < MAX_STACK:
        frames.append(sites[number])
        number = frames[-1].caller
    return frames


def place_in(sites: Mapping[int, Site], number: int | None) -> str:
    """Return `file:line` of the outermost call of the short stack that begins at a site: the program's, as a rule."""
    frames = frames_of(sites, number)
    return frames[-1].place if frames else ""


def decode(path: Path, number: int, raw: bytes, format: int = FORMAT_VERSION) -> Line:
    """Return one whole line as that format has it. Raises UnreadableInput."""
    short = format == FORMAT_VERSION and raw.startswith(SHORT)
    line: Line = _decode(path, number, raw, _short_decoder if short else _former_decoder if format == 1 else _decoder)
    if format == 2 and isinstance(line, RepeatedOperation | Making):
        raise _bad(path, number, "format 2 has no such line")
    return line


def _decode(path: Path, number: int, raw: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        line = decoder.decode(raw)
        if encode(line) != raw:  # not as a recorder writes it: each field has to stand there once all the same
            json.loads(raw, object_pairs_hook=_once)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _bad(path, number, f"not a line of a trace ({str(error)[:300]})") from None
    return line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has `{name[:40]}` twice")
        found[name] = value
    return found


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
    for name, members in line.groups.items():
        check_group(path, 1, name, members, line.world)
    return line


def check_group(path: Path, number: int, name: str, members: tuple[int, ...], world: int) -> None:
    """Raise UnreadableInput if that cannot be who is in a group."""
    if len(set(members)) != len(members) or not all(0 <= rank < world for rank in members):
        raise _bad(path, number, f"the members of group {name[:80]} are not distinct ranks of a job of {world}")


def _bad(path: Path, number: int, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=f"{path}, line {number}", do="is it a trace that genlock recorded?")


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
