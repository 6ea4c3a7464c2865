"""Flight Recorder dumps: real hangs, our own on gloo, healthy ones with one change, quirks of the format."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.collectives.diagnose import UNSIZED
from genlock.conformance.replay import judge, replay
from genlock.conformance.report import as_json, as_junit, as_text
from genlock.errors import UnreadableInput, UsageError
from genlock.traces.collectives import Interned, Recording, Status
from genlock.traces.importers.flight_recorder import rank_of, read_dump
from genlock.traces.importers.safe_pickle import load_plain
from genlock.traces.load import load
from recordings import folder
from repository import PROCESSES

Dumps = dict[int, dict[str, Any]]
STALLS = {"GPU_ERROR": "device", "LOCK_GIL": "host"}


# ── real NCCL hangs of 16 ranks, truth in their log ─────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ["gpu_error_1st", "lock_gil_1st"])
def test_real_hangs_name_exactly_the_injected_ranks(case: str) -> None:
    path = folder(f"nccl-flight-recorder/{case}")
    log = (path / "fault_injection.log").read_text()
    injected = dict(re.findall(r"Rank (\d+), fault_type: (\w+)", log))
    found = replay([path]).diagnosis
    assert found.verdict == "divergent"
    assert found.culprits == tuple(sorted(map(int, injected)))
    assert found.stall == STALLS[next(iter(injected.values()))]
    assert found.divergence is not None
    assert found.divergence.place


@pytest.mark.parametrize("case", ["gpu_error_1st", "lock_gil_1st"])
def test_order_of_files_does_not_matter(case: str) -> None:
    files = sorted(folder(f"nccl-flight-recorder/{case}").glob("_dump_*"))
    reports = set()
    for seed in range(3):
        random.Random(seed).shuffle(files)
        reports.add(json.dumps(as_json(replay(files).diagnosis)))
    assert len(reports) == 1


def test_without_a_victims_dump_the_culprits_stay_and_without_a_culprits_it_is_not_guessed() -> None:
    """Rank 9 might as well wait for rank 14, in the exchange that both of them owe."""
    files = {rank_of(f): f for f in folder("nccl-flight-recorder/lock_gil_1st").glob("_dump_*")}
    for gone, culprits in {0: (9, 14), 8: (9, 14), 15: (9, 14), 9: (14,), 14: (9,)}.items():
        found = replay([f for r, f in files.items() if r != gone]).diagnosis
        assert (found.verdict, found.culprits) == ("divergent", culprits), gone
        assert f"there is no recording of rank{gone}" in found.reasons


# ── gloo, recorded by others and by us ──────────────────────────────────────────────────────────────────


def test_recorded_gloo_runs() -> None:
    ok, ring, skip, strand = (replay([folder(f"gloo-flight-recorder/{c}")]).diagnosis for c in CASES)
    assert (ok.verdict, ok.matched_collectives, ok.reasons) == ("conforming", 10, ())
    assert (ring.verdict, ring.divergence) == ("unknown", None)
    assert (skip.verdict, skip.culprits) == ("divergent", (1,))
    assert (strand.verdict, strand.culprits, strand.stall) == ("divergent", (0,), "host")
    assert skip.divergence is not None
    assert strand.divergence is not None
    assert (skip.divergence.place, skip.divergence.phase) == (
        "all_reduce #7 of group 0 (default_pg)",
        "job.py:28 (<module>)",
    )
    assert strand.divergence.place == "all_reduce #9 of group 0 (default_pg)"


CASES = ("ok", "ring", "skip", "strand")


def test_json_dumps_say_the_same(tmp_path: Path) -> None:
    for file in folder("gloo-flight-recorder/ok").glob("*.json"):
        shutil.copy(file, tmp_path)
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 10)


def without(dumps: Dumps, rank: int, at: int) -> None:
    del dumps[rank]["entries"][at]


def renumbered(dumps: Dumps, rank: int, at: int) -> None:
    """An operation that never was: the numbers close up behind it."""
    without(dumps, rank, at)
    for entry in dumps[rank]["entries"][at:]:
        for number in ("record_id", "collective_seq_id", "op_id"):
            entry[number] -= 1


def changed(**values: Any) -> Callable[[Dumps, int, int], None]:
    return lambda dumps, rank, at: dumps[rank]["entries"][at].update(values)


def numbered(dumps: Dumps, rank: int, at: int) -> None:
    dumps[rank]["entries"][at]["collective_seq_id"] += 1


CHANGES = {
    "kind": changed(profiling_name="gloo:reduce_scatter"),
    "size": changed(input_sizes=[[77]], output_sizes=[[77]]),
    "dtype": changed(input_dtypes=["Half"], output_dtypes=["Half"]),
    "removed": without,
    "never was": renumbered,
    "number": numbered,
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_to_a_healthy_set_diverges_at_that_place(change: str, tmp_path: Path) -> None:
    """Every place of every rank, in turn."""
    path = folder("gloo-flight-recorder/ok")
    files = {rank: (path / f"trace_{rank}").read_bytes() for rank in range(4)}
    for rank in range(4):
        for at in range(9):  # the tenth is a barrier, which has no size
            dumps = {r: load_plain(path, data) for r, data in files.items()}
            CHANGES[change](dumps, rank, at)
            found = judge(recorded(dumps))
            where = found.divergence
            assert (found.verdict, found.culprits) == ("divergent", (rank,)), (rank, at)
            assert where is not None
            assert where.rank == rank
            # without its number, an operation among equals is missed where the first unlike it, or the end, comes
            late = change == "never was"
            assert (at <= where.line - 1) if late else abs(where.line - 1 - at) <= 1, (rank, at, where)


def recorded(dumps: Dumps) -> Recording:
    from genlock.traces.collectives import recording

    interned = Interned()
    return recording("test", interned, [read_dump(Path(f"trace_{r}"), d, interned) for r, d in dumps.items()], {})


JOBS = {"healthy": ("conforming", ()), "skip": ("divergent", (1,)), "strand": ("divergent", (1,))}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torch's own dumps of gloo jobs of three ranks, each in a folder of its name."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("dumps")
    command = [sys.executable, str(PROCESSES / "gloo_dump.py"), str(out), "3", *JOBS]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True, timeout=100)
    return out


@pytest.mark.parametrize("what", JOBS)
def test_real_gloo_jobs_dumped_by_torch(what: str, dumped: Path) -> None:
    found = replay([dumped / what]).diagnosis
    assert (found.verdict, found.culprits) == JOBS[what], found
    if what == "healthy":
        # 12 calls, of which two are two collectives each, and one on the pair
        assert found.matched_collectives == 12 + 2 + 1


# ── what is not there is evidence of nothing ────────────────────────────────────────────────────────────


def healthy(ranks: int = 3, ops: int = 5, **changes: Any) -> Dumps:
    """Complete NCCL dumps of a job in which nothing is wrong."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(ranks)))}}
    return {
        r: {
            "version": "2.10",
            "pg_config": config,
            "pg_status": {},
            "entries": [entry(at, **changes) for at in range(ops)],
        }
        for r in range(ranks)
    }


