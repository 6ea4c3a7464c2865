"""Keeps what a method works out of its arguments, for as long as its object lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def once(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Work out a method of its (positional) arguments once for each object, which keeps it in `_known`."""
    name = method.__name__

    def known(self: Any, /, *args: P.args, **more: P.kwargs) -> R:
        key = (name, *args)
        try:
            return self._known[key]  # type: ignore[no-any-return]
        except KeyError:
            found = self._known[key] = method(self, *args, **more)
            return found

    return known
