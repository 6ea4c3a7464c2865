"""torch's own record of a rank's collectives, written beside the trace where the user has torch keep one.

torch keeps it where TORCH_FR_BUFFER_SIZE (in torch up to 2.9: TORCH_NCCL_TRACE_BUFFER_SIZE) is above 0, which it reads
once, when it starts. `genlock replay FOLDER/flight_recorder` reads what is written. Left out: reading it (`traces`).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

FOLDER = "flight_recorder"
SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")


def wanted() -> bool:
    """Whether torch was asked to keep a record."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in SIZES)


def dump(out: Path, rank: int) -> Path | None:
    """Write what torch has kept; None where it keeps nothing, or this torch cannot say."""
    c10d = torch._C._distributed_c10d
    how = getattr(c10d, "_dump_fr_trace", None) or getattr(c10d, "_dump_nccl_trace", None)
    if how is None or not wanted():
        return None
    path = out / FOLDER / f"trace_{rank}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(how())
    return path
