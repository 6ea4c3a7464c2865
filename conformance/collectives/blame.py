"""Says whose fault it is that a recorded job is broken, or stands still: a table of cases, each with its strength.

Two questions have a table each. Members issued one operation unlike: whose doing is that? An operation can be finished
by nobody: who is in the way? A *culprit* is a rank without which nothing explains the recording, under the assumptions
of docs/diagnosis.md; a rank without a recording can be anywhere. A *suspect* may be to blame, and may not be.

Left out: finding the operations (`mismatches`, `stall`), and saying it (`diagnose`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...traces.collectives import Ended, Recording
from ..cases import Table
from ..diagnosis import Accusation, Strength
from .alignment import Key
from .history import Break, expected, first_break
from .off_by_one import OutOfStep, out_of_step_in
from .sibling_ranks import Order
from .stall import Head, Standstill

CULPRIT, SUSPECT = Strength.CULPRIT, Strength.SUSPECT
HABIT = 8
"""A stretch must have come so often before it tells what comes after it: the first steps are nobody's habit."""
Value = tuple[object, ...]
"""Names the fields that all who take part must agree on."""


# ── members that issued unlike ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Unlike:
    """Holds one operation that those who take part in it did not issue alike."""

    given: Mapping[int, Value]
    """Rank to what it issued."""
    size: int
    """Counts those who take part, recorded or not."""
    siblings: Callable[[], Value | None]
    """Asks what sibling groups issued at that place, where they agree and somebody here did likewise."""
    past: Callable[[], Sequence[Value]]
    """Asks what was issued there before, oldest first."""
    order: Order

    @cached_property
    def usual(self) -> Value | None:
        """Return what more than half of all who take part issued."""
        [(value, count)] = Counter(self.given.values()).most_common(1)
        return value if 2 * count > self.size and self.size > 2 else None

    def others_than(self, value: Value | None) -> tuple[int, ...]:
        """Return who issued something else."""
        return () if value is None else tuple(rank for rank, own in self.given.items() if own != value)


@dataclass(frozen=True)
class Alone:
    """Holds what a rank's own recording shows, without any other."""

    contradicting: tuple[int, ...] = ()
    """Ranks whose recording contradicts itself."""
    raised: tuple[int, ...] = ()
    """Ranks that ended by an exception, with nobody waiting for them and they for nobody."""


ALONE: Table[Alone] = Table("A rank's own recording shows it")


@ALONE.case(
    "recording-contradicts-itself",
    CULPRIT,
    when="entries are missing between others, a sequence number comes twice, falls, or is left out",
    needs="a recorder numbers what it writes; a ring drops its oldest entries alone, and none before it is full",
)
def recording_contradicts_itself(e: Alone) -> Iterable[int]:
    return e.contradicting


@ALONE.case(
    "raised",
    CULPRIT,
    when="a rank ended by an exception, and nobody waits for it",
    needs="its own end says so",
)
def raised(e: Alone) -> Iterable[int]:
    return e.raised


UNLIKE: Table[Unlike] = Table("Members issued one operation unlike")


@UNLIKE.case(
    "unlike-the-majority",
    CULPRIT,
    when="a member issued another kind, dtype, size or root than more than half of all members",
    needs="they are recorded, and agree: ranks without a recording count as if they agreed with the odd one",
)
def unlike_the_majority(e: Unlike) -> Iterable[int]:
    return e.others_than(e.usual)


@UNLIKE.case(
    "unlike-sibling-groups",
    CULPRIT,
    when="no majority; sibling groups, of ranks that run the same program, issued what one of the members did",
    needs="the ranks of sibling groups run the same program, and those that are recorded agree",
)
def unlike_sibling_groups(e: Unlike) -> Iterable[int]:
    return e.others_than(e.siblings())


@UNLIKE.case(
    "unlike-the-past",
    CULPRIT,
    when="no majority, no siblings; all that they issued had come there twice before, and after what was issued there "
    "last, eight times at least, there always came what one of them issued",
    needs="programs are loops, but the first steps of a run are nobody's habit",
)
def unlike_the_past(e: Unlike) -> Iterable[int]:
    odd = e.others_than(expected(e.past(), set(e.given.values()), HABIT))
    return odd if 2 * len(odd) <= len(e.given) else ()


@UNLIKE.case(
    "more-or-fewer-than-siblings",
    CULPRIT,
    when="none of these; when a member came to a place, it had issued more or fewer operations than two ranks at least "
    "that run the same program had there",
    needs="those agree with each other",
)
def more_or_fewer(e: Unlike) -> Iterable[int]:
    odd = e.order.astray(e.given)
    return odd if len(odd) == 1 else ()


