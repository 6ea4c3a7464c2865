"""Makes a sequence chart of a run, up to where it diverged: a lane a rank, in logical time, like a counterexample.

Left out: drawing (`model.chart`), and everything after the divergence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from ...errors import UsageError
from ...model.semantics.run import Counterexample, Stuck, TraceStep
from ...model.semantics.transport import depends_on
from ...traces.format import Event, Trace
from ..diagnosis import Diagnosis, Divergence, WaitingRank
from .diagnose import protocol_of
from .match_ranks import match
from .replay_rank import RankReplay, replay_rank

AROUND = 24
"""So many events are drawn, the divergent one among them."""


def chart(traces: Sequence[Trace], found: Diagnosis, around: int = AROUND) -> Counterexample:
    """Return the last events before the divergence, and it, as a counterexample's steps; without one, the last of all.

    Of a rank that others wait for, the chart goes on until they wait. Raises UsageError for more ranks than lanes.
    """
    divergence, world = found.divergence, traces[0].header.world
    if world > MAX_LANES:
        raise UsageError(f"{world} ranks", where=_folder(traces), do=f"a chart has {MAX_LANES} lanes at most")
    protocol = protocol_of(traces)
    ranks = {t.rank: replay_rank(t, protocol) for t in traces}
    waits = [w for w in found.waits if w.missing] if found.failure_mode == LEFT_WAITING else []
    states = {rank: protocol.role(rank).initial for rank in range(world)}
    shown: list[TraceStep] = []
    for event, replayed in _ordered(ranks, match(ranks).clocks, divergence, waits):
        shown.append(_step(len(shown) + 1, event, replayed, states))
    stuck = tuple(Stuck(w.rank, w.state, w.operation, w.missing, None) for w in waits)
    claim = "conformance" if divergence else ""
    return Counterexample(claim, _text(found)[:MAX_TEXT], world, stuck, tuple(shown[-around:]))


MAX_TEXT = 160
MAX_LANES = 16
LEFT_WAITING = "FM-18"


def _folder(traces: Sequence[Trace]) -> str:
    return str(traces[0].path.parent)


def _text(found: Diagnosis) -> str:
    divergence = found.divergence
    if divergence is None:
        return f"{found.verdict}: the last of {found.events} events"
    mode = f"{found.failure_mode}: " if found.failure_mode else ""
    place = f"rank{divergence.rank}, chunk {divergence.chunk}, {divergence.state}"
    return f"{mode}{place}: {divergence.observed}; {divergence.why}"


def _ordered(
    ranks: Mapping[int, RankReplay],
    clocks: Mapping[int, Sequence[int]],
    divergence: Divergence | None,
    waits: Sequence[WaitingRank],
) -> Iterator[tuple[Event, RankReplay]]:
    """Yield all that happened up to the divergence, or until all who wait for it do; of equal times, it comes last."""
    issued = {w.rank: ranks[w.rank].trace.numbers.index(w.line) for w in waits if w.rank in ranks}
    ends = _ends(ranks, divergence) if divergence else {}
    found = []
    for rank, replayed in ranks.items():
        last = divergence is not None and rank == divergence.rank
        for at, event in enumerate(replayed.trace.lines[: ends.get(rank)]):
            time = clocks[rank][at]
            about = divergence is None or at <= issued.get(rank, -1) or time <= divergence.clock
            if isinstance(event, Event) and about:
                found.append((time, last, rank, at, event))
    yield from ((event, ranks[rank]) for _, _, rank, _, event in sorted(found, key=lambda f: f[:4]))


def _ends(ranks: Mapping[int, RankReplay], divergence: Divergence) -> dict[int, int]:
    """Return how many lines of a rank can have come before the divergence.

    The times do not tell: what the diverging rank issued later, no table followed. So no other rank is past a
    collective that needed that.
    """
    own = ranks[divergence.rank].trace
    ends = {divergence.rank: bisect_right(own.numbers, divergence.line)}
    later = {(e.group, e.sequence) for e in own.lines[ends[own.rank] :] if isinstance(e, Event) and e.edge == "enter"}
    for rank, replayed in ranks.items():
        for part in replayed.meetings:
            op = part.row.op
            needed = op is not None and own.rank in depends_on(op, rank, own.header.world)
            if rank != own.rank and needed and (part.group, part.sequence) in later:
                ends[rank] = min(ends.get(rank, len(replayed.trace.lines)), part.entered_at + 1)
    return ends


def _step(number: int, event: Event, replayed: RankReplay, states: dict[int, str]) -> TraceStep:
    rank = replayed.trace.rank
    row = replayed.role.rows_by_key.get((event.state, event.transition))
    if event.edge != "enter" and row is not None:
        states[rank] = row.target
    edge = {"enter": "issue", "exit": "complete"}.get(event.edge, "step")
    operation = row.op.name if row and row.op else event.op or ""
    commits = row is not None and row.commits
    name = event.transition or f"{event.op} ({event.outcome.text or event.outcome.code if event.outcome else ''})"
    return TraceStep(number, rank, name, edge, operation, event.sequence, commits, tuple(states.values()))
