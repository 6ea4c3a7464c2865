"""Judges a run that follows a protocol: which divergence came first, which failure mode it is, and whose fault.

Left out: the cases of blame (`blame`), the names of failure modes (`failure_modes`), and printing (`report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import UnreadableInput
from ...model.protocols.load import PROTOCOLS
from ...model.tables import By, Protocol
from ...traces.format import Trace
from ...traces.load import run_of
from ..diagnosis import (
    Accusation,
    Diagnosis,
    Divergence,
    MissingEvidence,
    Observation,
    Seen,
    Standing,
    Strength,
    Verdict,
    WaitingRank,
    Wanted,
)
from .blame import LOST, MISSED, WHOSE, Broken, Missed, differing_acks, told_of_acks
from .failure_modes import failure_mode, text_alone
from .match_ranks import Matched, Unfinished, UnlikePart, clock_of, match
from .rank_classes import RankClasses
from .replay_rank import NOTHING, RankReplay, replay_rank

UNTYPED = "format 1 holds what this rank found as text only, which decides nothing: record the run anew"


@dataclass(frozen=True)
class _First:
    """Holds the divergence that came first, and the ranks that it is laid to."""

    divergence: Divergence
    accused: tuple[Accusation, ...]
    stalls: bool = False
    """Its host did not come to what others waited for; it was not seen to die."""


def diagnose(traces: Sequence[Trace]) -> Diagnosis:
    """Replay every rank, match them, and say what came first. Raises UnreadableInput for files that do not mix."""
    protocol = protocol_of(traces)
    classes = RankClasses(traces)
    ranks = {t.rank: replay_rank(t, protocol) for t in sorted(classes.few, key=lambda t: t.rank)}
    matched = match(ranks)
    first = _first(ranks, matched)
    world = traces[0].header.world
    reasons = _reasons(ranks, classes, world, protocol, matched)
    if matched.incomplete and not first and not reasons:
        group, sequence = matched.incomplete
        reasons.append(f"not every member is known to have completed number {sequence} of group {group}")
    verdict: Verdict = "divergent" if first else ("unknown" if reasons else "conforming")
    divergence, told = first.divergence if first else None, told_of_acks(ranks)
    text = "; ".join(failure.why for failure in differing_acks(ranks))
    if divergence is not None and text and divergence.facts.transition == "send_ack":
        divergence = replace(divergence, why=f"{divergence.why}; rank0 found: {text}")
    if divergence is not None and text_alone(divergence):
        reasons.append(f"rank{divergence.rank}: {UNTYPED}")
    accused = classes.accused(first.accused) if first else ()
    return Diagnosis(
        verdict,
        len(traces),
        sum(r.events * classes.weight(rank) for rank, r in ranks.items()),
        matched.collectives,
        divergence,
        failure_mode(divergence, told) if divergence else None,
        accused,
        tuple(reasons),
        classes.waits([_waiting(part, ranks[part.rank]) for part in matched.unfinished]),
        "host" if first and first.stalls else None,
        _witnessed(ranks),
        missing=() if verdict == "conforming" else _missing(classes, ranks, world, accused),
        standing=classes.standings(_standing(r) for r in ranks.values()) if first else (),
    )


def protocol_of(traces: Sequence[Trace]) -> Protocol:
    """Return the protocol of a run.

    Raises UnreadableInput where the traces are of several runs, or it is unknown.
    """
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


def _first(ranks: Mapping[int, RankReplay], matched: Matched) -> _First | None:
    """Return the first divergence in logical time; a rank's own failure is one, and what others noticed comes last."""
    broken: list[Divergence] = [*matched.odd]
    noticed: list[Divergence] = []
    for r in ranks.values():
        if r.divergence is not None:
            broken.append(_stamp(r.divergence, r, matched))
        if r.failure is not None:
            (noticed if _is_detection(r) else broken).append(_stamp(r.failure, r, matched))
    if broken:
        accused = {id(d): WHOSE.first(Broken(d, ranks)) for d in broken}
        named = {key: {accusation.rank for accusation in found} for key, found in accused.items()}
        # a tie that something else has settled is told of the rank that is to blame
        told = [d for d in broken if not (isinstance(d, UnlikePart) and d.rank not in named[id(d)])]
        first = min(told or broken, key=lambda d: (d.clock, d.rank not in named[id(d)], d.rank))
        return _First(first, accused[id(first)])
    noticed = noticed or list(_stranded(ranks, matched))
    return _missed(noticed, ranks, matched) if noticed else None


