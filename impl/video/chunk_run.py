"""Runs phase B of a chunk on the video generator: the resets that the plan tells, and its generator calls in order.

Left out: what a call computes (`generator`), and who holds the calls to the table (`rank.collective_guard`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from torch import Tensor, float32

from ...errors import Code, ContractViolation
from .kv_ring import RingCache
from .tensor_parallel import TensorParallel

TIMESTEPS = 1000
"""The timestep of pure noise: noise level = timestep / TIMESTEPS."""


class ChunkGenerator(Protocol):
    """Describes the part of a rank's generator that a chunk needs: see `generator.Generator`."""

    comm: TensorParallel
    device: Any
    cache: RingCache

    @property
    def knows_text(self) -> bool: ...
    def init_cache(self, epoch: int) -> None: ...
    def reset_kv(self) -> None: ...
    def reset_crossattn(self) -> None: ...
    def advance(self) -> None: ...
    def recompute(self, context_frames: Tensor, conditioning: Tensor | None, *, start_frame: int) -> None: ...
    def __call__(
        self,
        latents: Tensor,
        timestep: int,
        conditioning: Tensor | None,
        *,
        start_frame: int,
        attention_bias: float = 0.0,
    ) -> Tensor: ...


class ChunkRun:
    """Runs phase B of one chunk.

    `fields` are the envelope's, tensors included, by their canonical names.

    On construction it holds the plan against this rank's state, applies the resets that the plan tells, and
    resets the count of collectives. `calls` are then the generator calls in order, the recompute first; each
    runs once, in turn. `result` ends the chunk. Euler steps of flow matching: no random numbers.

    The envelope's own rules are taken as checked. Raises ContractViolation for a cache epoch that is not that of
    this rank's cache, a managed conditioning change without its reset, a cross-attention cache that was emptied
    out of turn, and calls out of turn or left out.
    """

    def __init__(self, generator: ChunkGenerator, fields: Mapping[str, Any]) -> None:
        self._generator, self._fields = generator, fields
        self._latents: Tensor = fields["latents"]
        self._x: Tensor = self._latents.to(generator.device, float32)
        self._timesteps: list[int] = fields["denoising_step_list"].tolist()
        self._check()
        if fields["init_cache"]:
            generator.init_cache(fields["cache_epoch"])
        if fields["tp_reset_kv_cache"]:
            generator.reset_kv()
        if fields["tp_reset_crossattn_cache"]:
            generator.reset_crossattn()
        elif not generator.knows_text:
            raise self._violation("cross-attention was reset, and no plan has told it", Code.RESET)
        generator.comm.reset()
        self.observed = 0
        """Generator calls made so far."""
        self.calls: tuple[Callable[[], None], ...] = tuple(
            partial(self._in_turn, k, work) for k, work in enumerate(self._plan())
        )

    def result(self) -> Tensor:
        """Advance the cache and return the denoised latents, in shape and dtype like the envelope's."""
        if self.observed != len(self.calls):
            raise self._violation(
                f"phase B ended after {self.observed} generator calls of {len(self.calls)}", Code.CALLS
            )
        self._generator.advance()
        return self._x.to(self._latents.dtype)

    def _plan(self) -> Iterator[Callable[[], None]]:
        if self._fields["tp_do_kv_recompute"]:
            yield self._recompute
        for timestep, following in zip(self._timesteps, [*self._timesteps[1:], 0], strict=True):
            yield partial(self._denoise, timestep, (following - timestep) / TIMESTEPS)

    def _in_turn(self, k: int, work: Callable[[], None]) -> None:
        if k != self.observed:
            raise self._violation(f"generator call {k} came when call {self.observed} was due", Code.CALLS)
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
                f"but this rank's is {epoch}",
                Code.CACHE,
                "cache_epoch",
            )
        if fields["manage_cache"] and fields["conditioning_embeds_updated"] and not fields["tp_reset_crossattn_cache"]:
            raise self._violation(
                "conditioning_embeds_updated without tp_reset_crossattn_cache would keep the old prompt",
                Code.RULE,
                "meta.tp_reset_crossattn_cache",
            )

    def _violation(self, what: str, code: Code, field: str = "") -> ContractViolation:
        where = f"phase B, frame {self._fields['current_start_frame']}"
        return ContractViolation(what, where=where, code=code, field=field)
