"""The page in shared memory, as a rank writes it and a guardian reads it."""

from __future__ import annotations

import os

import pytest
from genlock.guardian.status_page import EVERYONE, NOBODY, SIZE, Page
from genlock.impl.rank.heartbeat import Beat
from hypothesis import given
from hypothesis import strategies as st


def test_a_beat_without_a_guardian_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENLOCK_PAGE", raising=False)
    beat = Beat.open()
    with beat.waiting():
        beat.progress()


def test_who_waits_in_two_collectives_waits_until_both_are_complete() -> None:
    """As in a payload that goes in pieces: the first piece has come, and somebody has not sent the second."""
    memory = memoryview(bytearray(SIZE))
    beat = Beat(memory)

    def waiting() -> int:
        page = Page.read(memory)
        assert page is not None
        return page.waiting

    complete = [beat.issue(None), beat.issue(None)]
    seen = []
    for done in complete:
        seen.append(waiting())
        done(None)
    assert [*seen, waiting()] == [EVERYONE, EVERYONE, NOBODY]


@given(st.text(max_size=8), st.text(max_size=20), st.integers(-2, 600), st.floats(0, 1e6))
def test_a_page_is_read_as_it_was_written(phase: str, commit: str, rank: int, deadline: float) -> None:
    memory = memoryview(bytearray(SIZE))
    assert Page.read(memory) is None, "nobody has written"
    beat = Beat(memory)
    beat.phase(phase.replace("\0", ""), deadline=deadline)
    beat.commit(commit.replace("\0", ""))
    beat.enter(rank)
    page = Page.read(memory)
    assert page is not None
    assert (page.pid, page.counter, page.waiting, page.deadline) == (os.getpid(), 4, rank, deadline)
    assert page.position == (rank == EVERYONE)
    assert phase.replace("\0", "").encode()[:16].decode(errors="replace") == page.phase
    memory[8] |= 1  # as in the middle of a write
    assert Page.read(memory) is None
