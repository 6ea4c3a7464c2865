"""Diagnosis of simulated hangs, truth known: exact culprits, or the set that the dumps cannot tell apart."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from graded import FORMS, diagnosed, grade
from hangs import FAULTS, P2P, Hang, Mesh, Rank, dumps, hang, program, run

SEEDS = range(1000, 1027)
"""No rule was made with these; docs/diagnosis.md has the figures of many more."""
STANDS_STILL = ("stall", "crash", "device_after")
OUT_OF_STEP = ("skip", "extra", "kind", "size")


@pytest.fixture(scope="module")
def grades() -> dict[tuple[str, str], Counter[str]]:
    """(fault, form) to how often the diagnosis was what; each hang is dumped in two forms, whole and not."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for fault in FAULTS:
        for seed in SEEDS:
            job = hang(seed, fault)
            if job is not None:
                for form in ("pending", ("full", "timed", "ring")[seed % 3]):
                    found.setdefault((fault, form), Counter())[grade(diagnosed(job, form), job.culprits)] += 1
    return found


def total(grades: dict[tuple[str, str], Counter[str]], faults: tuple[str, ...], *forms: str) -> Counter[str]:
    return sum((g for (fault, form), g in grades.items() if fault in faults and form in forms), Counter())


def test_there_are_two_hundred_hangs(grades: dict[tuple[str, str], Counter[str]]) -> None:
    assert sum(sum(g.values()) for (_, form), g in grades.items() if form == "pending") >= 200


def test_full_dumps_name_exactly_the_culprits(grades: dict[tuple[str, str], Counter[str]]) -> None:
    """Of what a dump tells apart: a device that stands still before an operation is another test's matter."""
    found = total(grades, (*STANDS_STILL, *OUT_OF_STEP), "full", "timed", "ring")
    assert found["exact"] >= 0.95 * found.total(), found
    assert not found["wrong"], found


def test_dumps_of_what_is_pending_name_exactly_who_stands_still(grades: dict[tuple[str, str], Counter[str]]) -> None:
    found = total(grades, ("stall", "crash"), "pending")
    assert found["exact"] >= 0.95 * found.total(), found


def test_dumps_of_what_is_pending_never_leave_out_who_is_out_of_step(
    grades: dict[tuple[str, str], Counter[str]],
) -> None:
    """Which of two members did the wrong thing, a dump that has nothing of the others cannot always tell."""
    found = total(grades, OUT_OF_STEP, "pending")
    assert found["exact"] + found["among"] >= 0.95 * found.total(), found
    assert found["exact"] >= 0.5 * found.total(), found


def test_two_hosts_that_stand_still_are_both_named_though_one_waits_as_well() -> None:
    """Rank 10 waits in a receive; but its witnesses, in the same one, went on to what it owes."""
    job = hang(2, "stall")
    assert job is not None
    assert [diagnosed(job, form).culprits for form in FORMS] == [(1, 10)] * len(FORMS)


def test_the_kind_of_stall_is_told() -> None:
    for fault, kind in (("stall", "host"), ("device_after", "device")):
        told = [str(diagnosed(job, "full").stall) for seed in SEEDS[:10] if (job := hang(seed, fault))]
        assert told.count(kind) >= 0.95 * len(told), (fault, Counter(told))


@pytest.mark.parametrize("seed", [seed for seed in range(1000, 1006) if hang(seed, "device_before")])
def test_a_device_that_stands_still_before_an_operation_cannot_be_told_from_its_peers(seed: int) -> None:
    """The same dumps come from each member that the answer names, and from no other rank; so the set is the answer."""
    job = hang(seed, "device_before")
    assert job is not None
    found = diagnosed(job, "full")
    if found.verdict == "divergent":
        assert found.culprits == job.culprits
        return
    assert set(job.culprits) <= set(found.suspects)
    culprit = job.ranks[job.culprits[0]]
    at = next(op for op in culprit.issued if not op.done and all(n.done for n in op.needs))
    shown = dumps(job, "2.10")
    members = job.groups[at.step.group][1] if at.step.peer < 0 else (culprit.rank, at.step.peer)
    for member in members:
        other = [Rank(r.rank, list(r.program)) for r in job.ranks]
        other[member].broken = _step_of(job.ranks[member], at.step.group, at.number, at.step.peer, culprit.rank)
        run(other, job.groups)
        assert dumps(Hang("device_before", (member,), other, job.groups), "2.10") == shown, member


def _step_of(rank: Rank, group: str, number: int, peer: int, culprit: int) -> int:
    """The step at which a rank issues its part of an operation."""
    ends = (group, -1) if peer < 0 else (group, peer if rank.rank == culprit else culprit)
    op = next(o for o in rank.issued if (o.step.group, o.step.peer) == ends and o.number == number)
    issuing = [at for at, step in enumerate(rank.program) if step.kind not in ("sync", "wait")]
    return issuing[rank.issued.index(op)]


def test_healthy_jobs_conform_in_any_form_that_is_whole() -> None:
    for seed in range(8):
        mesh = Mesh(*random.Random(seed).choice([(2, 2, 2), (4, 1, 2), (1, 4, 2), (2, 2, 4)]))
        ranks = [Rank(r, program(mesh, r, seed)) for r in range(mesh.world)]
        run(ranks, mesh.groups())
        assert all(rank.at == len(rank.program) and all(op.done for op in rank.issued) for rank in ranks)
        job = Hang("", (), ranks, mesh.groups())
        for form in FORMS:
            found = diagnosed(job, form)
            assert found.divergence is None, (seed, form)
            if form in ("full", "timed"):
                assert (found.verdict, found.reasons) == ("conforming", ()), (seed, form)
                issued = [op for rank in ranks for op in rank.issued]
                collectives = {(op.step.group, op.number) for op in issued if op.step.kind not in P2P}
                sends = sum(op.step.kind == "send" for op in issued)
                assert found.matched_collectives == len(collectives) + sends
