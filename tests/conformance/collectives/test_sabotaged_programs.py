"""Programs that know nothing of Genlock, recorded by `genlock record` and judged by their traces alone.

Healthy they conform, with all that they did matched; with one rank broken, in whichever way, that rank is named and
the place where it left the program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from repository import PROCESSES

PROGRAMS = ("train", "pipeline", "sharded")
WAYS = ("skip", "extra", "other", "size", "stall", "die", "fail")
BROKEN = 1
MATCHED = {"train": 13, "pipeline": 16, "sharded": 8}
"""Of `train`: three to set up, two when the buckets are made anew, and in four steps the gradients and the loss."""

STILL = ("stall", "die", "fail")
"""Ways in which the rank issues nothing in place of the operation that is due."""
PLACES = {
    "train": "all_reduce #11",
    ("train", "extra"): "all_reduce #12",
    ("train", "other"): "broadcast #11",
    "pipeline": "send to rank2",
    ("pipeline", "skip"): "recv #3 from rank2",
    ("pipeline", "extra"): "send #4 to rank2",
    ("pipeline", "other"): "broadcast #1",
    ("pipeline", "size"): "send #3 to rank2",
    "sharded": "all_gather #5",
    ("sharded", "skip"): "reduce_scatter #5",
    ("sharded", "extra"): "all_gather #6",
    ("sharded", "other"): "all_reduce #5",
}

TWO_ENDS = {("pipeline", "size")}
"""Of a send and its receive in the first steps of a run, nothing tells which is right."""

Found = Mapping[tuple[str, str | None], Diagnosis]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("sabotaged")
    command = [sys.executable, "-m", "genlock", "record", "--out", str(folder / "out"), "--"]
    command += [sys.executable, str(PROCESSES / "sabotaged.py"), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.wait(timeout=110) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    runs = [(program, way) for program in PROGRAMS for way in (None, *WAYS)]
    folders = [folder / "out" / (f"restart{n}" if n else "") for n in range(len(runs))]
    return {run: replay(sorted(at.glob("*.jsonl"))).diagnosis for run, at in zip(runs, folders, strict=True)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_healthy_programs_conform(found: Found, program: str) -> None:
    healthy = found[program, None]
    assert (healthy.verdict, healthy.reasons) == ("conforming", ())
    assert healthy.matched_collectives == MATCHED[program]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_broken_rank_and_its_place_are_named(found: Found, program: str, way: str) -> None:
    broken = found[program, way]
    assert broken.verdict == "divergent"
    assert broken.divergence is not None
    if (program, way) in TWO_ENDS:
        assert (broken.culprits, BROKEN in broken.suspects) == ((), True)
        return
    assert broken.culprits == (BROKEN,)
    assert broken.divergence.rank == BROKEN
    assert broken.divergence.place.startswith(PLACES.get((program, way), PLACES[program]))
    assert "hang.py:" in broken.divergence.phase
    assert broken.stall == ("host" if way in STILL else None)
