"""Leads from facts to a verdict: who is to blame, who may be, what is missing to tell, and where it was.

Findings are made by kind and weighed in the order of `Kind`. A verdict names culprits where a finding entails them.
Else the suspects are those that the findings leave together. Logs never show that a run conforms.

Left out: recordings of collectives (`collectives`), and putting both together (`merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...traces.evidence import Called, Evidence
from ...traces.importers.places import place_text
from ..diagnosis import WaitingRank
from .arrivals import arrivals, monitors, stacks
from .collected import beside_looks, stopped
from .counts import counts
from .failures import failures
from .finding import Finding, Kind, Missing
from .operations import unlike
from .picture import Picture
from .stack_state import stands_at
from .waits import left_waiting, stalls


@dataclass(frozen=True)
class Judged:
    """Hold what the facts show. Without culprits, the suspects are those that the facts cannot tell apart."""

    findings: tuple[Finding, ...]
    culprits: tuple[int, ...]
    suspects: tuple[int, ...]
    missing: tuple[Missing, ...]
    waits: tuple[WaitingRank, ...]
    seen: int
    """Ranks of which something is known."""
    world: int
    world_stated: bool
    cleared: frozenset[int]
    """Ranks that are known to wait for others, and to have left nobody's order."""

    @property
    def first(self) -> Finding | None:
        """Return the finding that the verdict rests on."""
        return self.findings[0] if self.findings else None


def judge_facts(evidence: Evidence) -> Judged:
    """Weigh all facts of a job."""
    picture = Picture(evidence)
    found = [
        *unlike(picture),
        *failures(picture),
        *stopped(picture),
        *stalls(picture),
        *counts(picture),
        *arrivals(picture),
        *stacks(picture),
        *monitors(picture),
    ]
    found = beside_looks(found, picture)
    order = list(Kind)
    found.sort(key=lambda f: (not f.culprits, order.index(f.kind)))
    found = [_with_place(f, picture) for f in found]
    culprits = found[0].culprits if found else ()
    suspects = () if culprits else _left_together(found)
    involved = {rank for f in found for rank in (*f.culprits, *f.suspects)}
    cleared = frozenset(rank for rank in picture.waits if rank not in involved)
    missing = tuple(dict.fromkeys(m for f in found for m in f.missing)) if not culprits else ()
    seen = len(picture.told | picture.complained)
    return Judged(
        tuple(found),
        culprits,
        suspects,
        missing,
        tuple(left_waiting(picture)),
        seen,
        picture.world,
        picture.world_stated,
        cleared,
    )


def _left_together(found: Sequence[Finding]) -> tuple[int, ...]:
    """Return the ranks that every finding which names suspects leaves; where they contradict each other, all of both.

    A finding that explains the hang by itself is narrowed down by others, never widened.
    """
    left: set[int] = set()
    explained = False
    for finding in found:
        if finding.suspects:
            own = set(finding.suspects)
            left = own if not left else (left & own or (left if explained else left | own))
            explained |= finding.kind in EXPLAINING
    return tuple(sorted(left))


ISSUED = (Kind.UNLIKE, Kind.OUT_OF_STEP, Kind.CIRCLE, Kind.DEVICE)
"""Kinds of findings about the very operation that the ranks named wait in."""
EXPLAINING = (Kind.UNLIKE, Kind.RAISED, Kind.KILLED)


def _with_place(finding: Finding, picture: Picture) -> Finding:
    """Return the finding with the place at which a blamed rank stands, where there is a stack of it."""
    named = finding.culprits or finding.suspects
    if finding.place is not None or finding.library is not None or not named:
        return finding
    called = {fact.rank: fact for fact in picture.evidence.of(Called)}
    if finding.kind in ISSUED and (own := called.get(named[0])) is not None:
        where = place_text(own.place, own.library)
        why = f"{finding.why}; rank{own.rank} issued it at {where}"
        return replace(finding, place=own.place, library=own.library, why=why)
    for rank in named:
        if rank in picture.stacks:
            place, library = stands_at(picture.stacks[rank][-1])
            if place or library:
                why = f"{finding.why}; rank{rank} stands at {place_text(place, library)}"
                return replace(finding, place=place, library=library, why=why)
    peers = [fact for rank, fact in sorted(called.items()) if rank not in named]
    if finding.culprits and peers:
        where = place_text(peers[0].place, peers[0].library)
        return replace(finding, why=f"{finding.why}; rank{peers[0].rank} issued at {where} what it waits in")
    if finding.culprits and finding.kind in WITHOUT:
        return replace(finding, why=f"{finding.why}; at which line of the program, nothing that was given says")
    return finding


WITHOUT = (Kind.UNLIKE, Kind.STANDS_STILL, Kind.OUT_OF_STEP, Kind.STOPPED, Kind.NEVER_CAME, Kind.COUNTS)
"""Kinds of findings that have a place, if the evidence holds it."""
