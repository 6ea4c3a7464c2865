"""What a collective does between its two ends: whom it depends on, and when it may or must complete.

A rank *issues* a collective and later it *completes* for that rank. On real backends the early leavers
depend on the algorithm (gloo's tree broadcast), so the rule is two-sided: a member **may** complete once
those that it logically depends on have issued, and **must** be able to once all have. Who is stuck is
judged on *must*, what can go wrong on *may*.

Collectives pair by position in their group and by wire signature, never by meaning. Equal signatures with
another meaning deliver the wrong value and go on; unequal ones wait for ever.

Left out: transports other than `rendezvous` (gloo: the rank waits for its own completion), and sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .tables import Collective, Data, Kind

RUN_AHEAD = 1
"""How many collectives of a group a root may complete that the slowest member has not issued (measured on gloo)."""


class Contribution(NamedTuple):
    """What one member put into a collective: which one it believed it to be, and its value."""

    op: Collective
    value: Data


def depends_on(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    """The members that must have issued `op` before it may complete for `rank`."""
    if op.kind is Kind.BROADCAST:
        return (op.root or 0,)
    if op.kind is Kind.GATHER and rank != op.root:
        return (op.root or 0,)
    return range(ranks)


def same_on_the_wire(one: Collective, other: Collective) -> bool:
    """Whether the backend pairs the two, whatever they mean."""
    return one is other or one.signature == other.signature


def may_complete(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> bool:
    """Whether `rank` may leave `op`, given what each member has put in (None: not issued)."""
    for member in depends_on(op, rank, len(issued)):
        other = issued[member]
        if other is None or not same_on_the_wire(other.op, op):
            return False
    return True


def must_complete(op: Collective, issued: Sequence[Contribution | None]) -> bool:
    """Whether every member is bound to leave `op` in the end."""
    return all(other is not None and same_on_the_wire(other.op, op) for other in issued)


def delivered(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> Data:
    """What `rank` is given when `op` completes: the root's value, everyone's values as a set, or None."""
    if op.kind is Kind.BROADCAST:
        root = issued[op.root or 0]
        return root.value if root else None
    if op.kind is Kind.GATHER and rank != op.root:
        return None
    return frozenset(other.value for other in issued if other is not None)
