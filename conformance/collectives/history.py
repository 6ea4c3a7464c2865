"""Holds what was done before against what came: programs are loops, so what came last time comes again.

This never makes a verdict. It tells which of several ranks is out of its own order, where the recording has
shown already that one of them is. Where the past says nothing, or speaks for several, no one is singled out.

Left out: what other ranks did at that place (`order`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)

PAST, LONGEST = 1024, 64
"""So far back is looked, and for stretches of that length at most."""
RECENT = 16
"""So many of a rank's last operations may be those with which it left its order."""


def expected(past: Sequence[T], among: Iterable[T], times: int = 1) -> T | None:
    """Return which of `among` the past leads to expect, if it is one: what came after the longest like stretch before.

    With `times`, no stretch counts that came less often, and nothing else of `among` may ever have come after even the
    last thing alone: in a loop of equal operations, only their number tells what is due. What did not come twice, after
    something else, may be due for the first time: then the past expects nothing.
    """
    wanted = set(among)
    past = past[-PAST:]
    if times > 1 and any(past[1:].count(one) < 2 for one in wanted):
        return None
    seen = _stretches(past)
    if times > 1 and len(wanted & {past[at] for length, places in seen.items() if length for at in places}) > 1:
        return None
    followers: dict[T, int] = {}
    for length in sorted(seen, reverse=True):
        for at in seen[length]:
            followers[past[at]] = followers.get(past[at], 0) + 1
        if sum(followers.values()) >= times and (found := followers.keys() & wanted):
            return found.pop() if len(found) == 1 else None
    return None


class Break(NamedTuple):
    """Says where something came that had never come after what was before it; in positions."""

    at: int
    usual: int
    """Holds the operation that came there last time."""


def first_break(done: Sequence[T]) -> Break | None:
    """Return the first break of habit among the last things that were done."""
    skipped = max(0, len(done) - PAST)
    done = done[skipped:]
    for at in range(max(1, len(done) - RECENT), len(done)):
        followers = _followers(done[:at])
        longest = max(followers)
        if longest and done[at] not in followers[longest]:
            return Break(at + skipped, max(followers[longest].values()) + skipped)
    return None


def _followers(past: Sequence[T]) -> dict[int, dict[T, int]]:
    """Map the length of a stretch that ends the past and was there before to what came after it, and where last."""
    return {length: {past[at]: at for at in places} for length, places in _stretches(past).items()}


def _stretches(past: Sequence[T]) -> dict[int, list[int]]:
    """Return length of each stretch that ends the past and was there before, to the places of what came after it."""
    found: dict[int, list[int]] = {}
    for at in range(len(past)):
        length = 0
        while length < min(at, LONGEST) and past[at - 1 - length] == past[-1 - length]:
            length += 1
        found.setdefault(length, []).append(at)
    return found
