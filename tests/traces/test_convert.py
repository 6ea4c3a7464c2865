"""The command that converts traces of format 1: nothing is lost, nothing is read out of a text, nothing overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from genlock.errors import UsageError
from genlock.traces.convert import convert, main
from genlock.traces.format import Event, find, read
from genlock.traces.outcome import Code
from repository import CORPUS, SUPPORT

FORMER = SUPPORT / "format1"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genlock.traces.convert", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_converts_a_folder_of_runs(tmp_path: Path) -> None:
    done = run(FORMER, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("11 traces converted to format 3, 0 copied, in ")
    assert "outcomes are text alone" in done.stdout
    for path in find(FORMER):
        before, after = read(path), read(tmp_path / path.relative_to(FORMER))
        assert (before.header.format, after.header.format) == (1, 3)
        assert (after.lines, after.groups, after.sites) == (before.lines, before.groups, before.sites)


def test_a_cut_line_stays_cut_and_a_place_is_announced_before_its_first_use(tmp_path: Path) -> None:
    whole = (FORMER / "OM-06" / "rank1.trace.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    odd = json.loads(lines[5]) | {"site": "job.py:3"}
    path = tmp_path / "rank1.trace.jsonl"
    path.write_bytes(b"".join([*lines[:5], json.dumps(odd).encode() + b"\n", *lines[6:-1], lines[-1][:20]]))
    [told] = convert([path], tmp_path / "out")
    assert (told.copied, told.untyped) == (False, 1)
    after = read(told.path)
    assert after.cut
    [event] = [e for e in after.events if e.site is not None]
    assert after.place(event) == "job.py:3"
    kinds = [json.loads(line)["kind"] for line in told.path.read_bytes().splitlines()[:-1]]
    assert kinds[5:7] == ["site", "event"]


def test_format_2_needs_a_new_header_alone_and_format_3_nothing(tmp_path: Path) -> None:
    [path, *_] = find(CORPUS / "broken" / "OM-06")
    [told] = convert([path], tmp_path)
    assert not told.copied
    assert told.path.read_bytes() == path.read_bytes().replace(b'"format":2', b'"format":3', 1)
    path = told.path
    [told] = convert([path], tmp_path / "again")
    assert told.copied
    assert told.path.read_bytes() == path.read_bytes()


def test_nothing_is_overwritten_and_nothing_written_where_one_file_is_bad(tmp_path: Path) -> None:
    convert([FORMER / "OM-06"], tmp_path)
    with pytest.raises(UsageError, match="there is a file already"):
        convert([FORMER / "OM-06"], tmp_path)
    bad = tmp_path / "bad"
    bad.mkdir()
    good = (FORMER / "OM-06" / "rank0.trace.jsonl").read_bytes()
    (bad / "rank0.trace.jsonl").write_bytes(good)
    (bad / "rank1.trace.jsonl").write_bytes(good[:2000].rpartition(b"\n")[0] + b"\nnot a line\n")
    assert main([str(bad), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_two_folders_into_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two traces would go to one place"):
        convert([FORMER / "OM-06", FORMER / "OM-05"], tmp_path)


def test_what_was_text_alone_is_untyped(tmp_path: Path) -> None:
    convert([FORMER / "OM-05"], tmp_path)
    outcomes = [e.outcome for path in find(tmp_path) for e in read(path).events if isinstance(e, Event) and e.outcome]
    assert {outcome.code for outcome in outcomes} == {Code.UNTYPED}
    assert all(outcome.text and not outcome.ranks and not outcome.differences for outcome in outcomes)
