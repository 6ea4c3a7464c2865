"""Replaying a few for many: of a large job, the same is found as by replaying every rank."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.protocol.rank_classes import KEPT, RankClasses, _kept
from genlock.traces.format import Clock, End, Trace, TraceHeader, encode, find, name_of, read
from genlock.traces.identical_ranks import own_lines
from genlock.traces.load import load
from hypothesis import given
from hypothesis import strategies as st
from simulated import healthy

RANKS = 24


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """Traces of three ranks."""
    return healthy(tmp_path_factory.mktemp("small"))


def enlarged(small: list[Trace]) -> list[list[bytes]]:
    """The lines of a job of many ranks: all workers wrote what the first did, at times of their own."""
    found = []
    for rank in range(RANKS):
        own = small[min(rank, 1)]
        groups = {name: tuple(range(RANKS)) for name in own.header.groups}
        changes = {"rank": rank, "world": RANKS, "groups": groups, "clock": Clock(rank, rank)}
        head: TraceHeader = msgspec.structs.replace(own.header, **changes)
        shifted = (msgspec.structs.replace(line, time_ns=line.time_ns + rank) for line in own.lines)  # type: ignore[union-attr]
        found.append([encode(head), *map(encode, shifted)])
    return found


def write(lines: list[list[bytes]], folder: Path) -> list[Path]:
    for rank, own in enumerate(lines):
        (folder / name_of(rank)).write_bytes(b"".join(own))
    return find(folder)


Break = Callable[[list[bytes], int], None]


def drop(lines: list[bytes], at: int) -> None:
    del lines[at]


def cut(lines: list[bytes], at: int) -> None:
    del lines[at:]


def tear(lines: list[bytes], at: int) -> None:
    lines[at:] = [lines[at][:20]]


def resize(lines: list[bytes], at: int) -> None:
    at = next((n for n in range(at, len(lines)) if b'"numel"' in lines[n]), at)
    lines[at] = re.sub(rb'"numel":\d+', b'"numel":7', lines[at])


def same(traces: list[Trace], few: Diagnosis) -> None:
    """Field by field; of the words, what counts ranks counts those that were replayed."""
    every = diagnose([msgspec.structs.replace(t, same_as=None) for t in own_lines(traces)])
    for field in fields(Diagnosis):
        if field.name not in ("divergence", "waits", "standing", "reasons"):
            assert getattr(few, field.name) == getattr(every, field.name), field.name
    assert sorted(few.reasons) == sorted(every.reasons)
    one, other = few.divergence, every.divergence
    assert (one and replace(one, why="")) == (other and replace(other, why=""))
    assert {(w.rank, w.operation, w.missing) for w in few.waits} == {
        (w.rank, w.operation, w.missing) for w in every.waits
    }
    assert [replace(s, why="") for s in few.standing] == [replace(s, why="") for s in every.standing]


def test_a_healthy_job_is_told_by_a_few(small: list[Trace], tmp_path: Path) -> None:
    write(enlarged(small), tmp_path)
    traces = load([tmp_path])
    assert isinstance(traces, list)
    assert {t.same_as for t in traces} == {None, 1}
    assert [t.rank for t in RankClasses(traces).few] == [0, 1, 2, 3]
    found = diagnose(traces)
    assert (found.verdict, found.ranks) == ("conforming", RANKS)
    assert found.events == sum(1 for path in find(tmp_path) for _ in read(path).events)
    same(traces, found)


def test_a_copy_has_its_own_times_where_they_are_asked_for(small: list[Trace], tmp_path: Path) -> None:
    write(enlarged(small), tmp_path)
    traces = load([tmp_path])
    assert isinstance(traces, list)
    copy = next(t for t in traces if t.rank == 9)
    assert copy.same_as == 1
    [own] = own_lines([copy])
    assert [line.time_ns for line in own.events] == [line.time_ns + 8 for line in copy.events]


@pytest.mark.parametrize("how", [drop, cut, tear, resize], ids=lambda how: how.__name__)
@pytest.mark.parametrize("broken", [(0,), (7,), (3, 20), tuple(range(5, 14)), tuple(range(1, 13)), tuple(range(1, 24))])
def test_a_broken_job_is_told_by_a_few_as_by_all(
    how: Break, broken: tuple[int, ...], small: list[Trace], tmp_path: Path
) -> None:
    lines = enlarged(small)
    at = random.Random(f"{how.__name__}{broken}").randrange(3, min(map(len, lines)) - 2)
    for rank in broken:
        how(lines[rank], at)
    write(lines, tmp_path)
    traces = load([tmp_path])
    assert isinstance(traces, list)
    same(traces, diagnose(traces))


def test_ranks_that_hang_for_one_are_all_left_waiting(small: list[Trace], tmp_path: Path) -> None:
    """Everybody ends in the acks of the first chunk, which rank 9 never comes to."""
    lines = enlarged(small)
    for rank, own in enumerate(lines):
        collecting = b'"collect_acks","edge":"exit"' if rank == 0 else b'"send_ack","edge":"exit"'
        del own[next(n for n, line in enumerate(own) if collecting in line) - (rank == 9) :]
    write(lines, tmp_path)
    traces = load([tmp_path])
    assert isinstance(traces, list)
    assert len(RankClasses(traces).few) < RANKS // 2
    same(traces, diagnose(traces))


def test_of_a_kind_that_is_to_blame_all_are(small: list[Trace], tmp_path: Path) -> None:
    """Rank 0 gives up waiting for acks that no worker has sent."""
    lines = enlarged(small)
    for rank, own in enumerate(lines):
        last = b'"collect_acks","edge":"exit"' if rank == 0 else b'"send_ack","edge":"enter"'
        del own[next(n for n, line in enumerate(own) if last in line) :]
    lines[0].append(encode(End(len(lines[0]) - 1, 0, "deadline", 13)))
    write(lines, tmp_path)
    traces = load([tmp_path])
    assert isinstance(traces, list)
    found = diagnose(traces)
    assert found.culprits == tuple(range(1, RANKS))
    same(traces, found)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_kind_that_outnumbers_all_smaller_ones_still_does(sizes: list[int]) -> None:
    kept = _kept(sizes)
    assert all(0 < few <= size for few, size in zip(kept, sizes, strict=True))
    for at, size in enumerate(sizes):
        smaller = [n for n in range(len(sizes)) if n != at and sizes[n] < size]
        if size > sum(sizes[n] for n in smaller) + 1:
            assert kept[at] == size or kept[at] > sum(kept[n] for n in smaller) + 1
        if kept[at] < size:
            assert kept[at] >= KEPT