@UNLIKE.case(
    "unlike-each-other",
    SUSPECT,
    when="none of these: nothing tells which member is right",
    needs="the recordings of the other members, or of sibling groups, would tell",
)
def unlike_each_other(e: Unlike) -> Iterable[int]:
    return e.given


# ── operations that nobody can finish ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stuck:
    """Holds a job that stands still: which rank waits for which, and what is known besides."""

    still: Standstill
    in_protocol: Callable[[Key], bool] = lambda key: False
    """Asks whether a collective is one that the tables of a protocol have there, which the ranks follow."""

    @cached_property
    def slip(self) -> OutOfStep | None:
        """Return the one rank that is out of step in a group in which others are left waiting."""
        heads = (head for own in self.still.heads.values() for head in own)
        groups = {head.op.group for head in heads if head.op.peer < 0 and head.never}
        slips = [slip for group in sorted(groups) if (slip := out_of_step_in(self.recording, group)) is not None]
        return slips[0] if len(slips) == 1 else None

    @property
    def recording(self) -> Recording:
        return self.still.recording

    @cached_property
    def devices(self) -> frozenset[int]:
        """Return the ranks whose own device did not do what others' did, if anybody waits for one of them."""
        return frozenset(self.still.stuck) if self.still.stuck.keys() & self.still.awaited else frozenset()

    @cached_property
    def astray(self) -> tuple[int, ...]:
        """Return the ranks that skipped something or did something extra, and so wait, or are awaited, out of step."""
        if self.devices:
            return ()
        circles = self.closed or (self.still.circles if self.still.unseen else ())
        return self.still.order.astray({*self.still.leaves, *circles, *self.few})

    @cached_property
    def closed(self) -> tuple[int, ...]:
        """Return the circle of ranks that wait for each other, where nobody else is in the way."""
        return () if self.devices or self.still.leaves or self.still.unseen else self.still.circle

    @cached_property
    def few(self) -> frozenset[int]:
        """Return the ranks that wait in what at least as many members never issued.

        They may be out of step themselves.
        """
        return frozenset(
            rank
            for rank, own in self.still.heads.items()
            if any(2 * len(h.never) >= len(self.still.members(h.op)) for h in own)
        )

    def goes_on(self, rank: int) -> bool:
        """Return true if a rank that waits in nothing is certainly not where its program ends: the others go on.

        More than half of the members issued what is due from it, or a sibling group did, or several wait for it in
        different groups, or a protocol has it there, or ranks that run its program went further than it did, or it was
        killed or raised.
        """
        record = self.recording.ranks[rank]
        if record.ended in (Ended.FAILED, Ended.OPEN):
            return True
        owed = self.still.waiting_for(rank)
        return (
            any(self.in_order(head) or self.still.order.issued_by_siblings(head.op, rank) for head in owed)
            or len({head.op.group for head in owed}) > 1 < len({head.op.rank for head in owed})
            or self.still.order.passed(rank, {head.op.group for head in owed})
        )

    def in_order(self, head: Head) -> bool:
        """Return true if an operation has its place in the program: most members issued it, or a protocol has it."""
        by_most = 2 * len(self.still.issuers(head)) > len(self.still.members(head.op)) > 2
        return by_most or (head.op.peer < 0 and self.in_protocol(Key(head.op.group, head.op.sequence)))

    @cached_property
    def broke(self) -> Mapping[int, Break]:
        """Return where the ranks of a circle left their own order, if that tells them apart."""
        records = [self.recording.ranks[rank] for rank in self.closed]
        if any(record.pending_only for record in records):  # they have no past
            return {}
        done = {record.rank: record.ops[list(SAME)].tolist() for record in records}
        breaks = {rank: at for rank, ops in done.items() if (at := first_break(ops)) is not None}
        return breaks if len(breaks) < len(self.closed) else {}

    @cached_property
    def decided(self) -> frozenset[int]:
        """Return the ranks that some case holds to be culprits."""
        return frozenset(a.rank for a in culprits_of(self))


SAME = ("group", "signature", "site", "peer", "tag")
"""Names the fields that make two operations of a rank the same."""

STUCK: Table[Stuck] = Table("Nobody can finish an operation")


