"""Evidence for the lines of the contract: gathered by running things, kept by name, found again by pattern.

A *ledger* maps `kind:name` to a finding. What was not run is not in it, or says why it was not, and a line that rests
on it is not shown. Left out: what the lines claim (`claims`), what pytest reported (`pytest_report`), and the break-it
matrix, which is run on real processes (`breakit`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from ..errors import UnreadableInput
from ..junit import Case
from ..model.checker.report import run_check
from ..model.mutation.report import KillReport, kill_all
from ..model.semantics.query import Query
from ..model.tables import Scope
from .pytest_report import cases_by_file, files, summary

Tell = Callable[[str], None]
ROOT = Path(__file__).resolve().parent.parent
RANKS, CHUNKS, STEPS = 3, 2, 2
"""The scope at which properties are checked: the smallest in which all that the tables can do is done."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was tried, and what came of it."""

    good: bool | None
    """It is as claimed; None: it was not shown here."""
    says: str
    """What was found; of what was not shown why not, and what to do."""
    known: str
    """How that is known."""
    lacks: str = ""
    """The part of it that was not shown."""

    @property
    def mark(self) -> str:
        """What stands before `says`, for people; empty where all is as claimed."""
        return {True: "", False: "**FAILS** ", None: "**not shown** "}[self.good]


Ledger = dict[str, Finding]


class Ledgered(msgspec.Struct, frozen=True):
    """A ledger as it is kept in a file, with the versions that it was gathered on."""

    python: str
    torch: str
    findings: Ledger

    @classmethod
    def of(cls, ledger: Ledger) -> Ledgered:
        from importlib.metadata import version

        return cls(platform.python_version(), version("torch").partition("+")[0], ledger)


def matching(ledger: Mapping[str, Finding], pattern: str) -> dict[str, Finding]:
    """The findings that a line's evidence names."""
    return {name: found for name, found in ledger.items() if fnmatchcase(name, pattern)}


def gather(tell: Tell, protocol: str = "tp_v1.1", mutant: str | None = None) -> Ledger:
    """All that runs in this process: properties, mutants, checks and probes; and what pytest reported of the tests.

    Of a protocol of the user's own, or a mutant, its properties alone: the rest speaks of TP v1.1.
    """
    ledger = dict(_properties(tell, protocol, mutant))
    if protocol == "tp_v1.1" and mutant is None:
        tell("mutants and checks")
        ledger.update(_kills(kill_all(Scope(RANKS, CHUNKS, STEPS), tell)))
        ledger.update(_probes(tell))
        ledger.update(reported_tests())
    return ledger


def _properties(tell: Tell, protocol: str, mutant: str | None) -> Iterator[tuple[str, Finding]]:
    """Each property on both transports; in the ledger as one finding each."""
    reports = []
    for stream in (False, True):
        transport = "stream" if stream else "rendezvous"
        tell(f"{mutant or protocol}, {transport}")
        question = Query(protocol, Scope(RANKS, CHUNKS, STEPS), stream=stream, mutant=mutant)
        reports.append((transport, run_check(question)))
    for prop in {v.property.name: v.property for _, report in reports for v in report.result.verdicts}.values():
        says, good = [], True
        for transport, report in reports:
            verdict = next((v for v in report.result.verdicts if v.property is prop), None)
            if verdict is None:
                continue
            states, example = report.result.graph.counts[0], report.counterexample
            good &= verdict.holds
            said = f"{'holds' if verdict.holds else 'VIOLATED'} in {states:,} states ({transport})"
            if not verdict.holds and example is not None and example.claim == prop.name:
                said += f": {example.summary}, {len(example.steps)} steps"
            says.append(said)
        yield f"property:{prop.name}", Finding(good, "; ".join(says), f"model, {RANKS} ranks, {CHUNKS} chunks, a crash")


def _kills(report: KillReport) -> Iterator[tuple[str, Finding]]:
    for m in report.mutants:
        says = f"{m.mutant.killed_by.name} fails in {m.steps} steps" if m.killed else "NOBODY NOTICES"
        yield f"mutant:{m.mutant.name}", Finding(m.killed, f"{m.mutant.title}: {says}", "model")
    for c in report.checks:
        one = c.check
        says = f"under `{one.fault}` {one.fails.name} fails without it"
        if not c.holds:
            says = f"{', '.join(c.broken)} fail with it" if c.broken else "nothing fails without it"
        yield f"check:{one.role}.{one.event}.{one.guard}", Finding(c.holds, says, "model")


def _probes(tell: Tell) -> Iterator[tuple[str, Finding]]:
    from ..impl.faults import selfcheck

    tell("probes")
    for probe in selfcheck.probes():
        try:
            yield f"probe:{probe.name}", Finding(True, f"{probe.what}: {probe.run()}", "code")
        except Exception as error:
            yield f"probe:{probe.name}", Finding(False, f"{probe.what}: {type(error).__name__}: {error}", "code")


def reported_tests(root: Path = ROOT) -> Iterator[tuple[str, Finding]]:
    """Each file of tests below `root`, by what pytest reported of it; none where genlock is installed without them."""
    reported: dict[str, list[Case]] = {}
    nothing = "pytest has reported no test of it"
    try:
        reported = cases_by_file(root)
    except UnreadableInput as error:
        nothing = str(error)
    for name in dict.fromkeys((*files(root), *reported)):
        good, says, lacks = summary(reported[name]) if name in reported else (None, nothing, "")
        yield f"test:{name}", Finding(good, says, "run by `make test`", lacks)
