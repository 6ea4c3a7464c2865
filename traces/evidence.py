"""Defines the facts about a job that hung or ended, as logs, stacks and reports of other tools state them.

Each fact says one thing and where it was read. Facts carry no judgement: a rank that is named in one is not to blame
for it. `Evidence` holds all facts of a job, and the recording of its collectives where dumps or traces were found too.

Left out: the forms in which facts are written (`importers.logs`), and what follows from them (`conformance.evidence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from .collectives import Recording


class Source(NamedTuple):
    """Names where a fact was read: a file, or a member of an archive, and the line in it, from 1."""

    path: Path
    line: int = 1

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


class Place(NamedTuple):
    """Names a line of source code."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}" + (f" ({self.function})" if self.function else "")


class Writer(NamedTuple):
    """Identifies the process that wrote a line, by what its prefixes say of it."""

    rank: int | None = None
    """Global rank, stated as such."""
    task: int | None = None
    """Number of the task under srun: the rank where each task is one rank."""
    local: int | None = None
    """Rank on its host."""
    pid: int | None = None
    host: str = ""
    """Host, address or pod, as the prefix has it."""
    worker: tuple[tuple[str, int], ...] = ()
    """Axes of an engine's worker: (("TP", 1),)."""
    role: str = ""
    """Name of an actor or role, where one is given."""

    def __str__(self) -> str:
        if self.rank is not None:
            return f"rank{self.rank}"
        named = "_".join(f"{axis}{index}" for axis, index in self.worker)
        return named or self.role or (f"process {self.pid}" if self.pid is not None else "a process without a name")


class GroupName(NamedTuple):
    """Identifies a process group across ranks. Numbers of operations compare only inside of one."""

    family: str
    """Who counts: `torch`, `desync`, `wrapper`, `nccl`, `ras`, `inspector`."""
    name: str
    description: str = ""
    shared: bool = True
    """False where the name is one rank's own number, which is another group on another rank."""

    def __str__(self) -> str:
        return f"group {self.name}" + (f" ({self.description})" if self.description else "")


class Operation(NamedTuple):
    """Hold what a rank issued, as far as it is stated. Sizes in elements, -1 where they are not."""

    kind: str
    """Name on the wire, as in `collectives.Signature`; empty where it is not stated."""
    sent: int = -1
    received: int = -1
    detail: str = ""
    """Data type, reduction, root, shape: whatever else all members must agree on."""

    def __str__(self) -> str:
        sizes = [s for s in (self.sent, self.received) if s >= 0]
        size = ""
        if sizes:
            size = f" of {sizes[0]:,}" if len(set(sizes)) == 1 else f" of {sizes[0]:,} in, {sizes[-1]:,} out"
        return (self.kind or "an operation") + size + (f" ({self.detail})" if self.detail else "")


class Counters(NamedTuple):
    """Holds a rank's counters in a group; -1 where there is none yet."""

    source: Source
    rank: int
    group: GroupName
    enqueued: int
    completed: int


class Waits(NamedTuple):
    """Says that a rank waits in an operation that did not complete in time, or failed in it."""

    source: Source
    rank: int
    group: GroupName | None
    number: int
    """Number of the operation in its group; -1 where it is not stated."""
    operation: Operation
    failed: bool = False
    """True if it failed by an error rather than by the time that it took."""


class Issued(NamedTuple):
    """Says that ranks of a group issued one operation, and whether they finished it."""

    source: Source
    ranks: tuple[int, ...]
    group: GroupName
    number: int
    operation: Operation
    finished: bool


class Complained(NamedTuple):
    """Says that a rank was the one whose time-out others heard of: it waited itself."""

    source: Source
    rank: int


class Heard(NamedTuple):
    """Says that a rank took part in the end of the job because another rank told it to."""

    source: Source
    rank: int


