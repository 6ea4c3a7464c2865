"""`genlock record`: programs that know nothing of it leave complete traces, whatever becomes of their ranks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from genlock.cli.app import app
from genlock.errors import UsageError
from genlock.traces.format import Dropped, Event, Trace, encode, find, place_in, read, schema
from genlock.traces.load import load
from record_command import record
from recorded import BREAKS_AT, PROGRAMS, STEPS
from repository import PROCESSES, ROOT
from typer.testing import CliRunner

SCHEMA = ROOT / "docs" / "trace.schema.json"
Runs = Mapping[str, tuple[Trace, Trace]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every program of `recorded`: the traces of its two ranks."""
    folder = tmp_path_factory.mktemp("recorded")
    done = record(folder / "out", sys.executable, str(PROCESSES / "recorded.py"), str(folder))
    assert done.returncode == 0, done.stderr
    assert f"genlock: {2 * len(PROGRAMS)} ranks recorded, of {len(PROGRAMS)} jobs or attempts, in" in done.stderr
    found: dict[str, tuple[Trace, Trace]] = {}
    for number, name in enumerate(PROGRAMS):
        where = folder / "out" / (f"restart{number}" if number else "")
        found[name] = (read(where / "rank0.trace.jsonl"), read(where / "rank1.trace.jsonl"))
    return found


def entered(trace: Trace) -> list[Event]:
    return [e for e in trace.events if e.edge == "enter"]


def ops(trace: Trace) -> list[str | None]:
    return [e.op for e in entered(trace)]


def left(trace: Trace) -> dict[int, Event]:
    """The exits, by the index of what they are the exit of."""
    return {e.entered: e for e in trace.events if e.edge == "exit" and e.entered is not None}


# ── healthy programs ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["train", "pipeline", "sharded"])
def test_healthy_program_leaves_complete_traces(runs: Runs, name: str) -> None:
    for rank, trace in enumerate(runs[name]):
        head = trace.header
        assert (head.rank, head.world, head.backend, head.protocol, head.tables) == (rank, 2, "gloo", "", "")
        assert head.blind_spots
        assert [line.index for line in trace.lines if not isinstance(line, Dropped)] == list(range(len(trace.lines)))
        assert trace.end is not None
        assert (trace.end.cause, trace.cut) == ("stopped", False)
        exits = left(trace)
        without = [e.op for e in entered(trace) if e.index not in exits]
        assert set(without) <= ({"reduce_scatter_tensor_coalesced"} if name == "sharded" else set())
        assert {e.outcome for e in exits.values()} == {None}


def test_two_traces_of_one_start_belong_together_and_of_two_do_not(runs: Runs) -> None:
    starts = [(a.header.run, a.header.attempt) for a, _ in runs.values()]
    assert starts == [(b.header.run, b.header.attempt) for _, b in runs.values()]
    assert len({run for run, _ in starts}) == len(PROGRAMS)
    assert sorted(attempt for _, attempt in starts) == list(range(len(PROGRAMS)))
    with pytest.raises(UsageError, match=r"attempt \d.*replay one run at a time"):
        load([trace.path for traces in list(runs.values())[:2] for trace in traces])


def test_groups_are_announced_when_they_are_made(runs: Runs) -> None:
    """By number, place, and who has to make the call."""
    for trace in runs["train"]:
        lines = [json.loads(line) for line in trace.path.read_bytes().splitlines()]
        lines = [line for line in lines if isinstance(line, dict)]
        [made] = [line for line in lines if line["kind"] == "group" and "number" in line]
        assert (made["name"], made["members"], made["number"], made["known_by"]) == ("1", [0, 1], 1, "all")
        place, _, number = place_in(trace.sites, made["site"]).rpartition(":")
        assert place == str(PROCESSES / "recorded.py")
        assert "new_group" in (PROCESSES / "recorded.py").read_text().splitlines()[int(number) - 1]
        first = next(n for n, line in enumerate(lines) if line.get("group") == "1")
        assert lines.index(made) < first


