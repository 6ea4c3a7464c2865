"""Each case of blame in recordings of collectives: what it asks for, whom it names, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from genlock.conformance.collectives.blame import (
    ALONE,
    HABIT,
    STUCK,
    UNLIKE,
    Alone,
    Stuck,
    Unlike,
    accused_of,
    broken_off,
)
from genlock.conformance.collectives.diagnose import diagnose
from genlock.conformance.collectives.queues import Progress, Queues
from genlock.conformance.collectives.send_recv import Pairs
from genlock.conformance.collectives.sibling_ranks import Order, SameProgram
from genlock.conformance.collectives.stall import Standstill
from genlock.conformance.diagnosis import Strength
from genlock.traces.collectives import OPS, Ended, Group, RankRecord, Recording, Signature, Status

DONE, ISSUED, STARTED = Status.COMPLETED, Status.ISSUED, Status.STARTED
CULPRIT, SUSPECT = Strength.CULPRIT, Strength.SUSPECT
KINDS = ("all_reduce", "broadcast", "barrier", "send", "recv")
SIGNATURES = [Signature(kind, "Float", 8, 8, 0 if kind == "broadcast" else -1) for kind in KINDS]
Part = tuple[int, str, Status]
"""Group, kind, and how far it came."""
WORLD = Group("0", "default_pg", (0, 1, 2, 3))
COUPLES = [Group("1", "TP", (0, 1)), Group("2", "TP", (2, 3))]


def record(rank: int, parts: Sequence[Part], ended: Ended = Ended.UNSAID, site: Sequence[int] = ()) -> RankRecord:
    ops = np.zeros(len(parts), OPS)
    counts: dict[int, int] = {}
    for at, (group, kind, status) in enumerate(parts):
        counts[group] = counts.get(group, 0) + 1
        place = site[at] if site else 0
        ops[at] = (at, at + 1, counts[group], group, KINDS.index(kind), place, -1, 0, status)
    return RankRecord(rank, Path(f"trace_{rank}"), ops, lost=False, pending_only=False, ended=ended)


def recording(
    parts: Mapping[int, Sequence[Part]],
    groups: Sequence[Group] = (WORLD,),
    ended: Mapping[int, Ended] | None = None,
    died: Mapping[int, str] | None = None,
    sites: Mapping[int, Sequence[int]] | None = None,
) -> Recording:
    world = max(rank for group in groups for rank in group.members) + 1
    records = {
        rank: record(rank, own, (ended or {}).get(rank, Ended.UNSAID), (sites or {}).get(rank, ()))
        for rank, own in parts.items()
    }
    places = ["", "job.py:1", "job.py:2", "job.py:3", "job.py:4"]
    return Recording("test", world, groups, SIGNATURES, places, records, died=died or {})


def stuck(recorded: Recording) -> Stuck:
    order = Order(Queues(recorded, Progress(recorded), Pairs(recorded)), SameProgram(recorded))
    return Stuck(Standstill(recorded, order))


def said(recorded: Recording) -> dict[int, tuple[str, Strength]]:
    return {a.rank: (a.case, a.strength) for a in accused_of(stuck(recorded))}


def sums(n: int, last: Status = DONE, group: int = 0) -> list[Part]:
    return [(group, "all_reduce", DONE)] * (n - 1) + [(group, "all_reduce", last)]


# ── what a rank's own recording shows ───────────────────────────────────────────────────────────────────


def test_recording_contradicts_itself() -> None:
    twice = recording(dict.fromkeys(range(4), sums(3)))
    twice.ranks[2].ops["sequence"][2] = 2
    found = diagnose(twice)
    assert [(a.rank, a.case) for a in found.accused] == [(2, "recording-contradicts-itself")]
    assert ALONE.first(Alone(contradicting=(2,)))[0].strength is CULPRIT


def test_raised() -> None:
    ended = recording(dict.fromkeys(range(4), sums(3)), ended={1: Ended.FAILED})
    alone = broken_off(ended, stuck(ended).still)
    assert alone == (1,)
    assert [(a.rank, a.case, a.strength) for a in ALONE.first(Alone(raised=alone))] == [(1, "raised", CULPRIT)]


# ── members that issued unlike ──────────────────────────────────────────────────────────────────────────


class Nobody(Order):
    """An order in which nobody is astray."""

    def __init__(self, *astray: int) -> None:
        self.ranks = astray

    def astray(self, suspects: object) -> tuple[int, ...]:
        return self.ranks


def unlike(
    given: Mapping[int, str], size: int, sibling: str = "", past: str = "", astray: tuple[int, ...] = ()
) -> tuple[str, Strength, tuple[int, ...]]:
    evidence = Unlike(
        {rank: (value,) for rank, value in given.items()},
        size,
        lambda: (sibling,) if sibling else None,
        lambda: [(value,) for value in past],
        Nobody(*astray),
    )
    named = UNLIKE.first(evidence)
    assert len({(a.case, a.strength) for a in named}) == 1
    return named[0].case, named[0].strength, tuple(a.rank for a in named)


def test_unlike_the_majority() -> None:
    assert unlike({0: "a", 1: "a", 2: "b"}, 3) == ("unlike-the-majority", CULPRIT, (2,))


def test_a_member_without_a_recording_may_agree_with_the_odd_one() -> None:
    assert unlike({0: "a", 1: "a", 2: "b"}, 4) == ("unlike-each-other", SUSPECT, (0, 1, 2))


def test_unlike_sibling_groups() -> None:
    assert unlike({0: "a", 1: "b"}, 2, sibling="a") == ("unlike-sibling-groups", CULPRIT, (1,))


def test_unlike_the_past() -> None:
    assert unlike({0: "a", 1: "b"}, 2, past="cba" * HABIT + "c" + "da" * HABIT + "d") == (
        "unlike-the-past",
        CULPRIT,
        (1,),
    )


@pytest.mark.parametrize(
    "past", ["a" * HABIT, "b" + "a" * HABIT, "ab" + "a" * HABIT, "cd" * HABIT + "ca" * HABIT + "c"]
)
def test_what_did_not_come_twice_before_may_be_due_for_the_first_time(past: str) -> None:
    assert unlike({0: "a", 1: "b"}, 2, past=past) == ("unlike-each-other", SUSPECT, (0, 1))


def test_the_first_steps_of_a_run_are_nobodys_habit() -> None:
    past = "cbcb" + "da" * (HABIT - 1) + "d"
    assert unlike({0: "a", 1: "b"}, 2, past=past) == ("unlike-each-other", SUSPECT, (0, 1))
    assert unlike({0: "a", 1: "b"}, 2, past=f"{past}ad")[0] == "unlike-the-past"


def test_more_or_fewer_than_siblings() -> None:
    assert unlike({0: "a", 1: "b"}, 2, astray=(1,)) == ("more-or-fewer-than-siblings", CULPRIT, (1,))
    assert unlike({0: "a", 1: "b"}, 2, astray=(0, 1)) == ("unlike-each-other", SUSPECT, (0, 1))


def test_unlike_each_other() -> None:
    assert unlike({0: "a", 1: "b"}, 2) == ("unlike-each-other", SUSPECT, (0, 1))


# ── operations that nobody can finish ───────────────────────────────────────────────────────────────────


def test_host_stands_still() -> None:
    """Three of four wait; whoever else may be missing, rank1 waits in nothing."""
    waiting = sums(4, ISSUED)
    assert said(recording({0: waiting, 1: sums(3), 2: waiting, 3: waiting})) == {1: ("host-stands-still", CULPRIT)}


@pytest.mark.parametrize("frozen", [2, 3])
def test_where_no_more_than_half_wait_it_is_one_too_many_or_one_too_few(frozen: int) -> None:
    """As when a shared file system fails all ranks but one."""
    parts = {rank: sums(3) if rank < frozen else sums(4, ISSUED) for rank in range(4)}
    assert said(recording(parts)) == dict.fromkeys(range(4), ("one-too-many-or-one-too-few", SUSPECT))
    found = diagnose(recording(parts))
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert [m.kind.value for m in found.missing] == ["ending"]


def test_of_two_ranks_nothing_tells_unless_one_was_killed() -> None:
    two = [Group("0", "default_pg", (0, 1))]
    parts = {0: sums(4, ISSUED), 1: sums(3)}
    stopped = said(recording(parts, two, {1: Ended.STOPPED}))
    assert stopped == dict.fromkeys((0, 1), ("one-too-many-or-one-too-few", SUSPECT))
    for ended in (Ended.FAILED, Ended.OPEN):
        assert said(recording(parts, two, {1: ended})) == {1: ("host-stands-still", CULPRIT)}


def test_a_sibling_group_shows_that_an_operation_is_in_the_program() -> None:
    parts: dict[int, list[Part]] = {0: sums(2, ISSUED, 1), 1: sums(1, DONE, 1)}
    siblings: dict[int, list[Part]] = {2: sums(2, DONE, 2), 3: sums(2, DONE, 2)}
    groups = [WORLD, *COUPLES]
    assert said(recording(parts | siblings, groups)) == {1: ("host-stands-still", CULPRIT)}
    behind: dict[int, list[Part]] = {2: sums(1, DONE, 2), 3: sums(1, DONE, 2)}
    assert said(recording(parts | behind, groups)) == {
        0: ("one-too-many-or-one-too-few", SUSPECT),
        1: ("one-too-many-or-one-too-few", SUSPECT),
    }


def test_a_minority_that_waits_is_believed_where_a_protocol_has_the_operation_there() -> None:
    recorded = recording({0: sums(4, ISSUED), 1: sums(3)}, [Group("0", "default_pg", (0, 1))])
    evidence = Stuck(stuck(recorded).still, in_protocol=lambda key: True)
    assert [(a.rank, a.case) for a in accused_of(evidence)] == [(1, "host-stands-still")]


def test_known_to_have_ended() -> None:
    waiting = dict.fromkeys((0, 2, 3), sums(4, ISSUED))
    assert said(recording(waiting, died={1: "killed by signal 9"})) == {1: ("known-to-have-ended", CULPRIT)}


def test_not_recorded() -> None:
    """The very same dumps come from a job in which rank1 waits as well, and another member's device stands still."""
    found = diagnose(recording(dict.fromkeys((0, 2, 3), sums(4, ISSUED))))
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (0, 1, 2, 3))
    cases = {a.rank: a.case for a in found.accused}
    assert cases == {1: "not-recorded"} | dict.fromkeys((0, 2, 3), "in-the-same-operation")
    assert (found.missing[0].kind.value, found.missing[0].ranks) == ("recording", (1,))


