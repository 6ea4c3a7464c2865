"""The rules of a collective: who may leave it, when all must, what it delivers, and what never pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from genlock.model.semantics.transport import (
    Contribution,
    delivered,
    depends_on,
    in_reach,
    may_complete,
    must_complete,
    run_ahead,
)
from genlock.model.tables import Collective, Kind

BROADCAST = Collective("b", Kind.BROADCAST, "g", 1, "int64", "8", "")
GATHER = Collective("g", Kind.GATHER, "g", 1, "int64", "8", "")
ALL_GATHER = Collective("ag", Kind.ALL_GATHER, "g", None, "int64", "8", "")
ALL_REDUCE = Collective("ar", Kind.ALL_REDUCE, "g", None, "int64", "8", "")
KINDS = (BROADCAST, GATHER, ALL_GATHER, ALL_REDUCE)
RANKS = 3
SUBSETS = list(product([False, True], repeat=RANKS))


def issued(op: Collective, by: Sequence[bool]) -> list[Contribution | None]:
    """What each member put in, its rank as the value; None where it has not come."""
    return [Contribution(op, rank) if here else None for rank, here in enumerate(by)]


NEEDS = {
    # kind: for ranks 0, 1 (the root) and 2, the members without whom it cannot leave
    Kind.BROADCAST: ({1}, {1}, {1}),
    Kind.GATHER: ({1}, {0, 1, 2}, {1}),
    Kind.ALL_GATHER: ({0, 1, 2}, {0, 1, 2}, {0, 1, 2}),
    Kind.ALL_REDUCE: ({0, 1, 2}, {0, 1, 2}, {0, 1, 2}),
}


@pytest.mark.parametrize("op", KINDS, ids=lambda op: op.kind)
def test_a_member_may_leave_once_those_it_depends_on_have_come(op: Collective) -> None:
    for rank, by in product(range(RANKS), SUBSETS):
        needed = NEEDS[op.kind][rank]
        assert set(depends_on(op, rank, RANKS)) == needed
        assert may_complete(op, rank, issued(op, by)) == all(by[member] for member in needed)


@pytest.mark.parametrize("op", KINDS, ids=lambda op: op.kind)
def test_every_member_must_be_able_to_leave_once_all_have_come(op: Collective) -> None:
    for by in SUBSETS:
        assert must_complete(op, issued(op, by)) == all(by)
        if must_complete(op, issued(op, by)):
            assert all(may_complete(op, rank, issued(op, by)) for rank in range(RANKS))


@pytest.mark.parametrize("op", KINDS, ids=lambda op: op.kind)
@pytest.mark.parametrize(
    "other",
    [
        Collective("b", Kind.BROADCAST, "g", None, "int64", "8", ""),
        Collective("b", Kind.BROADCAST, "h", 1, "int64", "8", ""),
        Collective("b", Kind.BROADCAST, "g", 1, "int8", "8", ""),
        Collective("b", Kind.BROADCAST, "g", 1, "int64", "9", ""),
        Collective("b", Kind.ALL_REDUCE, "g", 1, "int64", "8", ""),
    ],
    ids=["root", "group", "dtype", "size", "kind"],
)
def test_unequal_signatures_never_complete(op: Collective, other: Collective) -> None:
    for odd in range(RANKS):
        members = [Contribution(other if rank == odd else op, rank) for rank in range(RANKS)]
        assert not must_complete(op, members)
        assert not must_complete(other, members)
        for rank in range(RANKS):
            if rank != odd and odd in NEEDS[op.kind][rank]:
                assert not may_complete(op, rank, members)
        if NEEDS[op.kind][odd] != {odd}:
            others = [Contribution(op if rank == odd else other, rank) for rank in range(RANKS)]
            assert not may_complete(op, odd, others)


@pytest.mark.parametrize("op", KINDS, ids=lambda op: op.kind)
def test_equal_signatures_pair_whatever_they_mean(op: Collective) -> None:
    other = replace(op, name="another", phase="another")
    members = [Contribution(other if rank == 1 else op, rank) for rank in range(RANKS)]
    assert must_complete(op, members)
    assert all(may_complete(op, rank, members) for rank in range(RANKS))


@pytest.mark.parametrize("op", KINDS, ids=lambda op: op.kind)
def test_a_member_that_died_inside_may_have_put_its_part_in_but_binds_nobody(op: Collective) -> None:
    members = [Contribution(op, rank, lost=rank == 2) for rank in range(RANKS)]
    assert [may_complete(op, rank, members) for rank in range(RANKS)] == [True] * RANKS
    assert not must_complete(op, members)


def test_a_root_is_ahead_by_as_many_broadcasts_as_the_tree_is_deep() -> None:
    assert [run_ahead(ranks) for ranks in (2, 3, 4, 7, 8, 15, 16)] == [1, 1, 2, 2, 3, 3, 4]
    assert in_reach(1, [3, 2, 1])
    assert not in_reach(2, [3, 3, 1])
    assert in_reach(2, [3, 3, 3, 1])


def test_what_is_delivered() -> None:
    members = issued(BROADCAST, [False, True, False])
    assert [delivered(BROADCAST, rank, members) for rank in range(RANKS)] == [1, 1, 1]
    everyone = issued(GATHER, [True] * RANKS)
    assert [delivered(GATHER, rank, everyone) for rank in range(RANKS)] == [None, frozenset({0, 1, 2}), None]
    for op in (ALL_GATHER, ALL_REDUCE):
        assert [delivered(op, rank, everyone) for rank in range(RANKS)] == [frozenset({0, 1, 2})] * RANKS
