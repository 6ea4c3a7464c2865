"""Gives a tensor-parallel generator what it needs of its peers: a sum over ranks, and a ledger of the sums so far.

Left out: every other collective, since a generator call has none, and what may be issued when (`fence`).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

from ...errors import UsageError
from ..chunk import digest


class TensorParallel(Protocol):
    """Sums over the ranks, and keeps a ledger of the sums.

    `observed` counts the collectives issued since `reset`; `sequence_hash` chains their operation, dtype and number of
    elements. Both are equal on all ranks, whatever the world size.

    Compiled code issues its collectives without this ledger: those are counted by the fence alone.
    """

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def observed(self) -> int: ...
    @property
    def sequence_hash(self) -> int: ...
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all ranks; it may be `tensor` itself, changed in place."""
        ...

    def reset(self) -> None:
        """Count and hash from nothing again."""
        ...


class Solo:
    """Serves one rank: there is nothing to reduce, but it is counted and hashed like the real thing."""

    rank = 0
    world = 1

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.observed, self.sequence_hash = 0, digest.SEQUENCE_START

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._note("all_reduce", tensor)
        return tensor

    def _note(self, op: str, tensor: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self.observed += 1
            self.sequence_hash = digest.chain(self.sequence_hash, op, digest.dtype_name(tensor.dtype), tensor.numel())


class Distributed(Solo):
    """Sums over the ranks of a torch.distributed group (the default one if None).

    A rank's shard is its rank in it.

    Compiled code issues functional collectives, which a compiler can trace; `functional` does so in any case.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, functional: bool = False) -> None:
        super().__init__()
        found = group or dist.group.WORLD
        if found is None:
            raise UsageError("there is no process group", do="call init_process_group first")
        self._group, self._name, self._functional = found, found.group_name, functional
        self.rank, self.world = found.rank(), found.size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._note("all_reduce", tensor)
        tensor = tensor.contiguous()  # gloo would send garbage, NCCL refuse on this rank alone
        if self._functional or torch.compiler.is_compiling():
            summed = funcol.wait_tensor(funcol.all_reduce(tensor, "sum", self._name))  # type: ignore[no-untyped-call]
            assert isinstance(summed, Tensor)
            return summed
        dist.all_reduce(tensor, group=self._group)
        return tensor
