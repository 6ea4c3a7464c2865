"""Names the variable of a role that keeps taking new values, for a search that never levels off.

Left out: proof. A variable that has a bound further on looks the same until it gets there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import msgspec

MANY = 16
"""A variable with fewer values than this is not said to grow."""


class Growth(NamedTuple):
    """A variable of a role that took new values until the end of what was searched."""

    role: str
    variable: str
    values: int
    """Different values so far."""
    latest: str

    @property
    def text(self) -> str:
        """Return it as a clause: `count of worker still grows: 412 values so far, 411 the latest`."""
        return f"`{self.variable}` of {self.role} still grows: {self.values:,} values so far, {self.latest} the latest"


def growing(role: str, found: Sequence[Any]) -> Growth | None:
    """Return the variable of `role` that grows most, of its variables in the order in which a search met them.

    A variable grows where the later half of what was met brought at least half as many new values as the earlier.
    """
    met: dict[str, dict[Any, None]] = {}
    early: dict[str, int] = {}
    for at, v in enumerate(found):
        if at == len(found) // 2:
            early = {name: len(values) for name, values in met.items()}
        for name, value in _parts(v):
            met.setdefault(name, {})[value] = None
    still = [
        (len(values), name)
        for name, values in met.items()
        if len(values) >= MANY and 2 * len(values) >= 3 * early.get(name, 0)
    ]
    if not still:
        return None
    count, name = max(still)
    return Growth(role, name, count, _short(next(reversed(met[name]))))


def _parts(v: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that `v` is made of, by name; a value that is no record is called by its type."""
    if isinstance(v, msgspec.Struct):
        yield from ((name, getattr(v, name)) for name in v.__struct_fields__)
    elif is_dataclass(v):
        yield from ((field.name, getattr(v, field.name)) for field in fields(v))
    elif hasattr(v, "_fields"):
        yield from zip(v._fields, v, strict=True)
    elif v is not None:
        yield f"the {type(v).__name__}", v


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
