"""The verdict on a run, whatever it was recorded with. Left out: how it is reached, and printing it (`report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal
from typing import Protocol as Interface

from ..notebook import table
from ..traces.outcome import Outcome

Verdict = Literal["conforming", "divergent", "unknown"]


class Waiting(Interface):
    """A rank that is left waiting in an operation, and the ranks that it waits for."""

    @property
    def rank(self) -> int: ...
    @property
    def operation(self) -> str: ...
    @property
    def missing(self) -> tuple[int, ...]: ...


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
    """Of a move; of an end, its cause."""
    edge: str = ""
    outcome: Outcome | None = None
    """What the rank's own check found there."""


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
    culprits: tuple[int, ...]
    reasons: tuple[str, ...]
    """Why the verdict is `unknown`, or what limits it."""
    waits: Sequence[Waiting]
    stall: Literal["host", "device"] | None
    """Where a rank that others wait for is stuck: `host` when it never issued the collective."""
    witnessed: Mapping[str, frozenset[tuple[str, str]]]
    """Role name to the (state, event) pairs that the traces have shown."""
    suspects: tuple[int, ...] = ()
    """Of an `unknown` that may be a stall: the ranks among which the recording cannot tell."""
    standing: Sequence[Standing] = ()
    """Of a run that left its model: where each rank ended."""
    lifted: str = ""
    """Of a recording that knows no protocol: the one that its collectives follow, and how many chunks of it."""

    def __repr__(self) -> str:
        mode = f" ({self.failure_mode})" if self.failure_mode else ""
        found = f"{self.ranks} ranks, {self.events:,} events"
        if self.divergence is not None:
            culprits = ", ".join(f"rank{rank}" for rank in self.culprits) or "unknown"
            found = f"rank{self.divergence.rank} in {self.divergence.state}; culprits {culprits}"
        return f"<Diagnosis {self.verdict}{mode}: {found}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, str]] = []
        if self.divergence is not None:
            at = self.divergence
            rows += [
                ("first divergence", f"rank{at.rank}, chunk {at.chunk}, {at.phase or at.place}, line {at.line}"),
                *(("state", at.state), ("observed", at.observed), ("expected", " or ".join(at.expected) or "nothing")),
                *(("why", at.why), ("failure mode", self.failure_mode or "none known")),
                ("culprits", ", ".join(f"rank{rank}" for rank in self.culprits) or "unknown"),
            ]
        rows += [("limit", reason) for reason in self.reasons]
        found = f"{self.ranks} ranks, {self.events:,} events, {self.matched_collectives:,} collectives matched"
        return table(found, self.verdict, rows)
