"""Damaged evidence is no evidence: what a file says is taken whole or refused, whichever way it is read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from genlock.conformance import replay as road
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.errors import Exit, GenlockError, UnreadableInput
from genlock.traces import identical_ranks
from genlock.traces.collectives import Interned
from genlock.traces.format import LARGEST, End, name_of, opening, read
from genlock.traces.format import lines_of as file_lines
from genlock.traces.identical_ranks import fingerprints, read_identical
from genlock.traces.importers.genlock_programs import ProgramRank, Reader
from program_traces import RANKS, lines_of, operations, pipeline, write

Lines = list[bytes]
ENTER, EXIT = 4, 5
"""Places in the file of a rank: the header, a site, then an enter and an exit for each operation."""


def put(at: int, old: bytes, new: bytes) -> Callable[[Lines], Lines]:
    def change(lines: Lines) -> Lines:
        assert old in lines[at]
        return [line.replace(old, new) if line is lines[at] else line for line in lines]

    return change


DAMAGE: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "without its number": (put(ENTER, b'"sequence":2,', b""), "line 5: its group or its sequence number"),
    "number negative": (put(ENTER, b'"sequence":2', b'"sequence":-2'), "line 5: not a line"),
    "number zero": (put(ENTER, b'"sequence":2', b'"sequence":0'), "line 5: its group or its sequence number"),
    "number a fraction": (put(ENTER, b'"sequence":2', b'"sequence":2.0'), "line 5: not a line"),
    "number a text": (put(ENTER, b'"sequence":2', b'"sequence":"2"'), "line 5: not a line"),
    "number true": (put(ENTER, b'"sequence":2', b'"sequence":true'), "line 5: not a line"),
    "number NaN": (put(ENTER, b'"sequence":2', b'"sequence":NaN'), "line 5: not a line"),
    "number twice": (put(ENTER, b'"sequence":2', b'"sequence":9,"sequence":2'), "line 5: .*twice"),
    "index twice": (put(ENTER, b'"sequence":2', b'"sequence":2,"index":9'), "line 5: .*twice"),
    "size absurd": (put(ENTER, b'"numel":8', b'"numel":%d' % 10**30), "line 5: not a line"),
    "size of thousands of digits": (put(ENTER, b'"numel":8', b'"numel":' + b"9" * 9000), "line 5: not a line"),
    "size negative": (put(ENTER, b'"numel":8', b'"numel":-1'), "line 5: not a line"),
    "without its operation": (put(ENTER, b'"op":"all_reduce",', b""), "line 5: neither the beginning nor"),
    "a field misspelt": (put(ENTER, b'"op"', b'"oq"'), "line 5: .*unknown field"),
    "an outcome misspelt": (put(EXIT, b'"entered"', b'"outc0me":{"code":"backend_failed"},"entered"'), "line 6: "),
    "an enter that waits": (put(ENTER, b'"enter"', b'"wait"'), "line 5: nothing says which"),
    "an enter that steps": (put(ENTER, b'"enter"', b'"step"'), "line 5: neither the beginning nor"),
    "an enter that is an exit": (put(ENTER, b'"enter"', b'"exit"'), "line 5: nothing says which"),
    "a move": (put(ENTER, b'"transition":""', b'"transition":"x"'), "line 5: a move of a protocol"),
    "a root out of the job": (put(ENTER, b'"numel":8', b'"numel":8,"root":3'), "line 5: it names a rank"),
    "an exit of nothing": (put(EXIT, b',"entered":2', b""), "line 6: nothing says which"),
    "an exit of a later one": (put(EXIT, b'"entered":2', b'"entered":4'), "line 6: event 3 ends no"),
    "an exit of an exit": (put(EXIT, b'"entered":2', b'"entered":1'), "line 6: event 3 ends no"),
    "an exit of an ended one": (put(EXIT, b'"entered":2', b'"entered":0'), "line 6: event 3 ends no"),
    "an exit of another kind": (put(EXIT, b"all_reduce", b"all_gather"), "line 6: event 3 ends no"),
    "a line less": (lambda lines: lines[:ENTER] + lines[EXIT:], "line 5: event 2 is missing"),
    "an operation less": (lambda lines: lines[:ENTER] + lines[EXIT + 1 :], "line 5: event 2 is missing"),
    "a line twice": (lambda lines: lines[:EXIT] + lines[ENTER:], "line 6: event 2 is out of its order"),
    "lines in another order": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "line 5: event 2"),
    "a site too late": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2: nothing says where"),
    "an end in the middle": (lambda lines: [*lines[:6], lines[-1], *lines[6:-1]], "line 8: a line behind the end"),
    "two ends": (lambda lines: [*lines, lines[-1]], "line 12: a line behind the end"),
    "two lines as one": (lambda lines: [*lines[:4], lines[4][:-1] + lines[5], *lines[6:]], "line 5: not a line"),
    "half a line": (lambda lines: [*lines[:4], lines[4][:50], *lines[5:]], "line 5: not a line"),
    "an empty line": (lambda lines: [*lines[:4], b"\n", *lines[4:]], "line 5: not a line"),
    "zeros": (lambda lines: [*lines[:4], bytes(len(lines[4]) - 1) + b"\n", *lines[5:]], "line 5: not a line"),
    "no UTF-8": (put(ENTER, b"all_reduce", b"all_\xffeduce"), "line 5: not a line"),
    "half a surrogate": (put(ENTER, b"all_reduce", b"all_\\ud800"), "line 5: not a line"),
    "a long line": (put(ENTER, b"all_reduce", b"a" * (1 << 20)), "line 5: line is longer"),
    "nested deep": (put(ENTER, b'"numel":8', b'"data":' + b"[" * 100_000), "line 5: not a line"),
    "a loss of nothing": (
        lambda lines: [*lines[:-1], b'{"kind":"dropped","index":8,"count":0}\n', lines[-1]],
        "line 11: not a line",
    ),
    "an end that is absurd": (put(-1, b'"index":8', b'"index":%d' % 10**30), "line 11: not a line"),
    "members beyond the job": (put(0, b"[0,1,2]", b"[0,1,7]"), "line 1: the members of group"),
}


def spoil(folder: Path, change: Callable[[Lines], Lines], *ranks: int) -> None:
    """Write a healthy run, and damage these ranks' files."""
    write(folder, dict.fromkeys(range(RANKS), operations(4)))
    for rank in ranks:
        path = folder / name_of(rank)
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_line_is_refused_by_its_number(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all ranks alike, so that nothing else would tell; also at a glance, and when it is met once more."""
    change, said = DAMAGE[what]
    spoil(tmp_path, change, *range(RANKS))
    for large in (1 << 40, 0):
        monkeypatch.setattr(road, "LARGE", large)
        with pytest.raises(UnreadableInput, match=said):
            replay([tmp_path])


def test_the_same_run_undamaged_conforms(tmp_path: Path) -> None:
    spoil(tmp_path, lambda lines: lines, *range(RANKS))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 4)


# ── any damage, by chance ───────────────────────────────────────────────────────────────────────────────

BYTES = (b"", b"\0", b"\n", b"\r", b"\xff", b'"', b",", b"{", b"}", b"-", b"0", b"9", b"1e9", b"NaN", b"true", b"null")
NUMBERS = (b"-1", b"0", b"1", b"1.0", b"true", b"null", b'"1"', b"%d" % LARGEST, b"%d" % (LARGEST + 1), b"9" * 40)


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Change one thing in the bytes of a file."""
    kind = chance.randrange(7)
    at = chance.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + chance.choice(BYTES) + data[at + chance.randrange(3) :]
    if kind == 2:
        found = chance.choice(list(re.finditer(rb"(?<=:)-?\d+", data)))
        return data[: found.start()] + chance.choice(NUMBERS) + data[found.end() :]
    lines = data.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    if kind == 3:
        del lines[one]
    elif kind == 4:
        lines.insert(other, lines[one])
    elif kind == 5:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        field = re.search(rb',"\w+":(?:"[^"]*"|[^,}]*)', lines[one][at % len(lines[one]) :])
        lines[one] = lines[one] if field is None else lines[one].replace(field[0], chance.choice([b"", field[0] * 2]))
    return b"".join(lines)


def both_ways(path: Path) -> tuple[ProgramRank | str, ProgramRank | str | None]:
    """Read a file line by line and in blocks; None where the second has no answer."""
    found: list[Any] = []
    for quick in (False, True):
        reader = Reader(Interned())
        way = "quickly" if not quick else "line_by_line"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Reader, way, lambda *given: None)
            try:
                found.append(reader.rank(path))
            except (UnreadableInput, AttributeError) as error:
                found.append(None if isinstance(error, AttributeError) else str(error))
    return found[0], found[1]


