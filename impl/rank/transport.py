"""Runs a rank's operations on torch.distributed (gloo, NCCL), and blocks until each has completed.

Left out: the in-memory simulator (`simulator`), and ending a rank whose collective never completes: no
backend unblocks a pending operation, so whoever watches the deadline ends the process.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from ...errors import Exit, GenlockError
from ...model.tables import Collective, Kind
from ..recording.c10d_intercept import group_of
from ..recording.torch_compat import found
from .conductor import Conductor
from .operations import Call, Exchange, Moves, T
from .shared_memory import TOKEN, Commons

BroadcastOptions, GatherOptions = map(found, ("distributed.BroadcastOptions", "distributed.GatherOptions"))
default_store = found("distributed.distributed_c10d._get_default_store")


class PeerLost(GenlockError):
    """The backend reports that a peer is gone."""

    exit = Exit.PEER_DIED


class TorchTransport:
    """The groups of one rank. `timeout` is the backend's own; a deadline should end the rank long before."""

    def __init__(self, backend: str, rank: int, world: int, timeout: timedelta = timedelta(minutes=30)) -> None:
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
        device: Any = dist.group.WORLD
        control: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._join({"control": control, "device": device})

    @classmethod
    def over(cls, groups: Mapping[str, dist.ProcessGroup]) -> Self:
        """A transport over groups of all ranks that are there already: `control`, on gloo, and `device`."""
        transport = cls.__new__(cls)
        transport._join(groups)
        return transport

    def _join(self, groups: Mapping[str, dist.ProcessGroup]) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.groups = dict(groups)
        self.names = {group_of(group).name: name for name, group in self.groups.items()}
        """What the interceptor calls the groups, to what the table calls them."""
        self._commons = Commons.of(self.groups["control"], default_store())

    def run(self, conductor: Conductor, moves: Moves[T]) -> T:
        """Run a coroutine to its end and return what it returns. Raises what it raises, and PeerLost."""
        pending = conductor.start(moves)
        while pending is not None:
            pending = conductor.advance(self.perform(*pending))
        result: T = conductor.result
        return result

    _commons: Commons | None = None
    """By which large payloads go; None where the ranks have none."""

    def reserve(self, payload: torch.Tensor) -> None:
        """Have all that sending this payload takes, so that it cannot fail. Raises GenlockError."""
        if self._commons is not None and self._commons.fits(payload):
            self._commons.reserve(payload.nbytes)

    issued: Callable[[str], None] = staticmethod(lambda name: None)
    """Told when a collective of the control plane is with the backend, before it is waited for."""

    def perform(self, op: Collective, operation: Exchange | Call) -> Any:
        """Issue one collective and wait for it; returns what it delivered to this rank."""
        try:
            if isinstance(operation, Call):
                return operation.work()
            return self._exchange(op, operation.tensor)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, dist.DistError) or "onnection" in str(error) or "peer" in str(error):
                first = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0])[:200]  # without the line of C++
                raise PeerLost(
                    f"the backend lost a peer during {op.name}: {first}", where=f"rank{self.rank}"
                ) from error
            raise

    def close(self) -> None:
        """Leave the groups, after SHUTDOWN, and end gloo's threads, which goes with the last reference to a group.

        A thread that lets go of a tensor only while the interpreter is torn down aborts the process
        (pytorch/pytorch#190489).
        """
        dist.destroy_process_group()
        if self._commons is not None:
            self._commons.close()
        self.groups, self._commons = {}, None
        gc.collect()

    def _exchange(self, op: Collective, tensor: torch.Tensor) -> Any:
        # what comes with each chunk goes to the group itself: torch.distributed's checks and logging around it
        # take as long as all of ours
        group, root = self.groups[op.group], op.root or 0
        if op.kind is Kind.BROADCAST:
            commons = self._commons if self._commons is not None and self._commons.fits(tensor) else None
            sent = tensor
            if commons is not None:
                sent = commons.put(tensor) if self.rank == root else torch.empty(TOKEN, dtype=torch.uint8)
            broadcast = BroadcastOptions()
            broadcast.rootRank, broadcast.rootTensor, broadcast.asyncOp = root, 0, False
            work = self._begun(op, group.broadcast([sent], broadcast))
            if work is not None:  # as NCCL gives where the device's stream waits, not the host (torch 2.8 on)
                work.wait()
            if commons is not None and self.rank != root:
                commons.take(sent, tensor, f"rank{self.rank}, {op.name}")
            return tensor
        if op.kind is Kind.GATHER:
            gather = GatherOptions()
            gather.rootRank = root
            everyone = [torch.empty_like(tensor) for _ in range(self.world)] if self.rank == root else []
            self._begun(op, group.gather([everyone] if everyone else [], [tensor], gather)).wait()
            return everyone or None
        if op.kind is Kind.ALL_GATHER:
            everyone = [torch.empty_like(tensor) for _ in range(self.world)]
            self._begun(op, dist.all_gather(everyone, tensor, group=group, async_op=True)).wait()
            return everyone
        raise ValueError(f"{op.name} is no collective of the control plane")

    def _begun(self, op: Collective, work: Any) -> Any:
        self.issued(op.name)
        return work
