"""Reads what an archive of `genlock collect` says of itself: which process is which rank, and what two looks showed.

Left out: the other files in it, which are read like any others (`detect`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..evidence import Collected, Process, Source
from .logs.lines import Sink

HEAD = b'"genlock_collect"'
FORMAT = 1
MAX_NUMBER = 1 << 22
"""Above every rank, and every process id."""


def looks_like(head: bytes) -> bool:
    """Tell whether a file begins like a manifest of `genlock collect`."""
    return head.lstrip()[:1] == b"{" and HEAD in head[:64]


def read_manifest(path: Path, data: bytes, sink: Sink) -> bool:
    """Keep what a manifest says of each rank; return True if it is one. What makes no sense is left out."""
    try:
        about = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    if (
        not isinstance(about, dict)
        or about.get("genlock_collect") != FORMAT
        or not isinstance(about.get("ranks"), list)
    ):
        return False
    host = str(about.get("host", ""))[:200]
    said = False
    for given in about["ranks"]:
        fact = _rank(Source(path), given) if isinstance(given, dict) else None
        if fact is not None:
            sink.add(fact, fact.rank)
            sink.add(Process(fact.source, host, given["pid"], fact.rank), (host, given["pid"], fact.rank))
            said = True
    return said


def _rank(source: Source, given: Mapping[str, Any]) -> Collected | None:
    rank, world, torch = _number(given.get("rank")), _number(given.get("world")), given.get("torch")
    if rank is None or _number(given.get("pid")) is None:
        return None
    return Collected(
        source,
        rank,
        world if world is not None and rank < world else 0,
        str(given.get("known_by", ""))[:200] if given.get("certain") is not True else "",
        given.get("stopped") is True,
        given.get("moved") is True,
        given.get("still") is True,
        given.get("elsewhere") is True,
        str(torch)[:20] if isinstance(torch, str) else "",
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER else None
