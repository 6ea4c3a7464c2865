"""A real guardian, and one that is played here: what is said between them, and whose word counts."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from genlock.guardian import command
from genlock.guardian.child import children
from genlock.guardian.deadlines import Failure
from genlock.guardian.exit_cause import PEER_DIED, by_itself, weight_of
from genlock.guardian.links import Caller, Listener
from genlock.guardian.settings import GuardianSettings, digest
from guardian_jobs import BUSY, PROGRAM, free_port, until


class Opposite:
    """The guardian of one of two ranks, played here, for a real one of the other."""

    def __init__(self, folder: Path, plays: int, *script: tuple[str, object]) -> None:
        port = free_port()
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"TORCHELASTIC_RUN_ID": "a job", "RANK": str(1 - plays), "SCRIPT": json.dumps({"*": script})}
        self.settings = settings = GuardianSettings(["--", "x"], common)
        self.heard: list[dict[str, object]] = []
        self.selector = selectors.DefaultSelector()
        self.links: Listener | Caller = Caller(self.selector, self._hear, lambda what: None, settings.token, 1)
        if plays == 0:
            self.links = Listener(self.selector, self._hear, lambda what: None, settings.token, 2)
            self.links.listen(settings.places)
        words = [*command(), f"--out={folder}", "--", sys.executable, str(PROGRAM)]
        self.guardian = subprocess.Popen(words, env={**os.environ, **common}, stderr=subprocess.PIPE, text=True)

    def call(self) -> None:
        """As rank1's guardian, once rank0's is there."""
        caller = self.links
        assert isinstance(caller, Caller)
        met: list[bool] = []
        while not met:
            caller.call(self.settings.places, lambda: met.append(True))
            self._turn()

    def meet(self) -> None:
        self.call()
        self.links.send(0, "hello", {"digest": digest(self.settings.posture)})

    def hang_up(self) -> None:
        for link in [*self.links.ranks.values()]:
            self.links.drop(link)

    def __enter__(self) -> Opposite:
        return self

    def __exit__(self, *_: object) -> None:
        self.guardian.kill()
        self.guardian.communicate()
        self.links.close()
        self.selector.close()

    def _hear(self, rank: int, frame: dict[str, object] | None) -> None:
        self.heard.append(dict(frame or {"kind": "closed"}))

    def _turn(self) -> None:
        for key, _ in self.selector.select(0.01):
            key.data()

    def until(self, kind: str, within: float = 30) -> dict[str, object]:
        """The first frame of this kind; an empty one if it does not come in time."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            self._turn()
            if found := next((frame for frame in self.heard if frame["kind"] == kind), None):
                return found
        return {}

    def says(self) -> str:
        return self.guardian.communicate(timeout=30)[1]


@pytest.mark.parametrize(("late", "blamed"), [(0.4, 0), (2.5, 1)])
def test_the_blame_is_what_the_verdict_says_if_it_comes_in_time(tmp_path: Path, late: float, blamed: int) -> None:
    """rank1 dies first, but rank0's guardian knows of an earlier cause."""
    with Opposite(tmp_path, 0, ("work", 0.1), ("kill", 0)) as rank0:
        assert rank0.until("abort")
        closed = rank0.until("closed", within=late)
        assert bool(closed) == (blamed == 1), "it does not wait for ever"
        if not closed:
            rank0.links.send(1, "verdict", {"cause": "died", "culprit": 0, "what": "rank0 died by SIGKILL"})
        assert f"rank1 was ended: rank{blamed} died by SIGKILL" in rank0.says()


def test_a_rank_whose_peer_was_quicker_to_miss_it_is_still_said_to_have_died(tmp_path: Path) -> None:
    """When rank1's guardian comes to look, rank0's has told it that rank0 lost a peer."""
    with Opposite(tmp_path, 0, *BUSY) as rank0:
        assert rank0.until("hello")
        [below] = children(rank0.guardian.pid)
        until(lambda: list(children(below)))
        [rank] = children(below)
        os.kill(below, signal.SIGSTOP)
        os.kill(rank, signal.SIGKILL)
        until(lambda: " Z " in Path(f"/proc/{rank}/stat").read_text())
        rank0.links.send(1, "abort", abort(by_itself(0, PEER_DIED, "in phase steady", asked=False)))
        os.kill(below, signal.SIGCONT)
        told = rank0.until("abort")
        assert (told.get("cause"), told.get("culprit"), told.get("weight")) == ("died", 1, 0)
        assert "rank1 was ended: rank1 died by SIGKILL" in rank0.says()


def test_a_guardian_that_was_let_in_too_late_calls_again_and_is_not_missed(tmp_path: Path) -> None:
    """rank0's answers after rank1's, which waits a quarter of a second, has given up: a busy host."""
    enough = tmp_path / "enough"
    with Opposite(tmp_path, 1, ("until", str(enough))) as rank1:
        rank1.call()
        rank1.hang_up()
        rank1.meet()
        enough.touch()
        assert rank1.until("done")
        rank1.links.send(0, "done")
        assert rank1.says() == ""
        assert rank1.guardian.returncode == 0


def abort(found: Failure) -> dict[str, object]:
    """The fields of an ABORT."""
    return {"cause": found.cause, "culprit": found.culprit, "what": found.what, "weight": weight_of(found)}


def test_where_rank0_only_lost_a_peer_its_guardian_waits_for_who_knows_more(tmp_path: Path) -> None:
    with Opposite(tmp_path, 1, ("work", 0.1), ("exit", PEER_DIED)) as rank1:
        rank1.meet()
        assert rank1.until("abort")["cause"] == "lost"
        assert not rank1.until("verdict", within=0.4)
        rank1.links.send(0, "abort", abort(by_itself(1, -signal.SIGKILL, "there", asked=False)))
        assert rank1.until("verdict")["culprit"] == 1
        assert "rank0 was ended: rank1 died by SIGKILL there" in rank1.says()


def test_where_rank0_only_lost_a_peer_a_guardian_that_is_gone_is_why(tmp_path: Path) -> None:
    with Opposite(tmp_path, 1, ("work", 0.1), ("exit", PEER_DIED)) as rank1:
        rank1.meet()
        assert rank1.until("abort")
        rank1.hang_up()
        assert "rank0 was ended: the guardian of rank1 is gone" in rank1.says()
