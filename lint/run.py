"""Lints paths: reads, analyses, finds, and takes out what is settled. The one way in for the command and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .findings import Finding, find
from .functions import analyse
from .package import read
from .rules import Level
from .settings import Settings
from .silence import silenced, without_baseline


@dataclass(frozen=True, slots=True)
class Report:
    """Holds what was found, in the order of files and lines, and how much was read."""

    findings: tuple[Finding, ...]
    files: int
    lines: int
    settings: Settings

    def at_least(self, level: Level) -> list[Finding]:
        """Return the findings of that level and above."""
        return [finding for finding in self.findings if finding.level >= level]

    @property
    def failed(self) -> bool:
        """Return whether something was found at the level that fails."""
        return bool(self.at_least(self.settings.fail_on))


def lint(paths: Sequence[Path | str], settings: Settings | None = None) -> Report:
    """Return what is found in the files, and in all Python files below the folders.

    Files that are given together are read together: calls from one into another are followed.
    """
    settings = settings or Settings()
    wanted = settings.rules()
    package = read([Path(path) for path in paths], settings.exclude)
    modules = {module.path: module for module in package.modules.values()}
    found = [finding for finding in find(analyse(package)) if finding.rule in wanted]
    kept = [finding for finding in found if not silenced(finding, modules[finding.path].lines)]
    if settings.baseline is not None:
        kept = without_baseline(settings.baseline, kept)
    lines = sum(len(module.lines) for module in modules.values())
    return Report(tuple(kept), len(modules), lines, settings)
