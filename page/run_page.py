"""Makes the page of a recorded run: each rank's events on its lane, and where replay says that it left the model.

Left out: the verdict itself (`conformance`). Of very long or wide runs the page holds the part around the divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..conformance.diagnosis import Diagnosis
from ..conformance.replay import judge
from ..conformance.report import as_json
from ..errors import UsageError
from ..model.protocols.load import PROTOCOLS
from ..model.semantics.network import Network
from ..model.tables import Protocol, Scope
from ..traces.collectives import P2P, Recording, Status
from ..traces.format import Dropped, End, Event, Trace
from ..traces.load import load
from .explorer import along, walk
from .lamport_order import columns
from .view_model import Link, Moment, Problem, Story

MAX_LANES, MAX_MOMENTS = 32, 120_000
MAX_WALKED = 1_000
"""A longer run is not followed through the model, so that its page is not for walking."""

Op = tuple[Any, ...]
"""An operation's identity on all of its ranks: group, sequence, and for p2p its two ends."""


def of_paths(paths: Sequence[Path]) -> Story:
    """Return the page of the traces that paths stand for. Raises UnreadableInput, UsageError."""
    if not paths:
        raise UsageError("name the traces of a run", where="--format html", do="a folder, or one file a rank")
    found = load(paths)
    return story_of(found, judge(found))


def story_of(found: Sequence[Trace] | Recording, diagnosis: Diagnosis) -> Story:
    """Return the page of what was read, with its verdict."""
    report = as_json(diagnosis)
    world = found.world if isinstance(found, Recording) else found[0].header.world
    lanes = shown(range(world), report)
    if isinstance(found, Recording):
        protocol, (moments, links) = None, of_recording(found, lanes)
    else:
        protocol = PROTOCOLS.get(found[0].header.protocol)
        moments, links = of_traces([t for t in found if t.rank in lanes], protocol)
    focus = _focus(moments, report)
    kept, focus = window(moments, focus)
    notes = [*report["reasons"], *_left_out(world - len(lanes), len(moments) - len(kept))]
    name = protocol.name if protocol else "collectives"
    return Story(
        title=f"{name} on {world} ranks",
        verdict=diagnosis.verdict,
        summary=f"{diagnosis.events:,} events, {diagnosis.matched_collectives:,} collectives matched",
        lanes=lanes,
        moments=kept,
        links=links,
        focus=focus,
        finding=finding(report),
        notes=notes,
        protocol=protocol,
        places="line" if protocol else "entry",
        walk=None if isinstance(found, Recording) else _walk(found, protocol, kept),
    )


def _walk(traces: Sequence[Trace], protocol: Protocol | None, moments: Sequence[Moment]) -> dict[str, Any] | None:
    """Return the model along the run, as far as it has the run's moves, and what else might have happened.

    None for a run that is too long or not whole.
    """
    if protocol is None or len(traces) < traces[0].header.world or len(moments) > MAX_WALKED:
        return None
    plans = (e.data for t in traces for e in t.events if e.transition == "preflight_schema")
    calls = [plan["steps"] for plan in plans if isinstance(plan, dict) and plan.get("steps")]
    chunks = max((moment.chunk or 0 for moment in moments), default=0) + 1
    network = Network(protocol, Scope(len(traces), chunks, calls[0] if calls else 1))
    edges = {"enter": "issue", "exit": "complete", "step": "step"}
    events = {event for role in protocol.roles for event in role.events}
    taken = [
        (m.rank, m.name, edges[m.edge], m.state) if m.edge in edges and m.name in events else None for m in moments
    ]
    return walk(network, along(network, taken))


def shown(present: Sequence[int], report: Mapping[str, Any]) -> list[int]:
    """Return the ranks that have a lane: all, or those that the verdict is about and the first of the others."""
    if len(present) <= MAX_LANES:
        return list(present)
    named = report["divergence"] or {}
    waiting = [w["rank"] for w in named.get("waiting", ())]
    first = [named.get("rank"), *named.get("culprits", ()), *report["suspects"], *waiting]
    ordered = dict.fromkeys(rank for rank in (*first, *present) if rank in set(present))
    return sorted(list(ordered)[:MAX_LANES])


