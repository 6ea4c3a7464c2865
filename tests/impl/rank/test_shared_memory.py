"""Large payloads go by memory that the ranks have in common, on real processes; and what is wrong there is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from genlock.errors import GenlockError
from genlock.impl.rank.shared_memory import LARGE, SharedMemory, _make
from genlock.impl.rank.transport import default_store
from repository import PROCESSES
from shared_memory_ranks import JOBS, SIZES

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="os.memfd_create is Linux alone")

Found = list[dict[str, Any]]
"""What each rank of a job found."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    folder = tmp_path_factory.mktemp("commons")
    script = PROCESSES / "shared_memory_ranks.py"
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return {job: [json.loads((folder / f"{job}-{n}.json").read_text()) for n in range(JOBS[job])] for job in JOBS}


@pytest.mark.parametrize("job", ["one", "two", "three"])
def test_large_payloads_go_by_memory_and_only_a_token_by_the_group(jobs: dict[str, Found], job: str) -> None:
    for found in jobs[job]:
        assert found["equal"] == [True] * len(SIZES)
        assert found["sizes"] == [16, 7, 16, 16, SIZES[-1]]
        assert not found["left"]


@pytest.mark.parametrize("job", ["apart", "another file"])
def test_where_one_rank_cannot_have_it_nobody_has(jobs: dict[str, Found], job: str) -> None:
    for found in jobs[job]:
        assert found["equal"] == [True] * len(SIZES)
        assert found["sizes"] == list(SIZES)
        assert not found["left"]


def test_ranks_agree_on_the_memory_without_a_collective(jobs: dict[str, Found]) -> None:
    assert {job: [found["joined_by"] for found in jobs[job]] for job in JOBS} == {job: [[]] * JOBS[job] for job in JOBS}


def test_two_transports_over_one_group_have_memory_of_their_own(alone: None) -> None:
    group = dist.group.WORLD
    assert group is not None
    made = [SharedMemory.of(group, default_store()) for _ in range(2)]
    for memory in made:
        assert memory is not None
        memory.close()


def test_another_size_is_named(jobs: dict[str, Found]) -> None:
    told = [found.get("error") for found in jobs["size"]]
    assert told == [None, *(f"rank{n}, payload: 2097152 bytes instead of 1048576" for n in (1, 2))]


def test_a_host_without_memory_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make()
    assert made is not None
    memory, payload = SharedMemory(*made), torch.zeros(LARGE, dtype=torch.uint8)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(GenlockError) as raised:
        memory.put(payload)
    told = "rank0: no memory for a payload of 262144 bytes: No space left on device; send less, or give the host more"
    assert str(raised.value) == told
    memory.close()


def test_what_is_reserved_can_be_put_whatever_the_host_says_then(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make()
    assert made is not None
    memory = SharedMemory(*made)
    memory.reserve(2 * LARGE)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for size in (LARGE, 2 * LARGE):
        memory.put(torch.zeros(size, dtype=torch.uint8))
    memory.close()


def test_a_root_that_does_not_wait_is_named(jobs: dict[str, Found]) -> None:
    told = [found.get("error") for found in jobs["hasty"]]
    text = "broadcast 5 was written before this rank had taken broadcast 4: the root did not wait"
    assert told == [None, *(f"rank{n}, payload: {text}" for n in (1, 2))]
