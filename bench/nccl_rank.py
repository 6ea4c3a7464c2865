"""One rank of a small job that shares a device with others: `python bench/nccl_rank.py '{"backend": …}'`.

`what` is `probe` (one all-reduce, is its sum right), or a few rounds of collectives: `healthy`, or rank1 does one of
them wrong: `skip` (leaves it out), `kind` (issues another), `strand` (ends before it), `stall` (never comes to it).
Whoever waits gives up after a few seconds. Each rank leaves torch's own dump, `trace_<rank>`, in the folder.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

GIVES_UP = 8.0
"""Seconds after which a rank that waits dumps and leaves."""
ROUNDS = 5


def main(job: dict[str, Any]) -> None:
    """The rank, to its end. Exit status 0: it came through; 3: it gave up waiting."""
    os.environ.update(job["environment"], TORCH_FR_BUFFER_SIZE="2000", TORCH_NCCL_TRACE_BUFFER_SIZE="2000")
    import torch
    import torch.distributed as dist
    from genlock.impl.rank import flight_recorder_dump

    rank, world, out = job["rank"], job["world"], Path(job["out"])
    nccl = job["backend"] == "nccl"
    device = torch.device("cuda", rank % torch.cuda.device_count()) if nccl else torch.device("cpu")
    if nccl:
        torch.cuda.set_device(device)

    def give_up() -> None:
        time.sleep(job.get("gives_up", GIVES_UP))
        leave(3)

    def leave(status: int) -> None:
        flight_recorder_dump.dump(out, rank)
        sys.stdout.flush()
        os._exit(status)

    dist.init_process_group(
        job["backend"],
        init_method=f"file://{out}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    ones = torch.ones(1024, device=device)
    dist.all_reduce(ones)
    total = float(ones.sum())
    print(json.dumps({"rank": rank, "right": total == 1024 * world}), flush=True)
    if job["what"] == "probe":
        leave(0 if total == 1024 * world else 4)
    threading.Thread(target=give_up, daemon=True).start()
    try:
        play(job["what"], rank, device)
        if nccl:
            torch.cuda.synchronize()
        leave(0)
    except RuntimeError as error:
        print(json.dumps({"rank": rank, "error": str(error).splitlines()[0][:200]}), flush=True)
        leave(5)


def play(what: str, rank: int, device: Any) -> None:
    """A few rounds of an all-reduce and a broadcast; rank1 is the one that is broken, in round 3."""
    import torch
    import torch.distributed as dist

    for number in range(ROUNDS):
        wrong = rank == 1 and number == 2
        if wrong and what == "stall":
            time.sleep(3600)
        if wrong and what == "strand":
            return
        if not (wrong and what == "skip"):
            op: Any = dist.reduce_scatter_tensor if wrong and what == "kind" else None
            if op is None:
                dist.all_reduce(torch.ones(64, device=device))
            else:
                size = dist.get_world_size()
                op(torch.ones(64, device=device), torch.ones(64 * size, device=device))
        dist.broadcast(torch.ones(32, device=device), 0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
