"""Serves your own generator and pipeline, given as plain callables, on ranks that torchrun starts on any nodes.

    def build(group, device) -> RankModel: ...   # on every rank: your model, sharded over `group`
    def application(driver: Driver) -> None: ... # on rank0 alone: your pipeline
    sys.exit(serve(build, application, out="traces"))

Every rank is held to the tables, and recorded; a collective that is not due is refused. examples/language_model.py is
a whole program. Warm up with `Driver.warm_up`: a generator that is called past it finds its first collective refused,
since no peer would answer.
Left out: phases A and C of a video (`pipeline`), and faults to inject (`rank`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ContractViolation, UsageError
from ...model.protocols.tp_v1_1 import TP_V1_1
from ..chunk import digest, parity
from ..chunk.schema import TP_ENVELOPE_VERSION, TP_PLAN, Mode
from ..chunk.weight_check import WeightCheck, fingerprint
from .collective_guard import Inside
from .parent_death import die_with_parent
from .rank_runtime import Seat, say
from .roles import Rank0, Settings

Fields = Mapping[str, Any]
PhaseB = Callable[[Fields], Generator[None, None, Tensor]]


class Indices(NamedTuple):
    """Holds where a rank's cache stands, in frames (or tokens, or whatever your clock counts); equal on all ranks."""

    start_frame: int
    global_end_index: int
    local_end_index: int


@dataclass(frozen=True, kw_only=True)
class RankModel:
    """Holds one rank's part of a model: its generator, cache indices, weights, and what they resolved to."""

    chunk: PhaseB
    """Phase B as a Python generator. It gets the envelope's fields by name, does one generator call up to each
    `yield`, as many as the plan has, and returns the output, a tensor.
    """
    indices: Callable[[], tuple[int, int, int]]
    """Returns `Indices`, in frames or tokens; called after each chunk, and compared across ranks."""
    posture: parity.Posture
    """Settings that all ranks must share; compared at start-up."""
    shard: Mapping[str, Tensor]
    """Weights by name that are this rank's own."""
    replica: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights by name that every rank holds in full."""
    calls: Inside = field(default_factory=Inside)
    """Collectives that one generator call may issue, as `genlock.impl.rank.collective_guard.Inside`; by itself any."""


Build = Callable[[dist.ProcessGroup, torch.device], RankModel]


class Driver:
    """Drives the job from rank0's application. Every call involves all ranks; make them from the main thread."""

    def __init__(self, seat: Seat, rank0: Rank0) -> None:
        self._seat, self._rank0 = seat, rank0

    @property
    def draining(self) -> bool:
        """True once a signal asks to finish: return from the application then."""
        return self._seat.drain.requested.is_set()

    def chunk(self, fields: Fields) -> Tensor:
        """Take one chunk through all ranks, and return the generator's output. `chunk_fields` makes `fields`.

        Raises Refused, with nothing sent and nothing changed, where the fields break a rule: the next chunk is as
        free as if this one had never been asked for.
        """
        return self._seat.run(self._rank0.chunk(fields))

    def warm_up(self, fields: Fields) -> None:
        """Take one chunk through all ranks and drop its output, for compilers and kernels to settle.

        The next chunk begins with a hard cut, so that nothing of this one is left.
        """
        self.chunk({**fields, "init_cache": True, "tp_reset_kv_cache": True})
        self._seat.run(self._rank0.hard_cut())

    def heartbeat(self) -> None:
        """Tell the workers that there is nothing to do for now."""
        self._seat.run(self._rank0.heartbeat())


