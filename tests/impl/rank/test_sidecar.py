"""Ranks that no launcher has put under a guardian are guarded from inside: whoever stalls is named, all others end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from genlock.errors import GenlockError, UsageError
from genlock.guardian.attached import Attached, attached
from genlock.guardian.child import is_beside
from genlock.guardian.settings import LIMITS
from genlock.guardian.status_page import SIZE
from genlock.impl.rank import sidecar
from genlock.impl.rank.heartbeat import Beat
from guardian_jobs import alive, until
from repository import PROCESSES

PROGRAM = str(PROCESSES / "guarded_inside.py")
NAMED = {
    "stop": "rank1 is stopped for ",
    "sleep": "rank1 made no progress for ",
    "gil": "rank1 made no progress for ",
    "wedge": "rank1 ",
    "apart": "rank0 and rank1 and rank2 waited for each other for ",
    "kill": "rank1 ",
    "raise": "rank1 raised ValueError: bad batch in phase operations",
    "leave": "rank1 has ended, and rank0 and rank2 waited for it for ",
}
"""What each way is told as."""
FINE = ("ok", "twice", "left")


def run(folder: Path, *words: str, before: tuple[str, ...] = ()) -> None:
    process = subprocess.Popen([*before, sys.executable, PROGRAM, str(folder), *words], start_new_session=True)
    try:
        process.wait(timeout=100)
        until(lambda: not guardians(folder))
    finally:
        for pid in [process.pid, *alive(str(folder)), *guardians(folder)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def guardians(folder: Path) -> list[int]:
    """Guardians that were asked for from inside, and work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and is_beside(int(entry.name)) and (entry / "cwd").resolve() == folder:
                found.append(int(entry.name))
    return found


def check(folder: Path, way: str) -> None:
    statuses, said = json.loads((folder / f"{way}.json").read_text()), (folder / f"{way}.said").read_text()
    told = [line for line in said.splitlines() if line.startswith("genlock:")]
    if way in FINE:
        assert statuses == [0, -signal.SIGKILL if way == "left" else 0, 0], said
        assert not told
        return
    assert all(statuses), statuses
    assert sorted(line.partition(" was ended: ")[0] for line in told) == [f"genlock: rank{rank}" for rank in range(3)]
    assert all(f"was ended: {NAMED[way]}" in line for line in told), told


def test_a_forked_rank_asks_for_its_guardian(tmp_path: Path) -> None:
    ways = ("ok", "twice", "left", "stop", "gil", "wedge", "kill", "raise")
    run(tmp_path, "fork", "guard", *ways)
    for way in ways:
        check(tmp_path, way)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "spawned"])
def test_a_spawned_rank_asks_for_its_guardian(tmp_path: Path, start: str) -> None:
    run(tmp_path, start, "guard", *FINE, *NAMED)
    for way in (*FINE, *NAMED):
        check(tmp_path, way)


def test_whatever_a_guarded_program_starts_is_guarded(tmp_path: Path) -> None:
    """Its ranks are none that its guardian knows."""
    guard = (sys.executable, "-m", "genlock", "guard", "--deadline=steady=3", "--deadline=collective=5", "--")
    run(tmp_path, "fork", "ok", "stop", before=guard)
    for way in ("ok", "stop"):
        check(tmp_path, way)


def test_a_rank_that_asks_for_no_guardian_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "DEADLINES", {"meet": 0.05})
    c10d: Any = dist
    store = c10d.FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(UsageError, match=r"genlock\.guard: rank1 asked for no guardian; call it in every rank"):
        sidecar._agree(store, 0, 2)


def test_seconds_that_are_none_are_refused() -> None:
    assert sidecar.variables({"steady": 1, "collective": 2.5}, observe=False) == {LIMITS: "steady=1,collective=2.5"}
    with pytest.raises(UsageError, match="deadline 'steady': 0"):
        sidecar.variables({"steady": 0}, observe=False)


def test_a_guardian_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "command", lambda: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(GenlockError, match="this rank has no guardian"):
        sidecar._start(os.environ)


def test_an_attached_rank_says_how_it_ends() -> None:
    assert (attached(["--attach=7", "--observe"]), attached(["--", "--attach=7"])) == (7, 0)
    leaves: Callable[[Beat], None] = lambda beat: beat.left()  # noqa: E731
    fails: Callable[[Beat], None] = lambda beat: beat.failed("raised ValueError: x")  # noqa: E731
    for say, status, how in ((leaves, 0, ""), (fails, 1, "raised ValueError: x")):
        memory = memoryview(bytearray(SIZE))
        beat, rank = Beat(memory), Attached(os.getpid(), memory)
        assert not rank.reap()
        say(beat)
        assert (rank.gone(), rank.status, rank.how) == (True, status, how)
        rank.end()  # and nothing is killed that is a rank no more


@pytest.mark.parametrize(("number", "status", "how"), [
    (signal.SIGKILL, -signal.SIGKILL, "died by SIGKILL"), (signal.SIGTERM, 0, "died by SIGTERM"),
])  # fmt: skip
def test_of_a_process_that_ends_without_a_word_its_status_is_seen(number: int, status: int, how: str) -> None:
    """A launcher's SIGTERM is no failure: whoever waits for such a rank says so in its time."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
    rank = Attached(process.pid, memoryview(bytearray(SIZE)))
    os.kill(process.pid, number)
    until(rank.reap)
    assert (rank.status, rank.how) == (status, how)
    process.wait()
