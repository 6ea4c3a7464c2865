"""Gathers evidence for the lines of the contract by running things, keeps it by name, finds it again by pattern.

A *ledger* maps `kind:name` to a finding. What was not run is not in it, or says why it was not, and a line that rests
on it is not shown. Left out: what the lines claim (`claims`), what pytest reported (`pytest_report`), and the break-it
matrix, which is run on real processes (`breakit`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from ..conformance import report as reports
from ..conformance.replay import judge as judge_run
from ..errors import Exit, UnreadableInput
from ..junit import Case
from ..model.checker.formatting import counted, faults_text
from ..model.checker.report import run_check
from ..model.mutation.report import KillReport, kill_all
from ..model.semantics.query import Query
from ..traces.format import SUFFIX
from ..traces.load import load
from .pytest_report import cases_by_file, files, summary

Tell = Callable[[str], None]
ROOT = Path(__file__).resolve().parent.parent
NCCL = ROOT / "traces" / "corpus" / "nccl"
"""The folder of recorded runs on NCCL."""


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Holds one thing that was tried, and what came of it."""

    good: bool | None
    """It is as claimed; None: it was not shown here."""
    says: str
    """The result; of evidence that is not there, why not, and what to do."""
    known: str
    """The way in which that is known."""
    lacks: str = ""
    """The part of it that was not shown."""

    @property
    def mark(self) -> str:
        """Return the word that stands before `says`, for people; empty where all is as claimed."""
        return {True: "", False: "**FAILS** ", None: "**not shown** "}[self.good]


Ledger = dict[str, Evidence]


class Ledgered(msgspec.Struct, frozen=True):
    """Holds a ledger as it is kept in a file, with the versions that it was gathered on."""

    python: str
    torch: str
    findings: Ledger

    @classmethod
    def of(cls, ledger: Ledger) -> Ledgered:
        from importlib.metadata import version

        return cls(platform.python_version(), version("torch").partition("+")[0], ledger)


def matching(ledger: Mapping[str, Evidence], pattern: str) -> dict[str, Evidence]:
    """Return the findings that a line's evidence names."""
    return {name: found for name, found in ledger.items() if fnmatchcase(name, pattern)}


def gather(
    tell: Tell, question: Query, transports: Sequence[bool] = (False, True), *, contract: bool
) -> Iterator[tuple[str, Evidence]]:
    """Yield the findings of all that runs in this process: each property of `question`, on each transport.

    A transport is given as True for a stream.

    `contract`: of TP v1.1 also mutants, checks, probes, what pytest reported of the tests, and recorded runs on NCCL;
    a mutant, or a protocol of the user's own, has properties alone.
    """
    yield from _properties(tell, question, transports)
    if contract:
        tell("mutants and checks")
        yield from _kills(kill_all(question.scope, tell))
        yield from _probes(tell)
        yield from reported_tests()
        tell("recorded runs on NCCL")
        yield from recorded_runs(NCCL)


def _properties(tell: Tell, question: Query, transports: Sequence[bool]) -> Iterator[tuple[str, Evidence]]:
    """Yield a finding for each property on all transports, and one for each search that came to no end."""
    reports = []
    for stream in transports:
        transport = "stream" if stream else "rendezvous"
        tell(f"{question.mutant or question.protocol}, {transport}")
        report = run_check(replace(question, stream=stream))
        reports.append((transport, report))
        if report.exit is Exit.UNKNOWN:
            why = report.result.stopped or " ".join(report.as_text().split())[:600]
            yield f"search:{transport}", Evidence(None, why, "model")
    known = f"model, {scope_of(question, transports)}"
    open_end = any(report.exit is Exit.UNKNOWN for _, report in reports)
    for prop in {v.property.name: v.property for _, report in reports for v in report.result.verdicts}.values():
        says, holds = [], True
        for transport, report in reports:
            verdict = next((v for v in report.result.verdicts if v.property is prop), None)
            if verdict is None:
                continue
            states, example = report.result.graph.counts[0], report.counterexample
            holds &= verdict.holds
            said = f"{'holds' if verdict.holds else 'VIOLATED'} in {states:,} states ({transport})"
            if not verdict.holds and example is not None and example.claim == prop.name:
                said += f": {example.summary}, {len(example.steps)} steps"
            says.append(said)
        good = (None if open_end else True) if holds else False
        yield f"property:{prop.name}", Evidence(good, "; ".join(says), known)