def serve(
    build: Build,
    application: Callable[[Driver], None],
    *,
    out: Path | str,
    backend: str = "gloo",
    mode: Mode = Mode.BRING_UP,
    digests: digest.Policy | None = None,
    deadlines: Mapping[str, float] | None = None,
) -> int:
    """Run this rank to the end of the job, and return the exit status: `sys.exit(serve(…))` is a whole program.

    - `build(group, device)` is called on every rank, once its process groups are made, and returns its `RankModel`.
    - `application(driver)` is called on rank0 alone; when it returns, all ranks shut down.
    - `out`: the folder for the ranks' traces. `backend`: `gloo` or `nccl`.
    - `mode`: how conditioning travels. `digests`, a `genlock.impl.chunk.digest.Policy`: what is digested, and how
      often; None: all, in every chunk.
    - `deadlines`: seconds by phase (`startup`, `idle`, `preflight`, `header`, `payload`, `generate`, `ack`,
      `shutdown`), or for `drain` and `collective`. Those not given are as for `genlock run`; under a guardian, its own.

    Rank and world come from the environment, as torchrun sets it. Any failure ends the process with a status of `Exit`,
    and one line on stderr.
    """
    die_with_parent()
    try:
        seat = Seat(os.environ.get("TORCHELASTIC_RUN_ID", "served"), Path(out), backend, deadlines or {})
    except UsageError as error:
        say(str(error))
        return error.exit

    def work() -> None:
        mine = build(seat.connect().groups["device"], seat.device)
        facts = parity.own_facts(TP_V1_1, seat.world, {**mine.posture.facts, "backend": backend})
        weights = {**mine.shard, **mine.replica}
        settings = Settings(
            facts,
            mode,
            seat.device,
            digests or digest.Policy(),
            lambda: parity.Fingerprint(fingerprint(mine.shard), fingerprint(mine.replica)),
            WeightCheck(weights).damage,
        )
        generator = seat.fenced(_Served(mine), mine.calls)
        if seat.rank:
            seat.serve(settings, generator)
            return
        rank0 = Rank0(seat.monitor, settings, generator)
        seat.run(rank0.startup())
        application(Driver(seat, rank0))
        seat.run(rank0.shutdown("drain" if seat.drain.requested.is_set() else "shutdown"))

    return seat.hold(work)


def chunk_fields(
    latents: Tensor,
    steps: Tensor,
    conditioning: Tensor,
    start_frame: int,
    *,
    hard_cut: bool = False,
    updated: bool = False,
    context: Tensor | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return the fields of a chunk, with the usual values for all that are not named.

    - `latents`, `conditioning`: bf16 or fp16, of any shape.
    - `steps`: int64[n], one generator call each.
    - `start_frame`: where the chunk begins, in frames (or tokens).
    - `hard_cut`: empty all caches first. `updated`: the conditioning is new.
    - `context`: frames, bf16 or fp16, from which to recompute the cache, which is one more call; None: no recompute.
    - `others`: fields by their own names.
    """
    usual = {
        "tp_plan": TP_PLAN,
        "tp_envelope_version": TP_ENVELOPE_VERSION,
        "height": 1,
        "width": 1,
        "current_start_frame": start_frame,
        "init_cache": hard_cut,
        "manage_cache": True,
        "tp_reset_kv_cache": hard_cut,
        "tp_reset_crossattn_cache": hard_cut or updated,
        "conditioning_embeds_updated": updated,
        "kv_cache_attention_bias": 0.0,
        "tp_do_kv_recompute": context is not None,
        "tp_num_denoise_steps": len(steps),
        "tp_expected_generator_calls": len(steps) + (context is not None),
        "base_seed": 0,
        "denoising_step_list": steps,
        "latents": latents,
        "conditioning_embeds": conditioning,
        "context_frames_override": context,
    }
    return usual | others


class _Served:
    """Adapts a user's generator to what a role calls."""

    def __init__(self, mine: RankModel) -> None:
        self._mine = mine

    def chunk(self, fields: Fields) -> _Run:
        return _Run(self._mine.chunk(fields), fields["tp_expected_generator_calls"])

    def scalars(self) -> Indices:
        return Indices(*self._mine.indices())


class _Run:
    """Runs phase B, a Python generator, and holds it to the number of calls that the plan has."""

    def __init__(self, steps: Generator[None, None, Tensor], planned: int) -> None:
        self._steps, self._made = steps, 0
        self.calls = [self._call] * planned

    def _call(self) -> None:
        try:
            next(self._steps)
        except StopIteration:
            raise self._miscount(f"returned after {self._made}") from None
        self._made += 1

    def result(self) -> Tensor:
        try:
            next(self._steps)
        except StopIteration as stop:
            if isinstance(stop.value, Tensor):
                return stop.value
            raise ContractViolation(
                f"it returned {type(stop.value).__name__}", where="phase B of `chunk`", do="return the output, a tensor"
            ) from None
        raise self._miscount(f"goes on after {self._made}")

    def _miscount(self, text: str) -> ContractViolation:
        return ContractViolation(
            f"`chunk` {text} generator calls, but the plan has {len(self.calls)}",
            where="phase B",
            do="yield once after each call",
        )
