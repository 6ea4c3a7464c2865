"""What does not fit together in a recording: entries that contradict it, collectives that members issued unlike.

Left out: operations that nobody can finish (`stall`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..traces.collectives import RankRecord, Recording, Signature
from .aligned import Aligned, Key, Op, ops_of
from .order import Order

Shape = Callable[[Signature], tuple[object, ...]]


class Finding(NamedTuple):
    """A place where the ranks do not fit together, and whose doing it may be."""

    op: Op
    suspects: tuple[int, ...]
    observed: str
    expected: tuple[str, ...]
    why: str
    sure: bool = True
    """Whether the recording tells the suspects apart from the others."""


class Words:
    """Names of what is found."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def group(self, number: int) -> str:
        group = self.recording.groups[number]
        described = f" ({group.description})" if group.description not in ("", "undefined") else ""
        return f"group {group.name}{described}"

    def op(self, op: Op) -> str:
        signature = self.recording.signatures[op.signature]
        return f"{signature} #{op.sequence} of {self.group(op.group)}"

    def short(self, op: Op) -> str:
        kind = self.recording.signatures[op.signature].kind
        towards = f" {'to' if kind == 'send' else 'from'} rank{op.peer}" if op.peer >= 0 else ""
        return f"{kind} #{op.sequence}{towards} of {self.group(op.group)}"

    def due(self, op: Op) -> str:
        """What the other ranks owe to `op`: itself or, to one end of a send, the other end."""
        if op.peer < 0:
            return self.short(op)
        send = self.recording.signatures[op.signature].kind == "send"
        return f"{'recv from' if send else 'send to'} rank{op.rank} of {self.group(op.group)}"

    def site(self, op: Op) -> str:
        return self.recording.sites[op.site]


# ── recordings that contradict themselves ───────────────────────────────────────────────────────────────


def contradictions(aligned: Aligned, words: Words) -> Iterator[Finding]:
    recording = aligned.recording
    capacity = 0 if recording.window else max((_held(r) for r in recording.ranks.values()), default=0)
    for rank, record in recording.ranks.items():
        if record.gap is not None:
            at = int(np.searchsorted(record.ops["entry"], record.gap))
            op = ops_of(rank, record.ops, [min(at, len(record.ops) - 1)])[0]
            why = f"entry {record.gap} is missing: a ring drops its oldest entries, none between others"
            yield Finding(op, (rank,), words.short(op), (f"entry {record.gap}",), why)
        elif record.lost and not record.pending_only and _held(record) < capacity:
            op = ops_of(rank, record.ops, [0])[0]
            why = f"what came before is missing: a ring drops nothing before it is full, and others hold {capacity}"
            yield Finding(op, (rank,), words.short(op), (f"entry {op.entry - 1}",), why)
        yield from _out_of_order(rank, record, words)
    for at in np.flatnonzero(aligned.repeated)[:1].tolist():
        rank = int(aligned.rank[at])
        op = ops_of(rank, recording.ranks[rank].ops, [int(aligned.at[at])])[0]
        yield Finding(op, (rank,), words.short(op), (), "its sequence number comes twice")
    yield from _holes(aligned, words)


def _held(record: RankRecord) -> int:
    """How many entries its ring holds at least."""
    return int(record.ops["entry"][-1] - record.ops["entry"][0]) + 1 if len(record.ops) else 0


def _out_of_order(rank: int, record: RankRecord, words: Words) -> Iterator[Finding]:
    """A group's sequence numbers rise as a rank issues them."""
    ops = record.ops
    chosen = np.flatnonzero(ops["peer"] < 0)
    order = chosen[np.argsort(ops["group"][chosen], kind="stable")]
    group, sequence = ops["group"][order], ops["sequence"][order]
    wrong = np.flatnonzero((np.diff(group) == 0) & (np.diff(sequence) < 0))
    for at in order[wrong + 1][:1].tolist():
        op = ops_of(rank, ops, [at])[0]
        yield Finding(op, (rank,), words.short(op), (), "its sequence number is lower than the one before")


