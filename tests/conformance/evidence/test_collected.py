"""Archives of `genlock collect` as evidence: what two looks show, what takes a verdict back, and damaged manifests."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.errors import GenlockError
from repository import CORPUS

WAITS = [("all_reduce", "/env/torch/distributed/distributed_c10d.py"), ("step", "/job/train.py")]
SLEEPS = [("load", "/job/data.py"), ("main", "/job/train.py")]


def about(rank: int, **more: Any) -> dict[str, Any]:
    """What a manifest says of a rank that stands still."""
    plain = {"rank": rank, "world": 3, "pid": 100 + rank, "known_by": "RANK", "certain": True, "torch": "2.13"}
    return {**plain, "stopped": False, "moved": False, "still": True, "elsewhere": rank == 1, **more}


def stack(rank: int, frames: Sequence[tuple[str, str]]) -> bytes:
    told = [{"name": name, "filename": file, "short_filename": file, "line": 7} for name, file in frames]
    thread = {"pid": 100 + rank, "thread_id": 1, "thread_name": "MainThread", "os_thread_id": 100 + rank}
    return json.dumps([{**thread, "active": False, "owns_gil": False, "frames": told}]).encode()


def archive(path: Path, ranks: Sequence[Mapping[str, Any]], stacks: Mapping[int, Any], looks: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for rank, frames in stacks.items():
            for look in range(looks):
                file.writestr(f"out/rank{rank}.stack{look + 1}.json", stack(rank, frames))
        manifest = {"genlock_collect": 1, "host": "h123", "ranks": list(ranks)}
        file.writestr("out/manifest.json", json.dumps(manifest, indent=1))
    return path


def judged(tmp_path: Path, ranks: Sequence[Mapping[str, Any]], asleep: int = 1) -> Diagnosis:
    stacks = {int(r["rank"]): SLEEPS if r["rank"] == asleep else WAITS for r in ranks}
    return replay([archive(tmp_path / "out.zip", ranks, stacks)]).diagnosis


def test_a_rank_that_stands_elsewhere_at_both_looks_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n) for n in range(3)])
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (1,), "host")


def test_whoever_may_wait_in_its_own_line_is_a_suspect(tmp_path: Path) -> None:
    """`handle.wait()` leaves no frame of Python, and is an innocent's."""
    found = judged(tmp_path, [about(n, elsewhere=False) for n in range(3)])
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (1,))


def test_whoever_may_have_waited_anew_leaves_it_a_suspect(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(0, still=False), about(1, still=False), about(2)])
    assert (found.verdict, found.suspects) == ("unknown", (1,))
    assert any("nothing shows that rank0 did not go on" in reason for reason in found.reasons)


def test_a_job_that_moves_is_no_hang(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n, moved=n == 2) for n in range(3)])
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert any("the job moves" in reason for reason in found.reasons)


def test_a_rank_whose_number_is_a_convention_is_a_suspect(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n, certain=False, known_by="the order of their start") for n in range(3)])
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (1,))
    assert any("`genlock collect --pid PID=RANK`" in reason for reason in found.reasons)


def test_a_rank_that_is_on_another_node_is_a_suspect_too(tmp_path: Path) -> None:
    """The same archive as of a job of four: the rank that is not in it may be the one."""
    found = judged(tmp_path, [about(n, world=4) for n in range(3)])
    assert (found.verdict, found.suspects) == ("unknown", (1, 3))


def test_archives_of_several_nodes_make_one_job(tmp_path: Path) -> None:
    one = archive(tmp_path / "a.zip", [about(0), about(1)], {0: WAITS, 1: SLEEPS})
    two = archive(tmp_path / "b.zip", [about(2)], {2: WAITS})
    assert replay([one]).diagnosis.verdict == "unknown"
    assert replay([two, one]).diagnosis.culprits == (1,)


def test_a_stopped_rank_is_named_though_it_waits_in_the_same_operation(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n, stopped=n == 2) for n in range(3)], asleep=-1)
    assert (found.verdict, found.culprits) == ("divergent", (2,))


def test_beside_a_stopped_rank_nobody_else_is_a_culprit_by_stacks(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n, stopped=n == 2) for n in range(3)], asleep=1)
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert 2 in found.suspects


def test_of_several_that_are_stopped_nothing_tells_which(tmp_path: Path) -> None:
    found = judged(tmp_path, [about(n, stopped=n > 0) for n in range(3)], asleep=-1)
    assert (found.verdict, found.suspects) == ("unknown", (1, 2))


