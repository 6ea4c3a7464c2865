"""Judges a run that follows a protocol: which divergence came first, which failure mode it is, and whose fault.

Left out: printing (`report`), and the names of failure modes (`failure_modes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import UnreadableInput
from ...model.protocols.load import PROTOCOLS
from ...model.tables import By, Protocol
from ...traces.format import Trace
from ...traces.load import run_of
from ...traces.outcome import Difference
from .. import diagnosis
from ..diagnosis import Divergence, Observation, Seen, Standing, Verdict
from .failure_modes import ACKS, accused_by_check, changed_weights, failure_mode, text_alone
from .match_ranks import Matched, Odd, Wait, blamed, clock_of, match
from .rank_classes import Crew
from .replay_rank import NOTHING, RankReplay, replay_rank

LOST = "peer_lost"
COMPARED = ("parity_differs", "acks_differ")
UNTYPED = "format 1 holds what this rank found as text only, which decides nothing: record the run anew"


@dataclass(frozen=True, repr=False)
class Diagnosis(diagnosis.Diagnosis):
    """The verdict on a run that followed a protocol."""

    waits: tuple[Wait, ...]


@dataclass(frozen=True)
class _Found:
    """What came first, and who is to blame for it."""

    divergence: Divergence
    culprits: tuple[int, ...]
    stalls: bool = False
    """Its host did not come to what others waited for; it was not seen to die."""


def diagnose(traces: Sequence[Trace]) -> Diagnosis:
    """Replay every rank, match them, and say what came first. Raises UnreadableInput for files that do not mix."""
    protocol = protocol_of(traces)
    crew = Crew(traces)
    ranks = {t.rank: replay_rank(t, protocol) for t in sorted(crew.few, key=lambda t: t.rank)}
    matched = match(ranks)
    found = _first(ranks, matched)
    reasons = _reasons(ranks, crew, traces[0].header.world, protocol, matched)
    if matched.incomplete and not found and not reasons:
        group, sequence = matched.incomplete
        reasons.append(f"not every member is known to have completed number {sequence} of group {group}")
    verdict: Verdict = "divergent" if found else ("unknown" if reasons else "conforming")
    divergence, told, text = found.divergence if found else None, _told(ranks), _told_text(ranks)
    if divergence is not None and text and divergence.facts.transition == "send_ack":
        divergence = replace(divergence, why=f"{divergence.why}; rank0 found: {text}")
    if divergence is not None and text_alone(divergence):
        reasons.append(f"rank{divergence.rank}: {UNTYPED}")
    return Diagnosis(
        verdict,
        len(traces),
        sum(r.events * crew.weight(rank) for rank, r in ranks.items()),
        matched.collectives,
        divergence,
        failure_mode(divergence, told) if divergence else None,
        crew.ranks(found.culprits) if found else (),
        tuple(reasons),
        crew.waits(matched.waits),
        "host" if found and found.stalls else None,
        _witnessed(ranks),
        standing=crew.standings(_standing(r) for r in ranks.values()) if found else (),
    )


def protocol_of(traces: Sequence[Trace]) -> Protocol:
    """The protocol of a run. Raises UnreadableInput where the traces are of several runs, or it is unknown."""
    first = traces[0]
    seen: dict[int, Trace] = {}
    for trace in traces:
        if _job(trace) != _job(first):
            what = f"this trace is of {run_of(trace.header)}, {first.path} is of {run_of(first.header)}"
            raise UnreadableInput(what, where=str(trace.path), do="replay one run at a time")
        if trace.rank in seen:
            what = f"a second trace of rank {trace.rank}, beside {seen[trace.rank].path}"
            raise UnreadableInput(what, where=str(trace.path), do="name each rank's trace once")
        seen[trace.rank] = trace
        if trace.header.groups != first.header.groups:
            what = f"this trace has other members in its groups than {first.path}"
            raise UnreadableInput(what, where=str(trace.path), do="replay one run at a time")
        if trace.header.protocol not in PROTOCOLS:
            what = f"protocol `{trace.header.protocol}` is unknown here"
            raise UnreadableInput(what, where=str(trace.path), do=f"known are {', '.join(PROTOCOLS)}")
        if trace.header.protocol != first.header.protocol:
            what = f"protocol `{trace.header.protocol}`, but {first.path} has `{first.header.protocol}`"
            raise UnreadableInput(what, where=str(trace.path), do="replay one run at a time")
    return PROTOCOLS[first.header.protocol]


def _job(trace: Trace) -> tuple[str, int, int]:
    return (trace.header.run, trace.header.attempt, trace.header.world)


# ── what came first, and whose fault it is ──────────────────────────────────────────────────────────────


def _first(ranks: Mapping[int, RankReplay], matched: Matched) -> _Found | None:
    """The first divergence in logical time; a rank's own failure counts as one, and what others noticed comes last."""
    broken: list[Divergence] = [*matched.odd]
    noticed: list[Divergence] = []
    for r in ranks.values():
        if r.divergence is not None:
            broken.append(_stamp(r.divergence, r, matched))
        if r.failure is not None:
            (noticed if _is_detection(r) else broken).append(_stamp(r.failure, r, matched))
    if broken:
        accused = {id(d): _accused(d, ranks) for d in broken}
        # a tie that something else has settled is told of the rank that is to blame
        told = [d for d in broken if not (isinstance(d, Odd) and d.rank not in accused[id(d)])]
        first = min(told or broken, key=lambda d: (d.clock, d.rank not in accused[id(d)], d.rank))
        return _Found(first, accused[id(first)])
    noticed = noticed or list(_stranded(ranks, matched))
    return _missed(noticed, ranks, matched) if noticed else None


