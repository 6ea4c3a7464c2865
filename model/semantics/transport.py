"""Defines what a collective does between its two ends: which members it depends on, when it may or must complete.

A rank *issues* a collective and later it *completes* for that rank. On real backends the early leavers
depend on the algorithm (gloo's tree broadcast), so the rule is two-sided: a member **may** complete once
those that it logically depends on have issued, and **must** be able to once all have. Who is stuck is
judged on *must*, what can go wrong on *may*.

Collectives pair by position in their group and by wire signature, never by meaning. Equal signatures with
another meaning deliver the wrong value and go on; unequal ones wait for ever.

That is what a protocol is judged by. What gloo does where signatures are unequal or a peer dies is more
varied, and told by `fates` and `bound`, which agree with the above wherever they are not. The litmus tests
(`litmus.py`) hold all of it against the real backend.

Left out: transports other than `rendezvous` (gloo: the rank waits for its own completion), and members that
disagree about the root (gloo's trees then overlap, and a member may be given another root's value).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from ...errors import ModelError
from ..tables import Collective, Data, Kind, named


class Contribution(NamedTuple):
    """Holds what one member put into a collective: which one it believed it to be, and its value."""

    op: Collective
    value: Data
    lost: bool = False
    """The member died inside: what it put in may have arrived, but nobody is bound to complete any more."""


def depends_on(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    """Return the members that must have issued `op` before it may complete for `rank`.

    Of broadcast and gather that is measured. Of reduce and scatter it is as little as can be: one who only sends may
    leave at once.
    """
    if op.kind in (Kind.BROADCAST, Kind.SCATTER):
        return (op.root or 0,)
    if op.kind is Kind.REDUCE and rank != op.root:
        return (rank,)
    if op.kind is Kind.GATHER and rank != op.root:
        return (op.root or 0,)
    return range(ranks)


def same_on_the_wire(one: Collective, other: Collective) -> bool:
    """Return whether the backend pairs the two, whatever they mean."""
    return one is other or one.signature == other.signature


def may_complete(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> bool:
    """Return whether `rank` may leave `op`, given what each member has put in (None: not issued)."""
    for member in depends_on(op, rank, len(issued)):
        other = issued[member]
        if other is None or not same_on_the_wire(other.op, op):
            return False
    return True


def must_complete(op: Collective, issued: Sequence[Contribution | None]) -> bool:
    """Return whether every member is bound to leave `op` in the end."""
    return all(other is not None and not other.lost and same_on_the_wire(other.op, op) for other in issued)


REDUCES = (Kind.ALL_REDUCE, Kind.REDUCE, Kind.REDUCE_SCATTER)
"""Kinds whose values have to fit each other, unless their result says what becomes of them."""


def mispaired(op: Collective, issued: Sequence[Contribution | None]) -> bool:
    """Return whether members paired on the wire that mean something else by it, or reduce what does not fit."""
    others = [c for c in issued if c is not None and same_on_the_wire(c.op, op)]
    if any(c.op.name != op.name for c in others):
        return True
    return op.kind in REDUCES and op.result is None and len({c.value for c in others}) > 1


def delivered(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> Data:
    """Return what `rank` is given when `op` completes: its result, the root's value, or everyone's values as a set.

    Raise ModelError where that cannot be had of what the members have put in.
    """
    if op.kind is Kind.BROADCAST:
        root = issued[op.root or 0]
        return root.value if root else None
    if op.kind is Kind.BARRIER or (op.kind in (Kind.GATHER, Kind.REDUCE) and rank != op.root):
        return None
    if op.kind is Kind.SCATTER:
        root = issued[op.root or 0]
        return _share(op, root.value, rank, len(issued)) if root else None
    values = [other.value for other in issued if other is not None]
    if op.kind is Kind.ALL_TO_ALL:
        values = [_share(op, value, rank, len(issued)) for value in values]
    return frozenset(values) if op.result is None else _result(op, tuple(values))


def _share(op: Collective, value: Data, rank: int, members: int) -> Data:
    if not isinstance(value, tuple) or len(value) != members:
        do = "put a tuple in, with a value for each member of the group"
        raise ModelError(f"`{op.name}` is given {value!r} for {members} members", where=f"a {op.kind}", do=do)
    return value[rank]


def _result(op: Collective, values: tuple[Data, ...]) -> Data:
    assert op.result is not None
    try:
        found = op.result(values)
        hash(found)
    except Exception as error:
        what = f"its result `{named(op.result)}` of {values!r} raised {type(error).__name__}: {error}"
        raise ModelError(what, where=f"collective `{op.name}`") from error
    return found


def run_ahead(ranks: int) -> int:
    """Return how many broadcasts of a group, all from one root, a member may complete that the slowest has not issued.

    gloo broadcasts along a binomial tree. A late member holds up its parent, in the next broadcast that
    one's parent, and so on up to the root: as many as the tree is deep, for the root itself one fewer.
    """
    return ranks.bit_length() - 1


def in_reach(at: int, issued: Sequence[int]) -> bool:
    """Return whether a member may leave collective `at` (from 0) of a group of which each has issued so many."""
    return at + 1 - min(issued) <= run_ahead(len(issued))


# ── unequal signatures, dead members ────────────────────────────────────────────────────────────────────


class Fate(StrEnum):
    """Names how a rank may leave a collective that it has issued."""

    COMPLETES = "completes"
    ERROR = "error"
    """The backend raises."""
    ABORTED = "aborted"
    """The backend ends the process (SIGABRT)."""


@cache
def matched(op: Collective) -> Collective:
    """Return what gloo matches `op` by: group, kind and root. Dtype and size do not travel with the bytes."""
    return replace(op, dtype="", size="")


def heard(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    """Return the members whose bytes may reach `rank`, directly or passed on."""
    if (op.kind is Kind.BROADCAST and rank == op.root) or (op.kind is Kind.GATHER and rank != op.root):
        return ()
    return [member for member in range(ranks) if member != rank]


def overruns(sender: Collective, op: Collective) -> bool:
    """Return whether `sender` has more bytes than `op` has room for, or may have where sizes are no numbers."""
    if sender.size.isdecimal() and op.size.isdecimal():
        return int(sender.size) > int(op.size)
    return sender.size != op.size


def refused(issued: Sequence[Contribution | None]) -> bool:
    """Return whether torch's DETAIL checks raise on every member: all have come, not with one kind, dtype and size."""
    prints = {other and (other.op.kind, other.op.dtype, other.op.size) for other in issued}
    return None not in prints and len(prints) > 1


