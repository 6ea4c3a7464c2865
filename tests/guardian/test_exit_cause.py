"""Which of several failures is the cause, as a guardian without processes sees them."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest
from genlock.guardian.deadlines import Failure
from genlock.guardian.exit_cause import PEER_DIED, by_itself
from genlock.guardian.guardian import Guardian
from genlock.guardian.settings import GuardianSettings
from genlock.guardian.status_page import SIZE, Page


class Gone:
    """A rank's process that has ended, and of which its guardian has not heard."""

    def __init__(self, status: int) -> None:
        self.status = status

    def reap(self) -> bool:
        return True

    def send(self, number: int) -> None:
        pass


class Wires:
    """Links to nobody."""

    def send_all(self, *_: object, **__: object) -> None:
        pass

    send = send_all


def watching(rank: int, status: int) -> tuple[Any, socket.socket]:
    """A guardian of one of two ranks, whose process has ended; and by what signals come to it."""
    settings = GuardianSettings(["--", "x"], {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    guardian: Any = Guardian(settings, {})
    guardian.child, guardian.memory, guardian.page = Gone(status), bytearray(SIZE), Page()
    guardian.links, guardian.met = Wires(), {1 - rank}
    guardian.hub = guardian.links if rank == 0 else None
    guardian._keep = lambda found: None
    guardian._wake = socket.socketpair()
    guardian._wake[0].setblocking(False)
    return guardian, guardian._wake[1]


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
    assert "rank1 was ended: the guardian of rank0 is gone" in capfd.readouterr().err


@pytest.mark.parametrize("reported", [False, True])
def test_a_guardian_that_has_said_that_its_rank_is_gone_is_not_missed(reported: bool) -> None:
    guardian, _ = watching(0, PEER_DIED)
    guardian._see_end()
    if reported:
        guardian.hear(1, {"kind": "gone"})
    guardian.hear(1, None)
    assert guardian._best()[2].cause == ("lost" if reported else "guardian")
