"""Makes the header of a trace of TP v1.1, whoever writes it. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ...model.protocols.tp_v1_1 import TP_V1_1
from ...traces.format import FORMAT_VERSION, Clock, TraceHeader


def header(
    run: str, rank: int, world: int, backend: str, versions: Mapping[str, str], blind_spots: tuple[str, ...]
) -> TraceHeader:
    """Return the header of a trace that begins now."""
    return TraceHeader(
        FORMAT_VERSION,
        run,
        rank,
        world,
        TP_V1_1.role(rank).name,
        backend,
        TP_V1_1.name,
        TP_V1_1.digest,
        dict.fromkeys(TP_V1_1.group_names, tuple(range(world))),
        Clock(time.time_ns(), time.monotonic_ns()),
        dict(versions),
        blind_spots,
    )