def test_traces_of_a_protocol_are_judged_by_it_in_an_archive_too(tmp_path: Path) -> None:
    run = next(folder for folder in sorted((CORPUS / "broken").iterdir()) if folder.is_dir())
    path = archive(tmp_path / "out.zip", [about(0)], {0: WAITS})
    with zipfile.ZipFile(path, "a") as file:
        for trace in sorted(run.glob("*.trace.jsonl")):
            file.write(trace, f"out/{trace.name}")
    packed, plain = replay([path]).diagnosis, replay([run]).diagnosis
    assert (packed.verdict, packed.culprits, packed.failure_mode) == (plain.verdict, plain.culprits, plain.failure_mode)


@pytest.mark.parametrize(
    "ranks",
    [
        [{"rank": -1}, {"rank": 1 << 40, "pid": 1}, {"rank": True, "pid": 1}, "text", None, {"rank": 0}],
        [{"rank": 0, "pid": 5, "world": -3, "torch": 7, "stopped": "yes", "moved": 1, "still": None, "known_by": []}],
        [about(0, world=0), about(0, world=1 << 60)],
    ],
)
def test_what_makes_no_sense_in_a_manifest_is_left_out(tmp_path: Path, ranks: list[Any]) -> None:
    found = replay([archive(tmp_path / "out.zip", ranks, {0: WAITS})]).diagnosis
    assert (found.verdict, found.culprits) == ("unknown", ())


def test_a_manifest_that_is_torn_anywhere_is_no_bug(tmp_path: Path) -> None:
    whole = json.dumps({"genlock_collect": 1, "host": "h", "ranks": [about(0)]}, indent=1).encode()
    verdicts: set[str] = set()
    for cut in range(0, len(whole), 7):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr("out/manifest.json", whole[:cut])
        path = tmp_path / "out.zip"
        path.write_bytes(packed.getvalue())
        try:
            verdicts.add(replay([path]).diagnosis.verdict)
        except GenlockError as error:
            verdicts.add(error.exit.name)
    assert verdicts <= {"USAGE", "unknown"}


# ── the backward pass, in which Python's stack does not show who waits ──────────────────────────────────

BACKWARD = [("_engine_run_backward", "/env/torch/autograd/graph.py"), ("backward", "/env/torch/autograd/__init__.py")]


def placed(tmp_path: Path, *frames: Sequence[tuple[str, str]]) -> Diagnosis:
    ranks = [about(n, world=len(frames)) for n in range(len(frames))]
    return replay([archive(tmp_path / "out.zip", ranks, dict(enumerate(frames)))]).diagnosis


def test_a_rank_that_loads_while_the_others_are_blocked_in_the_backward_pass_is_a_suspect(tmp_path: Path) -> None:
    found = placed(tmp_path, BACKWARD, SLEEPS, BACKWARD, BACKWARD)
    assert (found.verdict, found.suspects) == ("unknown", (1,))
    assert "data.py:7" in found.reasons[0]


def test_a_rank_blocked_in_the_backward_pass_is_no_culprit_by_its_stack(tmp_path: Path) -> None:
    """It may wait there for an all-reduce of gradients, which the others never do: nothing tells who is right."""
    found = placed(tmp_path, WAITS, BACKWARD, WAITS, WAITS)
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), (1,))


def test_beside_it_a_rank_that_stands_elsewhere_is_a_suspect_only(tmp_path: Path) -> None:
    found = placed(tmp_path, WAITS, BACKWARD, SLEEPS, WAITS, WAITS)
    assert (found.verdict, found.suspects) == ("unknown", (1, 2))


def test_where_all_wait_it_is_said_where_and_nobody_is_blamed(tmp_path: Path) -> None:
    found = placed(tmp_path, WAITS, WAITS, WAITS)
    assert (found.verdict, found.suspects) == ("unknown", ())
    assert "rank0 to rank2 wait at train.py:7" in found.reasons[0]


def test_whoever_waits_at_another_line_than_most_is_a_suspect(tmp_path: Path) -> None:
    other = [("barrier", "/env/torch/distributed/distributed_c10d.py"), ("save", "/job/checkpoint.py")]
    found = placed(tmp_path, WAITS, other, WAITS)
    assert (found.verdict, found.suspects) == ("unknown", (1,))
    assert "rank1 waits at checkpoint.py:7" in found.reasons[0]
    assert placed(tmp_path, WAITS, other).suspects == ()
