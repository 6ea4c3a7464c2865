"""The trace format and its recorder: what is written is read back, and nothing that happened is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from genlock.errors import UnreadableInput
from genlock.traces import recorder
from genlock.traces.format import (
    MAX_LINE,
    NUMBER,
    Dropped,
    End,
    Event,
    Group,
    RepeatedOperation,
    TraceHeader,
    blank,
    encode,
    find,
    name_of,
    read,
)
from genlock.traces.recorder import Recorder
from hypothesis import given
from hypothesis import strategies as st
from simulated import header

TEXT = st.text(max_size=8)
EVENTS = st.builds(
    Event,
    index=st.integers(0, 2**40),
    time_ns=st.integers(0, 2**62),
    transition=TEXT,
    edge=st.sampled_from(["step", "enter", "exit"]),
    state=TEXT,
    phase=TEXT,
    call_id=st.integers(0, 2**63 - 1),
    call=st.none() | st.integers(0, 99),
    group=st.none() | TEXT,
    data=st.none() | st.booleans() | st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1), max_size=3),
    inside=st.none() | st.fixed_dictionaries({"collectives": st.integers(0, 999)}),
)


@given(events=st.lists(EVENTS, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    path = tmp_path_factory.mktemp("traces") / name_of(1)
    end = End(99, 5, "stopped", 0)
    path.write_bytes(encode(header(1)) + b"".join(encode(e) for e in events) + encode(end))
    trace = read(path)
    assert trace.header == header(1)
    assert trace.lines == (*events, end)
    assert trace.numbers == tuple(range(2, len(events) + 3))
    assert (trace.end, trace.cut) == (end, False)


NAMES = st.text('ab%d\0\\"é', max_size=6)


@given(event=EVENTS, name=NAMES, sequence=st.integers(1, 2**40), entered=st.none() | st.integers(0, 2**40))
def test_a_line_that_is_filled_in_is_the_line_itself(
    event: Event, name: str, sequence: int, entered: int | None
) -> None:
    """Whatever stands in its texts."""
    facts: dict[str, Any] = {"group": name, "op": name, "site": name, "sequence": sequence, "entered": entered}
    event = msgspec.structs.replace(event, **facts)
    told = {"index": event.index, "time_ns": event.time_ns, "sequence": sequence, "entered": entered}
    numbers = {name: number for name, number in told.items() if number is not None}
    form = blank(msgspec.structs.replace(event, **dict.fromkeys(numbers, NUMBER)))
    assert form % tuple(numbers.values()) == encode(event)


def test_half_a_line_is_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / name_of(1)
    whole = encode(header(1)) + encode(Event(0, 1, "x", "step", "A", "a"))
    path.write_bytes(whole + encode(Event(1, 2, "y", "step", "A", "a"))[:-1])
    trace = read(path)
    assert trace.cut
    assert [e.transition for e in trace.events] == ["x"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / name_of(1)
    path.write_bytes(encode(header(1)) + b"[" * (MAX_LINE + 9) + b"\n")
    with pytest.raises(UnreadableInput, match="longer than"):
        read(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / name_of(1)
    path.write_bytes(encode(header(1)) + b'{"kind":"event","data":' + b"[" * 100_000 + b"\n")
    with pytest.raises(UnreadableInput, match="line 2"):
        read(path)


def test_folder_without_traces_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="name the folder of a run"):
        find(tmp_path)


def test_recorder_numbers_its_events_and_keeps_the_first_end(tmp_path: Path) -> None:
    writer = Recorder(tmp_path, header(2))
    writer.event("a", "step", "S", "s", call_id=7)
    writer.event("b", "enter", "S", "s", group="control", sequence=1)
    kind = writer.operation(RepeatedOperation(0, "barrier", "g"), count(1), lambda error: None)
    begun = kind.begin(7)
    writer.end("deadline", 13, "too late")
    writer.end("stopped", 0)
    kind.end(begun, 8)
    kind.begin(9)
    writer.event("late")
    trace = read(writer.path)
    assert [line.index for line in trace.lines] == [0, 1, 2, 3]
    assert trace.lines[-1] is trace.end
    assert trace.end is not None
    assert trace.end.cause == "deadline"


def test_recorder_never_overwrites_a_trace(tmp_path: Path) -> None:
    Recorder(tmp_path, header(0))
    with pytest.raises(FileExistsError):
        Recorder(tmp_path, header(0))


def filling(monkeypatch: pytest.MonkeyPatch, *rooms: int) -> None:
    """Let each write have so many bytes, in turn, and all later ones what they want."""
    real, left = os.write, list(rooms)

    def full(file: int, data: bytes) -> int:
        if not left:
            return real(file, data)
        room = left.pop(0)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:room])

    monkeypatch.setattr(recorder, "_put", full)


@pytest.mark.parametrize(
    ("rooms", "left"),
    [
        # half a line; the mark, which takes the place of the event before; nothing; room again
        ((40, 999, 0), ["kept", Dropped(1, 2), Dropped(3, 1), "after"]),
        # the same, without room for the mark either
        ((40, 0, 0), ["kept", Dropped(1, 3), "after"]),
        ((40, 9, 0), ["kept", Dropped(1, 3), "after"]),
    ],
)
def test_full_disk_is_told_and_blocks_nobody(
    rooms: tuple[int, ...], left: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Recorder(tmp_path, header(0))
    for name in ("kept", "given up"):
        writer.event(name, "step", "S", "s")
    filling(monkeypatch, *rooms)
    for name in ("lost", "lost too", "after"):
        writer.event(name, "step", "S", "s")
    trace = read(writer.path)
    assert [getattr(line, "transition", line) for line in trace.lines] == left
    assert not trace.cut


def test_a_disk_that_stays_full_leaves_a_mark(tmp_path: Path) -> None:
    """No file may grow any more, as on a disk without room; the rank writes on, and comes to its end."""
    writer = Recorder(tmp_path, header(0))
    for name in ("kept", "given up"):
        writer.event(name, "step", "S", "s")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.path.stat().st_size + 20, hard))
    try:
        writer.event("lost", "step", "S", "s")
        writer.end("stopped", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    trace = read(writer.path)
    assert [getattr(line, "transition", line) for line in trace.lines[:2]] == ["kept", Dropped(1, 2)]
    assert trace.lines[2:] == (trace.end,)  # an end is shorter than the event that was given up for the mark


def test_forked_child_writes_nothing_with_its_parents_recorder(tmp_path: Path) -> None:
    writer = Recorder(tmp_path, header(0))
    child = os.fork()
    if child == 0:
        writer.event("child", "step", "S", "s")
        writer.end("exception", 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.event("parent", "step", "S", "s")
    assert [(e.index, e.transition) for e in read(writer.path).events] == [(0, "parent")]


def test_full_disk_at_the_start_is_told_with_the_header_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(recorder, "_put", lambda file, data: real(file, data[:9]))
    writer = Recorder(tmp_path, header(0))
    writer.group(Group("g", (0, 1)))
    writer.event("lost", "step", "S", "s")
    monkeypatch.setattr(recorder, "_put", real)
    writer.event("kept", "step", "S", "s")
    trace = read(writer.path)
    assert trace.groups["g"] == (0, 1)
    assert [getattr(line, "transition", line) for line in trace.lines] == [Dropped(0, 1), "kept"]


def test_group_with_other_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / name_of(1)
    path.write_bytes(encode(header(1)) + encode(Group("g", (0, 1))) + encode(Group("g", (0, 2))))
    with pytest.raises(UnreadableInput, match="line 3: group g had other members before"):
        read(path)


def test_sigkill_loses_nothing_that_happened(tmp_path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        import msgspec
        from genlock.traces.format import TraceHeader
        from genlock.traces.recorder import Recorder
        writer = Recorder(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=TraceHeader))
        for n in range(1000):
            writer.event(f"e{n}", "step", "S", "s")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    line = encode(header(0)).decode()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), line], check=False)
    assert done.returncode == -signal.SIGKILL
    trace = read(tmp_path / name_of(0))
    assert [e.transition for e in trace.events] == [f"e{n}" for n in range(1000)]
    assert (trace.end, trace.cut) == (None, False)


def test_header_names_what_replay_needs() -> None:
    line: dict[str, Any] = json.loads(encode(header(0)))
    assert line["kind"] == "header"
    assert {"format", "run", "rank", "world", "role", "protocol", "tables", "groups", "clock"} <= set(line)
    assert set(line) <= {"kind", *TraceHeader.__struct_fields__}