def test_waits_in_nothing() -> None:
    """Rank2 waits for rank3, of which nothing is known: that one may wait for rank0, elsewhere."""
    groups = [WORLD, *COUPLES]
    found = said(recording({0: sums(3), 2: [*sums(3), (2, "all_reduce", ISSUED)]}, groups))
    assert found[0] == ("waits-in-nothing", SUSPECT)
    assert found[3] == ("not-recorded", SUSPECT)


def test_device_did_not_do_what_others_did() -> None:
    """Rank2 has not finished what the others have, and they wait for it in the next."""
    ahead: list[Part] = [*sums(3), (0, "all_reduce", ISSUED)]
    parts = {0: ahead, 1: ahead, 2: sums(3, ISSUED), 3: ahead}
    assert said(recording(parts)) == {2: ("device-did-not-do-what-others-did", CULPRIT)}
    started = {rank: sums(3, STARTED if rank != 2 else ISSUED) for rank in range(4)}
    evidence = stuck(recording(started))
    assert list(evidence.still.stuck) == [2]


def test_has_not_finished() -> None:
    parts = {rank: sums(3, ISSUED if rank == 2 else DONE) for rank in range(4)}
    found = diagnose(recording(parts))
    assert (found.verdict, [(a.rank, a.case) for a in found.accused]) == ("unknown", [(2, "has-not-finished")])


