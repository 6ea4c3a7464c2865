"""Defines the flags of the command line: their choices, their help, and how a repeated one is read.

Left out: which fault kinds, break-it rows, properties and parameters there are; the module that a command
calls says so. A value that cannot be read is a `UsageError`, one line that names the flag.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import wraps
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..model.semantics.query import Query

# --- what can be chosen ---


class OnOff(StrEnum):
    on = "on"
    off = "off"


class Transport(StrEnum):
    rendezvous = "rendezvous"
    stream = "stream"


class Engine(StrEnum):
    auto = "auto"
    reference = "reference"
    numpy = "numpy"
    numba = "numba"


class AutoOnOff(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class Backend(StrEnum):
    gloo = "gloo"
    nccl = "nccl"


class ReportFormat(StrEnum):
    text = "text"
    json = "json"
    junit = "junit"


class Requirable(StrEnum):
    nccl = "nccl"


class Picture(StrEnum):
    states = "states"
    sequence = "sequence"
    counterexample = "counterexample"
    trace = "trace"
    waits = "waits"


class PictureFormat(StrEnum):
    svg = "svg"
    png = "png"
    dot = "dot"
    mermaid = "mermaid"
    html = "html"


# --- how a text is read ---


class FaultPoint(NamedTuple):
    """Holds `KIND[@POINT]`: a fault, and the one place where it may strike; None for any place."""

    kind: str
    point: str | None


class Injection(NamedTuple):
    """Holds `ID[,NAME=VALUE]...`: a row of the break-it matrix, and where to apply it."""

    id: str
    settings: dict[str, str]


def settings(flag: str, given: Iterable[str]) -> dict[str, str]:
    """Read repeated `NAME=VALUE`; a name may come once."""
    read: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not (name and value):
            raise UsageError(f"`{text}` is not NAME=VALUE", where=flag)
        if name in read:
            raise UsageError(f"`{name}` is given twice", where=flag, do="leave one of them")
        read[name] = value
    return read


def seconds(flag: str, given: Iterable[str]) -> dict[str, float]:
    """Read repeated `NAME=SECONDS`; seconds are finite and above 0."""
    read: dict[str, float] = {}
    for name, text in settings(flag, given).items():
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not 0 < value < inf:
            raise UsageError(f"`{text}` is not a number of seconds above 0", where=f"{flag} {name}")
        read[name] = value
    return read


def fault_points(given: Iterable[str]) -> tuple[FaultPoint, ...]:
    """Read repeated `KIND[@POINT]`."""
    read: list[FaultPoint] = []
    for text in given:
        match = re.fullmatch(r"([a-z][a-z_-]*)(?:@(\S+))?", text)
        if match is None:
            raise UsageError(f"`{text}` is not KIND or KIND@POINT", where="--fault")
        read.append(FaultPoint(match[1], match[2]))
    return tuple(read)


def injection(text: str | None) -> Injection | None:
    """Read `ID[,NAME=VALUE]...`, if given."""
    if text is None:
        return None
    row, *rest = text.split(",")
    if not re.fullmatch(r"[A-Z]+-[0-9]+", row):
        raise UsageError(f"`{row}` is no id of the break-it matrix", where="--inject", do="try `OM-01`")
    return Injection(row, settings("--inject", rest))


def at_most_one(**given: object) -> None:
    """Refuse flags that exclude each other. Keywords are the flags' names, with `_` for `-`."""
    names = ["--" + name.replace("_", "-") for name, value in given.items() if value]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other", do="give one of them")


# --- the flags, as a command declares them ---


def _repeated(flag: str, metavar: str, text: str) -> object:
    return typer.Option(
        flag, metavar=metavar, help=f"{text} May be repeated.", default_factory=list, show_default=False
    )