def scope_of(question: Query, transports: Sequence[bool]) -> str:
    """Say what is searched, whole: ranks, chunks, steps, parameters, faults, detection and transports."""
    network = question.network()
    scope = network.scope
    size = f"{scope.ranks} ranks, {counted(scope.chunks, 'chunk')}, {counted(scope.steps, 'step')} a chunk"
    params = [f"{name}={value}" for name, value in question.params.items()]
    detection = [] if question.detection is None else [f"detection {'on' if question.detection else 'off'}"]
    over = " and ".join("stream" if stream else "rendezvous" for stream in transports)
    return ", ".join([size, *params, faults_text(network), *detection, f"{over} transport"])


def _kills(report: KillReport) -> Iterator[tuple[str, Evidence]]:
    for m in report.mutants:
        says = f"{m.mutant.killed_by.name} fails in {m.steps} steps" if m.killed else "NOBODY NOTICES"
        yield f"mutant:{m.mutant.name}", Evidence(m.killed, f"{m.mutant.title}: {says}", "model")
    for c in report.checks:
        one = c.check
        says = f"under `{one.fault}` {one.fails.name} fails without it"
        if not c.holds:
            says = f"{', '.join(c.broken)} fail with it" if c.broken else "nothing fails without it"
        yield f"check:{one.role}.{one.event}.{one.guard}", Evidence(c.holds, says, "model")


def _probes(tell: Tell) -> Iterator[tuple[str, Evidence]]:
    from ..impl.faults import selfcheck

    tell("probes")
    for probe in selfcheck.probes():
        try:
            yield f"probe:{probe.name}", Evidence(True, f"{probe.what}: {probe.run()}", "code")
        except Exception as error:
            yield f"probe:{probe.name}", Evidence(False, f"{probe.what}: {type(error).__name__}: {error}", "code")


def recorded_runs(folder: Path) -> Iterator[tuple[str, Evidence]]:
    """Yield a finding for each run below `folder`.

    A run must have been on NCCL, and be what `expected.json` beside its traces says.
    """
    for run in sorted({path.parent for path in folder.rglob(f"*{SUFFIX}")}):
        good, says, backends = replayed(run)
        expected = run / "expected.json"
        wanted = msgspec.json.decode(expected.read_bytes())["verdict"] if expected.exists() else "conforming"
        if backends != {"nccl"}:
            good, says = None, f"recorded on {', '.join(sorted(backends)) or 'an unknown backend'}, not on NCCL"
        elif good is not None:
            good = good is (wanted == "conforming")
        yield f"nccl:{run.relative_to(folder).as_posix()}", Evidence(good, says, "NCCL-measured, replayed")


def replayed(folder: Path) -> tuple[bool | None, str, set[str]]:
    """Return whether a run conforms (None: unknown), the verdict on it in words, and the backends that it was on.

    Raises UnreadableInput for a folder without traces.
    """
    found = load([folder])
    backends = {trace.header.backend for trace in found} if isinstance(found, Sequence) else set()
    diagnosis = judge_run(found)
    good = {Exit.OK: True, Exit.VIOLATED: False}.get(reports.STATUS[diagnosis.verdict])
    return good, " ".join(reports.as_text(diagnosis).split()), backends


def reported_tests(root: Path = ROOT) -> Iterator[tuple[str, Evidence]]:
    """Yield a finding for each file of tests below `root`, by what pytest reported of it.

    There is none where genlock is installed without its tests.
    """
    reported: dict[str, list[Case]] = {}
    nothing = "pytest has reported no test of it"
    try:
        reported = cases_by_file(root)
    except UnreadableInput as error:
        nothing = str(error)
    for name in dict.fromkeys((*files(root), *reported)):
        good, says, lacks = summary(reported[name]) if name in reported else (None, nothing, "")
        yield f"test:{name}", Evidence(good, says, "run by `make test`", lacks)
