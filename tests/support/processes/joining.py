"""Three ranks of one host, of which the third never comes to where the others wait for it."""

import os
from datetime import timedelta

import torch.distributed as dist

rank = 0
for other in (1, 2):
    if os.fork() == 0:
        rank = other
        break
os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
if rank < 2:
    store = dist.FileStore(os.environ["STORE"], 3)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=rank, world_size=3, store=store, timeout=timedelta(seconds=1))
