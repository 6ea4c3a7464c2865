"""A short soak of real ranks under guardians; `soak_run.py` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak_run import Sample, _grown, soak


@pytest.mark.timeout(300)
def test_a_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    found = soak(tmp_path, 60, 3, seed=1)
    assert found.wrong == []
    assert (found.exit, found.verdict) == (0, "conforming")
    assert found.refused > 0
    assert len(found.samples) >= 6, "three ranks, three guardians"


@pytest.mark.parametrize("odd", [{"kilobytes": 90_000}, {"descriptors": 12}, {"threads": 5}])
def test_growth_is_seen(odd: dict[str, int]) -> None:
    steady = [Sample(n, 50_000, 10, 4) for n in range(1, 11)]
    assert _grown(1, steady) == ""
    assert _grown(1, [*steady[:5], *(s._replace(**odd) for s in steady[5:])])
