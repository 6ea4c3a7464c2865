"""Does what rank0 alone does around the generator: phase A (plan a chunk, materialise its inputs) and phase C.

`prepare` proposes a chunk as the envelope's fields. It only remembers what was asked for: a hard cut stays
pending until `commit`, so that it survives a refusal; all else changes at `commit` and `finish`. Left out: ids
and epochs (the protocol's matter), trained weights (text encoder and VAE are small and seeded).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ..chunk import digest
from ..chunk.schema import TP_ENVELOPE_VERSION, TP_PLAN, Mode
from .chunk_run import TIMESTEPS
from .config import GeneratorConfig

Frames = npt.NDArray[np.uint8]
"""Pixels, uint8 [F, H, W, 3]."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Holds the decisions of rank0 for a run.

    Height and width are in pixels, `recompute_every` is in chunks (0: never).
    """

    height: int = 64
    width: int = 96
    denoise_steps: int = 4
    timestep_shift: float = 5.0
    recompute_every: int = 4
    prompt_tokens: int = 16
    base_seed: int = 0
    manage_cache: bool = True
    mode: Mode = Mode.BRING_UP
    """In optimize mode the conditioning goes with a chunk when the prompt is new, or after a hard cut."""


class TextEncoder(nn.Module):
    """Puts words, hashed into a small vocabulary, through two transformer layers: float32 [1, tokens, text_dim]."""

    VOCABULARY, WIDTH = 4096, 64

    def __init__(self, tokens: int, text_dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding = nn.Embedding(self.VOCABULARY, self.WIDTH)
        self.place = nn.Parameter(torch.randn(tokens, self.WIDTH))
        layer = nn.TransformerEncoderLayer(self.WIDTH, 4, 2 * self.WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(self.WIDTH, text_dim)

    def forward(self, prompt: str) -> Tensor:
        words = prompt.lower().split()[: self.tokens]
        ids = [1 + digest.of_bytes(word.encode()) % (self.VOCABULARY - 1) for word in words]
        ids += [0] * (self.tokens - len(ids))
        x = self.embedding(torch.tensor([ids], device=self.place.device)) + self.place
        out: Tensor = self.out(self.layers(x))
        return out


class Vae(nn.Module):
    """Turns patches of 8 x 8 pixels ↔ latent channels, frame by frame: `encode` undoes `decode` up to clipping."""

    PATCH = 8

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        basis, _ = torch.linalg.qr(torch.randn(3 * self.PATCH**2, latent_channels))
        self.kernel = nn.Parameter(basis.T.reshape(latent_channels, 3, self.PATCH, self.PATCH).contiguous())

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels: float32 [F, 3, H, W] in -1 … 1 → float32 [F, C, H / 8, W / 8]."""
        return F.conv2d(pixels, self.kernel, stride=self.PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents: float32 [F, C, H / 8, W / 8] → float32 [F, 3, H, W] in -1 … 1."""
        return F.conv_transpose2d(latents, self.kernel, stride=self.PATCH).clamp(-1, 1)


def denoising_steps(steps: int, shift: float) -> Tensor:
    """Return int64 [steps], strictly falling from pure noise; a larger shift spends more steps at high noise."""
    if not 1 <= steps <= 100:
        raise UsageError(f"{steps} denoise steps", do="use 1 to 100")
    level = 1 - torch.arange(steps, dtype=torch.float64) / steps
    return (TIMESTEPS * shift * level / (1 + (shift - 1) * level)).round().long()


@dataclass(frozen=True, slots=True)
class _Wishes:
    """Holds the requests of the caller that no committed chunk has granted yet."""

    hard_cut: bool = False
    reset_kv: bool = False
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    """Holds what chunks leave for the next one; a hard cut keeps the count of chunks and the conditioning epoch.

    `latents` (bf16) and `pixels` (float32, as decoded) are the newest frames, as many as a recompute rebuilds.
    `anchor` is the first of `pixels`, encoded anew (bf16): it heads the context of a recompute.
    """

    chunks: int = 0
    conditioning_epoch: int = 0
    start_frame: int = 0
    prompt: str | None = None
    latents: Tensor | None = None
    pixels: Tensor | None = None
    anchor: Tensor | None = None

    def context(self) -> Tensor | None:
        """Return bf16 [1, n, C, h, w]: the frames before `start_frame`, or None where there are none."""
        if self.latents is None or self.anchor is None:
            return None
        return torch.cat([self.anchor, self.latents[1:]])[None]


class Pipeline:
    """Does rank0's side of the video: prompts in, frames out.

    Per chunk `prepare`, `commit`, `finish`, in this order.

    Batch 1. The first chunk is a hard cut. Raises UsageError for calls out of order and for sizes that do not
    fit; nothing has changed then.
    """

    def __init__(
        self, config: PipelineConfig, generator: GeneratorConfig, *, device: torch.device | str = "cpu"
    ) -> None:
        cell = Vae.PATCH * generator.patch
        if config.height % cell or config.width % cell:
            raise UsageError(f"{config.height} x {config.width} pixels", do=f"use multiples of {cell}")
        self.config, self.generator, self.device = config, generator, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.base_seed)
            self._text = TextEncoder(config.prompt_tokens, generator.text_dim).to(self.device).eval()
            self._vae = Vae(generator.latent_channels).to(self.device)
        self._wishes = _Wishes(hard_cut=True)
        self._state = _State()
        self._proposed: _State | None = None
        self._unfinished = False

    @torch.no_grad()
    def prepare(
        self,
        prompt: str,
        *,
        hard_cut: bool = False,
        reset_kv: bool = False,
        recompute: bool = False,
        attention_bias: float = 0.0,
        denoise_steps: int | None = None,
    ) -> dict[str, Any]:
        """Run phase A: return the user's fields of the next chunk's envelope, by their canonical names.

        `hard_cut`, `reset_kv` and `recompute` stay asked for until a chunk is committed; a hard cut absorbs the
        other two. A prepared chunk that is not committed is dropped by the next `prepare`, whose noise is the
        same. With `manage_cache`, recomputes come on schedule and a new prompt resets cross-attention.
        """
        if self._unfinished:
            raise UsageError("a committed chunk is not finished yet", do="call finish first")
        config = self.config
        count = config.denoise_steps if denoise_steps is None else denoise_steps
        steps = denoising_steps(count, config.timestep_shift)
        wishes = self._wishes = _Wishes(
            self._wishes.hard_cut or hard_cut,
            self._wishes.reset_kv or reset_kv,
            self._wishes.recompute or recompute,
        )
        cut = wishes.hard_cut
        state = _State(self._state.chunks, self._state.conditioning_epoch) if cut else self._state
        updated = prompt != state.prompt
        context = state.context() if wishes.recompute or self._recompute_due(state) else None
        epoch = state.conditioning_epoch + updated
        self._proposed = replace(state, prompt=prompt, chunks=state.chunks + 1, conditioning_epoch=epoch)
        return {
            "tp_plan": TP_PLAN,
            "tp_envelope_version": TP_ENVELOPE_VERSION,
            "height": config.height,
            "width": config.width,
            "current_start_frame": state.start_frame,
            "init_cache": cut,
            "manage_cache": config.manage_cache,
            "tp_reset_kv_cache": cut or wishes.reset_kv,
            "tp_reset_crossattn_cache": cut or (updated and config.manage_cache),
            "conditioning_embeds_updated": updated,
            "kv_cache_attention_bias": attention_bias,
            "tp_do_kv_recompute": context is not None,
            "tp_num_denoise_steps": len(steps),
            "tp_expected_generator_calls": len(steps) + (context is not None),
            "base_seed": config.base_seed,
            "denoising_step_list": steps,
            "latents": self._noise(state.chunks),
            **self._conditioning(prompt, epoch, updated),
            "context_frames_override": context,
        }

    def commit(self) -> None:
        """Take the prepared chunk as on its way to the workers: its wishes are granted, its prompt is current."""
        if self._proposed is None:
            raise UsageError("there is no prepared chunk to commit", do="call prepare first")
        self._state, self._proposed = self._proposed, None
        self._wishes, self._unfinished = _Wishes(), True

    @torch.no_grad()
    def finish(self, latents: Tensor) -> Frames:
        """Run phase C: decode the committed chunk's latents; keep them and a new anchor for the next recompute."""
        if not self._unfinished:
            raise UsageError("there is no committed chunk to finish", do="call commit first")
        if latents.shape != self._shape:
            raise UsageError(f"latents of shape {tuple(latents.shape)}, expected {self._shape}")
        state, clean = self._state, latents[0].to(self.device, torch.bfloat16)
        pixels = self._vae.decode(clean.float())
        kept = self._newest(state.pixels, pixels)
        self._state = replace(
            state,
            start_frame=state.start_frame + len(clean),
            latents=self._newest(state.latents, clean),
            pixels=kept,
            anchor=self._vae.encode(kept[:1]).to(torch.bfloat16),
        )
        self._unfinished = False
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _conditioning(self, prompt: str, epoch: int, updated: bool) -> dict[str, Any]:
        optimize = self.config.mode is Mode.OPTIMIZE
        embeds = None if optimize and not updated else self._text(prompt).to(torch.bfloat16)
        return {"conditioning_embeds": embeds, **({"conditioning_epoch": epoch} if optimize else {})}

    @property
    def _shape(self) -> tuple[int, ...]:
        generator, config = self.generator, self.config
        height, width = config.height // Vae.PATCH, config.width // Vae.PATCH
        return 1, generator.chunk_frames, generator.latent_channels, height, width

    def _noise(self, chunk: int) -> Tensor:
        """Return noise in bf16, a function of seed and chunk alone."""
        seed = digest.of_bytes(f"{self.config.base_seed}/{chunk}".encode())
        noise = torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))
        return noise.to(self.device, torch.bfloat16)

    def _recompute_due(self, state: _State) -> bool:
        every = self.config.recompute_every * self.generator.chunk_frames
        return self.config.manage_cache and every > 0 and state.start_frame % every == 0

    def _newest(self, old: Tensor | None, new: Tensor) -> Tensor:
        """Return as many of the newest frames as fit the KV ring beside a chunk."""
        frames = new if old is None else torch.cat([old, new])
        return frames[-(self.generator.cache_frames - self.generator.chunk_frames) :]
