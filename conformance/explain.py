"""From what was found to a verdict: which divergence came first, which failure mode it is, and whose fault.

Left out: printing (`report`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import UnreadableInput
from ..model.load import PROTOCOLS
from ..model.tables import By, Protocol
from ..traces.format import Trace
from . import verdict
from .match import Matched, Wait, blamed, clock_of, match
from .replay import RankReplay, replay_rank
from .verdict import Divergence, Verdict


@dataclass(frozen=True)
class Diagnosis(verdict.Diagnosis):
    """The verdict on a run that followed a protocol."""

    waits: tuple[Wait, ...]


@dataclass(frozen=True, slots=True)
class _Sign:
    """A failure mode, and how a divergence of it looks."""

    mode: str
    fits: Callable[[Divergence], bool]


SENT_EARLY = ("commit", "send_header")
COUNTING = ("generate", "leave_phase_b", "miscount", "enter_phase_b")

STALLED = ("deadline", "nothing")
WAITING = (*STALLED, "peer_lost")

SIGNS = (
    _Sign("FM-04", lambda d: d.phase == "preflight" and d.observed.startswith(SENT_EARLY)),
    _Sign("FM-01", lambda d: d.phase == "startup" and d.observed.startswith("parity")),
    _Sign("FM-02", lambda d: d.phase == "generate" and d.observed.startswith(COUNTING)),
    _Sign("FM-10", lambda d: d.observed.startswith(("reject_header", "receive_header"))),
    _Sign("FM-05", lambda d: d.observed.startswith(("reject_envelope", "receive_payload"))),
    _Sign("FM-04", lambda d: d.observed.startswith("exception") and d.phase in ("header", "payload")),
    _Sign("FM-18", lambda d: d.observed.startswith(WAITING)),
)
"""Read from the top; the first that fits names the failure mode. A missing line has none."""


def diagnose(traces: Sequence[Trace]) -> Diagnosis:
    """Replay every rank, match them, and say what came first. Raises UnreadableInput for files that do not mix."""
    protocol = _one_run(traces)
    ranks = {t.rank: replay_rank(t, protocol) for t in sorted(traces, key=lambda t: t.rank)}
    matched = match(ranks)
    found = _first(ranks, matched)
    reasons = _reasons(ranks, traces[0].header.world, protocol, matched)
    verdict: Verdict = "divergent" if found else ("unknown" if reasons else "conforming")
    culprits = _culprits(found, ranks, matched) if found else ()
    return Diagnosis(
        verdict,
        len(ranks),
        sum(r.events for r in ranks.values()),
        matched.collectives,
        found,
        _mode(found) if found else None,
        culprits,
        tuple(reasons),
        matched.waits,
        "host" if found and found.observed.startswith(STALLED) and any(w.missing for w in matched.waits) else None,
        _witnessed(ranks),
    )


def _one_run(traces: Sequence[Trace]) -> Protocol:
    first = traces[0]
    seen: dict[int, Trace] = {}
    for trace in traces:
        if (trace.header.run, trace.header.world) != (first.header.run, first.header.world):
            what = f"this trace is of run {trace.header.run}, {first.path} is of run {first.header.run}"
            raise UnreadableInput(what, where=str(trace.path), do="replay one run at a time")
        if trace.rank in seen:
            what = f"a second trace of rank {trace.rank}, beside {seen[trace.rank].path}"
            raise UnreadableInput(what, where=str(trace.path), do="name each rank's trace once")
        seen[trace.rank] = trace
        if trace.header.protocol not in PROTOCOLS:
            what = f"protocol `{trace.header.protocol}` is unknown here"
            raise UnreadableInput(what, where=str(trace.path), do=f"known are {', '.join(PROTOCOLS)}")
        if trace.header.protocol != first.header.protocol:
            what = f"protocol `{trace.header.protocol}`, but {first.path} has `{first.header.protocol}`"
            raise UnreadableInput(what, where=str(trace.path), do="replay one run at a time")
    return PROTOCOLS[first.header.protocol]


def _first(ranks: Mapping[int, RankReplay], matched: Matched) -> Divergence | None:
    """The first divergence in logical time; a rank's own failure counts where nobody left the model."""
    broken = [*matched.divergences, *(_stamp(r.divergence, r, matched) for r in ranks.values() if r.divergence)]
    own: list[Divergence] = []
    detected: list[Divergence] = []
    for r in ranks.values():
        if r.failure is not None:
            row = r.role.rows_by_key.get((r.failure.state, r.failure.observed.split(" ")[0]))
            by_detection = row is not None and row.by is By.DETECTION
            (detected if by_detection else own).append(_stamp(r.failure, r, matched))
    for candidates in (broken + own, detected, _stranded(ranks, matched)):
        if candidates:
            return min(candidates, key=lambda d: (d.clock, d.rank))
    return None


def _stamp(divergence: Divergence, replayed: RankReplay, matched: Matched) -> Divergence:
    return replace(divergence, clock=clock_of(matched.clocks, replayed, divergence))


def _stranded(ranks: Mapping[int, RankReplay], matched: Matched) -> list[Divergence]:
    """Ranks that say that they were left waiting, or that wait for a rank whose trace is complete without it."""
    found = []
    for wait in matched.waits:
        rank = wait.meeting.rank
        end = ranks[rank].trace.end
        gone = [m for m in wait.missing if m in ranks and ranks[m].unknown is None]
        if end is None and not gone:
            continue
        event, replayed = wait.meeting.entered, ranks[rank]
        line = replayed.trace.numbers[wait.meeting.entered_at]
        peers = " and ".join(f"rank{m}" for m in wait.missing) or "nobody who is missing"
        why = f"it waits in {event.transition} for {peers}"
        seen = f"{end.cause if end else 'nothing'} in {event.transition}"
        at = (event.index, event.chunk, event.phase, event.call, event.call_id, event.state)
        divergence = Divergence(rank, line, *at, seen, (f"{event.transition} (exit)",), why)
        found.append(_stamp(divergence, replayed, matched))
    return found


def _culprits(found: Divergence, ranks: Mapping[int, RankReplay], matched: Matched) -> tuple[int, ...]:
    """Whose fault: the rank that left the model; for a rank left waiting, the root of the wait-for graph."""
    if not found.observed.startswith(WAITING):
        return (found.rank,)
    return blamed(matched.waits) or tuple(r for r in ranks if ranks[r].trace.end is None) or (found.rank,)


def _mode(found: Divergence) -> str | None:
    if found.why.startswith("event ") and found.why.endswith("is missing"):
        return None
    return next((sign.mode for sign in SIGNS if sign.fits(found)), None)


def _reasons(ranks: Mapping[int, RankReplay], world: int, protocol: Protocol, matched: Matched) -> list[str]:
    reasons = [f"rank{r}: there is no trace" for r in range(world) if r not in ranks]
    for rank, replayed in ranks.items():
        if replayed.trace.header.tables != protocol.digest:
            reasons.append(f"rank{rank}: recorded under other tables ({replayed.trace.header.tables})")
        if replayed.trace.cut:
            reasons.append(f"rank{rank}: the last line is half a line")
        elif replayed.unknown:
            reasons.append(f"rank{rank}: {replayed.unknown}")
    if matched.cyclic:
        reasons.append("happens-before has a cycle: are these files of one run?")
    return reasons


def _witnessed(ranks: Mapping[int, RankReplay]) -> dict[str, frozenset[tuple[str, str]]]:
    found: dict[str, frozenset[tuple[str, str]]] = {}
    for replayed in ranks.values():
        name = replayed.role.name
        found[name] = found.get(name, frozenset()) | replayed.witnessed
    return found
