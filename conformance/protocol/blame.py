"""Says whose fault a divergence of a protocol is: a table of cases, each with its strength.

Two questions have a table each. A rank left its table, or ranks do not fit together: whose doing is that? Ranks were
left waiting or lost a peer, and none left its table: who is missed?

Left out: finding the divergence (`replay_rank`, `match_ranks`), and which came first (`diagnose`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...traces.outcome import Difference
from ..cases import Table
from ..diagnosis import Divergence, Strength
from .failure_modes import ACKS, accused_by_check, changed_weights, text_alone
from .match_ranks import Matched, UnlikePart, roots_of
from .replay_rank import RankReplay

CULPRIT, SUSPECT = Strength.CULPRIT, Strength.SUSPECT
LOST = "peer_lost"
COMPARED = ("parity_differs", "acks_differ")
REJECTED = ("reject_header", "reject_envelope")


@dataclass(frozen=True)
class Broken:
    """Holds a divergence, and the ranks that were replayed."""

    divergence: Divergence
    ranks: Mapping[int, RankReplay]

    @property
    def disputed(self) -> tuple[int, ...]:
        """Return the ranks whose doing it may be, where the parts of a collective do not fit."""
        return self.divergence.accused if isinstance(self.divergence, UnlikePart) else ()

    @property
    def world(self) -> int:
        return self.ranks[self.divergence.rank].trace.header.world

    @cached_property
    def named(self) -> tuple[int, ...]:
        """Return the ranks that a failed comparison names."""
        return () if isinstance(self.divergence, UnlikePart) else accused_by_check(self.divergence, self.world)

    @cached_property
    def changed(self) -> tuple[int, ...]:
        """Return the ranks whose weights are not those of their own start-up."""
        return changed_weights(told_of_acks(self.ranks))

    @cached_property
    def sender(self) -> tuple[int, ...]:
        """Return whose doing it can be that this rank rejects what it was given: the root's, or its own."""
        if isinstance(self.divergence, UnlikePart) or self.named or self.divergence.facts.transition not in REJECTED:
            return ()
        return _sender(self.ranks[self.divergence.rank], self.divergence.state, self.ranks)


WHOSE: Table[Broken] = Table("A rank left its table, or ranks do not fit together")


@WHOSE.case(
    "changed-weights",
    CULPRIT,
    when="ranks' acks disagree, and some of these ranks have other weights than at their own start-up",
    needs="a rank's weights are held against what it said of them itself, so that no third rank is needed",
)
def changed_weights_of_its_own(e: Broken) -> Iterable[int]:
    disagree = len(e.disputed) > 1 and e.divergence.facts.transition in ACKS
    return e.changed if disagree and set(e.changed) < set(e.disputed) else ()


@WHOSE.case(
    "unlike-the-majority",
    CULPRIT,
    when="a rank's part in a collective differs from that of more than half of the members, "
    "or one end of a broadcast from what all others were given",
    needs="the others were recorded, and agree",
)
def unlike_the_majority(e: Broken) -> Iterable[int]:
    return e.disputed if len(e.disputed) == 1 else ()


@WHOSE.case(
    "unlike-each-other",
    SUSPECT,
    when="the parts in a collective disagree, and none is that of more than half",
    needs="nothing tells which of them is right: a third rank would",
)
def unlike_each_other(e: Broken) -> Iterable[int]:
    return e.disputed


@WHOSE.case(
    "named-by-a-comparison",
    CULPRIT,
    when="a check that compares ranks (parity, acks) found one of three or more to be odd",
    needs="the check saw all ranks, and the others agree",
)
def named_by_a_comparison(e: Broken) -> Iterable[int]:
    return e.named if len(e.named) == 1 and e.world > 2 else ()


@WHOSE.case(
    "tied-comparison",
    SUSPECT,
    when="a check that compares ranks found as many to have the one as the other, or several to be odd",
    needs="nothing tells which of them is right: a third rank would",
)
def tied_comparison(e: Broken) -> Iterable[int]:
    return {*e.named, e.divergence.rank} if e.named and e.world == 2 else e.named


@WHOSE.case(
    "sender",
    CULPRIT,
    when="a rank rejects a header or payload, and it is recorded that the root sent it, or others were given the same",
    needs="what was rejected is what was sent",
)
def sender(e: Broken) -> Iterable[int]:
    return e.sender if len(e.sender) == 1 else ()


@WHOSE.case(
    "sender-or-receiver",
    SUSPECT,
    when="a rank rejects a header or payload, and neither the root nor another rank shows what was sent",
    needs="the root's trace, or that of another receiver, would tell",
)
def sender_or_receiver(e: Broken) -> Iterable[int]:
    return e.sender


@WHOSE.case(
    "left-its-table",
    CULPRIT,
    when="a rank's own trace has an event that its table does not allow, or says that the rank raised",
    needs="its trace and the table alone show it",
)
def left_its_table(e: Broken) -> Iterable[int]:
    if isinstance(e.divergence, UnlikePart) or (e.divergence.facts.transition in COMPARED and text_alone(e.divergence)):
        return ()  # a comparison of which only the text is known says nothing of the rank that made it
    return (e.divergence.rank,)


