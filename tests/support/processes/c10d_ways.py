"""One of two gloo ranks: goes every way into torch.distributed, first watched, then, on rank0 alone, refused.

Run as `c10d_ways.py RANK STORE [COMPILER [python]]`, both at once, `python` for the kernels in Python;
`test_c10d_intercept` reads what each prints.
Rank1 issues nothing while rank0 is refused: had any of it reached the backend, the last all-reduce would go wrong.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from genlock.errors import ContractViolation
from genlock.impl.recording import c10d_intercept
from genlock.impl.recording.c10d_intercept import OnComplete, Operation, caller, site, watching
from genlock.traces.outcome import Outcome
from torch.nn.parallel import DistributedDataParallel

RANKS = 2
RANK = int(sys.argv[1]) if __name__ == "__main__" else 0
PEER = 1 - RANK


c10d: Any = dist  # which does not declare all that it exports


def world() -> Any:
    return dist.group.WORLD


def new() -> torch.Tensor:
    return torch.ones(4)


def pair() -> list[torch.Tensor]:
    return [new(), new()]


def either(send: Callable[[], Any], receive: Callable[[], Any]) -> Any:
    return send() if RANK == 0 else receive()


def both_ways() -> None:
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, new(), PEER), dist.P2POp(dist.irecv, new(), PEER)]):
        work.wait()


def other_thread() -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            dist.all_reduce(new())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def inference() -> None:
    with torch.inference_mode():
        dist.all_reduce(new())


def coalesced() -> None:
    with c10d._coalescing_manager(world(), async_ops=True) as manager:
        dist.all_reduce(new())
        dist.all_reduce(new())
    manager.wait()


def functional_sum(tensor: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = functional.all_reduce(tensor + 1, "sum", world()) * 2
    return total


class Compiled:
    """A compiled function, compiled when it is first called."""

    def __init__(self, backend: str) -> None:
        self.run = torch.compile(functional_sum, backend=backend)

    def __call__(self) -> None:
        assert torch.equal(self.run(new()), 8 * new())


class Backward:
    """A DDP model in training, after the steps in which DDP arranges itself."""

    def __init__(self, hook: bool) -> None:
        self.model = DistributedDataParallel(torch.nn.Linear(4, 1, bias=False))
        if hook:
            self.model.module.weight.register_hook(self._reduce)
        for _ in range(2):
            self()

    @staticmethod
    def _reduce(gradient: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(gradient)
        return gradient

    def __call__(self) -> None:
        self.model(new()).sum().backward()


def ways(group: Any, compiler: str) -> dict[str, Callable[[], Any]]:
    """Every way in. `group` is a second group, `compiler` a backend of torch.compile."""
    return {
        "all_reduce": lambda: dist.all_reduce(new()),
        "broadcast": lambda: dist.broadcast(new(), 1),
        "reduce": lambda: dist.reduce(new(), 1),
        "all_gather": lambda: dist.all_gather(pair(), new()),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(torch.empty(8), new()),
        "all_gather_single": lambda: world().all_gather_single(torch.empty(8), new()).wait(),
        "reduce_scatter": lambda: dist.reduce_scatter(new(), pair()),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(torch.empty(2), new()),
        "gather": lambda: dist.gather(new(), pair() if RANK == 0 else None),
        "scatter": lambda: dist.scatter(new(), pair() if RANK == 0 else None),
        "all_to_all": lambda: dist.all_to_all(pair(), pair()),
        "all_to_all_single": lambda: dist.all_to_all_single(new(), new()),
        "barrier": lambda: dist.barrier(),
        "monitored_barrier": lambda: dist.monitored_barrier(),
        "send/recv": lambda: either(lambda: dist.send(new(), 1, tag=7), lambda: dist.recv(new(), 0, tag=7)),
        "recv from any": lambda: either(lambda: dist.send(new(), 1), lambda: dist.recv(new())),
        "isend/irecv": lambda: either(lambda: dist.isend(new(), 1), lambda: dist.irecv(new(), 0)).wait(),
        "batch_isend_irecv": both_ways,
        "send_object_list": lambda: either(
            lambda: dist.send_object_list(["x"], 1), lambda: dist.recv_object_list([None], 0)
        ),
        "broadcast_object_list": lambda: dist.broadcast_object_list(["x"], 0),
        "all_gather_object": lambda: dist.all_gather_object([None, None], "x"),
        "gather_object": lambda: dist.gather_object("x", [None, None] if RANK == 0 else None),
        "async_op": lambda: dist.all_reduce(new(), async_op=True).wait(),
        "subgroup": lambda: dist.all_reduce(new(), group=group),
        "direct": lambda: world().allreduce([new()]).wait(),
        "direct p2p": lambda: either(lambda: world().send([new()], 1, 0), lambda: world().recv([new()], 0, 0)).wait(),
        "functional all_reduce": lambda: functional_sum(new()),
        "functional all_gather": lambda: functional.all_gather_tensor(new(), 0, world()) + 1,
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(new(), "sum", 0, world()) + 1,
        "functional all_to_all": lambda: functional.all_to_all_single(new(), None, None, world()) + 1,
        "functional broadcast": lambda: functional.broadcast(new(), 0, world()) + 1,
        "all_reduce_coalesced": lambda: dist.all_reduce_coalesced(pair()),
        "coalescing manager": coalesced,
        "functional coalesced": lambda: functional.all_reduce_coalesced(pair(), "sum", world())[0] + 1,
        "other thread": other_thread,
        "inference mode": inference,
        "compiled": Compiled(compiler),
        "DDP": Backward(hook=False),
        "DDP hook": Backward(hook=True),
    }


class Seen:
    """What one way did: each operation, where it came from, and how it ended."""

    def __init__(self) -> None:
        self.operations: list[dict[str, Any]] = []

    def issue(self, operation: Operation) -> OnComplete:
        left: list[str | None] = []

        def on_complete(outcome: Outcome | None) -> None:
            left.append(None if outcome is None else outcome.text)

        facts = operation._asdict() | {"group": operation.group.name, "site": site(caller()), "left": left}
        self.operations.append(facts)
        return on_complete


class Refusal:
    """Refuses everything."""

    def issue(self, operation: Operation) -> OnComplete | None:
        raise ContractViolation(f"{operation.op} is not in the plan")


def watched(do: Callable[[], Any]) -> list[dict[str, Any]]:
    seen = Seen()
    with watching(seen):
        do()
    return seen.operations


def refused(do: Callable[[], Any]) -> str:
    """How an attempt ended: the exception's type and first line."""
    try:
        do()
    except BaseException as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "not refused"


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if sys.argv[4:] == ["python"]:
        c10d_intercept._interception.compiled = None
    store = c10d.FileStore(sys.argv[2], RANKS)
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=RANKS, timeout=timedelta(seconds=60))
    todo = ways(dist.new_group(), *sys.argv[3:4] or ["aot_eager"])
    found: dict[str, Any] = {"watched": {name: watched(do) for name, do in todo.items()}, "refused": {}}
    dist.barrier()
    if RANK == 0:
        with watching(Refusal()):
            found["refused"] = {name: refused(do) for name, do in todo.items()}
    total = torch.full((3,), 1 + RANK)
    dist.all_reduce(total)
    found["sum"] = total.tolist()
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
