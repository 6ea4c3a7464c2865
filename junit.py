"""Writes and reads JUnit XML: one suite, its cases, and for each that did not pass why. Every verdict goes this way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

Outcome = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class Case:
    """Holds one test case. `message` is a line, `text` all that is known; both are of a case that did not pass."""

    classname: str
    name: str
    outcome: Outcome = "passed"
    message: str = ""
    text: str = ""


def as_xml(name: str, cases: Iterable[Case], seconds: float | None = None) -> str:
    """Return a suite of these cases as an XML document. `seconds` is how long all of them took."""
    cases = list(cases)
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(cases)))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.outcome == kind for case in cases)))
    if seconds is not None:
        suite.set("time", f"{seconds:.3f}")
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=case.classname, name=case.name)
        if case.outcome != "passed":
            ElementTree.SubElement(element, case.outcome, message=case.message).text = case.text or None
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