# ── nobody left its table, and ranks were left waiting or lost a peer ───────────────────────────────────


@dataclass(frozen=True)
class Missed:
    """Holds the ranks that noticed that another is missing, or stand where they wait for it."""

    noticed: Sequence[Divergence]
    ranks: Mapping[int, RankReplay]
    matched: Matched

    @cached_property
    def roots(self) -> frozenset[int]:
        """Return the roots of the wait-for graph."""
        return frozenset(roots_of(self.matched.unfinished))

    @cached_property
    def untraced(self) -> frozenset[int]:
        """Return the roots of which there is no trace to that point: they may have waited themselves."""
        return frozenset(self.roots - self.ranks.keys()) | (self.roots & self.matched.torn)

    @cached_property
    def silent(self) -> frozenset[int]:
        """Return the ranks whose trace has no end marker."""
        return frozenset(r for r in self.ranks if self.ranks[r].trace.end is None)

    @cached_property
    def losers(self) -> frozenset[int]:
        """Return the ranks that say that they lost a peer."""
        return frozenset(d.rank for d in self.noticed if d.facts.transition == LOST)

    @cached_property
    def by_guardians(self) -> frozenset[int]:
        """Return the ranks that guardians blame in end markers."""
        ends = (replayed.trace.end for replayed in self.ranks.values())
        return frozenset(end.culprit for end in ends if end and end.culprit is not None)


MISSED: Table[Missed] = Table("No rank left its table, and ranks were left waiting or lost a peer")


@MISSED.case(
    "named-by-a-guardian",
    CULPRIT,
    when="a guardian blames a rank in an end marker",
    needs="the guardian saw it end, or its deadline pass",
)
def named_by_a_guardian(e: Missed) -> Iterable[int]:
    return e.by_guardians


@MISSED.case(
    "root-of-the-waits",
    CULPRIT,
    when="others wait for a rank that waits for nobody, that did not lose a peer itself, and whose trace is there",
    needs="its trace shows that it did not come to what the others wait in",
)
def root_of_the_waits(e: Missed) -> Iterable[int]:
    if e.untraced or (e.silent and e.roots & e.losers):
        return ()
    return e.roots


@MISSED.case(
    "untraced-or-silent",
    SUSPECT,
    when="others wait for a rank of which there is no trace",
    needs="it may have waited itself, for one that fell silent: its trace would tell",
)
def untraced_or_silent(e: Missed) -> Iterable[int]:
    return (e.roots - e.losers if e.silent else e.roots) | e.silent if e.untraced else ()


@MISSED.case(
    "fell-silent",
    CULPRIT,
    when="others lost a peer, one rank's trace has no end marker, and whom they wait for lost a peer as well",
    needs="a rank that ends by itself writes its end; one that lost a peer was left itself",
)
def fell_silent(e: Missed) -> Iterable[int]:
    left = (e.roots - e.losers) | e.silent
    return left if len(left) == 1 else ()


@MISSED.case(
    "several-silent",
    SUSPECT,
    when="others lost a peer, and several ranks' traces have no end marker",
    needs="the launcher's word, or the guardians', would tell which of them ended first",
)
def several_silent(e: Missed) -> Iterable[int]:
    return (e.roots - e.losers) | e.silent


@MISSED.case(
    "own-deadline",
    CULPRIT,
    when="a rank's own deadline passed, and it waited for nobody",
    needs="its clock runs only while it works itself",
)
def own_deadline(e: Missed) -> Iterable[int]:
    waiting = {u.rank for u in e.matched.unfinished}
    return {d.rank for d in e.noticed} - e.losers - waiting


def differing_acks(ranks: Mapping[int, RankReplay]) -> Iterator[Divergence]:
    """Yield the failures in which rank0 found acks that differ."""
    failures = (r.failure for r in ranks.values() if r.failure is not None)
    return (failure for failure in failures if failure.facts.transition == "acks_differ")


def told_of_acks(ranks: Mapping[int, RankReplay]) -> tuple[Difference, ...]:
    """Return what rank0 found wrong with the acks."""
    outcomes = (failure.facts.outcome for failure in differing_acks(ranks))
    return tuple(d for outcome in outcomes if outcome for d in outcome.differences)


def _sender(replayed: RankReplay, state: str, ranks: Mapping[int, RankReplay]) -> tuple[int, ...]:
    """Return who sent what a rank rejects in this state.

    Where it is not recorded what was sent, it may have got lost here, unless another rank was given the same.
    """
    rank = replayed.trace.rank
    root = next((row.op.root or 0 for row in replayed.role.rows if row.target == state and row.op), 0)
    taken = replayed.meetings[-1] if replayed.meetings and not replayed.gap else None
    if taken is None:
        return tuple(sorted({root, rank}))
    given = {
        r: m.exited.data
        for r, other in ranks.items()
        for m in other.meetings
        if m.exited and (m.group, m.sequence) == (taken.group, taken.sequence)
    }
    alike = any(r not in (root, rank) and rank in given and data == given[rank] for r, data in given.items())
    return (root,) if root in given or alike else tuple(sorted({root, rank}))
