"""Defines the JSON that `genlock replay --format json` prints, as types that `report` fills in: schema 2.

All fields of schema 1 keep their names and types. New are `accused` (each rank that is named, how surely, and by which
case of docs/diagnosis.md) and `missing` (what would tell more). `python -m genlock.conformance.report_schema` prints
the JSON Schema, for docs/replay.schema.json.

Left out: text and JUnit.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

SCHEMA = 2


class Standing(msgspec.Struct, frozen=True):
    """Says where one rank ended, what the model expected there, and what came."""

    rank: int
    line: int
    event: int
    chunk: int | None
    phase: str
    state: str
    observed: str
    expected: tuple[str, ...]
    why: str


class Waiting(msgspec.Struct, frozen=True):
    """Names a rank that is left waiting, in which operation, and for which ranks."""

    rank: int
    operation: str
    waiting_for: tuple[int, ...]


class Divergence(msgspec.Struct, frozen=True):
    """Says where the run left the model."""

    rank: int
    chunk: int | None
    phase: str
    call: int | None
    event: int
    line: int
    call_id: int | None
    state: str
    observed: str
    expected: tuple[str, ...]
    why: str
    failure_mode: str | None
    culprits: tuple[int, ...]
    """Ranks without which nothing explains the evidence; empty where none is entailed."""
    stall: Literal["host", "device"] | None
    place: str
    waiting: tuple[Waiting, ...]
    standing: tuple[Standing, ...]


class Accused(msgspec.Struct, frozen=True):
    """Names a rank, and says how surely it is named."""

    rank: int
    strength: Literal["culprit", "suspect"]
    case: str
    """The case of docs/diagnosis.md by which it is named."""


class Missing(msgspec.Struct, frozen=True):
    """Evidence that would tell more."""

    kind: Literal["recording", "rest", "start_times", "ending"]
    ranks: tuple[int, ...]
    text: str


class Edge(msgspec.Struct, frozen=True):
    """Ranks that wait in one operation for the same ranks."""

    operation: str
    ranks: tuple[int, ...]
    waiting_for: tuple[int, ...]


class WaitForGraph(msgspec.Struct, frozen=True):
    """Says which rank waits for which."""

    waits: tuple[Edge, ...]
    roots: tuple[int, ...]
    """Ranks that others wait for, and that wait for nobody."""
    circle: tuple[int, ...]
    """Ranks that wait for each other, where there is no root."""


class Report(msgspec.Struct, frozen=True):
    """Holds the verdict on a run."""

    schema: Literal[2]
    verdict: Literal["conforming", "divergent", "unknown"]
    ranks: int
    events: int
    matched_collectives: int
    divergence: Divergence | None
    reasons: tuple[str, ...]
    suspects: tuple[int, ...]
    """Ranks that may be to blame, and may not be."""
    accused: tuple[Accused, ...]
    missing: tuple[Missing, ...]
    wait_for_graph: WaitForGraph
    lifted_to: str | None
    summed_events: int = 0
    """Those of the events that are operations of which a digest alone is left, in a recording with a cap."""
    jobs: tuple[Job, ...] = ()
    """Reports on each, where the traces are of several jobs or attempts; all else is then of the worst of them."""


class Job(msgspec.Struct, frozen=True):
    """Holds the report on one of several jobs."""

    name: str
    """The folder of its traces, or its run."""
    report: Report


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a report."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Report)}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