class Membership(NamedTuple):
    """Says that a rank is a member of a group of so many."""

    source: Source
    group: GroupName
    rank: int
    position: int
    """Its rank in the group."""
    size: int


class Unlike(NamedTuple):
    """Says that a rank compared its collective with those of others, and found another's to be unlike its own.

    Ranks are compared in ascending order, so that all ranks below `peer` had what `rank` has.
    """

    source: Source
    rank: int
    mine: Operation
    number: int
    peer: int | None
    theirs: Operation | None
    theirs_number: int
    writer: int | None = None
    """Global rank of who wrote it, where that is stated: `rank` and `peer` are ranks in the group that was checked."""
    ascending: bool = True
    """True if the ranks are those of the group, in whose order they were compared."""


class NeverCame(NamedTuple):
    """Names the ranks that did not come to where `by` waited for them."""

    source: Source
    by: int
    ranks: tuple[int, ...]
    where: str
    writer: int | None = None
    """Global rank of who wrote it, where that is stated: the others are ranks in the group."""


class Joined(NamedTuple):
    """Says how many of how many clients reached the store."""

    source: Source
    writer: Writer
    came: int
    of: int


class JobSize(NamedTuple):
    """Says how many ranks the job has, as its launcher or framework knows it."""

    source: Source
    size: int


class KeyWait(NamedTuple):
    """Says that a rank waited for a key of the store that another one had to set."""

    source: Source
    writer: Writer
    key: str


class PeerLost(NamedTuple):
    """Says that a process lost its connection to a peer.

    The process that says so is alive; the peer or the way to it is not.
    """

    source: Source
    writer: Writer
    address: str
    """Address of the peer, without its port; empty where it is not stated."""
    what: str


class PeerSilent(NamedTuple):
    """Says that a process waited in vain for bytes of a peer that is not named."""

    source: Source
    writer: Writer
    what: str


class Exited(NamedTuple):
    """Says that a rank's process ended, as its launcher saw it."""

    source: Source
    rank: int
    host: str
    code: int
    """Exit status; negative: the signal that ended it."""
    pid: int
    first: bool
    """True if the launcher saw it end first."""
    time: str
    """`2026-01-26_01:19:30`, of the launcher's clock; empty where it is not stated."""
    message: str


class LocalExit(NamedTuple):
    """Says that a launcher saw a process end first on its host, by its number there: the rank's on one host alone."""

    source: Source
    writer: Writer
    """Names the process that ended, by its number on the host and its process id."""
    code: int
    """As in `Exited`."""


class Raised(NamedTuple):
    """Says that a process raised an exception."""

    source: Source
    writer: Writer
    type: str
    message: str
    place: Place | None
    """The program's line."""
    library: Place | None
    """The innermost line, where that is a library's."""
    fatal: bool
    """True if it certainly ended the process."""
    follows: bool
    """True if it is the kind that tells of another's failure: of the process group, the store, or a signal."""


class Frame(NamedTuple):
    """Holds one call of a stack."""

    function: str
    file: str
    line: int


class Stack(NamedTuple):
    """Says where the main thread of a process stood, innermost call first."""

    source: Source
    writer: Writer
    frames: tuple[Frame, ...]
    active: bool
    """True if the system had it running."""
    crashed: bool = False
    """True if it was written because the process was about to end."""
    measured: bool = True
    """True if `active` is what a tool saw; faulthandler does not look."""
    waited: bool = False
    """True if it is of an exception which says that it waited for others there."""


class Called(NamedTuple):
    """Says from where a rank issued the operation that its watchdog gave up."""

    source: Source
    rank: int
    place: Place | None
    """The program's line."""
    library: Place | None
    """The innermost line, where that is a library's."""


class Stuck(NamedTuple):
    """Says that a rank's own monitor found its watchdog or its interpreter not moving."""

    source: Source
    rank: int
    what: str


class Hang(NamedTuple):
    """Says that an engine noticed that somebody does not answer; it does not say who."""

    source: Source
    writer: Writer
    what: str


