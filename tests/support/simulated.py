"""A simulated job for the tests: real coroutines and monitors, a generator that only counts, collectives in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from genlock.errors import Refused
from genlock.impl.chunk import parity
from genlock.impl.chunk.retained_tensors import Override
from genlock.impl.faults.simulated_faults import StruckMonitor
from genlock.impl.faults.simulator import Simulation
from genlock.impl.rank.conductor import Conductor
from genlock.impl.rank.monitor import Monitor
from genlock.impl.rank.roles import Rank0, Settings, Worker
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.protocols.tp_values import TPVars
from genlock.model.semantics.properties import Ghost, watch
from genlock.model.tables import Row
from genlock.traces.format import FORMAT_VERSION, Clock, Trace, TraceHeader, read
from genlock.traces.recorder import Recorder

RANKS = 3


def fields(recompute: bool = False, **changes: Any) -> dict[str, Any]:
    """A good chunk, with changes."""
    good: dict[str, Any] = {
        "tp_plan": "v1_generator_only",
        "tp_envelope_version": 1,
        "height": 32,
        "width": 48,
        "current_start_frame": 0,
        "init_cache": False,
        "manage_cache": True,
        "tp_reset_kv_cache": False,
        "tp_reset_crossattn_cache": False,
        "conditioning_embeds_updated": False,
        "kv_cache_attention_bias": 0.0,
        "tp_do_kv_recompute": recompute,
        "tp_num_denoise_steps": 2,
        "tp_expected_generator_calls": 2 + recompute,
        "base_seed": 1,
        "denoising_step_list": torch.tensor([900, 400]),
        "latents": torch.ones(1, 2, 4, dtype=torch.bfloat16),
        "conditioning_embeds": torch.ones(1, 2, 4, dtype=torch.bfloat16),
        "context_frames_override": torch.ones(1, 2, dtype=torch.bfloat16) if recompute else None,
    }
    return good | changes


@dataclass(frozen=True)
class Scalars:
    start_frame: int
    global_end_index: int
    local_end_index: int


class Calls:
    """Phase B without a model: as many calls as the fields say, plus `off_by`."""

    def __init__(self, owner: FakeGenerator, plan: Mapping[str, Any]) -> None:
        self.owner, self.plan = owner, plan
        off_by = owner.off_by if owner.spoilt(plan) else 0
        self.calls = [self.call] * (plan["tp_do_kv_recompute"] + plan["tp_num_denoise_steps"] + off_by)

    def call(self) -> None:
        self.owner.made += 1

    def result(self) -> torch.Tensor:
        latents: torch.Tensor = self.plan["latents"]
        return latents + (self.owner.drift if self.owner.spoilt(self.plan) else 0.0)


class FakeGenerator:
    """A generator that only counts. `off_by` and `drift` make it a broken one, in chunk `at` or in every one."""

    def __init__(self, off_by: int = 0, drift: float = 0.0, at: int = 0) -> None:
        self.off_by, self.drift, self.at, self.made = off_by, drift, at, 0
        self.plans: list[Mapping[str, Any]] = []
        """The fields of each chunk that it was given."""

    def spoilt(self, plan: Mapping[str, Any]) -> bool:
        return self.at in (0, plan["chunk_index"])

    def chunk(self, plan: Mapping[str, Any]) -> Calls:
        self.made = 0
        self.plans.append(plan)
        return Calls(self, plan)

    def counted(self) -> tuple[int, int]:
        return self.made * 8, self.made

    def scalars(self) -> Scalars:
        return Scalars(0, 0, 0)


class Watched(StruckMonitor):
    """A monitor beside which the model's ghosts watch the same moves."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.ghost, self.seen, self.rows = Ghost(), list[str](), set[tuple[str, str]]()

    def _arrive(self, row: Row, data: Any) -> None:
        before = self.vars
        super()._arrive(row, data)
        self._watch(row, "complete" if row.op else "step", data, before)
        self.rows.add(row.key)

    def enter(self, event: str) -> Any:
        op = super().enter(event)
        row = self.role.row(self.state, event)
        self._watch(row, "issue", row.send(self.vars) if row.send else None, self.vars)
        return op

    def _watch(self, row: Row, edge: str, value: Any, before: TPVars) -> None:
        self.ghost, seen = watch(self.ghost, row.event, edge, value, before, self.vars)
        self.seen += seen


