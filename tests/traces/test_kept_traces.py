"""A recorder that keeps so many bytes: what is left can be read, and sums up what was before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from genlock.traces import format as lines
from genlock.traces import recorder
from genlock.traces.collectives import Interned
from genlock.traces.format import Group, RepeatedOperation, name_of, read
from genlock.traces.importers.genlock_programs import Reader
from genlock.traces.recorder import Recorder
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


def program_header(rank: int = 0) -> lines.TraceHeader:
    return lines.msgspec.structs.replace(header(rank), protocol="", tables="", groups={}, world=2)


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
