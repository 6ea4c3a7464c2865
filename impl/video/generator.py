"""Runs a tensor-parallel causal video DiT, small by default: one rank's weights, caches and frame clock.

Four all-reduces a block (`layers`). With `GeneratorConfig.compile` the blocks run compiled, all of them by the same
code, without a graph break: what changes in Python from call to call, the ring's clock and the ledger of
collectives, stays outside. Left out: training, checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import Code, ContractViolation, UsageError
from ..chunk.weight_check import fingerprint
from . import layers
from .chunk_run import ChunkRun
from .config import GeneratorConfig, block_table, weight_table
from .kv_ring import CacheScalars, RingCache
from .tensor_parallel import TensorParallel
from .weights import make_weights

_CALL = "generator call"
_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@cache
def _block(backend: str) -> Any:
    """Return `layers.block`, compiled unless `backend` is `off`.

    A graph break in it is an error, so there is none.
    """
    return layers.block if backend == "off" else torch.compile(layers.block, backend=backend, fullgraph=True)


class Generator:
    """Holds one rank's shard of the generator: weights, caches and frame clock.

    At first it has cache epoch 0 and frame 0.

    Raises UsageError if the ranks cannot share its heads and FFN evenly, or the device lacks the attention
    kernel; calls raise ContractViolation where this rank is out of step (see `RingCache`).
    """

    def __init__(self, config: GeneratorConfig, comm: TensorParallel, *, device: torch.device | str = "cpu") -> None:
        config.require_divisible(comm.world)
        self.config, self.comm, self.device = config, comm, torch.device(device)
        self.weights = make_weights(config, comm.rank, comm.world, device)
        self.cache = RingCache(config.blocks, config.cache_frames, sink=config.sink_frames, device=device)
        self._text_kv: list[layers.KeysValues] | None = None
        self._try_attention()

    @property
    def knows_text(self) -> bool:
        """Say whether cross-attention has keys and values."""
        return self._text_kv is not None

    def shard_fingerprint(self) -> int:
        """Return an int64 hash of the names and bytes of all weights of this rank; it differs from rank to rank."""
        return fingerprint(self.weights)

    def replica_fingerprint(self) -> int:
        """Return an int64 hash of the weights that every rank holds in full; it is equal on all ranks."""
        table = weight_table(self.config)
        return fingerprint({name: w for name, w in self.weights.items() if table[name].split is None})

    def init_cache(self, epoch: int) -> None:
        """Make a hard cut: empty every cache and begin cache epoch `epoch` at frame 0."""
        self.cache.hard_cut(epoch)
        self.reset_crossattn()

    def reset_kv(self) -> None:
        """Empty the KV ring; the frame clock goes on."""
        self.cache.reset()

    def reset_crossattn(self) -> None:
        """Drop the cross-attention keys and values; the next call computes them from its conditioning."""
        self._text_kv = None

    def advance(self) -> None:
        """End the chunk: what the last call wrote is past from now on."""
        self.cache.advance()

    def recompute(self, context_frames: Tensor, conditioning: Tensor | None, *, start_frame: int) -> None:
        """Rebuild the KV ring from clean latents [B, n, C, H, W] of the n frames before `start_frame`.

        One generator call: the frames see each other both ways, at timestep 0 and without attention bias.
        """
        frames = context_frames.shape[1]
        self.cache.rewind(frames)
        self(context_frames, 0, conditioning, start_frame=start_frame - frames)
        self.advance()

    @torch.no_grad()
    def __call__(
        self,
        latents: Tensor,
        timestep: int,
        conditioning: Tensor | None,
        *,
        start_frame: int,
        attention_bias: float = 0.0,
    ) -> Tensor:
        """Run one denoise call: return the velocity (noise minus clean) of latents [B, F, C, H, W], like them.

        `conditioning` is [B, T, text_dim], needed only if cross-attention was reset. `attention_bias` is added
        to the scores of all frames before this chunk. The chunk's keys and values are cached at
        `start_frame`, over those of an earlier call for the same chunk.
        """
        config, grid = self.config, self._grid(latents)
        dtype, heads = config.torch_dtype, config.heads // self.comm.world
        self.cache.open(start_frame, grid[0])
        self.cache.reserve(len(latents), grid[1] * grid[2], heads, config.head_width, dtype)
        text = self._text(conditioning)
        x = F.linear(layers.patchify(latents.to(self.device, dtype), config.patch), self.weights["patch"])
        time, modulation = layers.embed_time(timestep, self.weights)
        rope = layers.rope(start_frame, grid, config.head_width, self.device)
        bias = self._attention_bias(attention_bias, grid)
        block = _block(config.compile)
        with sdpa_kernel(_BACKENDS[config.attention]):
            for i in range(config.blocks):
                ring, reduce = self.cache.place(i), self.comm.all_reduce
                x = block(x, self._of_block(i), modulation, rope, ring, bias, text[i], config.head_width, reduce)
        shift, scale = (self.weights["head.modulation"] + time).unbind()
        x = F.linear(layers.modulate(x, shift, scale), self.weights["head"])
        return layers.unpatchify(x, latents.shape, config.patch).to(latents.dtype)

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Return the number of frames, and of rows and columns of patches."""
        _, frames, channels, height, width = latents.shape
        p = self.config.patch
        if channels != self.config.latent_channels or height % p or width % p:
            raise ContractViolation(
                f"latents of shape {tuple(latents.shape)} are not {self.config.latent_channels} channels"
                f" in whole patches of {p} x {p}",
                where=_CALL,
            )
        return frames, height // p, width // p

    def _of_block(self, i: int) -> dict[str, Tensor]:
        return {name: self.weights[f"blocks.{i}.{name}"] for name in block_table(self.config)}

    def _text(self, conditioning: Tensor | None) -> list[layers.KeysValues]:
        """Return the cross-attention keys and values of each block, as cached."""
        if self._text_kv is None:
            if conditioning is None:
                what = "cross-attention was reset, and there is no conditioning"
                raise ContractViolation(what, where=_CALL, code=Code.RESET)
            text = layers.embed_text(conditioning.to(self.device, self.config.torch_dtype), self.weights)
            width = self.config.head_width
            self._text_kv = [layers.text_kv(text, self._of_block(i), width) for i in range(self.config.blocks)]
        return self._text_kv

    def _attention_bias(self, bias: float, grid: tuple[int, int, int]) -> Tensor | None:
        """Return the bias of each resident token [1, 1, 1, resident tokens], or None where it is 0."""
        if bias == 0.0:
            return None
        tokens = self.cache.past.to(self.config.torch_dtype) * bias
        return tokens.repeat_interleave(grid[1] * grid[2]).view(1, 1, 1, -1)

    def _try_attention(self) -> None:
        """Raise UsageError unless the kernel takes a bias too: none may turn up in phase B without a kernel for it."""
        q = torch.zeros(1, 8, 1, self.config.head_width, device=self.device, dtype=self.config.torch_dtype)
        try:
            with sdpa_kernel(_BACKENDS[self.config.attention]):
                layers.attend(q, q, q, q.new_zeros(1, 1, 1, 8))
        except RuntimeError as error:
            raise UsageError(
                f"no `{self.config.attention}` attention with a bias for {self.config.dtype} on {self.device}",
                do="choose another GeneratorConfig.attention",
            ) from error

    def counted(self) -> tuple[int, int]:
        """Return the number of collectives issued since the chunk began, and the hash of their sequence (int64).

        Those of compiled code are not counted: only the fence sees them.
        """
        return self.comm.observed, self.comm.sequence_hash

    def scalars(self) -> CacheScalars:
        """Return the cache's epoch and frame indices."""
        return self.cache.scalars

    def chunk(self, fields: Mapping[str, Any]) -> ChunkRun:
        """Begin phase B of a chunk (see `ChunkRun`)."""
        return ChunkRun(self, fields)
