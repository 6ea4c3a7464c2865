"""A tensor-parallel causal video DiT, and phase B of a chunk on it; small by default.

Each block does exactly four all-reduces: the sums of squares of Q and of K (their RMSNorm spans the full
width), the attention output and the FFN output. Cross-attention costs none of its own: it reads the same
normed input as self-attention, norms Q and K per head, and its row-parallel output is added to
self-attention's before that one is reduced. Left out: biases of linears, training, checkpoints, compilation
(the collectives are counted in Python).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ContractViolation, UsageError
from . import digest
from .cache import CacheScalars, RingCache

ALL_REDUCES_PER_BLOCK = 4
TIMESTEPS = 1000
"""The timestep of pure noise: noise level = timestep / TIMESTEPS."""

_CALL = "generator call"
_SINUSOIDS = 256
_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Shape of a generator; equal on all ranks. Lengths of time are in latent frames.

    `attention` pins the kernel of scaled dot-product attention, so that no rank resolves it on its own.
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


def tiny() -> GeneratorConfig:
    """Two blocks of width 96: 1, 2, 3 or 4 ranks, a few milliseconds a call on a CPU."""
    return GeneratorConfig()


def wan_14b_shape() -> GeneratorConfig:
    """The shape of a 14-billion-parameter video DiT: 40 blocks, so 160 all-reduces a call."""
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


class TensorParallel(Protocol):
    """What a generator needs of its peers.

    `observed` counts the collectives issued since `reset`; `sequence_hash` chains their operation, dtype and
    number of elements. Both are equal on all ranks, whatever the world size.
    """

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def observed(self) -> int: ...
    @property
    def sequence_hash(self) -> int: ...
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks; it may be `tensor` itself, changed in place."""
        ...

    def reset(self) -> None:
        """Count and hash from nothing again."""
        ...


class Solo:
    """One rank: nothing to reduce, but counted and hashed like the real thing."""

    rank = 0
    world = 1

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.observed, self.sequence_hash = 0, digest.SEQUENCE_START

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._note("all_reduce", tensor)
        return tensor

    def _note(self, op: str, tensor: Tensor) -> None:
        self.observed += 1
        self.sequence_hash = digest.chain(self.sequence_hash, op, digest.dtype_name(tensor.dtype), tensor.numel())


