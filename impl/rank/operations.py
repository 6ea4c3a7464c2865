"""What a role's coroutine yields: moves in its table, and the work that belongs to them. No I/O.

Each names its transition. Whoever runs the coroutine asks the monitor, records, does the work and sends the
result back in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import torch

from ...model.tables import Data

T = TypeVar("T")


class Step(NamedTuple):
    """A move without a collective. `note` goes into the trace as its outcome."""

    event: str
    data: Data = None
    note: str | None = None


class Decide(NamedTuple):
    """Take whichever row the checks of this state lead to; sent back is its event.

    `why` is asked for more detail when the checks found something wrong.
    """

    why: Callable[[], str | None] = lambda: None


class Exchange(NamedTuple):
    """The collective of `event`. `tensor` is sent from or received into; sent back is it, or all members' tensors.

    `project` says what was delivered in the table's terms; it never raises.
    """

    event: str
    tensor: torch.Tensor
    project: Callable[[Any], Data]


class Call(NamedTuple):
    """One generator call: `work` issues its collectives; `inside` counts and hashes them since the chunk began."""

    event: str
    work: Callable[[], None]
    inside: Callable[[], tuple[int, int]]


Operation = Step | Decide | Exchange | Call
Moves = Generator[Operation, Any, T]
