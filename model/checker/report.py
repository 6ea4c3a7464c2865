"""What a check found, as text, JSON and JUnit XML. Left out: pictures (`..diagram`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import UsageError
from ..faults import asked, with_faults
from ..load import load
from ..mutants import mutant as find_mutant
from ..network import CRASH, Faults, Network
from ..properties import PROPERTIES, Property, properties_of
from ..tables import Protocol, Scope
from .counterexample import Counterexample, counterexample
from .reference import Progress, Result, check, worst_steps_to_end
from .scenario import scenario

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """A finished check."""

    protocol: str
    mutant: str | None
    scope: Scope
    faults: int
    kinds: Faults
    stream: bool
    worst_steps: int | None
    """From a failure to the last rank's end, at worst, if nobody does anything else meanwhile."""
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
            "transport": "stream" if self.stream else "rendezvous",
            "faults": {kind: sorted(map(str, points)) if points else None for kind, points in self.kinds.items()},
            "states": len(graph.states),
            "transitions": graph.transitions,
            "depth": self.depth,
            "deadlocks": self.result.deadlocks,
            "worst_steps_to_end": self.worst_steps,
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
            f"{self._faults()}, {'stream' if self.stream else 'rendezvous'} transport",
            f"{len(graph.states):,} states, {graph.transitions:,} transitions, depth {self.depth}, "
            f"{_count(self.result.deadlocks, 'deadlock')}, in {seconds} by the reference engine",
        ]
        if self.worst_steps:
            lines.append(f"at worst {_count(self.worst_steps, 'step')} from a failure to the last rank's end")
        lines.append("")
        for verdict in self.result.verdicts:
            mark = "holds   " if verdict.holds else "VIOLATED"
            lines.append(f"  {mark}  {verdict.property.name:30} {verdict.property.text}")
        if self.counterexample is not None:
            lines += ["", *_counterexample_text(self.counterexample)]
        return "\n".join(lines)

    def _faults(self) -> str:
        if not self.faults or not self.kinds:
            return "no fault"
        shown = (k if p is None else f"{k}@{'|'.join(sorted(map(str, p)))}" for k, p in self.kinds.items())
        return f"at most {_count(self.faults, 'fault')} ({', '.join(shown)})"

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
    params: Mapping[str, str] | None = None,
    faults: int | None = None,
    fault_points: Iterable[tuple[str, str | None]] = (),
    stream: bool = False,
    detection: bool | None = None,
    mutant: str | None = None,
    properties: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Check a protocol (see `load`), or a mutant of TP v1.1. Raises UsageError for a name that does not exist.

    `fault_points` are kinds of faults, each at a state or anywhere; none means a crash anywhere. `faults` None
    allows one, or as many as the mutant needs. `detection` None judges each property in the mode that it is
    defined for.
    """
    tables = load(protocol, params)
    chosen = _properties(properties, tables)
    scope = replace(scope, ranks=tables.ranks or scope.ranks)
    broken = None if mutant is None else find_mutant(mutant)
    kinds = {**(broken.faults if broken else {}), **asked(fault_points, tables)} or {CRASH: None}
    tables = with_faults(tables, kinds)
    first: Property | None = None
    budget = 1 if faults is None else faults
    if broken is not None:
        tables, first = broken.edit(tables), broken.killed_by
        budget = broken.budget if faults is None else faults
        detection = broken.detection if detection is None else detection
        stream = stream or broken.stream
    network = Network(tables, scope, faults=budget, kinds=kinds, detection=detection is not False, stream=stream)
    result = check(network, chosen, judge_all=detection is False, progress=progress)
    violated = [v for v in result.verdicts if not v.holds]
    violated.sort(key=lambda v: v.property is not first)
    shown = (counterexample(result, v) for v in violated)
    example = next((c for c in shown if c is not None), None)
    worst = worst_steps_to_end(result.graph, result.flags)
    return Report(protocol, mutant, scope, budget, kinds, stream, worst, result, example)


def write(report: Report, out: Path) -> None:
    """`check.txt` and `check.json`; of a counterexample also its chart and a scenario for `genlock run`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.txt").write_text(report.as_text() + "\n")
    (out / "check.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")
    example = report.counterexample
    if example is None:
        return
    from ..diagram import sequence_mermaid, sequence_svg  # graphviz is slow to import, and most checks draw nothing

    schedule = report.result.network.protocol.schedule
    (out / "counterexample.svg").write_text(sequence_svg(example, schedule))
    (out / "counterexample.mmd").write_text(sequence_mermaid(example, schedule))
    (out / "scenario.json").write_text(json.dumps(scenario(example, report.mutant), indent=2) + "\n")


def named_protocol(name: str) -> Protocol:
    """The protocol of this name, with the parameters that it has by itself (see `load`)."""
    return load(name)


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("sh") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


def _properties(names: Sequence[str], tables: Protocol) -> Sequence[Property]:
    for name in names:
        if name not in PROPERTIES:
            raise UsageError(f"no property `{name}`", do=f"choose from {', '.join(PROPERTIES)}")
    return [PROPERTIES[name] for name in names] or properties_of(tables.name)


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
