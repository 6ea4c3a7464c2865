"""Runs one rank of a job: its trace, monitor, deadline and signals, its groups, and the guard of their collectives.

The caller brings the generator and, on rank0, the application: `jobs.rank_main` a scenario with the small video model,
`serve` whatever a user has. An error ends the process, exit status as in `errors.Exit`; the trace's end marker says
why. Left out: starting ranks (`jobs.launch`, torchrun).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

import torch

from ...errors import ContractViolation, Exit, GenlockError, PeerLost, UsageError
from ...model.protocols.tp_v1_1 import TP_V1_1
from ...traces.format import Cause
from ...traces.recorder import Recorder
from ..recording.c10d_intercept import BLIND_SPOTS as UNSEEN
from ..recording.c10d_intercept import watch
from ..scenario import DEADLINES, effective
from . import devices as devices_of
from . import flight_recorder_dump
from .collective_guard import CallLimits, CollectiveGuard, GuardedGenerator, Uncounted
from .conductor import Conductor
from .deadline import Deadline
from .drain import Drain
from .heartbeat import Beat
from .monitor import Monitor
from .operations import Moves, T
from .roles import Generator, Settings, Worker
from .trace_header import header
from .transport import TorchTransport

BLIND_SPOTS = ("collectives inside a generator call are counted and hashed, not recorded one by one", *UNSEEN)
VERSIONS = {"torch": str(torch.__version__), "python": sys.version.split()[0]}


class RankRuntime:
    """Runs the rank that the environment names (RANK, WORLD_SIZE, as torchrun sets them).

    Make it in the main thread: from then on the rank has a trace and holds signals, and a launcher takes the one as a
    sign of the other.

    `deadlines` are seconds by phase. Raises UsageError without the environment, or where the trace exists already.
    """

    def __init__(
        self,
        run: str,
        out: Path,
        backend: str,
        deadlines: Mapping[str, float],
        monitor: Callable[[int], Monitor] = lambda rank: Monitor(TP_V1_1.role(rank), rank),
        transport: type[TorchTransport] = TorchTransport,
    ) -> None:
        self.rank, self.world = _number("RANK"), _number("WORLD_SIZE")
        self.backend, self._out, self._transport = backend, out, transport
        self.monitor, self.drain = monitor(self.rank), Drain()
        try:
            self.recorder = Recorder(out, header(run, self.rank, self.world, backend, VERSIONS, BLIND_SPOTS))
        except FileExistsError:
            self.drain.close()
            raise UsageError("there are traces in this folder already", where=str(out), do="choose another") from None
        self.conductor = Conductor(self.monitor, self.recorder)
        self.beat = Beat.open()
        self.conductor.moved = lambda: self._beat(deadlines)
        if flight_recorder_dump.wanted():
            self.beat.last_words(lambda: flight_recorder_dump.dump(out, self.rank, hurry=True))
        # under a guardian its clocks count, which charge nobody for waiting
        limits = {**dict.fromkeys(DEADLINES, inf), "drain": effective(deadlines)["drain"]}
        self._deadline = Deadline(self.monitor, self.recorder, limits if self.beat.guarded else deadlines, self.drain)
        self._deadline.last_words = lambda: flight_recorder_dump.dump(out, self.rank)

    def connect(self) -> TorchTransport:
        """Join the groups of all ranks; returns the transport, which has them by name."""
        if self.backend == "nccl":
            self._take_gpu()
        with self.beat.waiting():
            self.transport = self._transport(self.backend, self.rank, self.world)
        return self.transport

    def _take_gpu(self) -> None:
        """Take the GPU of this rank before any group is made, and tell NCCL if others have it too."""
        if not torch.cuda.is_available():
            raise UsageError("NCCL needs a GPU, and this torch sees none", do="use gloo")
        devices, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        for name, value in devices_of.sharing(self.rank, here, devices).items():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % devices)

    @property
    def device(self) -> torch.device:
        """Return where this rank's tensors live."""
        return torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")

    def guarded(self, generator: Uncounted, calls: CallLimits) -> Generator:
        """Return the generator with its calls held to `calls`. Nothing else may be issued from here on."""
        guard = CollectiveGuard(self.monitor, self.transport.names, {"generate": calls}, self.recorder)
        watch(guard)
        if self.beat.guarded:
            watch(self.beat)
        return GuardedGenerator(generator, guard)

    def _beat(self, deadlines: Mapping[str, float]) -> None:
        """Tell the guardian where this rank is; of a phase that has no deadline of its own here, it has one."""
        monitor = self.monitor
        v, phase = monitor.vars, monitor.phase
        committed = f"call_id={v.call_id}, chunk {v.chunk_index}" if v.call_id else ""
        self.beat.move(phase, committed, deadlines.get(phase, 0.0))

    def run(self, moves: Moves[T]) -> T:
        """Run one of the role's coroutines to its end."""
        return self.transport.run(self.conductor, moves)

    def serve(self, settings: Settings, generator: Generator) -> None:
        """Live a worker's life, to SHUTDOWN."""
        worker = Worker(self.monitor, settings, generator)
        worker.signalled = self.drain.requested.is_set
        self.run(worker.serve())

    def hold(self, work: Callable[[], None]) -> int:
        """Do the rank's work, and leave in order; returns the exit status. What it raises ends the process."""
        try:
            work()
            drained = f"drained on {self.drain.signal}" if self.drain.requested.is_set() else ""
            self.recorder.end("stopped", Exit.OK, drained)
            flight_recorder_dump.dump(self._out, self.rank)
            self._deadline.stop()
            self.transport.close()
            self.drain.deafen()
        except BaseException as error:
            self._abort(error)
        return Exit.OK

    def _abort(self, error: BaseException) -> None:
        """Record how this rank was poisoned, say so, and die without waiting for anybody."""
        cause: Cause = "exception"
        status: int = Exit.CONTRACT
        event = "exception"
        if isinstance(error, PeerLost):
            cause, status, event = "peer_lost", Exit.PEER_DIED, "peer_lost"
        elif isinstance(error, ContractViolation):
            cause, status = ("parity" if error.exit == Exit.PARITY else "violation"), error.exit
        try:
            self.conductor.fail(error, event)
        finally:
            message = str(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {error}"
            if f"rank{self.rank}" not in message:
                message = f"rank{self.rank}: {message}"
            self.recorder.end(cause, status, message)
            say(message)
            with contextlib.suppress(Exception):
                flight_recorder_dump.dump(self._out, self.rank)
            if not isinstance(error, GenlockError):
                sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(status)


def say(text: str) -> None:
    """Print one line for the user, which the launcher passes on."""
    sys.stderr.write(f"genlock: {text}\n")  # in one write: other ranks write to the same place
    sys.stderr.flush()


def _number(variable: str) -> int:
    try:
        return int(os.environ[variable])
    except (KeyError, ValueError):
        raise UsageError(f"the environment has no {variable}", do="start the ranks with torchrun") from None
