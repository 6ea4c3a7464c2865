"""Finds out which rank waits for which in a recording of a job that stands still. docs/diagnosis.md has the argument.

A rank waits at the head of each of its queues: its first operation in a group (or towards a peer) that has not
completed. What it waits for follows from what the others did about that operation:

- they never issued it: the wait is for them;
- they issued it behind something of their own that has not completed: likewise;
- all issued it and somebody finished it: what all must take part in cannot finish without this rank, so it is
  this rank's device (or its watchdog) that stopped;
- all issued it, nothing stands before it, and nobody finished it: the network, or some member's device; which
  one the recording does not say.

Left out: whose fault that is (`blame`), and what members issued unlike (`mismatches`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from ...traces.collectives import Recording, Status
from .alignment import Key, Op
from .endings import SYNCHRONISING
from .queues import Queues
from .sibling_ranks import Due, Order


class Head(NamedTuple):
    """Holds the operation that a rank waits in, in one of its queues, and what the other members did about it."""

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

    @property
    def waits_for(self) -> tuple[int, ...]:
        return self.never + self.absent or self.behind or self.unsure

    @property
    def may_wait_for(self) -> tuple[int, ...]:
        """Return all who may keep the operation from completing, for all that is known."""
        return self.never + self.absent + self.behind + self.unsure


class Standstill:
    """Holds the wait-for graph of a recording."""

    def __init__(self, recording: Recording, order: Order) -> None:
        self.recording, self.order = recording, order
        self.queues = queues = order.queues
        self.heads: Mapping[int, Sequence[Head]] = {} if recording.window else _heads(queues)
        """Rank to the operations that it waits in."""
        self.stuck = {
            rank: stuck for rank, own in self.heads.items() if (stuck := [h for h in own if self._own_device(h)])
        }
        """Ranks whose own device did not do what others' did, with those operations."""
        dues = [due for due in _dues(self.heads) if due.rank not in self.stuck]
        self.free = frozenset(due.rank for due in dues if not order.held(due))
        """Ranks that owe something and wait in something, and whose waiting keeps their host from nothing."""
        self.joint = tuple(
            h for rank in sorted(self.heads) if rank not in self.stuck for h in self.heads[rank] if self._joint(h)
        )
        """Operations that all members issued and none finished, with nothing before them."""
        still = {*self.stuck, *self.free, *(h.op.rank for h in self.joint)}
        self.waits = {
            rank: frozenset[int]() if rank in still else frozenset(peer for head in own for peer in head.waits_for)
            for rank, own in self.heads.items()
        }
        """Rank to those that it waits for."""

    @cached_property
    def awaited(self) -> frozenset[int]:
        """Return the ranks that others wait for."""
        return frozenset[int]().union(*self.waits.values())

    @cached_property
    def unseen(self) -> frozenset[int]:
        """Return the awaited ranks that may be anywhere: without a recording, or with one that does not say so much."""
        ranks, torn = self.recording.ranks, self.queues.progress.torn
        return frozenset(rank for rank in self.awaited if rank not in ranks or torn(rank))

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Return the ranks that are awaited, are seen, and whose host waits in nothing."""
        idle = (rank for rank in self.awaited - self.unseen if not self.waits.get(rank) and rank not in self.stuck)
        return tuple(sorted(rank for rank in idle if rank not in self.queues.first or rank in self.free))

    @cached_property
    def circle(self) -> tuple[int, ...]:
        """Return the ranks that wait for each other, and in the end for nobody else."""
        if not self.awaited:
            return ()
        import networkx as nx  # not needed by most, and slow to load

        graph: nx.DiGraph[int] = nx.DiGraph([(rank, peer) for rank, peers in self.waits.items() for peer in peers])
        closed = [c for c in nx.attracting_components(graph) if len(c) > 1]
        return tuple(sorted(set[int]().union(*closed)))

    @cached_property
    def circles(self) -> frozenset[int]:
        """Return the ranks that may wait for each other, whatever other ranks they wait for."""
        if not self.awaited:
            return frozenset()
        import networkx as nx  # not needed by most, and slow to load

        edges = [(rank, peer) for rank in self.waits for head in self.heads[rank] for peer in head.may_wait_for]
        components = nx.strongly_connected_components(nx.DiGraph(edges))
        return frozenset[int]().union(*(c for c in components if len(c) > 1))

    def waiting_for(self, rank: int) -> list[Head]:
        """Return the operations in which others wait for a rank."""
        return [head for own in self.heads.values() for head in own if rank in head.waits_for]

    def members(self, op: Op) -> tuple[int, ...]:
        """Return who takes part in an operation."""
        return self.recording.groups[op.group].members if op.peer < 0 else (op.rank, op.peer)

    def issuers(self, head: Head) -> tuple[int, ...]:
        """Return who is known to have issued an operation."""
        not_known = {*head.never, *head.absent, *head.unsure}
        return tuple(m for m in self.members(head.op) if m not in not_known)

    def _own_device(self, head: Head) -> bool:
        """Return true if it is this rank's own device that did not do what others' did."""
        return self.did_not_finish(head) or self.did_not_start(head)

    def did_not_finish(self, head: Head) -> bool:
        """Return true if a rank has not finished what cannot be finished without it, or what all others finished."""
        op = head.op
        kind = self.recording.signatures[op.signature].kind
        if op.status == Status.UNSAID or not head.finished:
            return False
        others = len(self.members(op)) - 1
        return kind in SYNCHRONISING or (len(head.finished) == others and op.at == self.queues.first[op.rank])

    def did_not_start(self, head: Head) -> bool:
        """Return true if a rank's queue is free for an operation that has started on others, and not on it."""
        op, queues = head.op, self.queues
        started_elsewhere = op.peer < 0 and any(
            queues.states[m].get(Key(op.group, op.sequence)) == Status.STARTED
            for m in self.members(op)
            if m in self.recording.ranks
        )
        first = op.at == queues.first[op.rank]
        return first and not head.waits_for and op.status == Status.ISSUED and started_elsewhere

    def _joint(self, head: Head) -> bool:
        first = head.op.at == self.queues.first[head.op.rank]
        return first and not head.waits_for and not head.finished and head.op.status != Status.UNSAID


def _heads(queues: Queues) -> dict[int, list[Head]]:
    collectives = _Collectives(queues)
    return {
        rank: [_p2p_head(op, queues) if op.peer >= 0 else collectives.head(op) for op in queues.heads(rank)]
        for rank in queues.first
    }


def _dues(heads: Mapping[int, Sequence[Head]]) -> list[Due]:
    """Return each rank that others wait for in a collective, with what it waits in itself."""
    found: dict[tuple[int, Key], None] = {}
    for head in (head for own in heads.values() for head in own if head.op.peer < 0):
        for rank in head.never:
            if rank in heads:
                found[rank, Key(head.op.group, head.op.sequence)] = None
    return [Due(rank, [h.op for h in heads[rank]], owed) for rank, owed in found]


class _Collectives:
    """Finds what each member did about a collective, once for all who wait in it."""

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
        return ("behind",) if queues.place(member, key) > queues.first.get(member, 1 << 62) else ()


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
    """Return where the peer issued the other end, if that is listed; else whether it must have, and is done with it.

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
