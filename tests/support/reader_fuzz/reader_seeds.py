# ruff: noqa: E501 (lines of logs are as long as their tools print them)
"""Small whole files of each kind that readers take, to be damaged: what the fuzzer of each reader begins with.

All are written here, in the forms that each tool prints. Left out: recordings of others.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

from genlock.traces.format import End, encode
from job_logs import VERSIONS, mixed, one_behind
from program_traces import RANKS, header, lines_of, operations, pipeline, sites_of
from repository import CORPUS, SUPPORT

# ── own traces ──────────────────────────────────────────────────────────────────────────────────────────


def own(lines: list[Any]) -> bytes:
    """A whole trace of rank 1, with its site and its end."""
    return b"".join(map(encode, [header(1), *sites_of(lines), *lines, End(len(lines), 0, "stopped", -1)]))


def former() -> list[bytes]:
    """Traces of format 1: of programs, and of a protocol."""
    event = {"kind": "event", "time_ns": 1, "transition": "", "state": "", "phase": "", "group": "g", "sequence": 1}
    first = event | {
        "index": 0,
        "edge": "enter",
        "op": "all_reduce",
        "dtype": "float32",
        "numel": 4,
        "site": "job.py:3",
    }
    last = event | {"index": 1, "edge": "exit", "entered": 0, "op": "all_reduce", "outcome": "timed out"}
    head = {
        "kind": "header",
        "format": 1,
        "run": "r",
        "rank": 0,
        "world": 2,
        "role": "",
        "backend": "gloo",
        "protocol": "",
        "tables": "",
        "groups": {"g": [0, 1]},
        "clock": {"wall_ns": 1, "monotonic_ns": 1},
    }
    end = {"kind": "end", "index": 2, "time_ns": 1, "cause": "exception", "exit": 1, "message": "x"}
    found = [b"".join(json.dumps(line).encode() + b"\n" for line in (head, first, last, end))]
    return found + [path.read_bytes() for path in sorted((SUPPORT / "format1" / "two-ranks").glob("*.jsonl"))]


def protocol() -> list[bytes]:
    """Traces of a run that follows the protocol."""
    return [path.read_bytes()[:20_000] for path in sorted((CORPUS / "healthy" / "two-ranks").glob("*.jsonl"))] or [
        path.read_bytes()[:20_000] for path in sorted((CORPUS / "refused" / "step-2").glob("*.jsonl"))
    ]


# ── Flight Recorder ─────────────────────────────────────────────────────────────────────────────────────

CONFIG = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2]"}, "1": {"desc": "tp", "ranks": "[0, 1]"}}
FRAMES = [{"filename": "/home/me/train.py", "line": 42, "name": "main"}]


def entry(at: int, name: str = "nccl:all_reduce", **changed: Any) -> dict[str, Any]:
    row = {
        "record_id": at,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "collective_seq_id": at + 1,
        "p2p_seq_id": 0,
        "op_id": at + 1,
        "profiling_name": name,
        "time_created_ns": 1000 + at,
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None,
        "duration_ms": 1.5,
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "input_dtypes": ["Float"],
        "output_dtypes": ["Float"],
        "state": "completed",
        "is_p2p": False,
        "retired": True,
        "timeout_ms": 600000,
        "frames": FRAMES,
    }
    return row | changed


def dumps() -> list[Any]:
    """Dumps of all versions and makers."""
    status = {"0": {"last_enqueued_collective": 4, "last_started_collective": -1, "last_completed_collective": 3}}
    rows = [entry(0), entry(1, "nccl:_broadcast_oop"), entry(2, "nccl:all_gather_into_tensor_coalesced")]
    p2p: dict[str, Any] = {"is_p2p": True, "p2p_seq_id": 1, "state": "scheduled"}
    batch = [
        entry(3, "nccl:send 0->1", **p2p),
        entry(4, "nccl:recv 0<-1", **p2p),
        entry(5, "nccl:coalesced", collective_seq_id=4, p2p_seq_id=1, input_sizes=[], output_sizes=[]),
        entry(6, "nccl:reduce_scatter_tensor_coalesced", collective_seq_id=5, state="scheduled"),
        entry(7, "nccl:REDUCE_SCATTER_coalesced", collective_seq_id=5, input_sizes=[], output_sizes=[]),
    ]
    newest = {"version": "2.10", "pg_config": CONFIG, "pg_status": status, "entries": rows + batch}
    newest |= {"comm_lib_version": "2.27.3", "nccl_comm_state": {"0xabc": {"rank": "0", "CT_pastColls": "[]"}}}
    old = [
        {"pg_id": 0, "seq_id": n + 1, "profiling_name": name, "input_sizes": [[4]], "output_sizes": [[4]]}
        | {"time_created_us": n, "frames": FRAMES, "state": "completed", "retired": True}
        for n, name in enumerate(("nccl:all_reduce", "nccl:send 0->1"))
    ]
    second = [
        {k: v for k, v in row.items() if k not in ("process_group", "collective_seq_id", "p2p_seq_id")}
        | {"seq_id": row["record_id"] + 1}
        for row in rows
    ]
    counted = [
        entry(n, process_group=("0", "default_pg") if n % 2 else ("1", "tp"), collective_seq_id=n) for n in range(4)
    ]
    gloo = [entry(n, "gloo:all_reduce", state="scheduled", process_group=("", "")) for n in range(3)]
    return [
        newest,
        old,
        {"version": "1.4", "pg_config": CONFIG, "entries": second},
        {"version": "2.10", "pg_config": CONFIG, "pg_status": {}, "entries": counted},
        {"version": "2.4", "pg_config": {"": {"desc": "", "ranks": "[0, 1, 2]"}}, "pg_status": {}, "entries": gloo},
        {"version": "2.10", "pg_config": CONFIG, "pg_status": status},
    ]


def dumps_as_pickles() -> list[bytes]:
    return [pickle.dumps(dump, protocol) for dump in dumps() for protocol in (2, 4)]


def dumps_as_json() -> list[bytes]:
    return [json.dumps(dump).encode() for dump in dumps()] + [
        b"=== Rank 0: http://h:1 ===\n" + json.dumps(dumps()[0]).encode() + b"\n=== Rank 1: http://h:2 ===\n{}\n"
    ]


# ── profiles, archives ──────────────────────────────────────────────────────────────────────────────────


def profiles() -> list[bytes]:
    """Profiles that say what each collective was, and older ones that do not."""
    args = {
        "Collective name": "allreduce",
        "In msg nelems": 4,
        "Out msg nelems": 4,
        "dtype": "Float",
        "Seq": 1,
        "Process Group Name": "0",
        "Process Group Description": "default_pg",
        "Process Group Ranks": "[0, 1]",
        "Src Rank": 0,
        "Dst Rank": 1,
        "Input Dims": [[4]],
        "Input type": ["Float"],
    }
    named = {"ph": "X", "cat": "cpu_op", "name": "record_param_comms", "ts": 12.5, "dur": 3, "args": args}
    old = {"ph": "X", "cat": "user_annotation", "name": "nccl:all_reduce", "ts": 12, "dur": 3, "args": args}
    info = {"backend": "nccl", "rank": 0, "world_size": 2}
    return [
        json.dumps({"distributedInfo": info, "traceEvents": [e, e | {"ts": "14", "args": args | {"Seq": 2}}]}).encode()
        for e in (named, old)
    ]


def tarred(files: Mapping[str, bytes], mode: Any = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def archives() -> list[bytes]:
    """Archives of dumps and logs, in each other."""
    files = {"a/nccl_trace_rank_0": dumps_as_pickles()[0], "a/job.log": mixed(one_behind())}
    inner = tarred(files)
    made = [inner, zipped(files), tarred(files, "w:gz"), gzip.compress(inner), zipped({"b.tar": inner, "c": b"text"})]
    made += [zipped({"rank1.trace.jsonl": own(operations(2)), "job.log": mixed(one_behind())})]
    return [*made, tarred({"d.zip": zipped({"e.tar.gz": gzip.compress(inner)})})]


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────────


def watchdogs() -> list[bytes]:
    return [mixed(one_behind(version)) for version in VERSIONS]


REPORTS = b"""[rank0]:[E709 17:05:38.162 ProcessGroupNCCL.cpp:1] Rank 0
[rank0]: \t - [0] Timeout at collective: ALLREDUCE, #7
[rank0]: \t - To our best knowledge, the lagging/dead/mismatched ranks that caused the desync are:
[rank0]: \t   - [0, 1, 3] joined but didn't finish collective #7 (count from 1)
[rank0]: \t     [2] finished collective #6, but didn't join collective #7 (count from 1)
[rank0]: \t - Snapshot of ranks' latest states:
[rank0]: \t   #7 started ranks:
[rank0]: \t     [0, 1, 3] started ALLREDUCE
[rank0]: \t   #6 finished ranks:
[rank0]: \t     [2] finished ALLREDUCE
[rank1]: \t - To our best knowledge, ranks [2, 3] are the lagging ranks that caused this timeout. They never joined any
[rank1]: RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: CollectiveFingerPrint(SequenceNumber=5, OpType=ALLREDUCE, TensorShape=[2, 3], TensorDtypes=Float, TensorDeviceTypes=TensorOptions(dtype=float)), but Rank 0 is running collective: CollectiveFingerPrint(SequenceNumber=6OpType=BARRIER).Collectives differ in the following aspects: \t Sequence number: 5vs 6
[rank0]: RuntimeError: [Rank 0]: Rank(s) 3, 4 failed to pass monitoredBarrier in 2000 ms
RuntimeError: ProcessGroupWrapper: Monitored Barrier encountered error running collective: x
[rank3]: RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 1800000ms for recv operation to complete
[rank3]: RuntimeError: [/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:41202
torch.distributed.DistStoreError: Timed out after 31 seconds waiting for clients. 2/3 clients joined.
[rank1]: torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//worker_count/1
[2] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0:1', but
[rank2]:[E709 17:05:38.1 ProcessGroupNCCL.cpp:1] ProcessGroupNCCL's watchdog got stuck for 480 seconds without making
[rank2]:[F709 17:05:38.1 ProcessGroupNCCL.cpp:1] [PG ID 0 PG GUID 0 Rank 2] Terminating, remote error detected from rank: 1
"""

NCCL = b"""n0:101:101 [0] NCCL INFO comm 0x7f1 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 commId 0xabc - Init COMPLETE
n0:102:102 [1] NCCL INFO ncclCommInitRankConfig comm 0x7f2 rank 1 nranks 2 cudaDev 1 busId 1000 commId 0xabc - Init COMPLETE
n0:101:101 [0] NCCL INFO AllReduce: opCount 1f sendbuff 0x7f recvbuff 0x7f count 512 datatype 7 op 0 root 0 comm 0x7f1 [nranks=2] stream 0x9c
n0:102:102 [1] NCCL INFO [3] Broadcast: opCount 1f sendbuff (nil) recvbuff 0x7f count 5 datatype 9 op 0 root 1 comm 0x7f2 [nranks=2] stream 0x9c
n0:101:101 [0] NCCL INFO Send: opCount 20 sendbuff 0x7f recvbuff (nil) count 5 datatype 99 op 9 root 1 comm 0x7f1 [nranks=2] stream 0x9c
n0:101:150 [0] transport/net_ib.cc:1909 NCCL WARN NET/IB : Got completion from peer 10.7.0.9<50141> with status=12 opcode=0
[2026-01-02 03:04:05] n0:101:150 [0] misc/socket.cc:50 NCCL WARN socketProgress: Connection closed by remote peer n1<3910>
"""

RAS = b"""NCCL version 2.26.2 compiled with CUDA 12.6
CUDA runtime version 12060, driver version 12080
Job summary
===========
  Nodes  Processes         GPUs  Processes     GPUs
(total)   per node  per process    (total)  (total)
      2          8            1         16       16
Communicators... (0.00s)
=============
Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         1         2         8        16        16   RUNNING  MISMATCH
Warnings
========
#0-0 (00ab) MISMATCH
  Communicator ranks have different AllGather operation counts
  14 ranks have launched up to operation 640
  Rank 4 has launched up to operation 641 -- GPU 4 managed by process 1001 on node 192.0.2.1
  Rank 5 has not launched any operations
#1-0 (00ac) INCOMPLETE
  Missing communicator data from 1 rank
  The missing rank(s): 21
  Rank 3 -- GPU 3 (NVML 3) managed by process 1003 on node 192.0.2.1
"""


def ras_json() -> bytes:
    ranks = [
        {"rank": r, "host": "h", "pid": 100 + r, "status": {"async_error": 0}, "collective_counts": {"AllReduce": r}}
        for r in range(3)
    ]
    comm = {"hash": "0xabc", "size": 4, "ranks": ranks, "missing_ranks": [{"rank": 3, "host": "h", "pid": 103}]}
    return json.dumps({"nccl_version": "2.29.1", "communicators": [comm]}, indent=1).encode() + b"\n"


def inspector() -> bytes:
    head = {"id": "0x7f", "rank": 1, "n_ranks": 3, "nnodes": 1}
    where = {"inspector_output_format_version": "v4.0", "hostname": "h", "pid": 7}
    return b"".join(
        json.dumps({"header": head, "metadata": where, "coll_perf": {"coll": "AllReduce", "coll_sn": n}}).encode()
        + b"\n"
        for n in range(3)
    )


LAUNCHERS = b"""E0126 01:19:30.627000 88000 site-packages/torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: -9) local_rank: 2 (pid: 88102) of binary: /usr/bin/python3
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-26_01:19:31
  host      : node-b
  rank      : 3 (local_rank: 3)
  exitcode  : 1 (pid: 88103)
  error_file: /tmp/e.json
  traceback : Traceback (most recent call last):
    File "/home/me/train.py", line 3, in main
  ValueError: bad
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-26_01:19:30
  host      : node-b
  rank      : 2 (local_rank: 2)
  exitcode  : -9 (pid: 88102) SIGKILL
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 88102
============================================================
"""

PY_SPY = b"""Process 101: python train.py --rank 1
Python v3.11.7 (/usr/bin/python3.11)

