"""Reads lines of logs: what launchers put in front of them, who wrote them, and where what is read of them goes.

Prefixes nest, and colours may stand anywhere. Lines of many processes tear and run together, so that families match
anywhere in a line and look for several hits in it.

Left out: finding the lines (`scan`), and what they say (the families).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from ...evidence import Fact, GroupName, Numbering, Operation, Source, Waits, Writer

MAX_FACTS = 200_000
"""A job of 4,096 ranks leaves some 40,000."""
MAX_RANKS = 1 << 17
"""No job has more: a higher rank, or a larger group, is a number that was torn, and what says so is left out."""
MAX_TEXT = 400
"""Characters of a message that are kept."""

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_PREFIX = re.compile(
    r"""
      \[rank(?P<rank>\d{1,7})\]:\ ?
    | >(?:\ |$)
    | (?P<compose>[a-z0-9][a-z0-9_.\-]{0,80}-\d{1,4})\ +\|(?:\ |$)
    | \[\d+,(?P<mpi>\d{1,7})\](?:\[[^\]\s]{1,200}\])?<\w{1,10}>:\s?
    | \[(?P<role>[A-Za-z_]\w{0,40}?)(?P<local>\d{1,5})\]:\ ?
    | \ {0,6}(?P<task>\d{1,6}):\ (?!\d)
    | \[pod/(?P<pod>[^\]\s]{1,200})\]\ ?
    | (?P<stern>[a-z0-9]+(?:-[a-z0-9]+){1,12})\ [a-z0-9]+(?:-[a-z0-9]+){0,8}[ ]
          (?=\[rank\d|\[E\d|Traceback\ \(|\ \ File\ ")
    | \((?P<actor>[A-Za-z_][\w.<>:\-]{0,80})(?:\ rank=(?P<arank>\d{1,7}))?
          \ pid=(?P<pid>\d{1,10})(?:,\ ip=(?P<ip>[^)\s]{1,80}))?\)\ ?
    | \d{4}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\ (?:std(?:out|err)\ [FP]\ )?
    | \[\d{4}-\d\d-\d\d\ \d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?P<axes>(?:\ [A-Z]{2}\d{1,5}){0,6})\]\ ?
    | [A-Z][a-z]{2}\ [\d\ ]\d\ \d\d:\d\d:\d\d\ (?P<journal>[\w.\-]{1,100})\ [\w.@:/\-]{1,100}(?:\[\d{1,10}\])?:\ ?
    | (?P<level>INFO|WARNING|ERROR|DEBUG|CRITICAL)\ \d\d-\d\d\ \d\d:\d\d:\d\d(?:\.\d{1,6})?\ \[[^\]\s]{1,120}\]\ ?
    | (?P<elastic>[IWEF]\d{4}\ \d\d:\d\d:\d\d\.\d{6}\ \d{1,10}\ [\w/.\-]{1,200}:\d{1,6}\]\ ?)
    """,
    re.VERBOSE,
)
_AXES = re.compile(r"(?<![A-Za-z])(DP|PP|TP|EP|DCP|PCP)(\d{1,5})(?!\d)")
RANK = re.compile(r"\[rank(\d{1,7})\]:")
_OTHER = re.compile(r"(?!\s)[^{}]{1,120}?[\s:\]>|](?=\[rank\d{1,7}\]:)")
"""A prefix of any other kind, known by the rank's own that comes after it."""
_SAID = re.compile(r"Traceback \(|File \"|Error: |WorkNCCL")
"""What is no prefix, but said by somebody else into the same line."""
_WRAPPED = ("log", "message", "msg", "MESSAGE", "textPayload")
"""Keys under which collectors of logs keep a line as JSON."""


class Line(NamedTuple):
    """Holds one line, without colours."""

    text: str
    rest: str
    """The text behind all prefixes."""
    writer: Writer
    level: str
    """`ERROR` where a prefix says so."""
    source: Source
    heads: bool = False
    """True if a logger's prefix is there, which a message of several lines has in its first alone."""

    def rank_at(self, at: int) -> int | None:
        """Return the rank that wrote what stands at a position: the last prefix before it that names one."""
        found = None
        for match in RANK.finditer(self.text, 0, at):
            found = int(match[1])
        return found if found is not None else self.writer.rank