def test_in_the_same_operation() -> None:
    found = diagnose(recording({rank: sums(3, ISSUED) for rank in range(4)}))
    assert (found.verdict, found.suspects) == ("unknown", (0, 1, 2, 3))
    assert {a.case for a in found.accused} == {"in-the-same-operation"}
    assert [m.kind.value for m in found.missing] == ["start_times"]


def test_circle() -> None:
    """Each of two waits in a group in which the other has issued nothing: one has left the order, and which is open."""
    pair = (0, 1)
    groups = [Group("0", "", pair), Group("1", "", pair)]
    parts: dict[int, list[Part]] = {0: [(0, "all_reduce", ISSUED)], 1: [(1, "all_reduce", ISSUED)]}
    found = diagnose(recording(parts, groups))
    assert (found.verdict, found.culprits) == ("divergent", ())
    assert [(a.rank, a.case) for a in found.accused] == [(0, "circle"), (1, "circle")]


def test_left_its_own_order() -> None:
    """Both went round in one order three times; then rank1 begins with the other group."""
    pair = (0, 1)
    groups = [Group("0", "", pair), Group("1", "", pair)]
    rounds: list[Part] = [(0, "all_reduce", DONE), (1, "all_reduce", DONE)] * 3
    parts: dict[int, list[Part]] = {0: [*rounds, (0, "all_reduce", ISSUED)], 1: [*rounds, (1, "all_reduce", ISSUED)]}
    assert said(recording(parts, groups)) == {1: ("left-its-own-order", CULPRIT)}


