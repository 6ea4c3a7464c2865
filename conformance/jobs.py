"""Puts the verdicts on the jobs of one recording together, and holds against them what its journal says.

`conforming` is said of what was recorded. Where something was not, or was lost, or the recorded command failed for a
reason that no trace shows, it would be a false all-clear: the verdict is `unknown`, and says what is missing.

Left out: the verdict on one job (`replay`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..traces.journal import NAME, Began, Came, Ended, Failed, Job, Journal, Unrecorded
from ..traces.load import Start, starts_in
from .diagnosis import Diagnosis, JobVerdict, MissingEvidence, Strength, Verdict, Wanted
from .joining import with_joining

if TYPE_CHECKING:
    from ..traces.collectives import Recording

WORST: tuple[Verdict, ...] = ("divergent", "unknown", "conforming")
"""Verdicts, the worst first."""
QUIET = 60
"""Seconds without an operation from which on the verdict says so, where that was most of the job's time."""
SHOWN = 4
"""A reason names so many of the ranks that another waits for."""
SECOND = 1_000_000_000
JOURNAL = f"{NAME}, of the folder that `genlock record` wrote: it says what went unrecorded"


def together(jobs: Sequence[JobVerdict]) -> Diagnosis:
    """Return the verdict on several jobs: the worst of theirs."""
    worst = min((job.diagnosis for job in jobs), key=lambda diagnosis: WORST.index(diagnosis.verdict))
    return replace(worst, jobs=tuple(jobs))


def held_elsewhere(jobs: Sequence[JobVerdict], processes: Sequence[Mapping[int, str]]) -> list[JobVerdict]:
    """Return the verdicts without those culprits who wait, as a rank of another of the jobs, for somebody else.

    `processes` maps, for each job, its ranks to their processes.
    """
    waits: dict[str, str] = {}
    """Maps a process that is left waiting in some job, and not to blame there, to what it waits in."""
    for job, of in zip(jobs, processes, strict=True):
        for wait in job.diagnosis.waits:
            if wait.missing and wait.rank not in job.diagnosis.culprits and of.get(wait.rank):
                peers = ", ".join(f"rank{peer}" for peer in wait.missing[:SHOWN])
                waits[of[wait.rank]] = f"as rank{wait.rank} of {job.name} it waits for {peers} in {wait.operation}"
    return [JobVerdict(job.name, _held(job.diagnosis, of, waits)) for job, of in zip(jobs, processes, strict=True)]


def _held(found: Diagnosis, process: Mapping[int, str], waits: Mapping[str, str]) -> Diagnosis:
    held = {rank: waits[process[rank]] for rank in found.culprits if process.get(rank) in waits}
    if not held or set(held) != set(found.culprits):
        return found
    reasons = tuple(f"rank{rank} is held up elsewhere: {why}" for rank, why in held.items())
    accused = tuple(
        a._replace(strength=Strength.SUSPECT) if a.strength is Strength.CULPRIT else a for a in found.accused
    )
    unsure = replace(found, verdict="unknown", divergence=None, failure_mode=None, stall=None, accused=accused)
    return replace(unsure, reasons=(*reasons, *found.reasons))


def with_journals(found: Diagnosis, journals: Sequence[Journal], starts: Collection[Start] = ()) -> Diagnosis:
    """Return a verdict as the journals leave it, and those that are missing, of what the traces are of."""
    lost = list(_without_journal(journals, starts))
    told = [reason for journal in journals for reason in _against(journal, found.verdict)]
    found = with_joining(limited(found, *lost, *told), journals)
    if not lost or found.verdict != "unknown":
        return found
    return replace(found, missing=(*found.missing, MissingEvidence(Wanted.JOURNAL, (), JOURNAL)))


