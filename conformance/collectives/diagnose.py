"""Judges a recording at the collective layer: what every member issued alike, who did not, and who is stuck.

In this order, and only the first that is found counts: a recording that contradicts itself, collectives that their
members issued unlike, operations that nobody can finish. What is not recorded is evidence of nothing: it makes
a verdict `unknown`, never `conforming` and never `divergent`. docs/diagnosis.md has the argument.

Left out: how each is found (`findings`, `stall`, `windows`), and a protocol's tables (`replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ...traces.collectives import Ended, Recording
from ..diagnosis import (
    Accusation,
    Diagnosis,
    Divergence,
    MissingEvidence,
    Strength,
    WaitingRank,
    Wanted,
    accusations,
)
from .alignment import Aligned, Key, Op, ops_of
from .blame import (
    Alone,
    Stuck,
    accused_of,
    broken_off,
    circle,
    device,
    found_dead,
    left_its_own_order,
    one_too_many_or_too_few,
    out_of_step_by_place,
    raised,
)
from .endings import ending_text, limits, with_torn_marked
from .history import PAST, expected
from .making import unlike_makings, with_makings
from .mismatches import Conflict, OperationNames, blamed, contradictions, mismatches, unpaired
from .off_by_one import OutOfStep
from .queues import Progress, Queues
from .send_recv import Pairs
from .sibling_ranks import Order, SameProgram
from .stall import Head, Standstill
from .summed import Unlike, settle
from .times_there import times_there
from .unnumbered import compare_orders


def diagnose(recording: Recording) -> Diagnosis:
    """Return the verdict on a recording; the same for any order of its files."""
    if not recording.numbered:
        return _diagnose_windows(recording, OperationNames(recording))
    before = settle(recording)
    recording = with_makings(with_torn_marked(before.recording))
    aligned, pairs, words = Aligned(recording), Pairs(recording), OperationNames(recording)
    order = Order(Queues(recording, Progress(recording), pairs), SameProgram(recording))
    still = Standstill(recording, order)
    conflicts = list(contradictions(aligned, words))
    conflicts = conflicts or [
        *mismatches(aligned, order, words),
        *unlike_makings(recording, order, words),
        *unpaired(pairs, order, words),
    ]
    stuck = Stuck(still, lambda key: words.lifted is not None and key in words.lifted.places)
    found, accused, kind = _first(conflicts, stuck, words)
    reasons = _unseen(recording) + list(before.reasons) + _lost(recording) + limits(recording)
    if before.unlike and not found:
        found, accused, kind = _unlike_before(before.unlike, words)
    if not found:
        reasons += _open(recording, still, words)
        if not reasons and not bool(aligned.complete.all()):
            op = aligned.rows(int(np.flatnonzero(~aligned.complete)[0]))[0]
            reasons.append(f"not every member is known to have finished {words.short(op)}")
    waits = tuple(WaitingRank(rank, words.short(head.op), head.waits_for) for rank, head in _waiting(still))
    diagnosis = Diagnosis(
        "divergent" if found else ("unknown" if reasons else "conforming"),
        len(recording.ranks),
        recording.entries + before.entries,
        int(aligned.complete.sum()) + pairs.matched() + before.matched,
        found,
        "FM-18" if kind else None,
        accused if found or reasons else (),
        tuple(reasons),
        waits if found or accused else (),
        kind,
        {},
        missing=_missing(recording, still, accused) if found or reasons else (),
        lifted=words.lifted.summary() if words.lifted else "",
        summed=before.entries,
    )
    return _at_most_unknown(diagnosis) if recording.relative else diagnosis


def _at_most_unknown(diagnosis: Diagnosis) -> Diagnosis:
    """Return a verdict that rests on numbers which are not the recorder's: whoever is named is a suspect."""
    found = diagnosis.divergence
    why = "the ring has lost how many operations there were in a group: they are counted from the last that completed"
    return replace(
        diagnosis,
        verdict="unknown",
        divergence=None,
        failure_mode=None,
        stall=None,
        waits=(),
        accused=tuple(a._replace(strength=Strength.SUSPECT) for a in diagnosis.accused),
        reasons=(*(() if found is None else (f"{found.place}: {found.why}",)), why, *diagnosis.reasons),
    )


