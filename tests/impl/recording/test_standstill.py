"""`genlock record --stall`: a job that stands still is ended with its verdict; one that is slow is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from genlock.impl.recording import standstill
from genlock.impl.recording.standstill import Standstill
from genlock.traces.journal import Ended, Journal
from record_command import RECORD, run
from repository import PROCESSES
from stalls import STALL

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def stall(tmp_path: Path) -> Run:
    """Runs a way of `stalls` under `--stall`."""

    def done(way: str) -> subprocess.CompletedProcess[str]:
        command = [*RECORD, str(tmp_path / "out"), "--stall", str(STALL), "--"]
        return run([*command, sys.executable, str(PROCESSES / "stalls.py"), way], STALLS_STORE=str(tmp_path / "store"))

    return done


def test_a_rank_that_is_stopped_is_found(stall: Run, tmp_path: Path) -> None:
    """A real one: its peer waits in gloo, and says where it stands; the stopped one cannot."""
    done = stall("torch")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"it stood still for {STALL:g} s, and was ended" in done.stderr
    assert done.stdout.startswith("divergent: 2 ranks")
    assert "  culprits  rank1\n" in done.stdout
    assert "all_reduce" in (tmp_path / "out" / "rank0.stacks.txt").read_text()
    assert not (tmp_path / "out" / "rank1.stacks.txt").exists()
    assert [(line.status, line.stalled) for line in Journal(tmp_path / "out").all(Ended)] == [(137, True)]


@pytest.mark.parametrize(("way", "stands"), [("sleep", "written"), ("wedged", "in_the_collective")])
def test_what_stands_still_is_ended_with_its_stacks(stall: Run, tmp_path: Path, way: str, stands: str) -> None:
    done = stall(way)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("divergent: 2 ranks")
    assert "rank1" in done.stdout
    assert stands in (tmp_path / "out" / "rank1.stacks.txt").read_text()
    assert "in_the_collective" in (tmp_path / "out" / "rank0.stacks.txt").read_text()


def test_what_is_slow_comes_to_its_end(stall: Run, tmp_path: Path) -> None:
    """Nothing is written for longer than the limit, and nobody waits."""
    done = stall("slow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stood still" not in done.stderr
    assert not list((tmp_path / "out").glob("*.stacks.txt"))


class Clock:
    """Goes as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(standstill.time, "monotonic", lambda: self.now)  # type: ignore[attr-defined]


def test_when_a_job_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has not grown for so long, once for each size, and only while somebody has its traces open."""
    clock, asked, answer = Clock(monkeypatch), list[list[Path]](), [False]

    def waits(files: list[Path]) -> bool:
        asked.append(files)
        return answer[0]

    watch = Standstill(os.getpid(), tmp_path, 10, waits)
    file = tmp_path / "rank0.trace.jsonl"

    def after(seconds: float) -> tuple[bool, int]:
        clock.now += seconds
        return watch.found(), len(asked)

    with file.open("wb", buffering=0) as trace:
        trace.write(b"1")
        assert after(0) == (False, 0)
        assert after(9) == (False, 0)
        assert after(2) == (False, 1)
        assert after(20) == (False, 1), "it was judged, and has not changed"
        trace.write(b"2")
        assert after(5) == (False, 1)
        assert after(9) == (False, 1)
        answer[0] = True
        assert after(2) == (True, 2)
        trace.write(b"3")
        after(2)
    monkeypatch.setattr(standstill, "descendants", lambda root: [])
    assert after(20) == (False, 2), "whoever wrote it is gone"
