"""Genlock's own traces of programs without a protocol are judged as recordings of collectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.judge import judge_paths
from genlock.errors import UsageError
from genlock.traces.format import Clock, Dropped, End, Event, TraceHeader, encode, name_of

RANKS = 3


def header(rank: int, run: str = "r") -> TraceHeader:
    groups = {"default_pg": tuple(range(RANKS))}
    return TraceHeader(1, run, rank, RANKS, "", "gloo", "", "", groups, Clock(1_000_000, 0))


def operations(count: int, **last: Any) -> list[Event]:
    """`count` all_reduces, each issued and completed; `last` changes the last one's issue, whose exit is left out."""
    found: list[Event] = []
    for number in range(count):
        facts: dict[str, Any] = {"group": "default_pg", "sequence": number + 1, "op": "all_reduce", "numel": 8}
        at = len(found)
        entered = Event(at, at * 10, "", "enter", "", "", dtype="float32", site="job.py:7", **facts)
        found.append(entered)
        found.append(Event(at + 1, at * 10 + 5, "", "exit", "", "", entered=at, **facts))
    if last:
        found.pop()
        fields = {name: getattr(found[-1], name) for name in Event.__struct_fields__}
        found[-1] = Event(**{**fields, **last})
    return found


def write(folder: Path, ranks: dict[int, list[Any]], run: str = "r", **ends: End | None) -> None:
    """Each rank's lines, and that it came to its end; `rank1=None` leaves that out."""
    for rank, lines in ranks.items():
        end = ends.get(f"rank{rank}", End(len(lines), 0, "stopped", -1))
        given = [header(rank, run), *lines, *([end] if end else [])]
        (folder / name_of(rank)).write_bytes(b"".join(map(encode, given)))


def test_a_healthy_program_conforms(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(RANKS), operations(4)))
    found = judge_paths([tmp_path])
    assert (found.verdict, found.matched_collectives, found.reasons) == ("conforming", 4, ())


def test_a_rank_that_stops_is_named_with_the_place(tmp_path: Path) -> None:
    waiting = operations(4, outcome="timed out")
    write(tmp_path, {0: waiting, 1: operations(3), 2: waiting})
    found = judge_paths([tmp_path])
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (1,), "host")
    assert found.divergence is not None
    assert (found.divergence.place, found.divergence.phase) == ("all_reduce #4 of group default_pg", "job.py:7")


def test_another_size_is_named(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(RANKS), operations(4)) | {2: operations(4, numel=9)})
    found = judge_paths([tmp_path])
    assert (found.verdict, found.culprits) == ("divergent", (2,))


def test_what_was_refused_was_never_issued(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(RANKS), operations(4, outcome="refused: not in the plan")))
    found = judge_paths([tmp_path])
    assert (found.verdict, found.matched_collectives) == ("conforming", 3)


def test_dropped_events_are_evidence_of_nothing(tmp_path: Path) -> None:
    events = operations(4)
    write(
        tmp_path,
        dict.fromkeys(range(RANKS), events) | {1: [*events[:4], Dropped(4, 4)]},
        rank1=End(8, 0, "stopped", -1),
    )
    found = judge_paths([tmp_path])
    assert (found.verdict, found.reasons[0]) == ("unknown", "rank1: events were dropped")


def test_two_runs_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {0: operations(1)})
    write(tmp_path, {1: operations(1)}, run="other")
    with pytest.raises(UsageError, match="one run at a time"):
        judge_paths([tmp_path])