def test_training_shows_ddp_and_the_subgroup(runs: Runs) -> None:
    a, b = runs["train"]
    assert a.groups == b.groups == {"0": (0, 1), "1": (0, 1)}
    for trace in (a, b):
        ours = [e for e in entered(trace) if e.group == "1"]
        assert [(e.op, e.sequence, e.numel, e.asynchronous) for e in ours] == [
            ("all_reduce", n + 1, 1, False) for n in range(STEPS)
        ]
        gradients = [e for e in entered(trace) if e.group == "0" and e.numel == 9 and e.op == "all_reduce"]
        assert len(gradients) == STEPS
    for one, other in zip(entered(a), entered(b), strict=True):
        assert signature(a, one) == signature(b, other)


def signature(trace: Trace, event: Event) -> tuple[object, ...]:
    return (event.group, event.sequence, event.op, event.root, event.dtype, event.numel, trace.place(event))


def test_p2p_pairs_by_peer_and_tag(runs: Runs) -> None:
    first, second = ([(e.op, e.peer, e.tag, e.sequence) for e in entered(t)] for t in runs["pipeline"])
    assert first == [step for n in range(STEPS) for step in (("send", 1, n, 1), ("recv", 1, 0, n + 1))]
    assert second == [step for n in range(STEPS) for step in (("recv", 0, n, 1), ("send", 0, 0, n + 1))]


def test_functional_collectives_are_seen(runs: Runs) -> None:
    step = ["all_gather_into_tensor_coalesced", "reduce_scatter_tensor_coalesced"]
    assert [ops(t) for t in runs["sharded"]] == [step * STEPS] * 2


def test_site_is_the_line_of_the_program(runs: Runs) -> None:
    lines = (PROCESSES / "recorded.py").read_text().splitlines()
    trace = runs["pipeline"][0]
    for event in entered(trace):
        name, _, number = trace.place(event).rpartition(":")
        assert name == str(PROCESSES / "recorded.py")
        assert str(event.op) in lines[int(number) - 1]


# ── rank1 is broken ─────────────────────────────────────────────────────────────────────────────────────

SUM = ("all_reduce", 4)
AT = BREAKS_AT + 1
"""The collective, from 1, at which rank1 does something else."""


def issued(trace: Trace) -> list[tuple[object, object]]:
    return [(e.op, e.numel) for e in entered(trace)]


def waits(trace: Trace) -> int | None:
    """The sequence number of the collective that the rank never got out of in order, if there is one."""
    exits = left(trace)
    for event in entered(trace):
        if event.index not in exits or exits[event.index].outcome is not None:
            return event.sequence
    return None


def test_one_left_out_shows_as_a_shorter_sequence(runs: Runs) -> None:
    """Their second and third sums pair as second and second; rank0 waits in one that rank1 never issued."""
    a, b = runs["left_out"]
    assert (issued(a), issued(b)) == ([SUM] * STEPS, [SUM] * (STEPS - 1))
    assert (waits(a), waits(b)) == (STEPS, None)
    assert b.end is not None
    assert b.end.cause == "stopped"


@pytest.mark.parametrize(
    ("name", "other"), [("another_operation", ("broadcast", 4)), ("another_size", ("all_reduce", 8))]
)
def test_other_collective_shows_at_the_same_place(runs: Runs, name: str, other: tuple[str, int]) -> None:
    a, b = runs[name]
    assert (issued(a), issued(b)) == ([SUM] * AT, [SUM] * (AT - 1) + [other])
    assert (waits(a), waits(b)) == (AT, AT)


def test_exception_is_the_end_of_its_trace(runs: Runs) -> None:
    a, b = runs["raises"]
    assert b.end is not None
    assert (b.end.cause, b.end.exit, b.end.message) == ("exception", 1, "ValueError: no such layer")
    assert (issued(b), waits(a)) == ([SUM] * (AT - 1), AT)


@pytest.mark.parametrize("name", ["killed", "stalls"])
def test_killed_rank_leaves_all_that_it_did_and_no_end(runs: Runs, name: str) -> None:
    a, b = runs[name]
    assert (b.end, b.cut, issued(b), waits(b)) == (None, False, [SUM] * (AT - 1), None)
    assert (waits(a), a.end is not None) == (AT, True)


# ── the format ──────────────────────────────────────────────────────────────────────────────────────────


