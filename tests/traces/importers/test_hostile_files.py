"""Files that mean harm: nothing in them is executed, memory stays bounded, and each ends in one clear line."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from genlock.errors import Exit, UnreadableInput, UsageError
from genlock.traces.importers.safe_pickle import load_plain
from genlock.traces.load import load
from repository import SUPPORT

ENTRY = {
    "record_id": 0,
    "pg_id": 0,
    "process_group": ("0", "default_pg"),
    "profiling_name": "nccl:all_reduce",
    "collective_seq_id": 1,
    "p2p_seq_id": 0,
    "time_created_ns": 1,
    "state": "completed",
    "is_p2p": False,
    "input_sizes": [[4]],
    "output_sizes": [[4]],
    "input_dtypes": ["Float"],
    "output_dtypes": ["Float"],
}


class Calls:
    """Pickles into a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def dump(**changes: Any) -> dict[str, Any]:
    return {"version": "2.10", "pg_config": {}, "pg_status": {}, "entries": [ENTRY], **changes}


def with_entry(**changes: Any) -> bytes:
    return pickle.dumps(dump(entries=[{**ENTRY, **changes}]), protocol=2)


def ranks(text: object) -> bytes:
    return pickle.dumps(dump(pg_config={"0": {"name": "0", "desc": "default_pg", "ranks": text}}), protocol=2)


