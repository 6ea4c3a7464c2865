"""Judges each line of the contract by its evidence, and from all of them whether to ship.

A verdict says no more than what was shown. Left out: how it is written down (`audit`, `pages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ..errors import Exit
from .claims import P0, Claim
from .evidence import Evidence, Ledger, matching


class Status(Enum):
    """Says how a claim stands."""

    PASS = "pass"
    FAIL = "FAIL"
    MISSING = "not shown"
    """Evidence that the claim rests on was not run here."""


class Verdict(Enum):
    """Says whether to ship."""

    SHIP = "ship"
    """Every line passes, and nothing is left open."""
    ON_WHAT_WAS_SHOWN = "ship on what was shown"
    """Every line passes; what was not shown is named: a backend, sizes not searched, tests that were skipped."""
    NOT_SHOWN = "not shown"
    """Nothing is against it, and a line, or what was required, has no evidence."""
    DO_NOT_SHIP = "do not ship"
    """Something is not as claimed."""

    @property
    def exit(self) -> Exit:
        """Return the exit status of an audit."""
        return {Verdict.DO_NOT_SHIP: Exit.VIOLATED, Verdict.NOT_SHOWN: Exit.UNKNOWN}.get(self, Exit.OK)


@dataclass(frozen=True)
class Judged:
    """Holds a claim with what was found for each piece of its evidence; empty where nothing was."""

    claim: Claim
    found: Mapping[str, Ledger]

    @property
    def missing(self) -> list[str]:
        """Return the names of evidence that is not there: patterns that match nothing, and what was not shown."""
        return [
            name
            for pattern, findings in self.found.items()
            for name in ([n for n, f in findings.items() if f.good is None] if findings else [pattern])
        ]

    @property
    def failed(self) -> dict[str, Evidence]:
        """Return the evidence that is not as claimed."""
        return {name: f for findings in self.found.values() for name, f in findings.items() if f.good is False}

    @property
    def status(self) -> Status:
        return Status.FAIL if self.failed else Status.MISSING if self.missing else Status.PASS


def judge(claim: Claim, ledger: Ledger) -> Judged:
    """Hold a claim against a ledger."""
    return Judged(claim, {pattern: matching(ledger, pattern) for pattern in claim.evidence})


@dataclass(frozen=True)
class Ship:
    """Holds the verdict, and what it rests on."""

    verdict: Verdict
    lines: tuple[Judged, ...]
    reasons: tuple[str, ...]
    """Reasons against it, or for which it is not known."""
    not_shown: tuple[str, ...]
    """Things that the verdict does not speak of."""


def ship(ledger: Ledger, *, contract: bool = True, outside: Sequence[str] = (), required: Sequence[str] = ()) -> Ship:
    """Give the verdict on a ledger.

    `contract`: every P0 line of TP v1.1 must pass; else each finding has to be shown. `outside`: what was not tried,
    and need not be. `required`: what was not tried, and must be. Nothing that was found may be bad.
    """
    lines = tuple(judge(line, ledger) for line in P0) if contract else ()
    bad = [f"{name}: {found.says}" for name, found in ledger.items() if found.good is False]
    open_lines = [f"{j.claim.key}: not shown: {', '.join(j.missing)}" for j in lines if j.status is Status.MISSING]
    open_lines += [f"{name}: not shown: {f.says}" for name, f in ledger.items() if f.good is None and not contract]
    open_lines += [f"required: not shown: {what}" for what in required]
    if not ledger:
        open_lines.append("nothing was tried")
    partly = [f"{name}: {found.lacks}" for name, found in ledger.items() if found.lacks and found.good]
    left = (*outside, *partly)
    verdict = (
        Verdict.DO_NOT_SHIP
        if bad
        else Verdict.NOT_SHOWN
        if open_lines
        else Verdict.ON_WHAT_WAS_SHOWN
        if left
        else Verdict.SHIP
    )
    return Ship(verdict, lines, (*bad, *open_lines), left)
