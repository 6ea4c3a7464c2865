"""Who waits for whom in a recording, and who is at the root of it. docs/diagnosis.md has the argument.

A rank waits at the head of each of its queues: its first operation in a group (or towards a peer) that has not
completed. Whom it waits for follows from what the others did about that operation:

- they never issued it: the wait is for them;
- they issued it behind something of their own that has not completed: likewise;
- all issued it and somebody finished it: what all must take part in cannot finish without this rank, so it is
  this rank's device (or its watchdog) that stopped;
- all issued it, nothing stands before it, and nobody finished it: the network, or some member's device; which
  one the recording does not say.

A root is a rank that others wait for and that waits for nobody. Left out: signatures (`collectives`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ...traces.collectives import Recording, Status
from .alignment import Key, Op
from .endings import SYNCHRONISING
from .history import Break, first_break
from .queues import Queues
from .sibling_ranks import Due, Order


class Head(NamedTuple):
    """The operation that a rank waits in, in one of its queues, and what the other members did about it."""

    op: Op
    never: tuple[int, ...] = ()
    """They did not issue it."""
    absent: tuple[int, ...] = ()
    """There is no recording of them."""
    unsure: tuple[int, ...] = ()
    """Their recording does not say whether they issued it."""
    behind: tuple[int, ...] = ()
    """They issued it, but have not completed something that they issued before."""
    finished: tuple[int, ...] = ()
    """They completed it, though this rank has not."""
    idle: tuple[int, ...] = ()
    """Of a started collective: they have not started it."""

    @property
    def waits_for(self) -> tuple[int, ...]:
        return self.never + self.absent or self.behind or self.unsure


@dataclass(frozen=True)
class Stall:
    """What the wait-for graph says."""

    heads: Mapping[int, Sequence[Head]]
    host: tuple[int, ...] = ()
    """Ranks that others wait for, and that wait in nothing."""
    device: tuple[int, ...] = ()
    """Ranks whose device did not complete what others finished."""
    gone: tuple[int, ...] = ()
    """Ranks without a recording that others wait for, where nothing else explains it."""
    circle: tuple[int, ...] = ()
    """Ranks that wait for each other, and for nobody else."""
    astray: tuple[int, ...] = ()
    """Ranks that skipped something or did something extra, so that they wait, or are waited for, out of step."""
    broke: Mapping[int, Break] = field(default_factory=dict)
    """Where those of a circle left their own order, if it tells them apart."""
    joint: tuple[Head, ...] = ()
    """Operations that all members issued and none finished, with nothing before them."""
    lagging: tuple[Head, ...] = ()
    """What a rank has not finished and others have, though nobody waits for that rank."""

    @property
    def culprits(self) -> tuple[int, ...]:
        return self.astray or tuple(sorted({*self.host, *self.device, *self.gone})) or self.circle

    @property
    def kind(self) -> Literal["host", "device"] | None:
        return "device" if self.device else "host" if self.host else None


def analyse(recording: Recording, order: Order) -> Stall:
    """Build the wait-for graph of a recording and find its roots."""
    queues = order.queues
    collectives = _Collectives(queues)
    heads = {
        rank: [_p2p_head(op, queues) if op.peer >= 0 else collectives.head(op) for op in queues.heads(rank)]
        for rank in queues.first
    }
    waits = {rank: {peer for head in found for peer in head.waits_for} for rank, found in heads.items()}
    stuck = {rank: [h for h in found if _own_device(h, queues)] for rank, found in heads.items()}
    stuck = {rank: found for rank, found in stuck.items() if found}
    dues = [due for due in _dues(heads) if due.rank not in stuck]
    free = {due.rank for due in dues if not order.held(due)}
    joint = tuple(h for rank in sorted(heads) for h in heads[rank] if _joint(h, queues) and rank not in stuck)
    for rank in {*stuck, *free, *(h.op.rank for h in joint)}:
        waits[rank] = set()
    awaited = {peer for peers in waits.values() for peer in peers}
    leaves = [r for r in sorted(awaited) if not waits.get(r) and r not in stuck]
    device = tuple(sorted(stuck)) if stuck.keys() & awaited else ()
    silent = {r for r in leaves if r not in recording.ranks or queues.progress.torn(r)}
    host = tuple(r for r in leaves if r not in silent and (r not in queues.first or r in free))
    absent = sorted(silent)
    gone = tuple(r for r in absent if not ((host or device) and _explained(r, heads, queues)))
    circle = () if host or device or gone or not awaited else _circle(waits)
    astray = () if device or gone else order.astray({*host, *circle, *_few(heads, recording)})
    broke = _broke(circle, recording)
    circle = tuple(broke) or circle
    lagging = () if device else tuple(h for found in stuck.values() for h in found[:1])
    if astray:
        return Stall(heads, astray=astray, joint=joint, lagging=lagging)
    return Stall(heads, host, device, gone, circle, broke=broke, joint=joint, lagging=lagging)


def _dues(heads: Mapping[int, Sequence[Head]]) -> list[Due]:
    """Each rank that others wait for in a collective, with what it waits in itself."""
    found: dict[tuple[int, Key], None] = {}
    for head in (head for own in heads.values() for head in own if head.op.peer < 0):
        for rank in head.never:
            if rank in heads:
                found[rank, Key(head.op.group, head.op.sequence)] = None
    return [Due(rank, [h.op for h in heads[rank]], owed) for rank, owed in found]


class _Collectives:
    """What each member did about a collective, found out once for all who wait in it."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self._parts: dict[Key, dict[str, tuple[int, ...]]] = {}

    def head(self, op: Op) -> Head:
        key = Key(op.group, op.sequence)
        parts = self._parts.get(key) or self._parts.setdefault(key, self._take_apart(key))
        return Head(op, **{name: tuple(m for m in found if m != op.rank) for name, found in parts.items()})

    def _take_apart(self, key: Key) -> dict[str, tuple[int, ...]]:
        parts: dict[str, list[int]] = {name: [] for name in Head._fields[1:]}
        for member in self.queues.recording.groups[key.group].members:
            for name in self._about(member, key):
                parts[name].append(member)
        return {name: tuple(found) for name, found in parts.items()}

    def _about(self, member: int, key: Key) -> tuple[str, ...]:
        queues = self.queues
        if member not in queues.recording.ranks:
            return ("absent",)
        last = queues.progress.last_issued(member, key.group)
        if last is None or (last < key.sequence and queues.progress.torn(member)):
            return ("unsure",)
        if last < key.sequence:
            return ("never",)
        if queues.finished(member, key):
            return ("finished",)
        behind = queues.place(member, key) > queues.first.get(member, 1 << 62)
        idle = queues.states[member].get(key) == Status.ISSUED
        return (*(["behind"] if behind else []), *(["idle"] if idle else []))


