"""A program that does not beat is guarded by its operations: whoever stalls is named, and nobody who waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from genlock.guardian.deadlines import RankGraph, WorkClock, lags, stuck, waits_for
from genlock.guardian.exit_cause import DEADLINE, PEER_DIED
from genlock.guardian.settings import GuardianSettings
from genlock.guardian.status_page import EVERYONE, NOBODY, SIZE, SOMEONE, Page
from genlock.impl.rank.heartbeat import Beat
from genlock.impl.rank.operation_beats import ASIDE, OPERATIONS, OperationBeats
from genlock.impl.recording.c10d_intercept import Operation
from genlock.traces.format import Group
from guardian_jobs import Job, free_port
from repository import PROCESSES

WORLD, PAIR = Group("0", (0, 1, 2), "gloo"), Group("1", (0, 1), "gloo")


class Rank:
    """The beats of a rank of three, and the page that they are written to."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(SIZE))
        self.beats = OperationBeats()
        self.beats._beat = Beat(self.memory, phase=ASIDE)

    def issue(self, op: str, group: Group = WORLD, peer: int | None = None) -> Callable[[None], None]:
        return self.beats.issue(Operation(op, group, None, peer, None, None, None, False, None)) or (lambda _: None)

    @property
    def page(self) -> Page:
        page = Page.read(self.memory)
        assert page is not None
        return page


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(Beat, "taken", False)
    return Rank()


def test_an_operation_says_whom_it_waits_for(rank: Rank) -> None:
    assert (rank.page.phase, rank.page.waiting, rank.page.position) == (ASIDE, NOBODY, 0)
    cases: list[tuple[str, Group, int | None, int, int]] = [
        ("all_reduce", WORLD, None, EVERYONE, 1),
        ("broadcast", WORLD, None, SOMEONE, 2),  # its root may be gone by now
        ("all_reduce", PAIR, None, SOMEONE, 2),
        ("recv", WORLD, 2, 2, 2),
        ("barrier", WORLD, None, EVERYONE, 3),
    ]
    for number, (op, group, peer, waiting, position) in enumerate(cases, 1):
        done = rank.issue(op, group, peer)
        assert (rank.page.waiting, rank.page.position) == (waiting, position)
        done(None)
        assert (rank.page.waiting, rank.page.phase) == (NOBODY, OPERATIONS)
        assert rank.page.commit == f"operation {number}: {op}"
    rank.beats.leave()
    assert rank.page.phase == ASIDE


def test_who_is_in_several_operations_is_said_to_wait_for_somebody(rank: Rank) -> None:
    first, second = rank.issue("all_reduce"), rank.issue("recv", WORLD, 2)
    assert rank.page.waiting == SOMEONE
    first(None)
    assert rank.page.waiting == 2
    second(None)
    assert rank.page.waiting == NOBODY


def test_of_a_device_it_is_never_known_that_an_operation_is_over(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rank.issue("all_reduce", Group("0", (0, 1, 2), "nccl"))(None)
    assert (rank.page.waiting, rank.page.position) == (SOMEONE, 1)


def test_nothing_is_written_where_the_page_is_another_s(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)  # one of several ranks below one guardian
    rank.issue("all_reduce")
    assert rank.page.position == 0
    for silenced in ("taken", "forked"):
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        other = Rank()
        monkeypatch.setattr(Beat, "taken", silenced == "taken")
        if silenced == "forked":
            other.beats.forked()
        other.issue("all_reduce")
        assert other.page.position == 0


def test_who_waits_for_somebody_neither_lags_nor_has_left_anything() -> None:
    """It may still be in an operation that it has issued before."""
    found = RankGraph(3, {"steady": 1.0, "collective": 5.0})
    for one, (waiting, position) in zip(found.ranks, [(SOMEONE, 5), (EVERYONE, 3), (EVERYONE, 3)], strict=True):
        one.quiet, one.page.waiting, one.page.position = True, waiting, position
    assert not any(lags(n, found.ranks) for n in range(3))
    assert waits_for(0, found.ranks) == set()
    assert stuck(0, found.ranks) == stuck(1, found.ranks) == {0, 1, 2}
    found.ranks[2].quiet = False
    assert not stuck(0, found.ranks), "it can go on by itself"


def test_whoever_is_not_waited_for_may_take_its_time() -> None:
    """An engine that waits for work is right to; once somebody waits for a rank, that one's clock runs."""
    found = RankGraph(3, {"steady": 1.0, "collective": 5.0, "operations": 2.0})
    for one in found.ranks:
        one.quiet, one.page.phase = True, OPERATIONS
    assert not any(found.overdue(now) for now in (0.0, 100.0))
    clock = WorkClock(1, {"steady": 1.0}, 0.0)
    assert not any(clock.look(found.ranks[1].page, stopped=False, paused=False, now=now) for now in (0.0, 100.0))
    assert clock.look(found.ranks[1].page, stopped=True, paused=False, now=101.0) is None
    assert clock.look(found.ranks[1].page, stopped=True, paused=False, now=103.0), "who is stopped is charged"
    for whom, position in ((EVERYONE, 1), (SOMEONE, 0)):
        for n in (0, 2):
            found.ranks[n].page.waiting, found.ranks[n].page.position = whom, position
        assert found.overdue(200.0) is None
        assert found.overdue(201.9) is None
        finding = found.overdue(202.1)
        assert finding is not None
        assert finding.culprit == 1
        assert finding.what.startswith("rank1 made no progress for 2.1 s in phase operations")
        found.ranks[1].quiet = False
        assert found.overdue(203.0) is None, "it goes on"
        found.ranks[1].quiet = True


def test_deadlines_of_such_a_program_follow_those_that_are_given() -> None:
    def deadlines(*given: str) -> tuple[float, float]:
        found = GuardianSettings([*(f"--deadline={text}" for text in given), "--", "x"], {}).deadlines
        return found[OPERATIONS], found[ASIDE]

    assert deadlines() == (600, 1800)
    assert deadlines("steady=5", "startup=7") == (5, 7)
    assert deadlines("steady=5", "operations=9") == (9, 1800)


NAMED = {
    "stop": "rank1 is stopped for",
    "sleep": "rank1 made no progress for",
    "gil": "rank1 made no progress for",
    "wedge": "rank1 ",
    "apart": "rank0 and rank1 and rank2 waited for each other for",
}
FAST = "stop"


@pytest.mark.parametrize("way", [way if way == FAST else pytest.param(way, marks=pytest.mark.slow) for way in NAMED])
def test_a_stall_of_a_program_that_does_not_beat_is_ended(tmp_path: Path, way: str) -> None:
    cli = [sys.executable, "-m", "genlock", "guard", "--deadline=steady=1", "--deadline=collective=2"]
    job = Job(tmp_path, {}, command=cli, program=[sys.executable, str(PROCESSES / "unaware.py"), way],
              environ={"MASTER_PORT": str(free_port())})  # fmt: skip
    assert job.ends(within=110) == ([DEADLINE] * 3 if way == "apart" else [PEER_DIED, DEADLINE, PEER_DIED])
    assert all(f"was ended: {NAMED[way]}" in said for said in job.said), job.said