Kind = Literal["host", "device"] | None


def _first(
    conflicts: Sequence[Conflict], e: Stuck, words: OperationNames
) -> tuple[Divergence | None, tuple[Accusation, ...], Kind]:
    """Return the divergence that the recording shows, if it does; the accused ranks; and where a culprit is stuck."""
    if conflicts:
        first = min(conflicts, key=lambda c: (c.op.time, c.op.rank, c.op.at))
        return _divergence(first, words), blamed(conflicts), None
    accused = accused_of(e)
    culprits = [a for a in accused if a.strength is Strength.CULPRIT]
    if culprits and culprits[0].case == found_dead.name:
        return _gone(culprits[0].rank, words), accused, "host"
    if culprits:
        slip = e.slip if culprits[0].case == out_of_step_by_place.name else None
        cases = {a.case for a in culprits}
        kind: Kind = "device" if device.name in cases else "host" if cases & HOST else None
        return (_at_slip(slip, words) if slip else _stalled(e, culprits, words)), accused, kind
    if alone := broken_off(e.recording, e.still):
        return _crashed(alone[0], words), raised(Alone(raised=alone)), None
    if accused and _never(e, accused):
        return _stalled(e, [a for a in accused if a.case in NEVER], words), accused, None
    return None, accused, None


HOST = {"host-stands-still", "not-held-up", "known-to-have-ended"}
NEVER = {circle.name, one_too_many_or_too_few.name}


def _never(e: Stuck, accused: Sequence[Accusation]) -> bool:
    """Return true if what ranks wait in will certainly never be: a closed circle, or a rank that came to its end."""
    ended = (Ended.STOPPED, Ended.FAILED)
    ranks = e.recording.ranks
    return any(
        (a.case == circle.name and a.rank in e.closed)
        or (a.case == one_too_many_or_too_few.name and a.rank in e.still.leaves and ranks[a.rank].ended in ended)
        for a in accused
    )


def _unlike_before(
    unlike: Sequence[Unlike], words: OperationNames
) -> tuple[Divergence | None, tuple[Accusation, ...], Kind]:
    """Return that ranks issued unlike operations among those of which there are digests alone."""
    first = min(unlike, key=lambda each: each.upto)
    most, *others = first.parts
    odd = tuple(sorted(rank for part in others for rank in part))
    named = odd if len(most) > len(odd) else tuple(sorted((*most, *odd)))
    told = "; ".join(f"{_ranks(part)} did the same" if len(part) > 1 else _ranks(part) for part in first.parts)
    why = f"their digests differ, so that one of them at least is another operation ({told}); which one is not kept"
    found = Divergence(named[0], 1, 0, None, "", None, None, f"among {first.what}", "others", (), why, place=first.what)
    return found, accusations(named, Strength.SUSPECT, "unlike-the-majority"), None


def _diagnose_windows(recording: Recording, words: OperationNames) -> Diagnosis:
    """Return the verdict on stretches of time without sequence numbers."""
    compared = compare_orders(recording)
    found: Divergence | None = None
    culprits: list[int] = []
    for rank, record in recording.ranks.items():
        if record.gap is not None:
            op = ops_of(rank, record.ops, [min(record.gap, len(record.ops) - 1)])[0]
            why = "the profiler saw a collective here, but not which"
            found = found or _at(op, words, f"operation {record.gap + 1} of its stretch", "nothing", ("a name",), why)
            culprits.append(rank)
    for odd in compared.odd[: 0 if found else None]:
        culprits.append(odd.rank)
        here, usual = str(odd.here or "nothing"), str(odd.usual or "nothing")
        why = f"the others have {usual} here"
        found = found or _at(odd.op, words, f"operation {odd.op.at + 1} of its stretch", here, (usual,), why)
    reasons = _unseen(recording)
    if not compared.agreed:
        reasons.append("the ranks' stretches show no common order, and the recorder did not number the collectives")
    if compared.cut:
        reasons.append(f"the stretch of {_ranks(compared.cut)} is too short to hold what the others did")
    return Diagnosis(
        "divergent" if found else ("unknown" if reasons else "conforming"),
        len(recording.ranks),
        recording.entries,
        compared.matched,
        found,
        None,
        accusations(culprits, Strength.CULPRIT, "unlike-the-majority"),
        tuple(reasons),
        (),
        None,
        {},
    )