def split(text: str, source: Source) -> Line:
    """Take a line apart into its prefixes and the rest."""
    if "\x1b" in text:
        text = ANSI.sub("", text)
    text = _unwrapped(text.rstrip("\r\n"))
    rank = task = local = pid = None
    host = role = level = ""
    worker: tuple[tuple[str, int], ...] = ()
    at = 0
    heads = False
    for _ in range(8):
        found = _PREFIX.match(text, at)
        if found is None or found.end() == at:
            other = _OTHER.match(text, at) if rank is None else None
            found = _PREFIX.match(text, other.end()) if other and not _SAID.search(other[0]) else None
        if found is None or found.end() == at:
            break
        at = found.end()
        given = found.groupdict()
        number = given["rank"] or given["mpi"] or given["arank"]
        rank = int(number) if number and int(number) < MAX_RANKS else rank
        local = int(given["local"]) if given["local"] else local
        task = int(given["task"]) if given["task"] else task
        pid = int(given["pid"]) if given["pid"] else pid
        host = given["journal"] or given["pod"] or given["ip"] or given["stern"] or given["compose"] or host
        level = given["level"] or level
        heads = heads or given["axes"] is not None
        role = given["actor"] or given["role"] or role
        worker = axes_in(given["actor"] or "") or axes_in(given["axes"] or "") or worker
    return Line(text, text[at:], Writer(rank, task, local, pid, host, worker, role), level, source, heads)


def _unwrapped(text: str) -> str:
    """Return the line that a collector wrote as JSON, or the text as it is."""
    if not text.startswith('{"'):
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    if isinstance(value, dict):
        line = next((value[key] for key in _WRAPPED if isinstance(value.get(key), str)), None)
        return text if line is None else ANSI.sub("", line).rstrip("\r\n").partition("\n")[0]
    return text


def axes_in(name: str) -> tuple[tuple[str, int], ...]:
    """Return the axes that an engine's name of a worker has: `Worker_PP0_TP1`."""
    return tuple((axis, int(index)) for axis, index in _AXES.findall(name))


