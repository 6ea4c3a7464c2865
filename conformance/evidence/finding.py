"""Holds one thing that the evidence shows, and what is missing to show more.

Left out: how it is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ...traces.evidence import Place, Source
from ..diagnosis import Wanted


class Kind(Enum):
    """Names the kinds of findings; each decides by itself, in this order."""

    UNLIKE = "unlike operations at one number"
    RAISED = "a rank raised an exception"
    KILLED = "a rank's process was ended from outside, or crashed"
    STOPPED = "a rank's process is stopped by a signal"
    STANDS_STILL = "a rank that others wait for does not wait itself"
    OUT_OF_STEP = "ranks wait for each other, and one has left the order of the others"
    COUNTS = "ranks launched unlike numbers of operations"
    NEVER_CAME = "a rank did not come to where others waited for it"
    PEER = "a connection to a peer was lost"
    ABSENT = "ranks that others wait for have left nothing"
    CIRCLE = "ranks wait for each other"
    ERROR = "a rank logged an error that may not have ended it"
    DEVICE = "all issued an operation, and none finished it"
    STACKS = "a rank's stack is elsewhere than those of the others"
    MONITOR = "a rank's own monitor, or its engine, saw it stand still"


class Missing(NamedTuple):
    """Names evidence that would decide, and of which ranks."""

    want: Wanted
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Hold what some facts show together. `culprits` are entailed; `suspects` are those that the facts leave."""

    kind: Kind
    why: str
    culprits: tuple[int, ...] = ()
    suspects: tuple[int, ...] = ()
    at: str = ""
    """The operation or moment that it is about."""
    observed: str = ""
    expected: tuple[str, ...] = ()
    number: int = 0
    source: Source | None = None
    missing: tuple[Missing, ...] = ()
    place: Place | None = None
    library: Place | None = None


def ranks_text(ranks: tuple[int, ...] | list[int] | set[int]) -> str:
    """Return ranks by name, runs of them folded: `rank0 to rank3, rank7`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts: list[str] = []
    for run in runs[:MAX_RUNS]:
        parts += [f"rank{run[0]} to rank{run[-1]}"] if len(run) > 2 else [f"rank{rank}" for rank in run]
    if len(runs) > MAX_RUNS:
        parts.append(f"{sum(map(len, runs[MAX_RUNS:]))} more")
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + (parts[-1] if parts else "nobody")


MAX_RUNS = 12


def verb(ranks: tuple[int, ...] | list[int] | set[int], one: str, many: str) -> str:
    """Return the form of a verb that goes with so many ranks."""
    return one if len(ranks) == 1 else many
