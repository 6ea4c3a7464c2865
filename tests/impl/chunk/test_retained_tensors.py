"""The three stale-override hazards: each scene holds with the cure, and fails on code without it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from genlock.errors import ContractViolation, Refused
from genlock.impl.chunk import rules
from genlock.impl.chunk.retained_tensors import PARTS, Conditioning, Override
from genlock.impl.chunk.schema import Mode
from genlock.impl.rank.roles import Settings
from simulated import RANKS, FakeGenerator, Job, fields


def tensor(value: float) -> torch.Tensor:
    return torch.full((1, 2, 4), value, dtype=torch.bfloat16)


def seen(generators: list[FakeGenerator], name: str) -> list[list[float | None]]:
    """What each rank's generator was given as `name`, chunk by chunk, as one number a tensor."""
    return [[None if p[name] is None else float(p[name].view(-1)[0]) for p in g.plans] for g in generators]


# ── 1: an override that survives ────────────────────────────────────────────────────────────────────


def override_is_gone(slots: type[Override] = Override) -> None:
    """A recompute, then chunks without one, a refusal and a failed recompute between: no anchor is ever seen twice."""
    generators = [FakeGenerator() for _ in range(RANKS)]
    job = Job(generators=generators, slots=slots)
    job.run(job.rank0.chunk(fields(True, context_frames_override=tensor(3))))
    with pytest.raises(Refused):
        job.run(job.rank0.chunk(fields(True, context_frames_override=tensor(4), height=-1)))
    job.run(job.rank0.chunk(fields()))
    job.run(job.rank0.chunk(fields(True, context_frames_override=tensor(5))))
    job.simulation.run()
    assert seen(generators, "context_frames_override") == [[3.0, None, 5.0]] * RANKS
    assert not any(role.override.full for role in (job.rank0, *job.workers))


class Kept(Override):
    """The hazard: state of the pipeline, read and left where it is; nobody asserts anything."""

    @property
    def full(self) -> bool:
        return False

    def put(self, tensor: torch.Tensor | None) -> None:
        self._tensor = tensor if tensor is not None else self._tensor

    def take(self, recompute: bool) -> torch.Tensor | None:
        return self._tensor


class Uncleared(Override):
    """Read and left where it is, with the assertions in place."""

    def take(self, recompute: bool) -> torch.Tensor | None:
        found = super().take(recompute)
        self.put(found)
        return found


def test_override_is_cleared_on_read() -> None:
    override_is_gone()
    with pytest.raises(AssertionError):
        override_is_gone(Kept)
    with pytest.raises(ContractViolation, match="the override was read and not cleared"):
        override_is_gone(Uncleared)


@pytest.mark.parametrize("recompute", [False, True])
def test_reading_clears_on_the_failing_path_too(recompute: bool) -> None:
    slot = Override()
    slot.put(None if recompute else tensor(1))
    with pytest.raises(ContractViolation, match="context_frames_override"):
        slot.take(recompute)
    assert not slot.full
    assert slot.take(False) is None


def test_an_override_that_nobody_read_is_not_overwritten() -> None:
    slot = Override()
    slot.put(tensor(1))
    with pytest.raises(ContractViolation, match="clear it when it is read"):
        slot.put(None)


def test_a_generator_that_raises_leaves_no_override_behind() -> None:
    class Raises(FakeGenerator):
        def chunk(self, plan: Mapping[str, Any]) -> Any:
            raise RuntimeError("no")

    job = Job(generators=[FakeGenerator(), Raises(), FakeGenerator()])
    job.simulation.start(0, job.rank0.chunk(fields(True)))
    job.simulation.run()
    assert isinstance(job.simulation.errors[1], RuntimeError)
    assert not job.workers[0].override.full


def test_rank0_refuses_an_override_that_is_left_over() -> None:
    job = Job()
    with pytest.raises(Refused, match="left over: tp_do_kv_recompute is False"):
        job.run(job.rank0.chunk(fields(False, context_frames_override=tensor(1))))


# ── 2: latents that survive ─────────────────────────────────────────────────────────────────────────


class Stateful(FakeGenerator):
    """The hazard: latents as state, which the first chunk sets."""

    def chunk(self, plan: Mapping[str, Any]) -> Any:
        first = self.plans[0]["latents"] if self.plans else plan["latents"]
        return super().chunk({**plan, "latents": first})


