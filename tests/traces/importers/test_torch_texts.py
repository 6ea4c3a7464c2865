"""The texts of torch, version by version: what each line says, and that no version's is passed over."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.evidence.merge import judge_evidence
from genlock.traces import evidence as facts
from genlock.traces.evidence import Evidence
from genlock.traces.importers.logs.scan import Logs

OLD, MIDDLE = "[E ProcessGroupNCCL.cpp:828] ", "[rank3]:[E ProcessGroupNCCL.cpp:563] "
NEW = "[rank3]:[E709 17:05:38.162814866 ProcessGroupNCCL.cpp:2271] "
PG = "[PG ID 0 PG GUID 0(default_pg) Rank 3]"
CAUGHT = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=41, OpType=ALLREDUCE, "
RAN = "Timeout(ms)=1800000) ran for 1800090 milliseconds before timing out."
TIMED_OUT = {
    "1.13": f"{OLD}[Rank 3] {CAUGHT}TensorShape=[8, 16], {RAN}",
    "2.0": f"{OLD}[Rank 3] {CAUGHT}TensorShape=[128], {RAN}",
    "2.1": f"{OLD}[Rank 3] {CAUGHT}NumelIn=128, NumelOut=128, {RAN}",
    "2.2": f"{MIDDLE}[Rank 3] {CAUGHT}NumelIn=128, NumelOut=128, {RAN}",
    "2.3": f"{MIDDLE}[Rank 3] {CAUGHT}NumelIn=128, NumelOut=128, {RAN}",
    "2.4 to 2.13": f"{NEW}[Rank 3] {CAUGHT}NumelIn=128, NumelOut=128, {RAN}",
}
WORK = "last enqueued NCCL work: 43, last completed NCCL work: 40."
EITHER = "Exception (either an error or timeout) detected by watchdog"
COUNTERS = {
    "2.3": f"{MIDDLE}[PG 0 Rank 3] Timeout at NCCL work: 41, {WORK}",
    "2.4": f"{NEW}[PG 0 (default_pg) Rank 3] {EITHER} at work: 41, {WORK}",
    "2.5": f"{NEW}{PG} {EITHER} at work: 41, {WORK}",
    "2.6 to 2.13": f"{NEW}{PG}  failure detected by watchdog at work sequence id: 41 PG status: "
    "last enqueued work: 43, last completed work: 40",
}
HEARTBEAT = {
    "2.2": f"{MIDDLE}[Rank 3] NCCL watchdog: monitoring thread detects no heartbeat and will finally kill the process!",
    "2.3, 2.4": f"{MIDDLE}[PG 0 Rank 3] Heartbeat monitor timed out! Process will be terminated",
    "2.5 to 2.13": f"{NEW}{PG} ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress in "
    "monitoring enqueued collectives.",
    "interpreter": f"{NEW}{PG} Could not acquire GIL within 300 ms on exit, possible GIL induced hang",
}
DESYNC = """\
{head} \t - [3] Timeout at collective: ALLREDUCE, #41
\t - To our best knowledge, the lagging/dead/mismatched ranks that caused the desync are:
\t   - [2] joined but didn't finish collective #40 (count from 1)
"""
PRINT = "CollectiveFingerPrint(OpType=BROADCAST, TensorShape=[8], TensorDtypes=Float, TensorDeviceTypes=X())"
FINGERPRINTS = {
    "1.13": f"Detected mismatch between collectives on ranks. Rank 3 is running collective: {PRINT}, but Rank 0 is "
    f"running collective: {PRINT.replace('BROADCAST', 'ALLREDUCE')}.",
    "2.1 to 2.13": "Detected mismatch between collectives on ranks. Rank 3 is running collective: "
    f"{PRINT.replace('(OpType', '(SequenceNumber=5, OpType')}, but Rank 0 is running collective: "
    f"{PRINT.replace('(OpType=BROADCAST', '(SequenceNumber=5, OpType=ALLREDUCE')}."
    "Collectives differ in the following aspects: \t Op type: BROADCASTvs ALLREDUCE",
}
CONNECTIONS: dict[str, tuple[str, type]] = {
    "gloo, time": (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv "
        "operation to complete",
        facts.PeerSilent,
    ),
    "gloo, closed": (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.1.2.3]:41234",
        facts.PeerLost,
    ),
    "store, clients": ("Timed out after 601 seconds waiting for clients. 3/4 clients joined.", facts.Joined),
    "store, key, 2.5 to 2.13": ("wait timeout after 300000ms, keys: /default_pg/0//cuda//0", facts.KeyWait),
    "store, client": (
        "The client socket has timed out after 60s while trying to connect to (10.1.2.3, 29500).",
        facts.PeerSilent,
    ),
    "barrier": ("[Rank 0]: Rank 3 failed to pass monitoredBarrier in 5000 ms", facts.NeverCame),
}


def read(text: str, name: str = "rank3.log") -> list[Any]:
    logs, path = Logs(), Path(name)
    logs.scan(path, io.BytesIO(text.encode() + b"\n"))
    return logs.finish()


def of(kind: type, text: str, name: str = "rank3.log") -> list[Any]:
    return [fact for fact in read(text, name) if isinstance(fact, kind)]


@pytest.mark.parametrize("version", TIMED_OUT)
def test_time_outs_name_rank_number_operation_and_size(version: str) -> None:
    [wait] = of(facts.Waits, TIMED_OUT[version])
    assert (wait.rank, wait.number, wait.operation.kind, wait.operation.sent) == (3, 41, "all_reduce", 128)


@pytest.mark.parametrize("version", COUNTERS)
def test_counters_name_rank_and_group(version: str) -> None:
    [found] = of(facts.Counters, COUNTERS[version], "job.log")
    assert (found.rank, found.group.name, found.enqueued, found.completed) == (3, "0", 43, 40)


@pytest.mark.parametrize("version", HEARTBEAT)
def test_monitors_name_the_rank_that_stands_still(version: str) -> None:
    [stuck] = of(facts.Stuck, HEARTBEAT[version], "job.log")
    assert stuck.rank == 3


@pytest.mark.parametrize("head", [f"{OLD}[Rank 3]", f"{MIDDLE}[Rank 3]", f"{NEW}Rank 3"])
def test_desync_reports_say_who_joined_what(head: str) -> None:
    issued = {
        (rank, fact.number, fact.finished) for fact in of(facts.Issued, DESYNC.format(head=head)) for rank in fact.ranks
    }
    assert {(3, 41, False), (2, 40, False)} <= issued


@pytest.mark.parametrize("version", FINGERPRINTS)
def test_the_wrapper_names_both_operations(version: str) -> None:
    [unlike] = of(facts.Unlike, f"[rank3]: RuntimeError: {FINGERPRINTS[version]}")
    assert (unlike.rank, unlike.mine.kind, unlike.peer) == (3, "broadcast", 0)
    assert unlike.theirs is not None
    assert unlike.theirs.kind == "all_reduce"


@pytest.mark.parametrize("form", CONNECTIONS)
def test_gloo_and_the_store_say_what_did_not_come(form: str) -> None:
    text, kind = CONNECTIONS[form]
    assert len(of(kind, f"[rank3]: RuntimeError: {text}")) == 1


# ── the stack of the operation that failed ──────────────────────────────────────────────────────────────

TRACED = f"""{NEW}{PG} Stack trace of the failed collective:
#0 all_reduce from /opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py:2806
#1 step from /home/me/job/train.py:47
#2 <module> from /home/me/job/train.py:90
"""


@pytest.mark.parametrize("name", ["rank3.log", "job.log"])
def test_the_line_that_issued_what_failed_is_read(name: str) -> None:
    [called] = of(facts.Called, TRACED + "[rank2]: another line\n", name)
    assert (called.rank, str(called.place)) == (3, "train.py:47 (step)")


def test_frames_of_another_rank_between_are_not_taken_for_its_own() -> None:
    torn = TRACED.replace("#1 step", "#0 other from /home/me/other.py:1\n#1 step")
    [called] = of(facts.Called, torn, "job.log")
    assert called.place is None, "nothing behind the gap counts"


# ── lines of torchrun's, alone ──────────────────────────────────────────────────────────────────────────

AGENT = (
    "E0325 20:57:27.620000 4242 site-packages/torch/distributed/elastic/multiprocessing/api.py:869] "
    "failed (exitcode: {code}) local_rank: 1 (pid: 4711) of binary: /usr/bin/python3.11"
)
ROW = "  rank      : 5 (local_rank: 1)\n  exitcode  : -9 (pid: 4711)\n  error_file: <N/A>\n  traceback : Signal 9\n"


def judged(text: str) -> Any:
    return judge_evidence(Evidence(read(text, "job.log"), None, [Path("job.log")]))


@pytest.mark.parametrize("head", ["", "Failures:\n[0]:\n", "Root Cause (first observed failure):\n[0]:\n"])
def test_a_row_of_the_table_names_the_rank_of_the_job(head: str) -> None:
    found = judged(head + ROW)
    assert found.named == (5,)
    assert bool(found.culprits) == head.startswith("Root")


@pytest.mark.parametrize("code", [-9, 1])
def test_a_number_on_the_host_alone_names_no_rank(code: int) -> None:
    found = judged(AGENT.format(code=code))
    assert (found.verdict, found.named) == ("unknown", ())
    assert "number 1 on its host (pid 4711)" in found.reasons[0]
    assert "which rank that is" in found.reasons[0]


def test_a_number_on_the_host_names_the_rank_where_the_log_ties_them() -> None:
    heard = f"[default1]:{NEW}{PG} Observed flight recorder dump signal from another rank via TCPStore.\n"
    found = judged(heard + AGENT.format(code=-9))
    assert (found.verdict, found.named) == ("unknown", (3,))
    assert judged(heard + AGENT.format(code=-6)).named == ()