ProtocolName = Annotated[
    str,
    typer.Argument(metavar="PROTOCOL", help="Built in: tp_v1.1, tp_v0. Your own: FILE.py or FILE.py:NAME."),
]
Ranks = Annotated[int, typer.Option(min=2, help="Ranks, rank0 counted in.")]
RanksOfModel = Annotated[
    int | None,
    typer.Option("--ranks", min=2, help="Ranks, rank0 counted in.", show_default="3, or what the model says"),
]
Chunks = Annotated[int, typer.Option(min=1, help="Chunks, one after the other.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoise calls per chunk.")]
Faults = Annotated[
    int | None,
    typer.Option(min=0, help="Faults, at most.", show_default="1; with --mutant as many as it needs"),
]
FaultPoints = Annotated[list[str], _repeated("--fault", "KIND[@POINT]", "Only this fault, at this point if any.")]
TransportChoice = Annotated[
    Transport,
    typer.Option("--transport", help="Inside a collective a rank waits (rendezvous) or goes on (stream)."),
]
AuditTransport = Annotated[Transport | None, typer.Option("--transport", help="This one alone.", show_default="both")]
Detection = Annotated[
    OnOff | None,
    typer.Option(help="May a rank notice a dead or stuck peer?", show_default="each property in its own mode"),
]
Params = Annotated[list[str], _repeated("--param", "NAME=VALUE", "A parameter of the protocol.")]
Mutant = Annotated[str | None, typer.Option(metavar="FM-NN", help="Break the protocol in this known way.")]
Mutants = Annotated[bool, typer.Option("--mutants", help="Break it in each known way; each must fail.")]
AnyWorldSize = Annotated[bool, typer.Option("--any-world-size", help="Prove it for any number of workers.")]
Properties = Annotated[list[str], _repeated("--property", "NAME", "Only this property.")]
EngineChoice = Annotated[Engine, typer.Option("--engine", help="Which search; all answer the same.")]
SymmetryChoice = Annotated[AutoOnOff, typer.Option("--symmetry", help="Swap workers, where that is sound.")]
ReductionChoice = Annotated[
    AutoOnOff, typer.Option("--reduction", help="Leave out moves that show nothing new; auto: from 4 ranks on.")
]

MaxStates = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="End the search at so many states; what was covered is told.")
]
Timeout = Annotated[float | None, typer.Option(min=0.0, metavar="SECONDS", help="End the search after so long.")]
AllowUnreached = Annotated[
    list[str], _repeated("--allow-unreached", "ROW", "[ROLE.]STATE.EVENT that need not be taken for a verdict.")
]

Scenario = Annotated[str | None, typer.Argument(metavar="SCENARIO", help="A scenario, as `check` writes it.")]
BackendChoice = Annotated[Backend, typer.Option("--backend", help="What carries the tensors.")]
Inject = Annotated[
    str | None,
    typer.Option(metavar="ID[,NAME=VALUE]...", help="Break it: a row of the break-it matrix, and where."),
]
Deadlines = Annotated[list[str], _repeated("--deadline", "PHASE=SECONDS", "How long a phase may take.")]
Observe = Annotated[bool, typer.Option("--observe", help="Report a passed deadline, and end nothing.")]
AgentPerRank = Annotated[
    bool, typer.Option("--agent-per-rank", help="A torchrun for each rank, as on several machines; else one for all.")
]
Oversubscribe = Annotated[
    bool, typer.Option("--oversubscribe", help="Start more ranks than this machine seems to have room for.")
]
Meet = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where rank0's guardian is met.")]
Interface = Annotated[str | None, typer.Option(metavar="NAME", help="Network interface that it listens on.")]
Stall = Annotated[
    float | None,
    typer.Option(
        min=1.0,
        metavar="SECONDS",
        help="End the program, and judge it, once a rank is left waiting and its job has done nothing for so long.",
    ),
]
Precheck = Annotated[
    float | None,
    typer.Option(
        min=1.0,
        metavar="SECONDS",
        help="Compare each collective before the backend has it; ranks that differ, or wait for so long, raise.",
    ),
]


UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
LEAST = 1 << 20


def _bytes(text: str) -> int:
    """Return a size in bytes, as `1GiB` or `500MiB`."""
    number, unit = text[:-3], text[-3:]
    if not number.isdecimal() or len(number) > 9 or unit not in UNITS:
        raise typer.BadParameter(f"`{text[:40]}` is no size: write 1GiB, or 500MiB")
    size = int(number) * UNITS[unit]
    if size < LEAST:
        raise typer.BadParameter(f"{text} is less than 1MiB, which is the least that a trace takes")
    return size


Keep = Annotated[
    int | None,
    typer.Option(
        parser=_bytes,
        metavar="SIZE",
        help="Keep so much of each rank's trace, as 1GiB: the newest part, and a summary of what was before.",
    ),
]
Program = Annotated[list[str], typer.Argument(metavar="CMD", help="A program and its arguments.")]

TracePaths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH", help="Traces, dumps, logs or stacks, in any mixture; folders and archives of them."),
]
Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="On what: evidence.")]
ReportChoice = Annotated[ReportFormat, typer.Option("--format", help="How to print the verdict.")]
OutDir = Annotated[Path | None, typer.Option("--out", metavar="DIR", file_okay=False, help="Where to write.")]

