"""A share of `make fuzz`: every way of searching a network agrees, and faults that were mended are found again."""

from __future__ import annotations

import pytest
from fuzz import BREAKS, Tally, broken, compare

SHARE = 40
FOUND_AT = {1: 31, 2: 14, 3: 222, 4: 94, 5: 105, 6: 91, 7: 4, 8: 11}
"""A seed whose network shows each fault once its mend is out: see `fuzz.BREAKS`."""


def test_every_way_of_searching_agrees() -> None:
    tally = Tally()
    assert [found for seed in range(SHARE) if (found := compare(seed, tally)) is not None] == []
    searched = {"oracle", "numba", "numpy", "symmetry, numba", "reduction, numba", "any world size"}
    assert searched <= set(tally.ways)


@pytest.mark.parametrize("fault", FOUND_AT, ids=[BREAKS[n][0] for n in FOUND_AT])
def test_a_fault_is_found_once_its_mend_is_out(fault: int) -> None:
    assert compare(FOUND_AT[fault], Tally()) is None
    with broken(fault):
        try:
            found = compare(FOUND_AT[fault], Tally())
        except IndexError as error:  # a slot that there is not
            found = str(error)
    assert found is not None
