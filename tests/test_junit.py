"""JUnit reports: what is written is read again, and pytest's own reports too."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from genlock.errors import UnreadableInput
from genlock.junit import Case, as_xml, from_xml

HERE = PurePath("report.xml")
CASES = (
    Case("genlock.check", "no_stranding"),
    Case("genlock.check", "clean_shutdown", "failure", "a rank <waits>", "1. rank0 issues\n2. rank1 waits"),
    Case("genlock.check", "crash_over_hang", "error", "no room"),
    Case("genlock.check", "no_false_abort", "skipped", "not asked for"),
)


def test_what_is_written_is_read_again() -> None:
    assert from_xml(as_xml("genlock check", CASES, 1.5), HERE).cases == CASES


def test_a_case_has_the_worst_of_its_outcomes_and_properties_are_those_of_all_suites() -> None:
    text = """<testsuites><testsuite><properties><property name="a" value="1"/></properties>
    <testcase classname="t" name="x"><skipped message="s"/><failure message="f">at</failure></testcase></testsuite>
    <testsuite><properties><property name="b" value="2"/></properties></testsuite></testsuites>"""
    suite = from_xml(text, HERE)
    assert suite.cases == (Case("t", "x", "failure", "f", "at"),)
    assert suite.properties == {"a": "1", "b": "2"}


@pytest.mark.parametrize("text", ["", "<testsuite", "<html/>", "{}"])
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnreadableInput, match=r"report\.xml: not a JUnit report") as caught:
        from_xml(text, HERE)
    assert "\n" not in str(caught.value)