def test_schema_in_the_documents_is_that_of_the_code() -> None:
    """If not: python -m genlock.traces.format > docs/trace.schema.json"""
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(schema()))


def test_what_is_written_fits_the_schema(runs: Runs) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    kinds = set()
    for traces in runs.values():
        for trace in traces:
            for line in trace.path.read_bytes().splitlines():
                found = json.loads(line)
                kinds.add(found["kind"] if isinstance(found, dict) else found[0])
                validator.validate(found)
    assert kinds - {"making"} == {"header", "group", "site", "operation", "enter", "wait", "exit", "event", "end"}
    validator.validate(json.loads(encode(Dropped(3, 2))))
    for wrong in ({"kind": "event", "index": "0"}, {"kind": "event"}, {"kind": "dance"}, ["enter", 1, 2], ["dance", 1]):
        assert not validator.is_valid(wrong)


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────

FULL = """if True:
    import os, resource, signal, sys
    import torch, torch.distributed as dist
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n in range(30):
        limit = 4000 if n < 20 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        dist.all_reduce(torch.ones(n + 1))
    print("done")
"""


def test_full_disk_is_told_and_the_program_goes_on(tmp_path: Path) -> None:
    """The kernel lets the file grow to 4,000 bytes while the first 20 sums are recorded."""
    done = record(tmp_path / "out", sys.executable, "-c", FULL)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    [trace] = [read(path) for path in find(tmp_path / "out")]
    holes = [line for line in trace.lines if isinstance(line, Dropped)]
    indices = [line.index for line in trace.lines if not isinstance(line, Dropped)]
    missing = set(range(indices[-1] + 1)) - set(indices)
    assert missing == {index for hole in holes for index in range(hole.index, hole.index + hole.count)} != set()
    assert {e.numel for e in entered(trace)} >= set(range(21, 31))
    assert not trace.cut


SEES = "import os, sys; print(os.environ['SITE'], any('attach' in entry for entry in sys.path))"


@pytest.mark.parametrize("size", ["1 GiB", "1GB", "12", "1000KiB", "-1GiB", ""])
def test_a_cap_that_is_none_is_refused_in_one_line(tmp_path: Path, size: str) -> None:
    done = CliRunner().invoke(app, ["record", "--keep", size, "--out", str(tmp_path), "--", sys.executable, "-c", ""])
    assert done.exit_code == 2
    assert "--keep" in done.output
    assert not list(tmp_path.iterdir())


def test_a_sitecustomize_of_the_program_still_runs(tmp_path: Path) -> None:
    """So it does in a Python that the program starts; and nobody finds the recorder's on sys.path."""
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['SITE'] = __file__")
    child = f"import subprocess, sys; {SEES}; sys.exit(subprocess.run([sys.executable, '-c', {SEES!r}]).returncode)"
    done = record(tmp_path / "out", sys.executable, "-uc", child, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"{tmp_path}/sitecustomize.py False"] * 2), done.stderr


def test_recorder_that_cannot_attach_says_so_and_leaves_the_program_alone(tmp_path: Path) -> None:
    """This torch is nothing but a name."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("here = 1")
    done = record(tmp_path / "out", sys.executable, "-c", "import torch; print(torch.here)", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "1\n")
    said = done.stderr.splitlines()
    assert said[0] == "genlock: this process is not recorded: No module named 'torch.distributed'"
    assert said[1].startswith("genlock: not recorded: ")
    assert said[1].endswith(": No module named 'torch.distributed'")


def test_status_is_the_programs(tmp_path: Path) -> None:
    program = "import os, sys; os.kill(os.getpid(), int(sys.argv[1])) if sys.argv[1] != '0' else sys.exit(7)"
    assert record(tmp_path / "out", sys.executable, "-c", program, "0").returncode == 7
    assert record(tmp_path / "out", sys.executable, "-c", program, "9").returncode == 128 + 9


@pytest.mark.parametrize(
    ("program", "says"), [("no-such-program", "there is no program"), ("true", "there are traces")]
)
def test_what_cannot_be_recorded_is_refused_in_one_line(tmp_path: Path, program: str, says: str) -> None:
    (tmp_path / "rank0.trace.jsonl").touch()
    done = record(tmp_path, program)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
