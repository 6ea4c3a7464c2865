"""Several jobs under one `genlock record`, each of two forked ranks that end in ways of their own.

`genlock record -- python …/recorded_jobs.py FOLDER` starts them one after the other, and a process that nothing can
reach.
"""

from __future__ import annotations

import concurrent.futures.process
import importlib.util
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

assert importlib.util.find_spec("torch") is not None  # as libraries ask before they import it
_importing = threading.Thread(target=__import__, args=("torch",))
_importing.start()
_importing.join()

import genlock  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

c10d: Any = dist


def join(rank: int, store: str) -> None:
    patience = timedelta(seconds=20)
    dist.init_process_group("gloo", store=c10d.FileStore(store, 2), rank=rank, world_size=2, timeout=patience)


def killed_when_done(rank: int, store: str) -> None:
    """Destroys its group, and is gone without a word to Python."""
    join(rank, store)
    dist.all_reduce(torch.ones(2))
    dist.destroy_process_group()
    os.kill(os.getpid(), 9)


def joins_twice(rank: int, store: str) -> None:
    """Joins a job after another, with groups of some ranks in each, whose names torch uses again."""
    for turn, members in enumerate(([0], [1])):
        join(rank, f"{store}.{turn}")
        own, both = dist.new_group(members), dist.new_group([0, 1])
        if rank in members:
            dist.all_reduce(torch.ones(1), group=own)
        dist.all_reduce(torch.ones(turn + 1), group=both)
        dist.destroy_process_group()
    os._exit(0)


def unknown_to_torch(rank: int, store: str) -> None:
    """Makes its own group, of which torch.distributed knows nothing, and no default group."""
    shared = c10d.FileStore(store, 2)
    group = c10d.ProcessGroup(shared, rank, 2)
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(interface="lo")]
    backend = c10d.ProcessGroupGloo(c10d.PrefixStore("b", shared), rank, 2, timedelta(seconds=20))
    group._set_default_backend(c10d.ProcessGroup.BackendType.GLOO)
    group._register_backend(torch.device("cpu"), c10d.ProcessGroup.BackendType.GLOO, backend)
    group._set_group_name("of our own")
    for _ in range(3):
        group.allreduce([torch.ones(2)]).wait()
    sys.exit()


def swallowed(rank: int, store: str) -> None:
    """Rank1 raises; somebody catches that, and leaves with a status."""
    join(rank, store)
    dist.all_reduce(torch.ones(2))
    try:
        if rank == 1:
            raise ValueError("no such sample")  # RAISED HERE
        dist.all_reduce(torch.ones(2))
    except Exception:
        sys.exit(3)


def left_later(rank: int, store: str) -> None:
    """Rank1 raises; somebody catches that, writes it down, and leaves with a status when it is forgotten."""
    join(rank, store)
    dist.all_reduce(torch.ones(2))
    try:
        if rank == 1:
            raise ValueError("no such sample")  # RAISED LATER
        dist.all_reduce(torch.ones(2))
    except Exception:
        traceback.format_exc()
    sys.exit(rank * 4)


def kept(rank: int, store: str) -> None:
    """Rank1 raises; a pool keeps that for whoever asks for the result, and goes on until it is killed.

    What rank0 has caught and written down before it went on is nothing.
    """
    join(rank, store)
    pool: Any = concurrent.futures.process
    try:
        raise ValueError("nothing")
    except ValueError as error:
        pool._ExceptionWithTraceback(error, error.__traceback__)
    dist.all_reduce(torch.ones(2))
    try:
        try:
            if rank == 1:
                raise ValueError("no such sample")  # RAISED IN A POOL
            dist.all_reduce(torch.ones(2))
        finally:
            dist.destroy_process_group()
    except ValueError as error:
        pool._ExceptionWithTraceback(error, error.__traceback__)
    os.kill(os.getpid(), 9)


def prechecked(rank: int, store: str) -> None:
    """Rank1 issues another collective, and decides otherwise: both ranks keep what they are told."""
    join(rank, store)
    told: list[str] = []
    with genlock.precheck(deadline=20):
        dist.all_reduce(torch.ones(2))
        try:
            dist.all_reduce(torch.ones(2)) if rank == 0 else dist.broadcast(torch.ones(2), 1)  # DIFFERS
        except genlock.ContractViolation as error:
            told.append(str(error))
        try:
            genlock.agree("abort", rank == 1)
        except genlock.ContractViolation as error:
            told.append(str(error))
    try:
        with genlock.precheck(deadline=0.3):
            if rank == 0:
                dist.barrier()
    except genlock.ContractViolation as error:
        told.append(str(error))
    with open(f"{store}.told{rank}", "w") as file:
        file.write("\n".join(told))
    os._exit(0)


def by_a_queue(rank: int, store: str) -> None:
    """Talks by a queue of its own; rank1 is killed with the second message in its hands."""
    end = genlock.channel("our queue", rank, 2)
    ours, theirs = f"{store}.{rank}", f"{store}.{1 - rank}"
    for number in range(2):
        if rank == 0:
            end.sent(1)
            os.mkdir(f"{ours}.{number}")
            try:
                with end.receiving(1):
                    until(f"{theirs}.{number}", 10.0 if number == 0 else 0.5)
            except TimeoutError:
                os._exit(1)
        else:
            until(f"{theirs}.{number}", 10.0)
            end.received(0)
            if number == 1:
                os.kill(os.getpid(), 9)
            end.sent(0)
            os.mkdir(f"{ours}.{number}")


def until(path: str, patience: float) -> None:
    last = time.monotonic() + patience
    while not os.path.isdir(path):
        if time.monotonic() > last:
            raise TimeoutError("no answer")
        time.sleep(0.005)


JOBS: tuple[Callable[[int, str], None], ...] = (
    killed_when_done,
    joins_twice,
    unknown_to_torch,
    swallowed,
    prechecked,
    by_a_queue,
    left_later,
    kept,
)
UNREACHED = (
    "import mmap, sys, time; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1, flags=2); time.sleep(1.5)"
)
"""A Python without the recorder that looks, from outside, as if it had loaded torch."""


def main(folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    library = os.path.join(folder, "libtorch_python.so")
    with open(library, "w") as file:
        file.write("a region")
    unreached = subprocess.Popen([sys.executable, "-I", "-S", "-c", UNREACHED, library])
    for job in JOBS:
        ranks = []
        for rank in range(2):
            pid = os.fork()
            if pid == 0:
                job(rank, f"{folder}/{job.__name__}")
                os._exit(0)
            ranks.append(pid)
        for pid in ranks:
            os.waitpid(pid, 0)
    unreached.wait()


if __name__ == "__main__":
    main(sys.argv[1])
    sys.exit(5)
