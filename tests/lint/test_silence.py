"""Comments and baselines take out what a reader has settled, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from genlock.errors import UnreadableInput
from genlock.lint.run import lint
from genlock.lint.silence import write_baseline
from linted import ALL, rules

SOURCE = """
def f(rank, x, tp_group):
    if rank == 0:{decision}
        dist.all_reduce(x{group}){call}
"""


@pytest.mark.parametrize(
    "comments",
    [
        {"decision": "  # genlock: uniform(all hosts see one file)"},
        {"call": "  # genlock: uniform(all hosts see one file)"},
        {"group": ", group=tp_group", "decision": "  # genlock: member(tp)"},
        {"group": ", group=tp_group", "decision": "  # genlock: member(tp_group)"},
    ],
    ids=str,
)
def test_a_comment_settles_a_finding(tmp_path: Path, comments: dict[str, str]) -> None:
    blank = {"decision": "", "group": "", "call": ""}
    assert rules(tmp_path, SOURCE.format(**{**blank, **comments})) == []
    assert rules(tmp_path, SOURCE.format(**{**blank, "group": comments.get("group", "")})) == ["GL101"]


@pytest.mark.parametrize("comment", ["uniform()", "member(tp)", "uniform", "even(x)"])
def test_a_comment_without_a_reason_or_of_another_group_settles_nothing(tmp_path: Path, comment: str) -> None:
    source = SOURCE.format(decision=f"  # genlock: {comment}", group="", call="")
    assert rules(tmp_path, source) == ["GL101"]


def test_a_comment_on_a_line_of_its_own_speaks_of_the_next(tmp_path: Path) -> None:
    source = "def f(rank):\n    # genlock: uniform(one rank a job)\n    if rank == 0:\n        dist.barrier()\n"
    assert rules(tmp_path, source) == []


def test_a_comment_behind_code_does_not_speak_of_the_next_line(tmp_path: Path) -> None:
    source = "def f(rank):\n    x = 1  # genlock: uniform(one)\n    if rank == 0:\n        dist.barrier()\n"
    assert rules(tmp_path, source) == ["GL101"]


def test_a_baseline_leaves_out_what_it_has_wherever_it_has_moved(tmp_path: Path) -> None:
    program, baseline = tmp_path / "p.py", tmp_path / "baseline.json"
    source = "import torch.distributed as dist\ndef f(rank):\n    if rank == 0:\n        dist.barrier()\n"
    program.write_text(source)
    write_baseline(baseline, lint([program], ALL).findings)
    settings = replace(ALL, baseline=baseline)
    assert lint([program], settings).findings == ()
    program.write_text("# a line more\n" + source)
    assert lint([program], settings).findings == ()
    program.write_text(source + "def g(rank):\n    if rank == 0:\n        dist.barrier()\n")
    assert [finding.function for finding in lint([program], settings).findings] == ["g"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2, "findings": {}}', '{"schema": 1, "findings": {"a": "b"}}'])
def test_a_baseline_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.py").write_text("")
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UnreadableInput, match=r"b\.json"):
        lint([tmp_path / "p.py"], replace(ALL, baseline=tmp_path / "b.json"))
