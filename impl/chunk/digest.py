"""Digests what must be equal on every rank: tensors, bytes, and the sequence of collectives of a chunk.

All are xxh3_64, as an int64 in two's complement, so that one fits a header field or an ack as it is. They
find accidents and drift. They are no defence against someone who forges a message. `Policy` says which chunks
are digested, and how much of them; every rank has the same one (start-up parity sees to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
import torch
import xxhash

from ...errors import UsageError

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

SEQUENCE_START = 0
"""Is the sequence hash before the first collective of a chunk."""

_encode = msgspec.msgpack.Encoder().encode


BLOCK = 1024
"""Size in bytes of one piece of a sample."""
PIECE = 256 * 1024
"""So many bytes are copied and digested at a time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Says how often, and how thoroughly, the tensors of a chunk are digested. The default is that of bring-up: all.

    It depends on nothing but the ids of the header, so that no rank decides on its own. It goes by the chunk
    index and not by the call id: heartbeats use up call ids, and every N-th of those may never be a chunk.
    """

    every: int = 1
    """Inputs and output are digested in chunks 1, 1 + every, 1 + 2 * every …"""
    sample: int = 0
    """So many bytes of each tensor are digested, in blocks that move from chunk to chunk; 0 for all of them."""
    output: bool = True
    """True where the generator's output is digested for the ack."""

    def __post_init__(self) -> None:
        for name, value, least in (("every", self.every, 1), ("sample", self.sample, 0)):
            if value < least:
                raise UsageError(f"`{name}` = {value}", where="digest policy", do=f"use {least} or more")

    def due(self, chunk_index: int) -> bool:
        """Return True where this chunk's tensors are digested."""
        return (chunk_index - 1) % self.every == 0

    def of(self, tensor: torch.Tensor, chunk_index: int) -> int:
        """Return the digest of a dense tensor, as far as it is looked at in a chunk that is due."""
        return self.of_plain(dtype_name(tensor.dtype), tensor.shape, _plain(tensor), chunk_index)

    def of_plain(self, dtype: str, shape: Sequence[int], plain: torch.Tensor | memoryview, chunk_index: int) -> int:
        """Return `of` for a tensor that is given as dtype name, shape and its contiguous bytes, uint8[n] on any device.

        Of bytes that lie on the host already (a memoryview) all are digested.
        """
        if isinstance(plain, memoryview):
            return of_content(dtype, shape, plain)
        sampled = _sampled(plain, self.sample, (chunk_index - 1) // self.every)
        return of_content(dtype, shape, sampled.cpu().numpy().data)

    def copy(self, source: torch.Tensor, into: torch.Tensor, plain: torch.Tensor, chunk_index: int) -> int:
        """Copy a dense tensor into one of the same shape, whatever device, dtype and layout; the digest of that one.

        `plain` is the bytes of `into`, uint8[n]. 0 in a chunk that is not due.
        """
        source = source.detach()
        wholly = self.due(chunk_index) and not self.sample
        dtype, shape = dtype_name(into.dtype), tuple(into.shape)
        if wholly and source.dtype == into.dtype and source.device.type == into.device.type == "cpu":
            return _copied(dtype, shape, _plain(source), plain)
        into.copy_(source)
        return self.of_plain(dtype, shape, plain, chunk_index) if self.due(chunk_index) else 0

    @property
    def facts(self) -> dict[str, str]:
        """Return what all ranks must have alike."""
        return {
            "digest_every": str(self.every),
            "digest_sample": str(self.sample),
            "digest_output": "on" if self.output else "off",
        }


def _copied(dtype: str, shape: Sequence[int], source: torch.Tensor, into: torch.Tensor) -> int:
    """Copy bytes in pieces that stay in the cache until they are digested: half the way to memory is saved."""
    raw, copy = source.numpy(), into.numpy()
    state = xxhash.xxh3_64(_encode((dtype, tuple(shape))))
    for at in range(0, len(raw), PIECE):
        copy[at : at + PIECE] = raw[at : at + PIECE]
        state.update(copy[at : at + PIECE].data)
    return to_int64(state.intdigest())


def _sampled(plain: torch.Tensor, budget: int, turn: int) -> torch.Tensor:
    """Return evenly spread blocks of uint8[n], some `budget` bytes in all; consecutive turns cover every byte."""
    size = plain.numel()
    if not 0 < budget < size:
        return plain
    count = max(budget // BLOCK, 1)
    stride = -(-size // count)
    shift = turn % max(-(-stride // BLOCK), 1) * BLOCK
    starts = [max(min(at + shift, size - BLOCK), 0) for at in range(0, size, stride)]
    return torch.cat([plain[at : at + BLOCK] for at in starts])


def to_int64(unsigned: int) -> int:
    """Return the int64 with the bits of `unsigned`, a number in [0, 2**64)."""
    return unsigned - 2**64 if unsigned > INT64_MAX else unsigned


def to_uint64(signed: int) -> int:
    """Return the number in [0, 2**64) with the bits of the int64 `signed`."""
    return signed + 2**64 if signed < 0 else signed


def to_hex(digest: int) -> str:
    """Return an int64 digest as 16 lower-case hexadecimal characters, always 16."""
    return f"{to_uint64(digest):016x}"


def of_bytes(data: bytes | bytearray | memoryview) -> int:
    """Return the digest of plain bytes (contiguous; a memoryview is read in place)."""
    return to_int64(xxhash.xxh3_64_intdigest(data))


def of_content(dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> int:
    """Return the digest of a tensor given as dtype name, shape and its contiguous bytes: all three count."""
    state = xxhash.xxh3_64(_encode((dtype, tuple(shape))))
    state.update(data)
    return to_int64(state.intdigest())


def of_tensor(tensor: torch.Tensor) -> int:
    """Return the digest of a dense tensor of any device and layout; equal content has an equal digest."""
    return of_content(dtype_name(tensor.dtype), tensor.shape, host_bytes(tensor))


def chain(sequence: int, *item: str | int | bool | None) -> int:
    """Return the sequence hash after one more item: order, number and content of all items count.

    `item` is what must agree of one collective, e.g. group, operation, dtype, number of elements.
    """
    return of_bytes(_encode((sequence, *item)))


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return `bfloat16` for `torch.bfloat16`: the name that travels and that messages print."""
    return str(dtype).removeprefix("torch.")


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the contiguous bytes of a dense tensor; those of a contiguous CPU tensor are not copied."""
    return _plain(tensor).cpu().numpy().data


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the contiguous bytes of a dense tensor as uint8[n], on its device."""
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    plain = plain.contiguous()
    # Of an axis of length one or none, a contiguous tensor may have any stride: no byte view exists then.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
