"""Defines what gates do to what ranks share: when they are open, what a rank is given, and what is there afterwards.

Each channel, cell or link is a *place* for each of its keys: of a link, a place for each rank and peer. What is in a
place is a value with a hash: of a channel a tuple, first in, first out; of a cell its value; of a link a `Wire`.

Left out: one-slot channels of workers (`network.py`), which are older and have numbers of their own.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ModelError
from ..tables import EMPTY, MOST_WAITING, At, Cell, Data, Fifo, Link, Poll, Post, Put, Receive, See, Send, Set, Take


class Wire(NamedTuple):
    """Holds what is on its way from one rank to another."""

    messages: tuple[tuple[Data, bool], ...] = ()
    """Each value that no receive has ended with yet, and whether its sender is gone: it may arrive, and need not."""
    posted: bool = False
    """The receiver waits for the next one."""

    @property
    def waiting(self) -> int:
        """Return how many messages no receive has been posted for."""
        return len(self.messages) - self.posted


class Touched(NamedTuple):
    """Says what a gate that is open does: what is there afterwards, and what the row is given."""

    after: Data
    given: Data = None
    bound: bool = True
    """It is bound to be possible, and not only may be."""


def initial(shared: Fifo | Cell | Link) -> Data:
    """Return what is in a place at the start."""
    return shared.initial if isinstance(shared, Cell) else Wire() if isinstance(shared, Link) else ()


def touch(gate: At, content: Data, value: Data) -> Touched | None:
    """Return what a gate of one step does, where `value` is what its row sends; None while it is closed."""
    if isinstance(gate, Put) and isinstance(gate.slot, Fifo):
        return Touched((*content, value)) if len(content) < gate.slot.capacity else None
    if isinstance(gate, Take):
        return Touched(content[1:], content[0]) if content else None
    if isinstance(gate, Poll):
        return Touched(content[1:], content[0]) if content else Touched(content, EMPTY)
    if isinstance(gate, Set):
        return Touched(value)
    if isinstance(gate, See):
        return Touched(content, content)
    if isinstance(gate, Post):
        return Touched(_sent(gate.slot, content, value))
    return Touched(content) if content.waiting <= 0 else None


def begin(gate: Send | Receive, content: Wire, value: Data) -> Wire:
    """Return what is there once a send or receive has begun."""
    if isinstance(gate, Receive):
        return content._replace(posted=True)
    return _sent(gate.slot, content, value)


def end(gate: Send | Receive, content: Wire) -> Touched | None:
    """Return how a send or receive ends; None while it waits."""
    if isinstance(gate, Send):
        return Touched(content) if content.waiting <= gate.slot.buffer else None
    if not content.messages:
        return None
    (value, lost), *rest = content.messages
    return Touched(Wire(tuple(rest), False), value, not lost)


def without(link: Link, content: Wire, *, sender: bool, failed: bool) -> Wire:
    """Return what is on its way once its sender, or its receiver, is gone.

    What a sender has seen delivered, as far as its link lets it, comes to its receiver also when it has ended since; of
    one that failed nothing is bound to.
    """
    if not sender:
        return content._replace(posted=False)
    kept = 0 if failed else content.posted + link.buffer
    return content._replace(
        messages=tuple((value, lost or n >= kept) for n, (value, lost) in enumerate(content.messages))
    )


def _sent(link: Link, content: Wire, value: Data) -> Wire:
    if len(content.messages) >= MOST_WAITING:
        do = "let its sender wait (Sent, or Send)"
        raise ModelError(f"more than {MOST_WAITING} messages wait on one way of link `{link.name}`", do=do)
    return content._replace(messages=(*content.messages, (value, False)))
