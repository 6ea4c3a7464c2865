"""Of a hang only a part is left: whatever is missing, no innocent rank is called a culprit."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from genlock.conformance.replay import judge
from genlock.traces.collectives import Recording
from genlock.traces.load import load
from graded import FORMS, recorded
from hangs import FAULTS, Hang, Mesh, Rank, hang, program, run
from recordings import folder
from subsets import TRUTH, Tally, grade, part_of, subsets

SEEDS = (1000, 1007)
"""No rule was made with these; `subsets.py` takes many more."""


@pytest.fixture(scope="module")
def tally() -> Tally:
    """One subset of each kind, and some of any size, of each hang, in one form after the other."""
    found = Tally()
    for at, (seed, fault) in enumerate((seed, fault) for seed in SEEDS for fault in FAULTS):
        job = hang(seed, fault)
        for form in list(FORMS)[at % 4 : at % 4 + 1] if job is not None else ():
            assert job is not None
            whole = recorded(job, form)
            for kind, ranks in subsets(sorted(whole.ranks), random.Random(f"{seed} {fault}"), 3, 4):
                said = judge(part_of(whole, ranks))
                found.add(kind, f"{seed} {fault} {form}", ranks, said, job.culprits, len(job.ranks))
    return found


def test_no_innocent_is_called_a_culprit(tally: Tally) -> None:
    assert tally.accused == []


def test_whoever_is_to_blame_is_among_the_suspects(tally: Tally) -> None:
    """Where somebody is: of the one rank that waits in nothing, its own recording alone shows no hang."""
    total = sum(tally.grades.values(), Counter[str]())
    assert total["outside"] == 0, str(tally)
    assert total["exact"] > 50, str(tally)


def test_of_a_healthy_job_no_part_is_divergent() -> None:
    mesh = Mesh(2, 2, 2)
    ranks = [Rank(r, program(mesh, r, 3)) for r in range(mesh.world)]
    run(ranks, mesh.groups())
    job = Hang("", (), ranks, mesh.groups())
    for form in FORMS:
        whole = recorded(job, form)
        for _, left in subsets(sorted(whole.ranks), random.Random(form), 4, 4):
            said = judge(part_of(whole, left))
            assert said.divergence is None
            assert said.accused == ()


@pytest.mark.parametrize("name", TRUTH)
def test_of_recordings_of_other_people_no_part_accuses_an_innocent(name: str) -> None:
    whole = load([folder(name)])
    assert isinstance(whole, Recording)
    grades = Counter(
        grade(judge(part_of(whole, left)), TRUTH[name])
        for _, left in subsets(sorted(whole.ranks), random.Random(name), 5, 10)
    )
    assert grades["innocent"] == 0
    assert grades["outside"] == 0
    assert grade(judge(whole), TRUTH[name]) == ("exact" if TRUTH[name] else "nobody")


def test_the_very_same_dumps_come_of_a_rank_that_is_gone_and_of_one_whose_dump_is_lost() -> None:
    """So that a missing dump alone accuses nobody: rank1 crashes before a sum, or another's device stands before it."""
    mesh = Mesh(4, 1, 2)
    groups = mesh.groups()
    left = []
    for broken in ("crash", "device"):
        ranks = [Rank(r, program(mesh, r, 1)) for r in range(mesh.world)]
        at = next(n for n, step in enumerate(ranks[1].program) if step.kind == "all_reduce")
        if broken == "crash":
            ranks[1].stop = at
        else:
            ranks[2].broken = next(n for n, step in enumerate(ranks[2].program) if step.kind == "all_reduce")
        run(ranks, groups)
        job = Hang(broken, (1,) if broken == "crash" else (2,), ranks, groups)
        whole = recorded(job, "full")
        left.append(part_of(whole, set(whole.ranks) - {1}))
    one, other = left
    for rank in one.ranks:
        assert (one.ranks[rank].ops == other.ranks[rank].ops).all()
    found = judge(one)
    assert found.culprits == ()
    assert {1, 2} <= set(found.suspects)
