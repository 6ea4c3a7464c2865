"""One version: of the package, of its metadata, and of the changelog's first section."""

from __future__ import annotations

import re
import tomllib

import genlock
from repository import ROOT


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    released = re.findall(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] == genlock.__version__ == released[0][0]


def test_every_section_of_the_changelog_has_its_date_and_newest_is_first() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) – (\d{4}-\d\d-\d\d)", heading) for heading in headings]
    assert all(released)
    numbers = [tuple(map(int, found.groups()[:3])) for found in released if found]
    dates = [found[4] for found in released if found]
    assert numbers == sorted(numbers, reverse=True)
    assert dates == sorted(dates, reverse=True)