def _divergence(found: Conflict, words: OperationNames) -> Divergence:
    op = found.op
    return _at(op, words, f"{words.short(op)} issued", found.observed, found.expected, found.why)


# ── operations that nobody can finish ───────────────────────────────────────────────────────────────────


def _stalled(e: Stuck, accused: Sequence[Accusation], words: OperationNames) -> Divergence:
    """Return where the first rank that is named stands, and what is due from it."""
    named = next((a for a in accused if a.rank in e.still.leaves), accused[0])
    rank, case = named.rank, named.case
    own = e.still.heads.get(rank, ())
    if case == left_its_own_order.name:
        op, before = ops_of(rank, words.recording.ranks[rank].ops, e.broke[rank])
        why = f"{CIRCLE.format(rank)}, and here it did not go on as it always did"
        return _at(op, words, f"{words.short(op)} issued", words.call(op), (words.call(before),), why)
    if case == device.name:
        head = next((h for h in own if h.finished), own[0])
        what = f"{_ranks(head.finished)} did" if head.finished else "others are in it"
        why = f"rank{rank} issued it and has not completed it, though {what}"
        name = words.short(head.op)
        return _at(head.op, words, f"in {name}", "nothing", (f"{name} completed",), why)
    owed = [h for heads in e.still.heads.values() for h in heads if rank in h.waits_for]
    if not owed:
        head = own[0]
        why = f"{HOW[case].format(rank)}: {_ranks(head.waits_for)} did not take part in it"
        return _at(head.op, words, f"in {words.short(head.op)}", words.short(head.op), (), why)
    head = _next_due(rank, owed, words.recording)
    due = words.due(head.op)
    ended = "" if rank in e.still.heads else ending_text(words.recording, rank)
    waiting = sorted({h.op.rank for h in owed})
    why = f"{HOW[case].format(rank)}{ended and f' ({ended})'}; {_ranks(waiting)} "
    why += f"{'wait' if len(waiting) > 1 else 'waits'} for it"
    if head.op.peer < 0 and (told := times_there(words.recording, rank, waiting, head.op.group, head.op.site)):
        why += f"; {told}"
    record = words.recording.ranks.get(rank)
    last = ops_of(rank, record.ops, [len(record.ops) - 1])[0] if record and len(record.ops) else None
    at = head.op._replace(rank=rank, at=last.at if last else 0, entry=last.entry if last else 0)
    found = _at(at, words, f"before {due}", "nothing", (due,), why, due)
    return replace(found, phase=record.raised_at) if record and record.raised_at else found


def _at_slip(odd: OutOfStep, words: OperationNames) -> Divergence:
    what = "left one out before it" if odd.short else "did one more before it"
    why = f"rank{odd.op.rank} {what}: from here on it pairs with what the others issued for something else"
    here, there = (f"{words.short(odd.op)} at {words.recording.sites[s]}" for s in (odd.op.site, odd.site))
    return _at(odd.op, words, f"{words.short(odd.op)} issued", here, (there,), why)


def _next_due(culprit: int, owed: Sequence[Head], recording: Recording) -> Head:
    """Return the operation that the culprit's own past leads to expect next, of those that others wait in."""
    kinds = [signature.kind for signature in recording.signatures]
    mirrored = {"send": "recv", "recv": "send"}
    first = sorted(owed, key=lambda h: (h.op.peer >= 0, h.op.time, h.op.rank))
    due = [(h.op.group, mirrored.get(kind := kinds[h.op.signature], kind), _end(h.op)) for h in first]
    record = recording.ranks.get(culprit)
    done = [] if record is None else record.ops[["group", "signature", "peer"]][-PAST:].tolist()
    usual = expected([(group, kinds[signature], peer) for group, signature, peer in done], due)
    return first[due.index(usual)] if usual else first[0]


def _end(op: Op) -> int:
    """Return the rank that the other end of a send or receive names as its peer."""
    return op.rank if op.peer >= 0 else -1


