"""What a rank issues on a real group for a row of the schedule: the one collective that the row says, of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from genlock.impl import wire
from genlock.impl.operations import Exchange
from genlock.impl.transport import TorchTransport
from genlock.model.protocol import HEADER, PAYLOAD
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
