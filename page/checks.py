"""The page of a check: its counterexample on lanes, what the protocol was broken by, and the model to walk by hand.

Left out: the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..model.checker.counterexample import Counterexample, TraceStep
from ..model.checker.report import Report
from ..model.difference import Change, changes, told
from ..model.load import load
from ..model.mutants import mutant as find_mutant
from ..model.network import Network, NetworkState
from ..model.tables import By, Protocol, Scope
from .explorer import BOUND, along, walk
from .story import Edge, Finding, Link, Moment, Story

WHOLE = 60_000
"""States of a page that is for walking alone: all of TP v1.1 with 3 ranks and one chunk."""
FAULTS = ("crash", "stall")
EDGES: dict[str, Edge] = {"issue": "enter", "complete": "exit", "device": "exit", "crash": "fault", "stall": "fault"}


def story_of(report: Report, bound: int = BOUND) -> Story:
    """The page of a finished check. At most `bound` states can be walked by hand."""
    network, example = report.network, report.counterexample
    broken = f" broken by {report.mutant}" if report.mutant else ""
    title = f"{report.protocol}{broken}"
    states, transitions = report.result.graph.counts
    searched = f"{network.ranks} ranks, {states:,} states, {transitions:,} transitions"
    if example is None:
        return Story(
            title=title,
            verdict="unknown" if report.result.stopped else "holds" if report.holds else "violated",
            summary=searched,
            lanes=range(network.ranks),
            moments=(),
            protocol=network.protocol,
            walk=walk(network, [network.initial()], bound),
        )
    moments, links = lanes_of(example, network.protocol)
    cause = _cause(example, report, network.protocol)
    return Story(
        title=title,
        verdict="violated",
        summary=f"{searched}; shortest counterexample to {example.claim}, {len(example.steps)} steps",
        lanes=range(network.ranks),
        moments=moments,
        links=links,
        focus=len(moments) - 1 if cause is None else cause.at,
        finding=_finding(example, report, cause),
        protocol=network.protocol,
        walk=walk(network, along(network, example.steps), bound),
    )


def of_protocol(protocol: Protocol, bound: int = WHOLE) -> Story:
    """A page to walk `protocol` by hand, with one chunk and one crash anywhere."""
    network = Network(protocol, Scope(protocol.ranks or 3, 1, 1))
    return _to_walk(network, f"{protocol.name}, to walk by hand", bound)


def of_run(network: Network, run: Counterexample) -> Story:
    """A run in which nothing goes wrong, and a crash anywhere in what may be walked from it."""
    moments, links = lanes_of(run, network.protocol)
    crashing = Network(network.protocol, network.scope)
    story = _to_walk(crashing, network.protocol.name, BOUND, along(crashing, run.steps))
    summary = f"{run.text}, {len(run.steps)} steps"
    return replace(story, summary=summary, moments=moments, links=links, verdict="holds", focus=0)


def _to_walk(network: Network, title: str, bound: int, spine: Sequence[NetworkState] = ()) -> Story:
    return Story(
        title=title,
        verdict="walk",
        summary=f"{network.ranks} ranks, one chunk of one call, at most one crash",
        lanes=range(network.ranks),
        moments=(),
        protocol=network.protocol,
        walk=walk(network, spine or [network.initial()], bound),
    )


def lanes_of(example: Counterexample, protocol: Protocol) -> tuple[list[Moment], list[Link]]:
    """The steps, one a column, and the collectives by name and number."""
    operations = {op.name: op for op in protocol.schedule}
    links: dict[tuple[str, int], int] = {}
    found: list[Link] = []
    opened: dict[tuple[int, str, int], int] = {}
    moments: list[Moment] = []
    states = _start(protocol, example.ranks)
    for at, step in enumerate(example.steps):
        edge, link, mate = EDGES.get(step.edge, "step"), None, None
        if step.sequence is not None and step.operation in operations:
            key = (step.operation, step.sequence)
            if key not in links:
                links[key] = len(found)
                root = operations[step.operation].root
                found.append(Link(f"{step.operation} #{step.sequence}", tuple(range(example.ranks)), root))
            link = links[key]
            mate = opened.pop((step.rank, *key), None) if edge == "exit" else None
            if edge == "enter":
                opened[step.rank, *key] = at
            elif mate is not None:
                moments[mate] = moments[mate]._replace(mate=at)
        moments.append(_moment(step, at, edge, states[step.rank], protocol, link, mate))
        states = step.states
    return moments, found


def _moment(
    step: TraceStep, at: int, edge: Edge, before: str, protocol: Protocol, link: int | None, mate: int | None
) -> Moment:
    state = step.states[step.rank]
    table = protocol.role(step.rank).by_name
    return Moment(
        step.rank,
        at,
        step.event,
        edge,
        before,
        state,
        table[before].phase if before in table else "",
        call=step.sequence if step.operation == "generate" else None,
        mate=mate,
        link=link,
        commits=step.commits and step.edge != "complete",
        place=step.number,
        detail=step.data,
    )


class Cause(NamedTuple):
    """The step in which a run leaves the unbroken protocol, and the edit behind it; None for a fault."""

    at: int
    change: Change | None


def _cause(example: Counterexample, report: Report, protocol: Protocol) -> Cause | None:
    """The first fault, or step by a row that was edited; one that only lost a guard where there is no other."""
    whole = load(report.protocol)
    changed = [changes(old, new) for old, new in zip(whole.roles, protocol.roles, strict=True)]
    states = [_start(protocol, example.ranks), *(s.states for s in example.steps)]
    unguarded = None
    for at, (step, before) in enumerate(zip(example.steps, states, strict=False)):
        key = (before[step.rank], step.event)
        row = protocol.role(step.rank).rows_by_key.get(key)
        if step.edge in FAULTS or (row is not None and row.by is By.FAULT):
            return Cause(at, None)
        change = changed[step.rank > 0].get(key)
        if change is not None and change.moved:
            return Cause(at, change)
        if change is not None and unguarded is None:
            unguarded = Cause(at, change)
    return unguarded


def _start(protocol: Protocol, ranks: int) -> tuple[str, ...]:
    return tuple(protocol.role(rank).initial for rank in range(ranks))


def _finding(example: Counterexample, report: Report, cause: Cause | None) -> Finding:
    """Where the run left the protocol, and what came of it."""
    at = len(example.steps) - 1 if cause is None else cause.at
    step = example.steps[at]
    calls = [s.sequence for s in example.steps if (s.rank, s.operation, s.edge) == (step.rank, "generate", "issue")]
    facts = [("rank", f"rank{step.rank}"), ("step", str(step.number))]
    if calls:
        facts.append(("call", f"{calls[-1]}, the last that rank{step.rank} makes"))
    facts.append(("claim", f"{example.claim}: {example.text}"))
    if cause is None:
        seen, expected, why = step.text, example.text, example.summary
    elif cause.change is None:
        seen, expected, why = step.text, "no fault", f"a fault strikes rank{step.rank}"
    else:
        seen, expected = sides(cause.change)
        why = f"an edited row: {'; '.join(cause.change.words)}"
    head = f"{example.claim} is violated"
    if report.mutant:
        head = f"{report.mutant}: {find_mutant(report.mutant).title}"
    waits = tuple(s.text for s in example.stuck) or (example.summary,)
    return Finding(head, seen, (expected,), why, tuple(facts), (step.rank,), waits)


def sides(change: Change) -> tuple[str, str]:
    """What a row does now, and what it did before it was edited."""
    old, new, row = change.old, change.new, change.row
    if old is None or new is None:
        return (str(row), "no such row") if new else ("no such row", str(row))
    if old.target != new.target:
        return f"{row.event} leads to {new.target}", f"{row.event} leads to {old.target}"
    for name in ("choices", "send", "effect"):
        before, after = getattr(old, name), getattr(new, name)
        if before is not after:
            return _does(row.event, name, after), _does(row.event, name, before)
    dropped = [told(guard) for guard in old.guards if guard not in new.guards]
    if dropped:
        return f"{row.event}, whatever holds", f"{row.event} only if {' and '.join(dropped)}"
    return f"{row.event}: {'; '.join(change.words)}", f"{row.event} as it was"


def _does(event: str, name: str, function: Callable[..., Any] | None) -> str:
    return f"{event}: {told(function)}" if function else f"{event}: no {name}"