Thread 101 (active+gil): "MainThread"
    wait (torch/distributed/distributed_c10d.py:500)
    main (train.py:50)
        Arguments:
            batch: <Tensor at 0x7f>
Thread 0x7F00 (idle): "pin_memory"
    _bootstrap (threading.py:995)
    ncclGroupEnd (libnccl.so.2)

"""
FAULT = b"""=== Rank 2: http://h:1 ===
Fatal Python error: Aborted

Thread 0x00007f0100 [worker] (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
Current thread 0x00007f0200 (most recent call first):
  File "/usr/lib/python3.11/queue.py", line 171 in get
  File "/home/me/train.py", line 8 in main

Extension modules: numpy (total: 1)
"""


def threads() -> bytes:
    frames = [
        {"name": "main", "filename": "/home/me/train.py", "short_filename": "train.py", "line": 8, "module": None}
    ]
    thread = {
        "pid": 5,
        "thread_id": 5,
        "thread_name": "MainThread",
        "os_thread_id": 5,
        "active": True,
        "frames": frames,
    }
    return json.dumps([thread, thread | {"thread_id": 6, "thread_name": None}]).encode()


ENGINES = b"""(EngineCore_DP0 pid=300) INFO 01-01 10:00:00 [shm_broadcast.py:466] No available shared memory broadcast block found in 60 seconds. This typically happens when
(Worker_TP1 pid=302) ERROR 01-01 09:59:00 [multiproc_executor.py:671] torch.OutOfMemoryError: no memory
(EngineCore_DP0 pid=300) ERROR 01-01 10:00:00 [multiproc_executor.py:300] Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.
[2026-01-02 03:04:05 DP0 TP1] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)
[01/02/2026-03:04:05] [TRT-LLM] [E] Hang detected on rank 2 in PyExecutor.
[Cycle 3] Did not get subsequent heartbeat. Waited 600.0 seconds.
[Cycle 3] Section 'step' has been open for 91.5 seconds. Timeout is 90.
TimeoutError: RPC call to execute_model timed out.
"""

TRACEBACKS = b"""-- Process 2 terminated with the following error:
Traceback (most recent call last):
  File "/home/me/train.py", line 88, in <module>
    main()
    ~~~~^^
  File "/opt/env/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1736, in _call_impl
