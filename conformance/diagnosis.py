"""Holds the verdict on a run, whatever it was recorded with.

Left out: how it is reached, and printing it (`report`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from ..notebook import table
from ..traces.outcome import Outcome

Verdict = Literal["conforming", "divergent", "unknown"]


class Strength(StrEnum):
    """Says how surely a rank is named."""

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
    """Tells if a device had started an operation."""
    ENDING = "ending"
    """Tells how a rank's process ended or where it stands: its log, its stack, its launcher's word."""
    LOG = "log"
    """A rank's log."""
    STACK = "stack"
    """A rank's stack, twice, while it hangs."""
    SECOND_ANSWER = "second_answer"
    """A second answer of NCCL's RAS, half a minute later."""
    RANK_NUMBERS = "rank_numbers"
    """The rank of each process."""
    WORLD_SIZE = "world_size"
    """Tells the number of ranks of the job."""
    DETAIL_RUN = "detail_run"
    """A run with TORCH_DISTRIBUTED_DEBUG=DETAIL."""
    JOURNAL = "journal"
    """The journal of a recording by `genlock record`."""
    DEVICE_HEALTH = "device_health"
    """The health of devices and network."""


class MissingEvidence(NamedTuple):
    """Says what to fetch, of which ranks, and how."""

    kind: Wanted
    ranks: tuple[int, ...]
    text: str
    """One line for people: what it would decide, and the command or setting that gets it."""


class WaitingRank(NamedTuple):
    """Holds a rank that is left waiting in an operation, and the ranks that it waits for."""

    rank: int
    operation: str
    missing: tuple[int, ...]
    state: str = ""
    """State of its table, where it follows one."""
    line: int = 0
    """Line of its file in which it issued the operation; 0 where there are no lines."""


class Seen(StrEnum):
    """Names what stands where a rank left the model."""

    MOVE = "move"
    """A move of the protocol."""
    OPERATION = "operation"
    """An operation that no row announces."""
    END = "end"
    """The rank's own end marker, or its guardian's."""
    NOTHING = "nothing"
    """Nothing: the rank says no more."""
    GAP = "gap"
    """An event whose number shows that one before it is missing."""
    OTHER = "other"
    """An entry of a recording without a protocol."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Holds what was seen where a rank left the model, as facts: everything is decided by these."""

    seen: Seen = Seen.OTHER
    transition: str = ""
    """Names the move; of an end, its cause."""
    edge: str = ""
    outcome: Outcome | None = None
    """Holds what the rank's own check found there."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Says where a rank left the model: the state before, what was seen, what would have been allowed.

    `observed`, `expected`, `why` and `place` are text for people; `facts` is what verdicts rest on.
    """

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
    facts: Observation = Observation()


@dataclass(frozen=True, slots=True)
class Standing:
    """Says where one rank ended, what the model expected of it there, and what came."""

    rank: int
    line: int
    event: int
    chunk: int | None
    phase: str
    state: str
    observed: str
    expected: tuple[str, ...]
    why: str


class JobVerdict(NamedTuple):
    """Holds the verdict on one of several jobs, or on one attempt of a job."""

    name: str
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Diagnosis:
    """Holds the verdict on a run, the same for any order of its files."""

    verdict: Verdict
    ranks: int
    """Ranks whose traces were given."""
    events: int
    matched_collectives: int
    """Those that every member issued alike and left; a send and its receive count as one."""
    divergence: Divergence | None
    failure_mode: str | None
    accused: tuple[Accusation, ...]
    """Names the ranks, how surely and by which case."""
    reasons: tuple[str, ...]
    """Why the verdict is `unknown`, or what limits it."""
    waits: Sequence[WaitingRank]
    stall: Literal["host", "device"] | None
    """Where a rank that others wait for is stuck: `host` when it never issued the collective."""
    witnessed: Mapping[str, frozenset[tuple[str, str]]]
    """Role name to the (state, event) pairs that the traces have shown."""
    missing: tuple[MissingEvidence, ...] = ()
    """Lists the evidence that would tell more."""
    standing: Sequence[Standing] = ()
    """Says where each rank ended, for a run that left its model."""
    lifted: str = ""
    """Names the protocol that a recording's collectives follow, and how many chunks of it."""
    summed: int = 0
    """Counts those of the events that are operations of which a digest alone is left."""
    jobs: tuple[JobVerdict, ...] = ()
    """Verdicts on each, where the traces are of several jobs or attempts; all else is then of the worst of them."""

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
        """Return the culprits; where there is none, the suspects."""
        return self.culprits or self.suspects

    def __repr__(self) -> str:
        mode = f" ({self.failure_mode})" if self.failure_mode else ""
        found = f"{self.ranks} ranks, {self.events:,} events"
        if self.divergence is not None:
            found = f"rank{self.divergence.rank} in {self.divergence.state}; {self._blame()}"
        elif self.suspects:
            found += f"; {self._blame()}"
        return f"<Diagnosis {self.verdict}{mode}: {found}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, str]] = []
        if self.divergence is not None:
            at = self.divergence
            rows += [
                ("first divergence", f"rank{at.rank}, chunk {at.chunk}, {at.phase or at.place}, line {at.line}"),
                *(("state", at.state), ("observed", at.observed), ("expected", " or ".join(at.expected) or "nothing")),
                *(("why", at.why), ("failure mode", self.failure_mode or "none known")),
            ]
        if self.divergence is not None or self.accused:
            rows.append(("blame", self._blame()))
        rows += [("limit", reason) for reason in self.reasons]
        found = f"{self.ranks} ranks, {self.events:,} events, {self.matched_collectives:,} collectives matched"
        return table(found, self.verdict, rows)

    def _blame(self) -> str:
        """Return `culprits rank1`, or `suspects rank0, rank2`."""
        kind = "culprits" if self.culprits or not self.suspects else "suspects"
        return f"{kind} {', '.join(f'rank{rank}' for rank in self.named) or 'unknown'}"


def accusations(ranks: Sequence[int], strength: Strength, case: str) -> tuple[Accusation, ...]:
    """Return the ranks as named by one case, in order, each once."""
    return tuple(Accusation(rank, strength, case) for rank in sorted(set(ranks)))
