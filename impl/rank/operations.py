"""Defines what a role's coroutine yields: moves in its table, and the work that belongs to them. No I/O.

Each names its transition. Whoever runs the coroutine asks the monitor, records, does the work and sends the
result back in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import torch

from ...model.tables import Data
from ...traces.outcome import Outcome

T = TypeVar("T")


class BackendFailed(Exception):
    """Comes out of a collective that the backend had accepted and could not complete; its cause is the backend's."""


class Step(NamedTuple):
    """Makes a move without a collective. `outcome` goes into the trace with it."""

    event: str
    data: Data = None
    outcome: Outcome | None = None


class Decide(NamedTuple):
    """Takes whichever row the checks of this state lead to; sent back is its event.

    `why` is called for what was found, when the checks found something wrong.
    """

    why: Callable[[], Outcome | None] = lambda: None


class Exchange(NamedTuple):
    """Issues the collective of `event`. `tensor` is sent from or received into.

    Sent back is that tensor, or those of all members.

    `project` says what was delivered in the table's terms; it never raises.
    """

    event: str
    tensor: torch.Tensor
    project: Callable[[Any], Data]


class Call(NamedTuple):
    """Makes one generator call: `work` issues its collectives, `inside` counts and hashes those of the chunk."""

    event: str
    work: Callable[[], None]
    inside: Callable[[], tuple[int, int]]


Operation = Step | Decide | Exchange | Call
Moves = Generator[Operation, Any, T]
