"""Runs one rank of `genlock run`, which torchrun starts: a scenario with the small generator and pipeline.

Exit status as in `errors.Exit`; the trace's end marker says why. Left out: starting it (`launch`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...errors import Refused
from ...model.protocols.tp_v1_1 import TP_V1_1
from ...model.tables import Collective, Data, Row
from ..chunk import digest, parity
from ..chunk.schema import Mode
from ..chunk.weight_check import WeightCheck
from ..faults import process_faults
from ..faults.inject import Faulty, Here
from ..rank.collective_guard import CallLimits
from ..rank.monitor import Monitor
from ..rank.operations import Call, Exchange
from ..rank.parent_death import die_with_parent
from ..rank.rank_runtime import RankRuntime, say
from ..rank.roles import Rank0, Settings
from ..rank.transport import TorchTransport
from ..scenario import Chunk, Heartbeat, RunConfig, Wait
from ..video.config import ALL_REDUCES_PER_BLOCK, GeneratorConfig, tiny
from ..video.generator import Generator
from ..video.pipeline import Pipeline, PipelineConfig
from ..video.tensor_parallel import Distributed

PLAN = CallLimits(count=ALL_REDUCES_PER_BLOCK * tiny().blocks, dtypes=frozenset({tiny().dtype, "float32"}))
"""The collectives that a call of the small generator may issue."""


class _Watched(Monitor):
    """Monitors a rank, and tells an injected fault where it has come to."""

    arrived: Callable[[], None] = staticmethod(lambda: None)

    def _arrive(self, row: Row, data: Data) -> None:
        super()._arrive(row, data)
        self.arrived()


class _Transport(TorchTransport):
    """Moves bytes between ranks, and lets an injected fault at what arrived."""

    received: Callable[[str, torch.Tensor], None] = staticmethod(lambda name, tensor: None)

    def perform(self, op: Collective, operation: Exchange | Call) -> Any:
        delivered = super().perform(op, operation)
        if isinstance(delivered, torch.Tensor):
            self.received(op.name, delivered)
        return delivered


def main(config_path: str) -> int:
    """Run this rank to its end; returns its exit status."""
    die_with_parent()
    config = msgspec.json.decode(Path(config_path).read_bytes(), type=RunConfig)
    torch.set_num_threads(1)
    own = int(os.environ["RANK"])
    here = Here(config.injection, own, lambda: process_faults.note(Path(config.out), own), config.launcher)

    def monitor(rank: int) -> Monitor:
        watched = _Watched(TP_V1_1.role(rank), rank, enforce=rank > 0 or here.fault.enforce)
        watched.arrived = lambda: _arrived(here, runtime, config)
        return watched

    runtime = RankRuntime(config.run, Path(config.out), config.backend, config.deadlines, monitor, _Transport)
    return runtime.hold(lambda: _work(runtime, config, here))


def _work(runtime: RankRuntime, config: RunConfig, here: Here) -> None:
    """Do the rank's work between its start and its end."""
    groups = runtime.connect()
    assert isinstance(groups, _Transport)
    groups.received = lambda name, tensor: here.received(name, tensor, runtime.monitor.vars.chunk_index)
    groups.issued = lambda name: here.issued(name, runtime.monitor.vars.chunk_index)
    shape = here.config(tiny())
    own = Generator(shape, Distributed(groups.groups["device"]), device=runtime.device)
    settings = _settings(config, runtime.world, shape, own, here, groups.reserve)
    generator = runtime.guarded(here.generator(own), PLAN)
    if runtime.rank == 0:
        drive(here.fault.build(runtime.monitor, settings, generator), runtime, config, here)
    else:
        runtime.serve(settings, generator)


def _settings(
    config: RunConfig,
    world: int,
    shape: GeneratorConfig,
    own: Generator,
    here: Here,
    reserve: Callable[[torch.Tensor], None],
) -> Settings:
    """Return what this rank says that it is, and how it prepares what it sends."""
    posture = parity.Posture(
        dtype=shape.dtype,
        attention_backend=shape.attention,
        kv_bias_backend=shape.attention,
        compile=shape.compile,
        recompute_schedule="as the scenario asks",
        flags={"generator": repr(shape), "backend": config.backend, "test_hook": "off"},
    )
    return Settings(
        here.facts(parity.own_facts(TP_V1_1, world, posture.facts)),
        Mode(config.scenario.conditioning),
        own.device,
        digest.Policy(every=config.scenario.digest_every),
        lambda: parity.Fingerprint(own.shard_fingerprint(), own.replica_fingerprint()),
        WeightCheck(own.weights).damage,
        reserve,
    )


def drive(rank0: Rank0, runtime: RankRuntime, config: RunConfig, here: Here) -> None:
    """Run rank0's application: the scenario, phase A and C around each chunk, and the injected fault.

    A drain ends it after the chunk that it has handed to rank0; one that is still in phase A is given up.
    """
    pipeline = Pipeline(PipelineConfig(recompute_every=0, mode=Mode(config.scenario.conditioning)), tiny())
    drain = runtime.drain.requested
    runtime.run(rank0.startup())
    number = 0
    for step in config.scenario.steps:
        if isinstance(step, Wait):
            drain.wait(step.seconds)
        if drain.is_set():
            break
        if isinstance(step, Heartbeat):
            runtime.run(rank0.heartbeat())
        elif isinstance(step, Chunk):
            number += 1
            fault = here.spoils(number, step.spoil)
            fields = pipeline.prepare(step.prompt, hard_cut=step.hard_cut or fault.cuts, recompute=step.recompute)
            if fault.spoil:
                fields = fault.spoil(fields)
            if drain.is_set():
                break
            if isinstance(rank0, Faulty) and config.injection is not None:
                rank0.armed, rank0.kind = config.injection.chunk == number, config.injection.kind
            _chunk(rank0, runtime, pipeline, fields)
    runtime.run(rank0.shutdown("drain" if drain.is_set() else "shutdown"))


def _chunk(rank0: Rank0, runtime: RankRuntime, pipeline: Pipeline, fields: dict[str, Any]) -> None:
    """Take one chunk through phases B and C; report a refusal, and go on."""
    try:
        output = runtime.run(rank0.chunk(fields))
    except Refused as refusal:
        sent = "after its header was sent" if isinstance(rank0, Faulty) and rank0.armed else "nothing was sent"
        say(f"rank0 refused a chunk, {sent}: {refusal}")
        return
    pipeline.commit()
    pipeline.finish(output)


def _arrived(here: Here, runtime: RankRuntime, config: RunConfig) -> None:
    """Have a fault strike that waits for this rank to come here; of a signal, stay until it has come back."""
    monitor = runtime.monitor
    runtime.conductor.moved()  # the guardian has to know where it struck
    if monitor.failed:
        here.poisoned()
    if here.reached(monitor.phase, monitor.vars.chunk_index):
        runtime.drain.requested.wait(SIGNAL_COMES_BACK)


SIGNAL_COMES_BACK = 10.0
"""Seconds, at most, that an injected signal may take from here to the launcher and back."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
