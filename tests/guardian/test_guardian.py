"""The guardian, on real processes: whatever happens to one rank, all are gone, and each says whose fault it was.

The ranks are small programs without torch; torchrun itself starts them in the last part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from genlock.errors import Exit
from genlock.guardian import command, evidence, wire
from genlock.guardian.exit_cause import (
    CONTRACT,
    DEADLINE,
    PARITY,
    PEER_DIED,
    PEER_VIOLATED,
    USAGE,
    by_itself,
    status_of,
    weight_of,
)
from genlock.guardian.links import STRANGERS
from genlock.traces.format import FORMAT_VERSION, Clock, End, Group, TraceHeader, read
from genlock.traces.recorder import Recorder
from guardian_jobs import BUSY, PROGRAM, Job, Script, alive, free_port, until

KILLED = 128 + signal.SIGKILL
MIB_12 = 12 << 10  # in kB
FOREVER = ("sleep", 100)


LIMITS = ("--deadline=steady=0.5", "--deadline=collective=1", "--deadline=startup=30")


def broken(rank: int, *fault: tuple[str, object]) -> Script:
    return {rank: [("phase", "steady"), ("commit", "call_id=7"), ("work", 0.1), *fault], "*": BUSY}


# ── deaths ──────────────────────────────────────────────────────────────────────────────────────────

DEATHS = {
    "kill": (("kill", None), KILLED, PEER_DIED, "died by SIGKILL"),
    "exit": (("exit", 7), 7, PEER_VIOLATED, "exited with 7"),
    "raise": (("raise", None), 1, PEER_VIOLATED, "exited with 1"),
    "contract": (("exit", CONTRACT), CONTRACT, PEER_VIOLATED, "exited with 10"),
    "parity": (("exit", PARITY), PARITY, PARITY, "exited with 14"),
}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("death", DEATHS)
def test_one_rank_ends_and_all_are_gone_and_say_who_what_and_since_when(
    start: Callable[..., Job], death: str, rank: int
) -> None:
    fault, own, peers, what = DEATHS[death]
    job = start(broken(rank, fault))
    assert job.ends() == [own if n == rank else peers for n in range(3)]
    for n, said in enumerate(job.said):
        assert f"genlock: rank{n} was ended: rank{rank} {what} in phase steady, since call_id=7" in said
        assert f"evidence in {job.folder}/out/rank{n}.evidence.txt" in said
        assert ("no stacks: the rank is dead" in job.evidence(n)) == (n == rank)


def test_a_rank_that_lost_a_peer_is_not_to_blame_though_it_ends_first(start: Callable[..., Job]) -> None:
    """Gloo may notice a death before the guardians have spoken."""
    job = start({0: [("phase", "steady"), ("exit", PEER_DIED)], 1: [("sleep", 0.05), ("kill", None)], "*": BUSY})
    statuses = job.ends()
    assert statuses[0] == PEER_DIED
    if statuses[1] == KILLED:  # else it was ended before it could die
        assert "rank1 died by SIGKILL" in job.said[0]


def test_of_several_findings_the_one_that_explains_the_others_is_the_cause() -> None:
    ends = [by_itself(1, -9, "there", asked=False), by_itself(2, 10, "there", asked=False),
            by_itself(3, 1, "there", asked=False), by_itself(0, PEER_DIED, "there", asked=False)]  # fmt: skip
    assert [found.culprit for found in ends] == [1, 2, 3, -1]
    weights = [weight_of(found) for found in ends]
    assert weights == sorted(set(weights))
    assert [status_of(ends[0], rank, -9) for rank in (0, 1)] == [PEER_DIED, KILLED]


def test_what_a_killed_rank_leaves_behind_is_killed_too(start: Callable[..., Job]) -> None:
    job = start({1: [("helper", None), ("work", 0.2), ("kill", None)], "*": [("helper", None), *BUSY]})
    job.started()
    assert job.ends()[1] == KILLED
    assert not alive(job.mark)


def test_a_program_that_writes_no_page_is_protected_too(start: Callable[..., Job]) -> None:
    job = start({}, program=["sh", "-c", "case $RANK in 1) sleep 0.3; exit 3;; *) exec sleep 100;; esac"])
    assert job.ends() == [PEER_VIOLATED, 3, PEER_VIOLATED]
    assert "rank1 exited with 3 before its first beat" in job.said[0]


def test_all_ranks_end_well_in_any_order(start: Callable[..., Job]) -> None:
    job = start({0: [("work", 0.1)], 1: [], 2: [("work", 0.6)]})
    assert job.ends() == [0, 0, 0]
    assert job.said == ["", "", ""]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_guardian_takes_its_rank_along_and_the_others_end(start: Callable[..., Job], rank: int) -> None:
    job = start({"*": [("say", "here"), *BUSY]}, flags={-1: ["--deadline=meet=5"]})
    assert [ready(job, n) for n in range(3)] == [True] * 3
    until(lambda: connected(job))
    job.guardians[rank].kill()
    assert job.ends() == [-signal.SIGKILL if n == rank else PEER_DIED for n in range(3)]
    assert re.search(f"the guardian of rank{rank} (is gone|was not met)", job.said[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_guardian_is_noticed_and_its_rank_ends_with_it(start: Callable[..., Job], rank: int) -> None:
    job = start({"*": [("say", "here"), *BUSY]}, flags={-1: ["--deadline=guardian=1.5"]})
    assert [ready(job, n) for n in range(3)] == [True] * 3
    until(lambda: connected(job))
    os.kill(job.watchers()[rank], signal.SIGSTOP)
    for n, guardian in enumerate(job.guardians):
        if n != rank:
            said = guardian.communicate(timeout=30)[1]
            assert guardian.returncode == PEER_DIED
            assert f"genlock: rank{n} was ended: the guardian of rank{rank} is silent" in said
    until(lambda: len(job.ranks()) == 1)
    job.guardians[rank].kill()  # as a launcher does whose other ranks have failed
    until(lambda: not alive(job.mark))


def connected(job: Job) -> bool:
    """Whether two guardians have called rank0's."""
    return sum(line.split()[5] == "03" for line in sockets(job)) >= 2


