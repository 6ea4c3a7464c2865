"""Records the message queue of a vLLM engine: who was given step n, who took it, who has not answered.

The engine puts each step into a ring in shared memory, every worker reads it, and one of them or all answer by a queue.
Between the two the workers' own kernels reduce over shared memory, on CPU. All of that is one channel: rank 0 is the
engine, rank n + 1 is worker n. A worker that raises says so to nobody but itself, unless it is the one to answer.

Nothing is changed in vLLM but that the methods which do this are wrapped. Left out: any version that was not tried, its
Ray and external launchers, engines over several nodes, and what runs on a GPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from ..channel import Channel, channel

MODULES = ("vllm.v1.executor.multiproc_executor", "vllm.distributed.device_communicators.cpu_communicator")
TRIED = ("0.32",)
"""Versions with which this was tried, without what comes after the second number."""
STEPS = ("execute_model", "sample_tokens", "execute_dummy_batch")
REDUCES = {"all_reduce": "all_reduce", "gather": "gather", "all_gather_into_tensor": "all_gather"}

SHUT = "cancelled"
"""Says the error that a worker gets out of its ring once the engine has shut that."""

_worker: list[tuple[Channel, int]] = []
"""The channel of this process, where it is a worker, with the number of workers."""


def adapt(module: Any) -> None:
    """Wrap what a module of vLLM has, once it is imported."""
    version = str(sys.modules["vllm"].__version__)
    if not version.startswith(tuple(f"{tried}." for tried in TRIED)):
        print(f"genlock: the queue of vLLM {version} is not recorded: tried were {', '.join(TRIED)}", file=sys.stderr)
        return
    if module.__name__ == MODULES[0]:
        module.MultiprocExecutor._init_executor = _engine(module.MultiprocExecutor._init_executor)
        module.WorkerProc.worker_busy_loop = _busy(module.WorkerProc.worker_busy_loop)
    else:
        for name, op in REDUCES.items():
            kernels = module._CPUSHMDistributed
            setattr(kernels, name, _reduce(getattr(kernels, name), op))


def _name_of(queue: Any) -> str:
    """Return the name of a ring, which its writer and its readers know."""
    return f"vLLM's queue {queue.handle.buffer_handle[3]}: rank0 is the engine, rank n+1 is worker n"


def _engine(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(executor: Any, *given: Any, **named: Any) -> None:
        original(executor, *given, **named)
        ring = executor.rpc_broadcast_mq
        if ring is None or ring.handle.buffer_handle is None:
            return
        workers = executor.world_size
        end = channel(_name_of(ring), 0, workers + 1)
        put = ring.enqueue

        def enqueue(*given: Any, **named: Any) -> Any:
            result = put(*given, **named)
            for worker in range(workers):
                end.sent(worker + 1)
            return result

        ring.enqueue = enqueue
        executor.shutdown = _shut(executor.shutdown, executor, end)
        for worker, queue in enumerate(executor.response_mqs):
            queue.dequeue = _answered(queue.dequeue, end, worker + 1)

    return init


def _shut(original: Callable[[], None], executor: Any, end: Channel) -> Callable[[], None]:
    """Say why the engine shuts down, before it ends its workers: one of them has died, or it is done."""

    def shutdown() -> None:
        workers = (executor.workers or ()) if executor.is_failed else ()
        dead = [worker.rank for worker in workers if wait([worker.proc.sentinel], 0)]  # perhaps not reaped yet
        if dead:
            end.lost(dead[0] + 1, f"the process of worker {dead[0]} ended by itself")
        elif not executor.is_failed:
            end.close()  # it may be killed before it comes to its end
        original()

    return shutdown


def _answered(take: Callable[..., Any], end: Channel, rank: int) -> Callable[..., Any]:
    def dequeue(*given: Any, **named: Any) -> Any:
        with end.receiving(rank):
            return take(*given, **named)

    return dequeue


def _busy(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def worker_busy_loop(worker: Any, *given: Any, **named: Any) -> None:
        ring, answers = worker.rpc_broadcast_mq, worker.worker_response_mq
        if ring is not None and ring.handle.buffer_handle is not None:
            workers = ring.handle.buffer_handle[0]
            end = channel(_name_of(ring), worker.rank + 1, workers + 1)
            _worker[:] = [(end, workers)]
            take, put = ring.dequeue, answers.enqueue

            def dequeue(*given: Any, **named: Any) -> Any:
                result = take(*given, **named)
                end.received(0)
                return result

            def enqueue(*given: Any, **named: Any) -> Any:
                result = put(*given, **named)
                end.sent(0)
                return result

            ring.dequeue, answers.enqueue = dequeue, enqueue
            for step in STEPS:
                if callable(run := getattr(worker.worker, step, None)):
                    setattr(worker.worker, step, _step(run, end))
            _until_shut(original, end, worker, *given, **named)
        else:
            original(worker, *given, **named)

    return worker_busy_loop


def _until_shut(loop: Callable[..., None], end: Channel, *given: Any, **named: Any) -> None:
    """Run a worker's loop, and say why it ends, as the worker may be killed before it comes to its end."""
    try:
        loop(*given, **named)
    except Exception as error:
        if str(error) != SHUT:
            end.raised(error)
        raise
    finally:
        end.close()


def _step(run: Callable[..., Any], end: Channel) -> Callable[..., Any]:
    @functools.wraps(run)
    def step(*given: Any, **named: Any) -> Any:
        try:
            return run(*given, **named)
        except Exception as error:
            end.raised(error)
            raise

    return step


def _reduce(original: Callable[..., Any], op: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def reduce(kernels: Any, *given: Any, **named: Any) -> Any:
        if not _worker:  # while the engine starts
            return original(kernels, *given, **named)
        end, _ = _worker[0]
        with end.meeting(op, [rank + 1 for rank in kernels.communicator.ranks]):
            return original(kernels, *given, **named)

    return reduce