def _gone(rank: int, words: OperationNames) -> Divergence:
    """Return the divergence of a rank whose process another one found to have ended."""
    ranks = words.recording.ranks
    witness = next(record for record in ranks.values() if record.found_dead == rank)
    why = f"rank{rank} is gone, as rank{witness.rank} found: {witness.message}"
    if not len(ranks[rank].ops):
        return Divergence(
            rank, 1, 0, None, "", None, None, "before any operation", "nothing", (), why, place="the start"
        )
    [last] = ops_of(rank, ranks[rank].ops, [len(ranks[rank].ops) - 1])
    after = f"after {words.short(last)}"
    return _at(last, words, after, "nothing", (), why, after)


def _crashed(rank: int, words: OperationNames) -> Divergence:
    """Return the divergence of a rank that raised when nobody waited for it any more."""
    record = words.recording.ranks[rank]
    ops = ops_of(rank, record.ops, [len(record.ops) - 1] if len(record.ops) else [])
    after = f"after {words.short(ops[0])}" if ops else "before any operation"
    line, event = (words.line(ops[0]), ops[0].entry) if ops else (1, 0)
    why = f"rank{rank} ended by an exception, with nobody waiting for it"
    where = record.raised_at or (words.site(ops[0]) if ops else "")
    return Divergence(rank, line, event, None, where, None, None, after, record.message, (), why, place=after)


CIRCLE = "rank{} is in a circle of ranks that wait for each other"
HOW = {
    "more-or-fewer-than-siblings": "rank{} did more or fewer operations than the ranks that run the same program",
    "host-stands-still": "rank{} never issued it, and nothing that is recorded holds it up",
    "not-held-up": "rank{} never issued it, and nothing that is recorded holds it up",
    "known-to-have-ended": "rank{} has ended",
    "circle": CIRCLE,
    "one-too-many-or-one-too-few": "rank{} never issued it, or those who wait did one too many",
}
"""Says of a rank, by the case that names it, what it did."""


def _waiting(still: Standstill) -> Iterator[tuple[int, Head]]:
    """Yield each waiting rank with the first of its operations that somebody keeps from completing."""
    for rank, own in sorted(still.heads.items()):
        head = next((h for h in own if h.waits_for), None)
        if head is not None and not (rank in still.stuck and still.stuck.keys() & still.awaited):
            yield rank, head


def _at(
    op: Op, words: OperationNames, state: str, observed: str, expected: tuple[str, ...], why: str, place: str = ""
) -> Divergence:
    place = place or words.short(op)
    line, phase, chunk = words.line(op), words.site(op), None
    key, lifted = Key(op.group, op.sequence), words.lifted
    if lifted is not None and op.peer < 0 and key in lifted.places:
        what = lifted.places[key]
        of = f" of chunk {what.chunk}" if what.chunk else ""
        place += f" ({what.line.name}{of} in {lifted.protocol.name})" + (f" at {phase}" if phase else "")
        phase, chunk, state = what.line.phase, what.chunk, lifted.state(op.rank, key) or state
    return Divergence(op.rank, line, op.entry, chunk, phase, None, None, state, observed, expected, why, place=place)


def _ranks(ranks: Iterable[int]) -> str:
    listed = [f"rank{r}" for r in ranks]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more


# ── what is not recorded ────────────────────────────────────────────────────────────────────────────────


def _unseen(recording: Recording) -> list[str]:
    reasons = [f"rank{rank}: {why}" for rank, why in sorted(recording.unreadable.items())]
    known = {*recording.ranks, *recording.unreadable}
    absent = [rank for rank in range(recording.world) if rank not in known]
    reasons += [f"there is no recording of {_ranks(absent)}"] if absent else []
    return reasons if recording.sized else [*reasons, UNSIZED]


UNSIZED = "nothing states how many ranks the job has: there may be more than the highest that was recorded"


def _lost(recording: Recording) -> list[str]:
    reasons = []
    pending = [rank for rank, record in recording.ranks.items() if record.pending_only]
    if pending:
        reasons.append(f"only what is pending was recorded of {_ranks(pending)}")
    lost = [
        rank
        for rank, record in recording.ranks.items()
        if record.lost and not record.pending_only and record.summed is None
    ]
    if lost and not recording.window:
        reasons.append(f"what came before is lost of {_ranks(lost)}")
    return reasons


