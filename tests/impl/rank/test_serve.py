"""Bring your own: the example's language model under plain torchrun, on two nodes, and what `serve` refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from genlock.conformance.protocol.diagnose import diagnose
from genlock.errors import ContractViolation, Exit
from genlock.impl.rank.serve import _Run, chunk_fields, serve
from genlock.traces.format import Trace, find, read
from repository import PROCESSES, ROOT
from torch import Tensor

EXAMPLE = ROOT / "examples" / "language_model.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Trace]]:
    """The example on two nodes, which are two agents of torchrun on this machine: rank0 here, two ranks there."""
    out = tmp_path_factory.mktemp("served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *both]
    nodes: list[subprocess.Popen[bytes]] = []
    for number, ranks in enumerate((1, 2)):
        own = [*command, "--node-rank", str(number), "--nproc-per-node", str(ranks), str(EXAMPLE), str(out)]
        with (out / f"node{number}.out").open("w") as said, (out / f"node{number}.err").open("w") as errors:
            nodes.append(subprocess.Popen(own, env=ENVIRONMENT, stdout=said, stderr=errors))
    until = time.monotonic() + 100
    try:  # an agent waits 5 minutes for one that has failed: the first to fail ends it here
        while any(node.poll() is None for node in nodes) and not any(node.poll() for node in nodes):
            assert time.monotonic() < until, told(out)
            time.sleep(0.05)
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert [node.returncode for node in nodes] == [0, 0], told(out)
    return (out / "node0.out").read_text(), [read(path) for path in find(out)]


def told(out: Path) -> dict[str, str]:
    """What the agents and their ranks had to say."""
    return {path.name: path.read_text() for path in out.glob("node*")}


def test_serving_takes_under_30_lines() -> None:
    _, _, below = EXAMPLE.read_text().partition("all that serving it takes")
    assert 0 < sum(bool(line.strip()) for line in below.splitlines()[1:]) < 30


def test_a_foreign_generator_runs_records_and_replays_conforming(served: tuple[str, list[Trace]]) -> None:
    said, traces = served
    assert len(said.splitlines()) == 4
    assert len(set(said.splitlines())) == 4
    found = diagnose(traces)
    assert (found.verdict, found.ranks) == ("conforming", 3)
    assert [t.end.cause if t.end else None for t in traces] == ["stopped"] * 3


def test_warm_up_is_a_chunk_like_any_other_and_leaves_nothing_behind(served: tuple[str, list[Trace]]) -> None:
    _, traces = served
    for trace in traces:
        calls = [e for e in trace.events if e.transition == "generate" and e.edge == "exit"]
        assert [(c.chunk, c.epoch) for c in calls[::8]] == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
        assert all(c.inside and c.inside["collectives"] == 6 * (c.call or 0) for c in calls)


UNUSED: Any = None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For a `serve` in this process, which has no launcher to die with."""
    monkeypatch.setattr("genlock.impl.rank.serve.die_with_parent", lambda: None)
    return monkeypatch


def test_without_torchrun_there_is_one_clear_line(
    tmp_path: Path, here: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here.delenv("RANK", raising=False)
    assert serve(UNUSED, UNUSED, out=tmp_path) == Exit.USAGE
    assert capfd.readouterr().err.splitlines() == [
        "genlock: the environment has no RANK; start the ranks with torchrun"
    ]


BROKEN = {"weight": (1, "weight `"), "past": (0, "no collective is due")}
"""How the example is broken: which rank finds it, and what it says."""


def test_a_user_s_weights_and_calls_are_held_to_the_plan(tmp_path: Path) -> None:
    program = str(PROCESSES / "broken_language_model.py")
    done = subprocess.run(
        [sys.executable, program, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(BROKEN, True), done.stderr
    for how, (rank, words) in BROKEN.items():
        traces = [read(path) for path in find(tmp_path / how)]
        end = traces[rank].end
        assert end
        assert words in end.message
        assert f"rank{rank}" in end.message
        assert diagnose(traces).culprits == (rank,)


# ── phase B as a Python generator ───────────────────────────────────────────────────────────────────


def steps(count: int, output: Any) -> Generator[None, None, Tensor]:
    for _ in range(count):
        yield
    returned: Tensor = output
    return returned


def made(run: _Run) -> Iterator[None]:
    for call in run.calls:
        call()
        yield


def test_as_many_calls_as_the_plan_has() -> None:
    output = torch.ones(1)
    run = _Run(steps(3, output), 3)
    assert len(list(made(run))) == 3
    assert run.result() is output
    with pytest.raises(ContractViolation, match="returned after 2 generator calls, but the plan has 3"):
        list(made(_Run(steps(2, output), 3)))
    more = _Run(steps(4, output), 3)
    list(made(more))
    with pytest.raises(ContractViolation, match="goes on after 3 generator calls"):
        more.result()
    other = _Run(steps(3, "words"), 3)
    list(made(other))
    with pytest.raises(ContractViolation, match="it returned str"):
        other.result()


def test_plain_fields_pass_preflight() -> None:
    from genlock.impl.chunk import preflight
    from genlock.impl.chunk.schema import Committed, Ids, Mode

    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    for context in (None, half):
        fields = chunk_fields(half, torch.arange(3), half, 0, hard_cut=True, updated=True, context=context, base_seed=7)
        checked = preflight.check_schema(fields, Ids(1, 1, 1, 0), Committed(), Mode.BRING_UP)
        assert checked.fields["tp_expected_generator_calls"] == 3 + (context is not None)


def test_a_trace_that_is_there_already_is_not_overwritten(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.setenv("RANK", "0")
    here.setenv("WORLD_SIZE", "2")
    (tmp_path / "rank0.trace.jsonl").write_text("")
    assert serve(UNUSED, UNUSED, out=tmp_path) == Exit.USAGE
    assert "there are traces in this folder already; choose another" in capsys.readouterr().err
