"""How many ranks a job has, and which of them had ended: what launchers and frameworks say of it, and what follows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from genlock.conformance.diagnosis import Diagnosis, Wanted
from genlock.conformance.evidence.merge import judge_evidence
from genlock.conformance.replay import replay
from genlock.traces.evidence import Evidence
from genlock.traces.importers.logs.scan import Logs
from graded import FORMS, recorded
from hangs import Hang, hang
from job_logs import Op, mixed, timed_out, world
from other_explanations import other_explanation
from subsets import part_of
from watchdog_logs import said_of, table_of


def facts(log: bytes) -> Evidence:
    logs, path = Logs(), Path("job.log")
    logs.scan(path, io.BytesIO(log))
    return Evidence(logs.finish(), None, [path])


# ── how many ranks there are ────────────────────────────────────────────────────────────────────────────

REDUCE, BARRIER = Op("ALLREDUCE", 4096, 4096), Op("BARRIER", 1, 1)
STATED = (
    "[rank0]: Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/{}",
    "All distributed processes registered. Starting with {} processes",
    "  role_world_sizes=[{0}, {0}] global_ranks=[0, 1] global_world_sizes=[{0}, {0}]",
    "using world size: {}, data-parallel size: 2, context-parallel size: 1",
    "INFO 01-02 03:04:05 [parallel_state.py:959] rank 0 in world size {} is assigned as DP rank 0, PP rank 0",
    "export WORLD_SIZE={}",
)


def unlike_on_a_node(stated: str = "") -> Diagnosis:
    """Of eight ranks those of one node: three of four reduce at a number, the fourth is in a barrier."""
    group = world(8)
    said = {r: timed_out("2.6", r, group, 88, BARRIER if r == 2 else REDUCE, 88, 87) for r in range(4)}
    return judge_evidence(facts(stated.encode() + b"\n" + mixed(said)))


@pytest.mark.parametrize("form", STATED)
def test_a_majority_of_the_ranks_is_one_where_their_number_is_stated(form: str) -> None:
    assert unlike_on_a_node(form.format(4)).culprits == (2,)
    assert unlike_on_a_node(form.format(8)).culprits == ()


def test_the_highest_rank_that_is_seen_is_not_the_last_for_that() -> None:
    found = unlike_on_a_node()
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (0, 1, 2, 3))
    assert Wanted.WORLD_SIZE in {missing.kind for missing in found.missing}


def test_ranks_that_came_to_their_end_are_not_to_blame_for_one_operation_too_many() -> None:
    """Rank 2 waits alone in an operation of its tensor group, and in it for ranks that have done all they had to do."""
    job = hang(3002, "extra")
    assert job is not None
    assert judge_evidence(facts(mixed(said_of(job)))).culprits == ()


# ── how they ended ──────────────────────────────────────────────────────────────────────────────────────


def gone(seed: int = 3000) -> Hang:
    job = hang(seed, "crash")
    assert job is not None
    return job


def with_table(job: Hang, table: str) -> Diagnosis:
    return judge_evidence(replace(facts(table.encode()), recording=recorded(job, "full")))


def test_a_rank_without_a_dump_that_its_launcher_saw_killed_is_the_culprit() -> None:
    job = gone()
    found = with_table(job, table_of(job.crashed))
    assert (found.verdict, found.culprits) == ("divergent", job.crashed)
    assert {a.case for a in found.accused} == {"known-to-have-ended"}


@pytest.mark.parametrize("code", [-6, -15])
def test_how_those_that_wait_are_ended_says_nothing(code: int) -> None:
    job = gone()
    found = with_table(job, table_of(job.crashed, code))
    assert found.culprits == ()
    assert set(job.crashed) <= set(found.suspects)


def test_where_ranks_with_a_dump_were_killed_too_somebody_ended_the_whole_job() -> None:
    job = gone()
    others = [r.rank for r in job.ranks if r.rank not in job.crashed][:2]
    assert with_table(job, table_of([*job.crashed, *others])).culprits == ()


def test_whom_the_launcher_killed_in_the_end_did_not_die_first() -> None:
    job = gone()
    first = next(r.rank for r in job.ranks if r.rank not in job.crashed)
    table = table_of([first], -6).replace("<NO_OTHER_FAILURES>\n", "")
    row = table_of(job.crashed).split("Root Cause (first observed failure):\n")[1].split("=====")[0]
    late = row.replace("01:19:30", "01:20:01")
    found = with_table(job, table.replace("Failures:\n", f"Failures:\n{late}"))
    assert found.culprits == ()


@pytest.mark.parametrize("form", FORMS)
def test_the_dumps_of_the_others_alone_have_another_explanation(form: str) -> None:
    """Byte for byte: the rank goes on and waits as they do, for the device of another, or for the network."""
    job = gone(3001)
    other = other_explanation(job, form)
    assert other is not None
    assert not set(other.culprits) & set(job.crashed)
    whole = recorded(job, form)
    assert part_of(whole, whole.ranks).died == {}
    found = judge_evidence(Evidence([], whole))
    assert found.culprits == ()
    assert {*job.crashed, *other.culprits} <= set(found.suspects)


def test_what_a_rank_raised_is_in_the_file_that_torchrun_has_it_write(tmp_path: Path) -> None:
    calls = 'Traceback (most recent call last):\n  File "/home/me/train.py", line 42, in main\n    raise ValueError()\n'
    told = {"message": "ValueError: bad shape", "extraInfo": {"py_callstack": calls, "timestamp": "1767000000"}}
    path = tmp_path / "attempt_0" / "1" / "error.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"message": told}))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.suspects) == ("unknown", (1,))  # by its number on the host alone
    assert any("rank1 raised ValueError: bad shape at train.py:42 (main)" in reason for reason in found.reasons)
    named = tmp_path / "rank1.error.json"
    path.rename(named)
    found = replay([named]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (1,))
