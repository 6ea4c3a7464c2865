"""Digests: equal content has an equal digest, whatever its layout, and any difference shows."""

from __future__ import annotations

import pytest
import torch
import xxhash
from genlock.errors import UsageError
from genlock.impl.chunk import digest
from genlock.impl.chunk.digest import Policy
from hypothesis import given
from hypothesis import strategies as st

INT64 = st.integers(digest.INT64_MIN, digest.INT64_MAX)


def test_the_digest_is_xxh3_64() -> None:
    # The empty digest is a published constant of XXH3.
    assert digest.to_uint64(digest.of_bytes(b"")) == 0x2D06800538D394C2
    assert digest.to_uint64(digest.of_bytes(b"genlock")) == xxhash.xxh3_64_intdigest(b"genlock")


@given(INT64)
def test_int64_and_uint64_are_inverses(value: int) -> None:
    unsigned = digest.to_uint64(value)
    assert 0 <= unsigned < 2**64
    assert digest.to_int64(unsigned) == value
    assert unsigned.to_bytes(8, "little") == value.to_bytes(8, "little", signed=True)


@given(INT64)
def test_hex_has_one_size_and_loses_nothing(value: int) -> None:
    text = digest.to_hex(value)
    assert len(text) == 16
    assert digest.to_int64(int(text, 16)) == value


@given(st.binary())
def test_digests_fit_int64(data: bytes) -> None:
    assert digest.INT64_MIN <= digest.of_bytes(data) <= digest.INT64_MAX


BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "layout",
    [
        BASE.clone(),
        BASE.t().contiguous().t(),
        torch.cat([BASE, BASE], 1)[:, :6],
        torch.stack([BASE, -BASE], 2)[..., 0],
        BASE.clone().requires_grad_(),
        torch.nn.Parameter(BASE),
        torch.complex(BASE, -BASE).conj().imag,
        torch._neg_view(-BASE),
    ],
    ids=["contiguous", "transposed", "sliced", "strided", "requires_grad", "parameter", "imaginary", "negative"],
)
def test_layout_does_not_count(layout: torch.Tensor) -> None:
    assert digest.of_tensor(layout) == digest.of_tensor(BASE)
    assert bytes(digest.host_bytes(layout)) == BASE.numpy().tobytes()


def test_strides_of_axes_of_length_one_or_none_do_not_count() -> None:
    row = torch.arange(10, dtype=torch.float32)
    assert digest.of_tensor(row[::5][:1]) == digest.of_tensor(row[:1].clone())
    assert digest.of_tensor(row[::5][:0]) == digest.of_tensor(torch.empty(0))


def test_conjugate_views_are_resolved() -> None:
    value = torch.complex(BASE, BASE + 1)
    assert digest.of_tensor(value.conj()) == digest.of_tensor(value.conj_physical())
    assert digest.of_tensor(value.conj()) != digest.of_tensor(value)


def test_dtype_shape_and_bytes_count() -> None:
    zeros = torch.zeros(4, 6, dtype=torch.float32)
    others = [zeros.view(torch.int32), zeros.reshape(6, 4), zeros.reshape(24), zeros.reshape(4, 6, 1)]
    empty = [torch.empty(0), torch.empty(0, 3), torch.empty(3, 0), torch.empty(0, dtype=torch.int32)]
    found = [digest.of_tensor(tensor) for tensor in (zeros, *others, *empty)]
    assert len(set(found)) == len(found)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_any_flipped_bit_shows(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    before, after = (torch.frombuffer(bytearray(raw), dtype=torch.uint8) for raw in (data, flipped))
    assert digest.of_tensor(before) != digest.of_tensor(after)
    assert digest.of_bytes(data) != digest.of_bytes(flipped)


def test_a_contiguous_cpu_tensor_is_read_in_place() -> None:
    tensor = torch.zeros(8, dtype=torch.int64)
    view = digest.host_bytes(tensor)
    tensor[0] = 255
    assert view[0] == 255
    assert view.nbytes == 64


def test_content_and_tensor_digest_agree() -> None:
    raw = BASE.numpy().tobytes()
    assert digest.of_content("float32", (4, 6), raw) == digest.of_tensor(BASE)
    assert digest.of_content("float32", [4, 6], bytearray(raw)) == digest.of_tensor(BASE)


def test_dtype_names_are_torch_s_own() -> None:
    assert digest.dtype_name(torch.bfloat16) == "bfloat16"
    assert digest.dtype_name(torch.half) == "float16"


ITEMS = st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), max_size=4)


def of_sequence(items: list[tuple[str, int]]) -> int:
    sequence = digest.SEQUENCE_START
    for item in items:
        sequence = digest.chain(sequence, *item)
    return sequence


@given(ITEMS, ITEMS)
def test_the_sequence_hash_tells_sequences_apart(one: list[tuple[str, int]], other: list[tuple[str, int]]) -> None:
    assert (of_sequence(one) == of_sequence(other)) == (one == other)


def test_items_of_a_sequence_do_not_run_together() -> None:
    assert digest.chain(0, "ab", "c") != digest.chain(0, "a", "bc")
    assert digest.chain(0, "ab") != digest.chain(digest.chain(0, "a"), "b")
    assert digest.chain(0, "a", None) != digest.chain(0, "a")


# ── policy ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_cadence_goes_by_the_chunk_index_and_begins_with_the_first() -> None:
    assert [n for n in range(1, 12) if Policy(every=5).due(n)] == [1, 6, 11]
    assert all(Policy().due(n) for n in range(1, 100))


@given(st.integers(1, 20_000), st.integers(1, 30_000), st.integers(1, 4))
def test_a_sample_has_its_size_and_covers_every_byte_in_turn(size: int, budget: int, every: int) -> None:
    policy = Policy(every=every, sample=budget)
    turns = 1 + size // min(budget, size) + size // digest.BLOCK
    covered: set[int] = set()
    for turn in range(turns):
        found = digest._sampled(torch.arange(size), policy.sample, turn)
        assert found.numel() <= max(budget, digest.BLOCK) or found.numel() == size
        covered.update(found.tolist())
    assert covered == set(range(size))


def test_a_whole_digest_is_that_of_the_tensor_and_a_sample_is_not() -> None:
    tensor = torch.arange(5000, dtype=torch.int64)
    assert Policy().of(tensor, 3) == digest.of_tensor(tensor)
    assert Policy(sample=10**6).of(tensor, 3) == digest.of_tensor(tensor)
    sampled = Policy(sample=2048)
    assert sampled.of(tensor, 3) == sampled.of(tensor.clone(), 3) != digest.of_tensor(tensor)
    assert sampled.of(tensor, 3) != sampled.of(tensor, 4), "another part in each chunk"


@pytest.mark.parametrize("policy", [Policy(), Policy(sample=512), Policy(every=2)], ids=str)
def test_a_copy_has_the_digest_of_what_was_copied(policy: Policy) -> None:
    for source in (BASE, BASE.t().contiguous().t(), BASE.double(), torch.view_as_complex(BASE.reshape(-1, 2)).conj()):
        into = torch.empty(source.shape, dtype=torch.float32 if not source.is_complex() else source.dtype)
        plain = into.view(-1).view(torch.uint8)
        for chunk in (1, 2):
            found = policy.copy(source, into, plain, chunk)
            assert torch.equal(into, source.to(into.dtype))
            assert found == (policy.of(into, chunk) if policy.due(chunk) else 0)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="`every` = 0; use 1 or more"):
        Policy(every=0)
    with pytest.raises(UsageError, match="`sample` = -1; use 0 or more"):
        Policy(sample=-1)
