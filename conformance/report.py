"""Renders a diagnosis as text, JSON and JUnit XML.

Left out: pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..errors import Exit
from ..junit import Case, Outcome, as_xml
from .diagnosis import Diagnosis, Divergence, Strength
from .report_schema import SCHEMA
from .wait_graph import WaitGraph, named

STATUS = {"conforming": Exit.OK, "divergent": Exit.VIOLATED, "unknown": Exit.UNKNOWN}
"""Exit status of a replay, by verdict."""
SHOWN = 8
"""The text names so many of the waiting ranks."""


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the object that `replay --format json` prints: `report_schema.Report`."""
    found = diagnosis.divergence
    return {
        "schema": SCHEMA,
        "verdict": diagnosis.verdict,
        "ranks": diagnosis.ranks,
        "events": diagnosis.events,
        "matched_collectives": diagnosis.matched_collectives,
        "divergence": None if found is None else _divergence_json(found, diagnosis),
        "reasons": list(diagnosis.reasons),
        "suspects": list(diagnosis.suspects),
        "accused": [{"rank": a.rank, "strength": a.strength.value, "case": a.case} for a in diagnosis.accused],
        "missing": [{"kind": m.kind.value, "ranks": list(m.ranks), "text": m.text} for m in diagnosis.missing],
        "wait_for_graph": WaitGraph(diagnosis).as_json(),
        "lifted_to": diagnosis.lifted or None,
        "summed_events": diagnosis.summed,
        "jobs": [{"name": job.name, "report": as_json(job.diagnosis)} for job in diagnosis.jobs],
    }


def as_text(diagnosis: Diagnosis) -> str:
    """Return the verdict in one line, then where, what, and whose fault; of several jobs, of each."""
    if diagnosis.jobs:
        counts = Counter(job.diagnosis.verdict for job in diagnosis.jobs)
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        own = {reason for job in diagnosis.jobs for reason in job.diagnosis.reasons}
        parts = [f"{diagnosis.verdict}: {len(diagnosis.jobs)} jobs or attempts: {told}"]
        parts += [f"  {reason}" for reason in diagnosis.reasons if reason not in own]
        parts += [f"\n── {job.name}\n{as_text(job.diagnosis)}" for job in diagnosis.jobs]
        return "\n".join(parts)
    head = (
        f"{diagnosis.verdict}: {diagnosis.ranks} ranks, {diagnosis.events:,} events, "
        f"{diagnosis.matched_collectives} collectives matched"
    )
    if diagnosis.summed:
        head += f" ({diagnosis.summed:,} of the events by digests alone)"
    found = diagnosis.divergence
    lines = [head + (f", as {diagnosis.lifted}" if diagnosis.lifted else "")]
    if found is not None:
        mode = f" ({diagnosis.failure_mode})" if diagnosis.failure_mode else ""
        lines += [
            "",
            f"First divergence{mode}: rank{found.rank}, {_place(found)}, line {found.line}, event {found.event}",
            f"  state     {found.state}",
            f"  observed  {found.observed}",
            f"  expected  {_or(found.expected)}",
            f"  why       {found.why}",
            *([f"  stall     {diagnosis.stall}"] if diagnosis.stall else []),
            f"  culprits  {', '.join(f'rank{r}' for r in diagnosis.culprits) or 'unknown'}",
            *([f"  suspects  {_suspects(diagnosis)}"] if diagnosis.suspects else []),
        ]
        graph = WaitGraph(diagnosis)
        lines += [f"  waits     {graph.title()}"] if graph.waits else []
        left = [w for w in diagnosis.waits if w.missing]
        for wait in left[:SHOWN]:
            peers = " and ".join(f"rank{m}" for m in wait.missing[:SHOWN])
            more = f" and {len(wait.missing) - SHOWN} more" if len(wait.missing) > SHOWN else ""
            lines.append(f"  left waiting: rank{wait.rank} in {wait.operation} for {peers}{more}")
        if len(left) > SHOWN:
            lines.append(f"  left waiting: {len(left) - SHOWN} more ranks")
        lines += _standing_text(diagnosis)
    elif diagnosis.suspects:
        lines.append(f"  suspects  {_suspects(diagnosis)}")
    lines += [f"  {reason}" for reason in diagnosis.reasons]
    lines += [f"  would tell more: {missing.text}" for missing in diagnosis.missing]
    return "\n".join(lines)


