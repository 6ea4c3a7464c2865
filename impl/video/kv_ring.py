"""Keeps the ring of cached keys and values that a causal generator attends to, and its frame clock.

All indices are in latent frames and follow from one number, the start frame that the envelope carries: they
are stored, advanced as frames are written, and held against that number whenever a chunk opens. Left out:
tokens, heads and their sharding (the generator's matter), cross-attention, and deciding when to reset.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import Code, ContractViolation


class CacheScalars(NamedTuple):
    """Holds the numbers that must be equal on all ranks after each chunk (frames; the epoch counts hard cuts)."""

    cache_epoch: int
    start_frame: int
    global_end_index: int
    local_end_index: int


class Place(NamedTuple):
    """Locates an open chunk's keys and values of one block, in tensors that compiled code can be given."""

    kv: Tensor
    """[2, batch, capacity, tokens of a frame, heads, head width], keys first."""
    slots: Tensor
    """int64[frames of the chunk]"""
    resident: int
    """Slots in use, those of the chunk included."""


def store(place: Place, k: Tensor, v: Tensor) -> None:
    """Write the chunk's keys and values, [batch, frames x tokens of a frame, heads, head width]."""
    for whole, part in zip(place.kv.unbind(), (k, v), strict=True):
        whole.index_copy_(1, place.slots, part.view(len(part), len(place.slots), -1, *part.shape[2:]))


def load(place: Place) -> tuple[Tensor, Tensor]:
    """Return keys and values of all resident frames, in slot order.

    Each is [batch, resident frames x tokens of a frame, heads, head width], a view where the batch is 1.
    """
    k, v = place.kv[:, :, : place.resident].flatten(2, 3).unbind()
    return k, v


