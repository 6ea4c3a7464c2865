"""One rank of `genlock run`: started by torchrun, it runs a scenario with the small generator and pipeline.

Exit status as in `errors.Exit`; the trace's end marker says why. Left out: starting it (`launch`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..errors import ContractViolation, Exit, GenlockError, Refused
from ..model.protocol import TP_V1_1
from ..model.tables import Collective, Data, Row
from ..traces.format import FORMAT_VERSION, Cause, Clock, TraceHeader
from ..traces.recorder import Recorder
from . import digest, parity
from .conductor import Conductor
from .deadline import Deadline
from .drain import Drain
from .envelope import Mode
from .fence import Fence, Fenced, Inside
from .generator import ALL_REDUCES_PER_BLOCK, Distributed, Generator, GeneratorConfig, tiny
from .inject import Faulty, Here
from .intercept import BLIND_SPOTS as UNSEEN
from .intercept import watch
from .monitor import Monitor
from .operations import Call, Exchange
from .pipeline import Pipeline, PipelineConfig
from .roles import Rank0, Settings, Worker
from .scenario import Chunk, Heartbeat, RunConfig, Wait
from .transport import PeerLost, TorchTransport

BLIND_SPOTS = ("collectives inside a generator call are counted and hashed, not recorded one by one", *UNSEEN)
PLAN = Inside(count=ALL_REDUCES_PER_BLOCK * tiny().blocks, dtypes=frozenset({tiny().dtype, "float32"}))
"""What a call of the small generator may issue."""


class _Watched(Monitor):
    """A monitor that tells an injected fault where the rank has come to."""

    arrived: Callable[[], None] = staticmethod(lambda: None)

    def _arrive(self, row: Row, data: Data) -> None:
        super()._arrive(row, data)
        self.arrived()


class _Transport(TorchTransport):
    """A transport that lets an injected fault at what arrived."""

    received: Callable[[str, torch.Tensor], None] = staticmethod(lambda name, tensor: None)

    def perform(self, op: Collective, operation: Exchange | Call) -> Any:
        delivered = super().perform(op, operation)
        if isinstance(delivered, torch.Tensor):
            self.received(op.name, delivered)
        return delivered


def main(config_path: str) -> int:
    """Run this rank to its end; returns its exit status."""
    _die_with_parent()
    config = msgspec.json.decode(Path(config_path).read_bytes(), type=RunConfig)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    here = Here(config.injection, rank)
    monitor = _Watched(TP_V1_1.role(rank), rank, enforce=rank > 0 or here.fault.enforce)
    drain = Drain()
    # from here on the launcher may signal: it takes a trace as the sign that signals are held
    recorder = Recorder(Path(config.out), _header(config, rank, world))
    conductor = Conductor(monitor, recorder)
    deadline = Deadline(monitor, recorder, config.deadlines, drain)
    monitor.arrived = lambda: _arrived(here, monitor, config, drain)
    status: int = Exit.OK
    try:
        transport = _Transport(config.backend, rank, world)
        transport.received = lambda name, tensor: here.received(name, tensor, monitor.vars.chunk_index)
        shape = here.config(tiny())
        device = f"cuda:{torch.cuda.current_device()}" if config.backend == "nccl" else "cpu"
        own = Generator(shape, Distributed(transport.groups["device"]), device=device)
        settings = _settings(config, world, shape, own, here)
        fence = Fence(monitor, transport.names, {"generate": PLAN}, recorder)
        watch(fence)
        generator = Fenced(here.generator(own), fence)
        if rank == 0:
            drive(here.fault.build(monitor, settings, generator), conductor, transport, config, here, drain)
        else:
            worker = Worker(monitor, settings, generator)
            worker.signalled = drain.requested.is_set
            transport.run(conductor, worker.serve())
        recorder.end("stopped", Exit.OK, f"drained on {drain.signal}" if drain.requested.is_set() else "")
        deadline.stop()
        transport.close()
    except BaseException as error:
        status = _abort(error, conductor, recorder)
    return status


def _settings(config: RunConfig, world: int, shape: GeneratorConfig, own: Generator, here: Here) -> Settings:
    """What this rank says that it is."""
    posture = parity.Posture(
        dtype=shape.dtype,
        attention_backend=shape.attention,
        kv_bias_backend=shape.attention,
        compile="off",
        recompute_schedule="as the scenario asks",
        flags={"generator": repr(shape), "backend": config.backend, "test_hook": "off"},
    )
    return Settings(
        here.facts(parity.own_facts(TP_V1_1, world, posture.facts)),
        Mode(config.scenario.conditioning),
        own.device,
        digest.Policy(every=config.scenario.digest_every),
        lambda: parity.Fingerprint(own.shard_fingerprint(), own.replica_fingerprint()),
    )


def drive(
    rank0: Rank0, conductor: Conductor, transport: TorchTransport, config: RunConfig, here: Here, drain: Drain
) -> None:
    """Rank0's application: the scenario, phase A and C around each chunk, and the injected fault.

    A drain ends it after the chunk that it has handed to rank0; one that is still in phase A is given up.
    """
    pipeline = Pipeline(PipelineConfig(recompute_every=0, mode=Mode(config.scenario.conditioning)), tiny())
    transport.run(conductor, rank0.startup())
    number = 0
    for step in config.scenario.steps:
        if isinstance(step, Wait):
            drain.requested.wait(step.seconds)
        if drain.requested.is_set():
            break
        if isinstance(step, Heartbeat):
            transport.run(conductor, rank0.heartbeat())
        elif isinstance(step, Chunk):
            number += 1
            fault = here.spoils(number, step.spoil)
            fields = pipeline.prepare(step.prompt, hard_cut=step.hard_cut or fault.cuts, recompute=step.recompute)
            if fault.spoil:
                fields = fault.spoil(fields)
            if drain.requested.is_set():
                break
            if isinstance(rank0, Faulty) and config.injection is not None:
                rank0.armed, rank0.kind = config.injection.chunk == number, config.injection.kind
            _chunk(rank0, conductor, transport, pipeline, fields)
    transport.run(conductor, rank0.shutdown("drain" if drain.requested.is_set() else "shutdown"))


def _chunk(
    rank0: Rank0, conductor: Conductor, transport: TorchTransport, pipeline: Pipeline, fields: dict[str, Any]
) -> None:
    """One chunk through phases B and C; a refusal is told, and the run goes on."""
    try:
        output = transport.run(conductor, rank0.chunk(fields))
    except Refused as refusal:
        sent = "after its header was sent" if isinstance(rank0, Faulty) and rank0.armed else "nothing was sent"
        say(f"rank0 refused a chunk, {sent}: {refusal}")
        return
    pipeline.commit()
    pipeline.finish(output)


def _arrived(here: Here, monitor: Monitor, config: RunConfig, drain: Drain) -> None:
    """Where a fault wants the launcher to be signalled: do so, and stay here until the signal has come back."""
    if here.reached(monitor.phase, monitor.vars.chunk_index, config.launcher):
        drain.requested.wait(SIGNAL_COMES_BACK)


SIGNAL_COMES_BACK = 10.0
"""Seconds, at most, that an injected signal may take from here to the launcher and back."""


def say(text: str) -> None:
    """One line for the user, which the launcher passes on."""
    sys.stderr.write(f"genlock: {text}\n")  # in one write: other ranks write to the same place
    sys.stderr.flush()


def _abort(error: BaseException, conductor: Conductor, recorder: Recorder) -> int:
    """Poisoned: record how, say so, and die without waiting for anybody."""
    cause: Cause = "exception"
    status: int = Exit.CONTRACT
    event = "exception"
    if isinstance(error, PeerLost):
        cause, status, event = "peer_lost", Exit.PEER_DIED, "peer_lost"
    elif isinstance(error, ContractViolation):
        cause, status = ("parity" if error.exit == Exit.PARITY else "violation"), error.exit
    try:
        conductor.fail(error, event)
    finally:
        message = str(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {error}"
        recorder.end(cause, status, message)
        say(message)
        if not isinstance(error, GenlockError):
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(status)


def _header(config: RunConfig, rank: int, world: int) -> TraceHeader:
    members = tuple(range(world))
    return TraceHeader(
        FORMAT_VERSION,
        config.run,
        rank,
        world,
        TP_V1_1.role(rank).name,
        config.backend,
        TP_V1_1.name,
        TP_V1_1.digest,
        dict.fromkeys(TP_V1_1.groups, members),
        Clock(time.time_ns(), time.monotonic_ns()),
        {"torch": str(torch.__version__), "python": sys.version.split()[0]},
        BLIND_SPOTS,
    )


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher dies (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
