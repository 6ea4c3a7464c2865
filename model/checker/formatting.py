"""Formats what the reports of a check share: numbers, faults and a counterexample.

Left out: verdicts.
"""

from __future__ import annotations

from typing import Any

from ..semantics.network import Network
from ..semantics.query import Query
from ..semantics.run import Counterexample


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 step`, `2 steps`."""
    plural = "es" if what.endswith("sh") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


def faults_text(network: Network) -> str:
    """Return which faults were let happen, and how many of them."""
    if not network.faults or not network.kinds:
        return "no fault"
    shown = (k if p is None else f"{k}@{'|'.join(sorted(map(str, p)))}" for k, p in network.kinds.items())
    return f"at most {counted(network.faults, 'fault')} ({', '.join(shown)})"


def scope_text(network: Network, question: Query, ranks: str | None = None) -> str:
    """Return all that bounds a search, in one line. `ranks` stands for the number of ranks where there is none."""
    scope = network.scope
    parts = [
        ranks or f"{scope.ranks} ranks",
        counted(scope.chunks, "chunk"),
        f"{counted(scope.steps, 'step')} a chunk",
        *(f"{name}={value}" for name, value in question.params.items()),
        faults_text(network),
        f"{'stream' if network.stream else 'rendezvous'} transport",
        f"detection {'on' if network.detection else 'off'}",
    ]
    return ", ".join(parts)


def scope_json(network: Network, question: Query) -> dict[str, Any]:
    """Return all that bounds a search, as `check --format json` prints it."""
    scope = network.scope
    return {
        "ranks": scope.ranks,
        "chunks": scope.chunks,
        "steps": scope.steps,
        "params": dict(question.params),
        "at_most_faults": network.faults,
        "faults": {k: sorted(map(str, points)) if points else None for k, points in network.kinds.items()},
        "transport": "stream" if network.stream else "rendezvous",
        "detection": network.detection,
    }


def counterexample_json(cex: Counterexample) -> dict[str, Any]:
    """Return a counterexample as `check --format json` prints it."""
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


def counterexample_text(cex: Counterexample) -> list[str]:
    """Return the lines of a counterexample: the numbered steps, then where it ends."""
    lines = [f"{cex.title[0].upper()}{cex.title[1:]}:"]
    for step in cex.steps:
        lines.append(
            f"  {step.number:3}. {step.text}{'   ← commitment point' if _commits(step.edge, step.commits) else ''}"
        )
    lines += ["", *(f"  {part}." for part in cex.summary.split("; "))]
    return lines


def _commits(edge: str, commits: bool) -> bool:
    return commits and edge != "complete"
