"""The page in shared memory, as a rank writes it and a guardian reads it."""

from __future__ import annotations

import os

import pytest
from genlock.guardian.status_page import CHECK, EVERYONE, NOBODY, RECORD, SIZE, SLOT, Page
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
    assert not page.torn


WRITTEN = RECORD.size + CHECK.size


@given(st.integers(0, WRITTEN - 1), st.booleans())
def test_of_a_write_that_is_caught_anywhere_the_record_before_is_left(caught: int, wait: bool) -> None:
    """The rank stalls when so many bytes of a slot are written."""
    memory = memoryview(bytearray(SIZE))
    beat = Beat(memory)
    beat.phase("steady")
    beat.commit("call_id=1")
    whole, slot = bytes(memory), Page.read(memory)
    beat.enter() if wait else beat.commit("call_id=2")
    after, begin = bytes(memory), next(k for k in (0, SLOT) if memory[k : k + SLOT] != whole[k : k + SLOT])
    memory[:] = whole
    memory[begin : begin + caught] = after[begin : begin + caught]
    page = Page.read(memory)
    assert page is not None
    assert slot is not None
    assert (page.edition, page.counter, page.waiting) == (slot.edition, slot.counter, NOBODY)
    assert (page.phase, page.commit) == ("steady", "call_id=1")
    assert page.torn == (memory[begin : begin + SLOT] != whole[begin : begin + SLOT])


@given(st.binary(min_size=2 * SLOT, max_size=2 * SLOT).filter(any))
def test_a_page_that_nobody_can_read_is_torn_and_not_absent(raw: bytes) -> None:
    page = Page.read(memoryview(bytearray(raw.ljust(SIZE, b"\0"))))
    assert page is not None
    assert page.torn
    assert page.edition == 0


def test_whoever_opens_a_page_again_goes_on_where_it_was() -> None:
    memory = memoryview(bytearray(SIZE))
    beats = [Beat(memory) for _ in range(2)]
    for n in range(6):
        beats[n // 2 % 2].commit(f"call_id={n}")
        page = Page.read(memory)
        assert page is not None
        assert (page.commit, page.edition) == (f"call_id={n}", n + 3)
