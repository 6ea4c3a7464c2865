"""Reports what a check found, as text, JSON and JUnit XML.

Left out: pictures (`diagrams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ...errors import Exit, UsageError
from ...junit import Case, as_xml
from ...notebook import table
from ..protocols.load import load
from ..semantics.growth import Growth
from ..semantics.known_mutants import mutant as find_mutant
from ..semantics.network import Network
from ..semantics.properties import PROPERTIES, Property, of_any, own_properties, properties_of
from ..semantics.query import Query
from ..semantics.run import Counterexample
from ..tables import Protocol
from .counterexample import counterexample
from .coverage import Coverage, coverage, refuse_unknown
from .engine import AUTO, check
from .formatting import counted, counterexample_json, counterexample_text, scope_json, scope_text
from .reference import Progress, Result, Verdict

SCHEMA = 2


class Answer(StrEnum):
    """Names what a check says of a protocol, within what was searched."""

    HOLDS = "holds"
    """All was searched, nothing is violated, and nothing that had to be reached was missed."""
    VIOLATED = "violated"
    VACUOUS = "vacuous"
    """Nothing is violated, and something that the protocol does was never reached."""
    UNKNOWN = "unknown"
    """The search ended early, and found nothing violated until then."""


EXIT = {
    Answer.HOLDS: Exit.OK,
    Answer.VIOLATED: Exit.VIOLATED,
    Answer.VACUOUS: Exit.UNKNOWN,
    Answer.UNKNOWN: Exit.UNKNOWN,
}


@dataclass(frozen=True)
class Report:
    """Holds a finished check."""

    question: Query
    result: Result
    counterexample: Counterexample | None
    coverage: Coverage | None
    """Holds what was not reached; None where the search ended early, which tells nothing of it."""
    growth: tuple[Growth, ...] = ()
    """Variables that kept growing, where the search ended early."""

    @property
    def protocol(self) -> str:
        return self.question.protocol

    @property
    def mutant(self) -> str | None:
        return self.question.mutant

    @property
    def network(self) -> Network:
        """Return the network that was searched: the protocol within its scope, with its faults."""
        return self.result.network

    @property
    def verdict(self) -> Answer:
        if any(not v.holds for v in self.result.verdicts if v.property.kind != "sometimes"):
            return Answer.VIOLATED
        if self.result.stopped or self.coverage is None:
            return Answer.UNKNOWN
        return Answer.VACUOUS if self.coverage.vacuous else Answer.HOLDS

    @property
    def holds(self) -> bool:
        """Return True if nothing is violated, all was searched, and nothing that had to be reached was missed."""
        return self.verdict is Answer.HOLDS

    @property
    def depth(self) -> int:
        """Return the steps of the longest of all shortest paths to a state."""
        return self.result.graph.depth[-1]

    @property
    def exit(self) -> Exit:
        """Return 0 where everything holds, 1 where something is violated, 3 where that cannot be said."""
        return EXIT[self.verdict]

    def __repr__(self) -> str:
        broken = f" broken by {self.mutant}" if self.mutant else ""
        claim = f" ({self.counterexample.claim})" if self.counterexample else ""
        searched = f"{self.network.ranks} ranks, {self.result.graph.counts[0]:,} states"
        return f"<Report {self.protocol}{broken}: {self.verdict}{claim}, {searched}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = [
            (v.property.name, "holds" if v.holds else "VIOLATED", v.property.text) for v in self.result.verdicts
        ]
        if self.counterexample is not None:
            rows.append(("counterexample", self.counterexample.title, self.counterexample.summary))
        return table(repr(self).strip("<>").partition(":")[0], self.verdict, rows)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `check --format json` prints; docs/check.schema.json describes it."""
        result, cex = self.result, self.counterexample
        states, transitions = result.graph.counts
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "protocol": self.protocol,
            "mutant": self.mutant,
            "ranks": self.network.ranks,
            "transport": "stream" if self.network.stream else "rendezvous",
            "faults": {k: sorted(map(str, points)) if points else None for k, points in self.network.kinds.items()},
            "scope": {
                **scope_json(self.network, self.question),
                "symmetry": result.symmetric,
                "reduction": result.reduced,
                "engine": result.engine,
            },
            "states": states,
            "transitions": transitions,
            "depth": self.depth,
            "deadlocks": result.deadlocks,
            "worst_steps_to_end": result.worst_steps,
            "engine": result.engine,
            "symmetry": result.symmetric,
            "reduction": result.reduced,
            "searched": len(result.graph.states),
            "seconds": round(result.seconds, 3),
            "search_seconds": round(result.search_seconds, 3),
            "states_per_second": round(len(result.graph.states) / max(result.search_seconds, 1e-9)),
            "stopped": result.stopped,
            "growth": [g._asdict() for g in self.growth],
            "properties": [
                {"name": v.property.name, "kind": v.property.kind, "holds": v.holds} for v in result.verdicts
            ],
            **(NOTHING_SAID if self.coverage is None else self.coverage.as_json()),
            "counterexample": None if cex is None else counterexample_json(cex),
        }

    def as_text(self) -> str:
        """Return the verdict, what was searched, a line a property, what was not reached, and the counterexample."""
        lines = [*self._searched(), ""]
        lines += (f"  {_mark(v)}  {v.property.name:30} {v.property.text}" for v in self.result.verdicts)
        lines += self._coverage_text()
        if self.counterexample is not None:
            lines += ["", *counterexample_text(self.counterexample)]
        return "\n".join(lines)

    def _searched(self) -> Iterator[str]:
        """Yield what was searched, whole: nothing that a verdict depends on is left unsaid."""
        result, network = self.result, self.network
        states, transitions = result.graph.counts
        mutant = f" broken by {self.mutant}" if self.mutant else ""
        yield f"{self.protocol}{mutant}: {scope_text(network, self.question)}"
        yield (
            f"{states:,} states{' of a reduced search' if result.reduced else ''}, "
            f"{transitions:,} transitions, depth {self.depth}, "
            f"{counted(result.deadlocks, 'deadlock')}, in {result.seconds:.1f} s by the {result.engine} engine, "
            f"symmetry {_on_off(result.symmetric)}, reduction {_on_off(result.reduced)}"
        )
        if result.reduced:
            yield "left out are orders of steps and runs after a failure that show nothing new; --reduction off has all"
        elif result.symmetric:
            yield f"searched as {len(result.graph.states):,}: workers are interchangeable"
        if result.worst_steps:
            yield f"at worst {counted(result.worst_steps, 'step')} from a failure to the last rank's end"
        if result.stopped:
            of = " of the reduced search" if result.reduced else ""
            yield f"STOPPED: {result.stopped}; every run{of} of up to {max(0, self.depth - 1)} steps was covered"
        yield from (f"GROWS: {growth.text}" for growth in self.growth)

    def _coverage_text(self) -> Iterator[str]:
        found = self.coverage
        if found is None:
            return
        if found.vacuous:
            yield ""
            yield from (f"  NEVER REACHED  {line}" for line in found.lines())
            if self.verdict is Answer.VACUOUS:
                yield "  VACUOUS: no verdict on what was not reached; widen the scope, or --allow-unreached ROW"
        if found.allowed:
            yield f"  need not be reached: {', '.join(found.allowed)}"
        if found.not_exercised:
            some = ", ".join(f"{row.state}.{row.event}" for _, row in found.not_exercised[:SHOWN])
            rest = len(found.not_exercised) - SHOWN
            more = f" and {rest} more (--format json)" if rest > 0 else ""
            yield f"  not exercised, as the chosen faults do not ask for it: {some}{more}"

    def as_junit(self) -> str:
        """Return one test case a property, and one for each thing that was never reached."""
        classname = f"genlock.check.{self.protocol}"
        cases = [self._case(classname, v) for v in self.result.verdicts]
        if self.coverage is not None:
            cases += [Case(classname, line, "error", "never reached") for line in self.coverage.lines()]
        if self.result.stopped:
            cases.append(Case(classname, "all was searched", "error", self.result.stopped))
        return as_xml(f"genlock check {self.protocol}", cases, self.result.seconds)

    def _case(self, classname: str, verdict: Verdict) -> Case:
        prop, example = verdict.property, self.counterexample
        if verdict.holds:
            return Case(classname, prop.name)
        if prop.kind == "sometimes":
            return Case(classname, prop.name, "error", f"never seen: {prop.text}")
        shown = counterexample_text(example) if example is not None and example.claim == prop.name else ()
        return Case(classname, prop.name, "failure", prop.text, "\n".join(shown))


