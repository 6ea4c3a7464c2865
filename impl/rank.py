"""One rank of `genlock run`: started by torchrun, it runs a scenario with the small generator and pipeline.

Exit status as in `errors.Exit`; the trace's end marker says why. Left out: starting it (`launch`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import torch

from ..errors import ContractViolation, Exit, GenlockError, Refused
from ..model.protocol import TP_V1_1
from ..traces.format import FORMAT_VERSION, Cause, Clock, TraceHeader
from ..traces.recorder import Recorder
from . import parity
from .conductor import Conductor
from .deadline import Deadline
from .generator import Distributed, Generator, tiny
from .inject import FAULTS
from .monitor import Monitor
from .pipeline import Pipeline, PipelineConfig
from .roles import Rank0, Settings, Worker
from .scenario import Heartbeat, RunConfig
from .transport import PeerLost, TorchTransport

BLIND_SPOTS = ("collectives inside a generator call are counted and hashed, not recorded one by one",)


def main(config_path: str) -> int:
    """Run this rank to its end; returns its exit status."""
    _die_with_parent()
    config = msgspec.json.decode(Path(config_path).read_bytes(), type=RunConfig)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    role = TP_V1_1.role(rank)
    fault = FAULTS[config.injection.id] if config.injection else None
    build = fault.build if fault else Rank0
    monitor = Monitor(role, rank, enforce=rank > 0 or build is Rank0)
    recorder = Recorder(Path(config.out), _header(config, rank, world))
    conductor = Conductor(monitor, recorder)
    deadline = Deadline(monitor, recorder, config.deadlines)
    status: int = Exit.OK
    try:
        transport = TorchTransport(config.backend, rank, world)
        device = f"cuda:{torch.cuda.current_device()}" if config.backend == "nccl" else "cpu"
        generator = Generator(tiny(), Distributed(transport.groups["device"]), device=device)
        settings = Settings(parity.own_facts(TP_V1_1, world, {"generator": repr(tiny())}), device=device)
        if rank == 0:
            drive(build(monitor, settings, generator), conductor, transport, config)
        else:
            transport.run(conductor, Worker(monitor, settings, generator).serve())
        recorder.end("stopped", Exit.OK)
        deadline.stop()
        transport.close()
    except BaseException as error:
        status = _abort(error, conductor, recorder)
    return status


def drive(rank0: Rank0, conductor: Conductor, transport: TorchTransport, config: RunConfig) -> None:
    """Rank0's application: the scenario, phase A and C around each chunk, and the injected fault."""
    pipeline = Pipeline(PipelineConfig(recompute_every=0), tiny())
    transport.run(conductor, rank0.startup())
    number = 0
    for step in config.scenario.steps:
        if isinstance(step, Heartbeat):
            transport.run(conductor, rank0.heartbeat())
            continue
        number += 1
        fields = pipeline.prepare(step.prompt, hard_cut=step.hard_cut, recompute=step.recompute)
        code = rank0
        if config.injection is not None and config.injection.chunk == number:
            fields = FAULTS[config.injection.id].spoil(fields)
        elif type(rank0) is not Rank0:
            code = Rank0(rank0.monitor, rank0.settings, rank0.generator)
        try:
            output = transport.run(conductor, code.chunk(fields))
        except Refused as refusal:
            sent = "nothing was sent" if type(code) is Rank0 else "after its header was sent"
            say(f"rank0 refused a chunk, {sent}: {refusal}")
            continue
        pipeline.commit()
        pipeline.finish(output)
    transport.run(conductor, rank0.shutdown())


def say(text: str) -> None:
    """One line for the user, which the launcher passes on."""
    print(f"genlock: {text}", file=sys.stderr, flush=True)


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
