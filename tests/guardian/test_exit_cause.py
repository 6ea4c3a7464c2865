"""Which of several failures is the cause, as a guardian without processes sees them."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from genlock.guardian import child
from genlock.guardian.child import Watched
from genlock.guardian.deadlines import Failure
from genlock.guardian.exit_cause import PEER_DIED, by_itself
from lone_guardian import watching


@pytest.mark.parametrize("status", [-signal.SIGABRT, 1])
def test_of_two_deaths_the_one_that_was_told_first_is_the_cause(status: int) -> None:
    """rank0 dies of what rank1 did, and its guardian hears of both at once."""
    guardian, _ = watching(0, status)
    guardian.find(by_itself(1, status, "there", asked=False), source=1)
    assert [found.culprit for _, _, found in sorted(guardian.findings, key=lambda found: found[:2])] == [1, 0]
    assert guardian._best()[2].culprit == 1


def test_a_death_that_is_seen_before_a_deadline_is_charged_is_the_cause() -> None:
    guardian, _ = watching(0, -signal.SIGKILL)
    guardian.find(Failure("deadline", 0, "rank0 made no progress"))
    assert guardian._best()[2].cause == "died"


def test_of_a_rank_that_ends_with_its_launcher_the_launcher_is_the_cause() -> None:
    guardian, _ = watching(0, -signal.SIGPIPE)
    with subprocess.Popen(["true"]) as launcher:
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)  # it is not reaped
        guardian.launcher = Watched(launcher.pid)
        guardian._see_end()
        without = Watched(launcher.pid)
        os.close(without.handle)
        without.handle = -1
        assert without.ended(), "also where the kernel has no handles of processes"
    assert [found.cause for _, _, found in guardian.findings] == ["launcher"]
    assert not Watched(os.getppid()).ended()


def test_a_launcher_whose_pipes_are_closed_already_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not reaped, nor a zombie yet, and ranks die of its pipes."""
    launcher = Watched(os.getppid())
    monkeypatch.setattr(child, "read", lambda path: "1 (a name) S 0 0 0 0 0 4")  # PF_EXITING
    assert launcher.ended()


def test_a_launcher_that_dies_is_the_cause_though_a_rank_was_seen_to_die_before() -> None:
    """Of `genlock run` the launcher is a torchrun, which dies a moment after the pipes that `genlock run` has read."""
    guardian, _ = watching(0, -signal.SIGPIPE)
    guardian._see_end()
    guardian.find(Failure("launcher", -1, "the launcher of rank1 died"), source=1)
    assert guardian._best()[2].cause == "launcher"


def test_a_rank_that_its_launcher_ended_has_not_died_of_itself() -> None:
    """The guardian reads of its own signal after the others' word."""
    guardian, signals = watching(1, -signal.SIGTERM)
    signals.send(bytes([signal.SIGTERM]))
    guardian.find(by_itself(0, -signal.SIGTERM, "there", asked=True), source=0)
    assert {found.cause for _, _, found in guardian.findings} == {"asked"}


def test_without_a_verdict_what_explains_more_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    guardian, _ = watching(1, PEER_DIED)
    guardian.hear(0, None)
    assert guardian.finding.cause == "lost"
    assert guardian._leave() == PEER_DIED
    guardian._finish()
    assert "rank1 was ended: the guardian of rank0 is gone" in capfd.readouterr().err


@pytest.mark.parametrize("reported", [False, True])
def test_a_guardian_that_has_said_that_its_rank_is_gone_is_not_missed(reported: bool) -> None:
    guardian, _ = watching(0, PEER_DIED)
    guardian._see_end()
    if reported:
        guardian.hear(1, {"kind": "gone"})
    guardian.hear(1, None)
    assert guardian._best()[2].cause == ("lost" if reported else "guardian")
