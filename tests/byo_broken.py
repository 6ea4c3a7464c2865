"""The example's language model, broken: `python tests/byo_broken.py FOLDER weight|past`, under torchrun.

`weight` changes a weight of rank1 before its third chunk; `past` has rank0 call its generator past the entry point.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from genlock.impl.serve import Driver, Mine, serve

_spec = importlib.util.spec_from_file_location(
    "language_model", Path(__file__).parents[1] / "examples" / "language_model.py"
)
assert _spec
assert _spec.loader
example: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)
made: list[Mine] = []


def mine(group: Any, device: torch.device) -> Mine:
    whole: Mine = example.mine(group, device)
    made.append(whole)

    def chunk(fields: Any) -> Generator[None, None, torch.Tensor]:
        if sys.argv[2] == "weight" and group.rank() == 1 and fields["chunk_index"] == 3:
            next(iter(whole.shard.values())).view(-1)[0] += 1
        return (yield from whole.chunk(fields))

    return replace(whole, chunk=chunk)


def converse(driver: Driver) -> None:
    if sys.argv[2] == "past":
        noise = torch.zeros(1, 1, example.BYTES)
        fields = {"init_cache": True, "current_start_frame": 0, "conditioning_embeds_updated": False, "latents": noise}
        next(made[0].chunk({**fields, "conditioning_embeds": torch.zeros(1, 1, example.WIDTH)}))
    example.converse(driver)


if __name__ == "__main__":
    sys.exit(serve(mine, converse, out=sys.argv[1]))
