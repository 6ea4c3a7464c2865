"""Answers the questions of the public interface: check a protocol, load traces, replay them. Re-exported by `genlock`.

Left out: the work itself (`model.checker`, `traces`, `conformance`), and serving a model (`impl.rank.serve`). Each
function imports what it calls when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import UsageError

if TYPE_CHECKING:
    from .conformance.diagnosis import Diagnosis
    from .model.checker.report import Report
    from .model.tables import Protocol
    from .traces.collectives import Recording
    from .traces.format import Trace


def check(
    protocol: str | PathLike[str] | Protocol = "tp_v1.1",
    *,
    ranks: int = 3,
    chunks: int = 2,
    steps: int = 2,
    params: Mapping[str, object] | None = None,
    faults: int | None = None,
    fault: Sequence[str] = (),
    transport: Literal["rendezvous", "stream"] = "rendezvous",
    detection: bool | None = None,
    mutant: str | None = None,
    properties: Sequence[str] = (),
    engine: Literal["auto", "reference", "numpy", "numba"] = "auto",
    symmetry: Literal["auto", "on", "off"] = "auto",
    reduction: Literal["auto", "on", "off"] = "auto",
    progress: Callable[[int, int, int], None] | None = None,
) -> Report:
    """Search every state that a protocol can reach, and judge each property.

    - `protocol`: a built-in name (`tp_v1.1`, `tp_v0`), a file `FILE.py[:NAME]`, or a `Protocol`. `params` are the
      arguments of the function that NAME is in the file.
    - `ranks` (rank0 counted in), `chunks` and `steps` (generator calls a chunk) bound the search. A protocol that
      fixes its number of ranks keeps it.
    - `faults`: how many faults may strike, at most; None: one, or as many as the mutant needs. `fault`: which kinds,
      each as `KIND` or `KIND@STATE`; empty: a crash anywhere.
    - `transport`: inside a collective a rank waits (`rendezvous`, as on gloo) or goes on (`stream`, as on NCCL).
    - `detection`: may a rank notice a dead or stuck peer? None: each property in the mode that it is defined for.
    - `mutant`: break TP v1.1 in this known way first (`FM-01` to `FM-18`).
    - `properties`: the names of those to judge; empty: all that the protocol has.
    - `engine`, `symmetry`, `reduction`: how to search. All engines answer the same.
    - `progress` is called during the search with the number of states, the depth, and the states left to expand.

    Raises UsageError for a name, fault or parameter that does not exist, and ModelError for tables that make no sense.
    """
    from .model.checker.report import run_check
    from .model.semantics.query import Query
    from .model.tables import Protocol, Scope, validate

    for name, given, least in (("ranks", ranks, 2), ("chunks", chunks, 1), ("steps", steps, 1)):
        if given < least:
            raise UsageError(f"{name} is {given}", where="genlock.check", do=f"give {least} or more")
    _one_of("transport", transport, "rendezvous", "stream")
    _one_of("engine", engine, "auto", "reference", "numpy", "numba")
    _one_of("symmetry", symmetry, "auto", "on", "off")
    _one_of("reduction", reduction, "auto", "on", "off")
    if isinstance(fault, str):
        raise UsageError("`fault` is one text", where="genlock.check", do=f"give a sequence of them: [{fault!r}]")
    tables = validate(protocol) if isinstance(protocol, Protocol) else None
    query = Query(
        str(protocol) if tables is None else tables.name,
        Scope(ranks, chunks, steps),
        params={name: str(value) for name, value in (params or {}).items()},
        faults=faults,
        fault_points=tuple((kind, point or None) for kind, _, point in (text.partition("@") for text in fault)),
        stream=transport == "stream",
        detection=detection,
        mutant=mutant,
        given=tables,
    )
    return run_check(
        query, properties=properties, engine=engine, symmetry=symmetry, reduction=reduction, progress=progress
    )


def load_protocol(name: str | PathLike[str], params: Mapping[str, object] | None = None) -> Protocol:
    """Return a protocol: a built-in one by its name, or one of your own as `FILE.py[:NAME]`, which is run.

    NAME (by itself `protocol`) is a `Protocol`, or a function that returns one when it is called with `params`.

    Raises UsageError for a name, file or parameter that does not exist, and ModelError for a file or tables that fail.
    """
    from .model.protocols.load import load

    return load(str(name), {key: str(value) for key, value in (params or {}).items()})


def load_traces(*paths: str | PathLike[str]) -> list[Trace] | Recording:
    """Read the traces of one run, whatever recorded it: files, folders, tar archives, packed with gzip or not.

    Traces that follow a protocol come as one `Trace` a rank. Recordings that know none (Flight Recorder, Kineto,
    `genlock record`) come together as one `Recording`.

    Raises UnreadableInput for a file that is missing or makes no sense, and UsageError for traces of several runs.
    """
    from .traces.load import load

    return load(_paths(paths))


def replay(*paths: str | PathLike[str]) -> Diagnosis:
    """Hold the recorded ranks of one run against the model, and return the verdict: the same for any order of files.

    `conforming`: every rank kept to its table, and all collectives match. `divergent`: the diagnosis says where, and
    who is to blame. `unknown`: the evidence does not suffice, and `reasons` says what is missing.

    Raises UnreadableInput for a file that is missing or makes no sense, and UsageError for traces of several runs.
    """
    from .conformance.replay import replay as judged

    return judged(_paths(paths)).diagnosis


def diagnose(traces: Sequence[Trace] | Recording) -> Diagnosis:
    """Return the verdict on traces that `load_traces` has read. Raises UnreadableInput, as `replay` does."""
    from .conformance.replay import judge

    return judge(traces)


def as_text(result: Report | Diagnosis) -> str:
    """Return a verdict as the command line prints it: the verdict first, then where, what and why, in lines."""
    from .conformance.diagnosis import Diagnosis
    from .conformance.report import as_text

    return as_text(result) if isinstance(result, Diagnosis) else result.as_text()


def as_json(result: Report | Diagnosis) -> dict[str, Any]:
    """Return a verdict as the object that `--format json` prints. `schema` is its version."""
    from .conformance.diagnosis import Diagnosis
    from .conformance.report import as_json

    return as_json(result) if isinstance(result, Diagnosis) else result.as_json()


def _one_of(name: str, given: str, *choices: str) -> None:
    """Raise UsageError for what is none of the choices."""
    if given not in choices:
        raise UsageError(f"no {name} `{given}`", where="genlock.check", do=f"choose from {', '.join(choices)}")


def _paths(paths: Sequence[str | PathLike[str]]) -> list[Path]:
    if not paths:
        raise UsageError("no traces are named", do="name a file or a folder")
    return [Path(path) for path in paths]
