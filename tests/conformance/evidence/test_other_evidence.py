"""Exceptions, launchers' tables, stacks, NCCL's calls and answers, engines, stores: what each shows, and what not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.errors import UnreadableInput
from genlock.traces.evidence import Evidence, Operation, Waits
from genlock.traces.importers.logs.torch_watchdog import operation_of
from genlock.traces.load import gather
from job_logs import mixed, one_behind

Files = Mapping[str, str]


def judged(folder: Path, files: Files | str) -> Diagnosis:
    for name, text in ({"job.log": files} if isinstance(files, str) else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return replay([folder]).diagnosis


def named(found: Diagnosis) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return found.verdict, found.culprits, found.suspects


# ── exceptions and ends ─────────────────────────────────────────────────────────────────────────────────

SITE = "/opt/env/lib/python3.11/site-packages"
TRACEBACK = f"""Traceback (most recent call last):
  File "/home/me/examples/pytorch/train.py", line 88, in <module>
    main()
  File "/home/me/examples/pytorch/train.py", line 42, in main
    loss = model(batch)
           ^^^^^^^^^^^^
  File "{SITE}/torch/nn/modules/module.py", line 1736, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
  File "{SITE}/transformers/models/llama/modeling_llama.py", line 320, in forward
    raise ValueError("bad shape")
