"""Finds where a rank fell out of step though every pair fits: equal operations pair, whatever they mean.

A rank that leaves out one of several equal operations, or does one more, goes on with wrong partners, and is missed
only at the end. Where the recording has places in the source, they show it: from some number on, the rank's places
are those of all others, one number later or earlier.

Left out: a rank whose places differ in any other way. Ranks may rightly run different lines.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from ...traces.collectives import Recording
from .alignment import Op, ops_of


class OutOfStep(NamedTuple):
    """Names a rank that is one operation short (or ahead) in a group, from `op` on; its others issued it at `site`."""

    op: Op
    site: int
    short: bool


def out_of_step_in(recording: Recording, group: int) -> OutOfStep | None:
    """Return the one rank of the group that is out of step with all others, if they are more than half of it."""
    sites: dict[int, dict[int, int]] = {}
    for rank in recording.groups[group].members:
        record = recording.ranks.get(rank)
        if record is None:
            continue
        own = record.ops[(record.ops["group"] == group) & (record.ops["peer"] < 0)]
        if len(own) and not own["site"].all():
            return None
        sites[rank] = dict(zip(own["sequence"].tolist(), own["site"].tolist(), strict=True))
    if len(sites) < 3 or 2 * (len(sites) - 1) <= len(recording.groups[group].members):
        return None
    found = [m for rank in sites if (m := _out_of_step(rank, sites, recording, group)) is not None]
    return found[0] if len(found) == 1 else None


def _out_of_step(rank: int, sites: dict[int, dict[int, int]], recording: Recording, group: int) -> OutOfStep | None:
    usual = _agreed([own for other, own in sites.items() if other != rank])
    own = sites[rank]
    begin = next((n for n in sorted(own) if n in usual and own[n] != usual[n]), None)
    if begin is None or begin == min(own):
        return None
    after = [n for n in own if n >= begin and n + 1 in usual]
    before = [n for n in own if n > begin and n - 1 in usual]
    fewer = bool(after) and all(own[n] == usual[n + 1] for n in after)
    more = bool(before) and all(own[n] == usual[n - 1] for n in before)
    if not fewer and not more:
        return None
    is_short = fewer and not (more and max(own) > max(usual))  # in a loop of two, only the end tells
    ops = recording.ranks[rank].ops
    at = np.flatnonzero((ops["group"] == group) & (ops["peer"] < 0) & (ops["sequence"] == begin))
    return OutOfStep(ops_of(rank, ops, at.tolist()[:1])[0], usual[begin], is_short)


def _agreed(members: list[dict[int, int]]) -> dict[int, int]:
    """Number to place, up to where the members disagree."""
    agreed: dict[int, int] = {}
    for number in sorted({n for own in members for n in own}):
        places = Counter(own[number] for own in members if number in own)
        if len(places) > 1:
            break
        agreed[number] = next(iter(places))
    return agreed
