"""Reads what to lint and what to leave out, from `[tool.genlock.lint]` of the nearest `pyproject.toml`.

Flags of the command come first; what they leave open is the file's. Left out: the flags themselves (`cli`).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UnreadableInput, UsageError
from .rules import RULES, Level, matching

EXCLUDED = ("test", "tests", "testing", "test_*.py", "*_test.py", "conftest.py")
"""Names of files and folders that are no program; a path that is given itself is linted all the same."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds the settings. `select` and `ignore` are rule numbers or their beginnings."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = EXCLUDED
    fail_on: Level = Level.error
    show: Level = Level.warning
    baseline: Path | None = None

    def rules(self) -> frozenset[str]:
        """Return the numbers of the rules that report. Without a selection, all but the optional ones."""
        default = frozenset(number for number, rule in RULES.items() if not rule.optional)
        return (matching(self.select) if self.select else default) - matching(self.ignore)


def read(beside: Path) -> Settings:
    """Return the settings of the nearest `pyproject.toml` at or above a path; the defaults where there is none."""
    start = beside.absolute()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            return _of_file(file)
    return Settings()


def _of_file(file: Path) -> Settings:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnreadableInput(f"no TOML: {error}", where=str(file), do="mend it") from None
    table = data.get("tool", {}).get("genlock", {}).get("lint", {})
    settings = Settings()
    for name, value in table.items():
        settings = _with(settings, name, value, file)
    settings.rules()  # names a rule that is none while its file is known
    return settings


def _with(settings: Settings, name: str, value: Any, file: Path) -> Settings:
    where = f"{file}, tool.genlock.lint.{name}"
    if name in ("select", "ignore", "exclude", "extend-exclude"):
        if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise UsageError("is no list of texts", where=where, do='write it as ["GL101"]')
        if name == "select":
            return replace(settings, select=tuple(value))
        if name == "ignore":
            return replace(settings, ignore=tuple(value))
        return replace(settings, exclude=(*(settings.exclude if name.startswith("extend") else ()), *value))
    if name in ("fail-on", "show"):
        if value not in Level.__members__:
            raise UsageError(f"`{value}` is no level", where=where, do=f"choose from {', '.join(Level.__members__)}")
        level = Level[value]
        return replace(settings, fail_on=level) if name == "fail-on" else replace(settings, show=level)
    if name == "baseline" and isinstance(value, str):
        return replace(settings, baseline=file.parent / value)
    raise UsageError(
        "is no setting", where=where, do="choose from select, ignore, exclude, extend-exclude, fail-on, show, baseline"
    )
