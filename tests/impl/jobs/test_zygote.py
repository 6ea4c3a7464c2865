"""Programs that are forked instead of started: they are what they would be, and runs of them behave as any run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import genlock
import msgspec
import pytest
from genlock.conformance.replay import replay
from genlock.contract.breakit import PROGRAM
from genlock.errors import Exit
from genlock.impl.jobs.zygote import Zygote
from genlock.impl.scenario import Chunk, Scenario, Wait
from repository import PROCESSES


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FR_BUFFER_SIZE", "200")  # torch reads it once
        patch.setenv("PYTHONPATH", str(PROCESSES), prepend=os.pathsep)
        with Zygote((*PROGRAM, "open_files")) as warm:
            yield warm


def run(zygote: Zygote, out: Path, *flags: str, scenario: Scenario | None = None) -> tuple[int, str]:
    """`genlock run`: its exit status, and what it said."""
    out.mkdir()
    if scenario:
        (out / "scenario.json").write_bytes(msgspec.json.encode(scenario))
        flags = (str(out / "scenario.json"), *flags)
    words = [sys.executable, "-m", "genlock", "run", f"--out={out}", *flags]
    return zygote.start(words, out / "said.txt").wait(), (out / "said.txt").read_text()


PROGRAMS: dict[str, tuple[Sequence[str], int, str]] = {
    "its own words": (["-c", "import sys; print(sys.argv[1:])", "a", "b"], 0, "['a', 'b']\n"),
    "its own status": (["-c", "raise SystemExit(7)"], 7, ""),
    "a signal": (["-c", "import os; os.kill(os.getpid(), 9)"], -signal.SIGKILL, ""),
    "no descriptor": (["-m", "open_files"], 0, "0 1 2\n"),
    "a loaded program": (["-m", "genlock", "--version"], 0, f"genlock {genlock.__version__}\n"),
    "a mistake": (["-m", "genlock", "run", "--ranks=0"], int(Exit.USAGE), ""),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_and_speaks_as_if_it_were_started(zygote: Zygote, tmp_path: Path, name: str) -> None:
    words, status, said = PROGRAMS[name]
    assert zygote.start([sys.executable, *words], tmp_path / "said").wait() == status
    assert (tmp_path / "said").read_text() == said or not said


def test_programs_end_with_their_zygote(tmp_path: Path) -> None:
    with Zygote() as warm:
        process = warm.start([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "said")
        handle = os.pidfd_open(process.pid)
        os.kill(warm.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            signal.pidfd_send_signal(handle, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it has outlived its zygote")
    os.close(handle)


IDLE = Scenario((Chunk(), Wait(1.5), Chunk()))


@pytest.mark.parametrize("observe", [True, False])
def test_observing_reports_a_passed_deadline_and_ends_nothing(zygote: Zygote, tmp_path: Path, observe: bool) -> None:
    out = tmp_path / "run"
    flags = ["--ranks=2", "--deadline=idle=0.5", *["--observe"] * observe]
    status, said = run(zygote, out, *flags, scenario=IDLE)
    assert status == (Exit.OK if observe else Exit.DEADLINE)
    how = "would have been" if observe else "was"
    assert said.count(f"rank0 {how} ended: rank0 made no progress for 0.") == 1
    assert "in phase idle" in said
    assert replay([out]).diagnosis.verdict == ("conforming" if observe else "divergent")
    assert (out / "rank0.evidence.txt").exists()


KEPT = {"kind=kill,rank=1,phase=ack": [0, 2], "kind=gil,rank=0,phase=generate,where=inside": [1, 2]}


@pytest.mark.parametrize("fault", KEPT)
def test_every_rank_that_can_be_reached_leaves_a_flight_recorder_dump(
    zygote: Zygote, tmp_path: Path, fault: str
) -> None:
    out = tmp_path / "run"
    run(zygote, out, "--chunks=2", f"--inject=OM-13,chunk=2,{fault}", *["--deadline=generate=1.5"])
    assert sorted(path.name for path in (out / "flight_recorder").iterdir()) == [f"trace_{n}" for n in KEPT[fault]]
    for rank in KEPT[fault]:
        assert "last words: kept by the rank" in (out / f"rank{rank}.evidence.txt").read_text()
