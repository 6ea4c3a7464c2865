"""Fixtures of the guardian's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guardian_jobs import Job, Script


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start a job; its guardians are gone when the test ends."""
    jobs: list[Job] = []

    def begin(script: Script, **more: Any) -> Job:
        jobs.append(Job(tmp_path, script, **more))
        return jobs[-1]

    yield begin
    for job in jobs:
        for guardian in job.guardians:
            guardian.kill()
            guardian.wait()
