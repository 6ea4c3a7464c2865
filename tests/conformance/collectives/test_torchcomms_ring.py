"""TorchComms counts a rank's operations over all of its groups: what is known where the ring has lost the beginning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay

GROUPS = {"tp0": (0, 1), "tp1": (2, 3), "dp0": (0, 2), "dp1": (1, 3)}
STEPS = 6


def dump(rank: int, still: int | None, ring: int) -> dict[str, Any]:
    """Six steps of two sums in the tensor group and one in the data group; rank `still` never issues the last."""
    tp, dp = (
        next(n for n, members in GROUPS.items() if n.startswith(kind) and rank in members) for kind in ("tp", "dp")
    )
    names = [name for _ in range(STEPS) for name in (tp, tp, dp)]
    if rank == still:
        names.pop()
    waits = still is not None and rank != still and dp == next(n for n in ("dp0", "dp1") if still in GROUPS[n])
    entries = [
        {
            "record_id": at,
            "process_group": [name, name[:2]],
            "pg_id": 0 if name == tp else 1,
            "collective_seq_id": at,
            "p2p_seq_id": 0,
            "profiling_name": "ncclx:all_reduce",
            "time_created_ns": 1_000_000 * at + rank,
            "input_sizes": [[8]],
            "output_sizes": [[8]],
            "input_dtypes": ["Float"],
            "output_dtypes": ["Float"],
            "state": "scheduled" if waits and at == len(names) - 1 else "completed",
            "is_p2p": False,
        }
        for at, name in enumerate(names)
    ]
    config = {n: {"name": n, "desc": n[:2], "ranks": str(list(GROUPS[n]))} for n in (tp, dp)}
    return {"version": "2.10", "pg_config": config, "entries": entries[-ring:]}


def judged(folder: Path, still: int | None, ring: int) -> Diagnosis:
    for rank in range(4):
        (folder / f"trace_{rank}").write_text(json.dumps(dump(rank, still, ring)))
    return replay([folder]).diagnosis


@pytest.mark.parametrize("ring", [2, 3, 7, 12])
def test_where_the_ring_has_lost_the_beginning_the_culprit_is_a_suspect(ring: int, tmp_path: Path) -> None:
    found = judged(tmp_path, 3, ring)
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert 3 in found.suspects
    assert set(found.suspects) <= {1, 3}
    assert any("counted from the last that completed" in reason for reason in found.reasons)


def test_where_nothing_is_lost_it_is_a_culprit(tmp_path: Path) -> None:
    assert judged(tmp_path, 3, 100).culprits == (3,)


@pytest.mark.parametrize("ring", [2, 3, 7, 12])
def test_of_a_healthy_job_nobody_is_named(ring: int, tmp_path: Path) -> None:
    found = judged(tmp_path, None, ring)
    assert (found.verdict, found.suspects) == ("unknown", ())
