"""A recording with a cap is judged as the whole one is, as far as its digests entail it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.conformance.report import as_json, as_text
from genlock.page.html import write
from genlock.page.run_page import story_of
from genlock.traces import recorder
from genlock.traces.format import FORMAT_VERSION, Clock, Group, RepeatedOperation, TraceHeader, earlier, name_of
from genlock.traces.recorder import OperationRecorder, Recorder

RANKS, STEPS, KEEP = 3, 400, 1 << 14
RING: dict[str, Any] = {"dtype": "int64", "numel": 1, "tag": 4, "asynchronous": True}


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        monotonic_ns = staticmethod(lambda: STEPS)

    monkeypatch.setattr(recorder, "time", Time)


class Job:
    """One rank of a job: all-reduces of all ranks, an all-to-all with sizes of its own, and sends round a ring."""

    def __init__(self, folder: Path, rank: int, keep: int | None) -> None:
        header = TraceHeader(FORMAT_VERSION, "r", rank, RANKS, "", "gloo", "", "", {}, Clock(0, 0))
        self.rank, self.writer = rank, Recorder(folder, header, keep)
        self.writer.group(Group("0", tuple(range(RANKS)), "gloo"))
        self._numbers = {key: count(1) for key in ("0", "send", "recv")}
        self.send = self.operation("send", peer=(rank + 1) % RANKS, **RING)
        self.recv = self.operation("recv", peer=(rank - 1) % RANKS, **RING)
        self.exchange = self.operation("all_to_all_single", numel=6 + rank, splits=True, dtype="int64")
        self.reduce = self.operation("all_reduce", numel=8, dtype="float32", reduce="sum")
        self.step = 0

    def operation(self, op: str, **facts: Any) -> OperationRecorder:
        about = RepeatedOperation(0, op, "0", **facts)
        return self.writer.operation(about, self._numbers.get(op, self._numbers["0"]), _never)

    def do(self, operation: OperationRecorder) -> None:
        operation.end(operation.begin(self.step), self.step)

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.step += 1
            for operation in (self.reduce, self.exchange, self.send, self.recv, self.reduce):
                self.do(operation)


def _never(error: Exception) -> None:
    raise error


Way = Callable[[Job], None]


def healthy(job: Job) -> None:
    job.steps(STEPS)
    job.writer.end("stopped", 0)


def judged(folder: Path, keep: int | None, ways: dict[int, Way] | None = None) -> Diagnosis:
    """The verdict on a job in which some ranks do something else."""
    for rank in range(RANKS):
        (ways or {}).get(rank, healthy)(Job(folder, rank, keep and keep + 1000 * rank))
    return replay([folder]).diagnosis


def both(folder: Path, ways: dict[int, Way] | None = None) -> Diagnosis:
    """The verdict with a cap, which is the verdict on all of it."""
    whole, capped = judged(folder / "whole", None, ways), judged(folder / "capped", KEEP, ways)
    assert (capped.verdict, capped.events, capped.named) == (whole.verdict, whole.events, whole.named)
    assert capped.summed > capped.events / 2
    return capped


def test_what_is_summed_up_conforms_where_all_digests_are_equal(tmp_path: Path) -> None:
    found = both(tmp_path)
    assert found.verdict == "conforming"
    assert (found.events, found.matched_collectives, found.reasons) == (RANKS * STEPS * 5, STEPS * 6, ())
    assert f"({found.summed:,} of the events by digests alone)" in as_text(found)
    assert as_json(found)["summed_events"] == found.summed


def test_without_the_earlier_files_it_conforms_as_well(tmp_path: Path) -> None:
    judged(tmp_path, KEEP)
    for rank in range(RANKS):
        earlier(tmp_path / name_of(rank)).unlink()
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.events, found.reasons) == ("conforming", RANKS * STEPS * 5, ())


def test_both_files_of_a_rank_are_read_from_an_archive(tmp_path: Path) -> None:
    found = judged(tmp_path / "traces", KEEP)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "traces", "traces")
    packed = replay([tmp_path / "all.tar"]).diagnosis
    assert (packed.verdict, packed.events, packed.summed) == (found.verdict, found.events, found.summed)


def unlike(**facts: Any) -> Way:
    def way(job: Job) -> None:
        job.steps(5)
        job.do(job.operation("all_reduce", **({"numel": 8, "dtype": "float32", "reduce": "sum"} | facts)))
        job.steps(STEPS)
        job.writer.end("stopped", 0)

    return way


@pytest.mark.parametrize("facts", [{"numel": 9}, {"dtype": "int64"}])
def test_an_operation_of_long_ago_that_was_not_alike_is_found(tmp_path: Path, facts: dict[str, Any]) -> None:
    found = both(tmp_path, {0: unlike(), 1: unlike(**facts), 2: unlike()})
    assert found.verdict == "divergent"
    assert found.suspects == (1,)
    assert found.divergence is not None
    assert "digests differ" in found.divergence.why


def test_reductions_that_are_not_known_to_be_alike_are_no_all_clear(tmp_path: Path) -> None:
    """One way into torch.distributed tells them, another does not."""
    found = judged(tmp_path, KEEP, {0: unlike(), 1: unlike(reduce=None), 2: unlike()})
    assert found.verdict == "unknown"
    assert "not that their reductions were alike" in found.reasons[0]


def test_who_left_one_out_long_ago_is_found(tmp_path: Path) -> None:
    """From there on all that it issued met what the others had issued one later; so it waits at the end."""

    def short(job: Job) -> None:
        job.steps(3)
        job.do(job.exchange)
        job.steps(STEPS)
        job.writer.end("stopped", 0)

    def longer(job: Job) -> None:
        job.steps(3)
        for operation in (job.exchange, job.reduce):
            job.do(operation)
        job.steps(STEPS)

    found = judged(tmp_path, KEEP, {0: longer, 1: short, 2: longer})
    assert found.verdict == "divergent"
    assert 1 in found.named


def test_a_send_of_long_ago_that_was_not_alike_is_found(tmp_path: Path) -> None:
    def other(job: Job) -> None:
        job.steps(3)
        job.do(job.operation("send", peer=2, tag=4, dtype="int64", numel=2, asynchronous=True))
        job.steps(STEPS)
        job.writer.end("stopped", 0)

    def receiver(job: Job) -> None:
        job.steps(3)
        job.do(job.recv)
        job.steps(STEPS)
        job.writer.end("stopped", 0)

    found = judged(tmp_path, KEEP, {1: other, 2: receiver})
    assert found.verdict == "divergent"
    assert found.divergence is not None
    assert "sends from rank1 to rank2" in found.divergence.state


def test_a_rank_that_did_not_come_so_far_is_no_all_clear(tmp_path: Path) -> None:
    def early(job: Job) -> None:
        job.steps(5)

    found = judged(tmp_path, KEEP, {1: early})
    assert found.verdict != "conforming"
    assert any("rank1 cannot be held against it" in reason for reason in found.reasons)


def test_a_loss_before_the_cut_is_no_all_clear(tmp_path: Path) -> None:
    def lossy(job: Job) -> None:
        job.steps(5)
        job.writer._cut(0)
        healthy(job)

    found = judged(tmp_path, KEEP, {1: lossy})
    assert found.verdict == "unknown"
    assert any("could not be written" in reason for reason in found.reasons)


def test_what_was_never_left_is_no_all_clear(tmp_path: Path) -> None:
    def stuck(job: Job) -> None:
        job.steps(5)
        job.reduce.begin(job.step)
        healthy(job)

    def others(job: Job) -> None:
        job.steps(5)
        job.do(job.reduce)
        healthy(job)

    found = judged(tmp_path, KEEP, {0: others, 1: stuck, 2: others})
    assert found.verdict == "unknown"
    assert "issued long before, was not left" in found.reasons[0]


def test_a_missing_rank_is_no_all_clear(tmp_path: Path) -> None:
    judged(tmp_path, KEEP)
    for file in tmp_path.glob("rank2.*"):
        file.unlink()
    assert replay([tmp_path]).diagnosis.verdict == "unknown"


def test_whoever_is_one_ahead_since_long_is_found(tmp_path: Path) -> None:
    def way(extra: bool) -> Way:
        def run(job: Job) -> None:
            job.writer.group(Group("1", tuple(range(RANKS)), "gloo"))
            side = job.writer.operation(
                RepeatedOperation(0, "barrier", "1", thread="side"), numbers := count(1), _never
            )
            job.do(side)
            if extra:
                side.begin(job.step)
            job.steps(STEPS)
            assert next(numbers) == 2 + extra
            if not extra:
                job.writer.end("stopped", 0)

        return run

    found = both(tmp_path, {0: way(False), 1: way(True), 2: way(False)})
    assert found.verdict == "divergent"
    assert found.culprits == (1,)


def test_the_page_takes_it(tmp_path: Path) -> None:
    judged(tmp_path / "traces", KEEP)
    run = replay([tmp_path / "traces"])
    drawable = run.drawable
    assert drawable is not None
    write(tmp_path / "page.html", story_of(drawable, run.diagnosis))
    assert (tmp_path / "page.html").stat().st_size
