"""Property tests draw the same every time, and none is timed. After each file of tests no process of a run is alive
two seconds later: it is known by a mark in its environment, which all descendants inherit, whoever their parent is.
A JUnit report of whole files is marked with a digest of what was tested, for `genlock audit`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key  # the fixture that pytest has for properties is not heard under xdist
from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
MARK = uuid.uuid4().hex
os.environ["GENLOCK_TESTS"] = MARK
OF_A_RUN = (b"genlock.impl", b"guardian/__main__.py", b"torch.distributed.run")
"""Found in the command lines of ranks, guardians, launchers, and zygotes with what they have forked."""


AS_MADE: dict[str, object] = {"keyword": "", "markexpr": "not slow", "deselect": None, "lf": False, "stepwise": False}
"""The options of pytest that choose tests within a file, as they are where none is left out."""
TESTED = pytest.StashKey[str]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep a digest of what is about to be tested, where a report of whole files is asked for."""
    config = session.config
    chosen = any("::" in name for name in config.args)
    if xml_key in config.stash and not chosen and all(config.getoption(n, v) == v for n, v in AS_MADE.items()):
        from genlock.contract.pytest_report import tree_digest

        config.stash[TESTED] = tree_digest(config.rootpath)


@pytest.hookimpl(tryfirst=True)  # the report is written by another hook of this name
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Mark the report, unless the run was cut short, or what was tested has changed meanwhile."""
    tested = session.config.stash.get(TESTED, None)
    if tested is None or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or session.shouldfail:
        return
    from genlock.contract.pytest_report import DIGEST, tree_digest

    if tree_digest(session.config.rootpath) == tested:
        session.config.stash[xml_key].add_global_property(DIGEST, tested)


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
