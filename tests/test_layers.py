"""Holds the layers that import-linter cannot see: what is packaged, and what the guardian imports."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from repository import ROOT

GUARDIAN = ROOT / "guardian"


def imports(source: str) -> set[str]:
    """Top-level names of all modules that a source imports anywhere; `.` for a relative import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
    return found


def test_imports_are_found() -> None:
    source = "import os.path, torch\nfrom . import x\ndef f():\n  from genlock.errors import Exit"
    assert imports(source) == {"os", "torch", ".", "genlock"}


@pytest.mark.parametrize("path", sorted(GUARDIAN.glob("*.py")), ids=lambda path: path.name)
def test_the_guardian_needs_the_standard_library_alone(path: Path) -> None:
    """`.` is itself: the guardian is a package, and must not reach out of it."""
    source = path.read_text()
    assert imports(source) <= sys.stdlib_module_names | {"."}
    assert "from .." not in source
    heavy = {"typing", "dataclasses", "subprocess", "asyncio", "ssl"}
    assert not imports(source) & heavy, "each is a megabyte on every rank"


def test_every_package_is_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    here = {".".join(["genlock", *path.relative_to(ROOT).parts[:-1]]) for path in sources("__init__.py")}
    assert set(shipped) == here


def sources(pattern: str) -> list[Path]:
    """Files of that name below the root, less what is hidden, built, or seen through a symlink."""
    skipped = {"build", "typings"}
    return [
        path
        for path in ROOT.rglob(pattern)
        if not any(part.startswith(".") or part in skipped for part in path.relative_to(ROOT).parts)
    ]
