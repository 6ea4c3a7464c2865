"""Names what a protocol is made of before anything of it is said: variables, values, functions, the scope.

Left out: rows, and what they are between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

Vars = Any
"""A role's variables: a frozen dataclass or struct, whose type belongs to the protocol."""
Data = Any
"""Holds what a row is given: a choice of the environment, or what its collective delivered."""
Guard = Callable[[Vars, Data], bool]
Effect = Callable[[Vars, Data], Vars]
Sends = Callable[[Vars], Data]
Choices = Callable[[Vars, "Scope"], Iterable[Data]]
V = TypeVar("V")


class _Slotless(StrEnum):
    EMPTY = "empty"
    UNKNOWN = "unknown"


EMPTY: Final = _Slotless.EMPTY
"""Stands for the content of a slot that nothing is in."""
UNKNOWN: Final = _Slotless.UNKNOWN
"""Stands for the content of a slot that one rank alone cannot see."""


def changed(value: V, **changes: Any) -> V:
    """Return `dataclasses.replace` of any frozen value: a struct of msgspec is some ten times as fast."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **changes)
    return replace(value, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Scope:
    """Holds the bounds within which a protocol is checked.

    `ranks` counts rank0 in.
    """

    ranks: int = 3
    chunks: int = 2
    steps: int = 2


def named(function: Any) -> str:
    """Return a function's name, as messages and digests show it."""
    return str(getattr(function, "__name__", function))


def nothing(finite: bool) -> Vars:
    """Return the variables of a role that has none."""
    return None


def everyone(scope: Scope) -> Iterable[int]:
    """Return all ranks, as `Role.ranks` or the keys of a channel want them."""
    return range(scope.ranks)