def _missed(noticed: Sequence[Divergence], ranks: Mapping[int, RankReplay], matched: Matched) -> _Found:
    """Who is to blame where ranks were left waiting or lost a peer, and where that one stands."""
    first = min(noticed, key=lambda d: (d.clock, d.rank))
    silent = {r for r in ranks if ranks[r].trace.end is None}
    roots = set(blamed(matched.waits))
    if not roots <= ranks.keys():  # of whom there is no trace may have waited, too: for one that fell silent
        roots |= silent
    left = {d.rank for d in noticed if d.facts.transition == LOST}
    if silent and roots & left:  # who says that it lost a peer was left itself, though all it waited for came later
        roots = (roots - left) | silent
    told = {end.culprit for r in ranks.values() if (end := r.trace.end) and end.culprit is not None}
    # who stood still by itself; of ranks that lost each other, or wait in what all have entered, none is known to
    alone = {d.rank for d in noticed} - left - {w.rank for w in matched.waits}
    culprits = tuple(sorted(told or roots or silent or alone))
    own = next((ranks[r] for r in culprits if r in ranks), None)
    if own is not None and first.rank != own.trace.rank:
        first = _stamp(_stood(own, culprits, matched), own, matched)
    at_its_deadline = first.facts.seen is Seen.END and first.facts.transition == "deadline"
    died = any(d.facts.transition == LOST for d in noticed) and not at_its_deadline
    return _Found(first, culprits, not died and any(w.missing for w in matched.waits))


def _stamp(divergence: Divergence, replayed: RankReplay, matched: Matched) -> Divergence:
    return replace(divergence, clock=clock_of(matched.clocks, replayed, divergence))


def _is_detection(replayed: RankReplay) -> bool:
    """Return True where it noticed a peer's end, or that time had passed, or was ended where it stood."""
    failure = replayed.failure
    row = replayed.role.rows_by_key.get((failure.state, failure.facts.transition)) if failure else None
    ended = failure is not None and failure.facts.seen is Seen.NOTHING
    return ended or (row is not None and row.by is By.DETECTION)


def _accused(found: Divergence, ranks: Mapping[int, RankReplay]) -> tuple[int, ...]:
    """The rank that left the model, unless the others show, or it says itself, that it is another's fault."""
    if isinstance(found, Odd):
        # where two disagree, one may yet have left what it was itself
        own = changed_weights(_told(ranks)) if len(found.accused) > 1 and found.facts.transition in ACKS else ()
        return own if own and set(own) < set(found.accused) else found.accused
    replayed = ranks[found.rank]
    named = accused_by_check(found, replayed.trace.header.world)
    if not named and found.facts.transition in ("reject_header", "reject_envelope"):
        return _sender(replayed, found.state, ranks)
    # a comparison that names nobody, as text alone does not, says nothing of the rank that made it
    return named or (() if found.facts.transition in COMPARED and text_alone(found) else (found.rank,))


