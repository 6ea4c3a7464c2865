"""The generator: several ranks equal one, four all-reduces a block, and a cache that cannot drift unnoticed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from genlock.errors import ContractViolation, UsageError
from genlock.impl.cache import CacheScalars, RingCache
from genlock.impl.generator import (
    ALL_REDUCES_PER_BLOCK,
    Generator,
    GeneratorConfig,
    Solo,
    make_weights,
    tiny,
    wan_14b_shape,
    weight_table,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

WORKER = Path(__file__).with_name("tp_worker.py")
TOLERANCE = 1e-5
"""Absolute, in float32, on latents of standard deviation 1.4; 1e-6 was measured."""
GROUPS = {"2": 2, "3": 3, "4": 4, "2-functional": 2}
Runs = dict[tuple[str, int], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What each rank of each world saw in the worker's scenario, by (world, rank)."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(4):
            command = [sys.executable, str(WORKER), str(rank), str(folder)]
            ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        for process in ranks:
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return {
        (world, rank): torch.load(folder / f"world{world}-rank{rank}.pt")
        for world, size in {"1": 1, **GROUPS}.items()
        for rank in range(size)
    }


def all_ranks(runs: Runs, world: str) -> list[dict[str, Any]]:
    return [runs[world, rank] for rank in range(GROUPS[world])]


@pytest.mark.parametrize("world", GROUPS)
def test_several_ranks_equal_one(runs: Runs, world: str) -> None:
    for run in all_ranks(runs, world):
        for chunk, alone in zip(run["chunks"], runs["1", 0]["chunks"], strict=True):
            torch.testing.assert_close(chunk["latents"], alone["latents"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("world", GROUPS)
def test_ranks_are_in_lockstep(runs: Runs, world: str) -> None:
    first, *others = all_ranks(runs, world)
    for run in others:
        for chunk, same in zip(run["chunks"], first["chunks"], strict=True):
            assert torch.equal(chunk["latents"], same["latents"])
    for run in (first, *others):
        for chunk, alone in zip(run["chunks"], runs["1", 0]["chunks"], strict=True):
            for key in ("sequence_hash", "scalars", "resident", "per_call"):
                assert chunk[key] == alone[key]


def test_functional_collectives_give_the_same_bits(runs: Runs) -> None:
    for eager, functional in zip(runs["2", 0]["chunks"], runs["2-functional", 0]["chunks"], strict=True):
        assert torch.equal(eager["latents"], functional["latents"])


@pytest.mark.parametrize("world", GROUPS)
def test_four_all_reduces_a_block(runs: Runs, world: str) -> None:
    exact = ALL_REDUCES_PER_BLOCK * tiny().blocks
    assert ALL_REDUCES_PER_BLOCK == 4
    for run in all_ranks(runs, world):
        assert run["real_all_reduces"] == exact
        assert all(count == exact for chunk in run["chunks"] for count in chunk["per_call"])


def test_the_scenario_has_what_it_should(runs: Runs) -> None:
    chunks = runs["1", 0]["chunks"]
    assert sum(chunk["resident"][-1] >= tiny().cache_frames for chunk in chunks) >= 3  # evictions
    assert [len(chunk["per_call"]) for chunk in chunks].count(3) == 1  # a recompute
    assert chunks[-1]["scalars"] == CacheScalars(2, 6, 6, 4)  # the second cut, and a reset that kept the clock


@pytest.mark.parametrize("world", GROUPS)
def test_fingerprints(runs: Runs, world: str) -> None:
    ranks = all_ranks(runs, world)
    assert len({run["shard"] for run in ranks}) == len(ranks)
    assert {run["replica"] for run in ranks} == {runs["1", 0]["replica"]}


def test_a_changed_weight_changes_its_fingerprints() -> None:
    generator = Generator(tiny(), Solo())
    shard, replica = generator.shard_fingerprint(), generator.replica_fingerprint()
    assert (shard, replica) == (Generator(tiny(), Solo()).shard_fingerprint(), replica)
    generator.weights["blocks.1.ffn.down"][3, 5] += 1e-3
    assert generator.shard_fingerprint() != shard
    assert generator.replica_fingerprint() == replica
    generator.weights["time.in"][0, 0] += 1e-3
    assert generator.replica_fingerprint() != replica


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


# --- laws of the ring


class NaiveCache:
    """The ring's specification: a list of [frame, content], of which the oldest that is no sink leaves first."""

    def __init__(self, capacity: int, sink: int) -> None:
        self.capacity, self.sink, self.clock, self.frames = capacity, sink, 0, list[list[int]]()

    def add(self, contents: list[int]) -> None:
        for content in contents:
            if len(self.frames) == self.capacity:
                del self.frames[self.sink]
            self.frames.append([self.clock, content])
            self.clock += 1

    def overwrite(self, contents: list[int]) -> None:
        for frame, content in zip(self.frames[-len(contents) :], contents, strict=True):
            frame[1] = content

    def clear(self, clock: int) -> None:
        self.clock, self.frames = clock, []


