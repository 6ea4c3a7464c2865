"""A folder of several jobs, and what its journal says against an all-clear."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from genlock.conformance import jobs
from genlock.conformance.diagnosis import Diagnosis, Wanted
from genlock.conformance.replay import replay
from genlock.conformance.report import as_text
from genlock.traces import format, journal
from genlock.traces.format import FORMAT_VERSION, Clock, Group, RepeatedOperation, TraceHeader
from genlock.traces.journal import Began, Ended, Job, Unrecorded, append
from genlock.traces.recorder import Recorder
from msgspec.structs import replace

START = 1_000_000_000_000_000_000
SECOND = 1_000_000_000


def fail(error: Exception) -> None:
    raise error


def rank(folder: Path, number: int, run: str, numel: int, attempt: int, recorded: str = "") -> None:
    """Write the trace of one of two ranks that did two all-reduces of so many elements."""
    now = time.monotonic_ns()
    header = TraceHeader(FORMAT_VERSION, run, number, 2, "", "gloo", "", "", {}, Clock(START, now), attempt=attempt)
    written = Recorder(folder, replace(header, recording=recorded))
    written.group(Group("0", (0, 1)))
    about = RepeatedOperation(0, "all_reduce", "0", dtype="float32", numel=numel)
    operation = written.operation(about, count(1), fail)
    for turn in range(2):
        operation.end(operation.begin(now + turn), now + turn)
    written.end("stopped", 0)


def job(folder: Path, run: str, sizes: tuple[int, int] = (1, 1), attempt: int = 0, recorded: str = "") -> None:
    for number in range(2):
        rank(folder, number, run, sizes[number], attempt, recorded)


def recording(folder: Path, status: int = 0, name: str = "") -> None:
    """Write what `genlock record` leaves of two jobs, the second of which is an attempt."""
    append(folder, Began(("train",), START))
    for run, attempt in (("r-a", 0), ("r-b", 1)):
        append(folder, Job(run, attempt, 2, name))
    append(folder, Ended(status, START + 3 * SECOND))


def verdict(folder: Path) -> tuple[str, tuple[str, ...]]:
    found = replay([folder]).diagnosis
    return found.verdict, found.reasons


def test_each_attempt_is_judged_and_the_worst_counts(tmp_path: Path) -> None:
    recording(tmp_path)
    job(tmp_path, "r-a")
    job(tmp_path / "restart1", "r-b", (1, 2), attempt=1)
    found = replay([tmp_path]).diagnosis
    assert [(j.name, j.diagnosis.verdict) for j in found.jobs] == [
        (str(tmp_path), "conforming"),
        (str(tmp_path / "restart1"), "divergent"),
    ]
    assert found.verdict == "divergent"
    assert as_text(found).count("the members issued different collectives") == 1


def conform(folder: Path) -> None:
    recording(folder)


def failed(folder: Path) -> None:
    recording(folder, 1)


def unrecorded(folder: Path) -> None:
    recording(folder)
    append(folder, Unrecorded("`python -S serve.py` loaded torch without the recorder"))


def lost_job(folder: Path) -> None:
    recording(folder)
    append(folder, Job("r-c", 0, 4))


def unwritten(folder: Path) -> None:
    recording(folder)
    (folder / "unrecorded-17").touch()


def cut_short(folder: Path) -> None:
    recording(folder)
    path = folder / journal.NAME
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b'"ended"' not in line))


@pytest.mark.parametrize(
    ("leave", "says"),
    [
        (conform, ""),
        (failed, "the recorded command failed with exit status 1, though every trace is clean"),
        (unrecorded, "not recorded: `python -S serve.py` loaded torch without the recorder"),
        (lost_job, "not recorded: a job of 4 ranks began (run r-c), and left no trace here"),
        (unwritten, "not recorded: its journal could not be written"),
        (cut_short, "the recording did not come to its end"),
    ],
)
def test_what_went_unrecorded_forbids_an_all_clear(tmp_path: Path, leave: Callable[[Path], None], says: str) -> None:
    leave(tmp_path)
    job(tmp_path, "r-a")
    job(tmp_path / "restart1", "r-b", attempt=1)
    found, reasons = verdict(tmp_path)
    assert found == ("unknown" if says else "conforming")
    assert [says in reason for reason in reasons] == [True] * bool(says)


def test_one_job_alone_has_its_journal_too(tmp_path: Path) -> None:
    append(tmp_path, Unrecorded("a rank"))
    job(tmp_path, "r-a")
    assert verdict(tmp_path) == ("unknown", ("not recorded: a rank",))


def test_a_journal_without_a_trace_is_a_verdict(tmp_path: Path) -> None:
    append(tmp_path, Unrecorded("all of it"))
    found, reasons = verdict(tmp_path)
    assert (found, reasons[-1]) == ("unknown", "not recorded: all of it")


def recorded(folder: Path) -> Path:
    """Write what `genlock record` leaves of two jobs, whose traces say that a journal belongs to them."""
    recording(folder, name="r")
    job(folder, "r-a", recorded="r")
    job(folder / "restart1", "r-b", attempt=1, recorded="r")
    return folder


MISSING = "the journal of the recording is missing (recording.jsonl"


def test_a_journal_that_is_gone_is_missed(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    assert verdict(folder) == ("conforming", ())
    (folder / journal.NAME).unlink()
    for paths in ([folder], [folder / "restart1"], format.find(folder / "restart1")):
        found = replay(paths).diagnosis
        assert (found.verdict, [MISSING in reason for reason in found.reasons]) == ("unknown", [True])
        assert [wanted.kind for wanted in found.missing] == [Wanted.JOURNAL]
    assert MISSING in as_text(replay([folder]).diagnosis)


def test_a_journal_is_found_whatever_of_its_recording_is_named(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    append(folder, Unrecorded("a process"))
    for paths in ([folder / "restart1"], format.find(folder / "restart1")):
        found = replay(paths).diagnosis
        assert (found.verdict, found.reasons) == ("unknown", ("not recorded: a process",))


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_recording_that_is_packed_is_what_it_was(form: str, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "out")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), form, tmp_path, "out"))
    found = replay([packed]).diagnosis
    assert (found.verdict, found.reasons, len(found.jobs)) == ("conforming", (), 2)
    (folder / journal.NAME).unlink()
    packed = Path(shutil.make_archive(str(tmp_path / "without"), form, tmp_path, "out"))
    found = replay([packed]).diagnosis
    assert (found.verdict, MISSING in found.reasons[0]) == ("unknown", True)


def test_a_journal_of_another_recording_is_none_of_these_traces(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    (folder / journal.NAME).write_bytes(b"")
    append(folder, Began(("other",), START))
    append(folder, Ended(0, START))
    assert verdict(folder)[1][0].startswith(MISSING)
    append(folder, Job("r-b", 1, 2, "r"))
    found, reasons = verdict(folder)
    assert (found, reasons[0][:27]) == ("unknown", "lines of the journal are go")
    assert reasons[0].endswith("(run r-a)")


def test_lines_that_are_gone_from_a_journal_are_missed(tmp_path: Path) -> None:
    append(tmp_path, Job("r-a", 0, 2, "r"))
    append(tmp_path, Unrecorded("a process"))
    journal.end(tmp_path, 0)
    append(tmp_path, Unrecorded("later"))
    job(tmp_path, "r-a", recorded="r")
    assert verdict(tmp_path)[1] == ("not recorded: a process", "not recorded: later")
    path = tmp_path / journal.NAME
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b"unrecorded" not in line))
    assert verdict(tmp_path) == ("unknown", ("not recorded: lines of the journal are gone",))


def test_two_nodes_that_record_one_job_each_have_a_journal(tmp_path: Path) -> None:
    for node in range(2):
        folder = tmp_path / f"node{node}"
        rank(folder, node, "r-a", 1, 0, f"node{node}")
        append(folder, Job("r-a", 0, 2, f"node{node}"))
        journal.end(folder, 0)
    assert verdict(tmp_path) == ("conforming", ())
    journal.remove(tmp_path / "node1")
    found, reasons = verdict(tmp_path)
    assert (found, [MISSING in reason for reason in reasons]) == ("unknown", [True])


def test_a_start_up_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks end by themselves, a minute after their last operation, or a second."""

    def ended_after(seconds: int) -> Diagnosis:
        folder = tmp_path / str(seconds)
        job(folder, "r-a")
        for path in format.find(folder):
            *rest, end = path.read_bytes().splitlines(keepends=True)
            line = format.decode(path, 1, end)
            assert isinstance(line, format.End)
            late = format.End(line.index, line.time_ns + seconds * SECOND, line.cause, line.exit)
            path.write_bytes(b"".join(rest) + format.encode(late))
        return replay([folder]).diagnosis

    assert ended_after(jobs.QUIET - 2).verdict == "conforming"
    found = ended_after(jobs.QUIET + 1)
    assert found.verdict == "unknown"
    assert found.reasons[0].startswith("2 operations of start-up a rank, then nothing was seen for 61 s: ")


