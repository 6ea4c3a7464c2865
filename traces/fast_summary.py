"""Sums up a large recording of a program in a few numbers a rank: enough to see that all members did the same.

A rank is read and forgotten; what stays is, of each of its groups (and each way of sends and receives), how many
operations it did and a digest of what all must agree on. So memory is bounded by ranks times groups.

Left out: anything that is not as it should be. Then the answer is None, and the recording is read as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .collectives import BALANCED, Ended, Group, Interned, RankRecord, Signature, Status
from .importers.genlock_programs import Reader
from .load import Own
from .parallel_read import in_processes

KINDS_KEPT = 1 << 16
"""Distinct events beyond which a reader forgets what it has met."""


class Done(NamedTuple):
    """Holds what one rank did in one group, or one way of it."""

    operations: int
    digest: bytes


Ways = dict[tuple[Group, int, int, int], Done]
"""Keyed by group, source, target and tag."""


class Survey(NamedTuple):
    """Holds what is kept of one rank."""

    rank: int
    entries: int
    groups: dict[Group, Done]
    sends: Ways
    receives: Ways
    made: tuple[tuple[int, ...], ...]
    """Members of each group that all ranks had to make, in order."""
    broadcast: frozenset[str]
    """Dtypes that were broadcast: where there are two, the run may follow a protocol."""


class Agreed(NamedTuple):
    """Holds a whole recording in which all ranks did the same, and left it."""

    ranks: int
    entries: int
    matched: int
    """Collectives, and pairs of a send and a receive."""


def agreed(own: Own) -> Agreed | None:
    """Return the counts where all is as it should be; None where it is not, or this cannot tell.

    Raises UnreadableInput.
    """
    world = next(iter(own.headers.values())).world
    if own.follows or own.cut or len(own.headers) < world:
        return None
    found: list[Survey] = []
    for some in in_processes(surveys, list(own.headers)):
        found += (survey for survey in some if survey is not None)
        if None in some:
            return None
    return _together(found)


def surveys(paths: Sequence[Path]) -> list[Survey | None]:
    """Survey each rank; None for one that did not come to its end as it should."""
    reader = Reader(Interned())
    found: list[Survey | None] = []
    for path in paths:
        if reader.met > KINDS_KEPT:
            reader = Reader(Interned())
        found.append(_survey(reader.rank(path).record, reader.interned))
        if found[-1] is None:
            break
    return found


def _survey(record: RankRecord, interned: Interned) -> Survey | None:
    ops, signatures = record.ops, interned.signatures.values
    left = (ops["status"] == Status.COMPLETED) | (ops["status"] == Status.UNSAID)
    sound = record.whole and record.ended is Ended.STOPPED and not record.listens and record.making is None
    if not sound or not left.all():
        return None
    tokens = np.array([_token(s) for s in signatures], np.uint64)[ops["signature"]]
    p2p = ops["peer"] >= 0
    groups: dict[Group, Done] = {}
    for number in np.unique(ops["group"][~p2p]).tolist():
        group, chosen = interned.groups.values[number], ~p2p & (ops["group"] == number)
        numbers = ops["sequence"][chosen]
        if record.rank not in group.members or not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
            return None
        groups[group] = _done(tokens[chosen])
    sends: Ways = {}
    receives: Ways = {}
    is_send = np.array([s.kind == "send" for s in signatures], bool)[ops["signature"]]
    for number, peer, tag in np.unique(ops[["group", "peer", "tag"]][p2p]).tolist():
        group, way = interned.groups.values[number], (ops["group"] == number) & (ops["peer"] == peer)
        way &= ops["tag"] == tag
        if (out := way & is_send).any():
            sends[group, record.rank, peer, tag] = _done(tokens[out])
        if (into := way & ~is_send).any():
            receives[group, peer, record.rank, tag] = _done(tokens[into])
    used = np.unique(ops["signature"]).tolist()
    broadcast = frozenset(signatures[s].dtype for s in used if signatures[s].kind == "broadcast")
    made = tuple(making.members for making in record.makings if making.by_all)
    return Survey(record.rank, len(ops), groups, sends, receives, made, broadcast)


def _token(signature: Signature) -> int:
    """Return a number that is equal for operations that agree; of a kind with uneven sizes, all sizes count."""
    sizes = (signature.sent, signature.received) if signature.kind in BALANCED else ()
    text = repr((signature.wire, sizes, signature.reduce)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _done(tokens: npt.NDArray[np.uint64]) -> Done:
    return Done(len(tokens), hashlib.blake2b(tokens.tobytes(), digest_size=16).digest())


def _together(surveys: Sequence[Survey]) -> Agreed | None:
    """Return the counts where the members of each group, and the ends of each way, did the same; else None."""
    done: dict[Group, dict[int, Done]] = {}
    for survey in surveys:
        for group, own in survey.groups.items():
            done.setdefault(group, {})[survey.rank] = own
    same = len({survey.made for survey in surveys}) == 1
    same &= all(_alike(parts.values()) and parts.keys() == set(group.members) for group, parts in done.items())
    sends = _all(surveys, lambda survey: survey.sends)
    entries = sum(survey.entries for survey in surveys)
    broadcast = frozenset[str]().union(*(survey.broadcast for survey in surveys))
    if not same or sends != _all(surveys, lambda survey: survey.receives) or not entries or len(broadcast) > 1:
        return None
    matched = sum(next(iter(parts.values())).operations for parts in done.values())
    return Agreed(len(surveys), entries, matched + sum(way.operations for way in sends.values()))


def _alike(parts: Iterable[Done]) -> bool:
    return len(set(parts)) == 1


def _all(surveys: Sequence[Survey], ways: Callable[[Survey], Ways]) -> Ways:
    return {way: done for survey in surveys for way, done in ways(survey).items()}
