"""The generator on one rank: its laws, its weights, and phase B. For several ranks see `test_equality`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from genlock.errors import ContractViolation, UsageError
from genlock.impl.chunk.weight_check import WeightCheck
from genlock.impl.video.config import ALL_REDUCES_PER_BLOCK, GeneratorConfig, tiny, wan_14b_shape, weight_table
from genlock.impl.video.generator import Generator
from genlock.impl.video.kv_ring import CacheScalars
from genlock.impl.video.tensor_parallel import Solo
from genlock.impl.video.weights import make_weights
from torch import Tensor

TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_changed_weight_changes_its_fingerprints() -> None:
    generator = Generator(tiny(), Solo())
    shard, replica = generator.shard_fingerprint(), generator.replica_fingerprint()
    assert (shard, replica) == (Generator(tiny(), Solo()).shard_fingerprint(), replica)
    generator.weights["blocks.1.ffn.down"][3, 5] += 1e-3
    assert generator.shard_fingerprint() != shard
    assert generator.replica_fingerprint() == replica
    generator.weights["time.in"][0, 0] += 1e-3
    assert generator.replica_fingerprint() != replica


@pytest.mark.parametrize("name", ["blocks.0.self.q", "blocks.1.ffn.down", "head"])
@pytest.mark.parametrize("least", [1, 100_000, 2**30])
def test_a_check_finds_a_changed_weight_when_its_turn_comes(name: str, least: int) -> None:
    weights = make_weights(tiny(), 0, 1)
    check = WeightCheck(weights, least)
    turns = check.turns
    assert (turns == 1, turns == len(weights)) == (least == 2**30, least == 1)
    assert [check.damage() for _ in range(turns)] == [None] * turns
    weights[name].view(-1)[0] += 1e-3
    [found] = [damage for damage in (check.damage() for _ in range(turns)) if damage]
    assert f"weight `{name}` has digest" in found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_shards_are_slices_of_the_same_weights(world: int) -> None:
    full = make_weights(tiny(), 0, 1)
    shards = [make_weights(tiny(), rank, world) for rank in range(world)]
    for name, (_, split) in weight_table(tiny()).items():
        parts = [shard[name] for shard in shards]
        whole = parts if split is None else [torch.cat(parts, dim=split)]
        assert all(torch.equal(part, full[name]) for part in whole)
    other = make_weights(dataclasses.replace(tiny(), seed=1), 0, 1)
    assert not any(torch.equal(other[name], full[name]) for name in full)


def test_the_big_shape_runs_on_shapes_alone() -> None:
    comm = Solo()
    generator = Generator(dataclasses.replace(wan_14b_shape(), attention="math"), comm, device="meta")
    assert sum(weight.numel() for weight in generator.weights.values()) == pytest.approx(14.3e9, rel=0.01)
    latents = torch.empty(1, 3, 16, 60, 104, dtype=torch.bfloat16, device="meta")
    out = generator(latents, 500, torch.empty(1, 512, 4096, device="meta"), start_frame=0, attention_bias=0.1)
    assert (out.shape, out.dtype) == (latents.shape, latents.dtype)
    assert comm.observed == 160


def test_forty_blocks_run_with_real_numbers_too() -> None:
    """The big shape in all but its widths, which memory does not allow everywhere."""
    narrow: dict[str, Any] = {"width": 80, "ffn": 216, "text_dim": 64, "dtype": "float32", "attention": "math"}
    comm = Solo()
    generator = Generator(dataclasses.replace(wan_14b_shape(), **narrow), comm)
    for start in (0, 3, 6, 9):  # the last of them evicts
        out = generator(noise(start, frames=3), 500, text(0), start_frame=start, attention_bias=-0.1)
        generator.advance()
    assert bool(out.isfinite().all())
    assert out.std() > 0.1
    assert (comm.observed, generator.cache.resident) == (4 * 160, list(range(3, 12)))


@pytest.mark.parametrize("change", [{"heads": 10}, {"cache_frames": 2, "sink_frames": 0}, {"sink_frames": 6}])
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(tiny(), **change)


def test_what_ranks_or_device_cannot_do_is_refused_at_start() -> None:
    class Eight(Solo):
        world = 8

    with pytest.raises(UsageError, match="8 ranks do not divide 12 heads"):
        Generator(tiny(), Eight())
    with pytest.raises(UsageError, match="an FFN of 100"):
        Generator(dataclasses.replace(tiny(), heads=48, width=96, ffn=100), Eight())
    with pytest.raises(UsageError, match="no `efficient` attention"):
        Generator(dataclasses.replace(tiny(), attention="efficient"), Solo())


# --- laws of the generator, on one rank


def noise(seed: int, frames: int = 2) -> Tensor:
    return torch.randn(1, frames, 16, 4, 6, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> Tensor:
    return torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(seed))


def after(*pasts: int, config: GeneratorConfig | None = None) -> Generator:
    """A generator that has seen one chunk of noise for each seed."""
    generator = Generator(config or tiny(), Solo())
    for index, seed in enumerate(pasts):
        generator(noise(seed), 500, text(0), start_frame=2 * index)
        generator.advance()
    return generator


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=TOLERANCE)


def test_the_numbers_are_pinned() -> None:
    """Whoever changes them changes the model: weights, positions, gates, or the order of operations."""
    out = after(1, 2)(noise(9), 500, None, start_frame=4)
    expected = [-0.22564, 1.79226, -0.57708, -0.48256]
    torch.testing.assert_close(out[0, 0, 0, 0, :4], torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_past_is_attended_to_until_it_is_evicted() -> None:
    config = dataclasses.replace(tiny(), cache_frames=5, sink_frames=0)

    def then(*pasts: int) -> Tensor:
        return after(*pasts, config=config)(noise(9), 500, None, start_frame=2 * len(pasts))

    assert not close(then(1, 2), then(3, 2))
    one, other = after(1, config=config), after(3, config=config)
    for generator in (one, other):
        for start in (2, 4):  # what these frames cache depends on the past too, so they forget it first
            generator.reset_kv()
            generator(noise(2), 500, None, start_frame=start)
            generator.advance()
    assert close(one(noise(9), 500, None, start_frame=6), other(noise(9), 500, None, start_frame=6))


def test_a_very_negative_bias_hides_the_past_alone() -> None:
    hidden = after(1, 2)(noise(9), 500, None, start_frame=4, attention_bias=-1e9)
    forgetful = after(1, 2)
    forgetful.reset_kv()
    assert close(hidden, forgetful(noise(9), 500, None, start_frame=4))
    assert not close(hidden, after(1, 2)(noise(9), 500, None, start_frame=4))
    biased = after(1, 2)(noise(9), 500, None, start_frame=4, attention_bias=-1.0)
    assert not close(hidden, biased)


def test_only_relative_time_counts() -> None:
    fresh, moved = Generator(tiny(), Solo()), after(1, 2)
    moved.reset_kv()
    for index, seed in enumerate((7, 8, 9)):
        out = fresh(noise(seed), 500, text(0), start_frame=2 * index)
        assert close(moved(noise(seed), 500, text(0), start_frame=2 * index + 4), out)
        fresh.advance()
        moved.advance()


def test_time_and_place_matter() -> None:
    """With one block the past's keys depend on nothing but their own frames: order shows in positions alone."""
    one_block = dataclasses.replace(tiny(), blocks=1)
    x = noise(9)
    in_order = after(1, 2, config=one_block)(x, 500, None, start_frame=4)
    assert not close(in_order, after(2, 1, config=one_block)(x, 500, None, start_frame=4))
    out = Generator(one_block, Solo())(x, 500, text(0), start_frame=0)
    for axis in (3, 4):
        rolled = Generator(one_block, Solo())(x.roll(2, axis), 500, text(0), start_frame=0)
        assert not close(rolled, out.roll(2, axis))


