"""What was done before, held against what comes."""

from __future__ import annotations

from genlock.conformance.collectives.history import RECENT, Break, expected, first_break
from hypothesis import given
from hypothesis import strategies as st

LOOPS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@given(LOOPS, st.integers(3, 6))
def test_a_loop_goes_on_as_it_did(body: list[int], times: int) -> None:
    done = body * times
    for at in range(2 * len(body), len(done)):
        assert expected(done[:at], range(4)) == done[at]


@given(LOOPS, st.integers(2, 4), st.data())
def test_what_was_never_done_breaks_a_habit(body: list[int], times: int, data: st.DataObject) -> None:
    """Ten times over, because the first round may itself surprise."""
    done = body * 10 * times
    at = data.draw(st.integers(len(done) - RECENT + 1, len(done) - 1))
    assert first_break(done) is None
    found = first_break([*done[:at], 9, *done[at:]][: len(done)])
    assert found is not None
    assert found.at == at


def test_one_left_out_and_one_too_many_are_found_after_one_round() -> None:
    assert first_break(list("abcdab" + "d")) == Break(6, 2)
    assert first_break(list("abcdab" + "b")) == Break(6, 2)
    assert first_break(list("abcdabcd")) is None


def test_the_past_decides_only_if_it_speaks_for_one() -> None:
    assert expected("abab", "ac") == "a"
    assert expected("abac", "bc") is None
    assert expected("", "ab") is None
    assert expected("xyxy", "ab") is None
