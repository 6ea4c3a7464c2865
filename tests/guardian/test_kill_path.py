"""The way to the kill: whatever hangs, is missing, or is in the hands of others, the rank ends, with the right name."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from genlock.guardian import command, evidence
from genlock.guardian.child import children, read
from genlock.guardian.exit_cause import DEADLINE, PARITY, PEER_DIED
from guardian_jobs import BUSY, Job, alive, until
from repository import ROOT

KILLED = 128 + signal.SIGKILL
HANG = "lambda *_: time.sleep(1000)"


def patched(*patches: str) -> list[str]:
    """The command of a guardian of which some functions are replaced, as `evidence.store = …`; `HANG` never returns."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from guardian import child, deadlines, evidence, guardian, helper, supervisor
guardian.STORE, helper.SPEAKS = 0.4, 0.2
{"; ".join(patches) or "pass"}
status = supervisor.main(sys.argv[1:])
os._exit(status)
"""
    return [sys.executable, "-I", "-S", "-c", code]


# ── a page that cannot be read ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("waiting", [False, True])
def test_a_stall_in_the_middle_of_a_write_is_charged(start: Callable[..., Job], waiting: bool) -> None:
    """Also where the rank waited before: it does not wait while it writes."""
    steps = [("phase", "steady"), ("work", 0.1), *[("enter", None)] * waiting, ("torn", None)]
    job = start({1: steps, "*": BUSY}, world=2, flags={-1: ["--deadline=steady=0.5"]})
    assert job.ends() == [PEER_DIED, DEADLINE]
    for said in job.said:
        assert "rank1 made no progress for 0." in said


def test_a_stall_in_the_very_first_write_is_charged_as_start_up(start: Callable[..., Job]) -> None:
    write = f"f = open(os.environ['GENLOCK_PAGE'], 'r+b'); f.write(b'GLK'); f.flush(); {HANG.partition(':')[2]}"
    job = start({}, world=1, program=[sys.executable, "-c", f"import os, time; {write}"],
                command=patched("from guardian import settings", "settings.DEADLINES['startup'] = 0.5"))  # fmt: skip
    assert job.ends() == [DEADLINE]
    assert "rank0 made no progress for 0.5 s in phase startup" in job.said[0]


# ── what hangs ──────────────────────────────────────────────────────────────────────────────────────

HANGS = {
    "/proc": ("evidence._process", "in work", True),
    "all evidence": ("evidence.gather", "", True),
    "the disk": ("evidence.store", "", False),
    "the disk of the traces": ("evidence.mark", "in work", True),
    "the start of a helper": ("os.fork", "", False),
}


@pytest.mark.parametrize("hangs", HANGS)
def test_a_rank_is_ended_though_something_hangs_and_what_has_come_is_kept(
    start: Callable[..., Job], tmp_path: Path, hangs: str
) -> None:
    name, has, kept = HANGS[hangs]
    how = f"{name} = {HANG}" if name != "os.fork" else f"guardian.Helpers.run = {NO_PROCESS}"
    meet = ("meet", str(tmp_path / "met"))
    job = start({0: [("phase", "steady"), meet, ("kill", None)], 1: [meet, *BUSY]}, world=2,
                command=patched(how), environ={"GENLOCK_TRACES": str(tmp_path)})  # fmt: skip
    assert job.ends() == [KILLED, PEER_DIED]
    assert (tmp_path / "out" / "rank1.evidence.txt").exists() == kept
    if name != "os.fork":
        assert "rank1 was ended: rank0 died by SIGKILL" in job.said[1]
        assert ("evidence in" in job.said[1]) == kept
    if kept:
        assert "rank0 died by SIGKILL in phase steady" in job.evidence(1)
        assert has in job.evidence(1)
        assert ("This is not all" in job.evidence(1)) == (hangs in ("/proc", "all evidence"))


NO_PROCESS = "lambda self, work, seconds, then, *_, **__: then('', False)"


def test_a_pipe_in_place_of_the_evidence_is_left_alone(start: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "rank1.evidence.txt")
    os.mkfifo(tmp_path / "rank1.trace.jsonl")
    job = start({0: [("phase", "steady"), ("work", 0.2), ("kill", None)], 1: BUSY}, world=2,
                environ={"GENLOCK_TRACES": str(tmp_path)})  # fmt: skip
    assert job.ends() == [KILLED, PEER_DIED]
    assert "rank1-2.evidence.txt" in job.said[1]


def test_a_resolver_that_hangs_holds_nothing_up(start: Callable[..., Job]) -> None:
    away = {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a-host-that-is-looked-up", "GENLOCK_TOKEN": "secret"}
    job = start({"*": [("phase", "steady"), ("work", 0.1), ("kill", None)]}, world=2, environ=away,
                command=patched(f"guardian.resolved = {HANG}"))  # fmt: skip
    assert job.ends() == [KILLED, KILLED]


def test_a_name_that_means_nothing_is_reported_when_nobody_is_met(start: Callable[..., Job]) -> None:
    away = {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "no-such-host.invalid", "GENLOCK_TOKEN": "secret"}
    job = start({"*": BUSY}, world=2, environ=away, flags={-1: ["--deadline=meet=0.3"]},
                command=patched("guardian.resolved = lambda *_: 1 / 0"))  # fmt: skip
    assert job.ends() == [PEER_DIED] * 2
    assert (
        "the guardian of rank0 was not met at no-such-host.invalid, whose address is not known, within" in job.said[1]
    )


@contextlib.contextmanager
def full() -> Iterator[int]:
    """A pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def test_a_full_stderr_that_nobody_reads_holds_nothing_up(start: Callable[..., Job]) -> None:
    """Not the kill, and not the end: also where the guardian had something to say before."""
    with full() as stderr:
        rank0 = [("phase", "steady"), ("say", "here"), ("sleep", 0.5), ("kill", None)]
        job = start({0: rank0, 1: [("say", "here"), *BUSY]}, world=2, stderr=stderr, command=patched())
        for guardian in job.guardians:  # each has its rank, so it knows its signals
            assert guardian.stdout
            assert guardian.stdout.readline() == "here\n"
            guardian.send_signal(signal.SIGUSR1)  # it says that deadlines are paused
        assert job.ends() == [KILLED, PEER_DIED]