def archive(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


HEADER = {
    "kind": "header",
    "format": 1,
    "run": "r",
    "rank": 0,
    "world": 2,
    "role": "",
    "backend": "gloo",
    "protocol": "",
    "tables": "",
    "groups": {"g": [0, 1]},
    "clock": {"wall_ns": 1, "monotonic_ns": 1},
}
EVENT = {
    "kind": "event",
    "index": 0,
    "time_ns": 1,
    "transition": "",
    "edge": "enter",
    "state": "",
    "phase": "",
    "group": "g",
    "sequence": 1,
    "op": "all_reduce",
    "dtype": "float32",
    "numel": 4,
}


def own(*lines: dict[str, Any], **header: Any) -> tuple[str, bytes]:
    """A trace in Genlock's own format."""
    return "rank0.trace.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in (HEADER | header, *lines))


KINETO = b'{"distributedInfo":{"rank":0,"world_size":2},"traceEvents":'
P2 = b"\x80\x02"
DEEP = 1_000_000

CORPUS: dict[str, tuple[str, bytes]] = {
    # pickles that name or call something
    "global": ("trace_0", P2 + b"cos\nsystem\n(X\x02\x00\x00\x00id\x85R."),
    "stack global": ("trace_0", b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    "inst": ("trace_0", P2 + b"(X\x02\x00\x00\x00idios\nsystem\n."),
    "object": ("trace_0", P2 + b"(cos\nsystem\no."),
    "extension": ("trace_0", P2 + b"\x82\x01."),
    "persistent id": ("trace_0", P2 + b"X\x01\x00\x00\x00aQ."),
    "build": ("trace_0", P2 + b"}}b."),
    "next buffer": ("trace_0", b"\x80\x05\x97."),
    # pickles that ask for memory
    "memo bomb": ("trace_0", P2 + b"]r\xff\xff\xff\x7f."),
    "text memo bomb": ("trace_0", P2 + b"]p2147483647\n."),
    "byte array bomb": ("trace_0", b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00."),
    "long string": ("trace_0", P2 + b"X\xff\xff\xff\xffabc."),
    "long frame": ("trace_0", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f]."),
    "big number": ("trace_0", P2 + b"\x8b\xff\xff\xff\x7f."),
    "too many containers": ("trace_0", P2 + b"(" + b"]" * 6_000_000 + b"l."),
    "empty dictionaries": ("trace_0", P2 + b"](" + b"}" * 5_000_000 + b"e."),
    "too large": ("trace_0", P2 + b"(" + b"N" * (33 << 20) + b"t."),
    "deep pickle": ("trace_0", P2 + b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
    "laughs": ("trace_0", P2 + b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30)) + b"."),
    # pickles that make no sense
    "stack underflow": ("trace_0", P2 + b"aaaa."),
    "nothing on the stack": ("trace_0", P2 + b"."),
    "mark missing": ("trace_0", P2 + b"]u."),
    "unset memo": ("trace_0", P2 + b"h\x07."),
    "list as key": ("trace_0", P2 + b"}(]K\x01u."),
    "a number": ("trace_0", P2 + b"K\x01."),
    "no entries": ("trace_0", pickle.dumps({"version": "2.10"}, protocol=2)),
    "entries are a number": ("trace_0", pickle.dumps(dump(entries=7), protocol=2)),
    "entry is a number": ("trace_0", pickle.dumps(dump(entries=[7]), protocol=2)),
    "version 3": ("trace_0", pickle.dumps(dump(version="3.0"), protocol=2)),
    "version is a list": ("trace_0", pickle.dumps(dump(version=["2.10"]), protocol=2)),
    # dumps with values that somebody might evaluate, or trip over
    "ranks that eval": ("trace_0", ranks("__import__('os').mkdir('executed')")),
    "ranks too deep": ("trace_0", ranks("[" * 100_000)),
    "ranks huge": ("trace_0", ranks("[99999999999999999999]")),
    "ranks negative": ("trace_0", ranks("[-1]")),
    "ranks twice": ("trace_0", ranks("[0, 0]")),
    "ranks a number": ("trace_0", ranks(7)),
    "size that evals": ("trace_0", with_entry(input_sizes=["__import__('os')"])),
    "size negative": ("trace_0", with_entry(input_sizes=[[-4]])),
    "size huge": ("trace_0", with_entry(input_sizes=[[1 << 60, 1 << 60, 1 << 60]])),
    "sequence huge": ("trace_0", with_entry(collective_seq_id=1 << 100)),
    "sequence a text": ("trace_0", with_entry(collective_seq_id="1")),
    "sequence negative": ("trace_0", with_entry(collective_seq_id=-1)),
    "record a list": ("trace_0", with_entry(record_id=[])),
    "group a number": ("trace_0", with_entry(process_group=3)),
    "group unhashable": ("trace_0", with_entry(process_group=([], []))),
    "group id unhashable": ("trace_0", with_entry(pg_id=[])),
    "name without backend": ("trace_0", with_entry(profiling_name="all_reduce")),
    "name that evals": ("trace_0", with_entry(profiling_name="nccl:{os.system('id')}")),
    "send to nobody": ("trace_0", with_entry(profiling_name="nccl:send 0->")),
    "state unknown": ("trace_0", with_entry(state="exploded")),
    "frames a number": ("trace_0", with_entry(frames=7)),
    "frame a number": ("trace_0", with_entry(frames=[7])),
    "status a list": ("trace_0", pickle.dumps(dump(pg_status=[1]), protocol=2)),
    "no rank in the name": ("dump", pickle.dumps(dump(), protocol=2)),
    # JSON
    "deep json": ("trace_0.json", b'{"version":"2.10","entries":' + b"[" * 500_000),
    "deeper json": ("trace_0.json", b'{"entries":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "json bomb": ("trace_0.json", b'{"entries":[' + b"[]," * 3_000_000 + b"[]]}"),
    "json not utf-8": ("trace_0.json", b'{"entries": "\xff\xfe"}'),
    "json a number": ("trace_0.json", b"{1}"),
    "kineto bomb": ("p.json", KINETO + b"[" + b"{}," * 5_000_000 + b"{}]}"),
    "kineto deep": ("p.json", KINETO + b"[{" + b'"args":{' * 300_000 + b"]}"),
    "kineto rank": ("p.json", b'{"distributedInfo":{"rank":9,"world_size":2},"traceEvents":[]}'),
    "kineto no rank": ("p.json", b'{"traceEvents":[]}'),
    "kineto time": (
        "p.json",
        KINETO + b'[{"ph":"X","cat":"cpu_op","name":"a","ts":"__import__"}]}',
    ),
    # archives
    "gzip bomb": ("p.json.gz", gzip.compress(b" " * (300 << 20), compresslevel=1)),
    "gzip nonsense": ("p.json.gz", b"\x1f\x8bnonsense"),
    "tar with a bomb": ("p.tar.gz", archive("../../trace_0", P2 + b"cos\nsystem\n.")),
    "tar nonsense": ("p.tar", b"\0" * 257 + b"ustar" + b"x" * 1000),
    # Genlock's own format
    "gigabyte line": ("rank0.trace.jsonl", b'{"kind":"header","run":"' + b"x" * (64 << 20)),
    "own too deep": ("rank0.trace.jsonl", b'{"kind":"header","data":' + b"[" * 500_000 + b"\n"),
    "own world huge": own(world=10**15),
    "own rank huge": own(rank=10**15, world=10**15 + 1),
    "own clock huge": own(clock={"wall_ns": 10**40, "monotonic_ns": 0}),
    "own member huge": own(groups={"g": [0, 10**15]}),
    "own member twice": own(groups={"g": [0, 0]}),
    "own group line": own({"kind": "group", "name": "g", "members": [10**15]}),
    "own sequence huge": own(EVENT | {"sequence": 10**30}),
    "own numel negative": own(EVENT | {"numel": -1}),
    "own peer huge": own(EVENT | {"op": "send", "peer": 10**12}),
    "own index huge": own(EVENT | {"index": 10**30}),
    "own group untold": own(EVENT | {"group": "h"}),
    "nothing known": ("notes.txt", b"hello"),
    "empty": ("trace_0", b""),
}

# what the machine that runs the tests may not give: a bomb of several GB has to be refused before it goes off
PEAK_MB = 700
GRACE = 1 << 31


@pytest.mark.parametrize("name", CORPUS)
def test_each_ends_in_one_clear_line(name: str, tmp_path: Path) -> None:
    file, data = CORPUS[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises((UnreadableInput, UsageError)) as caught:
        load([tmp_path / file])
    assert caught.value.exit is Exit.USAGE
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    assert caught.value.where


def test_a_pickle_that_calls_does_not(tmp_path: Path) -> None:
    for protocol in range(6):
        data = pickle.dumps(dump(entries=[Calls(tmp_path / "executed")]), protocol=protocol)
        with pytest.raises(UnreadableInput):
            load_plain(tmp_path / "trace_0", data)
    assert not (tmp_path / "executed").exists()
    pickle.loads(data)  # it would have
    assert (tmp_path / "executed").exists()


def test_the_second_wall_holds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first look at the opcodes, the unpickler still admits no global."""
    monkeypatch.setattr("genlock.traces.importers.safe_pickle._admit", lambda path, data: None)
    for name in ("global", "stack global", "inst", "object", "extension", "persistent id"):
        with pytest.raises(UnreadableInput, match="malformed pickle"):
            load_plain(tmp_path, CORPUS[name][1])


BUILDS_NOTHING = (
    *("global", "stack global", "inst", "object", "extension", "persistent id", "build", "next buffer", "memo bomb"),
    *("text memo bomb", "byte array bomb", "long string", "big number", "too many containers", "empty dictionaries"),
    "too large",
)


@pytest.mark.parametrize("name", BUILDS_NOTHING)
def test_the_first_wall_holds_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wants more than plain values, or more of them than a dump can hold, is refused before anything is built."""
    monkeypatch.setattr("genlock.traces.importers.safe_pickle._Plain", None)
    with pytest.raises(UnreadableInput):
        load_plain(tmp_path, CORPUS[name][1])


WHOLE = """
import resource, sys
from pathlib import Path
from genlock.errors import GenlockError
from genlock.traces.load import load
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load([path / next(path.iterdir()).name])
    except GenlockError:
        pass
    else:
        sys.exit(f"{path.name} was read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20))
"""


def test_memory_stays_bounded_over_all_of_them(tmp_path: Path) -> None:
    for number, (file, data) in enumerate(CORPUS.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / file).write_bytes(data)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (GRACE, GRACE))

    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path)],
        preexec_fn=limit if sys.platform == "linux" else None,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=SUPPORT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < PEAK_MB
    assert not list(tmp_path.rglob("executed"))


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "trace_0").write_bytes(CORPUS["memo bomb"][1])
    done = subprocess.run(
        [sys.executable, "-m", "genlock", "replay", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "trace_0") in done.stderr


def test_json_of_python_is_still_read(tmp_path: Path) -> None:
    """The walls let through what they should: the control of all of the above."""
    for protocol in (2, 3, 4, 5):
        (tmp_path / "trace_0").write_bytes(pickle.dumps(dump(), protocol=protocol))
        load([tmp_path])
    (tmp_path / "trace_0").write_bytes(json.dumps(dump()).encode())
    load([tmp_path])
