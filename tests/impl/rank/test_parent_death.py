"""A process ends with the one that started it, and not with the thread that did."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guardian_jobs import alive, until

RANK = """
import sys, time
from genlock.impl.rank.parent_death import die_with_parent
die_with_parent()
print("here", flush=True)
if not sys.stdin.readline():  # nobody is there any more
    time.sleep(100)
print("done", flush=True)
"""
LAUNCHER = f"""
import subprocess, sys, threading
def start():
    global rank
    rank = subprocess.Popen([sys.executable, "-c", {RANK!r}, sys.argv[1]], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)
    rank.stdout.readline()
if sys.argv[2] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
print("started", flush=True)
sys.stdin.readline()
print(rank.communicate("go on")[0], flush=True)
"""


@pytest.fixture(params=["thread", "main thread"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    mark = str(tmp_path)
    words = [sys.executable, "-c", LAUNCHER, mark, request.param]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        yield process, mark
        process.kill()
    until(lambda: not alive(mark))


def test_a_rank_outlives_the_thread_that_has_started_it(launcher: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = launcher
    assert process.communicate("go on\n", timeout=60)[0].split() == ["done"]


def test_a_rank_does_not_outlive_its_launcher(launcher: tuple[subprocess.Popen[str], str]) -> None:
    process, mark = launcher
    process.kill()
    until(lambda: not alive(mark))