ValueError: bad shape
"""
LEFT = f"""Traceback (most recent call last):
  File "/home/me/train.py", line 50, in main
    loss.backward()
  File "{SITE}/torch/distributed/distributed_c10d.py", line 2806, in all_reduce
    work.wait()
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:41202
"""


def behind(prefix: str, text: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


def interleaved(*texts: str) -> str:
    lines = [text.splitlines() for text in texts]
    longest = max(map(len, lines))
    return "".join(f"{own[at]}\n" for at in range(longest) for own in lines if at < len(own))


@pytest.mark.parametrize("outer", ["", "[default1]:", "3: ", "(W pid=11, ip=10.0.0.1) "])
def test_a_rank_that_raised_is_named_with_its_own_line(outer: str, tmp_path: Path) -> None:
    texts = [behind(f"{outer}[rank1]: ", TRACEBACK), *(behind(f"{outer}[rank{r}]: ", LEFT) for r in (0, 2))]
    found = judged(tmp_path, interleaved(*texts))
    assert named(found) == ("divergent", (1,), ())
    assert found.divergence is not None
    assert found.divergence.observed == "ValueError: bad shape"
    place = "train.py:42 (main), in transformers/models/llama/modeling_llama.py:320 (forward)"
    assert found.divergence.phase == place


def test_an_error_of_the_process_group_accuses_nobody(tmp_path: Path) -> None:
    found = judged(tmp_path, "".join(behind(f"[rank{r}]: ", LEFT) for r in (0, 2)))
    assert found.verdict == "unknown"
    assert not {0, 2} & set(found.suspects)


def waited(line: int, operation: str, said: str) -> str:
    return (
        f'Traceback (most recent call last):\n  File "/home/me/train.py", line {line}, in step\n    call()\n'
        f'  File "{SITE}/torch/distributed/distributed_c10d.py", line 2806, in {operation}\n    work.wait()\n'
        f"RuntimeError: [../third_party/gloo/gloo/transport/tcp/{said}\n"
    )


SILENT = "unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete"
CLOSED = "pair.cc:534] Connection closed by peer [10.0.0.7]:41202"


def test_an_error_of_the_process_group_says_where_its_rank_waited(tmp_path: Path) -> None:
    lines = [(33, "barrier", CLOSED), (33, "barrier", CLOSED), (30, "all_reduce", SILENT)]
    texts = [behind(f"[rank{r}]: ", waited(*lines[r])) for r in range(3)]
    found = judged(tmp_path / "timeout", interleaved(*texts))
    assert named(found) == ("unknown", (), (2,))
    assert any("rank2 waits at train.py:30 (step)" in reason for reason in found.reasons)
    # without a time-out, nobody stood long where the connection was lost
    closed = [behind(f"[rank{r}]: ", waited(*lines[r][:2], CLOSED)) for r in range(3)]
    assert named(judged(tmp_path / "closed", "".join(closed))) == ("unknown", (), ())
    assert any("train.py:33 (step)" in reason for reason in judged(tmp_path / "one", texts[1]).reasons)


def test_who_writes_a_message_of_several_lines_stands_in_its_first(tmp_path: Path) -> None:
    own = f"[2026-03-02 11:20:11 TP2] Scheduler hit an exception: {TRACEBACK}"
    other = behind("", TRACEBACK).replace("bad shape", "of another process")
    found = judged(tmp_path, f"[2026-03-02 11:20:10 TP1] Decode batch.\n{own}{other}")
    assert named(found) == ("divergent", (2,), ())
    assert found.divergence is not None
    assert found.divergence.observed == "ValueError: bad shape"


def test_an_exception_that_may_have_been_caught_makes_a_suspect(tmp_path: Path) -> None:
    found = judged(tmp_path, {"rank1.log": TRACEBACK, "rank0.log": "step 1\n"})
    assert named(found) == ("unknown", (), (1,))


def test_of_a_launchers_local_number_the_rank_is_not_certain(tmp_path: Path) -> None:
    assert named(judged(tmp_path, behind("[default3]:", TRACEBACK)))[1] == ()


def test_a_local_number_is_the_rank_that_the_same_log_gives_it(tmp_path: Path) -> None:
    said = behind("[default3]:", TRACEBACK) + table(exit_row(11, 3, "1"))
    assert named(judged(tmp_path, said)) == ("divergent", (11,), ())


def test_a_spawned_process_is_its_number(tmp_path: Path) -> None:
    said = f"-- Process 2 terminated with the following error:\n{TRACEBACK}"
    assert named(judged(tmp_path, said)) == ("unknown", (), (2,))  # its number on its host


def test_of_a_chain_of_exceptions_the_last_counts(tmp_path: Path) -> None:
    chain = f"{TRACEBACK}\nDuring handling of the above exception, another exception occurred:\n\n{LEFT}"
    assert named(judged(tmp_path, behind("[rank1]: ", chain)))[1] == ()


def exit_row(rank: int, local: int, code: str, told: str = "To enable traceback see: https://example.org") -> str:
    return (
        f"  time      : 2026-01-26_01:19:30\n  host      : node-b\n  rank      : {rank} (local_rank: {local})\n"
        f"  exitcode  : {code} (pid: {88100 + rank})\n  error_file: <N/A>\n  traceback : {told}\n"
    )


def table(root: str, *others: str) -> str:
    line, thin = "=" * 40, "-" * 40
    rows = "".join(f"[{at}]:\n{row}" for at, row in enumerate(others, 1)) or "  <NO_OTHER_FAILURES>\n"
    first = f"Root Cause (first observed failure):\n[0]:\n{root}"
    return f"{line}\ntrain.py FAILED\n{thin}\nFailures:\n{rows}{thin}\n{first}{line}\n"


def test_a_rank_that_was_killed_first_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, table(exit_row(2, 2, "-9", "Signal 9 (SIGKILL) received by PID 88102")))
    assert named(found) == ("divergent", (2,), ())


def test_the_root_cause_of_a_table_is_no_culprit_where_its_own_watchdog_ended_it(tmp_path: Path) -> None:
    rows = [exit_row(r, r, "-6", f"Signal 6 (SIGABRT) received by PID {88100 + r}") for r in (0, 1)]
    said = one_behind("2.6", 4, (2,))
    found = judged(tmp_path, mixed(said).decode() + table(rows[1], rows[0]))
    assert named(found) == ("divergent", (2,), ())
    assert named(judged(tmp_path / "alone", {"table.log": table(rows[1], rows[0])}))[1:] == ((), ())


# ── stacks ──────────────────────────────────────────────────────────────────────────────────────────────


def dump(pid: int, frames: Sequence[str], state: str = "idle") -> str:
    """What py-spy prints of a process."""
    calls = "\n".join(f"    {frame}" for frame in frames)
    other = f'Thread {pid + 1} (idle): "pin_memory"\n    wait (threading.py:324)\n    _bootstrap (threading.py:995)\n'
    head = f"Process {pid}: python train.py\nPython v3.11.7 (/usr/bin/python3.11)\n"
    return f'{head}\nThread {pid} ({state}): "MainThread"\n{calls}\n{other}\n'


WAITING = [
    "wait (torch/distributed/distributed_c10d.py:500)",
    "all_reduce (torch/distributed/distributed_c10d.py:2806)",
]
WAITING += ["main (train.py:50)", "<module> (train.py:88)"]
LOADING = ["get (queue.py:171)", "_next_data (torch/utils/data/dataloader.py:1444)", "main (train.py:8)"]


def test_the_one_whose_stack_is_elsewhere_is_the_suspect_and_of_two_dumps_the_culprit(tmp_path: Path) -> None:
    files = {f"stack.rank{r}.txt": dump(100 + r, LOADING if r == 1 else WAITING) for r in range(3)}
    found = judged(tmp_path / "once", files)
    assert named(found) == ("unknown", (), (1,))
    twice = judged(tmp_path / "twice", {name: text + text for name, text in files.items()})
    assert named(twice) == ("divergent", (1,), ())
    assert twice.divergence is not None
    assert twice.divergence.phase.startswith("train.py:8 (main)")


def test_pyspys_json_is_read_alike(tmp_path: Path) -> None:
    def threads(rank: int) -> list[dict[str, Any]]:
        calls = [frame[:-1].rpartition(" (") for frame in (LOADING if rank == 1 else WAITING)]
        frames = [
            {"name": name, "filename": where.split(":")[0], "short_filename": where, "line": int(where.split(":")[1])}
            for name, _, where in calls
        ]
        return [{"pid": 5, "thread_id": 5, "thread_name": "MainThread", "active": False, "frames": frames}]

    files = {f"stack.rank{r}.json": json.dumps(threads(r)) for r in range(3)}
    assert named(judged(tmp_path, files)) == ("unknown", (), (1,))


def test_a_stack_gives_the_place_of_whom_the_log_names(tmp_path: Path) -> None:
    stack = "Timeout (0:05:00)!\nThread 0x00007f (most recent call first):\n"
    stack += '  File "/usr/lib/python3.11/queue.py", line 171 in get\n  File "/home/me/train.py", line 8 in main\n'
    found = judged(tmp_path, {"job.log": mixed(one_behind()).decode(), "stacks/rank2.txt": stack})
    assert named(found) == ("divergent", (2,), ())
    assert found.divergence is not None
    assert found.divergence.phase == "train.py:8 (main), in queue.py:171 (get)"


def test_a_stack_makes_a_culprit_of_a_rank_without_a_log(tmp_path: Path) -> None:
    said = one_behind("2.6")
    del said[2]
    found = judged(tmp_path, {"job.log": mixed(said).decode(), "stack.rank2.txt": dump(102, LOADING)})
    assert named(found) == ("divergent", (2,), ())
    waits = judged(tmp_path, {"stack.rank2.txt": dump(102, WAITING)})
    assert waits.culprits == ()


def test_stacks_of_unnamed_processes_accuse_nobody(tmp_path: Path) -> None:
    found = judged(tmp_path, dump(100, WAITING) + dump(101, LOADING))
    assert named(found) == ("unknown", (), ())


# ── NCCL ────────────────────────────────────────────────────────────────────────────────────────────────


def call(rank: int, number: int, op: str = "AllReduce", count: int = 512) -> str:
    return (
        f"host:{100 + rank}:{100 + rank} [{rank}] NCCL INFO {op}: opCount {number:x} sendbuff 0x7f00 recvbuff 0x7f00 "
        f"count {count} datatype 7 op 0 root 0 comm 0x7f{rank} [nranks=4] stream 0x9c\n"
    )


def init(rank: int) -> str:
    return (
        f"host:{100 + rank}:{100 + rank} [{rank}] NCCL INFO comm 0x7f{rank} rank {rank} nranks 4 cudaDev {rank} "
        "busId 1000 commId 0xabc - Init COMPLETE\n"
    )


def test_calls_at_one_number_are_compared(tmp_path: Path) -> None:
    said = [call(r, n, "AllGather" if (r, n) == (3, 16) else "AllReduce") for n in (14, 15, 16, 17) for r in range(4)]
    found = judged(tmp_path, "".join(said))
    assert named(found) == ("divergent", (3,), ())
    assert found.divergence is not None
    assert "opCount 10 " in found.divergence.place


def test_torn_lines_lose_nothing_but_themselves(tmp_path: Path) -> None:
    first = [call(r, n) for n in (14, 15) for r in range(4)]
    first[5] = first[5][:90] + first[6].rstrip("\n") + first[5][90:]  # one in the middle of another
    first[2] = first[2].rstrip("\n")  # two on one line
    del first[6]
    last = [call(r, 16, count=9 if r == 0 else 512) for r in range(4)]
    assert named(judged(tmp_path, "".join(init(r) for r in range(4)) + "".join(first + last)))[1] == (0,)


def test_where_the_number_stands_still_calls_are_counted_from_the_beginning_alone(tmp_path: Path) -> None:
    """As on one host from NCCL 2.27 on."""
    rows = [[call(r, 0), call(r, 0, "Broadcast" if r == 2 else "AllReduce")] for r in range(4)]
    text = "".join(line for own in rows for line in own)
    assert named(judged(tmp_path / "with", {"a.log": "".join(map(init, range(4))) + text})) == ("divergent", (2,), ())
    assert judged(tmp_path / "without", {"a.log": text}).culprits == ()


def ras(counts: Mapping[int, int], gone: Sequence[int] = ()) -> str:
    ranks = [
        {"rank": r, "host": "h", "pid": 100 + r, "status": {}, "collective_counts": {"AllReduce": n, "AllGather": 7}}
        for r, n in counts.items()
    ]
    missing = [{"rank": r, "host": "h", "pid": 100 + r, "status": {"considered_dead": True}} for r in gone]
    comm = {"hash": "0xabc", "size": 4, "ranks": ranks, "missing_ranks": missing}
    return json.dumps({"nccl_version": "2.29.1", "communicators": [comm]}, indent=1) + "\n"


def test_one_answer_of_ras_shows_no_hang_and_two_alike_do(tmp_path: Path) -> None:
    counts = {0: 20, 1: 20, 2: 19, 3: 20}
    assert named(judged(tmp_path / "one", {"ras.json": ras(counts)})) == ("unknown", (), (2,))
    assert named(judged(tmp_path / "two", {"a.json": ras(counts), "b.json": ras(counts)})) == ("divergent", (2,), ())
    moved = {"a.json": ras(counts), "b.json": ras({r: n + 5 for r, n in counts.items()})}
    assert judged(tmp_path / "moved", moved).culprits == ()
    same = {"a.json": ras(dict.fromkeys(range(4), 20)), "b.json": ras(dict.fromkeys(range(4), 20))}
    assert named(judged(tmp_path / "same", same))[1:] == ((), ())


def test_whoever_does_not_answer_to_ras_is_a_suspect(tmp_path: Path) -> None:
    assert named(judged(tmp_path, {"ras.json": ras({0: 5, 1: 5, 2: 5}, gone=(3,))})) == ("unknown", (), (3,))


def test_the_outliers_of_ras_may_be_those_ahead(tmp_path: Path) -> None:
    text = """NCCL version 2.26.2 compiled with CUDA 12.6
