"""Writes and reads JUnit XML: one suite, its cases, and for each that did not pass why. Every verdict goes this way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args
from xml.etree import ElementTree

from .errors import UnreadableInput

Outcome = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class Case:
    """Holds one test case. `message` is a line, `text` all that is known; both are of a case that did not pass."""

    classname: str
    name: str
    outcome: Outcome = "passed"
    message: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """Holds a report that was read: its cases, in order, and the properties of its suites by name."""

    cases: tuple[Case, ...]
    properties: Mapping[str, str]


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


def from_xml(text: str, where: PurePath) -> Suite:
    """Return what a report says, be it of one suite or of several. Raises UnreadableInput for anything else.

    A case with several outcomes has the worst of them: a test that passed and whose teardown failed is an error.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UnreadableInput(f"not a JUnit report: {error}", where=str(where)) from None
    if root.tag not in ("testsuite", "testsuites"):
        raise UnreadableInput(f"not a JUnit report: its root is <{root.tag}>", where=str(where))
    properties = {found.get("name", ""): found.get("value", "") for found in root.iterfind(".//properties/property")}
    return Suite(tuple(map(_case, root.iter("testcase"))), properties)


def _case(element: ElementTree.Element) -> Case:
    classname, name = element.get("classname", ""), element.get("name", "")
    for outcome in get_args(Outcome)[1:]:
        if (found := element.find(outcome)) is not None:
            return Case(classname, name, outcome, found.get("message", ""), found.text or "")
    return Case(classname, name)