def test_out_of_step_with_siblings() -> None:
    """When rank3 came to its second of the world, it had issued one fewer in its couple than the others had there."""
    step: list[Part] = [(1, "all_reduce", DONE), (0, "all_reduce", DONE)]
    groups = [WORLD, Group("1", "SOLO", (0, 1, 2, 3))]
    whole: list[Part] = [*step, (1, "all_reduce", ISSUED), (0, "all_reduce", ISSUED)]
    left_out: list[Part] = [*step, (0, "all_reduce", ISSUED)]
    found = said(recording({0: whole, 1: whole, 2: whole, 3: left_out}, groups))
    assert found == {3: ("more-or-fewer-than-siblings", CULPRIT)}
    ends = dict.fromkeys((0, 1, 2), Ended.STOPPED)
    beyond = recording({rank: sums(3) if rank < 3 else sums(4, ISSUED) for rank in range(4)}, ended=ends)
    assert said(beyond) == {3: ("more-or-fewer-than-siblings", CULPRIT)}


def test_out_of_step_by_place() -> None:
    """Equal reductions from two lines; rank1 leaves one out, and pairs with the wrong ones from there on."""
    sites = {0: (1, 2, 1, 2), 1: (1, 1, 2), 2: (1, 2, 1, 2), 3: (1, 2, 1, 2)}
    parts = {rank: sums(len(own), ISSUED if len(own) > 3 else DONE) for rank, own in sites.items()}
    assert said(recording(parts, sites=sites)) == {1: ("out-of-step-by-place", CULPRIT)}
    few = {rank: own for rank, own in parts.items() if rank < 3}
    assert 1 in said(recording(few, sites=sites))
    assert CULPRIT not in {strength for _, strength in said(recording(few, sites=sites)).values()}


def test_not_held_up() -> None:
    """Rank1 owes a sum to its couple, and waits asynchronously; rank3, with the same pending, issued its own."""
    waits: list[Part] = [(0, "all_reduce", ISSUED)]
    parts: dict[int, list[Part]] = {
        0: [*waits, (1, "all_reduce", ISSUED)],
        1: waits,
        2: [*waits, (2, "all_reduce", DONE)],
        3: [*waits, (2, "all_reduce", DONE)],
    }
    recorded = recording(parts, [Group("0", "default_pg", (0, 1, 2, 3, 4)), *COUPLES])
    assert said(recorded)[1] == ("not-held-up", CULPRIT)


def test_found_dead_by_a_peer() -> None:
    """Rank1 saw that rank0's process had ended; what has an end in its trace did not die, whoever says so."""
    parts = {0: sums(2), 1: sums(3, ISSUED), 2: sums(3, ISSUED), 3: sums(3, ISSUED)}
    for ended, case in ((Ended.OPEN, "found-dead-by-a-peer"), (Ended.STOPPED, None)):
        recorded = recording(parts, ended={0: ended})
        ranks = {**recorded.ranks, 1: replace(recorded.ranks[1], found_dead=0)}
        found = said(replace(recorded, ranks=ranks))
        assert (found[0][0] == "found-dead-by-a-peer") == (case is not None), found


def test_every_case_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    cases = [case.name for table in (ALONE, UNLIKE, STUCK) for case in table.cases]
    assert [name for name in dict.fromkeys(cases) if f'"{name}"' not in text] == []
