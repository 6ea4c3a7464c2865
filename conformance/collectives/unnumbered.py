"""Lays stretches of time side by side whose recorder gave no sequence numbers, and finds the rank that is odd.

Without numbers, only the order is there, and each rank's stretch may begin and end elsewhere. So there is something
to hold a rank against only where more than half of the job's ranks show one and the same order. A rank that shows
another one is odd, unless its stretch is too short to hold the rest. Where no order has a majority, nothing is
said: that is evidence of nothing.

Left out: recordings with numbers (`aligned`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...traces.collectives import Recording, Signature
from .alignment import Op, ops_of

Order = tuple[tuple[object, ...], ...]


class OutOfOrder(NamedTuple):
    """Names a rank that left the order of the others, with its operation there (or its last one) and theirs."""

    rank: int
    op: Op
    here: Signature | None
    """None where it has nothing left."""
    usual: Signature | None


class OrderComparison(NamedTuple):
    """Holds what laying the stretches side by side has shown."""

    odd: tuple[OutOfOrder, ...]
    cut: tuple[int, ...]
    """Ranks whose stretch is too short to hold all of what the others did."""
    agreed: bool
    """True where more than half of the job's ranks show one order."""
    matched: int
    """Collectives that all ranks show alike."""


def compare_orders(recording: Recording) -> OrderComparison:
    """Hold each rank's order against that of the majority."""
    ops = {rank: ops_of(rank, record.ops, range(len(record.ops))) for rank, record in recording.ranks.items()}
    orders = {rank: tuple(_wire(op, recording) for op in own) for rank, own in ops.items()}
    usual, count = Counter(orders.values()).most_common(1)[0]
    if 2 * count <= recording.world or not usual:
        return OrderComparison((), (), False, 0)
    agree = [ops[rank] for rank in sorted(orders) if orders[rank] == usual]
    odd: list[OutOfOrder] = []
    cut: list[int] = []
    for rank in sorted(orders):
        if orders[rank] == usual:
            odd += _odd_exchange(ops[rank], ops, orders, usual, recording)
        elif _cut(rank, orders[rank], usual, ops[rank], agree, recording.ranks[rank].span):
            cut.append(rank)
        else:
            odd.append(_first(rank, ops[rank], agree[0], recording))
    return OrderComparison(tuple(odd), tuple(cut), True, len(usual) if count == recording.world and not odd else 0)


def _wire(op: Op, recording: Recording) -> tuple[object, ...]:
    return (op.group, *recording.signatures[op.signature].wire)


def _first(rank: int, own: Sequence[Op], model: Sequence[Op], recording: Recording) -> OutOfOrder:
    """Return where the rank first differs.

    It is compared in every detail: exchanges differ in nothing else that must be equal.
    """
    mine, usual = ([recording.signatures[op.signature] for op in ops] for ops in (own, model))
    at = next((i for i, (a, b) in enumerate(zip(mine, usual, strict=False)) if a != b), min(len(mine), len(usual)))
    here = mine[at] if at < len(mine) else None
    there = usual[at] if at < len(usual) else None
    op = own[min(at, len(own) - 1)] if own else model[at]._replace(rank=rank)
    return OutOfOrder(rank, op, here, there)


def _cut(rank: int, order: Order, usual: Order, own: Sequence[Op], agree: Sequence[Sequence[Op]], record: Span) -> bool:
    """Return True if the order is a run out of the usual one, and the rest may lie outside of this rank's stretch.

    The rest lies inside if it would at twice the longest pause that the others took there.
    """
    for skipped in range(len(usual) - len(order) + 1):
        if usual[skipped : skipped + len(order)] == order:
            break
    else:
        return False
    if not own:
        return True
    begin, end = record or (own[0].time, own[-1].time)
    last = skipped + len(own) - 1
    if skipped > 0 and own[0].time - PAUSES * max(o[skipped].time - o[skipped - 1].time for o in agree) >= begin:
        return False
    later = last + 1 < len(usual)
    return not (later and own[-1].time + PAUSES * max(o[last + 1].time - o[last].time for o in agree) <= end)


PAUSES = 2
Span = tuple[int, int] | None


def _odd_exchange(
    own: Sequence[Op], ops: Mapping[int, Sequence[Op]], orders: Mapping[int, Order], usual: Order, recording: Recording
) -> list[OutOfOrder]:
    """Return a rank's first all-to-all that is unlike that of all other ranks, three at least.

    All-to-all may be uneven; but where all those put in alike, the exchange was even.
    """
    like = [rank for rank in orders if orders[rank] == usual and rank != own[0].rank]
    for at, op in enumerate(own):
        signature = recording.signatures[op.signature]
        others = {recording.signatures[ops[rank][at].signature] for rank in like}
        if signature.kind == "all_to_all" and len(like) >= 3 and len(others) == 1 and signature not in others:
            return [OutOfOrder(op.rank, op, signature, others.pop())]
    return []
