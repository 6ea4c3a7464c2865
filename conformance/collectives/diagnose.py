"""Judges a recording at the collective layer: what every member issued alike, who did not, and who is stuck.

In this order, and only the first that is found counts: a recording that contradicts itself, collectives that their
members issued unlike, operations that nobody can finish. What is not recorded is evidence of nothing: it makes
a verdict `unknown`, never `conforming` and never `divergent`. docs/diagnosis.md has the argument.

Left out: how each is found (`findings`, `stall`, `windows`), and a protocol's tables (`replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...traces.collectives import Ended, Recording
from ..diagnosis import Diagnosis, Divergence
from .alignment import Aligned, Key, Op, ops_of
from .endings import limits, settled, word
from .history import PAST, expected
from .mismatches import Finding, Words, blamed, contradictions, mismatches, unpaired
from .off_by_one import Mispaired, mispaired
from .queues import Progress, Queues
from .send_recv import Pairs
from .sibling_ranks import Likeness, Order
from .stall import Head, Stall, analyse, parties
from .unnumbered import lay


class Stuck(NamedTuple):
    """A rank that is left waiting."""

    rank: int
    operation: str
    missing: tuple[int, ...]


def judge(recording: Recording) -> Diagnosis:
    """The verdict on a recording; the same for any order of its files."""
    if not recording.numbered:
        return _judge_windows(recording, Words(recording))
    recording = settled(recording)
    aligned, pairs, words = Aligned(recording), Pairs(recording), Words(recording)
    order = Order(Queues(recording, Progress(recording), pairs), Likeness(recording))
    findings = list(contradictions(aligned, words))
    findings = findings or [*mismatches(aligned, order, words), *unpaired(pairs, words)]
    stall = Stall({}) if recording.window else analyse(recording, order)
    found: Divergence | None = None
    culprits: tuple[int, ...] = ()
    kind: Literal["host", "device"] | None = None
    if findings:
        first = min(findings, key=lambda f: (f.op.time, f.op.rank, f.op.at))
        found, culprits = _divergence(first, words), blamed(findings)
    elif (odd := _slipped(stall, recording)) is not None:
        found, culprits = _at_slip(odd, words), (odd.op.rank,)
    elif stall.culprits:
        found, culprits, kind = _stalled(stall, words), stall.culprits, stall.kind
    elif failed := _failed(order.queues):
        found, culprits = _crashed(failed[0], words), failed
    reasons = _unseen(recording) + _lost(recording) + limits(recording)
    if not found:
        reasons += _open(recording, stall, words)
        if not reasons and not bool(aligned.complete.all()):
            op = aligned.rows(int(np.flatnonzero(~aligned.complete)[0]))[0]
            reasons.append(f"not every member is known to have finished {words.short(op)}")
    waits = tuple(Stuck(rank, words.short(head.op), head.waits_for) for rank, head in _waiting(stall))
    return Diagnosis(
        "divergent" if found else ("unknown" if reasons else "conforming"),
        len(recording.ranks),
        recording.entries,
        int(aligned.complete.sum()) + pairs.matched(),
        found,
        "FM-18" if kind else None,
        culprits,
        tuple(reasons),
        waits if found else (),
        kind,
        {},
        suspects=() if found else tuple(sorted({r for h in stall.joint for r in parties(h, recording)})),
        lifted=words.lifted.summary() if words.lifted else "",
    )


def _judge_windows(recording: Recording, words: Words) -> Diagnosis:
    """The verdict on stretches of time without sequence numbers."""
    laid = lay(recording)
    found: Divergence | None = None
    culprits: list[int] = []
    for rank, record in recording.ranks.items():
        if record.gap is not None:
            op = ops_of(rank, record.ops, [min(record.gap, len(record.ops) - 1)])[0]
            why = "the profiler saw a collective here, but not which"
            found = found or _at(op, words, f"operation {record.gap + 1} of its stretch", "nothing", ("a name",), why)
            culprits.append(rank)
    for odd in laid.odd[: 0 if found else None]:
        culprits.append(odd.rank)
        here, usual = str(odd.here or "nothing"), str(odd.usual or "nothing")
        why = f"the others have {usual} here"
        found = found or _at(odd.op, words, f"operation {odd.op.at + 1} of its stretch", here, (usual,), why)
    reasons = _unseen(recording)
    if not laid.agreed:
        reasons.append("the ranks' stretches show no common order, and the recorder did not number the collectives")
    if laid.cut:
        reasons.append(f"the stretch of {_ranks(laid.cut)} is too short to hold what the others did")
    return Diagnosis(
        "divergent" if found else ("unknown" if reasons else "conforming"),
        len(recording.ranks),
        recording.entries,
        laid.matched,
        found,
        None,
        tuple(culprits),
        tuple(reasons),
        (),
        None,
        {},
    )


def _divergence(found: Finding, words: Words) -> Divergence:
    op = found.op
    return _at(op, words, f"{words.short(op)} issued", found.observed, found.expected, found.why)


# ── operations that nobody can finish ───────────────────────────────────────────────────────────────────


def _stalled(stall: Stall, words: Words) -> Divergence:
    """Where the first culprit stands, and what is due from it."""
    culprit = (stall.astray or stall.device or stall.host or stall.gone or stall.circle)[0]
    own = stall.heads.get(culprit, ())
    if culprit in stall.broke:
        op, before = ops_of(culprit, words.recording.ranks[culprit].ops, stall.broke[culprit])
        why = f"{CIRCLE.format(culprit)}, and here it did not go on as it always did"
        return _at(op, words, f"{words.short(op)} issued", words.call(op), (words.call(before),), why)
    if culprit in stall.device:
        head = next((h for h in own if h.finished), own[0])
        what = f"{_ranks(head.finished)} did" if head.finished else "others are in it"
        why = f"rank{culprit} issued it and has not completed it, though {what}"
        name = words.short(head.op)
        return _at(head.op, words, f"in {name}", "nothing", (f"{name} completed",), why)
    owed = [h for found in stall.heads.values() for h in found if culprit in h.waits_for]
    if not owed:
        head = own[0]
        why = f"{ASTRAY.format(culprit)}: {_ranks(head.waits_for)} did not take part in it"
        return _at(head.op, words, f"in {words.short(head.op)}", words.short(head.op), (), why)
    head = _next_due(culprit, owed, words.recording)
    due = words.due(head.op)
    ended = "" if culprit in stall.heads else word(words.recording, culprit)
    how = {
        culprit in stall.circle: CIRCLE.format(culprit),
        culprit in stall.gone: f"nothing shows rank{culprit} there, and nothing else explains the wait for it",
        culprit in stall.host: f"rank{culprit} never issued it, and nothing that is recorded holds it up",
        culprit in stall.astray: ASTRAY.format(culprit),
    }[True]
    waiting = sorted({h.op.rank for h in owed})
    why = f"{how}{ended and f' ({ended})'}; {_ranks(waiting)} {'wait' if len(waiting) > 1 else 'waits'} for it"
    record = words.recording.ranks.get(culprit)
    last = ops_of(culprit, record.ops, [len(record.ops) - 1])[0] if record and len(record.ops) else None
    at = head.op._replace(rank=culprit, at=last.at if last else 0, entry=last.entry if last else 0)
    return _at(at, words, f"before {due}", "nothing", (due,), why, due)


def _slipped(stall: Stall, recording: Recording) -> Mispaired | None:
    """A rank that is out of step in a group in which others are left waiting."""
    groups = {head.op.group for own in stall.heads.values() for head in own if head.op.peer < 0 and head.never}
    found = [odd for group in sorted(groups) if (odd := mispaired(recording, group)) is not None]
    return found[0] if len(found) == 1 else None


def _at_slip(odd: Mispaired, words: Words) -> Divergence:
    what = "left one out before it" if odd.short else "did one more before it"
    why = f"rank{odd.op.rank} {what}: from here on it pairs with what the others issued for something else"
    here, there = (f"{words.short(odd.op)} at {words.recording.sites[s]}" for s in (odd.op.site, odd.site))
    return _at(odd.op, words, f"{words.short(odd.op)} issued", here, (there,), why)


def _next_due(culprit: int, owed: Sequence[Head], recording: Recording) -> Head:
    """Of the operations that others wait in, the one that the culprit's own past leads to expect next."""
    kinds = [signature.kind for signature in recording.signatures]
    mirrored = {"send": "recv", "recv": "send"}
    first = sorted(owed, key=lambda h: (h.op.peer >= 0, h.op.time, h.op.rank))
    due = [(h.op.group, mirrored.get(kind := kinds[h.op.signature], kind), _end(h.op)) for h in first]
    record = recording.ranks.get(culprit)
    done = [] if record is None else record.ops[["group", "signature", "peer"]][-PAST:].tolist()
    usual = expected([(group, kinds[signature], peer) for group, signature, peer in done], due)
    return first[due.index(usual)] if usual else first[0]


