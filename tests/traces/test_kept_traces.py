"""A recorder that keeps so many bytes: what is left can be read, and sums up what was before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from genlock.errors import UnreadableInput
from genlock.traces import recorder
from genlock.traces.collectives import Interned, Status
from genlock.traces.format import Group, Making, RepeatedOperation, TraceHeader, earlier, name_of, read
from genlock.traces.importers.genlock_programs import Reader
from genlock.traces.outcome import Code, Outcome
from genlock.traces.recorder import Recorder
from msgspec.structs import replace
from simulated import header

NATIVE = recorder.FastOperationRecorder
PARTS = [
    pytest.param(True, marks=pytest.mark.skipif(NATIVE is None, reason="not built"), id="native"),
    pytest.param(False, id="python"),
]
KEEP = 1 << 14


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either part writes."""
    if not request.param:
        monkeypatch.setattr(recorder, "FastOperationRecorder", None)


def never(error: Exception) -> None:
    raise error


def program_header(rank: int = 0) -> TraceHeader:
    return replace(header(rank), protocol="", tables="", groups={}, world=2)


def write(folder: Path, operations: int, rank: int = 0, keep: int = KEEP) -> Recorder:
    writer = Recorder(folder, program_header(rank), keep)
    writer.group(Group("0", (0, 1)))
    numbers: Iterator[int] = count(1)
    sites = [writer.stack([("lib.py:1", "f"), (f"train.py:{line}", "g")]) for line in range(3)]
    each = [
        writer.operation(
            RepeatedOperation(0, "all_reduce", "0", numel=4 + n, dtype="float32", site=site), numbers, never
        )
        for n, site in enumerate(sites)
    ]
    for number in range(operations):
        operation = each[number % 3]
        begun = operation.begin(number)
        if number % 5 == 0:
            operation.wait(begun, number)
        operation.end(begun, number)
    return writer


@pytest.mark.usefixtures("part")
def test_it_is_bounded_and_can_be_read(tmp_path: Path) -> None:
    writer = write(tmp_path, 2000)
    writer.end("stopped", 0)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert {file.name for file in tmp_path.iterdir()} == {"rank0.trace.jsonl", "rank0.earlier.jsonl"}
    assert KEEP // 2 < size <= KEEP + 2048
    trace = read(tmp_path / name_of(0))
    assert trace.history is not None
    enters = [event for event in trace.events if event.edge == "enter"]
    assert [event.sequence for event in enters] == list(range(2001 - len(enters), 2001))
    assert {trace.place(event) for event in enters} == {f"train.py:{line}" for line in range(3)}
    record = Reader(Interned()).rank(tmp_path / name_of(0)).record
    assert record.lost
    assert record.ops["sequence"].tolist() == list(range(2001 - len(record.ops), 2001))
    assert record.summed is not None
    assert record.summed.operations == 2000 - len(record.ops)
    assert record.issued == {0: trace.history.operations}


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize("made", [True, False])
def test_groups_in_the_making_stand_in_each_part(made: bool, tmp_path: Path) -> None:
    """Calls of `new_group` are compared by their positions, so that none may be lost."""
    writer = write(tmp_path, 10)
    site = writer.stack([("train.py:9", "main")])
    for number in (1, 2):
        writer.making(Making(number, 5, "new_group", (0, 1)[:number], site=site))
        if made or number == 1:
            writer.made(Group(str(number), (0, 1)[:number], number=number, known_by="all"))
    more = writer.operation(RepeatedOperation(0, "all_reduce", "0", numel=9, dtype="float32"), count(11), never)
    for index in range(10, 2000):
        more.end(more.begin(index), index)
    record = Reader(Interned()).rank(tmp_path / name_of(0)).record
    assert record.lost
    assert [(m.number, m.members, m.by_all, m.place, m.done) for m in record.makings] == [
        (1, (0,), True, "train.py:9", True),
        (2, (0, 1), True, "train.py:9", made),
    ]