def sockets(job: Job) -> list[str]:
    """The lines of /proc/net/unix about the sockets at which this job's guardians meet."""
    names = ["@" + place.address[1:].decode() for place in job.places if isinstance(place.address, bytes)]
    return [line for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(tuple(names))]


def test_a_killed_launcher_takes_everything_along(tmp_path: Path) -> None:
    mark = str(tmp_path / "guarded")
    code = f"""
import os, subprocess, time
for rank in range(2):
    subprocess.Popen({[*command(), f"--out={tmp_path}/out", "--", sys.executable, str(PROGRAM), mark]!r},
                     env={{**os.environ, "RANK": str(rank)}})
time.sleep(100)
"""
    common = {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port()), "SCRIPT": json.dumps({"*": BUSY})}
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **common}, stderr=subprocess.PIPE) as boss:
        until(lambda: len([p for p in alive(mark) if b"guarded.py" in cmdline(p)[:2]]) == 2)
        boss.kill()
        assert boss.stderr
        said = boss.stderr.read().decode()
    assert "the launcher of rank" in said
    until(lambda: not alive(mark))


def cmdline(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return [Path(word.decode()).name.encode() for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    return []


def test_a_signal_of_the_launcher_is_passed_on_to_the_rank(start: Callable[..., Job]) -> None:
    job = start({"*": BUSY}, world=1)
    job.started()
    job.guardians[0].send_signal(signal.SIGTERM)
    assert job.ends() == [128 + signal.SIGTERM]
    assert "died by SIGTERM" in job.said[0]
    assert "which its launcher had sent" in job.said[0]


# ── deadlines: whose clock runs ─────────────────────────────────────────────────────────────────────

STALLS = {
    "stop": ("is stopped for", "no stacks: the rank is stopped"),
    "loop": ("made no progress for", "in loop"),
    "gil": ("made no progress for", "in gil"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stall", STALLS)
def test_a_rank_that_stalls_is_named_and_its_stacks_are_kept(
    start: Callable[..., Job], tmp_path: Path, stall: str, rank: int
) -> None:
    what, stacks = STALLS[stall]
    here = ("meet", str(tmp_path / "here"))
    job = start({rank: [here, *broken(rank, (stall, None))[rank]], "*": [here, *BUSY]}, flags={-1: LIMITS})
    assert job.ends() == [DEADLINE if n == rank else PEER_DIED for n in range(3)]
    for said in job.said:
        assert re.search(rf"rank{rank} {what} \d\.\d s in phase steady, since call_id=7 \(deadline 0\.5 s\)", said)
    assert stacks in job.evidence(rank)
    assert "in work" in job.evidence(2), "the stacks of every rank"


def test_who_waits_is_not_charged_while_somebody_works(start: Callable[..., Job]) -> None:
    """A long decode on rank0, and a slow first call on rank1 with a deadline of its own; longer than `steady`."""
    wait: list[tuple[str, object]] = [("phase", "steady"), ("enter", None), ("sleep", 1.6)]
    job = start({0: [("allowed", 30), ("sleep", 1.6)], 1: [("phase", "warmup"), ("sleep", 1.6)], "*": wait},
                flags={-1: LIMITS})  # fmt: skip
    assert job.ends() == [0, 0, 0]


def test_blame_goes_to_the_one_that_everybody_waits_for(start: Callable[..., Job]) -> None:
    """rank2 waits for rank1, which waits for rank0, which is stopped while it waits."""
    job = start({
        0: [("phase", "steady"), ("enter", None), ("stop", None)],
        1: [("phase", "steady"), ("enter", 0), FOREVER],
        2: [("phase", "steady"), ("enter", 1), FOREVER],
    }, flags={-1: LIMITS})  # fmt: skip
    assert job.ends() == [DEADLINE, PEER_DIED, PEER_DIED]
    assert "rank0 is stopped" in job.said[2]


def test_when_everyone_waits_the_collective_deadline_ends_it_and_nobody_is_blamed(start: Callable[..., Job]) -> None:
    job = start({"*": [("phase", "steady"), ("enter", None), FOREVER]}, flags={-1: LIMITS})
    assert job.ends() == [DEADLINE] * 3
    for said in job.said:
        assert "rank0 and rank1 and rank2 waited for each other for 1." in said


def test_a_rank_that_does_not_leave_what_others_have_left_is_charged(start: Callable[..., Job]) -> None:
    """Its main thread cannot go on, though its collective is done: the interpreter is held elsewhere, say. Of the
    others, one waits in the next, and one is busy and never quiet.
    """
    left: list[tuple[str, object]] = [("phase", "steady"), ("enter", None), ("leave", None)]
    job = start({1: [*left[:2], FOREVER], 0: [*left, *BUSY], 2: [*left, ("enter", None), FOREVER]}, flags={-1: LIMITS})
    assert job.ends() == [PEER_DIED, DEADLINE, PEER_DIED]
    assert "rank1 has not left a collective" in job.said[0]


def test_ranks_that_wait_for_one_that_has_ended(start: Callable[..., Job]) -> None:
    job = start({0: [("phase", "steady"), ("enter", None), ("leave", None)],
                 "*": [("phase", "steady"), ("enter", None), ("leave", None), ("enter", None), FOREVER]},
                flags={-1: LIMITS})  # fmt: skip
    assert job.ends() == [0, PEER_DIED, PEER_DIED]
    assert "rank0 has ended, and rank1 and rank2 waited for it" in job.said[1]


def test_start_up_is_charged_where_a_deadline_for_it_was_given(start: Callable[..., Job]) -> None:
    job = start({}, program=["sleep", "100"], world=1, flags={0: ["--deadline=startup=0.3"]})
    assert job.ends() == [DEADLINE]
    assert "made no progress for 0." in job.said[0]


def test_deadlines_that_differ_by_rank_are_refused_by_name(start: Callable[..., Job]) -> None:
    job = start({"*": BUSY}, flags={1: ["--deadline", "steady=5"]}, environ={"GENLOCK_DEADLINES": "steady=9,warmup=8"})
    assert job.ends() == [PARITY] * 3
    for said in job.said:
        assert "`deadline steady`: rank1 has 5, rank0 9" in said
        assert "warmup" not in said


def test_observing_only_reports(start: Callable[..., Job]) -> None:
    job = start({1: [("phase", "steady"), ("sleep", 1.2), ("exit", 3)], "*": [("phase", "steady"), ("work", 2)]},
                flags={-1: ["--observe", *LIMITS]})  # fmt: skip
    assert job.ends() == [0, 3, 0]
    assert "rank1 would have been ended: rank1 made no progress for 0." in job.said[1]
    assert "rank0 would have been ended: rank1 exited with 3" in job.said[0]
    assert "was ended" not in "".join(job.said)
    assert "in <module>" in job.evidence(1)
    assert "thread 0x" not in job.evidence(1), "only of several threads does each have a name"


def test_each_standstill_that_is_observed_has_its_own_stacks(start: Callable[..., Job]) -> None:
    script = [("phase", "steady"), ("sleep", 1), ("phase", "decode"), ("sleep", 1)]
    job = start({0: script}, world=1, flags={-1: ["--observe", *LIMITS]})
    assert job.ends() == [0]
    for phase, name in (("steady", "rank0"), ("decode", "rank0.2")):
        kept = (job.folder / "out" / f"{name}.evidence.txt").read_text()
        assert f"in phase {phase}" in kept.splitlines()[0]
        assert kept.count("most recent call first") == 1


def test_a_debugger_suspends_enforcement(start: Callable[..., Job], tmp_path: Path) -> None:
    here = ("meet", str(tmp_path / "here"))
    job = start({1: [here, ("phase", "steady"), ("traced", None), ("sleep", 1.5)],
                 "*": [here, ("phase", "steady"), ("enter", None), ("sleep", 1.5)]}, flags={-1: LIMITS})  # fmt: skip
    assert job.ends() == [0, 0, 0]


def test_enforcement_can_be_paused_and_resumed(start: Callable[..., Job]) -> None:
    job = start({0: [("phase", "steady"), ("say", "here"), FOREVER]}, world=1, flags={-1: LIMITS})
    guardian = job.guardians[0]
    guardian.send_signal(signal.SIGUSR1) if ready(job) else None
    with pytest.raises(subprocess.TimeoutExpired):
        guardian.wait(timeout=1.5)
    guardian.send_signal(signal.SIGUSR1)
    assert job.ends() == [DEADLINE]
    assert "deadlines are paused" in job.said[0]
    assert "deadlines are in force again" in job.said[0]


def ready(job: Job, rank: int = 0) -> bool:
    """A rank has said that it is here."""
    out = job.guardians[rank].stdout
    return out is not None and out.readline() == "here\n"


# ── what is left behind ─────────────────────────────────────────────────────────────────────────────


def recorder(folder: Path, rank: int) -> Recorder:
    header = TraceHeader(FORMAT_VERSION, "run", rank, 3, "worker", "gloo", "", "", {}, Clock(0, 0))
    return Recorder(folder, header)


def test_traces_end_with_cause_and_culprit(start: Callable[..., Job], tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    for rank in range(3):
        own = recorder(traces, rank)
        own.event("a")
        own.group(Group("g", (0, 1, 2)))
        own.event("b")
        if rank == 2:
            own.end("exception", 10, "by its own word")
    job = start(broken(1, ("kill", None)), environ={"GENLOCK_TRACES": str(traces)})
    assert job.ends() == [PEER_DIED, KILLED, PEER_DIED]
    ends = [read(traces / f"rank{rank}.trace.jsonl").end for rank in range(3)]
    assert [(e.cause, e.exit, e.culprit, e.index) for e in ends if e] == [
        ("peer_lost", PEER_DIED, 1, 2),
        ("exception", KILLED, 1, 2),
        ("exception", 10, None, 2),
    ]
    assert ends[0]
    assert "rank1 died by SIGKILL in phase steady, since call_id=7" in ends[0].message


def test_last_words_are_kept_before_the_kill_where_a_rank_can_be_reached(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    """rank0 keeps something, rank1 dies, rank2 is too slow, rank3 holds the GIL."""
    kept = [str(tmp_path / name) for name in "ab"]
    here = [("phase", "steady"), ("say", "here"), ("enter", None)]
    job = start({
        0: [("keep", kept[0]), *here, FOREVER],
        1: [("keep", kept[1]), *here, FOREVER],
        2: [("slow", None), *here, FOREVER],
        3: [("keep", kept[1]), *here, ("gil", None)],
    }, world=4)  # fmt: skip
    assert [ready(job, n) for n in range(4)] == [True] * 4
    time.sleep(0.2)
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.ends() == [PEER_DIED, KILLED, PEER_DIED, PEER_DIED]
    words = [re.findall("last words: (.*)", job.evidence(rank)) for rank in range(4)]
    assert words == [["kept by the rank"], ["none, the rank is dead"], *[["none came in 0.5 s"]] * 2]
    assert [Path(path).exists() for path in kept] == [True, False]


def test_half_a_line_is_left_as_it_is(tmp_path: Path) -> None:
    recorder(tmp_path, 0)
    path = tmp_path / "rank0.trace.jsonl"
    assert evidence.mark(str(path), "peer_lost", 12, "why", -1)
    assert not evidence.mark(str(path), "peer_lost", 12, "why", -1), "one end is enough"
    path.write_bytes(path.read_bytes() + b'{"half')
    before = path.read_bytes()
    assert not evidence.mark(str(path), "peer_lost", 12, "why", -1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("empty", [False, True])
def test_of_a_rank_without_a_trace_the_end_is_left_beside(tmp_path: Path, empty: bool) -> None:
    """The rank was ended before it opened one, or before it wrote to it."""
    path = tmp_path / "rank0.trace.jsonl"
    if empty:
        path.touch()
    assert evidence.mark(str(path), "deadline", 13, "why", 0)
    assert path.exists() == empty
    [end] = [msgspec.json.decode(line, type=End) for line in Path(f"{path}{evidence.END}").read_bytes().splitlines()]
    assert (end.index, end.cause, end.exit, end.message, end.culprit) == (0, "deadline", 13, "why", 0)
    assert not evidence.mark(str(tmp_path / "no folder" / path.name), "deadline", 13, "why", 0)


def test_a_guardian_is_small(start: Callable[..., Job]) -> None:
    job = start({"*": BUSY}, world=4)
    job.started()
    time.sleep(0.5)
    for guardian in job.guardians:
        status = Path(f"/proc/{guardian.pid}/status").read_text()
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", status)
        assert int(peak) <= MIB_12


def test_exit_statuses_are_those_of_the_house() -> None:
    assert (USAGE, CONTRACT, PEER_VIOLATED, PEER_DIED, DEADLINE, PARITY) == (
        Exit.USAGE, Exit.CONTRACT, Exit.PEER_VIOLATED, Exit.PEER_DIED, Exit.DEADLINE, Exit.PARITY,
    )  # fmt: skip


def test_strangers_get_nothing_and_the_job_goes_on(start: Callable[..., Job], tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    job = start({"*": [("say", "here"), ("until", str(enough))]})
    assert [ready(job, n) for n in range(3)] == [True] * 3
    until(lambda: connected(job))
    words = [
        os.urandom(56),
        b"",
        b"GLK3",
        b"GET / HTTP/1.1\r\n\r\n".ljust(56),
        b"\xff" * (1 << 16),
        b"GLK3" + bytes(52),
    ]
    for word in words:
        with contextlib.suppress(OSError), stranger_at(job) as stranger:
            stranger.sendall(word)
            stranger.shutdown(socket.SHUT_WR)
            assert len(stranger.recv(100)) == wire.GREETING
            assert stranger.recv(100) == b""
    crowd = [stranger_at(job) for _ in range(80)]
    heard = [len(one.recv(100)) for one in crowd]
    assert set(heard) == {wire.GREETING, 0}, "some were not even greeted"
    assert sum(map(bool, heard)) <= STRANGERS
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{job.guardians[0].pid}/status").read_text())
    for one in crowd:
        one.close()
    enough.touch()
    assert job.ends() == [0, 0, 0]
    assert "a stranger was refused: it does not speak GLK3" in job.said[0]
    assert "a stranger was refused: it does not know the token" in job.said[0]
    assert "a stranger was refused: it closed before it proved anything" in job.said[0]
    assert int(peak) <= MIB_12 + 1024


def stranger_at(job: Job) -> socket.socket:
    """A connection to where rank0's guardian listens, by somebody who knows nothing else."""
    stranger = socket.socket(socket.AF_UNIX)
    stranger.settimeout(5)
    until(lambda: not stranger.connect_ex(job.places[0].address))  # while many call, the kernel says: again
    return stranger


# ── under torchrun ──────────────────────────────────────────────────────────────────────────────────

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
GUARD = ["--no-python", sys.executable, "-m", "genlock", "guard"]


def test_torchrun_with_one_agent(tmp_path: Path) -> None:
    """`torchrun --no-python genlock guard -- CMD`, as in the help."""
    met = ("meet", str(tmp_path / "met"))
    script = json.dumps({"1": [met, ("work", 0.3), ("kill", None)], "*": [met, *BUSY]})
    mark = str(tmp_path / "guarded")
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=3", *GUARD, "--out", str(tmp_path), "--",
         sys.executable, str(PROGRAM), mark],
        env={**os.environ, "SCRIPT": script}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    lines = re.findall(r"genlock: rank(\d) was ended: rank1 died by SIGKILL", done.stderr)
    assert sorted(lines) == ["0", "1", "2"]
    assert "exitcode  : 137" in done.stderr
    until(lambda: not alive(mark))


def test_torchrun_with_an_agent_for_each_rank(tmp_path: Path) -> None:
    """As on two machines: no agent sees the other's ranks, and torchrun alone would let the other rank live on."""
    mark, port = str(tmp_path / "guarded"), free_port()
    script = json.dumps({"1": [("work", 0.3), ("kill", None)], "*": BUSY})
    agents = [
        subprocess.Popen(
            [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={n}", "--master-addr=127.0.0.1",
             f"--master-port={port}", *GUARD, "--out", str(tmp_path), "--", sys.executable, str(PROGRAM), mark],
            env={**os.environ, "SCRIPT": script}, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    said = [agent.communicate(timeout=100)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [1, 1]
    for rank, text in enumerate(said):
        assert f"genlock: rank{rank} was ended: rank1 died by SIGKILL" in text
    until(lambda: not alive(mark))