def _end(op: Op) -> int:
    """Whom the other end of a send or receive names as its peer."""
    return op.rank if op.peer >= 0 else -1


def _failed(queues: Queues) -> tuple[int, ...]:
    """Ranks that ended by an exception of their own, though nobody waits for them."""
    ranks = queues.recording.ranks
    return tuple(r for r, record in ranks.items() if record.ended is Ended.FAILED and r not in queues.first)


def _crashed(rank: int, words: Words) -> Divergence:
    """A rank that raised when nobody waited for it any more."""
    record = words.recording.ranks[rank]
    ops = ops_of(rank, record.ops, [len(record.ops) - 1] if len(record.ops) else [])
    after = f"after {words.short(ops[0])}" if ops else "before any operation"
    line, event = (words.line(ops[0]), ops[0].entry) if ops else (1, 0)
    why = f"rank{rank} ended by an exception, with nobody waiting for it"
    where = words.site(ops[0]) if ops else ""
    return Divergence(rank, line, event, None, where, None, None, after, record.message, (), why, place=after)


CIRCLE = "rank{} is in a circle of ranks that wait for each other"
ASTRAY = "rank{} did more or fewer operations than the ranks that run the same program"


def _waiting(stall: Stall) -> Iterator[tuple[int, Head]]:
    """Each waiting rank with the first of its operations that somebody keeps from completing."""
    for rank, found in sorted(stall.heads.items()):
        head = next((h for h in found if h.waits_for), None)
        if head is not None and rank not in stall.device:
            yield rank, head