@STUCK.case(
    "found-dead-by-a-peer",
    CULPRIT,
    when="a rank ends because it found that the process of another one had ended, whose trace has no end",
    needs="it was seen to be gone, by whoever watches over it; then no other case is asked",
)
def found_dead(e: Stuck) -> Iterable[int]:
    ranks = e.recording.ranks
    named = {record.found_dead for record in ranks.values()}
    return (rank for rank in named if rank in ranks and ranks[rank].ended is Ended.OPEN)


@STUCK.case(
    "out-of-step-by-place",
    CULPRIT,
    when="from some number on, a rank's places in the source are those of all other members, one number later "
    "or earlier",
    needs="more than half of all members are recorded and agree; then no other case is asked",
)
def out_of_step_by_place(e: Stuck) -> Iterable[int]:
    return () if e.slip is None else (e.slip.op.rank,)


@STUCK.case(
    "more-or-fewer-than-siblings",
    CULPRIT,
    when="when a rank came to a place, it had issued more or fewer operations than two ranks at least that run "
    "the same program had there; or it waits beyond the last of theirs, and they came to their end",
    needs="those agree with each other; then no other case is asked",
)
def out_of_step(e: Stuck) -> Iterable[int]:
    return e.astray if len(e.astray) == 1 else ()


@STUCK.case(
    "device-did-not-do-what-others-did",
    CULPRIT,
    when="a rank has not finished a collective that nobody can finish without it, and another one has; or what all "
    "others have finished; or has not started, with nothing before it, what others have started",
    needs="the others saw it take part, or its queue is free: it is its own device, or its watchdog",
)
def device(e: Stuck) -> Iterable[int]:
    return e.devices


@STUCK.case(
    "host-stands-still",
    CULPRIT,
    when="others wait for a rank that waits in nothing, and its program goes on: more than half of all members issued "
    "what is due from it, or of a sibling group did, or others wait for it in several groups, or a protocol that the "
    "ranks follow has it there, or ranks that run its program went further, or it was killed or raised",
    needs="nothing that is recorded holds it up, and those who wait did not all do one too many",
)
def host(e: Stuck) -> Iterable[int]:
    return (rank for rank in e.still.leaves if rank not in e.still.free and e.goes_on(rank))


@STUCK.case(
    "not-held-up",
    CULPRIT,
    when="others wait for a rank that waits itself, but a rank that runs its program, with the very same operations "
    "pending, did issue its own counterpart of what is due",
    needs="what is pending keeps nobody's host from going on",
)
def not_held_up(e: Stuck) -> Iterable[int]:
    return (rank for rank in e.still.leaves if rank in e.still.free)


@STUCK.case(
    "known-to-have-ended",
    CULPRIT,
    when="others wait for a rank without a recording, and other evidence says that it ended",
    needs="it will never do what is due from it",
)
def known_to_have_ended(e: Stuck) -> Iterable[int]:
    return (rank for rank in e.still.unseen if rank in e.recording.died)


@STUCK.case(
    "left-its-own-order",
    CULPRIT,
    when="ranks wait for each other in a circle, and one of them did at last what had never come after what was "
    "before it, while the others went on as ever",
    needs="programs are loops, and somebody in a circle has left the order",
)
def left_its_own_order(e: Stuck) -> Iterable[int]:
    return e.broke


@STUCK.case(
    "circle",
    SUSPECT,
    when="ranks wait for each other in a circle, and nothing tells who left the order; or some of them wait for a "
    "rank without a recording as well",
    needs="somebody in a circle has, unless that rank holds it up; recordings that reach further back, or of ranks "
    "that run the same program, would tell",
)
def circle(e: Stuck) -> Iterable[int]:
    return () if e.decided else e.closed or (e.still.circles if e.still.unseen else ())


@STUCK.case(
    "not-recorded",
    SUSPECT,
    when="others wait for a rank of which there is no recording, or whose file is torn",
    needs="it may wait itself, stand still, or be gone: its recording would tell",
)
def not_recorded(e: Stuck) -> Iterable[int]:
    return _unexplained(e) if e.decided else _anywhere(e)


@STUCK.case(
    "one-too-many-or-one-too-few",
    SUSPECT,
    when="ranks, no more than half of the members, wait for others that are not known to have it before them",
    needs="these may stand still, or those may have done one too many: how the ranks ended, or stacks, would tell",
)
def one_too_many_or_too_few(e: Stuck) -> Iterable[int]:
    if e.decided:
        return ()
    doubtful = {rank for rank in e.still.leaves if not e.goes_on(rank)}
    heads = [head for own in e.still.heads.values() for head in own]
    doubted = [h for h in heads if (doubtful | e.still.unseen) & {*h.waits_for} and not e.in_order(h)]
    return doubtful | {rank for head in doubted for rank in e.still.issuers(head)}