def finding(report: Mapping[str, Any]) -> Problem | None:
    """Return the divergence as the page shows it; None where there is none."""
    d = report["divergence"]
    if d is None:
        return None
    named = (("rank", f"rank{d['rank']}"), ("place", d["place"]), ("call_id", d["call_id"]), ("line", d["line"]))
    facts = tuple((name, str(value)) for name, value in (*named, ("state", d["state"])) if value not in (None, ""))
    mode = f"{d['failure_mode']}: " if d["failure_mode"] else ""
    waits = tuple(
        f"rank{w['rank']} waits in {w['operation']} for {' and '.join(f'rank{m}' for m in w['waiting_for'][:8])}"
        for w in d["waiting"]
        if w["waiting_for"]
    )
    head = f"{mode}first divergence at rank{d['rank']}"
    return Problem(head, d["observed"], tuple(d["expected"]), d["why"], facts, tuple(d["culprits"]), waits)


def of_traces(traces: Sequence[Trace], protocol: Protocol | None) -> tuple[list[Moment], list[Link]]:
    """Return the events of Genlock's own traces in logical order, and the collectives that link them."""
    ordered = columns({t.rank: [_end_of(t, line) for line in t.lines] for t in traces})
    links: dict[Op, int] = {}
    found: list[Link] = []
    drafts: list[tuple[int, int, Moment, object]] = []
    for trace in traces:
        for line, number, column in zip(trace.lines, trace.numbers, ordered[trace.rank], strict=True):
            if isinstance(line, Event):
                op = operation(trace, line)
                if op is not None and op not in links:
                    links[op] = len(found)
                    found.append(_link(trace, line, protocol))
                moment = _moment(trace, line, protocol)._replace(link=links.get(op) if op else None)
                if drafts and drafts[-1][1] == trace.rank and not drafts[-1][2].state:  # it made a move of its own
                    drafts[-1] = (*drafts[-1][:2], drafts[-1][2]._replace(state=line.state), drafts[-1][3])
                pair = (trace.rank, op, line.transition) if op else None
            else:
                moment, pair = _ending(trace, line, drafts[-1][2] if drafts else None), None
            drafts.append((column, trace.rank, moment._replace(column=column, place=number), pair))
    return _paired(drafts), found


def operation(trace: Trace, event: Event) -> Op | None:
    """Return the operation that `event` is an end of; None for a step."""
    if event.edge == "step" or event.sequence is None:
        return None
    if event.peer is not None and event.op in P2P:
        ends = (trace.rank, event.peer) if event.op == "send" else (event.peer, trace.rank)
        return (event.group, event.sequence, *ends, event.tag)
    return (event.group, event.sequence, event.op if event.op in P2P else "")


def _end_of(
    trace: Trace, line: Event | Dropped | End
) -> tuple[Op | None, str, str | None, int | None, tuple[int, ...]]:
    """Return what the order of columns depends on: operation, edge, kind, root and members."""
    if not isinstance(line, Event):
        return (None, "step", None, None, ())
    members = trace.groups.get(line.group or "", ())
    return (operation(trace, line), line.edge, line.op, line.root, members)


def _link(trace: Trace, event: Event, protocol: Protocol | None) -> Link:
    row = _row(trace, event, protocol)
    name = row.op.name if row and row.op else event.op or event.transition
    if event.peer is not None and event.op in P2P:
        return Link(f"{name} #{event.sequence}", (trace.rank, event.peer), None)
    return Link(f"{name} #{event.sequence}", trace.groups.get(event.group or "", ()), event.root)


def _row(trace: Trace, event: Event, protocol: Protocol | None) -> Any:
    return protocol.role(trace.rank).rows_by_key.get((event.state, event.transition)) if protocol else None


def _moment(trace: Trace, event: Event, protocol: Protocol | None) -> Moment:
    row = _row(trace, event, protocol)
    known = protocol is not None and bool(event.transition)
    words = [f"{event.op} of {event.numel} {event.dtype}" if event.op else "", event.outcome or "", event.site or ""]
    return Moment(
        trace.rank,
        0,
        event.transition or event.op or "",
        event.edge,
        event.state,
        event.state if event.edge == "enter" or not known else row.target if row else "",
        event.phase or event.group or "",
        event.call_id if known else None,
        event.chunk if known else None,
        event.call,
        commits=row is not None and row.commits and event.edge != "exit",
        detail="; ".join(filter(None, words)),
    )


