"""Recordings of other people, which are no part of the repository: where they lie, why a test skips without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from repository import ROOT

ENVIRONMENT = "GENLOCK_DATA"
HERE = ROOT.parent / "shared" / "data"
DATA = Path(os.environ.get(ENVIRONMENT, HERE))


def folder(name: str) -> Path:
    """The folder of that name among the recordings; skips the test where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is absent: other people's recordings lie beside the checkout, or where {ENVIRONMENT} says")
    return path
