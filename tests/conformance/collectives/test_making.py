"""Groups in the making: who left the call out, made another one, or is in it; by traces as the recorder writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.traces import fast_summary
from genlock.traces.format import FORMAT_VERSION, Clock, Group, KnownBy, Maker, Making, RepeatedOperation, TraceHeader
from genlock.traces.importers.genlock_programs import read_programs
from genlock.traces.load import files_of, own_of
from genlock.traces.recorder import Recorder

RANKS = 4
ALL = tuple(range(RANKS))


def fail(error: Exception) -> None:
    raise error


class Rank:
    """Writes what one rank does."""

    def __init__(self, folder: Path, rank: int) -> None:
        header = TraceHeader(FORMAT_VERSION, "r", rank, RANKS, "", "gloo", "", "", {}, Clock(1 << 60, 0))
        self.rank, self.recorder, self.numbers = rank, Recorder(folder, header), count(1)
        self.recorder.group(Group("0", ALL, description="default_pg"))
        self.sequences: dict[str, Any] = {}

    def makes(self, *members: int, done: bool = True, by: Maker = "new_group", known_by: KnownBy = "all") -> Rank:
        place = self.recorder.site(f"/job/train.py:{10 + self.rank}")
        making = Making(next(self.numbers), time.monotonic_ns(), by, members, known_by, place)
        self.recorder.making(making)
        if done:
            name = str(making.number) if self.rank in members else ""
            self.recorder.made(Group(name, members, number=making.number, known_by=known_by, site=place))
        return self

    def reduces(self, group: str = "0", *, done: bool = True) -> Rank:
        about = RepeatedOperation(0, "all_reduce", group, dtype="float32", numel=1)
        operation = self.recorder.operation(about, self.sequences.setdefault(group, count(1)), fail)
        begun = operation.begin(time.monotonic_ns())
        if done:
            operation.end(begun, time.monotonic_ns())
        return self


def judged(folder: Path, *ranks: Callable[[Rank], Rank], stopped: Sequence[int] = ()) -> Diagnosis:
    for number, does in enumerate(ranks):
        rank = does(Rank(folder, number).reduces())
        if number in stopped:
            rank.recorder.end("stopped", 0)
        rank.recorder.close()
    return replay([folder]).diagnosis


def test_ranks_that_make_the_same_groups_conform(tmp_path: Path) -> None:
    """Also those that are no members, that split, or that make one among themselves."""

    def does(rank: Rank) -> Rank:
        rank.makes(0, 1).makes(2, 3).makes(by="split_group")
        if rank.rank > 1:
            rank.makes(2, 3, known_by="members")
        return rank.reduces(str(1 + rank.rank // 2)).reduces()

    found = judged(tmp_path, *[does] * RANKS, stopped=ALL)
    assert (found.verdict, found.reasons, found.matched_collectives) == ("conforming", (), 4)
    own = own_of(files_of([tmp_path]))
    assert own is not None
    assert fast_summary.agreed(own) is not None


def test_a_rank_that_goes_on_without_the_call_is_named(tmp_path: Path) -> None:
    waits = lambda rank: rank.makes(*ALL, done=False)  # noqa: E731
    found = judged(tmp_path, waits, waits, lambda rank: rank.reduces(done=False), waits)
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert (found.divergence.rank, found.divergence.expected) == (2, ("new_group([0, 1, 2, 3]), number 1",))
    assert "rank0, rank1, rank3 made it of [0, 1, 2, 3]; rank2 went on without it" in found.divergence.why
    assert {(w.rank, w.operation) for w in found.waits} >= {(0, "new_group([0, 1, 2, 3]), number 1")}


def test_a_rank_that_makes_a_group_alone_is_named_with_its_line(tmp_path: Path) -> None:
    goes_on = lambda rank: rank.reduces(done=False)  # noqa: E731
    found = judged(tmp_path, goes_on, lambda rank: rank.makes(0, 1, done=False), goes_on, goes_on)
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert (found.divergence.phase, found.divergence.line) == ("/job/train.py:11", 7)


@pytest.mark.parametrize("done", [True, False])
def test_one_number_with_two_lists_of_members_is_told_by_rank(done: bool, tmp_path: Path) -> None:
    """Also where all came out of the call: then they are in one group by its name, with other members."""

    def own(rank: Rank) -> Rank:
        pair = (0, 3) if rank.rank in (0, 3) else (1, 2)
        return rank.makes(*pair, done=done)

    found = judged(tmp_path, *[own] * RANKS, stopped=ALL if done else ())
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), ALL)
    assert found.divergence is not None
    assert "rank0, rank3 made it of [0, 3]; rank1, rank2 made it of [1, 2]" in found.divergence.why


def test_groups_in_another_order_are_its_doing_who_stands_alone_with_it(tmp_path: Path) -> None:
    def does(rank: Rank) -> Rank:
        if rank.rank == 1:
            return rank.makes(2, 3).makes(0, 1, done=False)
        rank.makes(0, 1, done=rank.rank != 0)
        return rank if rank.rank == 0 else rank.makes(2, 3, done=False)

    found = judged(tmp_path, *[does] * RANKS)
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert (found.divergence.observed, found.divergence.phase) == ("new_group([2, 3]), number 1", "/job/train.py:11")


def test_who_does_not_come_to_the_call_is_waited_for(tmp_path: Path) -> None:
    waits = lambda rank: rank.makes(0, 1, 2, 3, done=False)  # noqa: E731
    found = judged(tmp_path, waits, waits, lambda rank: rank, waits)
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.state == "before new_group([0, 1, 2, 3]), number 1"


def test_of_two_ranks_nothing_tells_which_is_right(tmp_path: Path) -> None:
    """The others have left no trace."""
    found = judged(tmp_path, lambda rank: rank.makes(*ALL, done=False), lambda rank: rank.reduces(done=False))
    assert (found.verdict, found.culprits) == ("divergent", ())
    assert set(found.suspects) >= {0, 1}


def test_both_ways_of_reading_say_the_same_of_a_group_in_the_making(tmp_path: Path) -> None:
    Rank(tmp_path, 0).reduces().makes(0, 1).makes(2, 3).reduces("1").makes(0, 2, done=False).recorder.close()
    path = tmp_path / "rank0.trace.jsonl"
    _, [quick] = read_programs([path])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line.replace(b'"kind":"site"', b'"kind": "site"') for line in lines))
    _, [slow] = read_programs([path])
    assert quick.record.makings == slow.record.makings
    assert [(m.number, m.members, m.before, m.done) for m in quick.record.makings] == [
        (1, (0, 1), 2, True),
        (2, (2, 3), 2, True),
        (3, (0, 2), 4, False),
    ]
    assert quick.record.making == quick.record.makings[-1]
    assert quick.record.makings[0].place == "/job/train.py:10"


def test_a_disk_that_is_full_does_not_leave_a_rank_in_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genlock.traces import recorder

    rank = Rank(tmp_path, 0).reduces()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "_put", full)
        rank.makes(0, 1)
    rank.reduces().recorder.close()
    _, [read] = read_programs([tmp_path / "rank0.trace.jsonl"])
    assert [(m.number, m.done) for m in read.record.makings] == [(1, True)]
    assert not read.record.dropped