Job summary
===========
Warnings
========
#0-0 (00ab) MISMATCH
  Communicator ranks have different AllGather operation counts
  6 ranks have launched up to operation 640
  2 ranks have launched up to operation 641
  Rank 4 -- GPU 4 managed by process 1001 on node 192.0.2.1
  Rank 5 -- GPU 5 managed by process 1002 on node 192.0.2.1
"""
    found = judged(tmp_path, text)
    assert found.verdict == "unknown"
    assert {0, 1, 2, 3, 6, 7} <= set(found.suspects)


FRONTS: tuple[Callable[[str], str], ...] = (
    "Nov 30 02:00:01 gpu-node-1 torchrun[12344]: {}".format,
    "gpu-node-1: {}".format,
    "[gpu-node-1] {}".format,
    "2026-11-30 02:00:00,123 - INFO - stderr - {}".format,
    lambda line: json.dumps({"log": f"{line}\n", "stream": "stderr"}),
    lambda line: json.dumps({"severity": "ERROR", "textPayload": line, "labels": {"pod": "train-2"}}),
)
"""What journals, launchers and collectors put around a line."""


@pytest.mark.parametrize("front", FRONTS)
def test_what_stands_before_a_ranks_own_prefix_does_not_hide_it(tmp_path: Path, front: Callable[[str], str]) -> None:
    lines = ["Traceback (most recent call last):", '  File "/app/data.py", line 17, in load', "KeyError: 'image'"]
    said = judged(tmp_path, "".join(front(f"[rank2]: {line}") + "\n" for line in lines))
    assert said.divergence is not None
    assert (named(said)[1], said.divergence.observed) == ((2,), "KeyError: 'image'")


def scheduler(rank: int, frames: Sequence[str]) -> list[str]:
    head = f"[2025-10-29 11:25:58 TP{rank}]"
    return [
        f"{head} Watchdog timeout (self.watchdog_timeout=300)",
        "",
        f"{head} Pyspy dump for PID {303 + rank}:",
        f"Process {303 + rank}: sglang::scheduler_TP{rank}",
        "",
        f'Thread {303 + rank} (active): "MainThread"',
        *(f"    {frame}" for frame in frames),
        "",
    ]


WAITS = ("broadcast (torch/distributed/distributed_c10d.py:2824)", "broadcast_pyobj (utils/common.py:1100)")
STANDS = ("_apply (penaltylib/min_new_tokens.py:78)", "run_batch (scheduler.py:1990)")


@pytest.mark.parametrize("prefix", ["", "sglang-1  | ", "> "])
def test_schedulers_that_an_engine_had_dumped_are_known_by_their_title(tmp_path: Path, prefix: str) -> None:
    lines = [line for rank in range(8) for line in scheduler(rank, STANDS if rank == 6 else WAITS)]
    said = judged(tmp_path, "".join(f"{prefix}{line}".rstrip() + "\n" for line in lines))
    assert named(said) == ("unknown", (), (6,))
    assert "min_new_tokens.py:78" in said.reasons[0]


def test_an_engines_watchdog_names_the_ranks_that_noticed(tmp_path: Path) -> None:
    said = judged(tmp_path, "".join(scheduler(rank, ())[0] + "\n" for rank in (4, 6, 1)))
    assert named(said) == ("unknown", (), ())
    assert "noticed by rank1, rank4 and rank6" in said.reasons[0]


HEALTHY = """NCCL version 2.26.2 compiled with CUDA 12.4
Job summary
===========

  Nodes  Processes         GPUs  Processes     GPUs
