"""Writes a report as SARIF 2.1.0, which code scanning services read."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from .findings import Finding
from .rules import RULES, Level, Rule
from .run import Report
from .silence import fingerprint

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(report: Report, version: str) -> dict[str, Any]:
    """Return the log of one run: all rules, and a result for each finding."""
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "genlock lint", "version": version, "rules": [_rule(r) for r in _ORDER]}},
                "results": [_result(finding) for finding in report.findings],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


_ORDER = list(RULES.values())


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "defaultConfiguration": {"level": "note" if rule.optional else "error", "enabled": not rule.optional},
    }


def _result(finding: Finding) -> dict[str, Any]:
    others = sorted({finding.at, *finding.decided_at} - {finding.line})
    return {
        "ruleId": finding.rule,
        "ruleIndex": [rule.id for rule in _ORDER].index(finding.rule),
        "level": {Level.error: "error", Level.warning: "warning", Level.note: "note"}[finding.level],
        "message": {"text": finding.message},
        "locations": [_location(finding.path, finding.line, finding.column + 1)],
        "relatedLocations": [
            _location(finding.path, line) | {"id": number, "message": {"text": _says(finding, line)}}
            for number, line in enumerate(others, 1)
        ],
        "partialFingerprints": {"genlock/v1": hashlib.sha256(fingerprint(finding).encode()).hexdigest()[:32]},
        "properties": {"source": finding.source.name.lower(), "verdict": finding.verdict.name.lower()},
    }


def _says(finding: Finding, line: int) -> str:
    return f"{finding.collective} is called here" if line == finding.at else "decided here"


def _location(path: str, line: int, column: int | None = None) -> dict[str, Any]:
    absolute = PurePath(path).is_absolute()
    region: dict[str, int] = {"startLine": line}
    if column is not None:
        region["startColumn"] = column
    uri = ("file://" if absolute else "") + quote(path)
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}
