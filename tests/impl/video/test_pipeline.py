"""Rank0's pipeline: the fields it proposes, what a refusal leaves behind, and its chunks through the generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from genlock.errors import UsageError
from genlock.impl.chunk import schema
from genlock.impl.chunk.schema import Mode
from genlock.impl.video.config import tiny
from genlock.impl.video.generator import Generator
from genlock.impl.video.kv_ring import RingCache
from genlock.impl.video.pipeline import Pipeline, PipelineConfig, TextEncoder, Vae, denoising_steps
from genlock.impl.video.tensor_parallel import Solo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SMALL = PipelineConfig(height=16, width=32, recompute_every=3)
CONTEXT_FRAMES = tiny().cache_frames - tiny().chunk_frames


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pipeline(config: PipelineConfig = SMALL) -> Pipeline:
    return Pipeline(config, tiny())


def grant(rank0: Pipeline, fields: dict[str, Any]) -> Tensor:
    """Commit and finish a chunk without a generator: its noise stands for its result."""
    latents = fields["latents"]
    assert isinstance(latents, Tensor)
    rank0.commit()
    rank0.finish(latents)
    return latents


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(x: object, y: object) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y

    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


def test_it_supplies_each_field_that_the_schema_asks_of_a_user() -> None:
    ids = set(schema.HEADER_KEYS) | {"conditioning_epoch"}
    assert set(pipeline().prepare("a cat")) == set(schema.FIELD) - ids - schema.FORBIDDEN


def test_types_and_shapes() -> None:
    rank0 = pipeline()
    first = rank0.prepare("a cat", denoise_steps=3, attention_bias=0.25)
    latents = grant(rank0, first)
    second = rank0.prepare("a cat", recompute=True)
    assert (first["height"], first["width"], first["kv_cache_attention_bias"]) == (16, 32, 0.25)
    assert first["denoising_step_list"].dtype == torch.int64
    assert first["denoising_step_list"].shape == (3,)
    assert (latents.shape, latents.dtype) == ((1, 2, 16, 2, 4), torch.bfloat16)
    assert first["context_frames_override"] is None
    context = second["context_frames_override"]
    assert (context.shape, context.dtype) == ((1, 2, 16, 2, 4), torch.bfloat16)
    assert torch.equal(context[0, 1], latents[0, 1])
    assert not torch.equal(context[0, 0], latents[0, 0])  # the anchor went through pixels, which clip


WISHES = {"hard_cut": "init_cache", "reset_kv": "tp_reset_kv_cache", "recompute": "tp_do_kv_recompute"}
"""The things that can be asked for, and the field that grants each."""
PROPOSAL = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a cat", "a dog"]), **{wish: st.booleans() for wish in WISHES}}
)


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_survives_refusals_and_is_granted_once(wish: str) -> None:
    rank0 = pipeline()
    grant(rank0, rank0.prepare("a cat"))
    rank0.prepare("a cat", **{wish: True})
    for _ in range(2):
        fields = rank0.prepare("a cat")
        assert fields[WISHES[wish]]
    grant(rank0, fields)
    assert not rank0.prepare("a cat")[WISHES[wish]]


@settings(max_examples=25)
@given(st.lists(st.tuples(PROPOSAL, st.booleans()), min_size=1, max_size=10), st.booleans())
def test_a_refused_chunk_leaves_nothing_but_its_wishes(
    proposals: list[tuple[dict[str, Any], bool]], managed: bool
) -> None:
    """A pipeline with refusals equals one that was only asked for the granted chunks, wishes added up."""
    config = PipelineConfig(height=16, width=32, recompute_every=2, manage_cache=managed)
    refused, direct = pipeline(config), pipeline(config)
    pending: dict[str, bool] = dict.fromkeys(WISHES, False)
    for proposal, granted in proposals:
        fields = refused.prepare(**proposal)
        pending = {wish: pending[wish] or proposal[wish] for wish in WISHES}
        if granted:
            expected = direct.prepare(**{**proposal, **pending})
            assert same(fields, expected)
            grant(refused, fields)
            grant(direct, expected)
            pending = dict.fromkeys(WISHES, False)


@settings(max_examples=25)
@given(st.lists(PROPOSAL, min_size=1, max_size=10), st.booleans())
def test_plans_are_consistent_and_fit_a_ring(proposals: list[dict[str, Any]], managed: bool) -> None:
    rank0 = pipeline(PipelineConfig(height=16, width=32, recompute_every=2, manage_cache=managed))
    ring, epoch, prompt = RingCache(1, tiny().cache_frames, sink=1), 0, None
    for index, proposal in enumerate(proposals):
        fields = rank0.prepare(**proposal)
        cut, context = fields["init_cache"], fields["context_frames_override"]
        assert cut == (index == 0 or proposal["hard_cut"])
        assert fields["tp_reset_kv_cache"] == (cut or proposal["reset_kv"])
        assert fields["conditioning_embeds_updated"] == (cut or proposal["prompt"] != prompt)
        assert fields["tp_reset_crossattn_cache"] == (cut or (managed and fields["conditioning_embeds_updated"]))
        assert fields["tp_do_kv_recompute"] == (context is not None)
        due = managed and ring.start_frame % (2 * tiny().chunk_frames) == 0
        assert fields["tp_do_kv_recompute"] == (not cut and (proposal["recompute"] or due))
        assert fields["tp_num_denoise_steps"] == len(fields["denoising_step_list"])
        assert fields["tp_expected_generator_calls"] == fields["tp_num_denoise_steps"] + (context is not None)
        if cut:
            ring.hard_cut(epoch := epoch + 1)
        if context is not None:
            ring.rewind(context.shape[1])
            ring.open(fields["current_start_frame"] - context.shape[1], context.shape[1])
            ring.advance()
        ring.open(fields["current_start_frame"], tiny().chunk_frames)
        ring.advance()
        grant(rank0, fields)
        prompt = proposal["prompt"]


def test_chunks_through_the_generator() -> None:
    rank0, generator = pipeline(), Generator(tiny(), Solo())
    epoch, outputs, recomputes = 0, list[Tensor](), 0
    for index in range(8):
        fields = rank0.prepare("a cat" if index < 6 else "a dog", hard_cut=index == 7)
        epoch += fields["init_cache"]
        rank0.commit()
        chunk = generator.chunk({**fields, "cache_epoch": epoch})
        assert len(chunk.calls) == fields["tp_expected_generator_calls"]
        if fields["tp_do_kv_recompute"]:
            recomputes += 1
            context = torch.cat(outputs, 1)[:, -CONTEXT_FRAMES:]
            assert torch.equal(fields["context_frames_override"][:, 1:], context[:, 1:])
        for call in chunk.calls:
            call()
        outputs.append(chunk.result())
        frames = rank0.finish(outputs[-1])
        assert frames.shape == (2, 16, 32, 3)
        assert frames.dtype == np.uint8
        assert frames.std() > 10
    assert recomputes == 2
    assert generator.cache.scalars == (2, 2, 2, 2)


def test_the_anchor_is_encoded_anew_from_the_frames_that_were_shown() -> None:
    rank0 = pipeline()
    loud = 4 * rank0.prepare("a cat")["latents"]  # so that pixels are clipped
    rank0.commit()
    shown = torch.from_numpy(rank0.finish(loud)).permute(0, 3, 1, 2) / 127.5 - 1
    anchor = rank0.prepare("a cat", recompute=True)["context_frames_override"][0, 0].float()
    torch.testing.assert_close(anchor, rank0._vae.encode(shown[:1])[0], atol=0.06, rtol=0.01)  # 8 bits, then bf16
    assert (anchor - loud[0, 0]).abs().max() > 0.5


def test_in_optimize_mode_the_conditioning_goes_along_when_its_epoch_rises() -> None:
    rank0, told = pipeline(replace(SMALL, mode=Mode.OPTIMIZE)), []
    for prompt, cut in (("a cat", False), ("a cat", False), ("a dog", False), ("a dog", True), ("a dog", False)):
        rank0.prepare("a bird", hard_cut=cut)  # refused, and its epoch with it
        fields = rank0.prepare(prompt)
        told.append((fields["conditioning_epoch"], fields["conditioning_embeds"] is not None))
        grant(rank0, fields)
    assert told == [(1, True), (1, False), (2, True), (3, True), (3, False)]


def test_calls_out_of_order() -> None:
    rank0 = pipeline()
    with pytest.raises(UsageError, match="no prepared chunk"):
        rank0.commit()
    latents = rank0.prepare("a cat")["latents"]
    with pytest.raises(UsageError, match="no committed chunk"):
        rank0.finish(latents)
    rank0.commit()
    with pytest.raises(UsageError, match="no prepared chunk"):
        rank0.commit()
    with pytest.raises(UsageError, match="not finished"):
        rank0.prepare("a dog", hard_cut=True)
    with pytest.raises(UsageError, match="latents of shape"):
        rank0.finish(latents[:, :1])
    rank0.finish(latents)
    assert not rank0.prepare("a cat")["init_cache"]


def test_noise_depends_on_seed_and_chunk_alone() -> None:
    rank0 = pipeline()
    first = rank0.prepare("a cat")["latents"]
    torch.manual_seed(7)
    assert torch.equal(rank0.prepare("a dog", denoise_steps=2)["latents"], first)
    rank0.commit()
    rank0.finish(first)
    assert not torch.equal(rank0.prepare("a cat", hard_cut=True)["latents"], first)
    other = pipeline(PipelineConfig(height=16, width=32, base_seed=1))
    assert not torch.equal(other.prepare("a cat")["latents"], first)


def test_building_a_pipeline_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, two = pipeline(), pipeline()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one.prepare("a cat"), two.prepare("a cat"))


def test_the_vae_decodes_what_it_can_encode() -> None:
    torch.manual_seed(0)
    vae, latents = Vae(16), 0.1 * torch.randn(3, 16, 2, 4)
    pixels = vae.decode(latents)
    assert pixels.shape == (3, 3, 16, 32)
    torch.testing.assert_close(vae.encode(pixels), latents, atol=1e-5, rtol=0)


def test_prompts_are_told_apart() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(4, 64).eval()
    cat, dog, empty = (encoder(prompt) for prompt in ("a cat", "a dog", ""))
    assert cat.shape == (1, 4, 64)
    assert torch.equal(encoder("A  cat"), cat)
    assert not torch.allclose(cat, dog)
    assert not torch.allclose(cat, empty)
    assert torch.equal(encoder("one two three four"), encoder("one two three four five"))


def test_timesteps_fall_strictly_from_pure_noise() -> None:
    for steps in range(1, 101):
        timesteps = denoising_steps(steps, 5.0)
        assert len(timesteps) == steps
        assert timesteps[0] == 1000
        assert (timesteps.diff() < 0).all()
        assert timesteps[-1] > 0
    for steps in (0, 101):
        with pytest.raises(UsageError):
            denoising_steps(steps, 5.0)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        pipeline(PipelineConfig(height=24))
    with pytest.raises(UsageError, match="0 denoise steps"):
        pipeline().prepare("a cat", denoise_steps=0)
