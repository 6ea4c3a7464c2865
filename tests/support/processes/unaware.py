"""A program that knows nothing of its guardian: steps of an all-reduce, in one of which rank 1 stalls as it is told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist


def hold_interpreter() -> None:
    """Lock a mutex twice, in C, with the interpreter held."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def stall(way: str) -> None:
    if way == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if way == "sleep":
        time.sleep(1000)
    if way == "gil":
        hold_interpreter()
    if way == "wedge":  # in an operation: the interpreter is taken while this thread waits in C
        threading.Thread(target=hold_interpreter).start()
    if way == "apart":
        dist.recv(torch.ones(1), 2)  # which never sends


if __name__ == "__main__":
    dist.init_process_group("gloo")
    pair = dist.new_group([0, 1])
    for step in range(6):
        if dist.get_rank() < 2:
            dist.all_reduce(torch.ones(3), group=pair)
        if dist.get_rank() == 1 and step == 3:
            stall(sys.argv[1])
        work = dist.all_reduce(torch.ones(3), async_op=True)
        assert work is not None
        work.wait()
    dist.barrier()
    dist.destroy_process_group()
    print("done")
