"""Real gloo ranks that hang: the archive, and nothing else, lets replay name the rank. All are alive afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from genlock.collect.gather import Collected, collect
from genlock.collect.process import Process
from genlock.collect.stacks import py_spy
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from repository import PROCESSES


def may_look() -> bool:
    """Whether py-spy is here, and may look into a process of ours."""
    program = py_spy()
    if program is None:
        return False
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        while Process(process.pid).state == "R":
            pass
        done = subprocess.run([program, "dump", "--nonblocking", "--pid", str(process.pid)], capture_output=True)
        process.kill()
    return done.returncode == 0


needs_py_spy = pytest.mark.skipif(not may_look(), reason="py-spy is not here, or may not look into other processes")


class Hangs:
    """Starts one job after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROCESSES / "hung.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    def judged(self, broken: int, way: str, out: Path, *, named: bool = True) -> tuple[Collected, Diagnosis]:
        """What was collected of three ranks of which one is broken, and the verdict on it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"3 {broken} {way}\n")
        self.process.stdin.flush()
        pids = [int(pid) for pid in self.process.stdout.readline().split()]
        for pid in pids if way != "slow" else ():
            process = Process(pid)
            while process.state == "R":
                pass
        done = collect({pid: rank if named else None for rank, pid in enumerate(pids)}, out / "out.zip", apart=0.4)
        assert [Process(pid).alive for pid in pids] == [True] * 3
        return done, replay([done.path]).diagnosis

    def close(self) -> None:
        """End all ranks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def hangs() -> Iterator[Hangs]:
    found = Hangs()
    yield found
    found.close()


@needs_py_spy
def test_a_rank_asleep_in_its_own_code_is_named(hangs: Hangs, tmp_path: Path) -> None:
    done, found = hangs.judged(1, "sleep", tmp_path)
    assert done.complete
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (1,), "host")
    assert found.divergence is not None
    assert "hung.py" in found.divergence.why


@needs_py_spy
def test_a_stopped_rank_is_named(hangs: Hangs, tmp_path: Path) -> None:
    done, found = hangs.judged(2, "stop", tmp_path)
    assert [one.stopped for one in done.ranks] == [False, False, True]
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.observed == "stopped by a signal"


def test_a_stopped_rank_is_a_suspect_where_no_stack_could_be_had(
    hangs: Hangs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genlock.collect.stacks.py_spy", lambda: None)
    done, found = hangs.judged(0, "stop", tmp_path)
    assert not done.complete
    assert any("genlock[collect]" in advice for advice in done.advice)
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert 0 in found.suspects


@needs_py_spy
def test_a_job_that_is_only_slow_blames_nobody(hangs: Hangs, tmp_path: Path) -> None:
    """Both looks find the same ranks at the same places; but those that wait have been let go in between."""
    done, found = hangs.judged(1, "slow", tmp_path)
    assert not any(one.still for one in done.ranks if one.rank.number != 1)
    assert (found.verdict, found.culprits) == ("unknown", ())


@needs_py_spy
def test_a_rank_that_waits_by_a_handle_is_innocent(hangs: Hangs, tmp_path: Path) -> None:
    """It has no frame of Python in which it waits: its stack ends in a line of the program."""
    done, found = hangs.judged(1, "handle", tmp_path)
    assert not any(one.elsewhere for one in done.ranks)
    assert (found.verdict, found.culprits) == ("unknown", ())


@needs_py_spy
def test_where_the_order_of_start_tells_the_ranks_nobody_is_a_culprit(hangs: Hangs, tmp_path: Path) -> None:
    done, found = hangs.judged(1, "sleep", tmp_path, named=False)
    assert [one.rank.certain for one in done.ranks] == [False] * 3
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (1,))
    assert any("the order in which process" in reason for reason in found.reasons)
