"""`genlock collect` on processes that stand for ranks: what it finds, what it leaves alone, and that it always ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_ranks import BareRanks, bare_ranks
from genlock.collect import stacks
from genlock.collect.gather import Collected, collect
from genlock.collect.logs import TAIL
from genlock.collect.process import Process
from genlock.conformance.replay import replay
from genlock.errors import UnreadableInput, UsageError
from genlock.guardian.status_page import SIZE, SPARED, STACKS, VARIABLE
from genlock.traces import journal

Popen = subprocess.Popen[bytes]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[BareRanks]:
    with bare_ranks(tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def without_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "py_spy", lambda: None)


def collected(tmp_path: Path, *processes: Popen, **settings: Any) -> tuple[Collected, dict[str, bytes]]:
    """What was collected of processes, and what is in the archive."""
    named = {process.pid: None for process in processes}
    done = collect(named, tmp_path / "out.zip", apart=0, **settings)
    with zipfile.ZipFile(done.path) as archive:
        found = {name.removeprefix("out/"): archive.read(name) for name in archive.namelist()}
    assert all(process.poll() is None for process in processes), "the job lives on"
    return done, found


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(files["manifest.json"])
    return about


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────


def test_ranks_are_found_by_their_environment_and_helpers_are_none(ranks: BareRanks, tmp_path: Path) -> None:
    one, two = ranks.start("child", rank=2), ranks.start(rank=0)
    done, files = collected(tmp_path, two, one)
    assert [one.rank.name for one in done.ranks] == ["rank0", "rank2"]
    assert [(r["rank"], r["pid"], r["world"], r["certain"]) for r in manifest(files)["ranks"]] == [
        (0, two.pid, 3, True),
        (2, one.pid, 3, True),
    ]


def test_ranks_are_named_where_nothing_tells_them(ranks: BareRanks, tmp_path: Path) -> None:
    one, two = ranks.start(), ranks.start()
    done = collect({one.pid: 4, two.pid: 3}, tmp_path / "new", apart=0)
    assert [(one.rank.name, one.rank.process.pid) for one in done.ranks] == [("rank3", two.pid), ("rank4", one.pid)]
    assert done.path.parent == tmp_path / "new"
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o600


def test_two_jobs_are_told_apart(ranks: BareRanks, tmp_path: Path) -> None:
    one, two = ranks.start(rank=0, MASTER_PORT="1"), ranks.start(rank=0, MASTER_PORT="2")
    with pytest.raises(UsageError, match=r"several jobs run here: .*choose one: `--pid PID`"):
        collect({one.pid: None, two.pid: None}, tmp_path, apart=0)
    assert [p.name for p in tmp_path.glob("*.zip")] == []


def test_a_process_that_is_none_is_refused(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(UsageError, match=f"no process {gone.pid} that can be looked at"):
        collect({gone.pid: 0}, tmp_path, apart=0)


def test_a_handle_is_never_of_another_process_of_the_same_number(ranks: BareRanks) -> None:
    one = ranks.start(rank=0)
    process = Process(one.pid)
    assert process.alive
    one.kill()
    one.wait()
    assert not process.alive
    with pytest.raises(OSError, match=r"No such process"):
        process.environment()
    with pytest.raises(ProcessLookupError):
        process.send(signal.SIGUSR1)


def test_a_rank_that_ends_meanwhile_is_told(ranks: BareRanks, tmp_path: Path) -> None:
    one = ranks.start(rank=0)

    def end(said: str) -> None:
        if said == "look 2 of 2":
            one.kill()
            one.wait()

    done = collect({one.pid: None}, tmp_path / "out.zip", apart=0, tell=end)
    assert list(done.ranks[0].missing()) == ["its process ended meanwhile"]
    assert not done.complete
    assert done.advice == []


# ── signals ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_that_nobody_handles_is_never_sent(ranks: BareRanks, tmp_path: Path) -> None:
    """Its default is to end the process."""
    one = ranks.start(rank=0)
    done, _ = collected(tmp_path, one, asked_by=signal.SIGUSR1)
    assert "does not handle SIGUSR1, which would end it" in done.ranks[0].stacks[0].missing
    assert not done.complete
    time.sleep(0.05)
    assert one.poll() is None


def test_stacks_come_by_a_signal_that_faulthandler_answers(ranks: BareRanks, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"what was there before\n")
        log.flush()
        one = ranks.start("signal", str(int(signal.SIGUSR1)), rank=0, out=log)
    done, files = collected(tmp_path, one, asked_by=signal.SIGUSR1)
    for look in (1, 2):
        assert b"bare_rank.py" in files[f"rank0.stack{look}.txt"]
        assert b"before" not in files[f"rank0.stack{look}.txt"]
    assert done.complete
    assert not done.ranks[0].still, "a signal wakes whoever sleeps, so that nothing shows that it slept on"


GUARDED = "import sys; from genlock.impl.rank.heartbeat import Beat; Beat.open(); print(); sys.stdin.read()"


RECORDED = "import sys; from genlock.impl.recording.standstill import *; answer(Path(sys.argv[1]), 0); print(); input()"


def test_a_recorded_rank_is_asked_for_its_stacks_by_the_recorders_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-uc", RECORDED, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "RANK": "0"}
    ) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline()
            done, files = collected(tmp_path, one)
            assert done.ranks[0].stacks[1].found["by"] == "recorded"
            assert b"(most recent call first)" in files["rank0.stack2.txt"]
        finally:
            one.kill()


@pytest.mark.parametrize("spared", ["1", "0"])
def test_a_guarded_rank_is_asked_only_where_its_stacks_cannot_end_it(tmp_path: Path, spared: str) -> None:
    """Asked for those of all threads, a rank that runs may die of it."""
    (tmp_path / "page").write_bytes(bytes(SIZE))
    (tmp_path / "stacks").touch()
    given = {VARIABLE: str(tmp_path / "page"), STACKS: str(tmp_path / "stacks"), SPARED: spared, "RANK": "0"}
    command = [sys.executable, "-uc", GUARDED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **given}) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline()
            done, files = collected(tmp_path, one)
            assert bool(done.ranks[0].stacks[1].files) == (spared == "1")
            assert (b"(most recent call first)" in files.get("rank0.stack2.txt", b"")) == (spared == "1")
        finally:
            one.kill()


def test_a_stopped_rank_is_not_asked_by_a_signal(ranks: BareRanks, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        one = ranks.start("signal", str(int(signal.SIGUSR1)), rank=0, out=log)
    one.send_signal(signal.SIGSTOP)
    while Process(one.pid).state != "T":
        time.sleep(0.01)
    done, files = collected(tmp_path, one, asked_by=signal.SIGUSR1)
    assert "it is stopped, and would answer a signal when it goes on" in done.ranks[0].stacks[0].missing
    assert manifest(files)["ranks"][0]["stopped"]
    assert Process(one.pid).status("SigPnd") == Process(one.pid).status("ShdPnd") == "0" * 16


def test_the_handle_itself_sends_no_signal_that_is_not_handled(ranks: BareRanks) -> None:
    one = ranks.start(rank=0)
    with pytest.raises(ProcessLookupError, match="does not handle SIGUSR1"):
        Process(one.pid).send(signal.SIGUSR1)
    assert Process(one.pid).alive


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pipe_is_not_read(ranks: BareRanks, tmp_path: Path) -> None:
    one = ranks.start(rank=0, out=subprocess.PIPE)
    done, _ = collected(tmp_path, one)
    assert done.ranks[0].logs.missing == "no log: stdout is a pipe and stderr is a pipe"
    assert any("torchrun --redirects 3" in advice for advice in done.advice)


def test_the_handle_itself_opens_no_pipe(ranks: BareRanks) -> None:
    one = ranks.start(rank=0, out=subprocess.PIPE)
    with pytest.raises(UnreadableInput, match="no regular file"):
        Process(one.pid).reopen(1)


def test_a_log_of_the_launchers_is_nobodys(ranks: BareRanks, tmp_path: Path) -> None:
    """A rank alone on its node may write into a file into which the ranks of all nodes do."""
    with (tmp_path / "log").open("ab") as log:
        log.write(b"line\n")
        one = ranks.start(rank=0, out=log, shell=True)
    done, files = collected(tmp_path, one)
    assert [rank.rank.name for rank in done.ranks] == ["rank0"]
    assert [name for name in files if name.endswith(".log")] == ["shared1.log"]


def test_of_a_huge_log_the_last_lines_are_taken(ranks: BareRanks, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.truncate(1 << 40)  # a hole, which takes no room
        log.write(b"\nthe last line\n")
        log.flush()
        one = ranks.start(rank=1, out=log)
    _, files = collected(tmp_path, one)
    assert len(files["rank1.stdout.log"]) < TAIL
    assert files["rank1.stdout.log"].endswith(b"the last line\n")


def test_a_log_of_several_ranks_is_nobodys(ranks: BareRanks, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log, (tmp_path / "own").open("ab") as own:
        log.write(b"line\n")
        own.write(b"line\n")
        both = [ranks.start(rank=n, out=log) for n in range(2)]
        alone = ranks.start(rank=2, out=own)
    done, files = collected(tmp_path, *both, alone)
    assert {name for name in files if name.endswith(".log")} == {"shared1.log", "rank2.stdout.log"}
    assert [one.logs.files for one in done.ranks] == [["shared1.log"], ["shared1.log"], ["rank2.stdout.log"]]


# ── dumps and questions ─────────────────────────────────────────────────────────────────────────────────


def test_a_dump_is_asked_for_by_torchs_pipe(ranks: BareRanks, tmp_path: Path) -> None:
    one = ranks.start(
        "piped",
        str(tmp_path / "fr_0.pipe"),
        str(tmp_path / "dump_0"),
        rank=0,
        TORCH_NCCL_DEBUG_INFO_PIPE_FILE=str(tmp_path / "fr_"),
        TORCH_FR_DUMP_TEMP_FILE=str(tmp_path / "dump_"),
    )
    done, files = collected(tmp_path, one)
    assert files["trace_0"] == b"\x80\x02}q\x00."
    assert done.ranks[0].records[1].found["by"] == "piped"
    assert not done.ranks[0].moved


def test_a_pipe_that_the_rank_does_not_hold_is_left_alone(ranks: BareRanks, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fr_0.pipe")
    one = ranks.start(rank=0, TORCH_NCCL_DEBUG_INFO_PIPE_FILE=str(tmp_path / "fr_"))
    done, _ = collected(tmp_path, one)
    assert "torch has not opened its pipe" in done.ranks[0].records[1].missing


def test_a_dump_of_an_older_process_is_not_taken(ranks: BareRanks, tmp_path: Path) -> None:
    (tmp_path / "dump_0").write_bytes(b"\x80\x02}q\x00.")
    os.utime(tmp_path / "dump_0", (1e9, 1e9))
    (tmp_path / "dump_1").write_bytes(b"\x80\x02}q\x00.")
    two = [ranks.start(rank=n, TORCH_FR_DUMP_TEMP_FILE=str(tmp_path / "dump_")) for n in range(2)]
    os.utime(tmp_path / "dump_1")
    _, files = collected(tmp_path, *two)
    assert "trace_0" not in files
    assert "trace_1" in files


def test_a_dump_is_asked_for_at_torchs_worker_server(ranks: BareRanks, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    one = ranks.start("served", path, rank=0, TORCH_WORKER_SERVER_SOCKET=path)
    other = ranks.start(rank=1, TORCH_WORKER_SERVER_SOCKET=path)
    done, files = collected(tmp_path, one, other)
    assert json.loads(files["trace_0.json"])["version"] == "2.10"
    assert "no worker server of this rank" in done.ranks[1].records[0].missing


def test_ras_is_asked_where_a_rank_listens(ranks: BareRanks, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    library = tmp_path / "libnccl.so.2"
    library.write_bytes(b"x")
    one = ranks.start("loaded", str(library), "ras", port, rank=0, NCCL_RAS_ADDR=f"127.0.0.1:{port}")
    _, files = collected(tmp_path, one)
    assert [name for name in files if name.startswith("ras")] == ["ras1.json", "ras1.txt", "ras2.json", "ras2.txt"]
    assert json.loads(files["ras2.json"])["communicators"][0]["size"] == 3
    assert b"| #0-0 (0abc) MISMATCH" in files["ras1.txt"], "quoted, so that nobody takes it for another answer"
    found = replay([tmp_path / "out.zip"]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (1,))


def torch_at(folder: Path) -> str:
    """A file by which a process seems to have loaded torch 2.6."""
    library = folder / "torch" / "lib" / "libtorch_cpu.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"x")
    (folder / "torch" / "version.py").write_text("__version__ = '2.6.0+cu124'\n")
    return str(library)


def test_of_a_recorded_rank_the_trace_is_taken_up_to_its_last_line(ranks: BareRanks, tmp_path: Path) -> None:
    trace, beside = tmp_path / "rank5.trace.jsonl", tmp_path / "rank5.stacks"
    trace.write_bytes(b'{"kind":"header"}\n{"kind":"event"}\n{"kind":"ev')
    beside.write_bytes(b"kept by the recorder\n")
    journal.append(tmp_path, journal.Job("r-a", 0, 8))
    one = ranks.start("loaded", torch_at(tmp_path), "holds", str(trace), RANK="0")
    done, files = collected(tmp_path, one)
    assert [rank.rank.name for rank in done.ranks] == ["rank5"], "what it writes says more than what it was told"
    assert files["rank5.trace.jsonl"] == b'{"kind":"header"}\n{"kind":"event"}\n'
    assert files["rank5.stacks"] == b"kept by the recorder\n"
    assert files[journal.NAME] == (tmp_path / journal.NAME).read_bytes()
    assert done.ranks[0].still


def test_advice_is_that_for_the_version_of_torch(ranks: BareRanks, tmp_path: Path) -> None:
    one = ranks.start("loaded", torch_at(tmp_path), rank=0)
    done, files = collected(tmp_path, one)
    assert manifest(files)["ranks"][0]["torch"] == "2.6"
    assert any("TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DEBUG_INFO_PIPE_FILE" in line for line in done.advice)


def test_a_port_of_somebody_elses_is_not_spoken_to(ranks: BareRanks, tmp_path: Path) -> None:
    library = tmp_path / "libnccl.so.2"
    library.write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        one = ranks.start("loaded", str(library), rank=0, NCCL_RAS_ADDR=address)
        done, _ = collected(tmp_path, one)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "no RAS: no rank here listens on its port" in done.general


# ── what goes out ───────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_and_no_name_is_in_the_archive(ranks: BareRanks, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"logging in with plainvalue123 as mallory on gpuhost77\n")
        one = ranks.start(
            rank=0,
            out=log,
            VLLM_API_KEY="plainvalue123",
            HOME="/home/mallory",
            MASTER_ADDR="gpuhost77",
            NCCL_DEBUG="INFO",
            NCCL_SOCKET_IFNAME="gpuhost77-eth",
        )
    _, files = collected(tmp_path, one)
    whole = b"\n".join(files.values())
    for word in (b"plainvalue123", b"mallory", b"gpuhost77", socket.gethostname().encode()):
        assert word not in whole or word in (b"vm", b"localhost")
    environment = manifest(files)["ranks"][0]["environment"]
    assert environment["NCCL_DEBUG"] == "INFO"
    assert "VLLM_API_KEY" not in environment
    assert environment["MASTER_ADDR"].encode() in files["rank0.stdout.log"], "alike stays alike"


def test_nothing_is_overwritten_and_no_link_is_followed(ranks: BareRanks, tmp_path: Path) -> None:
    one = ranks.start(rank=0)
    (tmp_path / "there.zip").write_text("mine")
    (tmp_path / "link.zip").symlink_to(tmp_path / "elsewhere")
    for name in ("there.zip", "link.zip"):
        with pytest.raises(UsageError, match="there is such a file already"):
            collect({one.pid: None}, tmp_path / name, apart=0)
    assert (tmp_path / "there.zip").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_ctrl_c_ends_it_with_what_there_is(ranks: BareRanks, tmp_path: Path) -> None:
    """It would wait for an hour."""
    one = ranks.start(rank=0)
    command = [sys.executable, "-m", "genlock", "collect", "--pid", str(one.pid)]
    command += ["--apart", "3600", "--timeout", "7200", "--out", str(tmp_path / "out.zip")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "look 1 of 2" not in (line := process.stderr.readline()):
            assert line
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 3, said
    assert "interrupted" in printed
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert json.loads(archive.read("out/manifest.json"))["interrupted"]
    assert one.poll() is None