def entry(at: int, **changes: Any) -> dict[str, Any]:
    sequence = at + 1
    return {
        "record_id": at,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "profiling_name": "nccl:all_reduce",
        "collective_seq_id": sequence,
        "p2p_seq_id": 0,
        "time_created_ns": 1000 + at,
        "state": "completed",
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "input_dtypes": ["Float"],
        "output_dtypes": ["Float"],
        "is_p2p": False,
        **changes,
    }


def test_a_complete_healthy_set_conforms() -> None:
    found = judge(recorded(healthy()))
    assert (found.verdict, found.matched_collectives, found.reasons) == ("conforming", 5, ())


def test_a_missing_rank_is_unknown() -> None:
    dumps = healthy()
    del dumps[1]
    found = judge(recorded(dumps))
    assert (found.verdict, found.culprits, found.reasons) == ("unknown", (), ("there is no recording of rank1",))


def test_a_set_that_does_not_say_how_many_ranks_there_are_does_not_conform() -> None:
    """Of dumps without groups, or with those of a part of the ranks alone, the last one may be missing."""
    part = {"7": {"name": "7", "desc": "tp", "ranks": "[0, 1, 2]"}}
    for config, verdict in (({}, "unknown"), (part, "unknown"), (healthy()[0]["pg_config"], "conforming")):
        found = judge(recorded({rank: {**dump, "pg_config": config} for rank, dump in healthy().items()}))
        assert found.verdict == verdict, config
        assert (UNSIZED in found.reasons) == (verdict == "unknown")


