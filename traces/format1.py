"""Reads what format 1 has otherwise than format 2: places as texts, and outcomes as texts.

Where format 1 tells a fact by text alone, the event gets the code `untyped`, and nothing is read out of the text. What
its structure tells is kept: an operation whose `enter` has an outcome was refused, one whose `exit` has one failed.
Left out: all that both formats share (`format`), and writing format 1.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .format import Dropped, End, Event, Group, Line, TraceHeader
from .outcome import Code, Outcome


class FormerEvent(Event, frozen=True, tag="event", tag_field="kind", omit_defaults=True):
    """Holds an event as format 1 has it."""

    site: str | None = None  # type: ignore[assignment]
    """`file:line` of the program."""
    outcome: str | None = None  # type: ignore[assignment]


decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(TraceHeader | Group | FormerEvent | Dropped | End)
"""Decodes one line of format 1."""


def to_event(line: Line) -> tuple[Line, str | None]:
    """Return a line of format 1 as format 2 has it, but for the site of an event; and that site's place."""
    if not isinstance(line, FormerEvent):
        return line, None
    facts: dict[str, Any] = {name: getattr(line, name) for name in Event.__struct_fields__}
    facts |= {"site": None, "outcome": None if line.outcome is None else _outcome(line, line.outcome)}
    return Event(**facts), line.site


def _outcome(event: FormerEvent, text: str) -> Outcome:
    if not event.transition and event.edge != "step":
        return Outcome(Code.COLLECTIVE if event.edge == "enter" else Code.BACKEND, text=text)
    return Outcome(Code.UNTYPED, text=text)
