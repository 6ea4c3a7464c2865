"""Each reader on damaged files, by seed: read and judged, or refused in one line. `make fuzz-readers` goes on.

Below are inputs that the fuzzer found, each with what was wrong.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from fuzz_readers import MIXED, TARGETS, as_bytes, seeds_of, share, try_out
from reader_seeds import FILES, archives, zipped

SHARE = 30
"""Inputs of each reader."""


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_judged_or_refused(target: str, tmp_path: Path) -> None:
    found = share(target, 0, SHARE, tmp_path)
    assert sum(found.values()) == SHARE
    assert len(found) > 1  # not all of them are refused


@pytest.mark.parametrize("target", TARGETS)
def test_whole_files_of_each_kind_are_read(target: str, tmp_path: Path) -> None:
    """The control: what the fuzzer begins with gets past the reader's door."""
    assert {try_out(target, seed, tmp_path) for seed in seeds_of(target)} - {"refused"}


REPORT = b"\t - Snapshot of ranks' latest states:\n\t   #7 started ranks:\n\t     [%s] started X\n"
FORMER = {"pg_id": 0, "seq_id": 1, "profiling_name": "nccl:all_reduce", "state": "completed"}
FORMER |= {"input_sizes": [[4]], "output_sizes": [[4]], "time_created_us": 1}
DUMP = FILES["flight-recorder-json"][1]
FOUND: dict[str, tuple[str, bytes]] = {
    # a rank of billions made a job of as many, whose graph took minutes
    "absurd rank": ("torch-reports", REPORT % b"0, 1, 4294967296"),
    "absurd rank in a prefix": ("watchdog", FILES["watchdog"][1][5].replace(b"[rank1]:", b"[rank9999999]:")),
    # Python's reader of archives has errors of its own kind, where a directory points before its file
    "a directory before its archive": ("archive", zipped({"a": b"x"})[:4] + bytes(40) + zipped({"a": b"x"})[-22:]),
    "a file that is not as the archive says": ("archive", archives()[1].replace(b"rank", b"RANK", 1)),
    # the groups of the first versions were looked up by what may be no number
    "a group that is a list": ("flight-recorder-pickle", pickle.dumps([FORMER | {"pg_id": [1]}], 2)),
    "a group's name of thousands of digits": (
        "flight-recorder-json",
        DUMP[2].replace(b'"1": {', b'"%s": {' % (b"9" * 5000)),
    ),
    # whose numbers run over all groups was asked for its name
    "an operation without a name": ("flight-recorder-json", DUMP[3].replace(b'"profiling_name"', b'"name"', 1)),
    # Python reads no number of thousands of digits, and says so in another way than of other malformed JSON
    "a number of thousands of digits": (
        "flight-recorder-json",
        DUMP[0].replace(b": 1,", b": %s," % (b"9" * 5000), 1) + b"]",
    ),
    # sizes whose product grows for minutes
    "a size of many dimensions": (
        "flight-recorder-json",
        DUMP[0].replace(b"[[4]]", b"[[%s1]]" % (b"999999999, " * 9000)),
    ),
    "a size of many dimensions, profiled": (
        "kineto",
        FILES["kineto"][1][1].replace(b"[[4]]", b"[[%s1]]" % (b"99999999, " * 9000)),
    ),
    # nothing was named, and the first of nothing was looked at
    "a profile without names": ("kineto", FILES["kineto"][1][0].replace(b'"Collective name"', b'"x"')),
    # a message repeated all that it complained about
    "a text of thousands": ("own", FILES["own"][1][0].replace(b'"index":1', b'"%s":1' % (b"x" * 5000))),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzzer_found(what: str, tmp_path: Path) -> None:
    target, data = FOUND[what]
    try_out(target, data, tmp_path)


def test_a_folder_is_one_input(tmp_path: Path) -> None:
    assert try_out(MIXED, as_bytes({"rank1.trace.jsonl": FILES["own"][1][0]}), tmp_path) == "unknown"
