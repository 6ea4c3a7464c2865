"""torch alone: DDP, FSDP1, FSDP2, HSDP, DTensor tensor parallelism, pipelining, DCP."""

from __future__ import annotations

import tempfile

import torch
import torch.distributed as dist
import way
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
SIZE = 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if way.strikes(rank, step, "raise"):
            raise RuntimeError("bad sample")  # LINE raise
        return self.down(torch.relu(self.up(x)))


step = -1
model: nn.Module = nn.Sequential(Block(), Block())
schedule = None
if way.KIND == "ddp":
    model = nn.parallel.DistributedDataParallel(model)
elif way.KIND == "fsdp1":
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({Block}), device_id=torch.device("cpu"))
elif way.KIND in ("fsdp2", "hsdp", "dcp"):
    from torch.distributed.fsdp import fully_shard

    shape, names = ((2, world // 2), ("replicas", "shards")) if way.KIND == "hsdp" else ((world,), ("shards",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
elif way.KIND == "tp":
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (world,))
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
elif way.KIND in ("gpipe", "1f1b"):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[way.KIND]
    model = Block()
    schedule = kind(PipelineStage(model, rank, world, torch.device("cpu")), 3, loss_fn=nn.functional.mse_loss)

optimizer = torch.optim.SGD(model.parameters(), 0.01)
for step in range(way.STEPS):
    way.end(rank, step)
    if way.strikes(rank, step, "uneven"):
        break
    if way.strikes(rank, step, "skip"):
        continue
    if way.strikes(rank, step, "extra"):
        dist.barrier()  # LINE extra
    if way.strikes(rank, step, "other"):
        dist.broadcast(torch.ones(3), way.BAD)  # LINE other
        continue
    optimizer.zero_grad()
    x = torch.randn(6, SIZE)
    if schedule is not None:
        schedule.step(*([x] if rank == 0 else []), **({"target": x} if rank == world - 1 else {}))  # LINE step
    else:
        loss = model(x).square().mean()  # LINE step
        loss.backward()  # LINE step
    optimizer.step()
    if way.KIND == "dcp":
        import torch.distributed.checkpoint as dcp

        folder = [tempfile.gettempdir() + "/dcp" if rank else tempfile.mkdtemp()]
        dist.broadcast_object_list(folder, 0)  # LINE step
        dcp.save({"model": model.state_dict()}, checkpoint_id=folder[0])  # LINE step
dist.barrier()  # LINE step
dist.destroy_process_group()
