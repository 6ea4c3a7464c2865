"""Turns a violated property into numbered steps: who is stuck, in what, waiting for which ranks, and since when.

Left out: drawing (`diagrams.sequence_chart`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from enum import Enum

from ..protocols.tp_values import Cyclic
from ..semantics.network import Move, Network, NetworkState
from ..semantics.properties import CRASH_OVER_HANG, NO_LIVELOCK, NO_STRANDING
from ..semantics.run import Counterexample, Stuck, TraceStep
from .reference import Result, StateGraph, Verdict, path_to, replay


def counterexample(result: Result, verdict: Verdict) -> Counterexample | None:
    """Return the counterexample to `verdict`, or None where there is no path to show (a `sometimes` never seen)."""
    if verdict.holds or verdict.state is None:
        return None
    network = result.network
    path = path_to(network, result.graph, verdict)
    about_waiting = verdict.property in (NO_STRANDING, CRASH_OVER_HANG)
    final = path[-1][1] if path else network.initial()
    if about_waiting:
        path += settle(network, result.graph, verdict.state, final)
        final = path[-1][1] if path else final
    steps = numbered(network, path)
    if verdict.property is NO_LIVELOCK and verdict.rank is not None:
        here = network.state_name(final, verdict.rank)
        round_ = (Stuck(verdict.rank, here, "", (), None, goes_round=True),)
        return Counterexample(
            verdict.property.name, verdict.property.text, network.ranks, round_, steps, shortest=not result.reduced
        )
    stuck = _stuck(network, final, steps, verdict.rank) if about_waiting or verdict.then else ()
    return Counterexample(
        verdict.property.name,
        verdict.property.text,
        network.ranks,
        stuck,
        steps,
        shortest=not result.reduced,
        then=verdict.then,
    )


def settle(network: Network, graph: StateGraph, state: int, final: NetworkState) -> list[tuple[Move, NetworkState]]:
    """Return the shortest ordinary way from a doomed state (`final`) to one in which nobody moves any more.

    A rank is doomed as soon as no continuation helps it; the reader wants to see everybody where they end
    up. Empty where others go on for ever.
    """
    came: dict[int, int] = {state: -1}
    queue = deque([state])
    while queue:
        here = queue.popleft()
        ordinary = [e.target for e in graph.edges[here] if e.ordinary and e.target != here]
        if not ordinary:
            numbers = [here]
            while came[numbers[-1]] >= 0:
                numbers.append(came[numbers[-1]])
            return replay(network, graph, numbers[-2::-1], final)
        for target in ordinary:
            if target not in came:
                came[target] = here
                queue.append(target)
    return []


def numbered(network: Network, path: list[tuple[Move, NetworkState]]) -> tuple[TraceStep, ...]:
    """Return the moves of a path as steps, numbered from 1."""
    counts: dict[tuple[int, str, bool], int] = {}
    steps = []
    for number, (move, state) in enumerate(path, 1):
        sequence, members = None, tuple[int, ...]()
        if move.edge in ("issue", "complete", "device"):
            members = network.groups.members_of(move.rank, move.op)
            of_this = (move.rank, move.op, move.edge == "issue")
            sequence = counts[of_this] = counts.get(of_this, 0) + 1
        states = tuple(network.state_name(state, r) for r in range(network.ranks))
        shown = move.edge == "complete" or (move.edge == "step" and is_dataclass(move.data))
        data = "" if not shown or move.data is None or isinstance(move.data, frozenset) else _show(move.data)
        steps.append(
            TraceStep(number, move.rank, move.event, move.edge, move.op, sequence, move.commits, states, data, members)
        )
    return tuple(steps)


def _show(data: object) -> str:
    """Return a value as text: a dataclass as `steps=2 recompute=False …` rather than as a constructor call."""
    if not is_dataclass(data):
        return str(data)
    parts = []
    for field in fields(data):
        value = getattr(data, field.name)
        if value is not None and not is_dataclass(value) and not isinstance(value, Cyclic):
            parts.append(f"{field.name}={value.name if isinstance(value, Enum) else value}")
    return " ".join(parts)


def _stuck(
    network: Network, state: NetworkState, steps: tuple[TraceStep, ...], judged: int | None
) -> tuple[Stuck, ...]:
    """Return every rank that waits for somebody who is not coming, with the commitment that made it wait.

    The rank that was judged to be stuck is among them, even where nobody could help it.
    """
    found = []
    for rank in range(network.ranks):
        waiting = network.waiting(state, rank)
        if waiting is not None and (waiting.waiting_for or rank == judged):
            since = _commitment(steps, rank, waiting.waiting_for)
            found.append(Stuck(rank, waiting.state, waiting.operation, waiting.waiting_for, since))
    return tuple(found)


def _commitment(steps: tuple[TraceStep, ...], rank: int, peers: tuple[int, ...]) -> int | None:
    """Return the commitment point behind a wait: the send that the stuck rank last took from one of `peers`.

    Where it took none, its own last commitment.
    """
    taken = [s for s in steps if s.rank == rank and s.edge == "complete"]
    for mine in reversed(taken):
        for theirs in steps:
            same = (theirs.operation, theirs.sequence, theirs.edge) == (mine.operation, mine.sequence, "issue")
            if same and theirs.rank in peers and theirs.commits:
                return theirs.number
    own = [s.number for s in steps if s.rank == rank and s.commits]
    return own[-1] if own else None
