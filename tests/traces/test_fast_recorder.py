"""What writes of operations that come again and again: the native part and the Python that it stands for are one."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from genlock.traces import recorder
from genlock.traces.format import Dropped, Group, RepeatedOperation, name_of, read
from genlock.traces.outcome import Code, Outcome
from genlock.traces.recorder import OperationRecorder, Recorder
from hypothesis import given
from hypothesis import strategies as st
from simulated import header

NATIVE = recorder.FastOperationRecorder
needs_native = pytest.mark.skipif(
    NATIVE is None, reason="traces/_fast_recorder.c was not built: it takes a C compiler and Python's headers"
)


@pytest.fixture(params=[pytest.param(True, marks=needs_native, id="native"), pytest.param(False, id="python")])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either part writes."""
    if not request.param:
        monkeypatch.setattr(recorder, "FastOperationRecorder", None)


def barrier(
    writer: Recorder, sequence: Iterator[int], failed: Callable[[Exception], None], group: str = "%d"
) -> OperationRecorder:
    return writer.operation(RepeatedOperation(0, "barrier", group, asynchronous=True), sequence, failed)


def never(error: Exception) -> None:
    raise error


def test_the_native_part_is_built_where_it_can_be() -> None:
    if shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no compiler, or no headers of Python")
    assert NATIVE is not None


@needs_native
@given(
    first=st.sampled_from([1, 9, 10, 2**61]) | st.integers(1, 2**61),
    times=st.lists(st.integers(0, 2**62), max_size=6),
    name=st.text('ab%d\0\\"é', max_size=6),
    outcome=st.none() | st.text(max_size=4),
)
def test_both_write_the_same(
    tmp_path_factory: pytest.TempPathFactory, first: int, times: list[int], name: str, outcome: str | None
) -> None:
    written = []
    for part in (NATIVE, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recorder, "FastOperationRecorder", part)
            writer = Recorder(tmp_path_factory.mktemp("traces"), header(0))
            operation = barrier(writer, count(first), never, name)
            writer.group(Group("first", (0,)))
            begun = [operation.begin(time_ns) for time_ns in times]
            writer.group(Group("then", (0,)))
            for each, time_ns in zip(begun, times, strict=True):
                operation.wait(each, time_ns)
            for each, time_ns in zip(reversed(begun), times, strict=True):
                operation.end(each, time_ns, None if outcome is None else Outcome(Code.BACKEND, text=outcome))
            writer.close()
        written.append(writer.path.read_bytes())
    assert written[0] == written[1]
    assert [e.time_ns for e in read(writer.path).events] == times * 3


@contextmanager
def room(left: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize("half", [0, 8])
def test_a_full_disk_is_told_and_blocks_nobody(tmp_path: Path, half: int) -> None:
    """Nothing fits any more, or half a line; then there is room again. The last events give their room to a mark."""
    writer = Recorder(tmp_path, header(0))
    operation = barrier(writer, count(1), never)
    for _ in range(2):
        operation.end(operation.begin(0), 0)
    operation.begin(0)
    operation.begin(0)
    kept = operation.begin(1)
    with room(writer.path.stat().st_size + half):
        operation.end(kept, 2)
        lost = operation.begin(3)
    operation.end(lost, 4)
    trace = read(writer.path)
    told = [0] * 4 + ([Dropped(4, 4), Dropped(8, 1), 4] if half == 0 else [Dropped(4, 4), 3, 4])
    assert [getattr(line, "time_ns", line) for line in trace.lines] == told
    assert [e.entered for e in trace.events][-1] == 8
    assert not trace.cut


@pytest.mark.usefixtures("part")
def test_what_goes_wrong_is_told_and_does_not_reach_the_program(tmp_path: Path) -> None:
    writer = Recorder(tmp_path, header(0))
    errors: list[Exception] = []
    operation = barrier(writer, iter([1]), errors.append)
    operation.end(operation.begin(5), 6)
    assert not errors
    assert operation.begin(7) is None
    operation.end(None, 8)
    assert len(errors) == 1
    operation.end((1,), 9)  # type: ignore[arg-type]
    assert len(errors) == 2
    assert [e.time_ns for e in read(writer.path).events] == [5, 6]


@needs_native
def test_what_cannot_be_a_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Recorder(tmp_path, header(0))
    monkeypatch.setattr(recorder, "blank", lambda line: b"%d of %d")
    with pytest.raises(ValueError, match="3 numbers"):
        barrier(writer, count(1), never)


@pytest.mark.usefixtures("part")
def test_threads_take_turns(tmp_path: Path) -> None:
    writer, rounds = Recorder(tmp_path, header(0)), 300
    sequence = count(1)

    def issue() -> None:
        operation = barrier(writer, sequence, never)
        for _ in range(rounds):
            operation.end(operation.begin(0), 1)

    threads = [threading.Thread(target=issue) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        writer.event("other", "step", "S", "s")
    for thread in threads:
        thread.join()
    events = [*read(writer.path).events]
    assert [e.index for e in events] == list(range(9 * rounds))
    assert [e.sequence for e in events if e.edge == "enter"] == list(range(1, 4 * rounds + 1))
    issued = {e.index: e.sequence for e in events if e.edge == "enter"}
    assert {e.entered: e.sequence for e in events if e.edge == "exit" and e.entered is not None} == issued


@pytest.mark.usefixtures("part")
def test_a_child_forked_while_another_thread_writes_waits_for_nothing(tmp_path: Path) -> None:
    writer = Recorder(tmp_path, header(0))
    operation = barrier(writer, count(1), never)
    begun = operation.begin(1)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with writer._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        operation.end(begun, 2)
        operation.begin(3)
        os._exit(0)
    over.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    operation.end(begun, 4)
    assert [e.time_ns for e in read(tmp_path / name_of(0)).events] == [1, 4]
