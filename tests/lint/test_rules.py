"""The page of each rule: its bad example is found by that rule, the mended one and the legal look-alikes are silent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from genlock.errors import UsageError
from genlock.lint.rules import RULES, explain, matching, rule
from genlock.lint.run import lint
from genlock.lint.settings import Settings
from repository import ROOT

ALL = Settings(select=("ALL",))
PAGES = ROOT / "docs" / "lint"


def example(number: str, heading: str) -> str:
    """Return the program below a heading of a rule's page."""
    text = (PAGES / f"{number}.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def rules_found(tmp_path: Path, program: str) -> set[str]:
    path = tmp_path / "program.py"
    path.write_text(program)
    return {finding.rule for finding in lint([path], ALL).findings}


@pytest.mark.parametrize("number", RULES)
def test_the_bad_example_is_found(tmp_path: Path, number: str) -> None:
    assert number in rules_found(tmp_path, example(number, "Bad"))


@pytest.mark.parametrize("heading", ["Mended", "Legal look-alikes"])
@pytest.mark.parametrize("number", RULES)
def test_the_mended_example_and_the_legal_ones_are_silent(tmp_path: Path, number: str, heading: str) -> None:
    assert rules_found(tmp_path, example(number, heading)) == set()


@pytest.mark.parametrize("number", RULES)
def test_each_rule_has_its_page(number: str) -> None:
    page = explain(number)
    assert page.startswith(f"# {number}: ")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [
        "Who waits for whom",
        "A public case",
        "Bad",
        "Mended",
        "Legal look-alikes",
        "Not seen",
        "How to silence it",
    ]
    assert RULES[number].id == number


def test_there_is_a_page_for_no_other_rule() -> None:
    assert {path.stem for path in PAGES.glob("GL*.md")} == set(RULES)


def test_rules_are_chosen_by_their_beginnings() -> None:
    assert matching(("GL102",)) == {"GL102"}
    assert matching(("gl10",)) == {f"GL10{n}" for n in range(1, 10)}
    assert matching(("ALL",)) == set(RULES)


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no rule begins with `GL2`"):
        matching(("GL2",))
    with pytest.raises(UsageError, match="GL101"):
        rule("GL999")
