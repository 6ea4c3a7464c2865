"""A report of pytest is evidence for the files that it tested, as they are now; all else is not shown."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from genlock.contract.claims import HAZARDS, P0, P1, Claim
from genlock.contract.evidence import Evidence, reported_tests
from genlock.contract.pytest_report import DIGEST, REPORT, tree_digest
from genlock.contract.ship import Status, judge
from genlock.junit import Case, as_xml
from repository import ROOT

GOOD, BAD = "tests/impl/test_good.py", "tests/test_bad.py"
FILES = {
    "__init__.py": "",
    "impl/__init__.py": "",
    "traces/__init__.py": "",
    "traces/corpus/rank0.trace.jsonl": "{}",
    "docs/page.md": "",
    "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\naddopts = ["--import-mode=importlib"]\n',
    GOOD: "import pytest\ndef test_one(): pass\n@pytest.mark.parametrize('n', [1, 2])\ndef test_two(n): pass\n",
    BAD: "def test_three(): assert True\n",
}  # fmt: skip
PASSED = (Case("tests.impl.test_good", "test_one"), Case("tests.impl.test_good.TestIt", "test_two[1]"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two files of tests."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def report(checkout: Path, *cases: Case, digest: str | None = None) -> dict[str, Evidence]:
    """Read the evidence of a report with these cases, of the checkout as it is or, with `digest`, of another."""
    text = as_xml("pytest", cases)
    marked = f'><properties><property name="{DIGEST}" value="{digest or tree_digest(checkout)}"/></properties>'
    path = checkout / REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.replace("><testcase", f"{marked}<testcase", 1) if digest != "" else text)
    return dict(reported_tests(checkout))


def test_a_file_is_good_where_all_its_tests_passed(checkout: Path) -> None:
    found = report(checkout, *PASSED, Case("tests.test_bad", "test_three", "failure", "assert False"))
    assert found[f"test:{GOOD}"] == Evidence(True, "2 passed", "run by `make test`")
    assert found[f"test:{BAD}"].good is False
    assert found[f"test:{BAD}"].says == "0 passed, 1 FAILED, first test_three: assert False"


def test_what_was_skipped_is_told_and_a_file_of_which_nothing_ran_is_not_shown(checkout: Path) -> None:
    skipped = Case("tests.test_bad", "test_three", "skipped", "no browser here")
    found = report(checkout, *PASSED, Case("tests.impl.test_good", "test_more", "skipped", "no GPU"), skipped)
    good, bad = found[f"test:{GOOD}"], found[f"test:{BAD}"]
    assert (good.good, good.says, good.lacks) == (True, "2 passed, 1 skipped: no GPU", "1 skipped: no GPU")
    assert (bad.good, bad.says) == (None, "0 passed, 1 skipped: no browser here")


def test_a_file_that_was_not_run_is_not_shown(checkout: Path) -> None:
    found = report(checkout, *PASSED)
    assert found[f"test:{BAD}"] == Evidence(None, "pytest has reported no test of it", "run by `make test`")


def test_a_file_that_could_not_be_collected_has_failed_and_what_is_of_no_file_is_not_lost(checkout: Path) -> None:
    broken = Case("", "tests.test_bad", "error", "collection failure")
    found = report(checkout, *PASSED, broken, Case("elsewhere", "test_x", "error", "no such fixture"))
    assert [name for name, f in found.items() if f.good is False] == [f"test:{BAD}", "test:elsewhere"]


@pytest.mark.parametrize("changed", [GOOD, "impl/__init__.py", "pyproject.toml", "traces/corpus/rank0.trace.jsonl"])
def test_a_report_of_other_files_shows_nothing_and_says_what_to_do(checkout: Path, changed: str) -> None:
    report(checkout, *PASSED)
    path = checkout / changed
    path.write_text(path.read_text() + "\n")
    found = dict(reported_tests(checkout))
    assert {f.good for f in found.values()} == {None}
    assert found[f"test:{GOOD}"].says == (
        "build/tests.xml: of other code, tests or traces than are here; run `make test`"
    )


@pytest.mark.parametrize("changed", ["docs/page.md", "impl/README.md", "impl/__pycache__/x.pyc", "out/rank0.json"])
def test_documents_and_what_is_made_are_not_in_the_digest(checkout: Path, changed: str) -> None:
    report(checkout, *PASSED)
    path = checkout / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text("something else")
    assert dict(reported_tests(checkout))[f"test:{GOOD}"].good is True


def test_the_digest_is_of_paths_and_bytes_alone(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(checkout, copy)
    assert tree_digest(copy) == tree_digest(checkout)
    (copy / GOOD).rename(copy / "tests" / "test_moved.py")
    assert tree_digest(copy) != tree_digest(checkout)


def test_no_report_one_that_is_cut_and_one_of_a_part_of_a_file_show_nothing(checkout: Path) -> None:
    absent = dict(reported_tests(checkout))[f"test:{GOOD}"]
    assert absent.says == "build/tests.xml: pytest has reported nothing; run `make test`"
    unmarked = report(checkout, *PASSED, digest="")[f"test:{GOOD}"]
    assert unmarked.good is None
    assert unmarked.says.startswith("build/tests.xml: of a run that was cut short, or of a part of a file")
    (checkout / REPORT).write_text("<testsuite")
    assert "not a JUnit report" in dict(reported_tests(checkout))[f"test:{GOOD}"].says


def test_where_genlock_is_installed_without_tests_there_is_no_finding(tmp_path: Path) -> None:
    assert dict(reported_tests(tmp_path)) == {}


def pytest_run(checkout: Path, *args: str) -> dict[str, Evidence]:
    """Read the evidence of a real run with the project's own conftest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *args]
    subprocess.run([*command, f"--junitxml={REPORT}"], cwd=checkout, capture_output=True, check=False, timeout=60)
    return dict(reported_tests(checkout))


def test_a_test_that_is_made_to_fail_turns_its_line(checkout: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", checkout / "tests")
    line = Claim("P0-00", "", (), "", (f"test:{BAD}",))
    marker = ("-m", "not slow")
    assert judge(line, pytest_run(checkout, *marker)).status is Status.PASS
    (checkout / BAD).write_text("def test_three(): assert False\n")
    assert judge(line, dict(reported_tests(checkout))).status is Status.MISSING
    assert judge(line, pytest_run(checkout, *marker)).status is Status.FAIL
    assert judge(line, pytest_run(checkout, *marker, "-k", "one")).status is Status.MISSING


def test_every_file_of_tests_that_a_line_names_is_there() -> None:
    named = {pattern.partition(":")[2] for line in (*P0, *P1, *HAZARDS) for pattern in line.evidence}
    assert {name for name in named if name.startswith("tests/") and not (ROOT / name).is_file()} == set()