def _at(
    op: Op, words: Words, state: str, observed: str, expected: tuple[str, ...], why: str, place: str = ""
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
    return reasons + ([f"there is no recording of {_ranks(absent)}"] if absent else [])


def _lost(recording: Recording) -> list[str]:
    reasons = []
    pending = [rank for rank, record in recording.ranks.items() if record.pending_only]
    if pending:
        reasons.append(f"only what is pending was recorded of {_ranks(pending)}")
    lost = [rank for rank, record in recording.ranks.items() if record.lost and not record.pending_only]
    if lost and not recording.window:
        reasons.append(f"what came before is lost of {_ranks(lost)}")
    return reasons


def _open(recording: Recording, stall: Stall, words: Words) -> list[str]:
    """What has not come to an end, though nobody can be told to be in the way of it."""
    reasons = []
    for key in dict.fromkeys((h.op.group, h.op.sequence, h.op.peer) for h in stall.joint):
        head = next(h for h in stall.joint if (h.op.group, h.op.sequence, h.op.peer) == key)
        what = "all issued it and none finished it: on its way, or a device or the network is stuck"
        reasons.append(f"{words.short(head.op)}: {_ranks(parties(head, recording))} {what}")
    for head in stall.lagging[:1]:
        reasons.append(f"rank{head.op.rank} has not finished {words.short(head.op)}, {_ranks(head.finished)} have")
    if not recording.entries:
        reasons.append("nothing was recorded")
    return reasons