SHOWN = 6
"""Rows that were not exercised which a text names."""
NOTHING_SAID: dict[str, Any] = {"unreached": None, "not_exercised": None, "allowed_unreached": []}


def _mark(verdict: Verdict) -> str:
    if verdict.holds:
        return "holds   "
    return "NOT SEEN" if verdict.property.kind == "sometimes" else "VIOLATED"


def _on_off(what: bool) -> str:
    return "on" if what else "off"


def run_check(
    question: Query,
    *,
    properties: Sequence[str] = (),
    engine: str = AUTO,
    symmetry: str = AUTO,
    reduction: str = AUTO,
    allow_unreached: Sequence[str] = (),
    max_states: int | None = None,
    timeout: float | None = None,
    progress: Progress | None = None,
    watching: Callable[[Network], Progress] | None = None,
) -> Report:
    """Search a network and judge it by the properties of these names, or by all that its protocol has.

    `engine`, `symmetry`, `reduction`, `max_states` and `timeout` are as in `engine.check`. `allow_unreached` names
    rows that need not be taken. `watching` makes the progress of the network. Raise UsageError for a name that does
    not exist.
    """
    network = question.network()
    chosen = _properties(properties, network.protocol)
    refuse_unknown(network.protocol, chosen, allow_unreached)
    first = find_mutant(question.mutant).killed_by if question.mutant else None
    result = check(
        network,
        chosen,
        engine=engine,
        symmetry=symmetry,
        reduction=reduction,
        judge_all=not network.detection,
        progress=watching(network) if watching is not None else progress,
        max_states=max_states,
        timeout=timeout,
    )
    violated = [v for v in result.verdicts if not v.holds]
    violated.sort(key=lambda v: v.property is not first)
    shown = (counterexample(result, v) for v in violated)
    example = next((c for c in shown if c is not None), None)
    if result.stopped:
        return Report(question, result, example, None, growing_in(network))
    struck = [kind for kind, _ in question.fault_points]
    return Report(question, result, example, coverage(result, question.tables(), allow_unreached, struck))


def growing_in(network: Network) -> tuple[Growth, ...]:
    """Return the variable of each role that kept growing while the network was searched."""
    return tuple(growth for lts in dict.fromkeys(network.lts) if (growth := lts.growth()) is not None)


def named_protocol(name: str) -> Protocol:
    """Return the protocol of this name, with the parameters that it has by itself (see `load`)."""
    return load(name)


def _properties(names: Sequence[str], tables: Protocol) -> Sequence[Property]:
    has = properties_of(tables.name)
    known = {p.name: p for p in (*has, *of_any(tables), *own_properties(tables))}
    for name in names:
        if name not in known:
            unfit = f": {tables.name} has not what it speaks of" if name in PROPERTIES else ""
            raise UsageError(f"no property `{name}`{unfit}", do=f"choose from {', '.join(known)}")
    return [known[name] for name in names] or (*has, *own_properties(tables))
