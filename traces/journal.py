"""Keeps the journal of a recording: which jobs began, what went unrecorded, and how the recorded command ended.

A folder of traces shows what was recorded. What was not leaves no trace, and so the journal says it: without it, a rank
that could not be recorded would be silence. It is `recording.jsonl` beside the traces, and every process of the
recording appends to it, one write a line.

Left out: what follows from it (`conformance.jobs`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

NAME = "recording.jsonl"
UNRECORDED = "unrecorded-"
"""Begins the name of an empty file that stands for a line which could not be written."""
MOST_LINES = 100_000
"""A journal has a line a process or job; beyond so many the rest is not read."""


class Job(msgspec.Struct, frozen=True, tag="job", tag_field="kind", omit_defaults=True):
    """Says that the ranks of a job began: those that joined one `init_process_group`, or one channel."""

    run: str
    """The same in the headers of its traces."""
    attempt: int = 0
    world: int = 0
    recording: str = ""
    """Names the recording; the same in the headers of its traces. Ranks of a job on several nodes have one each."""


class Unrecorded(msgspec.Struct, frozen=True, tag="unrecorded", tag_field="kind", omit_defaults=True):
    """Says that something was not recorded, or was lost, so that nothing is known of it."""

    what: str
    process: int = 0


class Came(msgspec.Struct, frozen=True, tag="came", tag_field="kind", omit_defaults=True):
    """Says that a process has come to `init_process_group`: it is in there until it has joined or failed."""

    process: int
    rank: int = -1
    """-1 where it is not known before."""
    world: int = 0
    local_world: int = 0
    """Ranks on its host; 0 where that is not known."""
    attempt: int = 0
    place: str = ""


class Joined(msgspec.Struct, frozen=True, tag="joined", tag_field="kind", omit_defaults=True):
    """Says that a process has come out of `init_process_group`, and is a rank."""

    process: int


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind", omit_defaults=True):
    """Says that `init_process_group` raised, or that a process ended by an exception before it came there."""

    process: int
    rank: int = -1
    world: int = 0
    attempt: int = 0
    joining: bool = False
    """True where it was in `init_process_group`."""
    type: str = ""
    message: str = ""
    place: str = ""


class Began(msgspec.Struct, frozen=True, tag="began", tag_field="kind", omit_defaults=True):
    """Says that the recorded command began."""

    program: tuple[str, ...]
    wall_ns: int


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="kind", omit_defaults=True):
    """Says that the recorded command ended, with which exit status; 128 + N where signal N ended it."""

    status: int
    wall_ns: int
    stalled: bool = False
    """True where it stood still, and the recording ended it for that."""
    lines: int = 0
    """So many lines at least stood before this one."""


Line = Job | Unrecorded | Came | Joined | Failed | Began | Ended
T = TypeVar("T", bound=Line)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def append(folder: Path, line: Line) -> None:
    """Append a line to the journal of the recording in a folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = _encoder.encode(line) + b"\n"
    file = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        if os.write(file, raw) < len(raw):
            raise OSError(28, "No space left on device", str(folder / NAME))
    finally:
        os.close(file)


def mark(folder: Path, what: str) -> None:
    """Say in the journal that something of this process is not recorded; where even that fails, by an empty file."""
    try:
        append(folder, Unrecorded(what[:1000], os.getpid()))
    except OSError:
        with contextlib.suppress(OSError):  # a full disk takes a name more readily than a line
            (folder / f"{UNRECORDED}{os.getpid()}").touch()


def remove(folder: Path) -> None:
    """Remove the journal of a folder, if it has one."""
    for path in [path for path in folder.iterdir() if is_part(path)]:
        path.unlink()


def is_part(path: Path) -> bool:
    """Return True for a file of a journal."""
    return path.name == NAME or path.name.startswith(UNRECORDED)


def end(folder: Path, status: int, *, stalled: bool = False) -> None:
    """Say in the journal that the recorded command ended. Raises OSError."""
    append(folder, Ended(status, time.time_ns(), stalled, lines=sum(1 for _ in _lines(folder / NAME))))


class Journal:
    """Holds what a journal says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = [*_lines(folder / NAME)]
        if any(isinstance(line, Ended) and at < line.lines for at, line in enumerate(self.lines)):
            self.lines.append(Unrecorded("lines of the journal are gone"))
        self.lines += [Unrecorded("its journal could not be written", _pid(p)) for p in folder.glob(UNRECORDED + "*")]

    @property
    def joining(self) -> set[int]:
        """Return the processes that are in the call by which they join a job."""
        inside: set[int] = set()
        for line in self.lines:
            if isinstance(line, Came):
                inside.add(line.process)
            elif isinstance(line, Joined | Failed):
                inside.discard(line.process)
        return inside

    def all(self, kind: type[T]) -> list[T]:
        """Return the lines of a kind, each once, in order."""
        return list(dict.fromkeys(line for line in self.lines if isinstance(line, kind)))


def place_of(folder: Path, job: Job) -> Path:
    """Return the folder for the traces of a job, the same for all of its ranks; note the job in the journal.

    The first job has the recording's own folder, and the first that is started again `restart<N>`. The order of lines
    decides which one is first, as each line is one write. Where the journal cannot be written, the job has a folder by
    its own name.
    """
    try:
        if job not in (known := Journal(folder).all(Job)):
            append(folder, job)
            known = Journal(folder).all(Job)
        at = known.index(job)
    except (OSError, ValueError):
        return folder / f"job-{job.run}-{job.attempt}"
    if any(other.attempt == job.attempt for other in known[:at]):
        return folder / f"job{at + 1}"
    return folder / f"restart{job.attempt}" if job.attempt else folder


def _lines(path: Path) -> Iterator[Line]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            if number >= MOST_LINES:
                yield Unrecorded("the journal is too long to be read whole")
                return
            try:
                yield _decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield Unrecorded(f"line {number + 1} of the journal cannot be read")


def _pid(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < 10 else 0
