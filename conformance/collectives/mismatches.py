"""Finds what does not fit together in a recording: entries that contradict it, collectives issued unlike.

Left out: operations that nobody can finish (`stall`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...traces.collectives import BASE, MAKING, Ended, RankRecord, Recording, Signature
from ...traces.importers.genlock_programs import line_of, line_of_making
from ..diagnosis import Accusation, Strength
from .alignment import Aligned, Key, Op, ops_of
from .blame import UNLIKE, Alone, Unlike, Value, recording_contradicts_itself, unlike_the_past
from .history import PAST
from .send_recv import Pairs
from .sibling_ranks import Order
from .times_there import left_out, times_there

if TYPE_CHECKING:
    from .recognise_protocol import Lifted

Shape = Callable[[Signature], tuple[object, ...]]


class Conflict(NamedTuple):
    """Names a place where what was recorded does not fit together, and whose doing it may be."""

    op: Op
    accused: tuple[Accusation, ...]
    observed: str
    expected: tuple[str, ...]
    why: str


class OperationNames:
    """Names of what is found."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def group(self, number: int) -> str:
        group = self.recording.groups[number]
        described = f" ({group.description})" if group.description not in ("", "undefined") else ""
        return f"group {group.name}{described}"

    def op(self, op: Op) -> str:
        signature = self.recording.signatures[op.signature]
        if signature.kind == MAKING:
            return self.short(op)
        return f"{signature} {self.number(op)} of {self.group(op.group)}"

    def number(self, op: Op) -> str:
        """Return `#4`; `#last+1` of what comes after the last that completed, where nothing else is known."""
        return f"#last{op.sequence - BASE:+d}" if self.recording.relative else f"#{op.sequence}"

    def short(self, op: Op) -> str:
        kind, towards = self._towards(op)
        if kind == MAKING:
            return making_text(self.recording.groups[op.group].members, op.sequence)
        return f"{kind} {self.number(op)}{towards} of {self.group(op.group)}"

    def call(self, op: Op) -> str:
        """Return the same without its number."""
        signature, (_, towards) = self.recording.signatures[op.signature], self._towards(op)
        if signature.kind == MAKING:
            return self.short(op)
        return f"{signature}{towards} of {self.group(op.group)}"

    def _towards(self, op: Op) -> tuple[str, str]:
        kind = self.recording.signatures[op.signature].kind
        return kind, f" {'to' if kind == 'send' else 'from'} rank{op.peer}" if op.peer >= 0 else ""

    def due(self, op: Op) -> str:
        """Return what the other ranks owe to `op`: itself or, to one end of a send, the other end."""
        if op.peer < 0:
            return self.short(op)
        send = self.recording.signatures[op.signature].kind == "send"
        return f"{'recv from' if send else 'send to'} rank{op.rank} of {self.group(op.group)}"

    def site(self, op: Op) -> str:
        return self.recording.sites[op.site]

    @cached_property
    def lifted(self) -> Lifted | None:
        """Return the recording as a run of TP v1.1, if it is one."""
        if len({s.dtype for s in self.recording.signatures if s.kind == "broadcast"}) < 2:  # header and payload
            return None
        from .recognise_protocol import Lifted  # which brings the tables along

        return Lifted(self.recording) or None

    def line(self, op: Op) -> int:
        """Return the line of the rank's file in which it was issued; the entry, where that is no file of lines."""
        record = self.recording.ranks.get(op.rank)
        if record is None or record.ended is Ended.UNSAID:
            return op.at + 1
        if self.recording.signatures[op.signature].kind == MAKING:
            return line_of_making(record.path, op.sequence)
        return line_of(record.path, op.entry)


def making_text(members: Sequence[int], position: int) -> str:
    """Return the call by which a group is made, with its position among those that all ranks make."""
    return f"{MAKING}({list(members)}), number {position}"


# ── recordings that contradict themselves ───────────────────────────────────────────────────────────────


def contradictions(aligned: Aligned, words: OperationNames) -> Iterator[Conflict]:
    recording = aligned.recording
    capacity = 0 if recording.window else max((_held(r) for r in recording.ranks.values()), default=0)
    for rank, record in recording.ranks.items():
        if record.gap is not None and len(record.ops):
            at = int(np.searchsorted(record.ops["entry"], record.gap))
            op = ops_of(rank, record.ops, [min(at, len(record.ops) - 1)])[0]
            why = f"entry {record.gap} is missing: a ring drops its oldest entries, none between others"
            yield Conflict(op, _itself(rank), words.short(op), (f"entry {record.gap}",), why)
        elif record.lost and record.summed is None and not record.pending_only and _held(record) < capacity:
            op = ops_of(rank, record.ops, [0])[0]
            why = f"what came before is missing: a ring drops nothing before it is full, and others hold {capacity}"
            yield Conflict(op, _itself(rank), words.short(op), (f"entry {op.entry - 1}",), why)
        yield from _out_of_order(rank, record, words)
    for at in np.flatnonzero(aligned.repeated)[:1].tolist():
        rank = int(aligned.rank[at])
        op = ops_of(rank, recording.ranks[rank].ops, [int(aligned.at[at])])[0]
        yield Conflict(op, _itself(rank), words.short(op), (), "its sequence number comes twice")
    yield from _holes(aligned, words)


