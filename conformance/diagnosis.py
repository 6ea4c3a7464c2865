"""The verdict on a run, whatever it was recorded with. Left out: how it is reached, and printing it (`report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Verdict = Literal["conforming", "divergent", "unknown"]


class Strength(StrEnum):
    """How surely a rank is named."""

    CULPRIT = "culprit"
    """No explanation of the evidence does without it."""
    SUSPECT = "suspect"
    """The evidence fits that it was this rank, and fits others as well."""


class Accusation(NamedTuple):
    """Names a rank, how surely, and by which case of docs/diagnosis.md."""

    rank: int
    strength: Strength
    case: str


class Wanted(StrEnum):
    """Names a kind of evidence that is missing and would tell more."""

    RECORDING = "recording"
    """A rank's dump or trace."""
    REST = "rest"
    """The part of a rank's recording that was lost, dropped, cut off or left out."""
    START_TIMES = "start_times"
    """Whether a device had started an operation."""
    ENDING = "ending"
    """How a rank's process ended or where it stands: its log, its stack, its launcher's word."""


class MissingEvidence(NamedTuple):
    """Says what to fetch, of which ranks, and how."""

    kind: Wanted
    ranks: tuple[int, ...]
    text: str
    """One line for people: what it would decide, and the command or setting that gets it."""


class WaitingRank(NamedTuple):
    """A rank that is left waiting in an operation, and the ranks that it waits for."""

    rank: int
    operation: str
    missing: tuple[int, ...]
    state: str = ""
    """State of its table, where it follows one."""
    line: int = 0
    """Line of its file in which it issued the operation; 0 where there are no lines."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a rank left the model: the state before, what was seen, what would have been allowed."""

    rank: int
    line: int
    """Line of the rank's file, or entry of its recording, from 1."""
    event: int
    chunk: int | None
    phase: str
    """Phase of the protocol; of a recording that knows none, where in the source the operation was issued."""
    call: int | None
    call_id: int | None
    state: str
    observed: str
    expected: tuple[str, ...]
    why: str
    clock: int = 0
    """Lamport time, by which the first of several divergences is found."""
    place: str = ""
    """The collective, where no chunk and phase are known."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one rank ended, what the model expected of it there, and what came."""

    rank: int
    line: int
    event: int
    chunk: int | None
    phase: str
    state: str
    observed: str
    expected: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a run, the same for any order of its files."""

    verdict: Verdict
    ranks: int
    """Ranks whose traces were given."""
    events: int
    matched_collectives: int
    """Those that every member issued alike and left; a send and its receive count as one."""
    divergence: Divergence | None
    failure_mode: str | None
    accused: tuple[Accusation, ...]
    """Whom it names, by rank."""
    reasons: tuple[str, ...]
    """Why the verdict is `unknown`, or what limits it."""
    waits: Sequence[WaitingRank]
    stall: Literal["host", "device"] | None
    """Where a rank that others wait for is stuck: `host` when it never issued the collective."""
    witnessed: Mapping[str, frozenset[tuple[str, str]]]
    """Role name to the (state, event) pairs that the traces have shown."""
    missing: tuple[MissingEvidence, ...] = ()
    """What would tell more than the evidence does."""
    standing: Sequence[Standing] = ()
    """Of a run that left its model: where each rank ended."""
    lifted: str = ""
    """Of a recording that knows no protocol: the one that its collectives follow, and how many chunks of it."""

    @property
    def culprits(self) -> tuple[int, ...]:
        """Ranks without which nothing explains the evidence."""
        return tuple(a.rank for a in self.accused if a.strength is Strength.CULPRIT)

    @property
    def suspects(self) -> tuple[int, ...]:
        """Ranks that may be to blame, and may not be."""
        return tuple(a.rank for a in self.accused if a.strength is Strength.SUSPECT)

    @property
    def named(self) -> tuple[int, ...]:
        """The culprits; where there is none, the suspects."""
        return self.culprits or self.suspects


def accusations(ranks: Sequence[int], strength: Strength, case: str) -> tuple[Accusation, ...]:
    """Return the ranks as named by one case, in order, each once."""
    return tuple(Accusation(rank, strength, case) for rank in sorted(set(ranks)))
