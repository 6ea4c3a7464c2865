"""Operations that repeat are written as lists: both ways to read them say the same, and refuse the same."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from genlock.errors import UnreadableInput
from genlock.traces.collectives import Interned, RankRecord, Status
from genlock.traces.format import Event, Group, RepeatedOperation, encode, lines_of, opening, read
from genlock.traces.importers import places
from genlock.traces.importers.genlock_programs import Reader
from genlock.traces.outcome import Code, Outcome
from genlock.traces.recorder import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import header

INNER = (
    "/venv/lib/python3.11/site-packages/torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py:119",
    "all_gather",
)
CALL = ("/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py:4387", "all_gather_single")


def fail(error: Exception) -> None:
    raise error


def written(folder: Path) -> Path:
    """One rank's trace: operations that completed, one that failed, one not waited for, one that the host waits in."""
    head = header(0)
    writer = Recorder(folder, type(head)(3, "run", 0, 2, "", "gloo", "", "", {}, head.clock))
    writer.group(Group("0", (0, 1)))
    stack = writer.stack([CALL, INNER, ("/home/me/pytorch/torch/train.py:12", "step")])
    sequence = count(1)
    gather = writer.operation(
        RepeatedOperation(0, "all_gather_into_tensor", "0", dtype="float32", numel=8, asynchronous=True, site=stack),
        sequence,
        fail,
    )
    reduce = writer.operation(
        RepeatedOperation(0, "all_reduce", "0", dtype="float32", numel=4, site=stack, reduce="sum"), sequence, fail
    )
    for turn in range(3):
        begun = gather.begin(10 + turn)
        gather.wait(begun, 11 + turn)
        gather.end(begun, 12 + turn)
        reduce.end(reduce.begin(13 + turn), 14 + turn)
    reduce.end(reduce.begin(20), 21, Outcome(Code.BACKEND, text="lost"))
    gather.begin(22)
    gather.wait(gather.begin(23), 24)
    writer.close()
    return writer.path


def by_either(path: Path) -> list[RankRecord | str]:
    """What the fast way and the slow one say, or why the slow one refuses it; the fast one only says that it does."""
    found: list[RankRecord | str] = []
    for quickly in (True, False):
        interned = Interned()
        reader = Reader(interned)
        try:
            lines = lines_of(path)
            head = opening(path, lines)
            if quickly:
                from genlock.traces.importers.genlock_programs import _Shapes

                reader.shapes = _Shapes(head, interned)
                read_ = reader.quickly(path, head, reader.shapes)
                if read_ is None:
                    found.append("not for this")
                    continue
                record = reader._record(path, head, reader.shapes, read_)
            else:
                Reader.quickly, kept = lambda *given: None, Reader.quickly  # type: ignore[method-assign]
                try:
                    record = reader.rank(path).record
                finally:
                    Reader.quickly = kept  # type: ignore[method-assign]
            found.append(record)
        except UnreadableInput as error:
            found.append(str(error))
    return found


def same(one: RankRecord | str, other: RankRecord | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str)  # what the fast way does not answer for, the slow one reads
    alike = (one.rank, one.ended, one.dropped, one.listens) == (other.rank, other.ended, other.dropped, other.listens)
    return alike and bool(np.array_equal(one.ops, other.ops))


