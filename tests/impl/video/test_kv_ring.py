"""The KV ring: equal to a naive list of frames, and out of step with nobody unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from genlock.errors import ContractViolation
from genlock.impl.video.kv_ring import CacheScalars, RingCache, load, store
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


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
            self.ring.reserve(1, 2, 1, 1, torch.float32)
            for block in range(self.ring.blocks):
                k = self.keys(contents, block)
                store(self.ring.place(block), k, -k)
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
        """[1, frames x 2 tokens, 1 head, 1], each frame's content twice, marked by block."""
        return (torch.tensor(contents) * 2.0 + block).repeat_interleave(2).view(1, -1, 1, 1)

    def compare_contents(self, block: int, start: int) -> None:
        k, v = load(self.ring.place(block))
        found = k.view(-1, 2)[:, 0].tolist()
        frame_of = {content * 2.0 + block: frame for frame, content in self.naive.frames}
        assert torch.equal(v, -k)
        assert sorted(found) == sorted(frame_of)
        assert self.ring.past.tolist() == [frame_of[content] < start for content in found]
        assert frame_of[found[self.ring.slot(self.naive.clock - 1)]] == self.naive.clock - 1

    def compare_indices(self) -> None:
        assert self.ring.resident == [frame for frame, _ in self.naive.frames]
        assert self.ring.start_frame == self.ring.global_end_index == self.naive.clock
        assert self.ring.local_end_index == len(self.naive.frames)


OPERATIONS = st.one_of(
    st.tuples(st.just("chunk"), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("reset")),
    st.tuples(st.just("recompute"), st.integers(1, 5)),
    st.tuples(st.just("cut")),
)


@settings(max_examples=150)
@given(st.integers(4, 6), st.integers(0, 2), st.lists(OPERATIONS, min_size=1, max_size=12))
def test_the_ring_equals_a_naive_list_of_frames(capacity: int, sink: int, operations: list[Any]) -> None:
    both = Both(capacity, sink)
    for name, *arguments in operations:
        getattr(both, name)(*arguments)
        both.compare_indices()


def opened() -> RingCache:
    ring = RingCache(1, 4, sink=1)
    ring.open(0, 2)
    ring.reserve(1, 3, 1, 1, torch.float32)
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
    with pytest.raises(ContractViolation, match="asked for while no chunk"):
        closed().reserve(1, 3, 1, 1, torch.float32)
    with pytest.raises(ContractViolation, match="written while no chunk"):
        closed().place(0)
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
    for wide in ((1, 5, 1, 1, torch.float32), (1, 3, 1, 1, torch.float16)):
        ring = closed()
        ring.open(2, 2)
        with pytest.raises(ContractViolation, match="without a cut"):
            ring.reserve(*wide)
        ring = closed()
        ring.hard_cut(1)
        ring.open(0, 2)
        ring.reserve(*wide)
        k, _ = load(ring.place(0))
        assert (k.shape, k.dtype) == ((1, 2 * wide[1], 1, 1), wide[4])


@settings(max_examples=100)
@given(st.integers(1, 12), st.integers(0, 2), st.integers(1, 12))
def test_a_ring_emptied_out_of_turn_is_told_from_one_that_was_not(before: int, sink: int, chunk: int) -> None:
    """The very next chunk shows it, wherever in the ring it is written."""
    rings = [RingCache(1, 7, sink=sink) for _ in range(2)]
    frames = min(chunk, 7 - max(sink, 1))
    for ring in rings:
        for start in range(before):
            ring.open(start, 1)
            ring.advance()
    rings[1].reset()
    for ring in rings:
        ring.open(before, frames)
    whole, emptied = (ring.scalars for ring in rings)
    assert whole[:3] == emptied[:3]
    assert whole.local_end_index > emptied.local_end_index
