"""Defines what ranks share, apart from groups: slots, channels, cells and links, and the gates that rows have at them.

Left out: when a gate is open (`semantics/places.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .scope import EMPTY, Data, Scope, Vars

MOST_WAITING = 64
"""Messages that a channel may hold, or that may wait on a link."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Describes a one-slot channel between the driver and each worker: a slot a worker, empty at the start."""

    name: str


Keys = Callable[[Scope], Iterable[Any]]
"""Lists the keys, of which there is one each: ranks, mostly. They must have a hash."""


@dataclass(frozen=True, slots=True)
class Fifo:
    """Describes a channel that anybody may put into and take out of: first in, first out, at most `capacity` in it.

    There is one for each of `keys`; without, one for all.
    """

    name: str
    capacity: int = 1
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """Describes a value that anybody may set and see. There is one for each of `keys`; without, one for all."""

    name: str
    initial: Data = None
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Describes messages from each rank to each other one, in order.

    A send ends when its receive has been posted (a rendezvous), or when no more than `buffer` messages wait for one.
    """

    name: str
    buffer: int = 0


Shared = Slot | Fifo | Cell | Link
"""Names what ranks share, apart from groups."""
Whose = Callable[[Vars], Any]
"""Picks, by a rank's variables, the key of a channel or cell, the worker of a slot (from 1), the peer on a link.

None: one's own, or the one that there is for all."""


@dataclass(frozen=True, slots=True)
class Put:
    """Fills a slot once it is empty, or a channel that is not full. `worker` picks whose."""

    slot: Slot | Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Takes what is in a slot, or the first in a channel, once there is something that its guards want.

    Guards and effect are given it. `worker` picks whose.
    """

    slot: Slot | Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """Takes as `Take` does, and does not wait: guards and effect are given EMPTY where nothing is there."""

    slot: Fifo
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Set:
    """Sets a cell to what the row sends."""

    slot: Cell
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class See:
    """Waits until the guards want what a cell holds, and leaves it there. What came and went was not seen."""

    slot: Cell
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Sends a message to the rank that `worker` picks, and ends as its link says."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Receive:
    """Posts a receive from the rank that `worker` picks, and ends with its next message, which the effect is given."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """Sends a message as `Send` does, and goes on."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """Waits until a receive has been posted for each message that the rank has sent to the one that `worker` picks."""

    slot: Link
    worker: Whose | None = None


@dataclass(frozen=True, slots=True)
class Meet:
    """Goes on once every rank's counter (`Protocol.counter`) is at least one's own."""


At = Put | Take | Poll | Set | See | Send | Receive | Post | Sent
"""A gate at something that ranks share."""
Gate = At | Meet
TAKES: Final = (Take, Poll, See)
"""Gates of one step, whose guards and effect are given what is there."""
GIVES: Final = (Put, Set, Post)
"""Gates of one step that leave there what the row sends."""
TWO_ENDED: Final = (Send, Receive)
"""Gates with two ends, as a collective has them: guards are asked at the first, the effect comes at the second."""
AT: Final[Mapping[type, tuple[type, ...]]] = {
    Put: (Slot, Fifo), Take: (Slot, Fifo), Poll: (Fifo,), Set: (Cell,), See: (Cell,),
    Send: (Link,), Receive: (Link,), Post: (Link,), Sent: (Link,),
}  # fmt: skip
"""Says what each gate may be at."""


def is_empty(v: Vars, data: Data) -> bool:
    """Return, as a guard, whether a `Poll` found nothing."""
    return data is EMPTY


def is_there(v: Vars, data: Data) -> bool:
    """Return, as a guard, whether a `Poll` found something."""
    return data is not EMPTY
