"""Makes the page of a check: its counterexample on lanes, how the protocol was broken, and the model to walk by hand.

Left out: the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..model.checker.report import Answer, Report
from ..model.diagrams.table_diff import Change, changes
from ..model.protocols.load import load
from ..model.semantics.faults import with_faults
from ..model.semantics.known_mutants import mutant as find_mutant
from ..model.semantics.network import Network, NetworkState
from ..model.semantics.run import Counterexample, TraceStep
from ..model.tables import Protocol, Scope
from .explorer import BOUND, along, steps, walk
from .view_model import AnyVerdict, CollectiveLink, Edge, Headline, Moment, Story

WHOLE = 60_000
"""States of a page that is for walking alone: all of TP v1.1 with 3 ranks and one chunk."""
FAULTS = ("crash", "stall")
PAGE_VERDICT: dict[Answer, AnyVerdict] = {
    Answer.HOLDS: "holds",
    Answer.VIOLATED: "violated",
    Answer.VACUOUS: "unknown",
    Answer.UNKNOWN: "unknown",
}
EDGES: dict[str, Edge] = {"issue": "enter", "complete": "exit", "device": "exit", "crash": "fault", "stall": "fault"}


def story_of(report: Report, bound: int = BOUND) -> Story:
    """Return the page of a finished check. At most `bound` states can be walked by hand."""
    network, example = report.network, report.counterexample
    broken = f" broken by {report.mutant}" if report.mutant else ""
    title = f"{network.protocol.name}{broken}"
    states, transitions = report.result.graph.counts
    searched = f"{network.ranks} ranks, {states:,} states, {transitions:,} transitions"
    if example is None or not example.steps:  # nothing to step through
        return Story(
            title=title,
            verdict=PAGE_VERDICT[report.verdict],
            summary=searched,
            lanes=range(network.ranks),
            moments=(),
            protocol=network.protocol,
            scope=network.scope,
            walk=walk(network, [network.initial()], bound),
        )
    moments, links = lanes_of(example, network)
    cause = _cause(example, report)
    return Story(
        title=title,
        verdict="violated",
        summary=f"{searched}; {example.title}",
        lanes=range(network.ranks),
        moments=moments,
        links=links,
        focus=cause.at,
        finding=_finding(example, report, cause),
        protocol=network.protocol,
        scope=network.scope,
        walk=walk(network, along(network, steps(example)), bound),
    )


def of_protocol(protocol: Protocol, bound: int = WHOLE) -> Story:
    """Return a page to walk `protocol` by hand, with one chunk and one crash anywhere."""
    network = Network(protocol, Scope(protocol.ranks or 3, 1, 1))
    return _to_walk(network, f"{protocol.name}, to walk by hand", bound)


def of_run(network: Network, run: Counterexample) -> Story:
    """Return the page of a run in which nothing goes wrong, from which a crash anywhere may be walked."""
    moments, links = lanes_of(run, network)
    crashing = Network(network.protocol, network.scope)
    story = _to_walk(crashing, network.protocol.name, BOUND, along(crashing, steps(run)))
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
        scope=network.scope,
        walk=walk(network, spine or [network.initial()], bound),
    )


def lanes_of(example: Counterexample, network: Network) -> tuple[list[Moment], list[CollectiveLink]]:
    """Return the steps, one a column, and the collectives by name and number."""
    operations = {op.name: op for op in network.protocol.schedule}
    links: dict[tuple[str, int, tuple[int, ...]], int] = {}
    found: list[CollectiveLink] = []
    opened: dict[tuple[int, str, int, tuple[int, ...]], int] = {}
    moments: list[Moment] = []
    states = _start(network)
    for at, step in enumerate(example.steps):
        edge, link, mate = EDGES.get(step.edge, "step"), None, None
        if step.sequence is not None and step.operation in operations:
            key = (step.operation, step.sequence, step.members)
            if key not in links:
                links[key] = len(found)
                root = operations[step.operation].root
                members = step.members or tuple(range(example.ranks))
                root = None if root is None else members[root]
                found.append(CollectiveLink(f"{step.operation} #{step.sequence}", members, root))
            link = links[key]
            mate = opened.pop((step.rank, *key), None) if edge == "exit" else None
            if edge == "enter":
                opened[step.rank, *key] = at
            elif mate is not None:
                moments[mate] = moments[mate]._replace(mate=at)
        moments.append(_moment(step, at, edge, states[step.rank], network, link, mate))
        states = step.states
    return moments, found


def _moment(
    step: TraceStep, at: int, edge: Edge, before: str, network: Network, link: int | None, mate: int | None
) -> Moment:
    state = step.states[step.rank]
    table = network.lts[step.rank].role.by_name
    return Moment(
        step.rank,
        at,
        "dies" if step.edge == "crash" else step.event,
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


class WrongStep(NamedTuple):
    """Names the step in which a run goes wrong, what should have come instead, and why it did not."""

    at: int
    expected: tuple[str, ...]
    why: str


def _cause(example: Counterexample, report: Report) -> WrongStep:
    """Return a mutant's first step that the unbroken protocol does not have; else the last fault, or the last step."""
    broken = None if report.mutant is None else _broken_at(example, report)
    if broken is not None:
        return broken
    faults = [at for at, step in enumerate(example.steps) if step.edge in FAULTS]
    if faults:
        return WrongStep(faults[-1], ("no fault",), f"a fault at rank{example.steps[faults[-1]].rank}")
    return WrongStep(len(example.steps) - 1, (example.text,), example.summary)


