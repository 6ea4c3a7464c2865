"""Recordings that know no protocol, recognised as TP v1.1: each collective is what the rank's own trace says it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from as_dumps import dumps, operations
from genlock.conformance.collectives.alignment import Key
from genlock.conformance.collectives.recognise_protocol import Lifted
from genlock.conformance.replay import judge
from genlock.model.protocols.tp_v1_1 import HEADER, PARITY, TP_V1_1
from genlock.traces.collectives import Interned, Recording, recording
from genlock.traces.format import Trace, find, read
from genlock.traces.importers.flight_recorder import read_dump
from hangs import dumps as dumps_of_hang
from hangs import hang
from repository import CORPUS

HEALTHY = sorted(path.name for path in (CORPUS / "healthy").iterdir() if path.is_dir())


def traces(name: str) -> list[Trace]:
    return [read(path) for path in find(CORPUS / name)]


def recorded(own: Sequence[Trace], ring: int = 10_000) -> Recording:
    """The run as dumps of which each has the last `ring` entries."""
    interned = Interned()
    found = {rank: {**dump, "entries": dump["entries"][-ring:]} for rank, dump in dumps(own).items()}
    records = [read_dump(Path(f"trace_{rank}"), dump, interned) for rank, dump in found.items()]
    return recording("flight_recorder", interned, records, {})


@pytest.mark.parametrize("name", HEALTHY)
def test_every_collective_is_what_the_trace_says(name: str) -> None:
    own = traces(f"healthy/{name}")
    whole = recorded(own)
    lifted = Lifted(whole)
    chunks = max(event.chunk for trace in own for event in trace.events)
    assert lifted.summary() == f"tp_v1.1, {chunks} chunk{'s' * (chunks != 1)}"
    for trace in own:
        seen = list(operations(trace))
        for op, known in zip(whole.ranks[trace.rank].ops, seen, strict=True):
            place = lifted.places[Key(int(op["group"]), int(op["sequence"]))]
            row = next(r for r in TP_V1_1.role(trace.rank).rows if r.event == known.event.transition)
            assert place.line is row.op
            if place.line not in (HEADER, PARITY):
                assert place.chunk == known.event.chunk
    found = judge(whole)
    assert (found.verdict, found.lifted) == ("conforming", lifted.summary())


def test_of_a_ring_the_phases_are_told_and_not_the_chunks() -> None:
    lifted = Lifted(recorded(traces("healthy/three-ranks"), ring=40))
    assert lifted
    assert {place.chunk for place in lifted.places.values()} == {None}


@pytest.mark.parametrize(
    ("case", "rank", "phase", "state"),
    [
        ("struck/rank0-header-sent-stall", 0, "payload", "HEADER_SENT"),
        ("struck/rank0-await-ack-stall", 0, "ack", "AWAIT_ACK"),
        ("struck/worker-ready-stall", 1, "generate", "GENERATING"),
        ("struck/worker-ack-raise", 1, "ack", "ACK"),
        ("struck/rank1-killed-before-receive-payload", 1, "payload", "AWAIT_PAYLOAD"),
    ],
)
def test_a_hang_is_placed_in_chunk_phase_and_state(case: str, rank: int, phase: str, state: str) -> None:
    found = judge(recorded(traces(case)))
    assert (found.verdict, found.culprits) == ("divergent", (rank,))
    where = found.divergence
    assert where is not None
    assert (where.rank, where.chunk, where.phase, where.state) == (rank, 1, phase, state)
    assert "in tp_v1.1" in where.place


def test_another_order_and_another_program_are_not_lifted() -> None:
    own = recorded(traces("healthy/two-ranks"))
    for record in own.ranks.values():
        device = record.ops["group"] == own.ranks[0].ops["group"][-2]
        swapped = record.ops["signature"][device][::-1]
        record.ops["signature"][device] = swapped  # the payload comes after the calls
    assert not Lifted(own)
    job = hang(1000, "stall")
    assert job is not None
    interned = Interned()
    records = [read_dump(Path(f"trace_{r}"), dump, interned) for r, dump in dumps_of_hang(job, "2.10").items()]
    assert not Lifted(recording("simulated", interned, records, {}))
