"""Files by their content: names of dumps, versions and makers, archives in archives, kinds mixed in one folder."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from corpus import names
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.errors import UnreadableInput, UsageError
from genlock.traces.format import find
from genlock.traces.importers.flight_recorder import rank_of
from job_logs import mixed, one_behind
from repository import CORPUS

Dumps = dict[int, dict[str, Any]]
CONFIG = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2]"}}


def entry(at: int, number: int, **changed: Any) -> dict[str, Any]:
    row = {
        "record_id": at,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "collective_seq_id": number,
        "p2p_seq_id": 0,
        "op_id": number,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": 1000 + at,
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "input_dtypes": ["Float"],
        "output_dtypes": ["Float"],
        "state": "completed",
        "is_p2p": False,
        "frames": [],
    }
    return row | changed


def stalled(ranks: int = 3, still: int = 1, ops: int = 4) -> Dumps:
    """One rank never issues the last operation, in which the others wait."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(ranks)))}}
    dumps: Dumps = {}
    for rank in range(ranks):
        last = ops if rank != still else ops - 1
        rows = [entry(n - 1, n, state="completed" if n < ops else "started") for n in range(1, last + 1)]
        dumps[rank] = {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": rows}
    return dumps


def write(folder: Path, dumps: Mapping[int, object], name: str = "nccl_trace_rank_{}") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for rank, dump in dumps.items():
        (folder / name.format(rank)).write_bytes(pickle.dumps(dump, protocol=2))


def named(found: Diagnosis) -> tuple[str, tuple[int, ...]]:
    return found.verdict, found.culprits


# ── names, versions, makers ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("fr_gpu1.example.com_0", 0),
        ("gpu-rank7.cluster.local_nccl_trace_rank_12", 12),
        ("nccl_trace_rank_container-node01_3", 3),
        ("comm_lib_trace_rank_5", 5),
        ("rank_4.json", 4),
        ("hccl_trace_rank_6.pkl.gz", 6),
    ],
)
def test_a_host_in_the_name_is_not_the_rank(name: str, rank: int) -> None:
    assert rank_of(Path("job_17") / name) == rank


def test_json_without_entries_is_a_rank_that_issued_nothing_pending(tmp_path: Path) -> None:
    for rank, dump in stalled().items():
        kept = {k: v for k, v in dump.items() if k != "entries"}
        kept["entries"] = [row for row in dump["entries"] if row["state"] != "completed"]
        last = str(len(dump["entries"]))
        kept["pg_status"] = {"0": {"last_enqueued_collective": last, "last_completed_collective": "3"}}
        if not kept["entries"]:
            del kept["entries"]
        (tmp_path / f"trace_{rank}.json").write_text(json.dumps(kept))
    assert named(replay([tmp_path]).diagnosis) == ("divergent", (1,))


def test_the_first_versions_are_read(tmp_path: Path) -> None:
    """2.2 wrote a list, 2.3 one number for all kinds."""
    old = ("collective_seq_id", "p2p_seq_id", "process_group", "is_p2p", "input_dtypes", "output_dtypes", "op_id")
    for version in ("list", "1.4"):
        dumps: dict[int, object] = {}
        for rank, dump in stalled().items():
            rows = []
            for row in dump["entries"]:
                kept = {k: v for k, v in row.items() if k not in old} | {"seq_id": row["collective_seq_id"]}
                if version == "list":
                    kept["time_created_us"] = kept.pop("time_created_ns") // 1000
                    del kept["record_id"]
                rows.append(kept)
            dumps[rank] = rows if version == "list" else {"version": "1.4", "pg_config": CONFIG, "entries": rows}
        write(tmp_path / version, dumps)
        assert named(replay([tmp_path / version]).diagnosis) == ("divergent", (1,))