def test_a_later_call_for_a_chunk_overwrites_the_earlier() -> None:
    twice = after(1, 2, 3)
    twice(noise(7), 900, None, start_frame=6)
    assert torch.equal(twice(noise(8), 500, None, start_frame=6), after(1, 2, 3)(noise(8), 500, None, start_frame=6))


def test_a_recompute_forgets_what_was_cached_and_is_one_call() -> None:
    context = noise(5, frames=3)
    outputs = []
    for pasts in ((1, 2), (3, 4)):
        generator = after(*pasts)
        generator.comm.reset()
        generator.recompute(context, None, start_frame=4)
        assert generator.comm.observed == ALL_REDUCES_PER_BLOCK * tiny().blocks
        assert generator.cache.resident == [1, 2, 3]
        assert generator.cache.scalars == CacheScalars(0, 4, 4, 3)
        outputs.append(generator(noise(9), 500, None, start_frame=4))
    assert torch.equal(*outputs)
    forgetful = after(1, 2)
    forgetful.reset_kv()
    assert not close(outputs[0], forgetful(noise(9), 500, None, start_frame=4))


def test_cross_attention_is_cached_until_it_is_reset() -> None:
    fresh = Generator(tiny(), Solo())(noise(9), 500, text(1), start_frame=0)
    generator = Generator(tiny(), Solo())
    old = generator(noise(9), 500, text(0), start_frame=0)
    assert torch.equal(generator(noise(9), 500, text(1), start_frame=0), old)
    generator.reset_crossattn()
    assert torch.equal(generator(noise(9), 500, text(1), start_frame=0), fresh)
    assert not close(old, fresh)
    generator.reset_crossattn()
    with pytest.raises(ContractViolation, match="there is no conditioning"):
        generator(noise(9), 500, None, start_frame=0)


def test_a_hard_cut_forgets_everything() -> None:
    generator = after(1, 2)
    generator.init_cache(1)
    fresh = Generator(tiny(), Solo())
    assert torch.equal(generator(noise(9), 500, text(1), start_frame=0), fresh(noise(9), 500, text(1), start_frame=0))


