"""What members must agree on beside kind, type, size and root: the reduction, and what an even all-to-all puts in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.replay import replay
from program_traces import RANKS, Writer, lines_of, write


def jobs(op: str, *last: dict[str, Any]) -> dict[int, Writer]:
    """Each rank reduces twice, and then issues `op` with facts of its own."""
    ranks = {rank: Writer() for rank in range(RANKS)}
    for rank, own in ranks.items():
        for number in (1, 2):
            own.do("all_reduce", number, reduce="sum")
        own.do(op, 3, left=False, **last[rank])
    return ranks


@pytest.mark.parametrize(
    ("op", "usual", "odd"),
    [
        ("all_reduce", {"reduce": "sum"}, {"reduce": "max"}),
        ("all_to_all_single", {"splits": False, "numel": 12}, {"splits": False, "numel": 24}),
    ],
)
def test_who_differs_from_the_others_is_named(op: str, usual: Any, odd: Any, tmp_path: Path) -> None:
    write(tmp_path, lines_of(jobs(op, usual, odd, usual)), rank0=None, rank1=None, rank2=None)
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert str(odd.get("reduce", odd.get("numel"))) in found.divergence.observed


@pytest.mark.parametrize(
    ("op", "one", "other"),
    [
        ("all_reduce", {"reduce": "sum"}, {}),
        ("all_to_all_single", {"splits": True, "numel": 12}, {"splits": False, "numel": 24}),
        ("all_to_all_single", {"numel": 12}, {"numel": 24}),
    ],
)
def test_what_is_not_known_of_all_is_held_against_nobody(op: str, one: Any, other: Any, tmp_path: Path) -> None:
    write(tmp_path, lines_of(jobs(op, one, other, one)), rank0=None, rank1=None, rank2=None)
    found = replay([tmp_path]).diagnosis
    assert found.culprits == ()
    told = [reason for reason in found.reasons if "their sizes differ (rank0, rank2: 12; rank1: 24)" in reason]
    assert len(told) == ("all_to_all" in op)