# ── who watches whom ────────────────────────────────────────────────────────────────────────────────


def test_a_guardian_outlives_the_thread_that_has_started_it(start: Callable[..., Job], tmp_path: Path) -> None:
    """The kernel's own signal at a parent's end comes at the end of the thread that forked."""
    jobs: list[Job] = []

    def begin() -> None:
        jobs.append(start({"*": [("say", "here"), ("until", str(tmp_path / "enough"))]}, world=1))
        assert jobs[0].guardians[0].stdout
        assert jobs[0].guardians[0].stdout.readline() == "here\n"

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    [job] = jobs
    (tmp_path / "enough").touch()
    assert job.ends() == [0]
    assert job.said == [""]


@pytest.mark.parametrize("who", ["supervisor", "guardian"])
def test_whoever_is_killed_no_grandchild_is_left(start: Callable[..., Job], who: str) -> None:
    job = start({"*": [("helper", None), ("helper", None), ("say", "here"), *BUSY]}, world=2)
    for guardian in job.guardians:
        assert guardian.stdout
        assert guardian.stdout.readline() == "here\n"
    [watcher] = children(job.guardians[1].pid)
    assert len(list(children(job.ranks()[1]))) == 2
    os.kill(watcher if who == "guardian" else job.guardians[1].pid, signal.SIGKILL)
    assert job.ends() == [PEER_DIED, -signal.SIGKILL]
    assert "the guardian of rank1 is gone" in job.said[0]


def test_a_stopped_guardian_whose_supervisor_is_killed_ends_its_rank(start: Callable[..., Job]) -> None:
    job = start({"*": [("say", "here"), *BUSY]}, world=1)
    assert job.guardians[0].stdout
    assert job.guardians[0].stdout.readline() == "here\n"
    os.kill(job.watchers()[0], signal.SIGSTOP)
    job.guardians[0].kill()
    assert job.ends() == [-signal.SIGKILL]


LAUNCHER = """
import os, subprocess, sys, time
ranks = [subprocess.Popen(sys.argv[1:], env={**os.environ, "RANK": str(rank)}, stdout=subprocess.PIPE)
         for rank in range(2)]
for rank in ranks:
    rank.stdout.readline()
print("here", flush=True)
time.sleep(100)
"""


def test_the_death_of_a_launcher_is_not_blamed_on_a_rank_that_it_takes_along(tmp_path: Path) -> None:
    """Its pipes close before it is gone, and ranks die of that."""
    mark = str(tmp_path / "writes")
    words = [*command(), f"--out={tmp_path}", "--", "sh", "-c", f": {mark}; while :; do echo x; sleep 0.001; done"]
    environ = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": mark}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, *words], env=environ, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as launcher:  # fmt: skip
        assert launcher.stdout
        assert launcher.stderr
        assert launcher.stdout.readline() == "here\n"
        launcher.kill()
        said = launcher.stderr.read()
    causes = re.findall(r"rank\d was ended: (.*?)(?:;|$)", said, re.MULTILINE)
    assert len(causes) == 2
    assert all(re.fullmatch(r"the launcher of rank\d died", cause) for cause in causes), said
    until(lambda: not alive(mark))


# ── what a program is given, and what is written ────────────────────────────────────────────────────


def ignored(text: str) -> set[int]:
    [mask] = re.findall(r"SigIgn:\s*([0-9a-f]+)", text)
    return {number for number in range(1, 32) if int(mask, 16) >> (number - 1) & 1}


