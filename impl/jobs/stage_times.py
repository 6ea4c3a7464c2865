"""Counts each moment of a rank's chunk to one stage, from its trace alone: where a chunk's time goes.

A trace has an event at each move, so the time from one event to the next belongs to the phase that it was spent in.
On NCCL a generator call ends when it is enqueued: there the device's time shows where the host waits for it, in
`digests`. Needs no torch. Left out: what happens inside a generator call (a profiler's matter).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import msgspec

from ...traces.format import Event, Trace
from ...traces.perfetto import Slice

STAGES = {
    "between": "phases A and C on rank0, heartbeats, and waiting for the next chunk",
    "prepare": "preflight",
    "digests": "inputs copied and digested, weights looked after, output digested",
    "header": "the header packet",
    "payload": "the tensors; on a worker their digests too",
    "calls": "the generator",
    "ack": "the acks of all ranks",
}
"""The stages of a chunk, in order."""

BY_PHASE = {
    "idle": "between",
    "preflight": "prepare",
    "header": "header",
    "payload": "payload",
    "generate": "calls",
    "ack": "ack",
}
DIGESTS = ("preflight_materialise", "enter_phase_b", "leave_phase_b")
"""Moves before which a rank does little but digest."""
ENDS = ("acks_agree", "send_ack")
"""Moves with which a rank's chunk is over, when they have completed."""
DROPS = ("refuse", "shutdown", "drain")
"""Moves after which what came before belongs to no chunk."""


class Stage(NamedTuple):
    """Holds a stretch of one chunk of a rank; its times are in ns, by the rank's monotonic clock."""

    chunk: int
    name: str
    start: int
    end: int


class RankProfile(msgspec.Struct, frozen=True):
    """Holds the time of one rank's chunks: median milliseconds of each stage, and of the whole."""

    rank: int
    chunks: int
    stages: dict[str, float]
    whole: float


def stages(trace: Trace) -> Iterator[Stage]:
    """Yield the stages of every chunk that the rank finished, in order of time; neighbours of one name are one."""
    open_stages: list[Stage] = []
    before: int | None = None
    for event in trace.events:
        if before is not None and (name := _stage(event)) is not None:
            last = open_stages[-1] if open_stages else None
            if last is not None and (last.name, last.end) == (name, before):
                open_stages[-1] = last._replace(end=event.time_ns)
            else:
                open_stages.append(Stage(0, name, before, event.time_ns))
        before = event.time_ns
        if event.transition in ENDS and event.edge != "enter":
            yield from (stage._replace(chunk=event.chunk) for stage in open_stages)
        if event.transition in (*ENDS, *DROPS) and event.edge != "enter":
            open_stages = []


def _stage(event: Event) -> str | None:
    """Return the stage that the time before an event belongs to; None at start-up and on the way out."""
    return "digests" if event.transition in DIGESTS else BY_PHASE.get(event.phase)


def profile(trace: Trace) -> RankProfile:
    """Measure a rank's chunks."""
    chunks: dict[int, dict[str, float]] = {}
    for stage in stages(trace):
        chunk = chunks.setdefault(stage.chunk, dict.fromkeys(STAGES, 0.0))
        chunk[stage.name] += (stage.end - stage.start) / 1e6
    if not chunks:
        return RankProfile(trace.rank, 0, {}, 0.0)
    medians = {name: median(chunk[name] for chunk in chunks.values()) for name in STAGES}
    return RankProfile(trace.rank, len(chunks), medians, median(sum(chunk.values()) for chunk in chunks.values()))


def as_text(profiles: Sequence[RankProfile]) -> list[str]:
    """Return a table, a line a rank; no lines where no rank has finished a chunk."""
    done = [p for p in profiles if p.chunks]
    if not done:
        return []
    lines = [f"where a chunk's time goes (ms, median of {max(p.chunks for p in done)}):"]
    lines.append("  " + "rank".ljust(6) + "".join(name.rjust(9) for name in (*STAGES, "whole")))
    for p in done:
        times = (*p.stages.values(), p.whole)
        lines.append("  " + f"rank{p.rank}".ljust(6) + "".join(f"{ms:9.2f}" for ms in times))
    return lines


def slices(trace: Trace) -> Iterator[Slice]:
    """Yield the stages as slices of a Perfetto trace."""
    shift = trace.header.clock.wall_ns - trace.header.clock.monotonic_ns
    for stage in stages(trace):
        about = {"chunk": stage.chunk, "about": STAGES[stage.name]}
        yield Slice(trace.rank, stage.name, stage.start + shift, stage.end + shift, None, about)