(total)   per node  per process    (total)  (total)
      2          8            1         16       16

Communicators... (0.01s)
=============

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         1         2         8        16       16    RUNNING      OK

Errors
======

Warnings
========

"""


def test_an_answer_of_ras_in_which_all_is_well_says_what_is_left(tmp_path: Path) -> None:
    said = judged(tmp_path / "text", HEALTHY)
    assert named(said) == ("unknown", (), ())
    assert said.reasons[0].startswith(
        "all 16 ranks of communicator of group 0 answer to RAS, and none has launched more"
    )
    alike = judged(tmp_path / "json", {"ras.json": ras(dict.fromkeys(range(4), 20))})
    assert alike.reasons[0].startswith("all 4 ranks of communicator abc answer to RAS, and none has launched more")


def test_an_answer_of_ras_tells_how_many_ranks_a_watchdogs_line_leaves_open(tmp_path: Path) -> None:
    timeout = (
        "[rank3]:[E603 17:48:01.005271823 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation "
        "timeout: WorkNCCL(SeqNum=24, OpType=ALLREDUCE, NumelIn=8, NumelOut=8, Timeout(ms)=1800000) ran for 1800068 "
        "milliseconds before timing out.\n"
    )
    said = judged(tmp_path, {"ras.txt": HEALTHY, "a.log": timeout})
    assert named(said) == ("unknown", (), tuple(range(16)))


def test_what_completed_is_a_lower_bound_alone(tmp_path: Path) -> None:
    def rows(rank: int, last: int) -> str:
        header = {"id": "0x7f", "rank": rank, "n_ranks": 3, "nnodes": 1}
        return "".join(
            json.dumps({"header": header, "metadata": {}, "coll_perf": {"coll": "AllReduce", "coll_sn": n}}) + "\n"
            for n in range(1, last + 1)
        )

    found = judged(tmp_path, {f"host-pid{r}.log": rows(r, 9 if r == 1 else 12) for r in range(3)})
    assert named(found) == ("unknown", (), (1,))


# ── torch's reports, gloo, the store, engines ───────────────────────────────────────────────────────────


def fingerprint(rank: int, mine: str, peer: int, theirs: str) -> str:
    return (
        f"[rank{rank}]: RuntimeError: Detected mismatch between collectives on ranks. Rank {rank} is running "
        f"collective: CollectiveFingerPrint(SequenceNumber=21, OpType={mine}), but Rank {peer} is running collective: "
        f"CollectiveFingerPrint(SequenceNumber=21, OpType={theirs}).Collectives differ in the following aspects: \n"
    )


def test_the_wrappers_majority_is_right_where_the_number_of_ranks_is_stated(tmp_path: Path) -> None:
    said = [fingerprint(r, "ALLREDUCE", 2, "BARRIER") for r in (0, 1, 3)] + [fingerprint(2, "BARRIER", 0, "ALLREDUCE")]
    stated = "All distributed processes registered. Starting with 4 processes\n"
    assert named(judged(tmp_path / "all", {"a.log": stated + "".join(said)})) == ("divergent", (2,), ())
    assert named(judged(tmp_path / "node", {"a.log": "".join(said)})) == ("unknown", (), (0, 1, 2, 3))
    assert named(judged(tmp_path / "one", {"a.log": fingerprint(1, "BARRIER", 0, "ALLREDUCE")})) == (
        "unknown",
        (),
        (0, 1),
    )


DESYNC = """[rank0]: Rank 0
[rank0]: \t - [0] Timeout at collective: ALLREDUCE, #7
[rank0]: \t - To our best knowledge, the lagging/dead/mismatched ranks that caused the desync are:
[rank0]: \t   - [0, 1, 3] joined but didn't finish collective #7 (count from 1)
[rank0]: \t     [2] finished collective #6, but didn't join collective #7 (count from 1)
[rank0]: \t - Snapshot of ranks' latest states:
[rank0]: \t   #7 started ranks:
[rank0]: \t     [0, 1, 3] started ALLREDUCE
[rank0]: \t   #6 finished ranks:
[rank0]: \t     [2] finished ALLREDUCE
"""


def test_a_desync_report_names_who_did_not_join(tmp_path: Path) -> None:
    found = judged(tmp_path, DESYNC)
    assert (set(found.culprits) | set(found.suspects)) == {2}


@pytest.mark.parametrize("who", ["[Rank 0]: Rank(s) 3", "[Rank 0]: Ranks 3", "[Rank 0]: Rank 3", "Rank 3"])
def test_a_barrier_names_whom_it_missed(who: str, tmp_path: Path) -> None:
    said = f"[rank0]: RuntimeError: {who} failed to pass monitoredBarrier in 2000 ms\n"
    assert named(judged(tmp_path, said)) == ("unknown", (), (3,))


@pytest.mark.parametrize(
    "said",
    [
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to "
        "(10.0.0.1, 29500).",
        "RuntimeError: Gloo connectFullMesh failed with [/gloo/transport/tcp/pair.cc:144] no error",
        "RuntimeError: Socket Timeout",
        "RuntimeError: Rank 1 successfully reached monitoredBarrier, but received errors while waiting for send/recv "
        "from rank 0. Please check rank 0 logs for faulty rank.",
        "RuntimeError: [/gloo/transport/tcp/pair.cc:547] Connection closed by peer [fe80::1%eth0]:2222",
    ],
)
def test_who_waited_in_vain_is_not_to_blame(said: str, tmp_path: Path) -> None:
    found = judged(tmp_path, f"[rank1]: {said}\n")
    assert found.verdict == "unknown"
    assert 1 not in found.suspects


def test_a_blocking_wait_says_what_it_waited_in(tmp_path: Path) -> None:
    work = (
        "Work WorkNCCL(SeqNum=8, OpType=BROADCAST, NumelIn=4, NumelOut=5, Timeout(ms)=1000) timed out in blocking wait"
    )
    for said in (f"[rank2]: RuntimeError: [Rank 0] {work}", f"[rank2]: RuntimeError: {work}", f"[Rank 2] {work}"):
        (tmp_path / "job.log").write_text(f"{said} (TORCH_NCCL_BLOCKING_WAIT=1).\n")
        found = gather([tmp_path / "job.log"])
        assert isinstance(found, Evidence)
        [wait] = found.of(Waits)
        assert (wait.rank, wait.number, wait.operation) == (2, 8, Operation("broadcast", 4, 5))


def test_what_is_no_size_is_none(tmp_path: Path) -> None:
    """A batch writes the largest number of 64 bits."""
    told = str(2**64 - 1)
    assert operation_of("COALESCED", f", NumelIn={told}, NumelOut={told}, ") == Operation("coalesced")


def test_who_never_came_to_the_store(tmp_path: Path) -> None:
    text = LEFT.replace(
        LEFT.splitlines()[-1],
        "torch.distributed.DistStoreError: Timed out after 31 seconds waiting for clients. 2/3 clients joined.",
    )
    said = "".join(behind(f"[rank{r}]: ", text) for r in (0, 1))
    assert named(judged(tmp_path / "both", {"a.log": said})) == ("divergent", (2,), ())
    one = judged(tmp_path / "one", {"a.log": behind("[rank0]: ", text)})
    assert named(one) == ("unknown", (), (1, 2))


def test_a_lost_peer_is_the_other_side(tmp_path: Path) -> None:
    warn = "{r}: host:4100{r}:41420 [{r}] transport/net_ib.cc:1909 NCCL WARN NET/IB : Got completion from peer "
    warn += "10.7.0.9<501{r}1> with status=12 opcode=0 len=0 vendor err 129 (Recv)\n"
    found = judged(tmp_path, "".join(warn.format(r=r) for r in range(4)))
    assert named(found) == ("unknown", (), ())
    assert any("10.7.0.9" in reason and "no rank above 3" in reason for reason in found.reasons)
    refused = (
        "2: host:41002:41420 [2] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 10.7.0.8<432> failed\n"
    )
    assert any("10.7.0.8" in reason for reason in judged(tmp_path / "refused", refused).reasons)


def test_engines_say_that_somebody_hangs_and_not_who(tmp_path: Path) -> None:
    said = "(EngineCore_DP0 pid=300) INFO 01-01 10:00:00 [shm_broadcast.py:466] No available shared memory broadcast "
    said += "block found in 60 seconds. This typically happens when some processes are hanging\n"
    assert named(judged(tmp_path / "a", {"a.log": said})) == ("unknown", (), ())
    worker = "(Worker_TP1 pid=302) ERROR 01-01 09:59:00 [multiproc_executor.py:671] torch.OutOfMemoryError: no memory\n"
    assert named(judged(tmp_path / "b", {"a.log": said + worker})) == ("unknown", (), (1,))
    died = "(EngineCore_DP0 pid=300) ERROR 01-01 10:00:00 [multiproc_executor.py:300] Worker proc VllmWorker-1 died "
    died += "unexpectedly, shutting down executor.\n"
    assert named(judged(tmp_path / "c", {"a.log": said + worker + died})) == ("divergent", (1,), ())
    hang = "[01/02/2026-03:04:05] [TRT-LLM] [E] Hang detected on rank 2 in PyExecutor.\n"
    assert judged(tmp_path / "d", {"a.log": hang}).culprits == ()


# ── what is none of these ───────────────────────────────────────────────────────────────────────────────


def test_a_named_file_that_says_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of note\n")
    with pytest.raises(UnreadableInput, match="of no known format; known are") as caught:
        replay([tmp_path / "notes.txt"])
    assert "\n" not in str(caught.value)
    (tmp_path / "job.log").write_bytes(mixed(one_behind()))
    assert replay([tmp_path]).diagnosis.culprits == (2,)
