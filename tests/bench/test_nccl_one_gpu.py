"""bench/nccl_one_gpu.sh from an unpacked copy, without a network: where there is no GPU, all of it on gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from genlock.impl.rank.devices import SHARED, gpus, sharing
from genlock.traces.format import find
from repository import ROOT

OFFLINE = {"PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, without wheels (they come from the network), unpacked into an empty folder."""
    if not (ROOT / ".git").exists():
        pytest.skip("the bundle is made from a git checkout")
    folder = tmp_path_factory.mktemp("bundle")
    script = [str(ROOT / "bench" / "nccl_bundle.sh"), str(folder / "bundle.tar.gz")]
    subprocess.run(script, env={**os.environ, "WHEELS": "0"}, check=True, capture_output=True, timeout=60)
    subprocess.run(["tar", "-xzf", "bundle.tar.gz"], cwd=folder, check=True, timeout=60)
    return folder / "genlock"


@pytest.fixture(scope="module")
def results(unpacked: Path) -> tuple[Path, dict[str, Any]]:
    """A quick run's folder, and its summary."""
    out = unpacked.parent / "results"
    environment = {**os.environ, **OFFLINE, "PYTHON": sys.executable, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(unpacked / "bench" / "nccl_one_gpu.sh"), "--quick", str(out)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, json.loads((out / "summary.json").read_text())


@pytest.mark.timeout(300)
def test_a_copy_runs_without_a_network_and_degrades_to_gloo(results: tuple[Path, dict[str, Any]]) -> None:
    _, summary = results
    assert (summary["backend"], summary["sound"], summary["machine"]["gpus"]) == ("gloo", True, 0)
    outcome = {step["name"]: step["status"] for step in summary["steps"]}
    assert (outcome["run2"], outcome["run2-OM-11"], outcome["litmus"]) == (0, 10, 0)
    assert (outcome["replay run2"], outcome["replay run2-OM-11"]) == (0, 1)
    # gloo's dumps do not say how many ranks there are
    assert (outcome["replay run2, dumps of torch"], outcome["replay hang-skip, dumps of torch"]) == (3, 1)
    assert not [step for step in summary["steps"] if "skipped" in step]


def test_the_replay_of_torch_s_dumps_names_the_rank_that_was_broken(results: tuple[Path, dict[str, Any]]) -> None:
    out, summary = results
    truth = json.loads((out / "truth.json").read_text())["hang-skip"]
    step = next(s for s in summary["steps"] if s["name"] == "replay hang-skip, dumps of torch")
    assert json.loads(step["said"][-1])["divergence"]["culprits"] == [truth["rank"]]


def test_what_comes_back_is_small_and_names_no_place(results: tuple[Path, dict[str, Any]]) -> None:
    out, _ = results
    assert len(find(out / "run2")) == 2
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 16e6
    text = (out / "summary.json").read_text() + "".join(p.read_text() for p in (out / "logs").iterdir())
    assert str(out.parent) not in text
    assert os.uname().nodename not in text


def test_ranks_that_share_a_gpu_are_told_apart_and_others_are_left_alone() -> None:
    assert sharing(0, 2, 2) == {}
    assert sharing(1, 3, 2) == {**SHARED, "NCCL_HOSTID": "rank1"}
    assert len({sharing(rank, 3, 1)["NCCL_HOSTID"] for rank in range(3)}) == 3
    assert {"NCCL_NET", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"} <= SHARED.keys()


@pytest.mark.skipif(gpus() > 0, reason="there is a GPU")
def test_nccl_without_a_gpu_is_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "genlock", "run", "--backend", "nccl", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "genlock: --backend nccl: NCCL needs a GPU, and there is none here; use --backend gloo"
    ]
    assert not (tmp_path / "run").exists()
