"""A process that has issued nothing for a while leaves its stacks, and leaves faulthandler's timer to the program."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from genlock.impl.recording import stack_timer
from genlock.impl.recording.stack_timer import NEVER, SECOND, StackTimer

SET = "set"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done to the timer; the program's own functions are in the place of faulthandler's."""
    done: list[Any] = []
    shared = stack_timer._Timer()
    shared.start = lambda after, **named: done.append((SET, after, named.get("file", "theirs")))
    shared.stop = lambda: done.append("cancelled")
    monkeypatch.setattr(stack_timer, "timer", shared)
    shared.follow(lambda original, wrapper: monkeypatch.setattr(faulthandler, NAMES[original is shared.stop], wrapper))
    return done


NAMES = ("dump_traceback_later", "cancel_dump_traceback_later")


def test_the_timer_is_set_anew_while_the_process_goes_on(tmp_path: Path, calls: list[Any]) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    assert stacks.moved(5) == 5 + 5 * SECOND, "half of the time, so that it does not fire meanwhile"
    stacks.moved(7)
    assert [call[:2] for call in calls] == [(SET, 10)] * 2
    stacks.close(keep=True)
    assert calls[-1] == "cancelled"
    assert not stacks.path.exists(), "there is nothing in it"
    assert stacks.moved(8) == NEVER


def test_who_goes_on_takes_back_what_was_written(tmp_path: Path, calls: list[Any]) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    stacks.path.write_text("Timeout")
    stacks.moved(0)
    assert stacks.path.read_text() == ""
    stacks.path.write_text("Timeout")
    stacks.close(keep=True)
    assert stacks.path.read_text() == "Timeout"


def test_stacks_of_a_rank_that_came_to_its_end_are_not_kept(tmp_path: Path, calls: list[Any]) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    stacks.path.write_text("Timeout")
    stacks.close(keep=False)
    assert not stacks.path.exists()


def test_a_program_that_sets_the_timer_for_itself_has_it(tmp_path: Path, calls: list[Any]) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    faulthandler.dump_traceback_later(3)
    stacks.moved(0)
    stacks.close(keep=True)
    assert calls == [(SET, 3, "theirs")]
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    faulthandler.cancel_dump_traceback_later()
    stacks.moved(0)
    assert [call[:2] if call != "cancelled" else call for call in calls[1:]] == ["cancelled", (SET, 10)]
    stacks.close(keep=True)


def test_a_forked_child_leaves_the_file_of_its_parent_alone(tmp_path: Path, calls: list[Any]) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 10)
    stacks._process = os.getppid()
    assert stacks.moved(0) == NEVER
    stacks.close(keep=False)
    assert stacks.path.exists()
    assert not calls


@pytest.fixture
def stopped() -> Iterator[None]:
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("stopped")
def test_the_stacks_say_where_it_stands(tmp_path: Path) -> None:
    stacks = StackTimer(tmp_path / "rank0.stacks.txt", 0.01)
    stacks.moved(0)
    while not stacks.path.stat().st_size:
        time.sleep(0.01)  # here it stands
    text = stacks.path.read_text()
    assert text.startswith("Timeout")
    assert "in test_the_stacks_say_where_it_stands" in text
    stacks.close(keep=False)
