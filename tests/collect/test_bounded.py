"""A step that does not come back costs its own time, and nothing else."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from genlock.collect.bounded import Outcome, Runner, Step


def hang() -> Outcome:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    time.sleep(3600)
    return Outcome()


def fine() -> Outcome:
    return Outcome(["file"], {"answer": 42})


def test_a_step_that_hangs_is_left_behind_and_the_others_answer() -> None:
    hung, good = Runner(30).run([Step("a", 0.1, hang), Step("b", 10, fine)])
    assert hung.missing == "it took longer than 0.1 s"
    assert (good.files, good.found, good.missing) == (["file"], {"answer": 42}, "")


def test_the_whole_is_bounded_however_many_steps_there_are() -> None:
    outcomes = Runner(0.2).run([Step(str(n), 3600, hang) for n in range(40)])
    assert {outcome.missing for outcome in outcomes} == {"the time was over"}


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    noted = tmp_path / "pid"

    def starts() -> Outcome:
        child = subprocess.Popen(["sleep", "3600"])
        noted.write_text(str(child.pid))
        child.wait()
        return Outcome()

    Runner(30).run([Step("a", 0.5, starts)])
    pid = int(noted.read_text())
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_an_interruption_ends_the_steps_and_is_no_exception() -> None:
    runner = Runner(60)
    with runner.interruptible():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        outcomes = runner.run([Step("a", 60, hang), Step("b", 60, hang)])
        assert {outcome.missing for outcome in outcomes} == {"interrupted"}
        assert runner.run([Step("c", 60, fine)])[0].missing == "interrupted"


def test_an_error_costs_one_step_and_is_told() -> None:
    def broken() -> Outcome:
        raise KeyError("nothing of the kind")

    def absent() -> Outcome:
        with open("/nowhere/at/all"):
            return Outcome()

    one, two = Runner(30).run([Step("a", 10, broken), Step("b", 10, absent)])
    assert one.missing.startswith("KeyError: 'nothing of the kind' (test_bounded.py:")
    assert two.missing == "No such file or directory"


def test_a_large_answer_comes_whole() -> None:
    [outcome] = Runner(30).run([Step("a", 20, lambda: Outcome(found={"text": "x" * 1_000_000}))])
    assert len(outcome.found["text"]) == 1_000_000


def test_steps_of_the_kind_that_must_be_alone_are() -> None:
    def spans() -> Outcome:
        begin = time.monotonic()
        time.sleep(0.02)
        return Outcome(found={"span": [begin, time.monotonic()]})

    outcomes = Runner(30).run([Step(str(n), 10, spans, alone=True) for n in range(3)])
    spans_ = sorted(outcome.found["span"] for outcome in outcomes)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans_))