@pytest.mark.usefixtures("clock")
@pytest.mark.skipif(NATIVE is None, reason="not built")
def test_both_parts_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(recorder, "FastOperationRecorder", None)
        folder = tmp_path / str(native)
        write(folder, 1500).end("stopped", 0)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] == written[1]
    assert b'"history"' in written[0]["rank0.earlier.jsonl"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        monotonic_ns = staticmethod(lambda: 7)

    monkeypatch.setattr(recorder, "time", Time)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("call", ["open", "write", "link", "replace", "replace again", "close"])
def test_a_rank_that_is_killed_while_it_begins_a_file_leaves_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(recorder, "FastOperationRecorder", None)
    writer = write(tmp_path, 700)
    numbers = count(701)
    operation = writer.operation(RepeatedOperation(0, "all_reduce", "0", numel=4, dtype="float32"), numbers, never)
    name, _, again = call.partition(" ")
    calls = count()

    def killed(*_: object) -> None:
        raise Killed

    def once_more(*given: Any) -> None:
        killed() if next(calls) else replaced(*given)

    replaced = recorder.os.replace  # type: ignore[attr-defined]
    begin_file = Recorder._begin_file

    def begun(self: Recorder, past: Any) -> None:
        with monkeypatch.context() as patch:
            if name == "write":
                patch.setattr(recorder, "_put", killed)
            else:
                patch.setattr(recorder.os, name, once_more if again else killed)  # type: ignore[attr-defined]
            begin_file(self, past)

    monkeypatch.setattr(Recorder, "_begin_file", begun)

    def go_on() -> None:
        for time_ns in range(2000):
            operation.end(operation.begin(time_ns), time_ns)

    with pytest.raises(Killed):
        go_on()
    issued = next(numbers) - 1
    trace = read(tmp_path / name_of(0))
    assert not trace.cut
    record = Reader(Interned()).rank(tmp_path / name_of(0)).record
    assert record.summed is not None
    assert record.ops["sequence"][-1] in (issued, issued - 1)
    assert record.summed.operations + len(record.ops) == record.ops["sequence"][-1]
    gone = earlier(tmp_path / name_of(0))
    gone.unlink(missing_ok=True)
    assert Reader(Interned()).rank(tmp_path / name_of(0)).record.ops["sequence"][-1] in (issued, issued - 1)


@pytest.mark.usefixtures("part")
def test_a_disk_that_takes_no_new_file_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Recorder) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_keep_earlier", full)
        writer = write(tmp_path, 300)
    assert [file.name for file in tmp_path.iterdir()] == [name_of(0)]
    assert [e.sequence for e in read(writer.path).events if e.edge == "enter"] == list(range(1, 301))
    operation = writer.operation(RepeatedOperation(0, "all_reduce", "0", numel=4), count(301), never)
    for time_ns in range(100):
        operation.end(operation.begin(time_ns), time_ns)
    assert earlier(writer.path).exists()
    record = Reader(Interned()).rank(writer.path).record
    assert record.ops["sequence"].tolist() == list(range(1, 401)), "the earlier file begins at the beginning"


@pytest.mark.usefixtures("part")
def test_what_was_not_left_at_a_cut_is_known(tmp_path: Path) -> None:
    writer = Recorder(tmp_path, program_header(), KEEP)
    writer.group(Group("0", (0, 1)))
    numbers, others = count(1), count(1)
    slow = writer.operation(RepeatedOperation(0, "all_reduce", "0", numel=1, asynchronous=True), numbers, never)
    sent = writer.operation(RepeatedOperation(0, "send", "0", numel=1, peer=1, tag=3, asynchronous=True), others, never)
    stuck, left, failed = slow.begin(1), slow.begin(2), slow.begin(3)
    slow.wait(stuck, 4)
    slow.end(failed, 5, Outcome(Code.BACKEND, text="no"))
    for time_ns in range(600):
        sent.end(sent.begin(time_ns), time_ns)
    slow.end(left, 9)
    record = Reader(Interned()).rank(tmp_path / name_of(0)).record
    trace = read(tmp_path / name_of(0))
    assert trace.history is not None
    assert trace.history.index > 600
    ops = record.ops[record.ops["peer"] < 0]
    assert ops["sequence"].tolist() == [1, 2, 3]
    assert ops["status"].tolist() == [Status.ISSUED, Status.COMPLETED, Status.UNSAID]
    assert record.summed is not None
    [(way, digest)] = record.summed.ways.items() - {((0, "", -1, 0), record.summed.ways[0, "", -1, 0])}
    assert way == (0, "send", 1, 3)
    assert digest.operations + len(record.ops) - 3 == 600


@pytest.mark.usefixtures("part")
def test_an_operation_that_is_met_again_after_a_cut_is_described_again(tmp_path: Path) -> None:
    writer = write(tmp_path, 10)
    rare = writer.operation(
        RepeatedOperation(0, "barrier", "0", site=writer.stack([("lib.py:7", "f"), ("train.py:77", "rare")])),
        others := count(1000),
        never,
    )
    often = writer.operation(RepeatedOperation(0, "send", "0", peer=1, tag=0, asynchronous=True), count(1), never)
    for time_ns in range(900):
        often.end(often.begin(time_ns), time_ns)
    rare.end(rare.begin(1), 2)
    earlier(writer.path).unlink()
    trace = read(writer.path)
    [event] = [event for event in trace.events if event.edge == "enter" and event.op == "barrier"]
    assert trace.place(event) == "train.py:77"
    assert next(others) == 1001


def test_an_earlier_file_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    writer = write(tmp_path, 700)
    trace, former = read(writer.path), earlier(writer.path)
    begins = next(trace.events).index
    lines = former.read_bytes().splitlines(keepends=True)
    for damaged in (
        lines[:-1],
        [*lines[:-1], lines[-1][:-1]],
        [lines[0].replace(b'"rank":0', b'"rank":1'), *lines[1:]],
        [],
    ):
        former.write_bytes(b"".join(damaged))
        alone = read(writer.path)
        assert alone.history is not None
        assert next(alone.events).index == alone.history.index > begins


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"kind":"history","index":', b'"kind":"history","index":1', "out of its order"),
        (b'"last":[[', b'"last":[[77', "nothing says what operation 77"),
        (b'"wire":"', b'"wire":"x', "not a summary of operations"),
    ],
)
def test_a_damaged_summary_is_refused(tmp_path: Path, old: bytes, new: bytes, what: str) -> None:
    writer = write(tmp_path, 700)
    earlier(writer.path).unlink()
    data = writer.path.read_bytes()
    assert old in data
    writer.path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(UnreadableInput, match=what):
        Reader(Interned()).rank(writer.path)
