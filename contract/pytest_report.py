"""Reads what pytest reported of this checkout's tests, file by file, for `genlock audit`.

`make test` writes the report (`tests/conftest.py`), with a digest of all that the tests ran on. A report of other code,
or of a run that was cut short, shows nothing. Left out: running tests, and what the lines of the contract claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from ..errors import UnreadableInput
from ..junit import Case, from_xml

REPORT = Path("build") / "tests.xml"
"""The report, below the root of the checkout."""
DIGEST = "genlock.digest"
"""The property of the report that says what it was made of; absent where the run was cut short."""
MAKE = "run `make test`"

_FOLDERS = ("bench", "examples", "scripts", "tests")
"""Folders besides the package whose files are tested, or test."""
_NOT_TESTED = (".md", ".pyc", ".so")


def tree_digest(root: Path) -> str:
    """Return a digest of code, tests, `pyproject.toml` and corpus below `root`: of each file its path and its bytes.

    Documents are not in it, nor what is built. It is the same on every machine that has the same files.
    """
    digest = sha256()
    for name, path in sorted(_tested(root)):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _tested(root: Path) -> Iterator[tuple[str, Path]]:
    folders = [path.parent for path in root.glob("*/__init__.py")] + [root / name for name in _FOLDERS]
    inside = (path for folder in folders for path in folder.rglob("*"))
    for path in (*root.glob("*.py*"), root / "pyproject.toml", *inside):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if not hidden and path.suffix not in _NOT_TESTED and path.is_file():
            yield "/".join(parts), path


def files(root: Path) -> list[str]:
    """Return the files of tests below `root`, as paths from there; none where genlock is installed without them."""
    return sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))


def cases_by_file(root: Path) -> dict[str, list[Case]]:
    """Return the cases of the report of `root` by the file of tests that they are in; others under their own name.

    Raises UnreadableInput where there is no report, and where it is not of the files as they are now.
    """
    path = root / REPORT
    try:
        suite = from_xml(path.read_text(encoding="utf-8"), path)
    except OSError:
        raise UnreadableInput("pytest has reported nothing", where=REPORT.as_posix(), do=MAKE) from None
    if DIGEST not in suite.properties:
        raise UnreadableInput("of a run that was cut short, or of a part of a file", where=REPORT.as_posix(), do=MAKE)
    if suite.properties[DIGEST] != tree_digest(root):
        raise UnreadableInput("of other code, tests or traces than are here", where=REPORT.as_posix(), do=MAKE)
    modules = {name.removesuffix(".py").replace("/", "."): name for name in files(root)}
    found: dict[str, list[Case]] = {}
    for case in suite.cases:
        found.setdefault(_file_of(case, modules), []).append(case)
    return found


def _file_of(case: Case, modules: Mapping[str, str]) -> str:
    """Return the file of a case; where it could not be collected, the report has the module as the case's name."""
    module = case.classname or case.name
    while module not in modules and "." in module:
        module = module.rpartition(".")[0]
    return modules.get(module, case.classname or case.name)


def summary(cases: Sequence[Case]) -> tuple[bool | None, str, str]:
    """Return whether the tests of a file passed (None: none ran), what came of them, and which were skipped and why."""
    bad = [case for case in cases if case.outcome in ("failure", "error")]
    skipped = [case for case in cases if case.outcome == "skipped"]
    passed = len(cases) - len(bad) - len(skipped)
    said = f"{passed} passed"
    if bad:
        said += f", {len(bad)} FAILED, first {bad[0].name}: {bad[0].message or bad[0].text}"
    why = "; ".join(dict.fromkeys(case.message for case in skipped))
    lacks = f"{len(skipped)} skipped: {why}" if skipped else ""
    return (False if bad else True if passed else None), _line(f"{said}, {lacks}" if lacks else said), _line(lacks)


def _line(text: str) -> str:
    return " ".join(text.split())[:600]
