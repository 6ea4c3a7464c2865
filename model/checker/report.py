"""What a check found, as text, JSON and JUnit XML. Left out: pictures (`..diagram`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import UsageError
from ..mutants import mutant as find_mutant
from ..network import Network
from ..properties import PROPERTIES, Property
from ..protocol import PROTOCOLS
from ..tables import Protocol, Scope
from .counterexample import Counterexample, counterexample
from .reference import Progress, Result, check

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """A finished check."""

    protocol: str
    mutant: str | None
    scope: Scope
    faults: int
    result: Result
    counterexample: Counterexample | None

    @property
    def holds(self) -> bool:
        return self.result.holds

    @property
    def depth(self) -> int:
        return max(self.result.graph.depth)

    def as_json(self) -> dict[str, Any]:
        """The object that `check --format json` prints."""
        graph, cex = self.result.graph, self.counterexample
        return {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "mutant": self.mutant,
            "ranks": self.scope.ranks,
            "states": len(graph.states),
            "transitions": graph.transitions,
            "depth": self.depth,
            "deadlocks": self.result.deadlocks,
            "engine": "reference",
            "seconds": round(self.result.seconds, 3),
            "states_per_second": round(len(graph.states) / self.result.seconds),
            "properties": [
                {"name": v.property.name, "kind": v.property.kind, "holds": v.holds} for v in self.result.verdicts
            ],
            "counterexample": None if cex is None else _counterexample_json(cex),
        }

    def as_text(self) -> str:
        """The verdict, a line a property, and the counterexample as numbered steps."""
        graph, scope = self.result.graph, self.scope
        seconds = f"{self.result.seconds:.1f} s"
        lines = [
            f"{self.protocol}{f' broken by {self.mutant}' if self.mutant else ''}: {scope.ranks} ranks, "
            f"{_count(scope.chunks, 'chunk')}, {_count(scope.steps, 'step')} a chunk, "
            f"{_count(self.faults, 'crash') if self.faults else 'no fault'}, rendezvous transport",
            f"{len(graph.states):,} states, {graph.transitions:,} transitions, depth {self.depth}, "
            f"{self.result.deadlocks} deadlocks, in {seconds} by the reference engine",
            "",
        ]
        for verdict in self.result.verdicts:
            mark = "holds   " if verdict.holds else "VIOLATED"
            lines.append(f"  {mark}  {verdict.property.name:30} {verdict.property.text}")
        if self.counterexample is not None:
            lines += ["", *_counterexample_text(self.counterexample)]
        return "\n".join(lines)

    def as_junit(self) -> str:
        """One test case a property."""
        failures = sum(not v.holds for v in self.result.verdicts)
        suite = ElementTree.Element(
            "testsuite",
            name=f"genlock check {self.protocol}",
            tests=str(len(self.result.verdicts)),
            failures=str(failures),
            time=f"{self.result.seconds:.3f}",
        )
        for verdict in self.result.verdicts:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"genlock.check.{self.protocol}", name=verdict.property.name
            )
            if not verdict.holds:
                cex = self.counterexample
                shown = cex is not None and cex.claim == verdict.property.name
                failure = ElementTree.SubElement(case, "failure", message=verdict.property.text)
                failure.text = "\n".join(_counterexample_text(cex)) if cex and shown else None
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def run_check(
    protocol: str,
    scope: Scope,
    *,
    faults: int | None = None,
    detection: bool | None = None,
    mutant: str | None = None,
    properties: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Check a built-in protocol, or a mutant of it. Raises UsageError for a name that does not exist.

    `faults` None allows one, or as many as the mutant needs. `detection` None judges each property in the mode
    that it is defined for.
    """
    chosen = _properties(properties)
    tables = named_protocol(protocol)
    first: Property | None = None
    budget = 1 if faults is None else faults
    if mutant is not None:
        broken = find_mutant(mutant)
        tables, first = broken.edit(tables), broken.killed_by
        budget = broken.faults if faults is None else faults
    network = Network(tables, scope, faults=budget, detection=detection is not False)
    result = check(network, chosen, judge_all=detection is False, progress=progress)
    violated = [v for v in result.verdicts if not v.holds]
    violated.sort(key=lambda v: v.property is not first)
    shown = (counterexample(result, v) for v in violated)
    return Report(protocol, mutant, scope, budget, result, next((c for c in shown if c is not None), None))


def write(report: Report, out: Path) -> None:
    """`check.txt` and `check.json` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.txt").write_text(report.as_text() + "\n")
    (out / "check.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")


def named_protocol(name: str) -> Protocol:
    """The built-in protocol of this name. Raises UsageError."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UsageError(f"no protocol `{name}`", do=f"built in: {', '.join(PROTOCOLS)}") from None


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("sh") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


def _properties(names: Sequence[str]) -> Sequence[Property]:
    for name in names:
        if name not in PROPERTIES:
            raise UsageError(f"no property `{name}`", do=f"choose from {', '.join(PROPERTIES)}")
    return [PROPERTIES[name] for name in names] or list(PROPERTIES.values())


def _counterexample_json(cex: Counterexample) -> dict[str, Any]:
    return {
        "property": cex.claim,
        "summary": cex.summary,
        "stuck": [
            {
                "rank": s.rank,
                "state": s.state,
                "operation": s.operation,
                "waiting_for": list(s.waiting_for),
                "since": s.since,
            }
            for s in cex.stuck
        ],
        "steps": [
            {
                "number": s.number,
                "rank": s.rank,
                "event": s.event,
                "edge": s.edge,
                "operation": s.operation or None,
                "sequence": s.sequence,
                "commits": s.commits,
                "states": list(s.states),
                "text": s.text,
            }
            for s in cex.steps
        ],
    }


def _counterexample_text(cex: Counterexample) -> list[str]:
    lines = [f"Shortest counterexample to {cex.claim}, {len(cex.steps)} steps:"]
    for step in cex.steps:
        lines.append(
            f"  {step.number:3}. {step.text}{'   ← commitment point' if _commits(step.edge, step.commits) else ''}"
        )
    lines += ["", *(f"  {part}." for part in cex.summary.split("; "))]
    return lines


def _commits(edge: str, commits: bool) -> bool:
    return commits and edge != "complete"