def _itself(rank: int) -> tuple[Accusation, ...]:
    return recording_contradicts_itself(Alone(contradicting=(rank,)))


def _held(record: RankRecord) -> int:
    """Return how many entries the rank's ring holds at least."""
    return int(record.ops["entry"][-1] - record.ops["entry"][0]) + 1 if len(record.ops) else 0


def _out_of_order(rank: int, record: RankRecord, words: OperationNames) -> Iterator[Conflict]:
    """Yield the conflict where a group's sequence numbers do not rise as a rank issues them."""
    ops = record.ops
    chosen = np.flatnonzero(ops["peer"] < 0)
    order = chosen[np.argsort(ops["group"][chosen], kind="stable")]
    group, sequence = ops["group"][order], ops["sequence"][order]
    wrong = np.flatnonzero((np.diff(group) == 0) & (np.diff(sequence) < 0))
    for at in order[wrong + 1][:1].tolist():
        op = ops_of(rank, ops, [at])[0]
        yield Conflict(op, _itself(rank), words.short(op), (), "its sequence number is lower than the one before")


def _holes(aligned: Aligned, words: OperationNames) -> Iterator[Conflict]:
    """Yield each rank that has what came before and after in the group, but not what its peers have in between."""
    recording = aligned.recording
    short = np.flatnonzero(aligned.counts < aligned.sizes)
    if not len(short):
        return
    spans = {
        (rank, group): (int(own.min()), int(own.max()))
        for rank, record in recording.ranks.items()
        if not (record.pending_only or record.dropped)
        for group in np.unique(record.ops["group"]).tolist()
        if len(own := record.ops["sequence"][(record.ops["group"] == group) & (record.ops["peer"] < 0)])
    }
    if not len(spans):
        return
    lows: dict[int, int] = {}
    for (_, group), (low, _) in spans.items():
        lows[group] = min(low, lows.get(group, low))
    for number in short.tolist():
        key = aligned.key(number)
        inside = [m for m in recording.groups[key.group].members if _within(spans.get((m, key.group)), key.sequence)]
        if not inside:
            continue
        rows = aligned.rows(number)
        there = {op.rank for op in rows}
        for rank in inside:
            if rank not in there:
                why = f"rank{rank} has what came before and after it in the group, but not this"
                yield Conflict(rows[0]._replace(rank=rank), _itself(rank), "nothing", (words.short(rows[0]),), why)
                return


def _within(span: tuple[int, int] | None, sequence: int) -> bool:
    return span is not None and span[0] < sequence < span[1]


# ── members that issued unlike ──────────────────────────────────────────────────────────────────────────


def mismatches(aligned: Aligned, order: Order, words: OperationNames) -> Iterator[Conflict]:
    """Yield the first collective of each group that its members did not issue alike; what follows it is noise."""
    seen: set[int] = set()
    for number in np.flatnonzero(aligned.unlike).tolist():
        key = aligned.key(number)
        if key.group not in seen:
            seen.add(key.group)
            yield _mismatch(aligned, number, order, words)


def _mismatch(aligned: Aligned, number: int, order: Order, words: OperationNames) -> Conflict:
    signatures, key, rows = aligned.recording.signatures, aligned.key(number), aligned.rows(number)
    shape = _wire if aligned.unequal[number] else _reduction if aligned.reduced_unlike[number] else _sizes
    given = {op.rank: shape(signatures[op.signature]) for op in rows}
    accused = UNLIKE.first(
        Unlike(
            given,
            int(aligned.sizes[number]),
            lambda: _siblings(aligned, key, shape, set(given.values()), order),
            lambda: _before(aligned, number, shape),
            order,
        )
    )
    named = {accusation.rank for accusation in accused}
    told_apart = len({value for rank, value in given.items() if rank not in named}) == 1
    op = next(op for op in rows if op.rank in named)
    others = {str(signatures[o.signature]) for o in rows if (o.rank not in named or not told_apart) and o is not op}
    what = "the other members issued" if told_apart else "the members issued different collectives: elsewhere"
    why = f"{what} {' and '.join(sorted(others))}"
    if told_apart and len(named) == 1:
        usual = [o for o in rows if o.rank not in named]
        recording = aligned.recording
        told = times_there(recording, op.rank, [o.rank for o in usual], key.group, usual[0].site)
        why = "; ".join(filter(None, (why, left_out(recording, op, usual[0]), told)))
    return Conflict(
        op,
        accused,
        words.op(op),
        tuple(f"{text} #{key.sequence} of {words.group(key.group)}" for text in sorted(others)),
        why,
    )


