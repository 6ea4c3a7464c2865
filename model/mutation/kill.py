"""Checks that each known mutant of TP v1.1 is caught by the property that it names.

Left out: the mutants themselves (`semantics.known_mutants`), and those that are made by machine (`generated_mutants`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...errors import Unfinished
from ..checker.counterexample import counterexample
from ..checker.engine import check
from ..semantics.known_mutants import MUTANTS, Mutant
from ..semantics.run import Counterexample
from ..tables import Scope


@dataclass(frozen=True)
class MutantResult:
    """Says how a mutant was caught.

    `committed` is the commitment point behind the first wait, where a rank is stuck.
    """

    mutant: Mutant
    killed: bool
    states: int
    example: Counterexample | None = None

    @property
    def steps(self) -> int | None:
        return len(self.example.steps) if self.example else None

    @property
    def stuck(self) -> tuple[int, ...]:
        return tuple(s.rank for s in self.example.stuck) if self.example else ()

    @property
    def committed(self) -> str:
        since = next((s.since for s in self.example.stuck if s.since), None) if self.example else None
        if self.example is None or since is None:
            return ""
        return f"rank{self.example.steps[since - 1].rank} {self.example.steps[since - 1].event}"


def judge(mutant: Mutant, scope: Scope) -> MutantResult:
    """Check the property that must kill the mutant, at this scope but for chunks, of which as few as show it."""
    network = mutant.network(replace(scope, chunks=mutant.chunks))
    result = check(network, [mutant.killed_by])
    if result.stopped:
        raise Unfinished(result.stopped, where=mutant.name)
    example = counterexample(result, result.verdict(mutant.killed_by.name))
    return MutantResult(mutant, not result.holds, len(result.graph.states), example)


def all_mutants(scope: Scope) -> Iterator[MutantResult]:
    """Yield the result of every mutant, judged one after the other."""
    return (judge(mutant, scope) for mutant in MUTANTS.values())


def table(results: Iterable[MutantResult]) -> str:
    """Return a line a mutant: how it was caught, in how many steps, who is stuck, since which commitment point."""
    lines = [f"{'mutant':15} {'':8} {'by':24} {'steps':>5}  stuck, since which commitment point"]
    for r in results:
        verdict = "killed" if r.killed else "SURVIVES"
        stuck = ", ".join(f"rank{rank}" for rank in r.stuck) + (f", since {r.committed}" if r.committed else "")
        lines.append(f"{r.mutant.name:15} {verdict:8} {r.mutant.killed_by.name:24} {r.steps or '-':>5}  {stuck}")
    return "\n".join(line.rstrip() for line in lines)