@STUCK.case(
    "waits-in-nothing",
    SUSPECT,
    when="a rank waits in nothing, and others wait for ranks without a recording",
    needs="these may wait for it: their recordings would tell",
)
def waits_in_nothing(e: Stuck) -> Iterable[int]:
    if e.decided or not e.still.unseen:
        return ()
    ranks = e.recording.ranks
    return {r for r in ranks if r not in e.still.queues.first and ranks[r].ended is not Ended.STOPPED}


@STUCK.case(
    "in-the-same-operation",
    SUSPECT,
    when="all who are recorded issued an operation, nothing stands before it, and none finished it, or not all did "
    "what one can finish without the others",
    needs="any member's device may stand still, or the network; start times would tell",
)
def in_the_same_operation(e: Stuck) -> Iterable[int]:
    heads = () if e.decided else (*e.still.joint, *_entered_by_all_seen(e), *_finished_by_some(e))
    return {rank for head in heads for rank in e.still.members(head.op)}


@STUCK.case(
    "has-not-finished",
    SUSPECT,
    when="a rank has not finished what others have finished, and nobody waits for it",
    needs="its device stands still, or its recorder had not noticed yet",
)
def has_not_finished(e: Stuck) -> Iterable[int]:
    return () if e.decided or e.devices else e.still.stuck


def culprits_of(e: Stuck) -> tuple[Accusation, ...]:
    """Return what the cases say that name culprits; of several, a rank is named by the first."""
    if alone := STUCK.first(e, (found_dead, out_of_step_by_place, out_of_step)):
        return alone
    return _merged(case(e) for case in STUCK.cases if case.strength is CULPRIT)


def accused_of(e: Stuck) -> tuple[Accusation, ...]:
    """Return all ranks that the table names, each by the first case that does."""
    suspects = [case(e) for case in STUCK.cases if case.strength is SUSPECT]
    return _merged([culprits_of(e), *suspects])


def _merged(named: Iterable[Iterable[Accusation]]) -> tuple[Accusation, ...]:
    by_rank: dict[int, Accusation] = {}
    for accusations in named:
        for accusation in accusations:
            by_rank.setdefault(accusation.rank, accusation)
    return tuple(by_rank[rank] for rank in sorted(by_rank))


def _unexplained(e: Stuck) -> Iterator[int]:
    """Yield the ranks without a recording that are awaited, and that no known culprit need have held up.

    One is explained if it belongs into a collective that others never issued, or if whoever waits for it is held up by
    something before.
    """
    every = [head for own in e.still.heads.values() for head in own]
    for rank in e.still.unseen - e.decided:
        due = any(rank in e.still.members(h.op) and h.never and h.op.peer < 0 for h in every)
        later = all(h.op.at > e.still.queues.first[h.op.rank] for h in every if rank in h.absent)
        if not (due or later):
            yield rank


def _anywhere(e: Stuck) -> frozenset[int]:
    """Return the ranks without a recording that may be at the root: those awaited, and all that these may wait for."""
    if not e.still.unseen:
        return frozenset()
    everybody = frozenset(range(e.recording.world))
    return e.still.unseen | (everybody - e.recording.ranks.keys())


def _entered_by_all_seen(e: Stuck) -> Iterator[Head]:
    """Yield the operations that every recorded member issued, and in which others are not recorded."""
    for rank, own in e.still.heads.items():
        for head in own:
            first = head.op.at == e.still.queues.first[rank]
            if first and head.absent and not head.never and not head.unsure and not head.finished:
                yield head


def _finished_by_some(e: Stuck) -> Iterator[Head]:
    """Yield the operations that some finished and others did not, where that says nothing of the others' devices."""
    for rank, own in e.still.heads.items():
        first = e.still.queues.first[rank]
        yield from (h for h in own if h.op.at == first and h.finished and not h.waits_for and rank not in e.still.stuck)


def broken_off(recording: Recording, still: Standstill) -> tuple[int, ...]:
    """Return the ranks that ended by an exception of their own, with nobody waiting for them and they for nobody."""
    failed = (rank for rank, record in recording.ranks.items() if record.ended is Ended.FAILED)
    return tuple(rank for rank in failed if rank not in still.queues.first)
