"""What a journal says of ranks before they were ranks: who came to join the job, who did not, who failed there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from genlock.conformance.diagnosis import Diagnosis, Wanted
from genlock.conformance.replay import replay
from genlock.traces.journal import Began, Came, Ended, Failed, Joined, Line, Unrecorded, append
from record_command import record
from repository import PROCESSES

LOST = ("DistStoreError", "wait timeout after 6000ms, keys: /default_pg/0//cpu//0/2")


def came(rank: int, world: int = 4, local: int = 4, attempt: int = 0) -> Came:
    return Came(100 + rank, rank, world, local, attempt, f"/job/train.py:{rank}")


def gave_up(rank: int) -> Failed:
    return Failed(100 + rank, rank, 4, joining=True, type=LOST[0], message=LOST[1])


def raised(rank: int, *, joining: bool = False) -> Failed:
    return Failed(100 + rank, rank, 4, 0, joining, "ValueError", "no such layer", "/job/train.py:77")


def judged(folder: Path, lines: Sequence[Line], *, over: bool = True) -> Diagnosis:
    append(folder, Began(("train",), 1))
    for line in lines:
        append(folder, line)
    if over:
        append(folder, Ended(1, 2))
    return replay([folder]).diagnosis


@pytest.mark.parametrize("lines", [[], [gave_up(0), gave_up(1), gave_up(3)]])
def test_who_never_came_is_the_culprit(lines: list[Line], tmp_path: Path) -> None:
    found = judged(tmp_path, [came(0), came(1), came(3), *lines])
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.expected == ("init_process_group at /job/train.py:0",)
    assert [(wait.rank, wait.missing) for wait in found.waits] == [(0, (2,)), (1, (2,)), (3, (2,))]


DOUBTS: dict[str, tuple[list[Line], bool, tuple[int, ...]]] = {
    "more than half never came": ([came(0)], True, (0, 1, 2, 3)),
    "the job may be starting": ([came(0), came(1), came(3)], False, (2,)),
    "the ranks are on two hosts": ([came(0, local=2), came(1, local=2), came(3, local=2)], True, (2,)),
    "something went unrecorded": ([came(0), came(1), came(3), Unrecorded("`python -S`")], True, (2,)),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_who_never_came_is_a_suspect_where_that_is_not_entailed(doubt: str, tmp_path: Path) -> None:
    lines, over, suspects = DOUBTS[doubt]
    found = judged(tmp_path, lines, over=over)
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), suspects)
    assert Wanted.STACK in [wanted.kind for wanted in found.missing]


@pytest.mark.parametrize("joining", [True, False])
def test_who_raised_on_its_own_account_is_the_culprit(joining: bool, tmp_path: Path) -> None:
    first = [came(1)] if joining else []
    found = judged(tmp_path, [*first, came(0), came(2), raised(1, joining=joining), gave_up(0)])
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert (found.divergence.phase, found.divergence.observed) == ("/job/train.py:77", "ValueError: no such layer")


def test_what_torch_says_of_one_that_did_not_come_is_nobodys_own_failure(tmp_path: Path) -> None:
    unheard = [Failed(100 + rank, rank, 4, joining=True, type="RuntimeError", message="said anew") for rank in (0, 1)]
    found = judged(tmp_path, [came(0), came(1), came(3), *unheard])
    assert (found.verdict, found.culprits) == ("divergent", (2,))


def test_the_only_one_that_did_not_come_out_is_the_culprit_and_of_several_all_are_suspects(tmp_path: Path) -> None:
    out = [Joined(100), Joined(103)]
    found = judged(tmp_path / "one", [*map(came, range(4)), *out, Joined(101)])
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.phase == "/job/train.py:2"
    found = judged(tmp_path / "two", [*map(came, range(4)), *out])
    assert (found.verdict, found.suspects) == ("unknown", (1, 2))


def test_ranks_that_all_joined_or_that_cannot_be_told_apart_blame_nobody(tmp_path: Path) -> None:
    found = judged(tmp_path / "all", [*map(came, range(4)), *map(Joined, range(100, 104))])
    assert (found.verdict, found.accused) == ("unknown", ())  # there is no trace
    twice = Came(999, 0, 4, 4)
    found = judged(tmp_path / "twice", [came(0), twice, came(1), came(3)])
    assert found.accused == ()


def test_each_start_is_judged_by_itself(tmp_path: Path) -> None:
    again = [came(rank, attempt=1) for rank in range(4)]
    found = judged(tmp_path, [*map(came, range(4)), *map(Joined, range(100, 104)), *again[:3]])
    assert (found.verdict, found.culprits) == ("divergent", (3,))


def test_a_rank_that_never_comes_is_seen_in_a_recorded_program(tmp_path: Path) -> None:
    program = str(PROCESSES / "joining.py")
    record(tmp_path / "out", sys.executable, program, STORE=str(tmp_path / "store"), MASTER_ADDR="")
    found = replay([tmp_path / "out"]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert "joining.py:" in found.divergence.expected[0]
