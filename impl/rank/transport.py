"""Runs a rank's operations on torch.distributed (gloo, NCCL), and blocks until each has completed.

A wait that the backend ends by an error, before its own timeout, has lost a peer: gloo has no other way to say so, and
no type for it. Left out: the in-memory simulator (`faults.simulator`), and ending a rank whose collective never
completes: no backend unblocks a pending operation, so whoever watches the deadline ends the process.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from math import inf
from typing import Any, Self

import torch
import torch.distributed as dist

from ...errors import PeerLost
from ...model.tables import Collective, Kind
from ...traces.outcome import first_line
from ..recording.c10d_intercept import group_of
from ..recording.torch_compat import lookup
from .conductor import Conductor
from .operations import BackendFailed, Call, Exchange, Moves, T
from .shared_memory import TOKEN, SharedMemory

BroadcastOptions, GatherOptions = map(lookup, ("distributed.BroadcastOptions", "distributed.GatherOptions"))
default_store = lookup("distributed.distributed_c10d._get_default_store")


class TorchTransport:
    """Holds the groups of one rank. `timeout` is the backend's own; a deadline should end the rank long before."""

    def __init__(self, backend: str, rank: int, world: int, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._timeout = timeout.total_seconds()
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
        device: Any = dist.group.WORLD
        control: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._join({"control": control, "device": device})

    @classmethod
    def over(cls, groups: Mapping[str, dist.ProcessGroup]) -> Self:
        """Return a transport over groups of all ranks that are there already: `control`, on gloo, and `device`."""
        transport = cls.__new__(cls)
        transport._join(groups)
        return transport

    def _join(self, groups: Mapping[str, dist.ProcessGroup]) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.groups = dict(groups)
        self.names = {group_of(group).name: name for name, group in self.groups.items()}
        """Maps the interceptor's names of the groups to those of the table."""
        self._memory = SharedMemory.of(self.groups["control"], default_store())

    def run(self, conductor: Conductor, moves: Moves[T]) -> T:
        """Run a coroutine to its end and return what it returns. Raises what it raises, and PeerLost."""
        pending = conductor.start(moves)
        while pending is not None:
            pending = conductor.advance(self.perform(*pending))
        result: T = conductor.result
        return result

    _memory: SharedMemory | None = None
    """Carries large payloads; None where the ranks share none."""
    _timeout = inf

    def reserve(self, payload: torch.Tensor) -> None:
        """Set aside all that sending this payload takes, so that it cannot fail. Raises GenlockError."""
        if self._memory is not None and self._memory.fits(payload):
            self._memory.reserve(payload.nbytes)

    issued: Callable[[str], None] = staticmethod(lambda name: None)
    """Called when a collective of the control plane is with the backend, before it is waited for."""

    def perform(self, op: Collective, operation: Exchange | Call) -> Any:
        """Issue one collective and wait for it; returns what it delivered to this rank.

        Raises PeerLost where the backend gave it up, and the backend's own error where that is for its timeout.
        """
        begin = time.monotonic()
        try:
            if isinstance(operation, Call):
                return operation.work()
            return self._exchange(op, operation.tensor)
        except (BackendFailed, dist.DistError) as error:
            cause = (error.__cause__ or error) if isinstance(error, BackendFailed) else error
            if time.monotonic() - begin >= self._timeout:
                raise cause from None
            first = re.sub(r"^\[\S+:\d+\] ", "", first_line(cause).partition(": ")[2])[:200]  # without the line of C++
            raise PeerLost(f"the backend lost a peer during {op.name}: {first}", where=f"rank{self.rank}") from cause

    def close(self) -> None:
        """Leave the groups, after SHUTDOWN, and end gloo's threads, which goes with the last reference to a group.

        A thread that lets go of a tensor only while the interpreter is torn down aborts the process
        (pytorch/pytorch#190489).
        """
        dist.destroy_process_group()
        if self._memory is not None:
            self._memory.close()
        self.groups, self._memory = {}, None
        gc.collect()

    def _exchange(self, op: Collective, tensor: torch.Tensor) -> Any:
        # what comes with each chunk goes to the group itself: torch.distributed's checks and logging around it
        # take as long as all of ours
        group, root = self.groups[op.group], op.root or 0
        if op.kind is Kind.BROADCAST:
            memory = self._memory if self._memory is not None and self._memory.fits(tensor) else None
            sent = tensor
            if memory is not None:
                sent = memory.put(tensor) if self.rank == root else torch.empty(TOKEN, dtype=torch.uint8)
            broadcast = BroadcastOptions()
            broadcast.rootRank, broadcast.rootTensor, broadcast.asyncOp = root, 0, False
            work = self._begun(op, group.broadcast([sent], broadcast))
            if work is not None:  # as NCCL gives where the device's stream waits, not the host (torch 2.8 on)
                _wait(work)
            if memory is not None and self.rank != root:
                memory.take(sent, tensor, f"rank{self.rank}, {op.name}")
            return tensor
        if op.kind is Kind.GATHER:
            gather = GatherOptions()
            gather.rootRank = root
            everyone = [torch.empty_like(tensor) for _ in range(self.world)] if self.rank == root else []
            _wait(self._begun(op, group.gather([everyone] if everyone else [], [tensor], gather)))
            return everyone or None
        if op.kind is Kind.ALL_GATHER:
            everyone = [torch.empty_like(tensor) for _ in range(self.world)]
            _wait(self._begun(op, dist.all_gather(everyone, tensor, group=group, async_op=True)))
            return everyone
        raise ValueError(f"{op.name} is no collective of the control plane")

    def _begun(self, op: Collective, work: Any) -> Any:
        self.issued(op.name)
        return work


def _wait(work: Any) -> None:
    try:
        work.wait()
    except (RuntimeError, ValueError) as error:
        raise BackendFailed from error
