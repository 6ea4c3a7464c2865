"""The table of a result: its text is escaped, and its colour follows the verdict."""

from __future__ import annotations

import pytest
from genlock.notebook import BAD, GOOD, OPEN, table


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [("holds", GOOD), ("conforming", GOOD), ("violated", BAD), ("divergent", BAD), ("unknown", OPEN)],
)
def test_the_verdict_has_its_colour(verdict: str, colour: str) -> None:
    assert f'color:{colour}">{verdict}<' in table("a run", verdict, [])


def test_text_is_never_markup() -> None:
    html = table("<b>", "holds", [("k < n", "one\ntwo")])
    assert "&lt;b&gt;" in html
    assert "k &lt; n" in html
    assert "one<br>two" in html