class WorkerDied(NamedTuple):
    """Says that an engine saw one of its workers end."""

    source: Source
    rank: int
    what: str


class Process(NamedTuple):
    """Says that a process runs a rank."""

    source: Source
    host: str
    pid: int
    rank: int


class Collected(NamedTuple):
    """Says what two looks at a rank's process showed, a while apart (`genlock collect`)."""

    source: Source
    rank: int
    world: int
    """Number of ranks of the job; 0 where it is not known."""
    assumed: str
    """The convention from which the rank is taken; empty where it is stated."""
    stopped: bool
    """True if a signal had stopped it both times."""
    moved: bool
    """True if it issued operations in between."""
    still: bool
    """True if it is certain that it issued none."""
    elsewhere: bool
    """True if its main thread lay in one sleep, or waited for a file system, all the time."""
    torch: str = ""
    """Version of its torch; empty where it is not known."""


class Numbering(NamedTuple):
    """Names a rank and the other numbers that its prefixes, or its launcher, give it.

    Both hold within one file.
    """

    source: Source
    rank: int
    task: int | None
    local: int | None


class Counted(NamedTuple):
    """Hold what a tool that asks all ranks heard: launches by kind of collective, in one communicator."""

    source: Source
    query: int
    """Which question this answers, from 0."""
    group: GroupName
    size: int
    counts: Mapping[str, Mapping[int, int]]
    """Kind to rank to the number of launches; where only outliers are named, the others are under rank -1."""
    rest: Mapping[str, tuple[tuple[int, int], ...]] = {}
    """Kind to (ranks, launches) of those that are counted without being named."""
    missing: tuple[int, ...] = ()
    """Ranks that did not answer."""
    dead: tuple[int, ...] = ()
    """Ranks that the tool holds to be dead."""
    failed: tuple[int, ...] = ()
    """Ranks that report an error of their communicator."""
    whole: bool = True
    """True if the ranks are the job's. Else they are those of a smaller communicator, and name no rank of the job."""


class Finished(NamedTuple):
    """Names the last operation of a kind that a rank is known to have finished: a lower bound."""

    source: Source
    group: GroupName
    rank: int
    size: int
    kind: str
    number: int
    whole: bool = True
    """True if the communicator is the job's, so that whoever is not in it has finished nothing."""


class Calls(NamedTuple):
    """Hold what one process issued in one communicator, in order."""

    source: Source
    """Where the first was read."""
    process: tuple[str, int, int]
    """Host, pid and number of the device."""
    rank: int | None
    """Rank in the communicator, where it is stated."""
    whole: bool
    """True if the communicator is that of the whole job, so that its ranks are the job's."""
    group: GroupName
    size: int
    numbers: Sequence[int]
    """The number that the library gave each."""
    operations: Sequence[int]
    """Index into `table`, of each."""
    table: Sequence[Operation]
    torn: bool
    """True if a line was damaged, so that counting them says nothing."""


Fact = (
    Counters
    | Waits
    | Issued
    | Complained
    | Heard
    | Membership
    | Unlike
    | NeverCame
    | Joined
    | JobSize
    | KeyWait
    | PeerLost
    | PeerSilent
    | Exited
    | LocalExit
    | Raised
    | Stack
    | Called
    | Stuck
    | Hang
    | WorkerDied
    | Process
    | Collected
    | Numbering
    | Counted
    | Finished
    | Calls
)


F = TypeVar("F")


@dataclass
class Evidence:
    """Holds all that is known of one job."""

    facts: list[Fact] = field(default_factory=list)
    recording: Recording | None = None
    """Its collectives, where they were recorded."""
    files: list[Path] = field(default_factory=list)
    """Files that said something."""

    def of(self, kind: type[F]) -> list[F]:
        """Return the facts of one type, in the order in which they were read."""
        return [fact for fact in self.facts if isinstance(fact, kind)]