def over_groups(still: int | None, *, lost: int = 0) -> Dumps:
    """Four ranks of TorchComms, uneven in how often each group is used; numbers run over both groups of a rank."""
    dumps: Dumps = {}
    for rank in range(4):
        tp, dp = f"tp{rank // 2}", f"dp{rank % 2}"
        members = {tp: [rank // 2 * 2, rank // 2 * 2 + 1], dp: [rank % 2, rank % 2 + 2]}
        order = ([tp] * (1 + rank // 2) + [dp]) * 3
        if rank == still:
            order = order[:-1]
        rows = [
            entry(at, at, process_group=(name, name[:2]), pg_id=int(name == dp), profiling_name="ncclx:all_reduce")
            for at, name in enumerate(order)
        ]
        if still is not None and rank == (still + 2) % 4:
            rows[-1]["state"] = "started"
        config = {name: {"name": name, "desc": name[:2], "ranks": str(found)} for name, found in members.items()}
        dumps[rank] = {"version": "2.10", "pg_config": config, "entries": rows[lost:]}
    return dumps


def test_numbers_that_run_over_all_groups_are_counted_in_each(tmp_path: Path) -> None:
    write(tmp_path / "healthy", over_groups(None))
    assert replay([tmp_path / "healthy"]).diagnosis.verdict == "conforming"
    write(tmp_path / "stalled", over_groups(3))
    found = replay([tmp_path / "stalled"]).diagnosis
    assert set(found.culprits) <= {3}
    assert 3 in (*found.culprits, *found.suspects)


def test_where_the_ring_lost_the_beginning_such_numbers_are_nobodys(tmp_path: Path) -> None:
    write(tmp_path, over_groups(None, lost=2))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert any("counted from the last that completed" in reason for reason in found.reasons)


def test_a_send_without_its_ends_goes_to_the_other_of_two(tmp_path: Path) -> None:
    config = {"g": {"name": "g", "desc": "pp", "ranks": "[0, 1]"}}
    dumps = {}
    for rank, kind in enumerate(("send", "recv")):
        row = entry(0, 0, process_group=("g", "pp"), profiling_name=f"ncclx:{kind}")
        dumps[rank] = {"version": "2.10", "pg_config": config, "entries": [row]}
    write(tmp_path, dumps)
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 1)


def batch(kind: str, part: str, sizes: list[int], state: str = "completed") -> list[dict[str, Any]]:
    rows = [
        entry(at, 1, op_id=at, profiling_name=f"nccl:{part}", input_sizes=[[n]], output_sizes=[[n]], state=state)
        for at, n in enumerate(sizes)
    ]
    last = entry(len(sizes), 1, profiling_name=f"nccl:{kind}", input_sizes=[[]], output_sizes=[[]], state=state)
    return [*rows, last]


def test_an_uneven_collective_in_parts_is_one(tmp_path: Path) -> None:
    for kind, part in (("REDUCE_SCATTER_coalesced", "_reduce_oop"), ("ALLGATHER_coalesced", "_broadcast_oop")):
        whole = {
            r: {"version": "2.10", "pg_config": CONFIG, "pg_status": {}, "entries": batch(kind, part, [4, 5, 6])}
            for r in range(3)
        }
        write(tmp_path / kind, whole)
        found = replay([tmp_path / kind]).diagnosis
        assert (found.verdict, found.matched_collectives) == ("conforming", 1)
        whole[1]["entries"] = batch(kind, part, [4, 5, 7], "scheduled")
        write(tmp_path / "unlike", whole)
        assert named(replay([tmp_path / "unlike"]).diagnosis) == ("divergent", (1,))


def test_the_end_of_a_batch_of_sends_need_not_be_a_send(tmp_path: Path) -> None:
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    dumps = {}
    for rank in range(2):
        rows = [
            entry(0, 0, profiling_name=f"nccl:send {rank}->{1 - rank}", is_p2p=True, p2p_seq_id=7, state="scheduled"),
            entry(1, 0, profiling_name=f"nccl:recv {rank}<-{1 - rank}", is_p2p=True, p2p_seq_id=7, state="scheduled"),
            entry(2, 3, profiling_name="nccl:coalesced", p2p_seq_id=7),
        ]
        dumps[rank] = {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": rows}
    write(tmp_path, dumps)
    assert replay([tmp_path]).diagnosis.matched_collectives == 2


def test_several_back_ends_of_one_rank_are_one_recording(tmp_path: Path) -> None:
    write(tmp_path, stalled(), "nccl_trace_rank_{}")
    config = {"9": {"name": "9", "desc": "cpu", "ranks": "[0, 1, 2]"}}
    rows = [entry(0, 1, process_group=("9", "cpu"), pg_id=9, profiling_name="gloo:barrier")]
    other = {r: {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": rows} for r in range(3)}
    write(tmp_path, other, "gloo_trace_rank_{}")
    found = replay([tmp_path]).diagnosis
    assert named(found) == ("divergent", (1,))
    assert found.events == 11 + 3
    write(tmp_path, stalled(), "same_trace_rank_{}")
    assert replay([tmp_path]).diagnosis == found, "a copy of one of them says nothing more"
    unlike = [{**e, "input_sizes": [[7]]} for e in stalled()[0]["entries"]]
    write(tmp_path, {0: {**stalled()[0], "entries": unlike}}, "again_trace_rank_{}")
    with pytest.raises(UsageError, match="second trace of rank 0"):
        replay([tmp_path])


def test_what_the_debug_server_wrote_has_its_ranks_in_its_lines(tmp_path: Path) -> None:
    parts = [f"=== Rank {r}: http://host:{25999 + r}/ ===\n{json.dumps(d)}\n" for r, d in stalled().items()]
    (tmp_path / "fr_trace_json_20260102_030405.txt").write_text("".join(parts))
    assert named(replay([tmp_path]).diagnosis) == ("divergent", (1,))


FRAMES = {
    "examples/pytorch/train.py": ("/home/me/examples/pytorch/train.py", "train.py:40 (step)"),
    "a folder named torch": ("/home/me/torch/train.py", "train.py:40 (step)"),
    "accelerate": ("/env/lib/python3.11/site-packages/accelerate/accelerator.py", ""),
    "a checkout of megatron": ("/src/Megatron-LM/megatron/core/pipeline_parallel/schedules.py", ""),
    "inductor's cache": ("/tmp/torchinductor_me/ry/cryynb2l.py", ""),
    "a pool of threads": ("/usr/lib/python3.11/concurrent/futures/thread.py", ""),
}


@pytest.mark.parametrize("case", FRAMES)
def test_the_place_is_the_programs_line(case: str, tmp_path: Path) -> None:
    file, place = FRAMES[case]
    frames = [
        {"name": "all_reduce", "filename": "/env/site-packages/torch/distributed/distributed_c10d.py", "line": 2500},
        {"name": "step", "filename": file, "line": 40},
        {"name": "main", "filename": "/home/me/run.py", "line": 7},
    ]
    dumps = stalled()
    for dump in dumps.values():
        for row in dump["entries"]:
            row["frames"] = frames
    write(tmp_path, dumps)
    found = replay([tmp_path]).diagnosis.divergence
    assert found is not None
    beside = f", in {Path(file).name}:40 (step)"
    if place:
        assert found.phase == place
    else:
        assert found.phase.startswith("run.py:7 (main), in ")
        assert found.phase.endswith(beside.removeprefix(", in "))


# ── archives ────────────────────────────────────────────────────────────────────────────────────────────


def tarred(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
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


def packed_files() -> dict[str, bytes]:
    return {f"job/nccl_trace_rank_{r}": pickle.dumps(d, protocol=2) for r, d in stalled().items()}


@pytest.mark.parametrize("form", ["zip", "tar.gz", "nested", "each gz", "zip of tars"])
def test_archives_of_dumps_are_read_however_they_are_packed(form: str, tmp_path: Path) -> None:
    files = packed_files()
    data = {
        "zip": lambda: zipped(files),
        "tar.gz": lambda: tarred(files, "w:gz"),
        "nested": lambda: tarred({f"node{n}.tar.gz": tarred({k: v}, "w:gz") for n, (k, v) in enumerate(files.items())}),
        "each gz": lambda: tarred({f"{k}.gz": gzip.compress(v) for k, v in files.items()}),
        "zip of tars": lambda: zipped({f"{n}.tar": tarred({k: v}) for n, (k, v) in enumerate(files.items())}),
    }[form]()
    (tmp_path / "all.bin").write_bytes(data)
    assert named(replay([tmp_path / "all.bin"]).diagnosis) == ("divergent", (1,))


def test_logs_in_archives_are_read(tmp_path: Path) -> None:
    log = mixed(one_behind())
    (tmp_path / "logs.zip").write_bytes(zipped({"a/job.log.gz": gzip.compress(log), "a/readme.md": b"nothing\n"}))
    assert named(replay([tmp_path / "logs.zip"]).diagnosis) == ("divergent", (2,))


@pytest.mark.parametrize("form", ["tar.gz", "zip", "zip of a tar"])
def test_genlocks_own_traces_may_be_packed(form: str, tmp_path: Path) -> None:
    name = next(n for n in names("broken") if replay([CORPUS / n]).diagnosis.verdict == "divergent")
    files = {f"job/{path.name}": path.read_bytes() for path in find(CORPUS / name)}
    data = {
        "tar.gz": lambda: tarred(files, "w:gz"),
        "zip": lambda: zipped({**files, "notes.txt": b"nothing\n"}),
        "zip of a tar": lambda: zipped({"node0.tar": tarred(files)}),
    }[form]()
    (tmp_path / "job.bin").write_bytes(data)
    found, whole = replay([tmp_path / "job.bin"]).diagnosis, replay([CORPUS / name]).diagnosis
    assert (found.verdict, found.culprits, found.events) == (whole.verdict, whole.culprits, whole.events)


def test_archives_too_deep_are_refused(tmp_path: Path) -> None:
    data = packed_files()["job/nccl_trace_rank_0"]
    for _ in range(8):
        data = tarred({"inner.tar": data})
    (tmp_path / "deep.tar").write_bytes(data)
    with pytest.raises(UnreadableInput, match="archives in archives"):
        replay([tmp_path / "deep.tar"])


def test_a_checkpoint_beside_the_logs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(zipped({"archive/data.pkl": pickle.dumps(Path("x")), "archive/0": b"\0" * 64}))
    (tmp_path / "job.log").write_bytes(mixed(one_behind()))
    assert named(replay([tmp_path]).diagnosis) == ("divergent", (2,))


# ── kinds together ──────────────────────────────────────────────────────────────────────────────────────


def test_a_log_tells_of_a_rank_whose_dump_is_missing(tmp_path: Path) -> None:
    dumps = stalled(4, still=2, ops=5)
    del dumps[2]
    write(tmp_path, dumps)
    assert 2 in replay([tmp_path]).diagnosis.suspects, "and all others: each device may be the one that stands still"
    log = mixed({2: one_behind("2.6", 4, (2,), number=5)[2]})
    (tmp_path / "rank2.log").write_bytes(log)
    assert named(replay([tmp_path]).diagnosis) == ("divergent", (2,))


def test_a_dump_and_a_log_that_contradict_each_other_accuse_nobody(tmp_path: Path) -> None:
    write(tmp_path, stalled(4, still=1, ops=1518))
    (tmp_path / "job.log").write_bytes(mixed(one_behind("2.6", 4, (2,))))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert {1, 2} <= set(found.suspects)


# ── two looks at one rank ───────────────────────────────────────────────────────────────────────────────


def test_two_copies_of_the_dumps_of_a_node_are_one(tmp_path: Path) -> None:
    files = packed_files()
    for name in ("first.zip", "second.zip"):
        (tmp_path / name).write_bytes(zipped(files))
    assert named(replay([tmp_path]).diagnosis) == ("divergent", (1,))


def test_of_two_dumps_of_a_rank_the_later_counts_and_others_are_refused(tmp_path: Path) -> None:
    dumps = stalled()
    for rank, dump in dumps.items():
        earlier = {**dump, "entries": dump["entries"][:-1]}
        (tmp_path / "a" / f"trace_{rank}").parent.mkdir(exist_ok=True)
        (tmp_path / "a" / f"trace_{rank}").write_bytes(pickle.dumps(earlier, protocol=2))
        (tmp_path / "b" / f"trace_{rank}").parent.mkdir(exist_ok=True)
        (tmp_path / "b" / f"trace_{rank}").write_bytes(pickle.dumps(dump, protocol=2))
    whole = replay([tmp_path / "b"]).diagnosis
    for paths in ([tmp_path], [tmp_path / "b", tmp_path / "a"]):
        found = replay(paths).diagnosis
        assert (found.verdict, found.culprits, found.events) == (whole.verdict, whole.culprits, whole.events)
    other = {**dumps[0], "entries": [{**e, "input_sizes": [[7]]} for e in dumps[0]["entries"]]}
    (tmp_path / "a" / "trace_0").write_bytes(pickle.dumps(other, protocol=2))
    with pytest.raises(UsageError, match="a second trace of rank 0"):
        replay([tmp_path])


@pytest.mark.parametrize("packed", [True, False])
def test_of_two_looks_at_a_trace_the_later_counts_and_others_are_refused(packed: bool, tmp_path: Path) -> None:
    from genlock.traces.format import FORMAT_VERSION, Clock, Group, TraceHeader, encode

    def trace(rank: int, *lines: bytes) -> bytes:
        header = TraceHeader(FORMAT_VERSION, "r", rank, 2, "", "gloo", "", "", {}, Clock(1, 1))
        return b"".join([encode(header), encode(Group("0", (0, 1))), *lines])

    def give(name: str, *lines: bytes) -> Path:
        files = {f"rank{rank}.trace.jsonl": trace(rank, *lines) for rank in range(2)}
        if packed:
            (tmp_path / f"{name}.zip").write_bytes(zipped(files))
            return tmp_path / f"{name}.zip"
        for file, data in files.items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(data)
        return tmp_path / name

    later = b'{"kind":"operation","number":1,"op":"barrier","group":"0"}\n["enter",0,2,1,1]\n["exit",1,3,0]\n'
    given = [give("a"), give("b", later), give("c", later)]
    assert replay(given).diagnosis.events == 2
    with pytest.raises(UsageError, match="a second trace of rank"):
        replay([*given, give("d", later.replace(b"barrier", b"all_reduce"))])