def as_junit(diagnosis: Diagnosis) -> str:
    """Return JUnit XML of one test case, the run conforms; of several jobs, one of each."""
    cases = [_case(job.diagnosis, f"conforming: {job.name}") for job in diagnosis.jobs]
    if not cases or diagnosis.verdict not in {job.diagnosis.verdict for job in diagnosis.jobs}:
        cases.append(_case(diagnosis, "conforming"))
    return as_xml("genlock replay", cases)


def _case(diagnosis: Diagnosis, name: str) -> Case:
    case = Case("genlock.replay", name)
    if diagnosis.verdict == "conforming":
        return case
    outcome: Outcome = "failure" if diagnosis.verdict == "divergent" else "skipped"
    return Case(case.classname, case.name, outcome, diagnosis.verdict, as_text(diagnosis))


def _suspects(diagnosis: Diagnosis) -> str:
    """Return the suspects by case: `rank1, rank2 (circle)`."""
    by_case: dict[str, list[int]] = {}
    for accusation in diagnosis.accused:
        if accusation.strength is Strength.SUSPECT:
            by_case.setdefault(accusation.case, []).append(accusation.rank)
    return "; ".join(f"{named(ranks)} ({case})" for case, ranks in by_case.items())


def _place(found: Divergence) -> str:
    if found.place:
        if not found.phase or found.phase == found.place:
            return found.place
        return f"{found.place}, {found.phase if found.phase.startswith('in ') else f'at {found.phase}'}"
    call = f", call {found.call}" if found.call else ""
    return f"chunk {found.chunk}, phase {found.phase}{call}"


def _standing_text(diagnosis: Diagnosis) -> list[str]:
    """Return, per rank, what came where it ended, and what the model expected; those to blame first."""
    why = diagnosis.divergence.why if diagnosis.divergence else ""
    told = sorted(diagnosis.standing, key=lambda s: (s.rank not in diagnosis.culprits, s.rank))
    lines = ["", "Where each rank ended: what came, and what the model expected"] if told else []
    for s in told[:SHOWN]:
        lines.append(f"  rank{s.rank}  chunk {s.chunk}, {s.state}: {s.observed}; expected {_or(s.expected)}")
        lines += [f"         {shortened(s.why)}"] if s.why and s.why != why else []
    return lines + ([f"  {len(told) - SHOWN} more ranks"] if len(told) > SHOWN else [])


def shortened(text: str) -> str:
    """Return a text as one line of a bearable length: a backend's messages have none."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_WHY else f"{line[: MAX_WHY - 2]} …"


MAX_WHY = 120


def _or(expected: Sequence[str]) -> str:
    return " or ".join(expected) or "nothing"


def _divergence_json(found: Divergence, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "chunk": found.chunk,
        "phase": found.phase,
        "call": found.call,
        "event": found.event,
        "line": found.line,
        "call_id": found.call_id,
        "state": found.state,
        "observed": found.observed,
        "expected": list(found.expected),
        "why": found.why,
        "failure_mode": diagnosis.failure_mode,
        "culprits": list(diagnosis.culprits),
        "stall": diagnosis.stall,
        "place": found.place or _place(found),
        "waiting": [
            {"rank": w.rank, "operation": w.operation, "waiting_for": list(w.missing)} for w in diagnosis.waits
        ],
        "standing": [asdict(s) for s in diagnosis.standing],
    }
