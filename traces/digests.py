"""Sums up operations by digests that ranks can be held against each other with, long after the operations are gone.

A digest is a sum, modulo 2 ** 64, of a number for each operation: a mix of what it is and of its place in the order. So
it is quick, at every place a digest of all operations up to there, and can be gone on with. Two orders that differ have
the same digest once in 2 ** 64: nobody forges a recording of his own job.

Left out: counting (`recorder`, `_fast_recorder.c`), and what follows from an equal digest (`conformance`).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from .collectives import Signature

MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LAST = 8
"""Operations of each group and way that are kept whole before a cut."""
Digests = npt.NDArray[np.uint64]


def tokens(signature: Signature) -> tuple[int, int]:
    """Return two numbers for an operation: of what all members must agree on, and of that and its reduction."""
    wire = (signature.wire, signature.sent if signature.even else -1)
    return _number(wire), _number((*wire, signature.reduce))


def _number(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little")


def mixed(token: int, sequence: int) -> int:
    """Return what an operation adds to a digest (the finish of splitmix64)."""
    x = (token + sequence * GOLDEN) & MASK
    x = ((x ^ (x >> 30)) * FIRST) & MASK
    x = ((x ^ (x >> 27)) * SECOND) & MASK
    return x ^ (x >> 31)


def all_mixed(of: Digests, sequences: npt.NDArray[np.int64]) -> Digests:
    """Return the same of many, from their tokens."""
    x: Digests = of + sequences.astype(np.uint64) * np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    x ^= x >> np.uint64(31)
    return x
