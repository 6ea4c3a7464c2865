"""Reports say the same in each format; the command ends with the status of the worst finding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from genlock.cli.app import app
from genlock.lint.report import as_github, as_json, as_junit, as_text
from genlock.lint.rules import RULES, Level
from genlock.lint.run import Report
from genlock.lint.sarif import as_sarif
from linted import linted
from typer.testing import CliRunner

SOURCE = """
def f(rank, path, x):
    if rank == 0:
        dist.barrier()
    if path.exists():
        dist.all_reduce(x)
    for key in x.items():
        dist.all_reduce(x)
"""


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return linted(tmp_path, program=SOURCE)


def test_text_shows_what_is_asked_for(report: Report) -> None:
    lines = as_text(report).splitlines()
    assert len(lines) == 4
    assert ":7:9: error GL101 ranks where `rank == 0` is true wait in barrier" in lines[0]
    assert lines[0].endswith("[source certain, verdict certain]")
    assert lines[2] == "1 error, 1 warning, 1 note in 1 file, 11 lines (1 finding below `--show`)"
    everything = replace(report, settings=replace(report.settings, show=Level.note))
    assert len(as_text(everything).splitlines()) == 5


def test_json_has_all_findings(report: Report) -> None:
    data = json.loads(json.dumps(as_json(report)))
    assert data["schema"] == 1
    assert data["failed"] is True
    assert [(f["rule"], f["level"], f["line"]) for f in data["findings"]] == [
        ("GL101", "error", 7),
        ("GL108", "warning", 9),
        ("GL104", "note", 10),
    ]
    assert data["findings"][0]["decided_at"] == [6]


def test_sarif_has_rules_places_and_fingerprints(report: Report) -> None:
    (run,) = as_sarif(report, "1")["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    first = run["results"][0]
    assert RULES[first["ruleId"]].id == run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"]
    assert first["locations"][0]["physicalLocation"]["region"] == {"startLine": 7, "startColumn": 9}
    assert [other["physicalLocation"]["region"]["startLine"] for other in first["relatedLocations"]] == [6]
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]
    prints = [result["partialFingerprints"]["genlock/v1"] for result in run["results"]]
    assert len(set(prints)) == 3


def test_github_annotations_escape_what_would_end_them(report: Report) -> None:
    odd = replace(report.findings[0], path="a,b:c.py", message="50 %\nmore")
    first = as_github(replace(report, findings=(odd,)))
    assert first == "::error file=a%2Cb%3Ac.py,line=7,col=9,title=GL101 branch::50 %25%0Amore"
    assert len(as_github(report).splitlines()) == 2


def test_junit_fails_at_the_level_that_fails(report: Report) -> None:
    suite = ElementTree.fromstring(as_junit(report))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "2")
    clean = ElementTree.fromstring(as_junit(replace(report, findings=())))
    assert (clean.get("tests"), clean.get("failures")) == ("1", "0")


def status(*arguments: str | Path) -> int:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)]).exit_code


@pytest.mark.parametrize(
    ("test", "fail_on", "expected"),
    [
        ("rank == 0", "error", 1),
        ("path.exists()", "error", 0),
        ("path.exists()", "warning", 1),
        ("rank == 0", "note", 1),
        ("args.sync", "note", 0),
    ],
)
def test_the_level_decides_the_status(tmp_path: Path, test: str, fail_on: str, expected: int) -> None:
    path = tmp_path / "p.py"
    head = "import torch.distributed as dist\ndef f(rank, path, args):\n"
    path.write_text(f"{head}    if {test}:\n        dist.barrier()\n")
    assert status(path, "--fail-on", fail_on) == expected


def test_rules_are_selected_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("import torch.distributed as dist\ndef f(rank):\n    if rank == 0:\n        dist.barrier()\n")
    assert status(path, "--select", "GL102,GL103") == 0
    assert status(path, "--ignore", "GL101") == 0
    assert status(path, "--select", "GL101") == 1


def test_a_baseline_is_written_and_read(tmp_path: Path) -> None:
    path, baseline = tmp_path / "p.py", tmp_path / "b.json"
    path.write_text("import torch.distributed as dist\ndef f(rank):\n    if rank == 0:\n        dist.barrier()\n")
    assert status(path, "--write-baseline", baseline) == 0
    assert status(path, "--baseline", baseline) == 0
    assert status(path) == 1


@pytest.mark.parametrize("form", ["text", "json", "sarif", "github", "junit"])
def test_each_format_is_printed(tmp_path: Path, form: str) -> None:
    (tmp_path / "p.py").write_text("x = 1\n")
    assert status(tmp_path, "--format", form) == 0


def test_a_page_is_printed() -> None:
    result = CliRunner().invoke(app, ["lint", "--explain", "gl102"])
    assert result.exit_code == 0
    assert result.output.startswith("# GL102: some ranks leave")


@pytest.mark.parametrize("arguments", [["missing.py"], [], ["--explain", "GL1"], ["--select", "X", "."]])
def test_wrong_use_ends_with_2(arguments: list[str]) -> None:
    assert status(*arguments) == 2