def limited(found: Diagnosis, *reasons: str) -> Diagnosis:
    """Return a verdict with further reasons that limit it: with one of them, none is `conforming`."""
    reasons = tuple(filter(None, reasons))
    if not reasons:
        return found
    verdict: Verdict = "unknown" if found.verdict == "conforming" else found.verdict
    return replace(found, verdict=verdict, reasons=(*found.reasons, *reasons))


def nothing_recorded(journals: Sequence[Journal]) -> Diagnosis:
    """Return the verdict on a recording without a trace."""
    none = "nothing was recorded: no process initialised torch.distributed, or none of those that did was recorded"
    came = any(journal.all(Came) or journal.all(Failed) for journal in journals)
    reasons = ("no rank joined its job, so that there is no trace",) if came else (none,)
    empty = Diagnosis("unknown", 0, 0, 0, None, None, (), reasons, (), None, {})
    return with_journals(empty, journals)


def _without_journal(journals: Sequence[Journal], starts: Collection[Start]) -> Iterator[str]:
    """Yield what is wrong where traces belong to a recording whose journal does not have them, or is not there."""
    known = {Start(job.recording, job.run, job.attempt) for journal in journals for job in journal.all(Job)}
    for name in sorted({start.recording for start in starts if start.recording}):
        lost = sorted(start.run for start in {*starts} - known if start.recording == name)
        if lost and all(start.recording != name for start in known):
            yield (
                f"the journal of the recording is missing ({NAME} of recording {name}): what went unrecorded, and how "
                "the recorded command ended, is not known"
            )
        elif lost:
            yield f"lines of the journal are gone: it does not have the job of these traces (run {lost[0]})"


def _against(journal: Journal, verdict: Verdict) -> list[str]:
    """Return what a journal says against an all-clear."""
    reasons = [f"not recorded: {line.what}" for line in journal.all(Unrecorded)]
    for how in journal.all(Failed):
        who = f"rank {how.rank}" if how.rank >= 0 else f"process {how.process}"
        what = "could not join its job" if how.joining else "ended before it joined its job"
        reasons.append(f"not recorded: {who} {what}: {how.type}: {how.message[:300]}")
    begun = starts_in(journal.folder)
    for job in journal.all(Job):
        if (job.run, job.attempt) not in begun:
            reasons.append(f"not recorded: a job of {job.world} ranks began (run {job.run}), and left no trace here")
    ended = journal.all(Ended)
    if not ended and journal.all(Began):
        reasons.append("the recording did not come to its end: it still runs, or `genlock record` was killed")
    if verdict == "conforming" and any(end.status and not end.stalled for end in ended):
        status = next(end.status for end in ended if end.status)
        reasons.append(
            f"the recorded command failed with exit status {status}, though every trace is clean: what failed is not "
            "in the traces, as before a process became a rank, or after it was one"
        )
    return reasons


def unseen_time(recording: Recording, until: int | None) -> str:
    """Return what to say of a job that was seen to start, and not in most of its time; empty where it was seen.

    `until` is when the recorded command ended, in ns of the wall clock, for ranks that have no end.
    """
    from ..traces.collectives import OWN

    if recording.source != OWN or not recording.entries:
        return ""
    quiet, busy, operations = float("inf"), 0.0, 0
    for record in recording.ranks.values():
        if record.span is None or not len(record.ops):
            return ""
        begin, end = record.span
        last = int(record.ops["time"].max())
        end = end if record.ended.name in ("STOPPED", "FAILED") else max(end, until or end)
        quiet, busy = min(quiet, (end - last) / SECOND), max(busy, (last - begin) / SECOND)
        before = 0 if record.summed is None else record.summed.operations
        operations = max(operations, before + len(record.ops))
    if quiet < QUIET or quiet <= busy:
        return ""
    return (
        f"{operations} operation{'s' * (operations > 1)} of start-up a rank, then nothing was seen for {quiet:.0f} s: "
        "the ranks did nothing together there, or went past torch.distributed (a queue in shared memory, all-reduce "
        "kernels of their own, CUDA graphs), and nothing is known of that; `genlock.channel` records such a way"
    )
