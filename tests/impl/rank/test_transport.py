"""What a rank issues on a real group for a row of the schedule: the one collective that the row says, of any size.

And that nothing of its groups is left when it has closed them.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from genlock.impl.chunk import wire
from genlock.impl.rank.operations import Exchange
from genlock.impl.rank.transport import TorchTransport
from genlock.model.protocols.tp_v1_1 import HEADER, PAYLOAD
from genlock.model.tables import Collective


class Group:
    """A group that keeps what is issued on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.issued: list[tuple[str, int, str, int]] = []

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> None:
        (tensor,) = tensors
        self.issued.append((self.name, options.rootRank, str(tensor.dtype), tensor.numel()))


@pytest.mark.parametrize(
    ("op", "numel"), [(HEADER, wire.HEADER_NUMEL), (PAYLOAD, 16), (PAYLOAD, 5_392_416), (PAYLOAD, 64 * 2**20)]
)
def test_a_broadcast_of_the_schedule_is_one_broadcast_of_its_group_root_dtype_and_size(
    op: Collective, numel: int
) -> None:
    groups = {name: Group(name) for name in ("control", "device")}
    transport = TorchTransport.__new__(TorchTransport)
    transport.groups, transport.rank, transport.world = groups, 1, 4  # type: ignore[assignment]
    tensor = torch.empty(numel, dtype=getattr(torch, op.dtype))
    assert transport.perform(op, Exchange(f"send_{op.name}", tensor, lambda _: None)) is tensor
    assert [one for group in groups.values() for one in group.issued] == [
        (op.group, op.root, f"torch.{op.dtype}", numel)
    ]


LEAVES = """
import os
import torch
import torch.distributed as dist
from genlock.impl.rank.transport import TorchTransport

def threads():
    return len(os.listdir("/proc/self/task"))

def live():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    transport = TorchTransport.over({"control": dist.new_group(), "device": dist.group.WORLD})
    dist.all_reduce(torch.ones(1))
    model = {"group": transport.groups["device"]}
    model["itself"] = model
    return transport

before = threads()
transport = live()
during = threads()
transport.close()
print(during - before, threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_gloo_outlives_the_groups() -> None:
    """One that does can abort the process while the interpreter is torn down."""
    said = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=100, check=True)
    during, after = map(int, said.stdout.split())
    assert during >= 4
    assert after == 0
