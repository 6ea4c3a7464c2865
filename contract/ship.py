"""Whether a line holds, by its evidence, and whether to ship. Left out: how that is written down (`pages`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .claims import P0, Line
from .evidence import Finding, Ledger, matching


class Status(Enum):
    PASS = "pass"
    FAIL = "FAIL"
    MISSING = "not shown"
    """Evidence that the line rests on was not run here."""


@dataclass(frozen=True)
class Judged:
    """A line with what was found for each piece of its evidence; empty where nothing was."""

    line: Line
    found: Mapping[str, Ledger]

    @property
    def missing(self) -> list[str]:
        """The evidence that is not there: patterns that nothing was found for, and what was found but not shown."""
        return [
            name
            for pattern, findings in self.found.items()
            for name in ([n for n, f in findings.items() if f.good is None] if findings else [pattern])
        ]

    @property
    def failed(self) -> dict[str, Finding]:
        """What was found and is not as claimed."""
        return {name: f for findings in self.found.values() for name, f in findings.items() if f.good is False}

    @property
    def status(self) -> Status:
        return Status.FAIL if self.failed else Status.MISSING if self.missing else Status.PASS


def judge(line: Line, ledger: Ledger) -> Judged:
    """A line against a ledger."""
    return Judged(line, {pattern: matching(ledger, pattern) for pattern in line.evidence})


@dataclass(frozen=True)
class Ship:
    """The verdict: every P0 must pass, and nothing that was found may be bad. `reasons` has what stands against it."""

    lines: tuple[Judged, ...]
    reasons: tuple[str, ...]

    @property
    def ships(self) -> bool:
        return not self.reasons


def ship(ledger: Ledger, *, contract: bool = True) -> Ship:
    """`contract`: whether the P0 lines of TP v1.1 are asked for; else the findings alone count."""
    lines = tuple(judge(line, ledger) for line in P0) if contract else ()
    bad = [f"{name}: {found.says}" for name, found in ledger.items() if not found.good]
    unseen = [f"{j.line.key}: not shown: {', '.join(j.missing)}" for j in lines if j.status is Status.MISSING]
    return Ship(lines, (*bad, *unseen))
