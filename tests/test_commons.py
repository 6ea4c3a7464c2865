"""Large payloads go by memory that the ranks have in common, on real processes; and what is wrong there is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from genlock.errors import GenlockError
from genlock.impl.commons import LARGE, Commons, _make

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="os.memfd_create is Linux alone")

RANKS = 3
PROGRAM = """
import json, os, sys
import torch
import torch.distributed as dist
from genlock.errors import ContractViolation
from genlock.impl import commons
from genlock.impl.intercept import watching
from genlock.impl.operations import Exchange
from genlock.impl.transport import TorchTransport
from genlock.model.protocol import PAYLOAD

number, folder, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=int(sys.argv[4]))
if way == "apart" and number == 2:
    commons._open = lambda *place: None
if way == "another file" and number == 2:
    own = commons._open
    commons._open = lambda pid, file, secret: own(pid, file, secret + 1)
transport = TorchTransport.over({"control": dist.new_group(), "device": dist.group.WORLD})

class Sizes:
    def __init__(self):
        self.all = []
    def issue(self, operation):
        if operation.op == "broadcast":
            self.all.append(operation.numel)

def send(size, seed):
    given = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    own = given if number == 0 else torch.zeros_like(given)
    got = transport.perform(PAYLOAD, Exchange("payload", own, lambda _: None))
    return bool((got == given).all())

def taken(size, seed):
    equal = send(size, seed)
    dist.barrier()  # as acks do: the root hears that all have taken it
    return equal

sizes, found = Sizes(), {}
with watching(sizes):
    found["equal"] = [taken(size, seed) for seed, size in enumerate(json.loads(sys.argv[5]))]
found["sizes"] = sizes.all
if way == "size":
    try:
        send(1 << 20 if number else 1 << 21, 0)
    except ContractViolation as error:
        found["error"] = str(error)
if way == "hasty" and transport._commons is not None:
    if number == 0:
        token = transport._commons.put(torch.zeros(1 << 20, dtype=torch.uint8))
        transport._commons.put(torch.ones(1 << 20, dtype=torch.uint8))
    else:
        token = torch.empty(commons.TOKEN, dtype=torch.uint8)
    dist.broadcast(token, 0)
    if number:
        try:
            transport._commons.take(token, torch.empty(1 << 20, dtype=torch.uint8), f"rank{number}, payload")
        except ContractViolation as error:
            found["error"] = str(error)
dist.barrier()
transport.close()
names = []
for file in os.listdir("/proc/self/fd"):
    try:
        names.append(os.readlink(f"/proc/self/fd/{file}"))
    except OSError:
        pass
found["left"] = any("memfd" in name for name in names) or "memfd" in open("/proc/self/maps").read()
print(json.dumps(found))
"""
SIZES = (LARGE, 7, 5_000_001, 1 << 20, LARGE - 1)


def run(folder: Path, way: str, ranks: int = RANKS) -> list[dict[str, Any]]:
    """What each rank found."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(number), str(folder), way, str(ranks), json.dumps(SIZES)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for number in range(ranks)
    ]
    try:
        said = [rank.communicate(timeout=100)[0] for rank in started]
        assert [rank.returncode for rank in started] == [0] * ranks
        return [json.loads(text.splitlines()[-1]) for text in said]
    finally:
        for rank in started:
            rank.kill()
            rank.wait()


@pytest.mark.parametrize("ranks", [1, 2, RANKS])
def test_large_payloads_go_by_memory_and_only_a_token_by_the_group(tmp_path: Path, ranks: int) -> None:
    for found in run(tmp_path, "", ranks):
        assert found["equal"] == [True] * len(SIZES)
        assert found["sizes"] == [16, 7, 16, 16, SIZES[-1]]
        assert not found["left"]


@pytest.mark.parametrize("way", ["apart", "another file"])
def test_where_one_rank_cannot_have_it_nobody_has(tmp_path: Path, way: str) -> None:
    for found in run(tmp_path, way):
        assert found["equal"] == [True] * len(SIZES)
        assert found["sizes"] == list(SIZES)
        assert not found["left"]


def test_another_size_is_named(tmp_path: Path) -> None:
    told = [found.get("error") for found in run(tmp_path, "size")]
    assert told == [None, *(f"rank{n}, payload: 2097152 bytes instead of 1048576" for n in (1, 2))]


def test_a_host_without_memory_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _make()
    assert made is not None
    memory, payload = Commons(*made), torch.zeros(LARGE, dtype=torch.uint8)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(GenlockError) as raised:
        memory.put(payload)
    told = "rank0: no memory for a payload of 262144 bytes: No space left on device; send less, or give the host more"
    assert str(raised.value) == told
    memory.close()


def test_a_root_that_does_not_wait_is_named(tmp_path: Path) -> None:
    told = [found.get("error") for found in run(tmp_path, "hasty")]
    text = "broadcast 5 was written before this rank had taken broadcast 4: the root did not wait"
    assert told == [None, *(f"rank{n}, payload: {text}" for n in (1, 2))]
