"""Describes a generator in numbers: its configuration, equal on all ranks, and the table of its weights.

Left out: the weights themselves (`weights`), and what is computed with them (`layers`, `generator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ...errors import UsageError

ALL_REDUCES_PER_BLOCK = 4
SINUSOIDS = 256
"""Width of a timestep before its embedding."""


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Holds the shape of a generator; it is equal on all ranks.

    Lengths of time are in latent frames.

    `attention` pins the kernel of scaled dot-product attention, so that no rank resolves it on its own; `compile`
    is the backend of torch.compile for the blocks.
    """

    blocks: int = 2
    width: int = 96
    heads: int = 12
    ffn: int = 384
    patch: int = 2
    latent_channels: int = 16
    text_dim: int = 64
    chunk_frames: int = 2
    cache_frames: int = 7
    sink_frames: int = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["math", "flash", "efficient", "cudnn"] = "math"
    compile: Literal["off", "aot_eager", "inductor"] = "off"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UsageError(f"width {self.width} over {self.heads} heads is not an even head width")
        if self.chunk_frames + max(self.sink_frames, 1) > self.cache_frames:
            raise UsageError(
                f"a cache of {self.cache_frames} frames holds no past beside a chunk of {self.chunk_frames} "
                f"frames and {self.sink_frames} sinks"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def require_divisible(self, world: int) -> None:
        """Raises UsageError if so many ranks cannot share heads and FFN evenly."""
        if self.heads % world or self.ffn % world:
            raise UsageError(
                f"{world} ranks do not divide {self.heads} heads and an FFN of {self.ffn}",
                do="choose a world size that divides both",
            )


def tiny() -> GeneratorConfig:
    """Return two blocks of width 96: 1, 2, 3 or 4 ranks, a few milliseconds a call on a CPU."""
    return GeneratorConfig()


def wan_14b_shape() -> GeneratorConfig:
    """Return the shape of a 14-billion-parameter video DiT: 40 blocks, so 160 all-reduces a call."""
    return GeneratorConfig(
        blocks=40,
        width=5120,
        heads=40,
        ffn=13824,
        text_dim=4096,
        chunk_frames=3,
        cache_frames=9,
        sink_frames=0,
        dtype="bfloat16",
        attention="efficient",
    )


class Weight(NamedTuple):
    """Holds the full shape of a weight, and the dimension along which ranks split it (None: each holds all of it)."""

    shape: tuple[int, ...]
    split: int | None = None

    def of_rank(self, world: int) -> tuple[int, ...]:
        """Return the shape of one rank's part."""
        return tuple(size // world if axis == self.split else size for axis, size in enumerate(self.shape))


def block_table(config: GeneratorConfig) -> dict[str, Weight]:
    """Return the weights of one block by name.

    Linear weights are [out, in]: split 0 is column-parallel, 1 row-parallel.
    """
    width, ffn = config.width, config.ffn
    return {
        "modulation": Weight((6, width)),
        "self.q": Weight((width, width), 0),
        "self.k": Weight((width, width), 0),
        "self.v": Weight((width, width), 0),
        "self.q_norm": Weight((width,), 0),
        "self.k_norm": Weight((width,), 0),
        "self.out": Weight((width, width), 1),
        "cross.q": Weight((width, width), 0),
        "cross.k": Weight((width, width), 0),
        "cross.v": Weight((width, width), 0),
        "cross.out": Weight((width, width), 1),
        "ffn.up": Weight((ffn, width), 0),
        "ffn.down": Weight((width, ffn), 1),
    }


def weight_table(config: GeneratorConfig) -> dict[str, Weight]:
    """Return all weights by name; those of block `i` are `blocks.<i>.<name>`."""
    width, pixels = config.width, config.latent_channels * config.patch**2
    return {
        "patch": Weight((width, pixels)),
        "time.in": Weight((width, SINUSOIDS)),
        "time.out": Weight((width, width)),
        "time.modulation": Weight((6 * width, width)),
        "text.in": Weight((width, config.text_dim)),
        "text.out": Weight((width, width)),
        **{f"blocks.{i}.{name}": weight for i in range(config.blocks) for name, weight in block_table(config).items()},
        "head.modulation": Weight((2, width)),
        "head": Weight((pixels, width)),
    }