def test_a_cut_or_empty_dump_counts_as_its_rank_and_says_why(tmp_path: Path) -> None:
    for rank, dump in healthy().items():
        (tmp_path / f"trace_{rank}").write_bytes(pickle.dumps(dump, protocol=2))
    whole = (tmp_path / "trace_2").read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "trace_2").write_bytes(whole[:length])
        found = replay([tmp_path]).diagnosis
        assert found.verdict == "unknown", length
        assert found.reasons[0].startswith("rank2: "), length
    with pytest.raises(UnreadableInput):
        replay([tmp_path / "trace_2"])


def test_a_ring_that_overflowed_unevenly_is_unknown_and_no_alarm() -> None:
    """Each rank keeps its last twelve, but some did more in a group of their own."""
    dumps = healthy(ops=20)
    for rank, own in ((0, 7), (1, 3), (2, 0)):
        config = {str(1 + rank): {"name": str(1 + rank), "desc": "own", "ranks": str([rank])}}
        dumps[rank]["pg_config"] = dumps[rank]["pg_config"] | config
        more = [entry(at, process_group=(str(1 + rank), "own"), pg_id=1) for at in range(own)]
        entries = [*dumps[rank]["entries"][:10], *more, *dumps[rank]["entries"][10:]]
        dumps[rank]["entries"] = [row | {"record_id": at} for at, row in enumerate(entries)][-12:]
    found = judge(recorded(dumps))
    assert (found.verdict, found.divergence) == ("unknown", None)


def test_what_all_issued_and_none_finished_is_unknown_and_names_the_ranks() -> None:
    """On its way in a healthy job, or a device stall: the dumps are the same."""
    dumps = healthy()
    for dump in dumps.values():
        dump["entries"][-1]["state"] = "scheduled"
    found = judge(recorded(dumps))
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (0, 1, 2))


def test_a_host_that_ran_ahead_of_a_moving_device_is_no_alarm() -> None:
    """What is at the head is on its way on all ranks; that one rank has already issued more is how NCCL works."""
    dumps = healthy(ops=8)
    for rank, dump in dumps.items():
        for at, row in enumerate(dump["entries"]):
            row["state"] = "completed" if at < 4 else "scheduled"
        dump["entries"] = dump["entries"][: 5 + rank]
    assert judge(recorded(dumps)).verdict == "unknown"


# ── quirks of the format ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "rank"),
    [("trace_3", 3), ("_dump_12", 12), ("nccl_trace_rank_7", 7), ("trace_3.json", 3), ("rank10.pkl", 10)],
)
def test_the_rank_is_in_the_name(name: str, rank: int) -> None:
    assert rank_of(Path("job_17") / name) == rank


def test_a_file_under_another_ranks_name_is_refused() -> None:
    dumps = healthy()
    dumps[0]["pg_config"] = {"0": {"name": "0", "desc": "default_pg", "ranks": "[1, 2]"}}
    with pytest.raises(UnreadableInput, match="no member"):
        recorded(dumps)


