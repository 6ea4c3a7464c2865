"""`genlock render` writes each kind of picture in each of its formats, and says in one line what it cannot draw."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from genlock.cli.render import render
from genlock.errors import UsageError
from repository import CORPUS, ROOT

BROKEN = CORPUS / "broken"
STARTS = {"svg": "<", "png": "\x89PNG", "dot": "digraph", "mermaid": "s", "html": "<!doctype html>"}
PICTURES = {
    "states": (("tp_v1.1", "worker"), "tp_v0"),
    "sequence": (("tp_v1.1", "acks_agree"), "send_noop"),
    "counterexample": (("FM-04",), "FM-07"),
    "trace": ((str(BROKEN / "OM-03-fewer"),), str(BROKEN / "FM-04")),
}
"""What is drawn, and what it is compared with."""
needs_programs = pytest.mark.skipif(
    shutil.which("dot") is None or shutil.which("rsvg-convert") is None, reason="`dot` or `rsvg-convert` is missing"
)


@needs_programs
@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_in_every_format_that_it_has(picture: str, tmp_path: Path) -> None:
    subjects, other = PICTURES[picture]
    for format, start in STARTS.items():
        for against in (None, other):
            out = tmp_path / f"{format}-{against is None}"
            if (format == "dot" and picture != "states") or (format == "html" and against):
                with pytest.raises(UsageError):
                    render(picture, subjects, format, out, against)
                assert not out.exists()
                continue
            assert render(picture, subjects, format, out, against) == [out]
            assert out.read_bytes().decode("latin-1").startswith(start), (picture, format)
    for format in ("svg", "mermaid"):
        assert (tmp_path / f"{format}-True").read_bytes() != (tmp_path / f"{format}-False").read_bytes()


def test_several_roles_are_several_files(tmp_path: Path) -> None:
    assert render("states", ["tp_v0"], "dot", tmp_path / "a.dot") == [
        tmp_path / "a-rank0.dot",
        tmp_path / "a-worker.dot",
    ]


def test_a_mutant_can_be_drawn_and_compared_with_the_whole_protocol(tmp_path: Path) -> None:
    (path,) = render("states", ["FM-02", "worker"], "mermaid", tmp_path / "a", "tp_v1.1")
    changed = [line for line in path.read_text(encoding="utf-8").splitlines() if " : ~ " in line]
    assert [line.split()[0] for line in changed] == ["READY", "GENERATING"]
    assert "one call less than the plan says" in changed[0]
    assert "no longer asks that observed calls == expected calls" in changed[1]


@pytest.mark.parametrize(
    ("picture", "subjects", "format", "other", "message"),
    [
        ("states", ["tp_v1.1", "boss"], "svg", None, "tp_v1.1 has no role `boss`; choose one of rank0, worker"),
        ("states", ["tp_v9"], "svg", None, "tp_v9"),
        ("states", ["tp_v1.1"], "html", "tp_v0", "--diff: a page shows one thing"),
        ("counterexample", [], "svg", None, "render counterexample: name one mutant"),
        ("counterexample", ["FM-04"], "dot", None, "--format dot: a sequence chart is no graph"),
        ("sequence", ["tp_v1.1", "fly"], "svg", None, "no run has fly; name an event that can happen"),
        ("trace", [], "svg", None, "render trace: name the traces of a run"),
        ("trace", [], "html", None, "name the traces of a run"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    picture: str, subjects: list[str], format: str, other: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        render(picture, subjects, format, tmp_path / "a", other)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_different_numbers_of_ranks_are_not_compared(tmp_path: Path) -> None:
    two = str(BROKEN.parent / "struck" / "worker-ready-raise")
    with pytest.raises(UsageError, match="--diff: 2 ranks there, 3 here"):
        render("trace", [str(BROKEN / "FM-04")], "svg", tmp_path / "a", two)


# ── the pictures of the documents ───────────────────────────────────────────────────────────────────

FOLDER = ROOT / "docs" / "pictures"


def test_every_picture_of_the_documents_is_made_by_the_command_and_shown() -> None:
    made = set(re.findall(r'"([\w.-]+\.(?:png|svg))"', (ROOT / "scripts" / "pictures.py").read_text(encoding="utf-8")))
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/pictures.md")]
    shown = set(re.findall(r"pictures/([\w.-]+\.(?:png|svg))", "".join(texts)))
    assert {path.name for path in FOLDER.iterdir()} == made == shown


@pytest.mark.parametrize(
    ("name", "picture", "subjects"),
    [
        ("sequence.svg", "sequence", ["tp_v1.1", "acks_agree"]),
        ("trace.svg", "trace", [str(BROKEN / "OM-03-fewer")]),
        ("FM-04.svg", "counterexample", ["FM-04"]),
    ],
)
def test_a_chart_of_the_documents_is_what_the_command_draws_now(
    name: str, picture: str, subjects: list[str], tmp_path: Path
) -> None:
    render(picture, subjects, "svg", tmp_path / name)
    assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), "make pictures"
