"""The journal of a recording: its order decides whose place is whose; what cannot be written or read is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from genlock.traces import journal
from genlock.traces.journal import Ended, Job, Journal, Unrecorded, append, mark, place_of


def test_the_first_job_has_the_recordings_own_folder_and_all_of_its_ranks_get_it(tmp_path: Path) -> None:
    first, second, again = Job("r-a", 0, 2), Job("r-b", 0, 2), Job("r-a", 1, 2)
    assert [place_of(tmp_path, job) for job in (first, second, first, again, second, again)] == [
        tmp_path,
        tmp_path / "job2",
        tmp_path,
        tmp_path / "restart1",
        tmp_path / "job2",
        tmp_path / "restart1",
    ]
    assert place_of(tmp_path, Job("r-b", 1, 2)) == tmp_path / "job4"


def test_what_was_lost_is_marked_even_where_no_line_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    mark(tmp_path, "a trace that could not be opened")
    monkeypatch.setattr(os, "write", full)
    mark(tmp_path, "another")
    assert place_of(tmp_path, Job("r-a", 0, 2)) == tmp_path / "job-r-a-0"
    monkeypatch.undo()
    assert [line.what for line in Journal(tmp_path).all(Unrecorded)] == [
        "a trace that could not be opened",
        "its journal could not be written",
    ]
    journal.remove(tmp_path)
    assert Journal(tmp_path).lines == []


def test_a_line_that_cannot_be_read_is_no_silence(tmp_path: Path) -> None:
    append(tmp_path, Ended(0, 1))
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(b'{"kind":"unreco')
    [ended] = Journal(tmp_path).all(Ended)
    [told] = Journal(tmp_path).all(Unrecorded)
    assert (ended.status, told.what) == (0, "line 2 of the journal cannot be read")