def _holes(aligned: Aligned, words: Words) -> Iterator[Finding]:
    """A rank that has what came before and after in the group, but not what its peers have in between."""
    recording = aligned.recording
    short = np.flatnonzero(aligned.counts < aligned.sizes)
    if not len(short):
        return
    spans = {
        (rank, group): (int(own.min()), int(own.max()))
        for rank, record in recording.ranks.items()
        if not record.pending_only
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
                yield Finding(rows[0]._replace(rank=rank), (rank,), "nothing", (words.short(rows[0]),), why)
                return


def _within(span: tuple[int, int] | None, sequence: int) -> bool:
    return span is not None and span[0] < sequence < span[1]


# ── members that issued unlike ──────────────────────────────────────────────────────────────────────────


def mismatches(aligned: Aligned, order: Order, words: Words) -> Iterator[Finding]:
    """The first collective of each group that its members did not issue alike; what follows it is noise."""
    seen: set[int] = set()
    for number in np.flatnonzero(aligned.unequal | aligned.unbalanced).tolist():
        key = aligned.key(number)
        if key.group not in seen:
            seen.add(key.group)
            yield _mismatch(aligned, number, order, words)


def _mismatch(aligned: Aligned, number: int, order: Order, words: Words) -> Finding:
    signatures, key, rows = aligned.recording.signatures, aligned.key(number), aligned.rows(number)
    shape = _wire if aligned.unequal[number] else _sizes
    given = {op.rank: shape(signatures[op.signature]) for op in rows}
    usual = _usual(list(given.values())) or _siblings(aligned, key, shape, set(given.values()), order)
    suspects = tuple(rank for rank, value in given.items() if value != usual)
    astray = () if usual else order.astray(suspects)
    suspects = astray or suspects
    op = next(op for op in rows if op.rank in suspects)
    others = {str(signatures[o.signature]) for o in rows if (o.rank not in suspects or not usual) and o is not op}
    what = "the other members issued" if usual else "the members issued different collectives: elsewhere"
    return Finding(
        op,
        suspects,
        words.op(op),
        tuple(f"{text} #{key.sequence} of {words.group(key.group)}" for text in sorted(others)),
        f"{what} {' and '.join(sorted(others))}",
        sure=bool(usual or astray),
    )


def _wire(signature: Signature) -> tuple[object, ...]:
    return signature.wire


def _sizes(signature: Signature) -> tuple[object, ...]:
    return (signature.sent, signature.received)


def _usual(values: Sequence[tuple[object, ...]]) -> tuple[object, ...] | None:
    """What more than half of them are."""
    [(value, count)] = Counter(values).most_common(1)
    return value if 2 * count > len(values) and len(values) > 2 else None


def _siblings(
    aligned: Aligned, key: Key, shape: Shape, given: set[tuple[object, ...]], order: Order
) -> tuple[object, ...] | None:
    """What sibling groups of ranks that run the same program issued there, if they agree and some member here did."""
    members, likeness = aligned.recording.groups[key.group].members, order.likeness
    values = {
        shape(aligned.recording.signatures[op.signature])
        for witness in likeness.witnesses(members[0])
        if (group := likeness.counterpart(witness, key.group)) not in (None, key.group)
        for op in aligned.find(Key(group, key.sequence))
    }
    return values.pop() if len(values) == 1 and values <= given else None


def unpaired(recording: Recording, words: Words) -> Iterator[Finding]:
    """Sends and receives of whole recordings that pair, but not in what they carry."""
    whole = {rank: record for rank, record in recording.ranks.items() if not (record.lost or record.pending_only)}
    ends: dict[tuple[int, int, int], dict[str, list[Op]]] = {}
    for rank, record in whole.items():
        for op in ops_of(rank, record.ops, np.flatnonzero(record.ops["peer"] >= 0).tolist()):
            if op.peer in whole:
                kind = recording.signatures[op.signature].kind
                way = (rank, op.peer) if kind == "send" else (op.peer, rank)
                ends.setdefault((op.group, *way), {"send": [], "recv": []})[kind].append(op)
    for both in ends.values():
        for one, other in zip(both["send"], both["recv"], strict=False):
            a, b = recording.signatures[one.signature], recording.signatures[other.signature]
            if a.wire != b.wire:
                why = f"rank{one.rank} sent {a.sent:,} {a.dtype}, rank{other.rank} takes {b.received:,} {b.dtype}"
                yield Finding(one, (one.rank, other.rank), words.op(one), (words.op(other),), why, sure=False)
                break


def blamed(findings: Sequence[Finding]) -> tuple[int, ...]:
    """Those that are told apart; a place where they are not adds nobody if it has one of those."""
    sure = {rank for f in findings if f.sure for rank in f.suspects}
    for f in findings:
        if not f.sure and not sure & set(f.suspects):
            sure |= set(f.suspects)
    return tuple(sorted(sure))
