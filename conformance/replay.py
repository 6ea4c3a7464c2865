"""Leads from paths to a verdict, on one road whatever recorded the ranks.

Left out: reading (`traces.load`), and judging itself (`protocol`, `collectives`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..traces.format import Trace
from ..traces.journal import Ended
from ..traces.load import drawn, files_of, gather, jobs_of, journals_of, own_of, starts_of, traced, unpacked
from . import jobs as several
from .diagnosis import Diagnosis, JobVerdict

if TYPE_CHECKING:
    from ..traces.collectives import Recording
    from ..traces.evidence import Evidence

LARGE = 64 << 20
"""Bytes from which on a recording is first asked whether all is as it should be, which takes no memory."""


class Replayed:
    """Holds a run that was replayed: the verdict on it, and what was read for that."""

    def __init__(self, paths: Sequence[Path], diagnosis: Diagnosis | None = None, jobs: Sequence[Job] = ()) -> None:
        self.paths = tuple(paths)
        self.jobs = tuple(jobs)
        """Each job by itself, where the traces are of several jobs or attempts."""
        self.diagnosis = diagnosis or judge(self.gathered)

    def __repr__(self) -> str:
        return f"<Replayed {self.diagnosis.verdict}: {', '.join(map(str, self.paths))}>"

    @cached_property
    def gathered(self) -> list[Trace] | Recording | Evidence:
        """Return all that was read: own traces, a recording, or evidence; of a large one, read when first asked for.

        Raises UnreadableInput.
        """
        return gather(self.paths)

    @property
    def drawable(self) -> Sequence[Trace] | Recording | None:
        """Return own traces, or a recording of collectives; None where there are logs alone.

        Raises UnreadableInput.
        """
        return traced(self.gathered)

    @property
    def traces(self) -> Sequence[Trace] | Recording:
        """Return what can be drawn.

        Raises UsageError where there are logs alone, and UnreadableInput.
        """
        return drawn(self.gathered, self.paths)


class Job(NamedTuple):
    """Holds one of several jobs, or one attempt of a job."""

    name: str
    replayed: Replayed


def replay(paths: Sequence[Path]) -> Replayed:
    """Read what the paths stand for, and judge it. Raises UnreadableInput, UsageError.

    Of several jobs, or attempts of one, each is judged by itself, and the verdict is the worst.
    """
    paths = unpacked(paths)
    files = files_of(paths)
    starts = starts_of([file for file, _ in files])
    journals = journals_of(paths, starts)
    if journals and not files:
        return Replayed(paths, several.nothing_recorded(journals))
    until = max((end.wall_ns for journal in journals for end in journal.all(Ended)), default=None)
    parts = jobs_of(files)
    if not parts:
        whole = _one(paths, until)
        whole.diagnosis = several.with_journals(whole.diagnosis, journals, starts)
        return whole
    jobs = [Job(part.name, _one(part.files, until)) for part in parts]
    verdicts = [JobVerdict(job.name, job.replayed.diagnosis) for job in jobs]
    found = several.together(several.held_elsewhere(verdicts, [part.processes for part in parts]))
    for job, verdict in zip(jobs, found.jobs, strict=True):
        job.replayed.diagnosis = verdict.diagnosis
    return Replayed(paths, several.with_journals(found, journals, starts), jobs)


def _one(paths: Sequence[Path], until: int | None) -> Replayed:
    """Judge one job."""
    glance = _at_a_glance(paths)
    if glance is not None:
        return Replayed(paths, glance)
    run = Replayed(paths)
    traces = run.drawable
    if traces is not None and not isinstance(traces, Sequence):
        run.diagnosis = several.limited(run.diagnosis, several.unseen_time(traces, until))
    return run


def judge(gathered: Sequence[Trace] | Recording | Evidence) -> Diagnosis:
    """Hold Genlock's own traces against the model, all else against itself. Raises UnreadableInput."""
    if isinstance(gathered, Sequence):
        from .protocol.diagnose import diagnose

        return diagnose(gathered)
    from ..traces.evidence import Evidence

    if isinstance(gathered, Evidence):
        from .evidence.merge import judge_evidence

        return judge_evidence(gathered)
    from .collectives.diagnose import diagnose as diagnose_recording

    return diagnose_recording(gathered)


def _at_a_glance(paths: Sequence[Path]) -> Diagnosis | None:
    """Return `conforming`, of a large recording of which that can be seen without keeping what was read."""
    files = files_of(paths)
    if sum(file.stat().st_size for file, _ in files) < LARGE:
        return None
    own = own_of(files)
    if own is None or own.follows or len(own.headers) < len(files):  # a log beside them may say otherwise
        return None
    from ..traces.fast_summary import agreed

    summary = agreed(own)
    if summary is None:
        return None
    return Diagnosis("conforming", summary.ranks, summary.entries, summary.matched, None, None, (), (), (), None, {})