def _ending(trace: Trace, line: Dropped | End, last: Moment | None) -> Moment:
    state, phase = (last.state or last.before, last.phase) if last and last.rank == trace.rank else ("", "")
    if isinstance(line, Dropped):
        return Moment(trace.rank, 0, f"{line.count} events dropped", "fault", state, state, phase)
    edge: Any = "step" if line.cause == "stopped" else "fault"
    call_id, chunk = (last.call_id, last.chunk) if last and last.rank == trace.rank else (None, None)
    return Moment(trace.rank, 0, f"ends: {line.cause}", edge, state, state, phase, call_id, chunk, detail=line.message)


def of_recording(recording: Recording, lanes: Sequence[int]) -> tuple[list[Moment], list[Link]]:
    """Return the operations of a recording, and the collectives that link them; a finished one is one moment."""
    ops = [
        (int(op["time"]), at, rank, op)
        for rank in lanes
        if rank in recording.ranks
        for at, op in enumerate(recording.ranks[rank].ops)
    ]
    links: dict[Op, int] = {}
    found: list[Link] = []
    reached: dict[Op, int] = {}
    last = dict.fromkeys(lanes, -1)
    drafts: list[tuple[int, int, Moment, object]] = []
    for _, at, rank, op in sorted(ops, key=lambda o: o[:3]):
        group, signature = recording.groups[op["group"]], recording.signatures[op["signature"]]
        peer, sequence = int(op["peer"]), int(op["sequence"])
        ends = () if peer < 0 else (rank, peer) if signature.kind == "send" else (peer, rank)
        key = (int(op["group"]), sequence, *ends)
        if key not in links:
            links[key] = len(found)
            found.append(Link(f"{signature.kind} #{sequence}", ends or group.members, None))
        column = reached[key] = max(last[rank] + 1, reached.get(key, 0))
        last[rank] = column
        edge: Any = "step" if op["status"] in (Status.COMPLETED, Status.UNSAID) else "enter"
        detail = "; ".join(filter(None, (str(signature), recording.sites[op["site"]])))
        phase = group.description or group.name
        moment = Moment(rank, column, signature.kind, edge, "", "", phase, link=links[key], place=at + 1, detail=detail)
        drafts.append((column, rank, moment, None))
    return _paired(drafts), found


def _paired(drafts: list[tuple[int, int, Moment, object]]) -> list[Moment]:
    """Order the moments as they are stepped through, and link the two ends of each operation."""
    drafts.sort(key=lambda d: d[:2])
    moments = [moment for _, _, moment, _ in drafts]
    opened: dict[object, int] = {}
    for at, (_, _, moment, pair) in enumerate(drafts):
        if pair is None:
            continue
        if moment.edge == "enter":
            opened[pair] = at
        elif pair in opened:
            other = opened.pop(pair)
            moments[other] = moments[other]._replace(mate=at)
            moments[at] = moment._replace(mate=other)
    return moments


def _focus(moments: Sequence[Moment], report: Mapping[str, Any]) -> int | None:
    """Return where the rank diverged; if it left no event, where the first that waits for it stands."""
    d = report["divergence"]
    if d is None or not moments:
        return None
    own = [at for at, moment in enumerate(moments) if moment.rank == d["rank"]]
    if own:
        return min(own, key=lambda at: abs((moments[at].place or 0) - d["line"]))
    waiting = {wait["rank"] for wait in d["waiting"]}
    opened = (at for at, m in enumerate(moments) if m.rank in waiting and m.edge == "enter" and m.mate is None)
    return next(opened, len(moments) - 1)


def window(moments: list[Moment], focus: int | None) -> tuple[list[Moment], int | None]:
    """Keep at most `MAX_MOMENTS` of the moments, around the focus."""
    low = max(0, min((focus or 0) - MAX_MOMENTS // 2, len(moments) - MAX_MOMENTS))
    if len(moments) <= MAX_MOMENTS:
        return moments, focus
    kept = [
        m._replace(mate=m.mate - low if m.mate is not None and 0 <= m.mate - low < MAX_MOMENTS else None)
        for m in moments[low : low + MAX_MOMENTS]
    ]
    return kept, None if focus is None else focus - low


def _left_out(ranks: int, moments: int) -> list[str]:
    notes = [f"{ranks} ranks that the verdict does not name are not shown"] if ranks else []
    return [*notes, f"{moments:,} events far from the divergence are not shown"] if moments else notes