def _sender(replayed: RankReplay, state: str, ranks: Mapping[int, RankReplay]) -> tuple[int, ...]:
    """Who sent what a rank rejects in this state.

    Where it is not recorded what was sent, it may have got lost here, unless another rank was given the same.
    """
    rank = replayed.trace.rank
    root = next((row.op.root or 0 for row in replayed.role.rows if row.target == state and row.op), 0)
    taken = replayed.meetings[-1] if replayed.meetings and not replayed.gap else None
    if taken is None:
        return tuple(sorted({root, rank}))
    given = {
        r: m.exited.data
        for r, other in ranks.items()
        for m in other.meetings
        if m.exited and (m.group, m.sequence) == (taken.group, taken.sequence)
    }
    alike = any(r not in (root, rank) and rank in given and data == given[rank] for r, data in given.items())
    return (root,) if root in given or alike else tuple(sorted({root, rank}))


def _stood(culprit: RankReplay, culprits: Sequence[int], matched: Matched) -> Divergence:
    """Where a rank stands that others waited for, or missed."""
    stop = culprit.stop
    waiting = [w for w in matched.waits if set(w.missing) & set(culprits)]
    who = " and ".join(f"rank{w.rank} in {w.operation}" for w in waiting[:4])
    more = f" and {len(waiting) - 4} more ranks" if len(waiting) > 4 else ""
    last = f"it says `{stop.observed}`: {stop.why}"
    if stop.facts.seen is Seen.NOTHING:
        last = "its trace ends here" if culprit.trace.end is None else stop.why
    return replace(stop, why=f"{last}; left waiting: {who}{more}" if waiting else f"{last}; its peers missed it")


def _stranded(ranks: Mapping[int, RankReplay], matched: Matched) -> Iterator[Divergence]:
    """Ranks that wait for a rank whose trace is whole without it."""
    for wait in matched.waits:
        replayed = ranks[wait.rank]
        end = replayed.trace.end
        if end is None and not any(m in ranks and ranks[m].unknown is None for m in wait.missing):
            continue
        event = wait.meeting.entered
        peers = " and ".join(f"rank{m}" for m in wait.missing) or "nobody who is missing"
        divergence = Divergence(
            wait.rank,
            replayed.trace.numbers[wait.meeting.entered_at],
            event.index,
            event.chunk,
            event.phase,
            event.call,
            event.call_id,
            event.state,
            f"{end.cause if end else NOTHING} in {event.transition}",
            (f"{event.transition} (exit)",),
            f"it waits in {event.transition} for {peers}",
            facts=Observation(Seen.END, end.cause) if end else Observation(Seen.NOTHING),
        )
        yield _stamp(divergence, replayed, matched)


# ── what else there is to say ───────────────────────────────────────────────────────────────────────────


def _differing(ranks: Mapping[int, RankReplay]) -> Iterator[Divergence]:
    """Yield what rank0 found wrong with the acks."""
    failures = (r.failure for r in ranks.values() if r.failure is not None)
    return (failure for failure in failures if failure.facts.transition == "acks_differ")


def _told(ranks: Mapping[int, RankReplay]) -> tuple[Difference, ...]:
    outcomes = (failure.facts.outcome for failure in _differing(ranks))
    return tuple(d for outcome in outcomes if outcome for d in outcome.differences)


def _told_text(ranks: Mapping[int, RankReplay]) -> str:
    return "; ".join(failure.why for failure in _differing(ranks))


def _standing(replayed: RankReplay) -> Standing:
    d = replayed.stop
    return Standing(d.rank, d.line, d.event, d.chunk, d.phase, d.state, d.observed, d.expected, d.why)


def _reasons(
    ranks: Mapping[int, RankReplay], crew: Crew, world: int, protocol: Protocol, matched: Matched
) -> list[str]:
    given = crew.given()
    reasons = [f"rank{r}: there is no trace" for r in range(world) if r not in given]
    for rank, replayed in crew.each(ranks):
        if replayed.trace.header.tables not in protocol.digests:
            reasons.append(f"rank{rank}: recorded under other tables ({replayed.trace.header.tables})")
        if replayed.unknown:
            half = ", in half a line" if replayed.trace.cut else ""
            reasons.append(f"rank{rank}: {replayed.unknown}{half}")
    if matched.cyclic:
        reasons.append("happens-before has a cycle: are these files of one run?")
    return reasons


def _witnessed(ranks: Mapping[int, RankReplay]) -> dict[str, frozenset[tuple[str, str]]]:
    found: dict[str, frozenset[tuple[str, str]]] = {}
    for replayed in ranks.values():
        name = replayed.role.name
        found[name] = found.get(name, frozenset()) | replayed.witnessed
    return found