def _missed(noticed: Sequence[Divergence], ranks: Mapping[int, RankReplay], matched: Matched) -> _First:
    """Return who is to blame where ranks were left waiting or lost a peer, and where that one stands."""
    first = min(noticed, key=lambda d: (d.clock, d.rank))
    accused = MISSED.first(Missed(noticed, ranks, matched))
    named = [accusation.rank for accusation in accused]
    own = next((ranks[rank] for rank in named if rank in ranks), None)
    if own is not None and first.rank != own.trace.rank:
        first = _stamp(_stood(own, named, matched), own, matched)
    at_its_deadline = first.facts.seen is Seen.END and first.facts.transition == "deadline"
    died = any(d.facts.transition == LOST for d in noticed) and not at_its_deadline
    return _First(first, accused, not died and any(part.missing for part in matched.unfinished))


def _stamp(divergence: Divergence, replayed: RankReplay, matched: Matched) -> Divergence:
    return replace(divergence, clock=clock_of(matched.clocks, replayed, divergence))


def _is_detection(replayed: RankReplay) -> bool:
    """Return True where it noticed a peer's end, or that time had passed, or was ended where it stood."""
    failure = replayed.failure
    row = replayed.role.rows_by_key.get((failure.state, failure.facts.transition)) if failure else None
    ended = failure is not None and failure.facts.seen is Seen.NOTHING
    return ended or (row is not None and row.by is By.DETECTION)


def _stood(culprit: RankReplay, culprits: Sequence[int], matched: Matched) -> Divergence:
    """Return where a rank stands that others waited for, or missed."""
    stop = culprit.stop
    waiting = [part for part in matched.unfinished if set(part.missing) & set(culprits)]
    who = " and ".join(f"rank{w.rank} in {w.operation}" for w in waiting[:4])
    more = f" and {len(waiting) - 4} more ranks" if len(waiting) > 4 else ""
    last = f"it says `{stop.observed}`: {stop.why}"
    if stop.facts.seen is Seen.NOTHING:
        last = "its trace ends here" if culprit.trace.end is None else stop.why
    return replace(stop, why=f"{last}; left waiting: {who}{more}" if waiting else f"{last}; its peers missed it")


def _stranded(ranks: Mapping[int, RankReplay], matched: Matched) -> Iterator[Divergence]:
    """Yield the ranks that wait for a rank whose trace is whole without it."""
    for wait in matched.unfinished:
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


def _waiting(part: Unfinished, replayed: RankReplay) -> WaitingRank:
    line = replayed.trace.numbers[part.meeting.entered_at]
    return WaitingRank(part.rank, part.operation, part.missing, part.meeting.entered.state, line)


def _missing(
    classes: RankClasses, ranks: Mapping[int, RankReplay], world: int, accused: Sequence[Accusation]
) -> tuple[MissingEvidence, ...]:
    """Return what would tell more: traces that are not there, the rest of those that are not whole."""
    given, found = classes.given(), []
    absent = tuple(rank for rank in range(world) if rank not in given)
    if absent:
        text = f"the trace of {_listed(absent)}: `genlock replay` takes the folder that `genlock run --out` wrote"
        found.append(MissingEvidence(Wanted.RECORDING, absent, text))
    cut = tuple(rank for rank, replayed in classes.each(ranks) if replayed.unknown and not replayed.divergence)
    if cut:
        text = f"how {_listed(cut)} ended: the rest of the trace, the guardian's last line, or the launcher's word"
        found.append(MissingEvidence(Wanted.ENDING, cut, text))
    tied = tuple(a.rank for a in accused if a.strength is Strength.SUSPECT)
    if tied and world == 2 and not absent:
        text = "which of two ranks is right: the same run with a third rank, or a look at what each was given"
        found.append(MissingEvidence(Wanted.RECORDING, tied, text))
    return tuple(found)


def _listed(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(f"rank{rank}" for rank in ranks[:8]) + more


def _standing(replayed: RankReplay) -> Standing:
    d = replayed.stop
    return Standing(d.rank, d.line, d.event, d.chunk, d.phase, d.state, d.observed, d.expected, d.why)


def _reasons(
    ranks: Mapping[int, RankReplay], classes: RankClasses, world: int, protocol: Protocol, matched: Matched
) -> list[str]:
    given = classes.given()
    reasons = [f"rank{r}: there is no trace" for r in range(world) if r not in given]
    for rank, replayed in classes.each(ranks):
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
