"""A file or module that a document or docstring names exists, so that no name of an earlier tree is left in prose.

These are followed: `room/file.py` and `room/folder/`; `genlock.room.module.name`, also as `from genlock.room import
name`; in code spans `room.module.name` and `module.Name`; and in the docstring of a module names in parentheses, as in
"Left out: printing (`report`)", which are its neighbours'.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import genlock
import pytest
from repository import ROOT

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = sorted([*(ROOT / name for name in TOP), *(ROOT / "docs").rglob("*.md")])
ROOMS = ("cli", "page", "guardian", "examples", "scripts")
"""Folders whose docstrings are followed, beside those of the modules at the root."""
SOURCES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
OLD_NAMES = "moving-to-0.2.md"
"""Its tables have the names of 0.1 in their first column."""
USERS_OWN = {"FILE.py", "train.py", "ci/our_protocol.py", "tests/smoke.py", "pan.c"}
"""Files that a user has, or that Spin writes."""

FILE = re.compile(r"(?<![\w/.*<-])([A-Za-z_][\w/-]*\.(?:py|sh|c))\b(?![\w.])")
PACKAGE = re.compile(r"(?<![\w/.-])genlock((?:\.[A-Za-z_]\w*)+)")
IMPORT = re.compile(r"^\s*from genlock((?:\.\w+)*) import ([\w, ]+)$", re.MULTILINE)
OF_A_MODULE = re.compile(r"([a-z]\w*)\.([A-Z]\w*)")
FOREIGN = {"dist", "torch", "threading", "genlock"}
"""Before a name in a span, what is no module of ours, or is followed already."""
SPAN = re.compile(r"`([^`\n]+)`")
NEIGHBOURS = re.compile(r"\(((?:`\w[\w.]*`(?:, | and )?)+)\)")
SUFFIXES = {"py", "pyi", "json", "jsonl", "xml", "txt", "html", "css", "js", "svg", "png", "mmd", "pml"}
"""Of files: `page.html` is no name in the package `page`."""
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
MODULES = {path.stem for path in ROOT.glob("*.py")}


@cache
def files() -> frozenset[str]:
    """Every source file of the repository, by its path from the root."""
    skipped = {"build", "typings", "__pycache__"}
    found = (path.relative_to(ROOT) for end in ("py", "sh", "c") for path in ROOT.rglob(f"*.{end}"))
    return frozenset(p.as_posix() for p in found if not any(x.startswith(".") or x in skipped for x in p.parts))


def is_file(name: str, near: Path) -> bool:
    """True for a path from the root or from where it is named, and for a bare name that some file has."""
    unpacked = name.removeprefix("genlock/")  # as a clone or an archive is called
    if name in USERS_OWN or unpacked in files() or (near / name).exists():
        return True
    return "/" not in name and any(path.rpartition("/")[2] == name for path in files())


def is_name(dotted: str) -> bool:
    """True for a package, a module, or what one defines, by its name below `genlock`."""
    parts = dotted.split(".")
    if parts[0] in genlock.__all__:
        return True
    here = ROOT
    while parts and (here / parts[0] / "__init__.py").exists():
        here /= parts.pop(0)
    if parts and (here / f"{parts[0]}.py").exists():
        here /= f"{parts.pop(0)}.py"
    elif parts and here != ROOT:
        here /= "__init__.py"
    return not parts or (here.is_file() and parts[0] in defined(here))


def is_of_a_module(module: str, name: str) -> bool:
    """True where some module of that name defines the name."""
    found = [ROOT / path for path in files() if path.rpartition("/")[2] == f"{module}.py"]
    return any(name in defined(path) for path in found)


@cache
def defined(path: Path) -> frozenset[str]:
    """The names that a module defines or imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return frozenset(found)


def dangling(text: str, near: Path) -> Iterator[str]:
    """The names in a text that lead nowhere."""
    yield from (name for name in FILE.findall(text) if not is_file(name, near))
    yield from (f"genlock{name}" for name in PACKAGE.findall(text) if not is_name(name[1:]))
    for span in SPAN.findall(text):
        if re.fullmatch(r"(?:\w+/){2,}", span) and span.partition("/")[0] in PACKAGES and not (ROOT / span).is_dir():
            yield span
    for package, names in IMPORT.findall(text):
        dotted = (f"{package}.{name}".strip(".") for name in names.replace(" ", "").split(","))
        yield from (f"genlock.{name}" for name in dotted if not is_name(name))
    for span in SPAN.findall(text):
        of_a_module = OF_A_MODULE.fullmatch(span)
        if of_a_module and of_a_module[1] not in FOREIGN and not is_of_a_module(*of_a_module.groups()):
            yield span
            continue
        room, dot, rest = span.partition(".")
        is_module = dot and room in PACKAGES | MODULES and re.fullmatch(r"[\w.]+", rest)
        if is_module and rest.rpartition(".")[2] not in SUFFIXES and not is_name(span):
            yield span


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, and the strings behind its values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == OLD_NAMES:
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    assert sorted(set(dangling(text, path.parent))) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_docstrings_lead_somewhere(path: Path) -> None:
    assert sorted({name for text in docstrings(path) for name in dangling(text, path.parent)}) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_neighbours_that_a_module_names_exist(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    package = path.parent.relative_to(ROOT).as_posix().replace("/", ".").strip(".")
    wrong = []
    for listed in NEIGHBOURS.findall(text):
        for name in SPAN.findall(listed):
            near = f"{package}.{name}".strip(".")
            if not (is_name(near) or is_name(name) or is_file(name, path.parent)):
                wrong.append(name)
    assert wrong == []


def test_a_name_that_leads_nowhere_is_found() -> None:
    text = "`impl/serve.py`, model/protocols/tp_v1_1.py, genlock.model.nothing, `traces.format.Trace`, `traces.twins`"
    assert list(dangling(text, ROOT)) == ["impl/serve.py", "genlock.model.nothing", "traces.twins"]
    text = "from genlock.impl import parity\nfrom genlock import check, Row\n`schema.FIELDS`, `envelope.FIELDS`"
    text += ", `impl/seat/`, `impl/rank/`"
    assert list(dangling(text, ROOT)) == ["impl/seat/", "genlock.impl.parity", "envelope.FIELDS"]
    assert is_name("model.tables.Row")
    assert is_name("check")
    assert not is_name("model.tables.Column")
    assert not is_file("compiled.py", ROOT)
