"""Tells from a stack whether a process waits for others: in a collective, or for its device.

A wait for the device counts, as what the device is in is mostly a collective. Left out: reading stacks.
"""

from __future__ import annotations

import re
from enum import Enum

from ...traces.evidence import Place, Stack
from ...traces.importers.places import place_of

_WAITING = re.compile(
    r"^(?:synchronize|_?wait_?|wait_stream|wait_event|all_reduce|all_gather\w*|reduce_scatter\w*|_all_gather_base"
    r"|_reduce_scatter_base|broadcast\w*|barrier|monitored_barrier|all_to_all\w*|reduce|gather\w*|scatter\w*|send|recv"
    r"|isend|irecv|batch_isend_irecv|_store_based_barrier|init_process_group|_new_process_group_helper|new_group"
    r"|destroy_process_group|item|tolist|cpu|to|nonzero|wait_for_everyone)$"
)
_NATIVE = re.compile(
    r"^(?:nccl[A-Z]\w*|pnccl\w*|cuda(?:Stream|Device|Event)(?:Synchronize|Query)\w*|cu(?:Stream|Event|Ctx)Synchronize\w*"
    r"|c10d::\w.*|gloo::\w.*|at::native::_local_scalar_dense\w*|cudaMemcpy\w*)"
)
_TORCH = re.compile(
    r"(?:^|/)torch/(?:distributed|cuda|_tensor|utils/_device|_ops|nn/parallel)|(?:^|/)distributed_c10d\.py|c10d_logger\.py"
)
_QUEUE = re.compile(r"(?:^|/)(?:shm_broadcast|message_queue|device_communicators/shm_broadcast)\.py")
_BACKWARD = re.compile(r"(?:^|/)torch/autograd/(?:graph|__init__)\.py$")
"""Files from which the backward pass is entered: what it does from there on, native frames alone show."""
_OUTSIDE = re.compile(
    r"(?:^|/)(?:threading|queue|selectors|socket|ssl|subprocess|shutil|tempfile|tarfile|zipfile|pickle|json/\w+|time"
    r"|multiprocessing/\w+|concurrent/futures/\w+|asyncio/\w+|importlib/.*|urllib/.*|http/.*|torch/utils/data/.*"
    r"|fsspec/.*|datasets/.*|pandas/.*|pyarrow/.*)\.py$"
)
"""Files in whose innermost frame nothing waits for a device."""
DEEP = 14
"""Frames from the innermost one that are looked at."""


class At(Enum):
    """Says where a process is."""

    WAITING = "in a collective, or waiting for its device"
    BACKWARD = "blocked in the backward pass, which may wait there for a collective or its device"
    ELSEWHERE = "in no collective, and not waiting for its device"
    UNSURE = "in the program, which may wait there for the device"


def state_of(stack: Stack) -> At:
    """Return where the main thread is, as far as its innermost frames tell.

    A line of the program itself may read a value off the device, or wait for an operation that it issued before, which
    shows in native frames alone.
    """
    if stack.waited:
        return At.WAITING
    native = any(not frame.file.endswith(".py") and not frame.file.startswith("<") for frame in stack.frames)
    for frame in stack.frames[:DEEP]:
        name = frame.function.split("(")[0]
        if _NATIVE.match(frame.function):
            return At.WAITING
        if _TORCH.search(frame.file) and _WAITING.match(name):
            return At.WAITING
        if _QUEUE.search(frame.file) and name in ("acquire_read", "acquire_write", "dequeue", "enqueue"):
            return At.WAITING  # a worker that waits for the next step
    inner = next((f for f in stack.frames if f.file.endswith(".py") and not f.file.startswith("<")), None)
    if inner is None:
        return At.UNSURE
    if _BACKWARD.search(inner.file) and not stack.active:
        return At.BACKWARD
    if native or _OUTSIDE.search(inner.file):
        return At.ELSEWHERE
    return At.UNSURE


def stands_at(stack: Stack) -> tuple[Place | None, Place | None]:
    """Return the program's line where the thread stands, and the library's beside it."""
    return place_of([(frame.file, frame.line, frame.function) for frame in stack.frames])
