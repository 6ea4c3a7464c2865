"""Writes a report: as text, as JSON, as JUnit XML, or as GitHub's annotations. SARIF is `sarif`'s."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .. import junit
from .findings import Finding
from .rules import RULES, Level
from .run import Report


def as_text(report: Report) -> str:
    """Return the findings that are to be shown, a line each, and a line of counts."""
    shown = report.at_least(min(report.settings.show, report.settings.fail_on))
    counted = Counter(finding.level for finding in report.findings)
    found = ", ".join(_count(counted[level], level.name) for level in reversed(Level))
    hidden = len(report.findings) - len(shown)
    tail = f" ({_count(hidden, 'finding')} below `--show`)" if hidden else ""
    lines = [_line(finding) for finding in shown]
    lines.append(f"{found} in {_count(report.files, 'file')}, {report.lines:,} lines{tail}")
    if shown:
        lines.append(f"A rule's page: genlock lint --explain {shown[0].rule}")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    return (
        f"{finding.path}:{finding.line}:{finding.column + 1}: {finding.level.name} {finding.rule} {finding.message}"
        f" [source {finding.source.name.lower()}, verdict {finding.verdict.name.lower()}]"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def as_json(report: Report) -> dict[str, Any]:
    """Return all findings as data, schema 1."""
    return {
        "schema": 1,
        "files": report.files,
        "lines": report.lines,
        "failed": report.failed,
        "findings": [
            {
                "rule": finding.rule,
                "name": RULES[finding.rule].name,
                "level": finding.level.name,
                "source": finding.source.name.lower(),
                "verdict": finding.verdict.name.lower(),
                "path": finding.path,
                "line": finding.line,
                "column": finding.column + 1,
                "message": finding.message,
                "function": finding.function,
                "collective": finding.collective,
                "collective_line": finding.at,
                "group": finding.group,
                "decided_at": list(finding.decided_at),
            }
            for finding in report.findings
        ],
    }


def as_junit(report: Report) -> str:
    """Return a test case for each finding; those at the level that fails are failures."""
    cases = [
        junit.Case(
            finding.path,
            f"{finding.rule} line {finding.line}",
            "failure" if finding.level >= report.settings.fail_on else "skipped",
            f"{finding.level.name}: {finding.message}",
            _line(finding),
        )
        for finding in report.findings
    ]
    return junit.as_xml("genlock lint", cases or [junit.Case("genlock.lint", "nothing found")])


def as_github(report: Report) -> str:
    """Return workflow commands, which GitHub shows beside the lines of a pull request."""
    commands = {Level.error: "error", Level.warning: "warning", Level.note: "notice"}
    return "\n".join(
        f"::{commands[finding.level]} file={_property(finding.path)},line={finding.line},col={finding.column + 1},"
        f"title={_property(f'{finding.rule} {RULES[finding.rule].name}')}::{_data(finding.message)}"
        for finding in report.at_least(min(report.settings.show, report.settings.fail_on))
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