def test_the_quick_way_answers_only_what_the_plain_one_does(tmp_path: Path) -> None:
    write(tmp_path, lines_of(pipeline(2)))
    whole = (tmp_path / name_of(1)).read_bytes()
    chance, path = random.Random(5), tmp_path / name_of(1)
    same = refused = 0
    for _ in range(400):
        data = damaged(chance, whole)
        if chance.random() < 0.2:
            data = damaged(chance, data)
        path.write_bytes(data)
        plain, quick = both_ways(path)
        if isinstance(plain, str):
            assert quick is None or quick == plain
            refused += 1
        elif quick is not None:
            assert not isinstance(quick, str)
            assert (quick.header, quick.record.ended) == (plain.header, plain.record.ended)
            assert np.array_equal(quick.record.ops, plain.record.ops)
            same += 1
    assert min(same, refused) > 20


def test_what_conforms_is_what_was_there(tmp_path: Path) -> None:
    """One thing is changed, in every rank alike, so that ranks do not contradict each other."""
    verdicts, refusals = set(), set()
    for seed in range(100):
        write(tmp_path, dict.fromkeys(range(RANKS), operations(3)))
        for rank in range(RANKS):
            path = tmp_path / name_of(rank)
            path.write_bytes(damaged(random.Random(seed), path.read_bytes()))
        found: Diagnosis | None = None
        try:
            found = replay([tmp_path]).diagnosis
        except GenlockError as error:
            refusals.add(error.exit)
        verdicts.add(None if found is None else found.verdict)
        if found is not None and found.verdict == "conforming":
            assert (found.events, found.matched_collectives) == (9, 3), seed
    assert {None, "conforming", "unknown"} <= verdicts
    assert refusals == {Exit.USAGE}


