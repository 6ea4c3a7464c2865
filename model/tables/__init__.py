"""Defines the vocabulary in which a protocol is written: states, rows, collectives, what ranks share, roles.

No protocol stands here, and no network: what a collective does between its two ends, and when a gate is open, is
defined in `semantics`.
"""

from __future__ import annotations

from .collectives import Collective, Group, Kind, any_of, each, least, lists_of, mesh, most, total
from .protocol import Frame, Protocol
from .roles import By, Role, Row, State, row_names
from .scope import EMPTY, Data, Guard, Scope, Vars, changed, everyone, named
from .shared import (
    GIVES,
    MOST_WAITING,
    TAKES,
    TWO_ENDED,
    At,
    Cell,
    Fifo,
    Gate,
    Link,
    Meet,
    Poll,
    Post,
    Put,
    Receive,
    See,
    Send,
    Sent,
    Set,
    Shared,
    Slot,
    Take,
    is_empty,
    is_there,
)
from .validation import beyond, validate

__all__ = [
    "EMPTY",
    "GIVES",
    "MOST_WAITING",
    "TAKES",
    "TWO_ENDED",
    "At",
    "By",
    "Cell",
    "Collective",
    "Data",
    "Fifo",
    "Frame",
    "Gate",
    "Group",
    "Guard",
    "Kind",
    "Link",
    "Meet",
    "Poll",
    "Post",
    "Protocol",
    "Put",
    "Receive",
    "Role",
    "Row",
    "Scope",
    "See",
    "Send",
    "Sent",
    "Set",
    "Shared",
    "Slot",
    "State",
    "Take",
    "Vars",
    "any_of",
    "beyond",
    "changed",
    "each",
    "everyone",
    "is_empty",
    "is_there",
    "least",
    "lists_of",
    "mesh",
    "most",
    "named",
    "row_names",
    "total",
    "validate",
]