class Both:
    """A ring and its specification, led through the same operations and compared after each."""

    def __init__(self, capacity: int, sink: int) -> None:
        self.ring, self.naive = RingCache(2, capacity, sink=sink), NaiveCache(capacity, sink)
        self.contents = iter(range(1, 10_000))

    def chunk(self, frames: int, writes: int) -> None:
        start = self.naive.clock
        frames = min(frames, self.ring.capacity - self.ring.sink)
        for write in range(writes):
            contents = [next(self.contents) for _ in range(frames)]
            (self.naive.overwrite if write else self.naive.add)(contents)
            self.ring.open(start, frames)
            for block in range(self.ring.blocks):
                k = self.keys(contents, block)
                self.ring.write(block, k, -k)
                self.compare_contents(block, start)
        assert self.ring.start_frame == start
        self.ring.advance()

    def reset(self) -> None:
        self.ring.reset()
        self.naive.clear(self.naive.clock)

    def recompute(self, frames: int) -> None:
        frames = min(frames, self.naive.clock, self.ring.capacity - self.ring.sink)
        if frames:
            self.ring.rewind(frames)
            self.naive.clear(self.naive.clock - frames)
            self.chunk(frames, 1)

    def cut(self) -> None:
        self.ring.hard_cut(self.ring.cache_epoch + 1)
        self.naive.clear(0)

    def keys(self, contents: list[int], block: int) -> Tensor:
        """[1, frames, 2 tokens, 1 head, 1], each frame's content twice, marked by block."""
        return (torch.tensor(contents) * 2.0 + block).repeat_interleave(2).view(1, -1, 2, 1, 1)

    def compare_contents(self, block: int, start: int) -> None:
        k, v = self.ring.read(block)
        found = k.view(-1, 2)[:, 0].tolist()
        frame_of = {content * 2.0 + block: frame for frame, content in self.naive.frames}
        assert torch.equal(v, -k)
        assert sorted(found) == sorted(frame_of)
        assert self.ring.past.tolist() == [frame_of[content] < start for content in found]
        assert frame_of[found[self.ring.local_end_index - 1]] == self.naive.clock - 1

    def compare_indices(self) -> None:
        assert self.ring.resident == [frame for frame, _ in self.naive.frames]
        assert self.ring.start_frame == self.ring.global_end_index == self.naive.clock
        assert (self.ring.local_end_index == 0) == (not self.naive.frames)


OPERATIONS = st.one_of(
    st.tuples(st.just("chunk"), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("reset")),
    st.tuples(st.just("recompute"), st.integers(1, 5)),
    st.tuples(st.just("cut")),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(4, 6), st.integers(0, 2), st.lists(OPERATIONS, min_size=1, max_size=12))
def test_the_ring_equals_a_naive_list_of_frames(capacity: int, sink: int, operations: list[Any]) -> None:
    both = Both(capacity, sink)
    for name, *arguments in operations:
        getattr(both, name)(*arguments)
        both.compare_indices()


def opened() -> RingCache:
    ring = RingCache(1, 4, sink=1)
    ring.open(0, 2)
    ring.write(0, torch.zeros(1, 2, 3, 1, 1), torch.zeros(1, 2, 3, 1, 1))
    return ring


def closed() -> RingCache:
    ring = opened()
    ring.advance()
    return ring


RESETS: dict[str, Callable[[RingCache], None]] = {
    "reset": RingCache.reset,
    "rewind": lambda ring: ring.rewind(1),
    "hard_cut": lambda ring: ring.hard_cut(1),
}


@pytest.mark.parametrize("do", RESETS.values(), ids=RESETS)
def test_a_reset_in_mid_chunk_is_refused(do: Callable[[RingCache], None]) -> None:
    ring = opened()
    with pytest.raises(ContractViolation, match="in the middle of a chunk"):
        do(ring)
    ring.advance()
    do(ring)


def test_what_a_ring_refuses() -> None:
    with pytest.raises(ContractViolation, match="chunk length is 3, expected 2"):
        opened().open(0, 3)
    with pytest.raises(ContractViolation, match="4 frames do not fit"):
        closed().open(2, 4)
    with pytest.raises(ContractViolation, match="0 frames do not fit"):
        closed().open(2, 0)
    with pytest.raises(ContractViolation, match="written while no chunk"):
        closed().write(0, torch.zeros(1, 2, 3, 1, 1), torch.zeros(1, 2, 3, 1, 1))
    with pytest.raises(ContractViolation, match="frames written is 1, expected 2"):
        opened().write(0, torch.zeros(1, 1, 3, 1, 1), torch.zeros(1, 1, 3, 1, 1))
    with pytest.raises(ContractViolation, match="read before"):
        closed().read(0)
    with pytest.raises(ContractViolation, match="advanced while no chunk"):
        closed().advance()
    with pytest.raises(ContractViolation, match="cannot go back 3 frames from frame 2"):
        closed().rewind(3)


@pytest.mark.parametrize("epoch", [0, 2])
def test_epochs_neither_repeat_nor_gap(epoch: int) -> None:
    ring = closed()
    with pytest.raises(ContractViolation, match=f"is {epoch}, expected 1"):
        ring.hard_cut(epoch)
    assert ring.scalars == CacheScalars(0, 2, 2, 2)


def test_a_geometry_changes_with_a_cut_alone() -> None:
    ring, wide = closed(), torch.ones(1, 2, 5, 1, 1)
    ring.open(2, 2)
    with pytest.raises(ContractViolation, match="without a cut"):
        ring.write(0, wide, wide)
    ring = closed()
    ring.hard_cut(1)
    ring.open(0, 2)
    ring.write(0, wide, wide)
    assert ring.read(0)[0].shape == (1, 10, 1, 1)
