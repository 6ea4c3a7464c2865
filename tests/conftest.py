"""Property tests draw the same every time, and none is timed. After each file of tests no process of a run is alive
two seconds later: it is known by a mark in its environment, which all descendants inherit, whoever their parent is.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
MARK = uuid.uuid4().hex
os.environ["GENLOCK_TESTS"] = MARK
OF_A_RUN = (b"genlock.impl", b"guardian/__main__.py", b"torch.distributed.run")
"""Found in the command lines of ranks, guardians, launchers, and zygotes with what they have forked."""


def of_these_tests() -> list[str]:
    """The command lines of all processes of runs that these tests have started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            if any(name in command for name in OF_A_RUN) and MARK.encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name}: {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
        except OSError:
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def nothing_outlives_its_tests() -> Iterator[None]:
    yield
    until = time.monotonic() + 2
    while (left := of_these_tests()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


@pytest.fixture
def alone() -> Iterator[None]:
    """A world of one rank in this process."""
    import torch.distributed as dist  # most tests need no torch

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    c10d: Any = dist
    dist.init_process_group("gloo", store=c10d.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
