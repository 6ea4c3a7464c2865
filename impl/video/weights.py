"""Makes a rank's weights from a seed.

Left out: checkpoints, and how weights are used (`layers`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..chunk import digest
from .config import GeneratorConfig, weight_table


def make_weights(
    config: GeneratorConfig, rank: int, world: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return this rank's slices of the full weights.

    Each full tensor comes from a CPU generator of its own, seeded by the configuration's seed and its name,
    so that it is the same for any rank, world size, device and order. On `meta` there are shapes alone.
    """
    device = torch.device(device)
    weights = {}
    for name, weight in weight_table(config).items():
        if device.type == "meta":
            weights[name] = torch.empty(weight.of_rank(world), dtype=config.torch_dtype, device=device)
            continue
        shape, split = weight
        seed = digest.of_bytes(f"{config.seed}/{name}".encode())
        full = torch.empty(shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
        full = 1 + 0.1 * full if name.endswith("_norm") else full.mul_(math.sqrt(3 / shape[-1]))
        if split is not None:
            full = full.chunk(world, split)[rank]
        weights[name] = full.to(device, config.torch_dtype).contiguous()
    return weights
