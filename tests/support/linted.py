"""Lints programs that a test writes as text."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from genlock.lint.run import Report, lint
from genlock.lint.settings import Settings

HEAD = "import os\nimport torch\nimport torch.distributed as dist\n"
ALL = Settings(select=("ALL",))


def linted(folder: Path, settings: Settings = ALL, **sources: str) -> Report:
    """Write files of these names into a folder, below lines that import torch, and lint it."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(HEAD + dedent(source))
    return lint([folder], settings)


def rules(folder: Path, source: str) -> list[str]:
    """Return the rules that a program breaks, note or not, in the order of its lines."""
    return [finding.rule for finding in linted(folder, program=source).findings]


def shown(folder: Path, source: str) -> list[str]:
    """Return the rules that a program breaks at the level that is shown by default."""
    report = linted(folder, program=source)
    return [finding.rule for finding in report.at_least(report.settings.show)]