def latents_are_those_of_the_chunk(stale: tuple[int, ...] = ()) -> None:
    """The output of each chunk is made of its own latents, on every rank."""
    job = Job(generators=[Stateful() if r in stale else FakeGenerator() for r in range(RANKS)])
    for value in (1.0, 2.0, 3.0):
        output = job.run(job.rank0.chunk(fields(latents=tensor(value))))
        assert torch.equal(output, tensor(value))


def test_latents_are_an_argument_and_no_state() -> None:
    latents_are_those_of_the_chunk()
    with pytest.raises(AssertionError):
        latents_are_those_of_the_chunk(stale=(0, 1, 2))
    with pytest.raises(ContractViolation, match=r"rank2 ack\.output_digest"):
        latents_are_those_of_the_chunk(stale=(2,))


# ── 3: conditioning that falls back to an old one ───────────────────────────────────────────────────


def optimized(generators: list[FakeGenerator] | None = None) -> Job:
    return Job(generators=generators, settings_of=lambda rank, own: Settings(own, Mode.OPTIMIZE))


def lean(epoch: int, value: float | None = None, **changes: Any) -> dict[str, Any]:
    embeds = None if value is None else tensor(value)
    return fields(conditioning_epoch=epoch, conditioning_embeds=embeds, **changes)


def conditioning_is_named() -> None:
    """Each chunk runs on the conditioning of its epoch; one that is missing is refused, and never made up for."""
    generators = [FakeGenerator() for _ in range(RANKS)]
    job = optimized(generators)
    refused = 0
    for chunk in (lean(1, 1), lean(1), lean(2), lean(2, 2), lean(2), lean(3, 3, height=-1), lean(3, 3), lean(3)):
        try:
            job.run(job.rank0.chunk(chunk))
        except Refused:
            refused += 1
    job.simulation.run()
    assert seen(generators, "conditioning_embeds") == [[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]] * RANKS
    assert refused == 2


def test_conditioning_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    conditioning_is_named()
    monkeypatch.setattr(rules, "_conditioning_problems", lambda *_: iter(()))
    monkeypatch.setattr(Conditioning, "of", lambda self, epoch: self._tensor)
    with pytest.raises(AssertionError):
        conditioning_is_named()


def test_in_bring_up_mode_every_chunk_brings_it() -> None:
    job = Job()
    job.run(job.rank0.chunk(fields()))
    with pytest.raises(Refused, match="every chunk carries it in bring-up mode"):
        job.run(job.rank0.chunk(fields(conditioning_embeds=None)))


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_an_epoch_with_a_gap_or_a_step_back_is_refused_and_moves_nothing(epoch: int) -> None:
    job = optimized()
    job.run(job.rank0.chunk(lean(1, 1)))
    job.run(job.rank0.chunk(lean(2, 2)))
    with pytest.raises(Refused, match=r"meta\.conditioning_epoch"):
        job.run(job.rank0.chunk(lean(epoch, 9)))
    job.run(job.rank0.chunk(lean(2)))
    job.simulation.run()
    assert [role.conditioning.epoch for role in (job.rank0, *job.workers)] == [2] * RANKS


def test_a_worker_that_holds_another_epoch_refuses_to_guess() -> None:
    job = optimized()
    job.run(job.rank0.chunk(lean(1, 1)))
    job.simulation.run()
    job.workers[1].conditioning.epoch = 0
    with contextlib.suppress(ContractViolation):
        job.run(job.rank0.chunk(lean(1)))
    job.simulation.run()
    assert isinstance(job.simulation.errors[2], ContractViolation)
    assert "conditioning_epoch" in str(job.simulation.errors[2])


@pytest.mark.parametrize("rank", range(RANKS))
def test_held_conditioning_that_something_wrote_into_is_found_within_a_few_chunks(rank: int) -> None:
    generators = [FakeGenerator() for _ in range(RANKS)]
    job = optimized(generators)
    job.run(job.rank0.chunk(fields(conditioning_epoch=1, conditioning_embeds=torch.ones(64, dtype=torch.bfloat16))))
    job.simulation.run()
    generators[rank].plans[-1]["conditioning_embeds"][17] += 1
    found: BaseException | None = None
    for _ in range(PARTS):
        try:
            job.run(job.rank0.chunk(lean(1)))
        except Refused as refusal:
            found = refusal
            break
        job.simulation.run()
        if found := job.simulation.errors.get(rank):
            break
    assert found is not None
    assert "something wrote into it" in str(found)
