"""Defines collectives, the groups that they are of, and what becomes of the values that members put in.

Left out: when one completes (`semantics/transport.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...errors import ModelError
from .scope import Data, Scope


class Kind(StrEnum):
    """Names what a collective does with the values that its members put in."""

    BROADCAST = "broadcast"
    GATHER = "gather"
    ALL_GATHER = "all_gather"
    ALL_REDUCE = "all_reduce"
    BARRIER = "barrier"
    REDUCE = "reduce"
    REDUCE_SCATTER = "reduce_scatter"
    SCATTER = "scatter"
    ALL_TO_ALL = "all_to_all"


@dataclass(frozen=True, slots=True)
class Collective:
    """Describes one line of the schedule.

    `dtype` and `size` are what goes over the wire, `size` as text.
    """

    name: str
    kind: Kind
    group: str
    root: int | None
    dtype: str
    size: str
    phase: str
    result: Callable[[tuple[Data, ...]], Data] | None = field(default=None, repr=False)
    """Makes what is delivered out of what each member put in, in the order of the group. None: the set of these."""

    @property
    def signature(self) -> tuple[str, str, int | None, str, str]:
        """Return what the backend pairs by: equal signatures pair, whatever they mean."""
        return (self.group, self.kind.value, self.root, self.dtype, self.size)


@dataclass(frozen=True)
class Group:
    """Names the ranks that a collective is of: lists of them, each rank in one at most, that know nothing of others."""

    name: str
    members: Callable[[Scope], Iterable[Iterable[int]]] = field(compare=False)


def mesh(**sizes: int) -> tuple[Group, ...]:
    """Return a group for each axis of a mesh of ranks, the last one the quickest: `mesh(dp=2, tp=4)` is of 8."""

    def lines(axis: str) -> Callable[[Scope], Iterable[Iterable[int]]]:
        names = list(sizes)
        step = math.prod(sizes[name] for name in names[names.index(axis) + 1 :])
        firsts = (rank for rank in range(math.prod(sizes.values())) if rank // step % sizes[axis] == 0)
        found = tuple(tuple(first + step * n for n in range(sizes[axis])) for first in firsts)
        return lambda scope: found

    return tuple(Group(name, lines(name)) for name in sizes)


def total(values: tuple[Data, ...]) -> Data:
    """Return the sum of what the members of a collective put in."""
    return sum(values)


def least(values: tuple[Data, ...]) -> Data:
    """Return the least of what the members of a collective put in."""
    return min(values)


def most(values: tuple[Data, ...]) -> Data:
    """Return the most of what the members of a collective put in."""
    return max(values)


def any_of(values: tuple[Data, ...]) -> Data:
    """Return whether any member of a collective put in something true."""
    return any(values)


def each(values: tuple[Data, ...]) -> Data:
    """Return what each member of a collective put in, in the order of the group."""
    return values


def ranks_among(function: Callable[[Scope], Iterable[int]], scope: Scope, where: str) -> tuple[int, ...]:
    """Return the ranks that a function of the scope names. Raise ModelError for what are none."""
    return _ranks(_listed(function, scope, where), scope, where)


def lists_of(group: Group, scope: Scope, where: str) -> list[tuple[int, ...]]:
    """Return the lists of ranks of a group. Raise ModelError for what are none."""
    return [_ranks(one, scope, where) for one in _listed(lambda scope: map(tuple, group.members(scope)), scope, where)]


def _listed(function: Callable[[Scope], Iterable[Any]], scope: Scope, where: str) -> list[Any]:
    try:
        return list(function(scope))
    except Exception as error:
        raise ModelError(f"it raised {type(error).__name__}: {error}", where=where) from error


def _ranks(found: Iterable[Any], scope: Scope, where: str) -> tuple[int, ...]:
    ranks = tuple(found)
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < scope.ranks:
            raise ModelError(f"{rank!r} is no rank", where=where, do=f"ranks are 0 to {scope.ranks - 1}")
    return ranks
