"""Several jobs under one `genlock record`: each in a place of its own, none lost, no false all-clear."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from genlock.conformance.report import as_json, as_junit, as_text
from genlock.traces.format import Trace, find, place_in, read
from record_command import record
from repository import PROCESSES

PROGRAM = PROCESSES / "recorded_jobs.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the jobs of `recorded_jobs` are recorded."""
    folder = tmp_path_factory.mktemp("jobs")
    done = record(folder / "out", sys.executable, str(PROGRAM), str(folder))
    assert done.returncode == 5, done.stderr
    assert "genlock: 18 ranks recorded, of 9 jobs or attempts, in" in done.stderr
    assert "genlock: not recorded: `" in done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def verdicts(out: Path) -> Diagnosis:
    return replay([out]).diagnosis


def test_each_job_has_a_place_and_a_run_of_its_own(out: Path) -> None:
    traces = [read(path) for path in find(out)]
    runs = {trace.path.parent: trace.header.run for trace in traces}
    assert sorted(runs) == [out, *(out / f"job{number}" for number in range(2, 10))]
    assert len(set(runs.values())) == 9
    assert all(trace.header.run == runs[trace.path.parent] for trace in traces)


def test_replay_judges_each_and_the_worst_counts(out: Path, verdicts: Diagnosis) -> None:
    assert [(job.name, job.diagnosis.verdict) for job in verdicts.jobs] == [
        (str(out), "conforming"),
        *((str(out / f"job{n}"), "conforming") for n in (2, 3, 4)),
        *((str(out / f"job{n}"), "divergent") for n in (5, 6, 7, 8, 9)),
    ]
    assert (verdicts.verdict, verdicts.culprits) == ("divergent", (1,))
    assert as_text(verdicts).startswith("divergent: 9 jobs or attempts: 4 conforming, 5 divergent\n")
    report = as_json(verdicts)
    assert [job["report"]["verdict"] for job in report["jobs"]] == ["conforming"] * 4 + ["divergent"] * 5
    assert as_junit(verdicts).count("<testcase") == 9


def test_a_process_that_nothing_can_reach_is_told(out: Path, verdicts: Diagnosis) -> None:
    told = [reason for reason in verdicts.reasons if reason.startswith("not recorded")]
    assert ["loaded torch without the recorder" in reason and "-I -S" in reason for reason in told] == [True], told


def both(folder: Path) -> list[Trace]:
    return [read(folder / f"rank{rank}.trace.jsonl") for rank in range(2)]


def test_destroying_the_group_is_a_clean_end(out: Path) -> None:
    """Also where the process is killed right after, or ends by `os._exit`."""
    for trace in (*both(out), *both(out / "job2"), *both(out / "job3")):
        assert trace.end is not None
        assert trace.end.cause == "stopped"


def test_groups_have_the_names_of_their_making(out: Path) -> None:
    """Whoever used one before has no say in it: in job3, rank1 is in a group of a name that rank0 had used."""
    assert [t.groups for t in both(out / "job2")] == [{"0": (0, 1), "1": (0,), "2": (0, 1)}, {"0": (0, 1), "2": (0, 1)}]
    assert [t.groups for t in both(out / "job3")] == [{"0": (0, 1), "2": (0, 1)}, {"0": (0, 1), "1": (1,), "2": (0, 1)}]


def test_a_group_that_torch_does_not_know_is_a_job(out: Path) -> None:
    for rank, trace in enumerate(both(out / "job4")):
        assert (trace.header.rank, trace.header.world, trace.groups) == (rank, 2, {"0": (0, 1)})
        assert sum(event.edge == "enter" for event in trace.events) == 3


@pytest.mark.parametrize(
    ("job", "status", "mark"),
    [("job5", 3, "RAISED HERE"), ("job8", 4, "RAISED LATER"), ("job9", -1, "RAISED IN A POOL")],
)
def test_what_a_rank_raised_is_the_cause_also_where_it_was_caught(out: Path, job: str, status: int, mark: str) -> None:
    """On the way out, before it, or for whoever asks for the result."""
    end = both(out / job)[1].end
    assert end is not None
    assert (end.cause, end.exit, end.message) == ("exception", status, "ValueError: no such sample")
    place, _, line = place_in(read(out / job / "rank1.trace.jsonl").sites, end.site).rpartition(":")
    assert place == str(PROGRAM)
    assert mark in PROGRAM.read_text().splitlines()[int(line) - 1]


def test_precheck_tells_every_rank_what_differs_and_who_did_not_come(out: Path) -> None:
    line = next(n for n, text in enumerate(PROGRAM.read_text().splitlines(), 1) if "# DIFFERS" in text)
    told = [(out.parent / f"prechecked.told{rank}").read_text().splitlines() for rank in range(2)]
    assert told[0][:2] == told[1][:2]
    assert told[0][0] == (
        f"operation 2 of group 0 differs: rank0: all_reduce of 2 float32 by sum at {PROGRAM}:{line}; "
        f"rank1: broadcast of 2 float32 from rank1 at {PROGRAM}:{line}"
    )
    assert "rank0: decision `abort` = False" in told[0][1]
    assert "rank1: decision `abort` = True" in told[0][1]
    assert told[0][2].startswith("rank1 did not come to operation 1 of group 0 within 0.3 s: barrier at ")
    assert len(told[1]) == 2


def test_an_end_that_does_not_answer_is_named(verdicts: Diagnosis) -> None:
    found = verdicts.jobs[6].diagnosis
    assert found.divergence is not None
    assert (found.culprits, found.divergence.place) == ((1,), "send to rank0 of group 0 (our queue)")


# ── the import hook ─────────────────────────────────────────────────────────────────────────────────────

PROBES = """if True:
    import importlib, importlib.metadata, importlib.util, pkgutil, threading
    for _ in range(2):
        assert importlib.util.find_spec("torch").name == "torch"
    list(importlib.metadata.distributions()); list(pkgutil.iter_modules())
    thread = threading.Thread(target=importlib.import_module, args=("torch",)); thread.start(); thread.join()
    import torch
    importlib.reload(torch)
    print(torch.here)
"""


def test_program_may_ask_for_torch_before_it_imports_it(tmp_path: Path) -> None:
    """This torch is nothing but a name, so that the recorder says once that it tried."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("here = 1")
    done = record(tmp_path / "out", sys.executable, "-c", PROBES, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert done.stderr.count("this process is not recorded: No module named 'torch.distributed'") == 1
    verdict = replay([tmp_path / "out"]).diagnosis
    assert verdict.verdict == "unknown"
    assert any("No module named 'torch.distributed'" in reason for reason in verdict.reasons)