# ── ranks that wrote the same ───────────────────────────────────────────────────────────────────────────


STRANGE = {
    "a time that is none": (b'"time_ns":5', b"\0"),
    "zeros before a time": (b'"time_ns":5', b'"time_ns":005'),
    "a time that is absurd": (b'"time_ns":5', b'"time_ns":' + b"9" * 30),
    "half a time": (b'"time_ns":5', b'"time_ns":5.'),
    "an address outside of a text": (b"}\n", b"}10.0.0.1:99\n"),
}
"""Damage of one rank that leaves nothing but what is a time, or looks like an address."""


@pytest.mark.parametrize("what", STRANGE)
def test_of_ranks_that_wrote_the_same_a_damaged_one_is_read(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = STRANGE[what]
    lines = operations(3)
    end = End(len(lines), 0, "exception", 1, "Connection closed by peer 10.0.0.7:1234")
    write(tmp_path, dict.fromkeys(range(RANKS), lines), rank0=end, rank1=end, rank2=end)
    path = tmp_path / name_of(2)
    assert old in path.read_bytes()
    head, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(head + b"\n" + rest.replace(old, new, 1))
    monkeypatch.setattr(identical_ranks, "FEW", 1)
    headers = {p: opening(p, file_lines(p)) for p in sorted(tmp_path.iterdir())}
    with pytest.raises(UnreadableInput):
        read(path)
    with pytest.raises(UnreadableInput):
        read_identical(headers, lambda paths: [fingerprints(paths)])
