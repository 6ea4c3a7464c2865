"""The public interface: what `import genlock` offers, lazily and typed, and that its own examples are true."""

from __future__ import annotations

import ast
import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from typing import assert_type

import genlock
import pytest
from genlock import api
from genlock.errors import Exit, UnreadableInput, UsageError
from repository import CORPUS, PROTOCOL_M, ROOT

HEAVY = {"numpy", "networkx", "torch", "rich", "typer", "msgspec", "numba"}
HOME_OF: dict[str, str] = vars(genlock)["_HOME_OF"]
"""Module of each public name."""
NEED_TORCH = {
    "serve", "RankModel", "Driver", "chunk_fields", "Posture", "Mode", "channel", "Channel", "precheck", "agree",
    "guard",
}  # fmt: skip


def python(code: str) -> str:
    """Run code in a fresh interpreter; what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_of_the_module_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CORPUS / "broken" / "FM-04", tmp_path / "run2")
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(genlock)
    assert (failed, tried > 10) == (0, True)


def test_every_public_name_has_one_home_and_a_type() -> None:
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    typed = {alias.asname or "" for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(genlock.__all__) == sorted(set(genlock.__all__)) == sorted(HOME_OF) == sorted(typed)
    listed = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(listed) == sorted(genlock.__all__)
    homes = {
        f"{node.module}.{alias.name}" for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert homes == {f"{module}.{name}" for name, module in HOME_OF.items()}


def test_every_public_name_can_be_had_and_says_what_it_is() -> None:
    for name in genlock.__all__:
        found = getattr(genlock, name)
        assert found.__name__ == name
        assert found.__doc__
        assert f"`{name}`" in (genlock.__doc__ or "")
    assert set(genlock.__all__) <= set(dir(genlock))


def test_a_name_that_does_not_exist_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute `chek`"):
        _ = genlock.chek  # type: ignore[attr-defined]


def test_importing_genlock_loads_nothing_and_checking_no_torch() -> None:
    first, second = python(
        "import sys, genlock; print(*sys.modules); genlock.check(ranks=2, chunks=1, faults=0)\nprint(*sys.modules)"
    ).splitlines()
    assert not HEAVY & set(first.split())
    assert not {"torch", "rich", "typer"} & set(second.split())


def test_without_torch_help_works_and_serving_says_what_is_missing() -> None:
    printed = python(
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torch' else found(name)\n"
        "import genlock, pydoc\n"
        "from genlock import *\n"
        "assert check is genlock.check\n"
        "print(pydoc.plain(pydoc.render_doc(genlock)))\n"
        "try: genlock.serve\n"
        "except ImportError as error: print(error)\n"
    )
    assert "Can a rank of my job ever be left waiting" in printed
    assert "check(protocol" in printed
    assert "class RankModel" not in printed
    assert printed.rstrip().endswith("genlock.serve needs torch; pip install 'genlock[run]'")


def test_a_check_takes_a_name_a_file_or_an_object() -> None:
    params = {"W": 2, "C": 1, "K": 1}
    by_file = genlock.check(str(PROTOCOL_M), params=params)
    by_path = genlock.check(PROTOCOL_M, params=params)
    by_object = genlock.check(genlock.load_protocol(PROTOCOL_M, params))
    assert by_file.result.graph.counts == by_path.result.graph.counts == by_object.result.graph.counts
    assert by_object.protocol == "protocol_m"


def test_a_check_is_bounded_and_told_what_may_fail() -> None:
    report = genlock.check(ranks=2, chunks=1, steps=1, fault=["crash@READY"], transport="stream", detection=True)
    network = report.network
    assert (network.ranks, network.scope.chunks, network.scope.steps, network.stream) == (2, 1, 1, True)
    assert report.as_json()["faults"] == {"crash": ["READY"]}
    assert genlock.as_json(report) == report.as_json()
    assert genlock.as_text(report) == report.as_text()
    assert report.exit is Exit.OK


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"protocol": "tp_v9"}, "no protocol `tp_v9`"),
        ({"ranks": 1}, "ranks is 1; give 2 or more"),
        ({"chunks": 0}, "chunks is 0; give 1 or more"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"transport": "pigeon"}, "no transport `pigeon`"),
        ({"fault": "crash"}, r"give a sequence of them: \['crash'\]"),
        ({"fault": ["crash@NOWHERE"]}, "`NOWHERE` is no point"),
        ({"engine": "steam"}, "no engine `steam`"),
        ({"symmetry": "maybe"}, "no symmetry `maybe`"),
        ({"reduction": "maybe"}, "no reduction `maybe`"),
        ({"properties": ["luck"]}, "no property `luck`"),
        ({"mutant": "FM-99"}, "FM-99"),
        ({"params": {"W": 2}}, "no parameter `W`"),
    ],
)
def test_a_check_that_makes_no_sense_is_refused_in_one_line(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        genlock.check(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_run_is_replayed_from_paths_or_from_what_was_loaded(tmp_path: Path) -> None:
    run = CORPUS / "broken" / "FM-04"
    traces = genlock.load_traces(run)
    assert genlock.diagnose(traces) == genlock.replay(run) == genlock.replay(*sorted(run.glob("*.jsonl")))
    assert isinstance(traces, list)
    assert repr(traces[1]) == "<Trace rank1.trace.jsonl: rank 1 of 3, 29 lines, deadline>"
    with pytest.raises(UsageError, match="no traces are named"):
        genlock.replay()
    with pytest.raises(UnreadableInput, match="no such file or folder"):
        genlock.load_traces(tmp_path / "nothing")


def test_what_is_returned_shows_itself_in_a_line() -> None:
    broken = genlock.check(mutant="FM-04")
    diagnosis = genlock.replay(CORPUS / "broken" / "FM-04")
    shown = [broken, broken.counterexample, diagnosis, genlock.load_protocol("tp_v1.1")]
    for line, start in zip(
        map(repr, shown), ("<Report tp", "<shortest", "<Diagnosis divergent", "<Protocol tp"), strict=True
    ):
        assert line.startswith(start)
        assert len(line) < 120
        assert "\n" not in line
    assert repr(genlock.replay(CORPUS / "healthy" / "two-ranks")).startswith("<Diagnosis conforming: 2 ranks")


def test_a_notebook_shows_a_table_with_the_verdict_and_the_place() -> None:
    broken = genlock.check(ranks=2, chunks=1, mutant="FM-04")._repr_html_()
    assert ">violated</strong>" in broken
    assert "rank1 is stuck in AWAIT_PAYLOAD" in broken
    html = genlock.replay(CORPUS / "broken" / "FM-04")._repr_html_()
    assert ">divergent</strong>" in html
    for text in ("PREFLIGHT_4", "commit (step)", "preflight_dtypes (step) or refuse (step)", "rank0", "FM-04"):
        assert text in html
    assert ">conforming</strong>" in genlock.replay(CORPUS / "healthy" / "two-ranks")._repr_html_()


def test_a_verdict_in_words_is_that_of_the_command_line() -> None:
    from genlock.conformance.report import as_text

    diagnosis = genlock.replay(CORPUS / "broken" / "FM-04")
    assert genlock.as_text(diagnosis) == as_text(diagnosis)
    assert genlock.as_json(diagnosis)["verdict"] == "divergent"


def test_paths_may_be_of_any_kind() -> None:
    assert api._paths(["a", Path("b")]) == [Path("a"), Path("b")]


def test_types_are_seen_from_outside() -> None:
    """`make types` holds these; at run time they are what they say."""
    assert isinstance(assert_type(genlock.check(ranks=2, chunks=1, faults=0), genlock.Report), genlock.Report)
    run = CORPUS / "healthy" / "two-ranks"
    assert isinstance(assert_type(genlock.replay(run), genlock.Diagnosis), genlock.Diagnosis)
    assert_type(genlock.load_traces(run), list[genlock.Trace] | genlock.Recording)
    assert_type(genlock.load_protocol("tp_v0"), genlock.Protocol)


def test_names_that_need_torch_are_those_of_impl() -> None:
    assert {name for name, home in HOME_OF.items() if home.startswith("impl.")} == NEED_TORCH
