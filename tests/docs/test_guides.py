"""Every command in the guides does what its page says: it is run, in order, and exits as the comment behind it says.

Then come the blocks of Python, in the same folder, each of which prints what the page shows.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
SESSION = re.compile(r"^```python\n(>>> .*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<line>.*?)(?:\s{2,}# exit (?P<status>\d+|any))?$")


def commands(guide: Path) -> list[tuple[str, str]]:
    """(command line, exit status) of each command of a page."""
    lines = [line for block in BLOCK.findall(guide.read_text(encoding="utf-8")) for line in block.splitlines()]
    found = [match for line in lines if (match := COMMAND.match(line))]
    return [(match["line"], match["status"] or "0") for match in found]


def sessions(guide: Path) -> list[str]:
    """The blocks of a page that are typed into Python."""
    return SESSION.findall(guide.read_text(encoding="utf-8"))


def test_there_are_commands() -> None:
    assert sum(len(commands(guide)) for guide in GUIDES) > 20
    assert sum(len(sessions(guide)) for guide in GUIDES) > 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_commands_do_what_the_page_says(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line, status in commands(guide):
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        assert status in ("any", str(done.returncode)), f"{line}\n{done.stdout}\n{done.stderr}"
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for session in sessions(guide):
        runner.run(doctest.DocTestParser().get_doctest(session, {}, guide.name, str(guide), 0))
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
