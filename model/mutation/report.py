"""`genlock check --mutants`: every known failure mode and every check of TP v1.1, judged, as one report.

Left out: machine-made mutants, of which there are many (`python -m genlock.model.mutation.generated_mutants`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...junit import Case, as_xml
from ..tables import Scope
from . import guard_matrix
from .guard_matrix import CheckResult
from .kill import MutantResult, all_mutants, table


@dataclass(frozen=True)
class KillReport:
    """Which mutants were killed, and what each check is worth."""

    mutants: tuple[MutantResult, ...]
    checks: tuple[CheckResult, ...]

    @property
    def holds(self) -> bool:
        return all(m.killed for m in self.mutants) and all(c.holds for c in self.checks)

    def as_text(self) -> str:
        """Both tables, and how many survive."""
        alive = [m.mutant.name for m in self.mutants if not m.killed]
        idle = [c.check.guard for c in self.checks if not c.holds]
        return "\n".join(
            (
                table(self.mutants),
                f"{len(self.mutants)} mutants, survivors: {', '.join(alive) or 'none'}",
                "",
                "Each check, the fault that it is there for, and what fails without it:",
                guard_matrix.table(self.checks),
                f"{len(self.checks)} checks, without effect: {', '.join(idle) or 'none'}",
            )
        )

    def as_json(self) -> dict[str, Any]:
        """The object that `check --mutants --format json` prints."""
        return {
            "schema": 1,
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
        """One test case a mutant and a check."""
        cases = [_case("mutant", m.mutant.name, m.killed, f"{m.mutant.killed_by.name} holds") for m in self.mutants]
        for c in self.checks:
            name = f"{c.check.role}.{c.check.event}.{c.check.guard}"
            cases.append(_case("check", name, c.holds, f"{c.check.fails.name}, fault {c.check.fault}"))
        return as_xml("genlock check --mutants", cases)


def _case(kind: str, name: str, good: bool, message: str) -> Case:
    return Case(f"genlock.{kind}", name) if good else Case(f"genlock.{kind}", name, "failure", message)


def kill_all(scope: Scope, tell: Callable[[str], None] = lambda text: None) -> KillReport:
    """Judge all mutants at this scope (each with as few chunks as show it), and all checks at two ranks."""
    mutants = []
    for result in all_mutants(scope):
        mutants.append(result)
        tell(f"{result.mutant.name} {'killed' if result.killed else 'SURVIVES'}")
    checks = []
    for check in guard_matrix.run(Scope(2, 1, scope.steps)):
        checks.append(check)
        tell(f"{check.check.role} {check.check.guard}")
    return KillReport(tuple(mutants), tuple(checks))
