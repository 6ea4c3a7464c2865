"""The wait-for graph: its roots or circle, ranks that are alike drawn as one, pictures and the report's JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from genlock.conformance.diagnosis import Diagnosis, Strength, accusations
from genlock.conformance.diagnosis import WaitingRank as Left
from genlock.conformance.report import as_json
from genlock.conformance.wait_graph import Node, WaitGraph, named
from genlock.conformance.wait_graph_drawing import waits_graph, waits_mermaid
from hypothesis import given
from hypothesis import strategies as st
from program_traces import failed, operations, write


def graph(waits: Sequence[Left], culprits: tuple[int, ...] = ()) -> WaitGraph:
    accused = accusations(culprits, Strength.CULPRIT, "host-stands-still")
    return WaitGraph(Diagnosis("divergent", 9, 0, 0, None, None, accused, (), waits, None, {}))


def test_roots_are_waited_for_and_wait_for_nobody() -> None:
    found = graph([Left(0, "recv", (1,)), Left(1, "all_reduce", (2, 3)), Left(4, "all_reduce", (2, 3))], (2, 3))
    assert (found.roots, found.circle) == ((2, 3), ())
    assert found.nodes == [
        Node((0,), "waiting"),
        Node((1,), "waiting"),
        Node((2, 3), "culprit"),
        Node((4,), "waiting"),
    ]
    assert found.title() == "all wait for rank2, rank3"


def test_a_circle_is_who_waits_for_nobody_outside_of_it() -> None:
    found = graph([Left(0, "a", (1,)), Left(1, "b", (2,)), Left(2, "c", (1,)), Left(3, "a", (0,))], (1,))
    assert (found.roots, found.circle) == ((), (1, 2))
    assert [node.role for node in found.nodes] == ["waiting", "culprit", "circle", "waiting"]
    assert found.title() == "a circle of rank1, rank2; to blame is rank1"


def test_a_job_of_thousands_is_a_graph_of_a_few() -> None:
    found = graph([Left(rank, "all_reduce #7 of group 0", (1000,)) for rank in range(4096) if rank != 1000], (1000,))
    assert [len(node.ranks) for node in found.nodes] == [4095, 1]
    assert "rank0 to rank999, rank1001 to rank4095" in waits_graph(found).source


RANKS = st.integers(0, 7)


@given(st.lists(st.builds(Left, RANKS, st.sampled_from(["a", "b"]), st.frozensets(RANKS).map(tuple)), max_size=8))
def test_there_is_a_root_or_a_circle_and_every_rank_is_in_one_node(waits: list[Left]) -> None:
    found = graph([w for w in waits if w.rank not in w.missing])
    assert bool(found.waits) == bool(found.roots or found.circle)
    assert not (found.roots and found.circle)
    shown = [rank for node in found.nodes for rank in node.ranks]
    assert sorted(shown) == sorted({r for w in found.waits for r in (*w.ranks, *w.waits_for)})
    for wait, waiting, awaited in found.arrows():
        assert sorted(rank for node in waiting for rank in node.ranks) == list(wait.ranks)
        assert sorted(rank for node in awaited for rank in node.ranks) == list(wait.waits_for)


def test_names_of_many_ranks_are_short() -> None:
    assert named([5]) == "rank5"
    assert named([0, 1]) == "rank0, rank1"
    assert named([7, 2, 3, 4]) == "rank2 to rank4, rank7"


def test_mermaid_says_the_same_as_dot() -> None:
    found = graph([Left(0, "send #3 to rank1 of group 0", (1,))], (1,))
    text = waits_mermaid(found)
    assert 'rank1["rank1<br/>to blame"]:::culprit' in text
    assert "send #35;3 to rank1<br/>of group 0" in text
    assert [line.strip() for line in text.splitlines() if "--" in line[4:]] == ["rank0 --- op0", "op0 --> rank1"]


@pytest.fixture
def stranded(tmp_path: Path) -> Path:
    """Traces of a program in which ranks 0 and 2 wait for rank 1."""
    waiting = operations(4, outcome=failed("timed out"))
    write(tmp_path, {0: waiting, 1: operations(3), 2: waiting})
    return tmp_path


def test_the_command_draws_recorded_ranks(stranded: Path, tmp_path: Path) -> None:
    formats = ["mermaid", "dot", *(["svg"] if shutil.which("dot") else [])]
    for format in formats:
        out = tmp_path / f"waits.{format}"
        command = ["render", "waits", str(stranded), "--format", format, "--out", str(out)]
        done = subprocess.run([sys.executable, "-m", "genlock", *command], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
        assert "to blame" in out.read_text()


def test_the_report_has_the_graph_as_data(stranded: Path) -> None:
    from genlock.conformance.replay import replay

    shown = json.loads(json.dumps(as_json(replay([stranded]).diagnosis)))["wait_for_graph"]
    assert shown == {
        "waits": [{"operation": "all_reduce #4 of group default_pg", "ranks": [0, 2], "waiting_for": [1]}],
        "roots": [1],
        "circle": [],
    }