def _open(recording: Recording, still: Standstill, words: OperationNames) -> list[str]:
    """Return what has not come to an end, though nobody can be said to be in the way of it."""
    reasons = []
    for key in dict.fromkeys((h.op.group, h.op.sequence, h.op.peer) for h in still.joint):
        head = next(h for h in still.joint if (h.op.group, h.op.sequence, h.op.peer) == key)
        what = "all issued it and none finished it: on its way, or a device or the network is stuck"
        sizes = _unlike_sizes(head.op, recording, still.members(head.op)) if head.op.peer < 0 else ""
        reasons.append(f"{words.short(head.op)}: {_ranks(still.members(head.op))} {what}{sizes}")
    for rank, stuck in list(still.stuck.items())[:1]:
        reasons.append(f"rank{rank} has not finished {words.short(stuck[0].op)}, {_ranks(stuck[0].finished)} have")
    for _, head in list(_waiting(still))[:1]:
        reasons.append(f"rank{head.op.rank} waits in {words.short(head.op)} for {_ranks(head.waits_for)}")
    if not recording.entries:
        reasons.append("nothing was recorded")
    return reasons


def _unlike_sizes(op: Op, recording: Recording, members: Sequence[int]) -> str:
    """Return what each member of an all-to-all put in, where that differs: legal with splits, and else what is wrong.

    No recorder of torch's says whether splits were given.
    """
    if recording.signatures[op.signature].kind != "all_to_all":
        return ""
    given: dict[int, list[int]] = {}
    for rank in members:
        own = recording.ranks[rank].ops if rank in recording.ranks else None
        found = None if own is None else own[(own["group"] == op.group) & (own["sequence"] == op.sequence)]
        for signature in [] if found is None else found["signature"].tolist():
            given.setdefault(recording.signatures[signature].sent, []).append(rank)
    if len(given) < 2:
        return ""
    told = "; ".join(f"{_ranks(ranks)}: {sent:,}" for sent, ranks in sorted(given.items()))
    return f"; their sizes differ ({told}), which is right with splits alone"


def _missing(recording: Recording, still: Standstill, accused: Sequence[Accusation]) -> tuple[MissingEvidence, ...]:
    """Return what would tell more than the recording does."""
    found: list[MissingEvidence] = []
    absent = tuple(rank for rank in range(recording.world) if rank not in recording.ranks)
    suspects = {a.rank: a.case for a in accused if a.strength is Strength.SUSPECT}
    if absent:
        asked = tuple(rank for rank in absent if rank in suspects) or absent
        text = f"the recording of {_ranks(asked)}: {HOW_TO_GET.get(recording.source, HOW_TO_GET[''])}"
        found.append(MissingEvidence(Wanted.RECORDING, asked, text))
    partial = tuple(r for r, record in recording.ranks.items() if record.lost or record.pending_only or record.dropped)
    if partial and suspects and not recording.window:
        text = f"what {_ranks(partial)} did before: {LARGER.get(recording.source, LARGER[''])}"
        found.append(MissingEvidence(Wanted.REST, partial, text))
    together = tuple(rank for rank, case in suspects.items() if case == "in-the-same-operation")
    if together:
        found.append(MissingEvidence(Wanted.START_TIMES, together, TIMING))
    doubtful = tuple(rank for rank, case in suspects.items() if case == one_too_many_or_too_few.name)
    if doubtful:
        text = f"where {_ranks(doubtful)} stand, or how they ended: `genlock collect` while they hang, or their logs"
        found.append(MissingEvidence(Wanted.ENDING, doubtful, text))
    return tuple(found)


HOW_TO_GET = {
    "genlock": "its file lies where `genlock record --out` wrote the others, or on another host",
    "": "torch writes it when a time-out has passed; of a job that hangs now, `genlock collect` asks for it where "
    "TORCH_NCCL_DEBUG_INFO_PIPE_FILE was set",
}
LARGER = {
    "genlock": "record again, with room on the disk",
    "": "TORCH_NCCL_TRACE_BUFFER_SIZE=20000, and a dump with completed operations",
}
TIMING = (
    "whose device had started: TORCH_NCCL_ENABLE_TIMING=1 in the next run; of a job that hangs now, `genlock collect`"
)