def test_a_rank_twice_is_refused_where_the_dumps_contradict_each_other(tmp_path: Path) -> None:
    unlike = [{**entry, "input_sizes": [[7]]} for entry in healthy()[0]["entries"]]
    for name, dump in {"trace_0": healthy()[0], "_dump_0": {**healthy()[0], "entries": unlike}}.items():
        (tmp_path / name).write_bytes(pickle.dumps(dump, protocol=2))
    with pytest.raises(UsageError, match="second trace of rank 0"):
        load([tmp_path])


def test_a_batch_of_sends_takes_the_state_of_its_end() -> None:
    rows = [
        entry(0, profiling_name="nccl:send 0->1", is_p2p=True, p2p_seq_id=1, collective_seq_id=0, state="scheduled"),
        entry(1, profiling_name="nccl:recv 0<-1", is_p2p=True, p2p_seq_id=1, collective_seq_id=0, state="scheduled"),
        entry(2, profiling_name="nccl:coalesced", is_p2p=True, p2p_seq_id=1, collective_seq_id=0),
    ]
    dumps = healthy(ranks=2)
    dumps[0]["entries"] = rows
    ops = recorded(dumps).ranks[0].ops
    assert ops["status"].tolist() == [Status.COMPLETED] * 2
    assert ops["peer"].tolist() == [1, 1]


def test_a_batch_of_collectives_is_one() -> None:
    dumps = healthy(ranks=2)
    for dump in dumps.values():
        batch = [entry(at, collective_seq_id=1, state="scheduled") for at in range(3)]
        dump["entries"] = [*batch, entry(3, collective_seq_id=1, profiling_name="nccl:coalesced")]
    found = recorded(dumps)
    assert [len(r.ops) for r in found.ranks.values()] == [1, 1]
    assert found.signatures[int(found.ranks[0].ops["signature"][0])].sent == 12
    assert judge(found).verdict == "conforming"


def test_uneven_exchanges_are_legal_and_unbalanced_ones_are_not() -> None:
    kinds: dict[str, tuple[list[int], list[int]]] = {
        "all_to_all": ([6, 2, 1], [1, 5, 3]),
        "_all_gather_base": ([2, 2, 2], [6, 6, 6]),
    }
    for kind, (sent, received) in kinds.items():
        dumps = healthy(profiling_name=f"nccl:{kind}")
        for rank, dump in dumps.items():
            for row in dump["entries"]:
                row.update(input_sizes=[[sent[rank]]], output_sizes=[[received[rank]]])
        assert judge(recorded(dumps)).verdict == "conforming", kind
        dumps[1]["entries"][2]["input_sizes"] = [[9]]
        found = judge(recorded(dumps))
        assert found.verdict == "divergent", kind
        assert found.divergence is not None
        assert "#3" in found.divergence.place


def test_reports_agree_with_each_other() -> None:
    dumps = healthy()
    dumps[1]["entries"] = dumps[1]["entries"][:3]
    for rank in (0, 2):
        for row in dumps[rank]["entries"][3:]:
            row["state"] = "scheduled"
    found = judge(recorded(dumps))
    shown = as_json(found)
    assert (shown["verdict"], shown["divergence"]["culprits"], shown["divergence"]["stall"]) == (
        "divergent",
        [1],
        "host",
    )
    assert shown["divergence"]["place"] == "all_reduce #4 of group 0 (default_pg)"
    assert shown["divergence"]["waiting"] == [
        {"rank": rank, "operation": "all_reduce #4 of group 0 (default_pg)", "waiting_for": [1]} for rank in (0, 2)
    ]
    assert set(shown["divergence"]) >= {"rank", "chunk", "phase", "call", "event", "state", "observed", "expected"}
    assert "culprits  rank1" in as_text(found)
    assert 'failures="1"' in as_junit(found)
