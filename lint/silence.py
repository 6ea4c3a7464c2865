"""Takes out findings that a reader has settled: by a comment in the program, or by a baseline file.

`# genlock: uniform(reason)` on a line says that all ranks decide alike there. `# genlock: member(group)` says that a
branch is taken by the members of a group, so that its collectives on that group are theirs. A baseline holds the
findings of one day; those are left out until the line, the function or the rule changes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import UnreadableInput
from . import names
from .findings import Finding

_COMMENT = re.compile(r"#\s*genlock:\s*(?P<what>uniform|member)\s*\(\s*(?P<about>[^)]*?)\s*\)")


def silenced(finding: Finding, lines: list[str]) -> bool:
    """Return whether a comment settles the finding: at its line, the collective's, the decision's, or just above."""
    for number in {finding.line, finding.at, *finding.decided_at}:
        for line in (number, number - 1):
            text = lines[line - 1] if 0 < line <= len(lines) else ""
            if line != number and not text.lstrip().startswith("#"):
                continue
            found = _COMMENT.search(text)
            if found is None or not found["about"]:
                continue
            if found["what"] == "uniform" or names.key(found["about"]) == finding.group:
                return True
    return False


def fingerprint(finding: Finding) -> str:
    """Return what makes a finding the same after lines have moved."""
    return f"{finding.path}|{finding.rule}|{finding.function}|{finding.collective}|{finding.text}"


def write_baseline(path: Path, findings: Iterable[Finding]) -> None:
    """Write the findings of today."""
    counted = Counter(fingerprint(finding) for finding in findings)
    path.write_text(json.dumps({"schema": 1, "findings": dict(sorted(counted.items()))}, indent=1) + "\n")


def without_baseline(path: Path, findings: list[Finding]) -> list[Finding]:
    """Return the findings that the baseline does not have."""
    left = Counter(_read_baseline(path))
    new = []
    for finding in findings:
        name = fingerprint(finding)
        if left[name] > 0:
            left[name] -= 1
        else:
            new.append(finding)
    return new


def _read_baseline(path: Path) -> dict[str, int]:
    do = "write it again with --write-baseline"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableInput(str(error.strerror), where=str(path), do=do) from None
    except ValueError:
        raise UnreadableInput("no baseline: it is no JSON", where=str(path), do=do) from None
    found = data.get("findings") if isinstance(data, dict) and data.get("schema") == 1 else None
    if not isinstance(found, dict) or not all(isinstance(n, int) for n in found.values()):
        raise UnreadableInput("no baseline of schema 1", where=str(path), do=do)
    return found