class Job:
    """A simulated run of `RANKS` ranks, started up unless told otherwise."""

    def __init__(
        self,
        *,
        generators: Sequence[FakeGenerator] | None = None,
        facts: Sequence[Mapping[str, str]] = (),
        folder: Path | None = None,
        seed: int = 0,
        monitor: type[Monitor] = Monitor,
        settings_of: Callable[[int, Mapping[str, str]], Settings] = lambda rank, own: Settings(own),
        slots: type[Override] = Override,
    ) -> None:
        generators = generators or [FakeGenerator() for _ in range(RANKS)]
        self.monitors = [monitor(TP_V1_1.role(r), r) for r in range(RANKS)]
        conductors = [Conductor(m, Recorder(folder, header(m.rank)) if folder else None) for m in self.monitors]
        self.simulation = Simulation(conductors, seed)
        own = [parity.own_facts(TP_V1_1, RANKS, facts[r] if facts else {}) for r in range(RANKS)]
        roles = [settings_of(r, f) for r, f in enumerate(own)]
        self.rank0 = Rank0(self.monitors[0], roles[0], generators[0])
        self.workers = [Worker(self.monitors[r], roles[r], generators[r]) for r in range(1, RANKS)]
        for role in (self.rank0, *self.workers):
            role.override = slots()
        for worker in self.workers:
            self.simulation.start(worker.monitor.rank, worker.serve())
        self.run(self.rank0.startup())

    def run(self, moves: Any) -> Any:
        """Run one of rank0's coroutines to its end, and return or raise what it does."""
        self.simulation.start(0, moves)
        self.simulation.run(until_idle=[0])
        error = self.simulation.errors.pop(0, None)
        if error is not None:
            raise error
        return self.simulation.conductors[0].result

    def stop(self) -> None:
        """Shut down, let every rank run to its end, and close its trace."""
        if self.monitors[0].state == "IDLE":
            self.run(self.rank0.shutdown())
        self.simulation.run()
        for conductor in self.simulation.conductors:
            if conductor.recorder is not None:
                conductor.recorder.end("stopped", 0)

    def states(self) -> list[str]:
        return [m.state for m in self.monitors]


def watched(job: Job, rank: int) -> Watched:
    """The monitor of a rank, which has ghosts beside it."""
    monitor = job.monitors[rank]
    assert isinstance(monitor, Watched)
    return monitor


def header(rank: int) -> TraceHeader:
    members = tuple(range(RANKS))
    groups = dict.fromkeys(TP_V1_1.group_names, members)
    role, now = TP_V1_1.role(rank).name, Clock(0, 0)
    names = (TP_V1_1.name, TP_V1_1.digest)
    return TraceHeader(FORMAT_VERSION, "sim", rank, RANKS, role, "memory", *names, groups, now)


def healthy(folder: Path, seed: int = 0) -> list[Trace]:
    """The traces of a run with heartbeats, a hard cut, a recompute and a refused chunk."""
    job = Job(folder=folder, seed=seed)
    job.run(job.rank0.heartbeat())
    job.run(job.rank0.chunk(fields(init_cache=True)))
    job.run(job.rank0.heartbeat())
    job.run(job.rank0.chunk(fields(recompute=True)))
    with contextlib.suppress(Refused):
        job.run(job.rank0.chunk(fields(base_seed="not a number")))
    job.run(job.rank0.chunk(fields()))
    job.stop()
    return [read(path) for path in sorted(folder.iterdir())]