Require = Annotated[
    Requirable | None, typer.Option("--require", help="Without evidence of this there is no verdict: exit status 3.")
]
FullMatrix = Annotated[
    bool, typer.Option("--full", help="Strike every rank of every number of ranks, in either layout: hours.")
]
RunFolders = Annotated[
    list[Path],
    typer.Option(
        "--run",
        metavar="DIR",
        help="Judge this run's traces. May be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
Evidence = Annotated[
    Path | None, typer.Option(metavar="FILE", dir_okay=False, help="What an audit found; as checked in, if not given.")
]

PictureChoice = Annotated[Picture, typer.Argument(help="What to draw.")]
Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="SUBJECT",
        help="Of what: a protocol, a counterexample, or traces.",
        default_factory=list,
        show_default=False,
    ),
]
Diff = Annotated[str | None, typer.Option(metavar="OTHER", help="Mark what differs from this one.")]
PictureFormatChoice = Annotated[PictureFormat, typer.Option("--format", help="What to write.")]
OutFile = Annotated[Path | None, typer.Option("--out", metavar="FILE", dir_okay=False, help="Where to write.")]

# --- the flags that several commands share ---


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Holds the flags that say what to search, but for the transport: a protocol, its scope, what may go wrong."""

    protocol: ProtocolName = "tp_v1.1"
    ranks: RanksOfModel = None
    chunks: Chunks = 2
    steps: Steps = 2
    faults: Faults = None
    fault: FaultPoints
    detection: Detection = None
    param: Params
    mutant: Mutant = None

    def on(self, *, stream: bool) -> Query:
        """Return the query that these flags make, on a transport. Raises UsageError for a value that cannot be read."""
        params, points = settings("--param", self.param), fault_points(self.fault)
        from ..model.semantics.query import Query
        from ..model.tables import Scope

        return Query(
            self.protocol,
            Scope(Scope().ranks if self.ranks is None else self.ranks, self.chunks, self.steps),
            params=params,
            faults=self.faults,
            fault_points=points,
            stream=stream,
            detection=None if self.detection is None else self.detection is OnOff.on,
            mutant=self.mutant,
            ranks_chosen=self.ranks is not None,
        )

    def refuse_for_mutants(self) -> None:
        """Refuse what `--mutants` would ignore: each mutant has its own faults and transport."""
        if self.protocol != Asked.protocol:
            what = f"{self.protocol} has no known mutants: they break {Asked.protocol}"
            raise UsageError(what, where="--mutants")
        for name in ("chunks", "faults", "fault", "detection", "param", "transport"):
            default = [] if name in ("fault", "param") else getattr(Asked, name)
            if getattr(self, name) != default:
                what = "each mutant has its own, which this would change"
                raise UsageError(what, where=f"--mutants --{name}", do="leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Asked(Searched):
    """Holds the flags of a search on one transport."""

    transport: TransportChoice = Transport.rendezvous

    def question(self) -> Query:
        """Return the query that these flags make."""
        return self.on(stream=self.transport is Transport.stream)


@dataclass(frozen=True, kw_only=True)
class Audited(Searched):
    """Holds the flags of an audit, on both transports or on one."""

    transport: AuditTransport = None

    @property
    def streams(self) -> tuple[bool, ...]:
        """Return, for each transport to search, if it is a stream."""
        return (False, True) if self.transport is None else (self.transport is Transport.stream,)

    @property
    def chosen(self) -> list[str]:
        """Return the flags, besides protocol and mutant, that were set to something else than their default."""
        own = Audited(fault=[], param=[])
        names = [field.name for field in fields(self) if field.name not in ("protocol", "mutant")]
        return [f"--{name}" for name in names if getattr(self, name) != getattr(own, name)]


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Declare the flags of a command's parameter `asked`, by its class, and hand them to it as one."""
    signature = inspect.signature(command, eval_str=True)
    kind = signature.parameters["asked"].annotation
    hints = get_type_hints(kind, include_extras=True)
    declared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
    own = [parameter for name, parameter in signature.parameters.items() if name != "asked"]

    @wraps(command)
    def with_flags(**given: Any) -> None:
        asked = kind(**{flag.name: given.pop(flag.name) for flag in declared})
        command(asked, **given)

    with_flags.__signature__ = signature.replace(parameters=[*declared, *own])  # type: ignore[attr-defined]
    return with_flags