def _broken_at(example: Counterexample, report: Report) -> WrongStep | None:
    """Return the first step that the unbroken protocol lacks or has otherwise; None where there is none."""
    broken = report.network
    tables = with_faults(load(report.protocol), broken.kinds)
    whole = Network(
        tables,
        broken.scope,
        faults=broken.faults,
        kinds=broken.kinds,
        detection=broken.detection,
        stream=broken.stream,
    )
    shared = along(whole, steps(example))
    edits = _edits(example, tables, broken)
    at = len(shared) - 1
    if at < len(example.steps):
        rank = example.steps[at].rank
        moves = [
            f"{move.event} → {whole.state_name(state, rank)}"
            for move, state in whole.successors(shared[-1])
            if move.rank == rank and move.edge not in FAULTS
        ]
        edited = [f"step {n + 1}, {edit.row.event}: {'; '.join(edit.words)}" for n, edit in edits if n <= at]
        expected = tuple(dict.fromkeys(moves)) or ("to wait",)
        return WrongStep(at, expected, "; ".join(edited) or "the unbroken protocol has no such step here")
    if edits:  # the steps are those of the unbroken protocol, what they carry is not
        at, edit = edits[0]
        return WrongStep(at, (f"{edit.row.event} as it was",), "; ".join(edit.words))
    return None


def _edits(example: Counterexample, whole: Protocol, broken: Network) -> list[tuple[int, Change]]:
    """Return the first step by each row that was edited, with the edit."""
    changed = [changes(old, new) for old, new in zip(whole.roles, broken.protocol.roles, strict=True)]
    states = [_start(broken), *(s.states for s in example.steps)]
    found: dict[tuple[str, str], tuple[int, Change]] = {}
    for at, (step, before) in enumerate(zip(example.steps, states, strict=False)):
        key = (before[step.rank], step.event)
        change = changed[step.rank > 0].get(key)
        if change is not None:
            found.setdefault(key, (at, change))
    return sorted(found.values(), key=lambda edit: edit[0])


def _start(network: Network) -> tuple[str, ...]:
    return tuple(lts.role.initial for lts in network.lts)


def _finding(example: Counterexample, report: Report, cause: WrongStep) -> Headline:
    """Describe where the run went wrong, and what came of it."""
    step = example.steps[cause.at]
    calls = [s.sequence for s in example.steps if (s.rank, s.operation, s.edge) == (step.rank, "generate", "issue")]
    facts = [("rank", f"rank{step.rank}"), ("step", str(step.number))]
    if calls:
        facts.append(("call", f"{calls[-1]}, the last that rank{step.rank} makes"))
    facts.append(("claim", f"{example.claim}: {example.text}"))
    seen = "it dies" if step.edge == "crash" else f"{step.event} → {step.states[step.rank]}"
    head = f"{example.claim} is violated"
    if report.mutant:
        head = f"{report.mutant}: {find_mutant(report.mutant).title}"
    waits = tuple(s.text for s in example.stuck) or (example.summary,)
    return Headline(head, seen, cause.expected, cause.why, tuple(facts), (step.rank,), waits)