ValueError: bad shape

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/home/me/train.py", line 50, in main
torch.distributed.DistBackendError: NCCL error: remote process exited, NCCL version 2.21.5
ncclRemoteError: A call failed possibly due to a network error.
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/me/train.py", line 42, in main
[rank1]: KeyError: 'a'
"""

FILES: dict[str, tuple[str, list[bytes]]] = {
    "own": ("rank1.trace.jsonl", [own(operations(3)), own(lines_of(pipeline(2))[1])]),
    "own-format-1": ("rank0.trace.jsonl", former()),
    "own-protocol": ("rank0.trace.jsonl", protocol()),
    "flight-recorder-pickle": ("nccl_trace_rank_0", dumps_as_pickles()),
    "flight-recorder-json": ("nccl_trace_rank_0.json", dumps_as_json()),
    "kineto": ("p.json", profiles()),
    "archive": ("p.tar", archives()),
    "watchdog": ("job.log", watchdogs()),
    "torch-reports": ("job.log", [REPORTS]),
    "nccl-debug": ("job.log", [NCCL]),
    "ras-text": ("job.log", [RAS, RAS + RAS]),
    "ras-json": ("ras.json", [ras_json()]),
    "inspector": ("h-pid7.log", [inspector()]),
    "launchers": ("job.log", [LAUNCHERS]),
    "stacks": ("rank1.txt", [PY_SPY, FAULT]),
    "stacks-json": ("rank1.json", [threads()]),
    "engines": ("job.log", [ENGINES]),
    "tracebacks": ("job.log", [TRACEBACKS]),
}
"""A reader to the name of its file, and whole files of it."""


def folders() -> list[dict[str, bytes]]:
    """Folders in which kinds are mixed."""
    ranks = {f"rank{r}.trace.jsonl": own(operations(3)).replace(b'"rank":1', b'"rank":%d' % r) for r in range(RANKS)}
    some = {name.replace("/", "-"): data for name, data in {"a-job.log": REPORTS, "x.zip": archives()[1]}.items()}
    dumps_of = {f"nccl_trace_rank_{r}": dumps_as_pickles()[0] for r in range(2)}
    texts = {"job.log": watchdogs()[-3], "ras.json": ras_json(), "stack.rank1.txt": PY_SPY, "t.json": threads()}
    return [ranks, ranks | texts, dumps_of | texts, texts | some, {"p0.json": profiles()[0], "n.log": NCCL}]
