"""Digests of what must be equal on every rank: tensors, bytes, and the sequence of collectives of a chunk.

All are xxh3_64, as an int64 in two's complement, so that one fits a header field or an ack as it is. They
find accidents and drift. They are no defence against someone who forges a message, and sampling (some bytes
only, every N chunks) is left to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
import xxhash

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

SEQUENCE_START = 0
"""The sequence hash before the first collective of a chunk."""

_encode = msgspec.msgpack.Encoder().encode


def to_int64(unsigned: int) -> int:
    """The int64 with the bits of `unsigned`, a number in [0, 2**64)."""
    return unsigned - 2**64 if unsigned > INT64_MAX else unsigned


def to_uint64(signed: int) -> int:
    """The number in [0, 2**64) with the bits of the int64 `signed`."""
    return signed + 2**64 if signed < 0 else signed


def to_hex(digest: int) -> str:
    """An int64 digest as 16 lower-case hexadecimal characters, always 16."""
    return f"{to_uint64(digest):016x}"


def of_bytes(data: bytes | bytearray | memoryview) -> int:
    """The digest of plain bytes (contiguous; a memoryview is read in place)."""
    return to_int64(xxhash.xxh3_64_intdigest(data))


def of_content(dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> int:
    """The digest of a tensor given as dtype name, shape and its contiguous bytes: all three count."""
    state = xxhash.xxh3_64(_encode((dtype, tuple(shape))))
    state.update(data)
    return to_int64(state.intdigest())


def of_tensor(tensor: torch.Tensor) -> int:
    """The digest of a dense tensor of any device and layout; equal content has an equal digest."""
    return of_content(dtype_name(tensor.dtype), tensor.shape, host_bytes(tensor))


def chain(sequence: int, *item: str | int | bool | None) -> int:
    """The sequence hash after one more item: order, number and content of all items count.

    `item` is what must agree of one collective, e.g. group, operation, dtype, number of elements.
    """
    return of_bytes(_encode((sequence, *item)))


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`: the name that travels and that messages print."""
    return str(dtype).removeprefix("torch.")


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """The contiguous bytes of a dense tensor; those of a contiguous CPU tensor are not copied."""
    plain = tensor.resolve_conj().resolve_neg().contiguous().cpu()
    # Of an axis of length one or none, a contiguous tensor may have any stride: no byte view exists then.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().data
