"""A share of `make fuzz`: every way of searching a network agrees, and faults that were mended are found again."""

from __future__ import annotations

from collections import Counter

import pytest
from cast_compare import compare_cast
from fuzz import BREAKS, OF_CASTS, Tally, broken, compare

SHARE = 40
FOUND_AT = {
    1: 31,
    2: 14,
    3: 222,
    4: 94,
    5: 105,
    6: 91,
    7: 4,
    8: 11,
    9: 36,
    10: 36,
    11: 1,
    12: 423,
    13: 24,
    14: 0,
    15: 174,
}
"""A seed whose network shows each fault once its mend is out: see `fuzz.BREAKS`."""


def test_every_way_of_searching_agrees() -> None:
    tally = Tally()
    assert [found for seed in range(SHARE) if (found := compare(seed, tally)) is not None] == []
    searched = {"oracle", "numba", "numpy", "symmetry, numba", "reduction, numba", "any world size"}
    assert searched <= set(tally.ways)


def test_every_way_of_searching_a_cast_agrees() -> None:
    ways: Counter[str] = Counter()
    assert [found for seed in range(SHARE) if (found := compare_cast(seed, ways)) is not None] == []
    assert ways["networks"] > SHARE / 2
    assert ways["cast: claim"] > SHARE / 2


def compared(seed: int, fault: int) -> str | None:
    return compare_cast(seed, Counter()) if fault in OF_CASTS else compare(seed, Tally())


@pytest.mark.parametrize("fault", FOUND_AT, ids=[BREAKS[n][0] for n in FOUND_AT])
def test_a_fault_is_found_once_its_mend_is_out(fault: int) -> None:
    assert compared(FOUND_AT[fault], fault) is None
    with broken(fault):
        try:
            found = compared(FOUND_AT[fault], fault)
        except IndexError as error:  # a slot that there is not
            found = str(error)
    assert found is not None