class Block(Protocol):
    """Holds the lines of one writer that belong together."""

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take the next line of the same writer; False where it does not belong to the block any more."""

    def close(self, sink: Sink) -> None:
        """Put what the block said into the sink."""


Key = tuple[Path, Writer]


class Sink:
    """Gathers facts, once each, and holds blocks of lines that are not yet whole."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.blocks: dict[Key, Block] = {}
        self.ranked = False
        """True if lines name global ranks."""
        self.assumed: list[tuple[Waits, str]] = []
        """Waits of a rank that is a `task` or a rank in its `group`, and what it is."""
        self.full = False
        """True if there were more facts than are kept."""
        self.spawned: dict[Key, int] = {}
        """Number of the spawned process whose traceback comes next, by who writes it."""
        self.ranks: dict[Key, int] = {}
        """Rank of the stacks that come next, where a header named it."""
        self.crashed: dict[Key, bool] = {}
        """True if the stacks that come next are of a process that is about to end."""
        self.completed: dict[Row, tuple[int, Source]] = {}
        """The last number of each rank and kind that is known to have completed."""
        self._queries = 0
        self._seen: set[object] = set()
        self._untied: dict[tuple[int, int], int] = {}

    def add(self, fact: Fact, key: object = None) -> bool:
        """Keep a fact, unless one of the same key was there; without a key, one of the same contents."""
        seen = (type(fact), key if key is not None else tuple(fact)[1:])
        if seen in self._seen or not _possible(fact):
            return False
        if len(self.facts) >= MAX_FACTS:
            self.full = True
            return False
        self._seen.add(seen)
        self.facts.append(fact)
        return True

    def keep(self, fact: Fact) -> None:
        """Keep a fact as often as it is stated."""
        if _possible(fact):
            self.facts.append(fact)

    def wait(self, fact: Waits) -> None:
        """Keep a wait; one without a group gets it from the counters that the same rank writes next."""
        if fact.group is None:
            key = (fact.rank, fact.number)
            if ("wait", *key, fact.operation) in self._seen:
                return  # the same line once more, inside of another message
            self._seen.add(("wait", *key, fact.operation))
            at = len(self.facts)
            if self.add(fact, (fact.rank, fact.number, fact.operation)):
                self._untied[key] = at
        else:
            self.add(fact, (fact.rank, fact.group, fact.number))

    def writes(self, line: Line) -> None:
        """Note which numbers a writer goes by."""
        writer = line.writer
        if writer.rank is None:
            return
        self.ranked = True
        if writer.task is not None or writer.local is not None:
            key = (line.source.path, writer.rank, writer.task, writer.local)
            self.add(Numbering(line.source, writer.rank, writer.task, writer.local), key)

    def tie(self, source: Source, rank: int, group: GroupName, number: int) -> None:
        """Say which group the rank's wait in the operation of that number is in."""
        at = self._untied.pop((rank, number), None)
        known = (Waits, (rank, group, number))
        if at is not None and known not in self._seen:
            self._seen.add(known)
            wait = self.facts[at]
            if isinstance(wait, Waits):
                self.facts[at] = wait._replace(group=group)
        elif at is None:
            self.add(Waits(source, rank, group, number, Operation(""), failed=True), (rank, group, number))

    def open(self, line: Line, block: Block) -> None:
        """Begin a block of the line's writer; one that is open is closed."""
        key = (line.source.path, line.writer)
        if key in self.blocks:
            self.blocks.pop(key).close(self)
        self.blocks[key] = block

    def query(self) -> int:
        """Number the answer to a question that was put to all ranks."""
        self._queries += 1
        return self._queries - 1

    def close_blocks(self) -> None:
        """Close all blocks as they are."""
        for block in list(self.blocks.values()):
            block.close(self)
        self.blocks.clear()

    def close(self) -> None:
        """Close all blocks: the file has come to its end."""
        self.close_blocks()
        self._tie_late()
        for of_file in (self.spawned, self.ranks, self.crashed):
            of_file.clear()

    def finish(self) -> None:
        """Keep what only the end of all files completes."""
        numbers = [fact for fact in self.facts if isinstance(fact, Numbering)]
        tasks_are_ranks = all(fact.task in (None, fact.rank) for fact in numbers)
        for wait, what in self.assumed:
            if tasks_are_ranks if what == "task" else not self.ranked:
                self.add(wait, (wait.rank, wait.number, wait.operation))
        self.assumed.clear()

    def _tie_late(self) -> None:
        """Tie the waits whose counters were written before them."""
        for (rank, number), at in self._untied.items():
            loose = self.facts[at]
            for other, fact in enumerate(self.facts):
                if isinstance(fact, Waits) and fact[1] == rank and fact.number == number and fact.group is not None:
                    if isinstance(loose, Waits) and not fact.operation.kind:
                        self.facts[other] = fact._replace(operation=loose.operation, failed=False)
                        self.facts[at] = fact._replace(operation=loose.operation, failed=False)
                    break
        self._untied.clear()


_RANKS = ("rank", "peer", "by", "position", "size", "of", "came")
"""Fields that hold a rank, or how many there are."""


def _possible(fact: Fact) -> bool:
    """Tell whether all ranks that a fact names may be those of a job."""
    writer: Writer | None = getattr(fact, "writer", None) if not isinstance(getattr(fact, "writer", 0), int) else None
    named = [getattr(fact, name, None) for name in _RANKS]
    named += [*(getattr(fact, "ranks", ())), None if writer is None else writer.rank]
    return all(rank is None or rank <= MAX_RANKS for rank in named)


class Row(NamedTuple):
    """Hold what a number of completed operations is of."""

    name: str
    rank: int
    size: int
    kind: str
    host: str
    pid: int


class Family(NamedTuple):
    """Defines one family of lines: words of which each of its lines has one, and what reads such a line."""

    markers: tuple[bytes, ...]
    read: Callable[[Line, Sink], None]
    near: bytes = b""
    """A word that stands somewhere near each of its lines: where it is in no line of a block, none is looked for."""


def ranks_in(text: str) -> tuple[int, ...]:
    """Return the ranks in `1, 2, 5`, with or without brackets."""
    return tuple(int(number[:18]) for number in re.findall(r"\d+", text)[:100_000])


def short(text: str) -> str:
    """Return a message on one line, of a bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 2]} …"
