"""How the texts of repeated flags are read. What is refused, and in which words, is in test_app.py."""

from __future__ import annotations

from genlock.cli import flags


def test_repeated_flags_are_read() -> None:
    assert flags.fault_points(["crash", "stall@rank1.READY"]) == (("crash", None), ("stall", "rank1.READY"))
    assert flags.settings("--param", ["K=3", "name=a=b"]) == {"K": "3", "name": "a=b"}
    assert flags.seconds("--deadline", ["steady=0.5", "warm-up=30"]) == {"steady": 0.5, "warm-up": 30.0}
    assert flags.injection("OM-01,rank=1,phase=generate") == ("OM-01", {"rank": "1", "phase": "generate"})
    assert flags.injection("C-04") == ("C-04", {})
    assert flags.injection(None) is None
