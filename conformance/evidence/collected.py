"""Judges what two looks at the processes of a job showed: who was stopped, whether anybody went on.

A process that a signal has stopped does nothing, its device's and its connections' work in Python included. A job that
went on between the looks hangs nowhere, or not yet: then nobody is to blame for standing still. Where a rank's number
follows from a convention alone, whoever is named by it is a suspect.

Left out: where the ranks stood (`arrivals.stacks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...traces.evidence import Collected, Evidence
from ..diagnosis import Diagnosis, Strength, Wanted, accusations
from .finding import Finding, Kind, Missing, ranks_text, verb
from .picture import Picture

MOVING, ASSUMED = "job-moves", "rank-assumed"


def stopped(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks whose process a signal has stopped."""
    found = [fact for fact in picture.evidence.of(Collected) if fact.stopped]
    if not found:
        return
    ranks = tuple(sorted({fact.rank for fact in found}))
    others = [rank for rank in range(picture.world) if rank not in ranks]
    waiting = tuple(rank for rank in others if picture.waiting(rank))
    were = verb(ranks, "was", "were")
    why = f"{ranks_text(ranks)} {were} stopped by a signal at both looks (`kill -CONT` lets it go on)"
    why += f", while {ranks_text(waiting)} {verb(waiting, 'waits', 'wait')}" if waiting else ""
    sure = len(ranks) == 1 and bool(waiting) and len(waiting) == len(others)
    left = tuple(sorted({*ranks, *picture.absent()}))
    unseen = tuple(rank for rank in others if rank not in waiting)
    yield Finding(
        Kind.STOPPED,
        why,
        culprits=ranks if sure else (),
        suspects=() if sure else left,
        at="where it was stopped",
        observed="stopped by a signal",
        expected=("the program's next operation",),
        source=found[0].source,
        missing=() if sure else (Missing(Wanted.STACK, unseen or ranks),),
    )


def beside_looks(found: list[Finding], picture: Picture) -> list[Finding]:
    """Return findings, of which those that rest on stacks alone blame nobody where the looks leave another way.

    That is a rank that is stopped, or one that waits and may have gone on in between: two stacks are alike, too, where
    it waits for a slow one once more.
    """
    looks = {fact.rank: fact for fact in picture.evidence.of(Collected)}
    halted = {rank for rank, fact in looks.items() if fact.stopped}
    return [_beside(finding, looks, halted) if finding.kind is Kind.STACKS else finding for finding in found]


def _beside(finding: Finding, looks: Mapping[int, Collected], halted: set[int]) -> Finding:
    culprits = set(finding.culprits)
    if not culprits:
        return finding
    if not halted <= culprits:
        return replace(finding, culprits=(), suspects=tuple(sorted(culprits | halted)))
    unsure = tuple(rank for rank, fact in sorted(looks.items()) if rank not in culprits and not fact.still)
    if not unsure:
        return finding
    why = f"{finding.why}; nothing shows that {ranks_text(unsure)} did not go on in between, and wait anew"
    return replace(finding, culprits=(), suspects=finding.culprits, why=why)


def tempered(diagnosis: Diagnosis, evidence: Evidence) -> Diagnosis:
    """Return a verdict, taken back as far as the job went on meanwhile, or the ranks' numbers are not certain."""
    looks = evidence.of(Collected)
    moved = tuple(sorted({fact.rank for fact in looks if fact.moved}))
    assumed = next((fact.assumed for fact in looks if fact.assumed), "")
    if moved:
        why = f"{ranks_text(moved)} issued operations between two looks: the job moves, or did not hang yet"
        if diagnosis.stall is None:
            return replace(diagnosis, reasons=(*diagnosis.reasons, why))
        return _taken_back(diagnosis, why, MOVING)
    if assumed and diagnosis.accused:
        why = f"which process is which rank is taken from {assumed}; `genlock collect --pid PID=RANK` makes it certain"
        if diagnosis.verdict != "divergent":
            return replace(diagnosis, reasons=(*diagnosis.reasons, why))
        return _taken_back(diagnosis, why, ASSUMED)
    return diagnosis


def _taken_back(diagnosis: Diagnosis, why: str, case: str) -> Diagnosis:
    shown = (diagnosis.divergence.why,) if diagnosis.divergence else ()
    return replace(
        diagnosis,
        verdict="unknown",
        divergence=None,
        failure_mode=None,
        accused=accusations(diagnosis.culprits or diagnosis.suspects, Strength.SUSPECT, case),
        stall=None,
        waits=(),
        reasons=tuple(dict.fromkeys((*shown, *diagnosis.reasons, why))),
    )
