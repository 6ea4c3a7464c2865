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
    """Names a variable of a role that took new values until the end of what was searched."""

    role: str
    variable: str
    values: int
    """Different numbers, or lengths, so far."""
    latest: str
    """The largest."""

    @property
    def text(self) -> str:
        """Return it as a clause: `count of worker still grows: 412 values so far, 411 the largest`."""
        return f"`{self.variable}` of {self.role} still grows: {self.values:,} values so far, {self.latest} the largest"


def growing(role: str, found: Sequence[Any]) -> Growth | None:
    """Return the variable of `role` that grows most, of its variables in the order in which a search met them.

    Numbers count, and the lengths of what has one. A variable grows where the later half of what was met brought at
    least half as many new ones as the earlier.
    """
    met: dict[str, dict[int, Any]] = {}
    early: dict[str, int] = {}
    for at, v in enumerate(found):
        if at == len(found) // 2:
            early = {name: len(values) for name, values in met.items()}
        for name, size, value in _sizes("", v):
            met.setdefault(name, {})[size] = value
    still = [
        (len(values), name)
        for name, values in met.items()
        if len(values) >= MANY and 2 * len(values) >= 3 * early.get(name, 0)
    ]
    if not still:
        return None
    count, name = max(still)
    return Growth(role, name, count, _short(met[name][max(met[name], key=abs)]))


def _sizes(name: str, v: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield each number in `v`, and each length, with its name; a value that is no record is called by its type."""
    if isinstance(v, msgspec.Struct):
        parts = [(field, getattr(v, field)) for field in v.__struct_fields__]
    elif is_dataclass(v):
        parts = [(field.name, getattr(v, field.name)) for field in fields(v)]
    elif hasattr(v, "_fields"):
        parts = list(zip(v._fields, v, strict=True))
    elif isinstance(v, int) and not isinstance(v, bool):
        yield name or f"the {type(v).__name__}", int(v), v
        return
    elif isinstance(v, str | bytes | tuple | frozenset):
        yield name or f"the {type(v).__name__}", len(v), v
        return
    else:
        return
    for field_name, value in parts:
        yield from _sizes(f"{name}.{field_name}" if name else field_name, value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