def test_low_precision_keeps_shape_and_dtype() -> None:
    generator = Generator(dataclasses.replace(tiny(), dtype="bfloat16"), Solo())
    latents = noise(9).to(torch.bfloat16)
    out = generator(latents, 500, text(0).to(torch.bfloat16), start_frame=0)
    exact = Generator(tiny(), Solo())(noise(9), 500, text(0), start_frame=0)
    assert (out.shape, out.dtype) == (latents.shape, latents.dtype)
    assert (out - exact).abs().mean() < 0.05 * exact.abs().mean()


# --- phase B


def fields(**changes: object) -> dict[str, Any]:
    return {
        "cache_epoch": 1,
        "current_start_frame": 0,
        "init_cache": True,
        "manage_cache": True,
        "tp_reset_kv_cache": True,
        "tp_reset_crossattn_cache": True,
        "conditioning_embeds_updated": True,
        "kv_cache_attention_bias": 0.0,
        "tp_do_kv_recompute": False,
        "denoising_step_list": torch.tensor([1000, 750, 250]),
        "latents": noise(1).to(torch.bfloat16),
        "conditioning_embeds": text(0).to(torch.bfloat16),
        "context_frames_override": None,
        **changes,
    }


def next_fields(**changes: object) -> dict[str, Any]:
    plain = dict.fromkeys(
        ("init_cache", "tp_reset_kv_cache", "tp_reset_crossattn_cache", "conditioning_embeds_updated"), False
    )
    return fields(**{**plain, "current_start_frame": 2, **changes})


def run(generator: Generator, chunk: dict[str, Any]) -> Tensor:
    phase = generator.chunk(chunk)
    for call in phase.calls:
        call()
    return phase.result()


def test_phase_b_is_euler_from_noise_to_clean() -> None:
    plain = Generator(tiny(), Solo())
    x = noise(1).to(torch.bfloat16).float()
    for timestep, step in ((1000, -0.25), (750, -0.5), (250, -0.25)):
        x = x + step * plain(x, timestep, text(0).to(torch.bfloat16), start_frame=0)
    result = run(Generator(tiny(), Solo()), fields())
    assert torch.equal(result, x.to(torch.bfloat16))


def test_the_recompute_is_the_first_call() -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    chunk = generator.chunk(next_fields(tp_do_kv_recompute=True, context_frames_override=noise(2)))
    assert len(chunk.calls) == 4
    chunk.calls[0]()
    assert generator.cache.scalars == CacheScalars(1, 2, 2, 2)
    for call in chunk.calls[1:]:
        call()
    chunk.result()
    assert generator.cache.scalars == CacheScalars(1, 4, 4, 4)


def test_calls_out_of_turn_or_left_out() -> None:
    generator = Generator(tiny(), Solo())
    chunk = generator.chunk(fields())
    with pytest.raises(ContractViolation, match="call 1 came when call 0 was due"):
        chunk.calls[1]()
    chunk.calls[0]()
    with pytest.raises(ContractViolation, match="call 0 came when call 1 was due"):
        chunk.calls[0]()
    with pytest.raises(ContractViolation, match="ended after 1 generator calls of 3"):
        chunk.result()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_epoch": 2}, "cache_epoch is 2 with init_cache=False, but this rank's is 1"),
        ({"conditioning_embeds_updated": True}, "without tp_reset_crossattn_cache"),
        ({"init_cache": True}, "cache_epoch is 1 with init_cache=True"),
    ],
)
def test_a_plan_that_does_not_fit_this_rank_changes_nothing(changes: dict[str, Any], message: str) -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    before = generator.cache.scalars, generator.comm.observed
    with pytest.raises(ContractViolation, match=message):
        generator.chunk(next_fields(**changes))
    assert (generator.cache.scalars, generator.comm.observed) == before
    run(generator, next_fields())


def test_a_text_cache_that_was_emptied_out_of_turn_is_noticed_before_any_collective() -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    generator.reset_crossattn()
    observed = generator.comm.observed
    with pytest.raises(ContractViolation, match="no plan has told it"):
        generator.chunk(next_fields())
    assert generator.comm.observed == observed
    run(generator, next_fields(tp_reset_crossattn_cache=True))


def test_unmanaged_caches_may_keep_an_old_prompt() -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    run(generator, next_fields(conditioning_embeds_updated=True, manage_cache=False))


@pytest.mark.parametrize("start_frame", [0, 1, 3, 4])
def test_a_drifted_start_frame_stops_before_any_collective(start_frame: int) -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    chunk = generator.chunk(next_fields(current_start_frame=start_frame))
    with pytest.raises(ContractViolation, match=f"start frame is {start_frame}, expected 2"):
        chunk.calls[0]()
    assert generator.comm.observed == 0


@pytest.mark.parametrize("index", ["global_end_index", "local_end_index"])
def test_a_drifted_ring_index_stops_before_any_collective(index: str) -> None:
    generator = Generator(tiny(), Solo())
    run(generator, fields())
    setattr(generator.cache, index, getattr(generator.cache, index) + 1)
    chunk = generator.chunk(next_fields())
    with pytest.raises(ContractViolation, match=f"{index} is 3, expected 2"):
        chunk.calls[0]()
    assert generator.comm.observed == 0