def stuck(folder: Path, run: str, number: int, process: str, *, issues: bool) -> None:
    """Write the trace of one of two ranks, which has issued an all-reduce and waits in it, or has not."""
    now = time.monotonic_ns()
    written = Recorder(
        folder, TraceHeader(FORMAT_VERSION, run, number, 2, "", "gloo", "", "", {}, Clock(START, now), process=process)
    )
    written.group(Group("0", (0, 1)))
    operation = written.operation(RepeatedOperation(0, "all_reduce", "0", dtype="float32", numel=1), count(1), fail)
    operation.end(operation.begin(now), now)
    if issues:
        operation.begin(now + 1)
    written.close()


def test_who_waits_in_another_job_is_no_culprit(tmp_path: Path) -> None:
    """The engine waits for worker 0, which waits, in the workers' own job, for worker 1, which was killed."""
    for number, process in enumerate(("engine", "worker0")):
        stuck(tmp_path, "r-queue", number, process, issues=number == 0)
    for number, process in enumerate(("worker0", "worker1")):
        stuck(tmp_path / "job2", "r-workers", number, process, issues=number == 0)
    found = replay([tmp_path]).diagnosis
    queue, workers = (job.diagnosis for job in found.jobs)
    assert (queue.verdict, queue.culprits, queue.suspects) == ("unknown", (), (1,))
    assert queue.reasons[0].startswith(
        f"rank1 is held up elsewhere: as rank0 of {tmp_path / 'job2'} it waits for rank1"
    )
    assert (workers.verdict, workers.culprits) == ("divergent", (1,))
    assert (found.verdict, found.culprits) == ("divergent", (1,))


def test_who_was_found_dead_is_named_and_not_who_was_asked(tmp_path: Path) -> None:
    """The engine waits for the answer of worker 1, which is as it should be, when it finds that worker 2 is gone."""
    for number in range(3):
        now = time.monotonic_ns()
        header = TraceHeader(FORMAT_VERSION, "r-a", number, 3, "", "channel", "", "", {}, Clock(START, now))
        written = Recorder(tmp_path, header)
        written.group(Group("0", (0, 1, 2)))
        if number == 0:
            written.operation(RepeatedOperation(0, "recv", "0", peer=1, tag=0), count(1), fail).begin(now)
            written.end("peer_lost", 1, "the process of worker 2 ended by itself", 2)
        written.close()
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.why == "rank2 is gone, as rank0 found: the process of worker 2 ended by itself"
