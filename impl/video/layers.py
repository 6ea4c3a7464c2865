"""Does the arithmetic of the generator, as functions of tensors alone: nothing here has a state or counts anything.

`block` is what a compiler is given. It does exactly four all-reduces: the sums of squares of Q and of K (their
RMSNorm spans the full width), the attention output and the FFN output. Cross-attention costs none of its own: it
reads the same normed input as self-attention, norms Q and K per head, and its row-parallel output is added to
self-attention's before that one is reduced. Left out: biases of linears, training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kv_ring
from .config import SINUSOIDS

Weights = Mapping[str, Tensor]
KeysValues = tuple[Tensor, Tensor]
Reduce = Callable[[Tensor], Tensor]
"""The sum over ranks."""


def block(
    x: Tensor,
    w: Weights,
    modulation: Tensor,
    rope: tuple[Tensor, Tensor],
    ring: kv_ring.Place,
    bias: Tensor | None,
    text: KeysValues,
    head_width: int,
    reduce: Reduce,
) -> Tensor:
    """Run one block on x [B, N, width] → the same; N = frames x tokens of a frame.

    `w` are the weights of this rank's block.

    `ring` is written and then read. `bias` is [1, 1, 1, resident tokens] or None, `text` the keys and values of
    cross-attention.
    """
    shift1, scale1, gate1, shift2, scale2, gate2 = (w["modulation"] + modulation).unbind()

    h = modulate(x, shift1, scale1)
    q = full_width_norm(F.linear(h, w["self.q"]), w["self.q_norm"], x.shape[-1], reduce)
    k = full_width_norm(F.linear(h, w["self.k"]), w["self.k_norm"], x.shape[-1], reduce)
    v = F.linear(h, w["self.v"])
    kv_ring.store(ring, rotate(heads(k, head_width), rope), heads(v, head_width))
    attended = attend(rotate(heads(q, head_width), rope), *kv_ring.load(ring), bias)

    told = attend(head_norm(heads(F.linear(h, w["cross.q"]), head_width)), *text, None)
    x = x + reduce(gate1 * F.linear(attended, w["self.out"]) + F.linear(told, w["cross.out"]))

    h = F.gelu(F.linear(modulate(x, shift2, scale2), w["ffn.up"]), approximate="tanh")
    return x + gate2 * reduce(F.linear(h, w["ffn.down"]))


def full_width_norm(x: Tensor, gain: Tensor, width: int, reduce: Reduce) -> Tensor:
    """Apply RMSNorm over the full width, of which x [B, N, width / world] and `gain` are this rank's slices."""
    squares = reduce(x.float().square().sum(-1, keepdim=True))
    return (x * torch.rsqrt(squares / width + 1e-6)).to(x.dtype) * gain


def head_norm(x: Tensor) -> Tensor:
    """Apply RMSNorm over each head, without gain."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def heads(x: Tensor, head_width: int) -> Tensor:
    """Split x into heads: [B, N, width of this rank] → [B, N, heads of this rank, head width]."""
    return x.view(*x.shape[:-1], -1, head_width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply layer norm, scaled and shifted by the timestep."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs of x [B, N, heads, head width] by the angles of their token."""
    cos, sin = rope
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend from q [B, N, heads, head width] to k, v [B, M, heads, head width]: [B, N, heads x head width]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


def rope(start_frame: int, grid: tuple[int, int, int], head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin [N, 1, head width / 2] of a grid (frames, rows, columns).

    A third of the pairs each is for y and x, the rest for time.
    """
    pairs = head_width // 2
    third = pairs // 3
    parts = []
    for axis, count in enumerate((pairs - 2 * third, third, third)):
        place = torch.arange(grid[axis], device=device, dtype=torch.float64)
        rates = 10_000.0 ** -(torch.arange(count, device=device, dtype=torch.float64) / max(count, 1))
        angles = torch.outer(place + (start_frame if axis == 0 else 0), rates)
        shape = [grid[axis] if a == axis else 1 for a in range(3)]
        parts.append(angles.view(*shape, count).expand(*grid, count))
    angles = torch.cat(parts, dim=-1).reshape(-1, 1, pairs)
    return angles.cos().float(), angles.sin().float()


def embed_time(timestep: int, w: Weights) -> tuple[Tensor, Tensor]:
    """Return the timestep's embedding [width] and the modulation [6, width] that it gives every block."""
    into = w["time.in"]
    half = SINUSOIDS // 2
    angles = timestep * torch.exp(torch.arange(half, device=into.device) * (-math.log(10_000) / half))
    sinusoids = torch.cat([angles.cos(), angles.sin()]).to(into.dtype)
    time = F.linear(F.silu(F.linear(sinusoids, into)), w["time.out"])
    return time, F.linear(F.silu(time), w["time.modulation"]).view(6, -1)


def embed_text(conditioning: Tensor, w: Weights) -> Tensor:
    """Embed a text: [B, T, text_dim] → [B, T, width]."""
    return F.linear(F.gelu(F.linear(conditioning, w["text.in"]), approximate="tanh"), w["text.out"])


def text_kv(text: Tensor, w: Weights, head_width: int) -> KeysValues:
    """Return the cross-attention keys and values of a block, [B, T, heads of this rank, head width]."""
    return head_norm(heads(F.linear(text, w["cross.k"]), head_width)), heads(F.linear(text, w["cross.v"]), head_width)


def patchify(x: Tensor, p: int) -> Tensor:
    """Cut frames into patches: [B, F, C, H, W] → [B, F x H/p x W/p, C x p x p]."""
    batch, frames, channels, height, width = x.shape
    x = x.reshape(batch, frames, channels, height // p, p, width // p, p).permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(batch, -1, channels * p * p)


def unpatchify(x: Tensor, shape: torch.Size, p: int) -> Tensor:
    """Invert `patchify`; `shape` is that of the result."""
    batch, frames, channels, height, width = shape
    x = x.view(batch, frames, height // p, width // p, channels, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(shape)