def _p2p_head(op: Op, queues: Queues) -> Head:
    """Sends and receives pair in order, between two ranks and one way."""
    recording = queues.recording
    if op.peer not in recording.ranks:
        return Head(op, absent=(op.peer,))
    if queues.progress.torn(op.peer):
        return Head(op, unsure=(op.peer,))
    kind = recording.signatures[op.signature].kind
    other, left = _other_end(op, kind, queues)
    if other is None:
        return Head(op, finished=(op.peer,)) if left else Head(op, never=(op.peer,))
    if other not in queues.pending[op.peer]:
        return Head(op, finished=(op.peer,))
    return Head(op, behind=(op.peer,) if other > queues.first[op.peer] else ())


def _other_end(op: Op, kind: str, queues: Queues) -> tuple[int | None, bool]:
    """Where the peer issued the other end, if that is listed; else whether it must have, and is done with it.

    Where both recordings are whole, the place among all of them tells; in a group of two, both count the same
    operations; else the first that is pending here goes with the first there.
    """
    ranks = queues.recording.ranks
    if queues.pairs.judged(op.rank, op.group, op.peer, kind):
        return queues.pairs.other.get((op.rank, op.at)), False
    theirs = queues.channel(op.peer, op.group, op.rank, "recv" if kind == "send" else "send", op.tag)
    if len(queues.recording.groups[op.group].members) == 2:
        numbers = ranks[op.peer].ops["sequence"][theirs].tolist()
        if op.sequence in numbers:
            return theirs[numbers.index(op.sequence)], False
        return None, max(numbers, default=0) > op.sequence
    waiting = set(queues.pending[op.peer])
    return next((at for at in theirs if at in waiting), None), False


def _own_device(head: Head, queues: Queues) -> bool:
    """Whether it is this rank's own device that did not complete what others finished."""
    op = head.op
    kind = queues.recording.signatures[op.signature].kind
    if op.status == Status.UNSAID:
        return False
    if head.finished and kind in SYNCHRONISING:
        return True
    first = op.at == queues.first[op.rank]
    if head.finished and not head.waits_for:
        return first
    started_elsewhere = any(
        queues.states[m].get(Key(op.group, op.sequence)) == Status.STARTED
        for m in queues.recording.groups[op.group].members
        if m in queues.recording.ranks and op.peer < 0
    )
    return first and not head.waits_for and op.status == Status.ISSUED and started_elsewhere


def _joint(head: Head, queues: Queues) -> bool:
    first = head.op.at == queues.first[head.op.rank]
    return first and not head.waits_for and not head.finished and head.op.status != Status.UNSAID


def _few(heads: Mapping[int, Sequence[Head]], recording: Recording) -> Iterator[int]:
    """Ranks that issued what at least as many members never did: it may be they who are out of step."""
    for rank, own in heads.items():
        if any(2 * len(h.never) >= len(parties(h, recording)) for h in own):
            yield rank


def parties(head: Head, recording: Recording) -> tuple[int, ...]:
    """Who takes part in an operation."""
    return recording.groups[head.op.group].members if head.op.peer < 0 else (head.op.rank, head.op.peer)


def _explained(gone: int, heads: Mapping[int, Sequence[Head]], queues: Queues) -> bool:
    """Whether a rank without a recording need not be at fault, given that somebody else is.

    It belongs into a collective that others never issued, or whoever waits for it is held up by something before.
    """
    every = [h for own in heads.values() for h in own]
    due = any(gone in parties(h, queues.recording) and h.never and h.op.peer < 0 for h in every)
    return due or all(h.op.at > queues.first[h.op.rank] for h in every if gone in h.absent)


def _broke(circle: Sequence[int], recording: Recording) -> dict[int, Break]:
    """Where those of a circle left their own order, if the others did not."""
    done = {rank: recording.ranks[rank].ops[list(DONE)].tolist() for rank in circle}
    found = {rank: at for rank, ops in done.items() if (at := first_break(ops)) is not None}
    return found if len(found) < len(circle) else {}


DONE = ("group", "signature", "site", "peer", "tag")
"""What makes two operations of a rank the same."""


def _circle(waits: Mapping[int, Iterable[int]]) -> tuple[int, ...]:
    import networkx as nx  # not needed by most, and slow to load

    graph: nx.DiGraph[int] = nx.DiGraph((rank, peer) for rank, peers in waits.items() for peer in peers)
    closed = [c for c in nx.attracting_components(graph) if len(c) > 1]
    return tuple(sorted(set().union(*closed))) if closed else ()
