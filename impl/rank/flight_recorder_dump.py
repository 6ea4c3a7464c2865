"""Writes torch's own record of a rank's collectives beside the trace, where the user has torch keep one.

torch keeps it where TORCH_FR_BUFFER_SIZE (in torch up to 2.9: TORCH_NCCL_TRACE_BUFFER_SIZE) is above 0, which it reads
once, when it starts. `genlock replay FOLDER/flight_recorder` reads what is written. Left out: reading it (`traces`).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

FOLDER = "flight_recorder"
SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")


def wanted() -> bool:
    """Return True where torch was asked to keep a record."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in SIZES)


def dump(out: Path, rank: int, *, hurry: bool = False) -> Path | None:
    """Write what torch has kept; None where it keeps nothing, or this torch cannot say.

    Its stacks come second, since finding their symbols can take torch seconds; not at all in a `hurry`.
    """
    c10d = torch._C._distributed_c10d
    how = getattr(c10d, "_dump_fr_trace", None) or getattr(c10d, "_dump_nccl_trace", None)
    if how is None or not wanted():
        return None
    path = out / FOLDER / f"trace_{rank}"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.{threading.get_ident()}")  # whoever else writes one, it is whole
    for stacks in (False,) if hurry else (False, True):
        part.write_bytes(how(includeStackTraces=stacks))
        part.replace(path)
    return path