class RingCache:
    """Keeps keys and values of the last `capacity` frames, of which the first `sink` are never evicted.

    A chunk is opened, written once per block (again at the same place for each further denoise call), then
    advanced over. Frame `f` lies in slot `f - origin` while the ring fills; afterwards the newest frame takes
    the place of the oldest one that is not a sink.

    `start_frame` is where the next chunk begins, or where the open one began; `global_end_index` is one past
    the newest frame written, and `local_end_index` is the number of slots in use: it tells a ring that was emptied
    out of turn from one that was not, wherever the newest frame happens to lie.

    Raises ContractViolation for whatever would let ranks drift: a start frame or an index other than the
    expected one, a reset in mid-chunk, an epoch that does not follow, a geometry that changes without a cut.
    """

    def __init__(self, blocks: int, capacity: int, *, sink: int = 0, device: torch.device | str = "cpu") -> None:
        self.blocks, self.capacity, self.sink, self.device = blocks, capacity, sink, torch.device(device)
        self.cache_epoch = 0
        self.origin = self.start_frame = self.global_end_index = self.local_end_index = 0
        self._open = 0
        self._slots = self._past = torch.empty(0)
        self._kv: Tensor | None = None

    @property
    def scalars(self) -> CacheScalars:
        """Return epoch, start frame and both end indices, for the ack and its digest."""
        return CacheScalars(self.cache_epoch, self.start_frame, self.global_end_index, self.local_end_index)

    @property
    def resident(self) -> list[int]:
        """Return the frames that the ring holds, oldest first, those of an open chunk included."""
        frames = range(self.origin, self.global_end_index)
        recent = self.global_end_index - (self.capacity - self.sink)
        return [f for f in frames if f < self.origin + self.sink or f >= recent]

    @property
    def past(self) -> Tensor:
        """Return bool[resident], in slot order as `load` has it: True where the frame precedes the open chunk."""
        return self._past

    def slot(self, frame: int) -> int:
        """Return the slot of a frame, counted from the first frame since the ring was last emptied."""
        age = frame - self.origin
        return age if age < self.sink else self.sink + (age - self.sink) % (self.capacity - self.sink)

    def open(self, start_frame: int, frames: int) -> None:
        """Begin a chunk of `frames` frames at `start_frame`, or come back to the one that is open."""
        end = start_frame + self._open
        self._expect("start frame", start_frame, self.start_frame, "current_start_frame")
        self._expect("global_end_index", self.global_end_index, end, "global_end_index")
        self._expect("local_end_index", self.local_end_index, self._local_end(end), "local_end_index")
        if self._open:
            self._expect("chunk length", frames, self._open, "latents")
            return
        chunk = range(start_frame, start_frame + frames)
        slots = [self.slot(frame) for frame in chunk]
        if not 0 < len(set(slots)) == frames:
            raise self._violation(
                f"{frames} frames do not fit at once into a ring of {self.capacity}, {self.sink} of them sinks"
            )
        self._open = frames
        self.global_end_index = end = start_frame + frames
        self.local_end_index = self._local_end(end)
        self._slots = torch.tensor(slots, device=self.device)
        self._past = torch.tensor([slot not in slots for slot in range(self.local_end_index)], device=self.device)

    def reserve(self, batch: int, tokens: int, heads: int, head_width: int, dtype: torch.dtype) -> None:
        """Make room for the open chunk: `tokens` of a frame, `heads` of this rank.

        A new geometry takes a cut.
        """
        if not self._open:
            raise self._violation("room was asked for while no chunk was open")
        shape = (2, self.blocks, batch, self.capacity, tokens, heads, head_width)
        if self._kv is None or self._kv.shape != shape or self._kv.dtype != dtype:
            if self._kv is not None and self.start_frame != self.origin:
                raise self._violation(
                    f"the geometry of a frame changed from {tuple(self._kv.shape)} to {shape} without a cut"
                )
            self._kv = torch.zeros(shape, dtype=dtype, device=self.device)

    def place(self, block: int) -> Place:
        """Return where the open chunk's keys and values of one block go, for `store` and `load`."""
        if self._kv is None or not self._open:
            raise self._violation("keys were to be written while no chunk was open")
        return Place(self._kv[:, block], self._slots, len(self._past))

    def advance(self) -> None:
        """Close the open chunk: its frames are past from now on."""
        if not self._open:
            raise self._violation("the cache was advanced while no chunk was open")
        self._rebase(self.origin, self.global_end_index)

    def reset(self) -> None:
        """Forget all frames; the frame clock goes on."""
        self._refuse_if_open("reset")
        self._rebase(self.start_frame, self.start_frame)

    def rewind(self, frames: int) -> None:
        """Forget all frames and turn the clock back by `frames`, so that they can be written anew."""
        self._refuse_if_open("rewound")
        if not 0 < frames <= self.start_frame:
            raise self._violation(f"cannot go back {frames} frames from frame {self.start_frame}")
        self._rebase(self.start_frame - frames, self.start_frame - frames)

    def hard_cut(self, epoch: int) -> None:
        """Forget everything and begin cache epoch `epoch` at frame 0. An epoch follows the last one by 1."""
        self._refuse_if_open("cut")
        self._expect("cache epoch of a hard cut", epoch, self.cache_epoch + 1, "cache_epoch")
        self.cache_epoch = epoch
        self._rebase(0, 0)

    def _rebase(self, origin: int, start_frame: int) -> None:
        self.origin, self._open = origin, 0
        self.start_frame = self.global_end_index = start_frame
        self.local_end_index = self._local_end(start_frame)

    def _local_end(self, end: int) -> int:
        return min(end - self.origin, self.capacity)

    def _refuse_if_open(self, verb: str) -> None:
        if self._open:
            raise self._violation(f"the cache was {verb} in the middle of a chunk", Code.RESET)

    def _expect(self, name: str, value: int, expected: int, field: str) -> None:
        if value != expected:
            raise self._violation(f"{name} is {value}, expected {expected}", Code.CACHE, field)

    def _violation(self, what: str, code: Code = Code.CONTRACT, field: str = "") -> ContractViolation:
        return ContractViolation(
            what,
            code=code,
            field=field,
            where=f"KV cache, epoch {self.cache_epoch}, frame {self.start_frame}",
            do="this rank is out of step: abort the run and compare the envelopes that each rank saw",
        )
