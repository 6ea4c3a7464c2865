"""Holds what a network is at one moment, and what one step of it is.

Left out: which steps are possible (`network.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..tables import Data

CRASH, STALL = "crash", "stall"
"""The faults that need no row: a rank dies, its contribution made or not; a rank takes no steps, and may resume."""


class Point(NamedTuple):
    """Says where a fault may strike.

    A crash or stall strikes rank0, or the rank that is named, while some rank is in `state`; the other kinds strike a
    rank that is itself in it.
    """

    state: str
    rank: int | None = None

    def __str__(self) -> str:
        return self.state if self.rank is None else f"rank{self.rank}.{self.state}"


Faults = Mapping[str, frozenset[Point] | None]
"""Kind of fault to the points at which it may strike. None: anywhere, any rank."""


class NetworkState(NamedTuple):
    """Holds the whole network at one moment."""

    locals: tuple[int, ...]
    queues: tuple[int, ...]
    """Per group: the number of its queue (see `Network.queues`)."""
    slots: tuple[int, ...]
    """Per slot and worker: 0 empty, else the number of the value in it. Then per place of a channel, cell or link: 0
    what is there at the start, else the number of what is in it."""
    faults: int


class Move(NamedTuple):
    """Holds one step of the network.

    `ordinary`: neither fault nor detection, and bound to be possible (*must*).
    """

    rank: int
    event: str
    edge: str
    """`step`, `issue`, `complete`, `device` (completes on the stream), `crash`, `stall`, `resume` or `killed`."""
    ordinary: bool
    advances: bool
    """Says whether the rank's host is somewhere else afterwards."""
    detects: bool
    seen: tuple[str, ...]
    data: Data
    op: str
    commits: bool
    takes_part: bool = False
    """Says whether the rank does more than go on by itself: see `Lts.takes_part`."""
    row: tuple[str, str] | None = None
    """The row that was taken to its end, by its key; None where none was."""
    asked_for: bool = False
    """The world outside asks for it, and need not."""


class Waiting(NamedTuple):
    """Names a rank that cannot go on by itself, in which operation, and the members that it waits for."""

    rank: int
    state: str
    event: str
    operation: str
    waiting_for: tuple[int, ...]
