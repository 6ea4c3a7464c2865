"""Judges every known failure mode and every check of TP v1.1, as one report: `genlock check --mutants`.

Left out: machine-made mutants, of which there are many (`python -m genlock.model.mutation.generated_mutants`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import Exit, Unfinished
from ...junit import Case, as_xml
from ..tables import Scope
from . import guard_matrix
from .guard_matrix import CheckResult
from .kill import MutantResult, all_mutants, table


@dataclass(frozen=True)
class KillReport:
    """Says which mutants were killed, and what each check is worth."""

    mutants: tuple[MutantResult, ...]
    checks: tuple[CheckResult, ...]
    stopped: str | None = None
    """Why not all were judged."""

    @property
    def exit(self) -> Exit:
        """Return 1 where something survives, 3 where not all were judged, else 0."""
        if not self.holds:
            return Exit.VIOLATED
        return Exit.UNKNOWN if self.stopped else Exit.OK

    @property
    def holds(self) -> bool:
        return all(m.killed for m in self.mutants) and all(c.holds for c in self.checks)

    def as_text(self) -> str:
        """Return both tables, and how many survive."""
        alive = [m.mutant.name for m in self.mutants if not m.killed]
        idle = [c.check.guard for c in self.checks if not c.holds]
        early = [f"STOPPED: {self.stopped}; what follows was judged"] if self.stopped else []
        return "\n".join(
            (
                *early,
                table(self.mutants),
                f"{len(self.mutants)} mutants, survivors: {', '.join(alive) or 'none'}",
                "",
                "Each check, the fault that it is there for, and what fails without it:",
                guard_matrix.table(self.checks),
                f"{len(self.checks)} checks, without effect: {', '.join(idle) or 'none'}",
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Return the object that `check --mutants --format json` prints."""
        return {
            "schema": 1,
            "stopped": self.stopped,
            "mutants": [
                {
                    "name": m.mutant.name,
                    "title": m.mutant.title,
                    "property": m.mutant.killed_by.name,
                    "killed": m.killed,
                    "states": m.states,
                    "steps": m.steps,
                    "stuck": list(m.stuck),
                    "commitment_point": m.committed or None,
                }
                for m in self.mutants
            ],
            "checks": [
                {
                    "role": c.check.role,
                    "row": c.check.event,
                    "check": c.check.guard,
                    "fault": c.check.fault,
                    "property": c.check.fails.name,
                    "holds_with_it": not c.broken,
                    "fails_without_it": not c.missed,
                }
                for c in self.checks
            ],
        }

    def as_junit(self) -> str:
        """Return one test case a mutant and a check."""
        cases = [_case("mutant", m.mutant.name, m.killed, f"{m.mutant.killed_by.name} holds") for m in self.mutants]
        for c in self.checks:
            name = f"{c.check.role}.{c.check.event}.{c.check.guard}"
            cases.append(_case("check", name, c.holds, f"{c.check.fails.name}, fault {c.check.fault}"))
        if self.stopped:
            cases.append(Case("genlock.check", "every mutant and check was judged", "error", self.stopped))
        return as_xml("genlock check --mutants", cases)


def _case(kind: str, name: str, good: bool, message: str) -> Case:
    return Case(f"genlock.{kind}", name) if good else Case(f"genlock.{kind}", name, "failure", message)


def kill_all(scope: Scope, tell: Callable[[str], None] = lambda text: None) -> KillReport:
    """Judge all mutants at this scope (each with as few chunks as show it), and all checks at two ranks."""
    mutants: list[MutantResult] = []
    checks: list[CheckResult] = []
    stopped = None
    try:
        for result in all_mutants(scope):
            mutants.append(result)
            tell(f"{result.mutant.name} {'killed' if result.killed else 'SURVIVES'}")
        for check in guard_matrix.run(Scope(2, 1, scope.steps)):
            checks.append(check)
            tell(f"{check.check.role} {check.check.guard}")
    except KeyboardInterrupt:
        stopped = "interrupted"
    except Unfinished as early:
        stopped = str(early)
    return KillReport(tuple(mutants), tuple(checks), stopped)
