"""SIGTERM and Ctrl-C: at any phase the run is drained, every rank exits 0, and every trace ends with `stopped`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from genlock.conformance.protocol.diagnose import diagnose
from genlock.errors import Exit
from genlock.impl.rank.drain import Drain
from genlock.impl.scenario import Chunk, Heartbeat, Scenario, Wait
from genlock.traces.format import Trace, find, read
from real_ranks import Ended, Ranks, alive, inject

STEPS = Scenario((Chunk(), Heartbeat(), Chunk(), Chunk(), Chunk(), Chunk()))
PHASES = ("startup", "idle", "preflight", "header", "payload", "generate", "ack", "shutdown")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    zygote = Ranks()
    yield zygote
    zygote.close()


def drained(traces: list[Trace]) -> None:
    assert [t.end.cause if t.end else None for t in traces] == ["stopped"] * len(traces)
    assert diagnose(traces).verdict == "conforming"
    for trace in traces:
        assert trace.end
        assert trace.end.exit == Exit.OK


def chunks(ended: Ended) -> int:
    return ended.events(0, "commit")


# ── every phase, on rank0 and on a worker ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_on_rank0_drains_the_run(ranks: Ranks, tmp_path: Path, phase: str) -> None:
    ended = ranks.run(tmp_path, STEPS, inject(f"OM-15,phase={phase}"))
    assert ended.statuses == [0, 0, 0]
    drained(ended.traces)
    assert "drained on SIGTERM" in ended.messages()[0]
    begun = phase == "shutdown"
    assert (ended.events(0, "drain"), ended.events(0, "shutdown")) == (not begun, begun), "once it has begun, it ends"
    # what rank0 has begun is finished, and nothing is begun after the signal
    assert chunks(ended) == {"startup": 0, "idle": 2, "shutdown": 5}.get(phase, 3)


@pytest.mark.parametrize("phase", ["startup", "header", "payload", "generate", "ack"])
def test_a_signal_while_a_worker_is_in_any_phase_is_held(ranks: Ranks, tmp_path: Path, phase: str) -> None:
    """All but idle: whenever rank0 is signalled in idle, above, its workers wait for a header."""
    ended = ranks.run(tmp_path, STEPS, inject(f"OM-15,rank=1,phase={phase}"))
    assert ended.statuses == [0, 0, 0]
    drained(ended.traces)
    assert ended.events(0, "drain") == 1
    assert ended.events(1, "hold_signal") == 1
    assert chunks(ended) <= 4


def test_nothing_is_begun_after_the_signal(ranks: Ranks, tmp_path: Path) -> None:
    ended = ranks.run(tmp_path, STEPS, inject("OM-15,phase=ack,chunk=1"))
    drained(ended.traces)
    assert (chunks(ended), ended.events(0, "send_noop")) == (1, 0), "a heartbeat was due next"


def test_a_signal_that_nobody_drains_is_held_for_a_grace_period_alone(ranks: Ranks, tmp_path: Path) -> None:
    steps = Scenario((Chunk(), Wait(1.5), Heartbeat(), Chunk()))
    fault = inject("OM-15,rank=1,phase=ack,chunk=1")
    ended = ranks.run(tmp_path, steps, fault, deaf=[0], deadlines={"drain": 0.3})
    assert ended.statuses[1] == Exit.DEADLINE
    assert "rank1 held SIGTERM for" in ended.messages()[1]
    assert "receive_header" in ended.messages()[1], "it was ended while blocked in a collective"
    assert 0 not in ended.statuses


# ── the launcher ────────────────────────────────────────────────────────────────────────────────────


def launcher(out: Path, steps: Scenario, *more: str) -> subprocess.Popen[str]:
    out.mkdir()
    (out / "scenario.json").write_bytes(msgspec.json.encode(steps))
    command = [sys.executable, "-m", "genlock", "run", str(out / "scenario.json"), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(seen: Callable[[], bool]) -> None:
    """Wait for what a run writes."""
    end = time.monotonic() + 60
    while not seen() and time.monotonic() < end:
        time.sleep(0.02)


def written(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()


def ended_well(process: subprocess.Popen[str], out: Path) -> None:
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert "draining" in said
    drained([read(path) for path in find(out)])


def test_ctrl_c_while_rank0_idles(tmp_path: Path) -> None:
    process = launcher(tmp_path / "run", Scenario((Chunk(), Wait(300), Chunk())))
    until(lambda: written(tmp_path / "run" / "rank0.trace.jsonl", "acks_agree"))
    process.send_signal(signal.SIGINT)
    ended_well(process, tmp_path / "run")


def test_sigterm_to_the_launcher_in_mid_chunk(tmp_path: Path) -> None:
    process = launcher(tmp_path / "run", STEPS, "--inject", "OM-15,phase=generate")
    ended_well(process, tmp_path / "run")


@pytest.mark.slow
def test_sigterm_before_any_rank_has_started(tmp_path: Path) -> None:
    process = launcher(tmp_path / "run", STEPS)
    until(lambda: (tmp_path / "run" / "launcher.log").exists())
    process.send_signal(signal.SIGTERM)
    ended_well(process, tmp_path / "run")


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    process = launcher(tmp_path / "run", Scenario((Chunk(), Wait(300))), "--inject", "OM-15,phase=startup")
    assert process.stdout
    said = [process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[0].splitlines()
    assert "draining; once more to end at once" in said[0]
    assert (process.returncode, said[-1]) == (Exit.UNKNOWN, "genlock: interrupted")
    until(lambda: not alive(str(tmp_path)))
    assert not alive(str(tmp_path))


# ── noticing ────────────────────────────────────────────────────────────────────────────────────────


def test_signals_are_noticed_and_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    drain = Drain()
    assert not drain.requested.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    assert drain.requested.wait(10)
    os.kill(os.getpid(), signal.SIGTERM)
    drain.close()
    assert drain.signal == "SIGINT", "the first one counts"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


LAST_BREATH = """
import os, signal
from genlock.impl.rank.drain import Drain

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, signal.SIGTERM)  # the interpreter takes its modules apart: handlers are gone

drain, late = Drain(), Late()
{last}
"""


@pytest.mark.parametrize(("last", "status"), [("drain.deafen()", 0), ("", -signal.SIGTERM)])
def test_a_signal_while_the_interpreter_shuts_down_does_not_spoil_the_exit_status(last: str, status: int) -> None:
    assert subprocess.run([sys.executable, "-c", LAST_BREATH.format(last=last)], timeout=60).returncode == status