class Distributed(Solo):
    """The ranks of a torch.distributed group (the default one if None). A rank's shard is its rank in it.

    `functional` issues functional collectives, which a compiler can trace, in place of the eager ones.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, functional: bool = False) -> None:
        super().__init__()
        found = group or dist.group.WORLD
        if found is None:
            raise UsageError("there is no process group", do="call init_process_group first")
        self._group, self._functional = found, functional
        self.rank, self.world = found.rank(), found.size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._note("all_reduce", tensor)
        tensor = tensor.contiguous()  # gloo would send garbage, NCCL refuse on this rank alone
        if self._functional:
            summed = funcol.wait_tensor(funcol.all_reduce(tensor, "sum", self._group))  # type: ignore[no-untyped-call]
            assert isinstance(summed, Tensor)
            return summed
        dist.all_reduce(tensor, group=self._group)
        return tensor


class Weight(NamedTuple):
    """Full shape of a weight, and the dimension along which ranks split it (None: each holds all of it)."""

    shape: tuple[int, ...]
    split: int | None = None


def weight_table(config: GeneratorConfig) -> dict[str, Weight]:
    """All weights by name. Linear weights are [out, in]: split 0 is column-parallel, 1 row-parallel."""
    width, ffn, pixels = config.width, config.ffn, config.latent_channels * config.patch**2
    block = {
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
    return {
        "patch": Weight((width, pixels)),
        "time.in": Weight((width, _SINUSOIDS)),
        "time.out": Weight((width, width)),
        "time.modulation": Weight((6 * width, width)),
        "text.in": Weight((width, config.text_dim)),
        "text.out": Weight((width, width)),
        **{f"blocks.{i}.{name}": weight for i in range(config.blocks) for name, weight in block.items()},
        "head.modulation": Weight((2, width)),
        "head": Weight((pixels, width)),
    }


def make_weights(
    config: GeneratorConfig, rank: int, world: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """This rank's slices of the full weights.

    Each full tensor comes from a CPU generator of its own, seeded by the configuration's seed and its name,
    so that it is the same for any rank, world size, device and order. On `meta` there are shapes alone.
    """
    device = torch.device(device)
    weights = {}
    for name, (shape, split) in weight_table(config).items():
        if device.type == "meta":
            full = torch.empty(shape, device=device)
        else:
            seed = digest.of_bytes(f"{config.seed}/{name}".encode())
            full = torch.empty(shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
            full = 1 + 0.1 * full if name.endswith("_norm") else full.mul_(math.sqrt(3 / shape[-1]))
        if split is not None:
            size = shape[split] // world
            full = full.narrow(split, rank * size, size)
        weights[name] = full.to(device, config.torch_dtype).contiguous()
    return weights


class Generator:
    """One rank's shard of the generator: weights, caches and frame clock. At first: cache epoch 0, frame 0.

    Raises UsageError if the ranks cannot share its heads and FFN evenly, or the device lacks the attention
    kernel; calls raise ContractViolation where this rank is out of step (see `RingCache`).
    """

    def __init__(self, config: GeneratorConfig, comm: TensorParallel, *, device: torch.device | str = "cpu") -> None:
        if config.heads % comm.world or config.ffn % comm.world:
            raise UsageError(
                f"{comm.world} ranks do not divide {config.heads} heads and an FFN of {config.ffn}",
                do="choose a world size that divides both",
            )
        self.config, self.comm, self.device = config, comm, torch.device(device)
        self.weights = make_weights(config, comm.rank, comm.world, device)
        self.cache = RingCache(config.blocks, config.cache_frames, sink=config.sink_frames, device=device)
        self._text_kv: list[tuple[Tensor, Tensor]] | None = None
        self._try_attention()

    def shard_fingerprint(self) -> int:
        """int64 hash of the names and bytes of all weights of this rank; it differs from rank to rank."""
        return _fingerprint(self.weights)

    def replica_fingerprint(self) -> int:
        """int64 hash of the weights that every rank holds in full; it is equal on all ranks."""
        table = weight_table(self.config)
        return _fingerprint({name: w for name, w in self.weights.items() if table[name].split is None})

    def init_cache(self, epoch: int) -> None:
        """Hard cut: empty every cache and begin cache epoch `epoch` at frame 0."""
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
        """One denoise call: the velocity (noise minus clean) of latents [B, F, C, H, W], like them.

        `conditioning` is [B, T, text_dim], needed only if cross-attention was reset. `attention_bias` is added
        to the scores of all frames before this chunk. The chunk's keys and values are cached at
        `start_frame`, over those of an earlier call for the same chunk.
        """
        batch, frames, channels, height, width = latents.shape
        p = self.config.patch
        if channels != self.config.latent_channels or height % p or width % p:
            raise ContractViolation(
                f"latents of shape {tuple(latents.shape)} are not {self.config.latent_channels} channels"
                f" in whole patches of {p} x {p}",
                where=_CALL,
            )
        self.cache.open(start_frame, frames)
        grid = (frames, height // p, width // p)
        x = latents.to(self.device, self.config.torch_dtype)
        x = x.reshape(batch, frames, channels, height // p, p, width // p, p).permute(0, 1, 3, 5, 2, 4, 6)
        x = F.linear(x.reshape(batch, math.prod(grid), -1), self._w("patch"))
        time, modulation = self._time(timestep)
        rope = self._rope(start_frame, grid)
        bias = self._attention_bias(attention_bias, grid)
        if self._text_kv is None:
            if conditioning is None:
                raise ContractViolation("cross-attention was reset, and there is no conditioning", where=_CALL)
            self._text_kv = self._text(conditioning)
        with sdpa_kernel(_BACKENDS[self.config.attention]):
            for block in range(self.config.blocks):
                x = self._block(block, x, modulation, rope, bias, frames)
        shift, scale = (self._w("head.modulation") + time).unbind()
        x = F.linear(_modulate(x, shift, scale), self._w("head"))
        x = x.view(batch, *grid, channels, p, p).permute(0, 1, 4, 2, 5, 3, 6)
        return x.reshape(latents.shape).to(latents.dtype)

    def _block(
        self,
        block: int,
        x: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        bias: Tensor | None,
        frames: int,
    ) -> Tensor:
        """x [B, N, width] → the same; N = frames x tokens of a frame."""
        w = partial(self._w, block=block)
        shift1, scale1, gate1, shift2, scale2, gate2 = (w("modulation") + modulation).unbind()

        h = _modulate(x, shift1, scale1)
        q = _rotate(self._heads(self._full_width_norm(F.linear(h, w("self.q")), w("self.q_norm"))), rope)
        k = _rotate(self._heads(self._full_width_norm(F.linear(h, w("self.k")), w("self.k_norm"))), rope)
        v = self._heads(F.linear(h, w("self.v")))
        self.cache.write(block, _by_frame(k, frames), _by_frame(v, frames))
        attended = _attend(q, *self.cache.read(block), bias)

        assert self._text_kv is not None
        told = _attend(_head_norm(self._heads(F.linear(h, w("cross.q")))), *self._text_kv[block], None)
        partial_sum = gate1 * F.linear(attended, w("self.out")) + F.linear(told, w("cross.out"))
        x = x + self.comm.all_reduce(partial_sum)

        h = F.gelu(F.linear(_modulate(x, shift2, scale2), w("ffn.up")), approximate="tanh")
        return x + gate2 * self.comm.all_reduce(F.linear(h, w("ffn.down")))

    def _try_attention(self) -> None:
        """The kernel must take a bias too: none may turn up in phase B for which there is no kernel."""
        q = torch.zeros(1, 8, 1, self.config.head_width, device=self.device, dtype=self.config.torch_dtype)
        try:
            with sdpa_kernel(_BACKENDS[self.config.attention]):
                _attend(q, q, q, q.new_zeros(1, 1, 1, 8))
        except RuntimeError as error:
            raise UsageError(
                f"no `{self.config.attention}` attention with a bias for {self.config.dtype} on {self.device}",
                do="choose another GeneratorConfig.attention",
            ) from error

    def _w(self, name: str, *, block: int | None = None) -> Tensor:
        return self.weights[name if block is None else f"blocks.{block}.{name}"]

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, width of this rank] → [B, N, heads of this rank, head width]."""
        return x.view(*x.shape[:2], -1, self.config.head_width)

    def _full_width_norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm over the full width, of which x [B, N, width / world] is this rank's slice."""
        squares = self.comm.all_reduce(x.float().square().sum(-1, keepdim=True))
        normed = x * torch.rsqrt(squares / self.config.width + 1e-6)
        return normed.to(x.dtype) * gain

    def _time(self, timestep: int) -> tuple[Tensor, Tensor]:
        """The timestep's embedding [width] and the modulation [6, width] that it gives every block."""
        half = _SINUSOIDS // 2
        rates = torch.exp(torch.arange(half, device=self.device) * (-math.log(10_000) / half))
        angles = timestep * rates
        sinusoids = torch.cat([angles.cos(), angles.sin()]).to(self.config.torch_dtype)
        time = F.linear(F.silu(F.linear(sinusoids, self._w("time.in"))), self._w("time.out"))
        return time, F.linear(F.silu(time), self._w("time.modulation")).view(6, -1)

    def _text(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of each block, [B, T, heads of this rank, head width]."""
        text = conditioning.to(self.device, self.config.torch_dtype)
        text = F.linear(F.gelu(F.linear(text, self._w("text.in")), approximate="tanh"), self._w("text.out"))
        return [
            (
                _head_norm(self._heads(F.linear(text, self._w("cross.k", block=block)))),
                self._heads(F.linear(text, self._w("cross.v", block=block))),
            )
            for block in range(self.config.blocks)
        ]

    def _rope(self, start_frame: int, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """cos and sin [N, 1, head width / 2]: a third of the pairs each for y and x, the rest for time."""
        pairs = self.config.head_width // 2
        third = pairs // 3
        parts = []
        for axis, count in enumerate((pairs - 2 * third, third, third)):
            place = torch.arange(grid[axis], device=self.device, dtype=torch.float64)
            rates = 10_000.0 ** -(torch.arange(count, device=self.device, dtype=torch.float64) / max(count, 1))
            angles = torch.outer(place + (start_frame if axis == 0 else 0), rates)
            shape = [grid[axis] if a == axis else 1 for a in range(3)]
            parts.append(angles.view(*shape, count).expand(*grid, count))
        angles = torch.cat(parts, dim=-1).reshape(-1, 1, pairs)
        return angles.cos().float(), angles.sin().float()

    def _attention_bias(self, bias: float, grid: tuple[int, int, int]) -> Tensor | None:
        """The bias of each resident token [1, 1, 1, resident tokens], or None where it is 0."""
        if bias == 0.0:
            return None
        tokens = self.cache.past.to(self.config.torch_dtype) * bias
        return tokens.repeat_interleave(grid[1] * grid[2]).view(1, 1, 1, -1)

    def counted(self) -> tuple[int, int]:
        """Collectives issued since the chunk began, and the hash of their sequence (int64)."""
        return self.comm.observed, self.comm.sequence_hash

    def scalars(self) -> CacheScalars:
        """The cache's epoch and frame indices."""
        return self.cache.scalars

    def chunk(self, fields: Mapping[str, Any]) -> ChunkRun:
        """Begin phase B of a chunk (see `ChunkRun`)."""
        return ChunkRun(self, fields)


class ChunkRun:
    """Phase B of one chunk. `fields` are the envelope's, tensors included, by their canonical names.

    On construction it holds the plan against this rank's state, applies the resets that the plan tells, and
    resets the count of collectives. `calls` are then the generator calls in order, the recompute first; each
    runs once, in turn. `result` ends the chunk. Euler steps of flow matching: no random numbers.

    The envelope's own rules are taken as checked. Raises ContractViolation for a cache epoch that is not that of
    this rank's cache, a managed conditioning change without its reset, and calls out of turn or left out.
    """

    def __init__(self, generator: Generator, fields: Mapping[str, Any]) -> None:
        self._generator, self._fields = generator, fields
        self._latents: Tensor = fields["latents"]
        self._x: Tensor = self._latents.to(generator.device, torch.float32)
        self._timesteps: list[int] = fields["denoising_step_list"].tolist()
        self._check()
        if fields["init_cache"]:
            generator.init_cache(fields["cache_epoch"])
        if fields["tp_reset_kv_cache"]:
            generator.reset_kv()
        if fields["tp_reset_crossattn_cache"]:
            generator.reset_crossattn()
        generator.comm.reset()
        self.observed = 0
        """Generator calls made so far."""
        self.calls: tuple[Callable[[], None], ...] = tuple(
            partial(self._in_turn, k, work) for k, work in enumerate(self._plan())
        )

    def result(self) -> Tensor:
        """Advance the cache and return the denoised latents, in shape and dtype like the envelope's."""
        if self.observed != len(self.calls):
            raise self._violation(f"phase B ended after {self.observed} generator calls of {len(self.calls)}")
        self._generator.advance()
        return self._x.to(self._latents.dtype)

    def _plan(self) -> Iterator[Callable[[], None]]:
        if self._fields["tp_do_kv_recompute"]:
            yield self._recompute
        for timestep, following in zip(self._timesteps, [*self._timesteps[1:], 0], strict=True):
            yield partial(self._denoise, timestep, (following - timestep) / TIMESTEPS)

    def _in_turn(self, k: int, work: Callable[[], None]) -> None:
        if k != self.observed:
            raise self._violation(f"generator call {k} came when call {self.observed} was due")
        self.observed += 1
        work()

    def _recompute(self) -> None:
        fields = self._fields
        self._generator.recompute(
            fields["context_frames_override"],
            fields["conditioning_embeds"],
            start_frame=fields["current_start_frame"],
        )

    def _denoise(self, timestep: int, step: float) -> None:
        fields = self._fields
        velocity = self._generator(
            self._x,
            timestep,
            fields["conditioning_embeds"],
            start_frame=fields["current_start_frame"],
            attention_bias=fields["kv_cache_attention_bias"],
        )
        self._x = self._x + step * velocity

    def _check(self) -> None:
        fields, epoch = self._fields, self._generator.cache.cache_epoch
        if fields["cache_epoch"] != epoch + bool(fields["init_cache"]):
            raise self._violation(
                f"cache_epoch is {fields['cache_epoch']} with init_cache={fields['init_cache']}, "
                f"but this rank's is {epoch}"
            )
        if fields["manage_cache"] and fields["conditioning_embeds_updated"] and not fields["tp_reset_crossattn_cache"]:
            raise self._violation(
                "conditioning_embeds_updated without tp_reset_crossattn_cache would keep the old prompt"
            )

    def _violation(self, what: str) -> ContractViolation:
        return ContractViolation(what, where=f"phase B, frame {self._fields['current_start_frame']}")


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _by_frame(x: Tensor, frames: int) -> Tensor:
    return x.view(x.shape[0], frames, -1, *x.shape[2:])


def _head_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs of x [B, N, heads, head width] by the angles of their token."""
    cos, sin = rope
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """q [B, N, heads, head width] attends to k, v [B, M, heads, head width]: [B, N, heads x head width]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


def _fingerprint(weights: Mapping[str, Tensor]) -> int:
    sequence = digest.SEQUENCE_START
    for name in sorted(weights):
        sequence = digest.chain(sequence, name, digest.of_tensor(weights[name]))
    return sequence