def test_both_ways_read_what_was_written(tmp_path: Path) -> None:
    quick, slow = by_either(written(tmp_path))
    assert isinstance(quick, RankRecord)
    assert same(quick, slow)
    assert quick.ops["sequence"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    done, open_, unsaid = Status.COMPLETED, Status.ISSUED, Status.UNSAID
    assert quick.ops["status"].tolist() == [*[done] * 6, open_, unsaid, open_], "in a wait, the host is in it"


def test_every_event_says_all_that_it_stands_for(tmp_path: Path) -> None:
    trace = read(written(tmp_path))
    first, wait, exit = list(trace.events)[:3]
    assert (first.op, first.sequence, first.numel, first.asynchronous) == ("all_gather_into_tensor", 1, 8, True)
    assert [(e.edge, e.entered, e.op, e.sequence) for e in (wait, exit)] == [
        ("wait", 0, "all_gather_into_tensor", 1),
        ("exit", 0, "all_gather_into_tensor", 1),
    ]
    assert trace.place(first) == "/home/me/pytorch/torch/train.py:12"


def test_the_place_is_the_programs_with_the_librarys_beside_it(tmp_path: Path) -> None:
    interned = Interned()
    Reader(interned).rank(written(tmp_path))
    [_, place] = interned.sites.values
    library = "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py:119 (all_gather)"
    assert place == f"/home/me/pytorch/torch/train.py:12, in {library}"


def test_it_takes_little(tmp_path: Path) -> None:
    """150 bytes an operation are the limit, stacks and waits included; these have numbers as after a long run."""
    path = written(tmp_path)
    lists = [line for line in path.read_bytes().splitlines() if line.startswith(b"[")]
    assert max(map(len, lists)) + len("9999999999" * 3 + "9999999999999999") < 150 / 2


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_list_is_read_alike_or_refused_by_both(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("mutated"))
    lines = path.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(1, len(lines) - 1))
    line = lines[at]
    spots = [m.span() for m in re.finditer(rb'-?\d+|enter|exit|wait|[\[\],"]|\n', line)]
    begin, end = data.draw(st.sampled_from(spots))
    new = data.draw(
        st.sampled_from(
            [b"", b"0", b"-1", b"007", b"1", b"2", b"99", b"1" * 19, b"9" * 30, b"1.0", b"null", b'"1"', b"enter"]
        )
        | st.sampled_from([b"exit", b"wait", b",", b"]", b"[", b"\n", b" "])
    )
    how = data.draw(st.sampled_from(["change", "twice", "drop", "swap"]))
    if how == "change":
        lines[at] = line[:begin] + new + line[end:]
    elif how == "twice":
        lines.insert(at, line)
    elif how == "drop":
        del lines[at]
    else:
        lines[at - 1 : at + 1] = [line, lines[at - 1]] if at > 1 else lines[at - 1 : at + 1]
    path.write_bytes(b"".join(lines))
    quick, slow = by_either(path)
    assert same(quick, slow), (how, line, new)


def test_format_2_has_no_lists(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"format":3', b'"format":2', 1))
    with pytest.raises(UnreadableInput):
        Reader(Interned()).rank(path)
    with pytest.raises(UnreadableInput):
        read(path)


def test_events_of_format_2_may_stand_between_lists(tmp_path: Path) -> None:
    path = written(tmp_path)
    index = len(list(read(path).events))
    enter = Event(index, 30, "", "enter", "", "", group="0", sequence=10, op="barrier", site=1)
    path.write_bytes(path.read_bytes() + encode(enter) + b'["exit",%d,31,%d]\n' % (index + 1, index))
    quick, slow = by_either(path)
    assert isinstance(quick, RankRecord)
    assert same(quick, slow)
    assert quick.ops["status"].tolist()[-1] == Status.COMPLETED


@pytest.mark.parametrize("spelt", [b"03", b" 3", b"3.0", b"+3"])
def test_a_number_that_is_spelt_otherwise_is_not_read_by_the_fast_way_alone(tmp_path: Path, spelt: bytes) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'["enter",3,', b'["enter",%s,' % spelt, 1))
    quick, slow = by_either(path)
    assert isinstance(quick, str)
    assert same(quick, slow)


def test_genlocks_own_calls_are_no_place_beside_the_programs() -> None:
    own = str(Path(places.__file__).parents[2] / "impl" / "recording" / "fast_path.py")
    frames = [(own, 221, "method"), (CALL[0].rpartition(":")[0], 4387, CALL[1]), ("/home/me/train.py", 12, "step")]
    assert places.place_text(*places.place_of(frames)) == "train.py:12 (step)"