def fates(
    op: Collective,
    rank: int,
    issued: Sequence[Contribution | None],
    *,
    lost: Collection[int] = (),
    checked: bool = False,
) -> set[Fate]:
    """Return the ways in which `rank` may leave `op`; none where it has to wait.

    `lost` are the members that are gone without having left `op`, whether they had issued it or not.
    `checked`: with TORCH_DISTRIBUTED_DEBUG=DETAIL all members compare notes before any byte moves.
    """
    if checked and refused(issued):
        return {Fate.ERROR}
    found = {Fate.ERROR} if lost else set()
    if checked and None in issued:
        return found
    mine, met = matched(op), _matched(issued)
    senders = [m for m in heard(op, rank, len(issued)) if (other := met[m]) and other.op == mine]
    too_long = [overruns(sender.op, op) for m in senders if (sender := issued[m])]
    if any(too_long):
        found.add(Fate.ABORTED)
    # a broadcast is heard from one member, the rest from all
    fits = not too_long or not (all(too_long) if op.kind is Kind.BROADCAST else any(too_long))
    if fits and may_complete(mine, rank, met):
        found.add(Fate.COMPLETES)
    return found


def bound(
    op: Collective, issued: Sequence[Contribution | None], *, lost: Collection[int] = (), checked: bool = False
) -> bool:
    """Return whether every member is bound to leave `op`, by one of its fates: *must*, and nobody is lost."""
    return (checked and refused(issued)) or (not lost and must_complete(matched(op), _matched(issued)))


def missing(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> tuple[int, ...]:
    """Return the other members that `rank` waits for.

    It depends on them; else they have not come; else they do not pair.
    """
    absent = [m for m, other in enumerate(issued) if other is None and m != rank]
    unequal = [m for m, other in enumerate(issued) if other and not same_on_the_wire(other.op, op)]
    return tuple([m for m in absent if m in depends_on(op, rank, len(issued))] or absent or unequal)


def _matched(issued: Sequence[Contribution | None]) -> list[Contribution | None]:
    return [other and Contribution(matched(other.op), other.value) for other in issued]