def _before(aligned: Aligned, number: int, shape: Shape) -> list[tuple[object, ...]]:
    """Return what the group did before, oldest first."""
    signatures, group = aligned.recording.signatures, aligned.key(number).group
    first = int(np.searchsorted(aligned.group, group))
    starts = aligned.starts[max(first, number - PAST) : number]
    return [shape(signatures[s]) for s in aligned.signature[starts].tolist()]


def _wire(signature: Signature) -> tuple[object, ...]:
    return signature.wire


def _reduction(signature: Signature) -> tuple[object, ...]:
    return (signature.reduce,)


def _sizes(signature: Signature) -> tuple[object, ...]:
    return (signature.sent, signature.received)


def _siblings(
    aligned: Aligned, key: Key, shape: Shape, given: set[tuple[object, ...]], order: Order
) -> tuple[object, ...] | None:
    """Return what sibling groups of ranks that run the same program issued there.

    Nothing is returned unless they agree, and some member here issued the same.
    """
    members, likeness = aligned.recording.groups[key.group].members, order.likeness
    values = {
        shape(aligned.recording.signatures[op.signature])
        for witness in likeness.witnesses(members[0])
        if (group := likeness.counterpart(witness, key.group)) not in (None, key.group)
        for op in aligned.find(Key(group, key.sequence))
    }
    return values.pop() if len(values) == 1 and values <= given else None


def unpaired(pairs: Pairs, order: Order, words: OperationNames) -> Iterator[Conflict]:
    """Sends and receives that meet, but not in what they carry; and those that meet nobody, all having ended well."""
    recording = pairs.recording
    for send, receive, carried in pairs.unequal():
        a, b = recording.signatures[send.signature], recording.signatures[receive.signature]
        accused = _of_two({send.rank: a.wire, receive.rank: b.wire}, carried, order)
        odd, other = (receive, send) if accused[0].rank == receive.rank and len(accused) == 1 else (send, receive)
        why = f"rank{send.rank} sent {a.sent:,} {a.dtype}, rank{receive.rank} takes {b.received:,} {b.dtype}"
        usual = b.wire if odd is send else a.wire
        why += f"; before, it was always {usual[2]:,} {usual[1]}" if accused[0].case == unlike_the_past.name else ""
        yield Conflict(odd, accused, words.op(odd), (words.op(other),), why)
    stopped = {rank for rank, record in recording.ranks.items() if record.ended is Ended.STOPPED}
    for rank, alone in pairs.alone.items():
        op = next((op for op in ops_of(rank, recording.ranks[rank].ops, alone) if not _may_lie(recording, op)), None)
        if op is not None and {rank, op.peer} <= stopped:
            why = f"rank{op.peer} came to its end, as rank{rank} did, without a {words.due(op)}"
            accused = _of_two({rank: ("issued",), op.peer: ("nothing",)}, (), order)
            yield Conflict(op, accused, words.op(op), (words.due(op),), why)


def _may_lie(recording: Recording, op: Op) -> bool:
    """Return True for what was put into a queue: its reader may leave without it."""
    return recording.groups[op.group].queued and recording.signatures[op.signature].kind == "send"


def _of_two(given: Mapping[int, Value], past: Sequence[Value], order: Order) -> tuple[Accusation, ...]:
    """Return whose doing it is that the two ends of a send do not fit."""
    return UNLIKE.first(Unlike(given, 2, lambda: None, lambda: past, order))


def blamed(conflicts: Sequence[Conflict]) -> tuple[Accusation, ...]:
    """Return the culprits of all conflicts, and the suspects of those that have nothing to do with a culprit."""
    sure = {a.rank: a for c in conflicts for a in c.accused if a.strength is Strength.CULPRIT}
    named = dict(sure)
    for conflict in conflicts:
        if not sure.keys() & {a.rank for a in conflict.accused}:
            for accusation in conflict.accused:
                named.setdefault(accusation.rank, accusation)
    return tuple(named[rank] for rank in sorted(named))