def test_a_program_is_given_the_signals_that_it_expects() -> None:
    """Python's own ways end at the guardian; what the launcher has it ignore, as `nohup` does, is ignored."""
    for ignore in ((), (signal.SIGHUP, signal.SIGINT)):
        ways = {n: signal.SIG_IGN if n in ignore else signal.SIG_DFL for n in (signal.SIGHUP, signal.SIGINT)}
        before = [signal.signal(number, way) for number, way in ways.items()]
        try:
            said = subprocess.run([*command(), "--", "cat", "/proc/self/status"], capture_output=True, text=True,
                                  check=True, timeout=60).stdout  # fmt: skip
        finally:
            for number, handler in zip(ways, before, strict=True):
                signal.signal(number, handler)
        given = ignored(said)
        assert not given & {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM}
        assert given & {signal.SIGHUP, signal.SIGINT} == set(ignore)
        assert re.search(r"SigBlk:\s*0+$", said, re.MULTILINE)


def test_a_program_that_writes_to_a_closed_pipe_dies_of_it(tmp_path: Path) -> None:
    with subprocess.Popen([*command(), f"--out={tmp_path}", "--", "sh", "-c", "while :; do echo x; done"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as guardian:  # fmt: skip
        assert guardian.stdout
        assert guardian.stderr
        guardian.stdout.readline()
        guardian.stdout.close()
        assert b"rank0 died by SIGPIPE" in guardian.stderr.read()
    assert guardian.returncode == 128 + signal.SIGPIPE


PRECIOUS = '{"kind": "event", "index": 1}\n'
"""What a marker would be added to, if it were the rank's trace."""


def test_nothing_is_written_through_a_link_and_all_is_for_the_owner_alone(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    out, victims = tmp_path / "out", [tmp_path / f"victim{n}" for n in range(3)]
    out.mkdir()
    for victim in victims:
        victim.write_text(PRECIOUS)
    (out / "rank0.evidence.txt").symlink_to(victims[0])
    (out / "rank0.trace.jsonl.end").symlink_to(victims[1])
    (out / "rank1.trace.jsonl").symlink_to(victims[2])
    job = start({0: [("kill", None)], 1: BUSY}, world=2, environ={"GENLOCK_TRACES": str(out)})
    assert job.ends() == [KILLED, PEER_DIED]
    assert [victim.read_text() for victim in victims] == [PRECIOUS] * 3
    written = [path for path in out.iterdir() if not path.is_symlink()]
    assert {path.name for path in written} == {"rank0-2.evidence.txt", "rank1.evidence.txt", "rank0.trace.jsonl.end"}
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}


def test_evidence_of_before_is_kept(tmp_path: Path) -> None:
    found: list[str] = []
    for text in ("first", "second"):
        evidence.store(found.append, str(tmp_path / "new"), iter(["a", "b"]), text)
    assert [Path(path).read_text() for path in found] == ["first", "second"]
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


MANY = [f"--deadline=a_phase_with_a_long_name_{n}={100 + n}" for n in range(200)]


def test_guardians_with_many_equal_deadlines_are_equal(start: Callable[..., Job]) -> None:
    job = start({"*": []}, world=2, flags={-1: MANY})
    assert job.ends() == [0, 0]


def test_the_one_of_many_deadlines_that_differs_is_named(start: Callable[..., Job]) -> None:
    last = [*MANY[:-1], MANY[-1].rpartition("=")[0] + "=7"]
    job = start({"*": BUSY}, world=2, flags={0: MANY, 1: last})
    assert job.ends() == [PARITY, PARITY]
    for said in job.said:
        assert "guardians differ: `deadline a_phase_with_a_long_name_199`: rank1 has 7, rank0 299" in said


def test_names_that_are_not_text_do_no_harm(tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/out\xff"
    done = subprocess.run([*map(os.fsencode, command()), b"--out", out, b"--", b"sh", b"-c", b"exit 3"],
                          capture_output=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 3
    assert b"evidence in " + out in done.stderr
    assert os.path.exists(out + b"/rank0.evidence.txt")


def test_a_guardian_and_its_supervisor_are_small_together(
    start: Callable[..., Job],
) -> None:
    """The chain is launcher, supervisor, guardian, rank; the supervisor is small."""
    job = start({"*": [("say", "here"), *BUSY]}, world=1)
    assert job.guardians[0].stdout
    assert job.guardians[0].stdout.readline() == "here\n"
    [rank] = job.ranks()
    assert f"\nPPid:\t{job.watchers()[0]}\n" in read(f"/proc/{rank}/status")
    shared = sum(int(line.split()[1]) for pid in (job.guardians[0].pid, job.watchers()[0])
                 for line in read(f"/proc/{pid}/smaps_rollup").splitlines() if line.startswith("Pss:"))  # fmt: skip
    assert shared < 12 << 10
    job.guardians[0].terminate()
    assert job.ends() == [128 + signal.SIGTERM]
