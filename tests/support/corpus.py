"""The recorded runs of traces/corpus, for the tests."""

from __future__ import annotations

import msgspec
from genlock.traces.format import Trace, find, read
from repository import CORPUS

EXPECTED = "expected.json"


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What replay must say of a run. `chunk` and `state` are those of the divergence; None: whatever it is."""

    made: str
    verdict: str = "conforming"
    failure_mode: str | None = None
    culprits: tuple[int, ...] = ()
    chunk: int | None = None
    state: str | None = None
    stall: str | None = None


def names(kind: str = "") -> list[str]:
    """Every recorded run, by its folder: `healthy/three-ranks`."""
    found = (path.parent.relative_to(CORPUS).as_posix() for path in CORPUS.rglob(EXPECTED))
    return sorted(name for name in found if name.startswith(kind))


def traces(name: str) -> list[Trace]:
    """Its traces, by rank."""
    return sorted((read(path) for path in find(CORPUS / name)), key=lambda t: t.rank)


def expected(name: str) -> Expected:
    """What must be said of it."""
    return msgspec.json.decode((CORPUS / name / EXPECTED).read_bytes(), type=Expected)
