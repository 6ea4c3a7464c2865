"""Defines the values that TP v1.1 sends, and the variables that a role keeps.

Plain data: what is legal stands in `tp_v1_1`.

A running rank uses them with plain integers. The checker starts the same variables with `Cyclic` call ids, which keeps
an endless stream of heartbeats finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import msgspec

from ..tables import changed


class Action(IntEnum):
    """Names what a header asks of a worker."""

    NOOP = 0
    INFER = 1
    SHUTDOWN = 2


class Cyclic(int):
    """Holds a sequence number modulo 4: equal, next, newer by two and older can be told apart, and no more."""

    def __add__(self, other: int) -> Cyclic:
        return Cyclic((int(self) + int(other)) % 4)

    def __gt__(self, other: int) -> bool:
        return (int(self) - int(other)) % 4 in (1, 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes what a chunk will do, as every rank must understand it."""

    steps: int
    recompute: bool
    init_cache: bool
    override: bool
    expected: int
    """`tp_expected_generator_calls`."""


@dataclass(frozen=True, slots=True)
class Header:
    """Holds the header packet, as far as the protocol depends on it."""

    action: Action
    call_id: int
    chunk_index: int
    cache_epoch: int
    control_epoch: int
    plan: Plan | None = None
    payload: int = 0
    """Digest of the payload that follows."""
    intact: bool = True
    """Magic, versions, lengths and digests of the packet are right."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Holds all tensors of a chunk."""

    digest: int
    override: bool
    """`context_frames_override` is a tensor."""
    intact: bool = True
    """Every tensor has the digest that its spec gives."""


@dataclass(frozen=True, slots=True)
class Call:
    """Describes a generator call as a rank believes it to be.

    Nothing of it is on the wire: all-reduces pair blindly.
    """

    chunk_index: int
    number: int
    inputs: int = 0
    """Digest of the inputs that the rank computes with."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Holds what a rank says at the end of a chunk. Ranks in lockstep say the same."""

    call_id: int
    chunk_index: int
    cache_epoch: int
    observed: int
    """`observed_generator_calls`."""
    state: int = 0
    """Digest of the collective sequence, the cache scalars and the generator's output."""


class TPVars(msgspec.Struct, frozen=True):
    """Holds the variables of either role.

    Ids and epochs are 0 before the first commit.
    """

    call_id: int = 0
    chunk_index: int = 0
    cache_epoch: int = 0
    control_epoch: int = 0
    pending_cut: bool = False
    """Rank0: a hard cut was asked for and not yet committed."""
    plan: Plan | None = None
    """Rank0: proposed in preflight, then committed. Worker: as the header says."""
    payload: int = 0
    """Digest of the payload. Rank0: as materialised. Worker: as the header announced it."""
    inputs: int = 0
    """Digest of the inputs that this rank computes with."""
    override: bool = False
    """The slot for the recompute anchor is full."""
    calls: int = 0
    """Generator calls that this rank's own code is going to make."""
    observed: int = 0
    """Generator calls that it has made."""
    state: int = 0
    """Digest of this rank's state at the end of phase B, for the ack."""
    facts: str = "same"
    """Holds what this rank gives for parity; its flags, versions and backends are in it."""
    received: object = None
    """Holds what the last collective delivered, until a check has taken it."""


def start(finite: bool) -> TPVars:
    """Return the variables at start-up."""
    return TPVars(call_id=Cyclic(0)) if finite else TPVars()


def rebase(value: object, by: int) -> object:
    """Return `value` with every call id in it moved on by `by`: only differences of call ids mean anything."""
    if isinstance(value, TPVars):
        return changed(value, call_id=value.call_id + by, received=rebase(value.received, by))
    if isinstance(value, Header | Ack):
        return changed(value, call_id=value.call_id + by)
    if isinstance(value, frozenset):
        return frozenset(rebase(item, by) for item in value)
    return value


def base(v: TPVars) -> int:
    """Return rank0's call id, from which the others are counted."""
    return int(v.call_id)
