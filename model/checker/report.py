"""What a check found, as text, JSON and JUnit XML. Left out: pictures (`..chart`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Exit, UsageError
from ...junit import Case, as_xml
from ...notebook import table
from ..protocols.load import load
from ..semantics.known_mutants import mutant as find_mutant
from ..semantics.network import Network
from ..semantics.properties import PROPERTIES, Property, properties_of
from ..semantics.query import Query
from ..semantics.run import Counterexample
from ..tables import Protocol
from .counterexample import counterexample
from .engine import AUTO, check
from .formatting import counted, counterexample_json, counterexample_text, faults_text
from .reference import Progress, Result, Verdict

SCHEMA = 1
_WORDS = {Exit.OK: "holds", Exit.VIOLATED: "violated", Exit.UNKNOWN: "unknown"}


@dataclass(frozen=True)
class Report:
    """A finished check."""

    protocol: str
    mutant: str | None
    result: Result
    counterexample: Counterexample | None

    @property
    def network(self) -> Network:
        """The network that was searched: the protocol within its scope, with its faults."""
        return self.result.network

    @property
    def holds(self) -> bool:
        """True if every property that was judged holds. Of a search that ended early that is no verdict: see `exit`."""
        return self.result.holds

    @property
    def depth(self) -> int:
        """Steps of the longest of all shortest paths to a state."""
        return self.result.graph.depth[-1]

    @property
    def exit(self) -> Exit:
        """0 where everything holds, 1 where something does not, 3 where the search did not come to its end."""
        if self.result.stopped:
            return Exit.UNKNOWN
        return Exit.OK if self.holds else Exit.VIOLATED

    def __repr__(self) -> str:
        broken = f" broken by {self.mutant}" if self.mutant else ""
        claim = f" ({self.counterexample.claim})" if self.counterexample else ""
        searched = f"{self.network.ranks} ranks, {self.result.graph.counts[0]:,} states"
        return f"<Report {self.protocol}{broken}: {_WORDS[self.exit]}{claim}, {searched}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = [
            (v.property.name, "holds" if v.holds else "VIOLATED", v.property.text) for v in self.result.verdicts
        ]
        if self.counterexample is not None:
            rows.append(("counterexample", self.counterexample.title, self.counterexample.summary))
        return table(repr(self).strip("<>").partition(":")[0], _WORDS[self.exit], rows)

    def as_json(self) -> dict[str, Any]:
        """The object that `check --format json` prints."""
        result, cex = self.result, self.counterexample
        states, transitions = result.graph.counts
        return {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "mutant": self.mutant,
            "ranks": self.network.ranks,
            "transport": "stream" if self.network.stream else "rendezvous",
            "faults": {k: sorted(map(str, points)) if points else None for k, points in self.network.kinds.items()},
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
            "properties": [
                {"name": v.property.name, "kind": v.property.kind, "holds": v.holds} for v in result.verdicts
            ],
            "counterexample": None if cex is None else counterexample_json(cex),
        }

    def as_text(self) -> str:
        """The verdict, a line a property, and the counterexample as numbered steps."""
        result, scope = self.result, self.network.scope
        states, transitions = result.graph.counts
        lines = [
            f"{self.protocol}{f' broken by {self.mutant}' if self.mutant else ''}: {scope.ranks} ranks, "
            f"{counted(scope.chunks, 'chunk')}, {counted(scope.steps, 'step')} a chunk, "
            f"{faults_text(self.network)}, {'stream' if self.network.stream else 'rendezvous'} transport",
            f"{states:,} states{' of a reduced search' if result.reduced else ''}, "
            f"{transitions:,} transitions, depth {self.depth}, "
            f"{counted(result.deadlocks, 'deadlock')}, in {result.seconds:.1f} s by the {result.engine} engine",
        ]
        if result.reduced:
            lines.append(
                "left out are orders of steps and runs after a failure that show nothing new; --reduction off has all"
            )
        elif result.symmetric:
            lines.append(f"searched as {len(result.graph.states):,}: workers are interchangeable")
        if result.worst_steps:
            lines.append(f"at worst {counted(result.worst_steps, 'step')} from a failure to the last rank's end")
        if result.stopped:
            of = " of the reduced search" if result.reduced else ""
            lines.append(f"STOPPED: {result.stopped}; every run{of} of up to {self.depth - 1} steps was covered")
        lines.append("")
        for verdict in self.result.verdicts:
            mark = "holds   " if verdict.holds else "VIOLATED"
            lines.append(f"  {mark}  {verdict.property.name:30} {verdict.property.text}")
        if self.counterexample is not None:
            lines += ["", *counterexample_text(self.counterexample)]
        return "\n".join(lines)

    def as_junit(self) -> str:
        """One test case a property."""
        classname = f"genlock.check.{self.protocol}"
        return as_xml(
            f"genlock check {self.protocol}",
            (self._case(classname, v) for v in self.result.verdicts),
            self.result.seconds,
        )

    def _case(self, classname: str, verdict: Verdict) -> Case:
        prop, example = verdict.property, self.counterexample
        if verdict.holds:
            return Case(classname, prop.name)
        shown = counterexample_text(example) if example is not None and example.claim == prop.name else ()
        return Case(classname, prop.name, "failure", prop.text, "\n".join(shown))


def run_check(
    question: Query,
    *,
    properties: Sequence[str] = (),
    engine: str = AUTO,
    symmetry: str = AUTO,
    reduction: str = AUTO,
    progress: Progress | None = None,
) -> Report:
    """Search a network and judge it by the properties of these names, or by all that its protocol has.

    `engine`, `symmetry` and `reduction` as in `engine.check`. Raises UsageError for a name that does not exist.
    """
    network = question.network()
    chosen = _properties(properties, network.protocol)
    first = find_mutant(question.mutant).killed_by if question.mutant else None
    result = check(
        network,
        chosen,
        engine=engine,
        symmetry=symmetry,
        reduction=reduction,
        judge_all=not network.detection,
        progress=progress,
    )
    violated = [v for v in result.verdicts if not v.holds]
    violated.sort(key=lambda v: v.property is not first)
    shown = (counterexample(result, v) for v in violated)
    example = next((c for c in shown if c is not None), None)
    return Report(question.protocol, question.mutant, result, example)


def named_protocol(name: str) -> Protocol:
    """The protocol of this name, with the parameters that it has by itself (see `load`)."""
    return load(name)


def _properties(names: Sequence[str], tables: Protocol) -> Sequence[Property]:
    for name in names:
        if name not in PROPERTIES:
            raise UsageError(f"no property `{name}`", do=f"choose from {', '.join(PROPERTIES)}")
    return [PROPERTIES[name] for name in names] or properties_of(tables.name)
