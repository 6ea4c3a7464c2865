"""Shares memory among all ranks of a job, where all are on one host: a large broadcast goes through it.

gloo takes bytes from one process to another of the same host through sockets, which copies them twice for each peer,
in the kernel. Here the root copies them once, and broadcasts a token that says that they are there; each of the others
copies them out. The token travels as the bytes would have: whoever waits for it waits in the same collective.

The memory has no name in any file system, and is gone when the last process that has it is. Ranks agree on it while
they find each other, by the store that they do it with: the schedule has no collective for it. Left out: when the root
may write again. In the protocol it has heard by then from every rank that it is done with the last payload; a rank that
is not raises (`take`).
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from typing import Protocol

import torch
import torch.distributed as dist

from ...errors import Code, ContractViolation, GenlockError
from ..chunk.schema import MAX_PAYLOAD_BYTES

LARGE = 256 * 1024
"""The memory is used from so many bytes on: below that, sockets are as fast."""
_AHEAD = mmap.PAGESIZE
"""So many bytes come before those of a broadcast: its number, or at first a secret by which the memory is known."""
_NUMBER, _TOKEN, _OFFER = struct.Struct("<q"), struct.Struct("<qq"), struct.Struct("<qqqq")
TOKEN = _TOKEN.size
"""Size of a token in bytes: the broadcast's number and its size."""


class Store(Protocol):
    """Declares the key-value store by which the ranks of a job find each other, as torch has it."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...


class SharedMemory:
    """Holds the memory, as one rank has it."""

    def __init__(self, file: int, memory: mmap.mmap) -> None:
        self._file, self._memory = file, memory
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._number, self._reserved = 0, 0

    @classmethod
    def of(cls, group: dist.ProcessGroup, store: Store) -> SharedMemory | None:
        """Make it, on all ranks of `group` at once; None on all of them where one cannot have it.

        They agree by the store by which they have found each other: no collective is issued. Raises what it raises.
        """
        rank, world = group.rank(), group.size()
        base = f"genlock/memory/{group.group_name}"
        key = f"{base}/{store.add(f'{base}/{rank}', 1)}"  # a group may have several, each rank makes them in one order
        own = _make() if rank == 0 else None
        if rank == 0:
            store.set(f"{key}/place", _OFFER.pack(*_offer(own)).hex())
        else:
            there, *place = _OFFER.unpack(bytes.fromhex(store.get(f"{key}/place").decode()))
            own = _open(*place) if there else None
        store.add(f"{key}/have", int(own is not None))
        if store.add(f"{key}/said", 1) == world:
            store.set(f"{key}/all", str(store.add(f"{key}/have", 0) == world))
        if store.get(f"{key}/all") == b"True" and own is not None:
            return cls(*own)
        if own is not None:
            own[1].close()
            os.close(own[0])
        return None

    def close(self) -> None:
        """Let go of it: the last rank's is the end of it."""
        os.close(self._file)
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._memory.close()

    def fits(self, tensor: torch.Tensor) -> bool:
        """Return True where a broadcast of this tensor goes by the memory: by its size, so that all ranks agree."""
        return tensor.is_cpu and LARGE <= tensor.nbytes <= MAX_PAYLOAD_BYTES

    def reserve(self, size: int) -> None:
        """Set memory of the host aside for a broadcast of `size` bytes: `put` of no more cannot fail after that.

        Raises GenlockError where the host has none left.
        """
        if size > self._reserved:
            try:
                os.posix_fallocate(self._file, 0, _AHEAD + size)
            except OSError as error:
                text = f"no memory for a payload of {size} bytes: {error.strerror}"
                raise GenlockError(text, where="rank0", do="send less, or give the host more") from None
            self._reserved = size

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put the root's part into the memory before the broadcast; return the token.

        What was not reserved is reserved here.
        """
        size = tensor.nbytes
        self.reserve(size)
        self._number += 1
        _NUMBER.pack_into(self._memory, 0, self._number)
        self._bytes[_AHEAD : _AHEAD + size].copy_(_plain(tensor))
        return torch.frombuffer(bytearray(_TOKEN.pack(self._number, size)), dtype=torch.uint8)

    def take(self, token: torch.Tensor, into: torch.Tensor, where: str) -> None:
        """Do the others' part after it. Raises ContractViolation where the root sent another size, or did not wait."""
        number, size = _TOKEN.unpack(bytes(token.tolist()))
        if size != into.nbytes:
            text = f"{size} bytes instead of {into.nbytes}"
            raise ContractViolation(text, where=where, code=Code.MESSAGE, field="payload")
        _plain(into).copy_(self._bytes[_AHEAD : _AHEAD + size])
        (now,) = _NUMBER.unpack_from(self._memory)
        if now != number:
            text = f"broadcast {now} was written before this rank had taken broadcast {number}: the root did not wait"
            raise ContractViolation(text, where=where, code=Code.MESSAGE, field="payload")


def _offer(own: tuple[int, mmap.mmap] | None) -> tuple[int, int, int, int]:
    """Return 1 where rank0 has the memory, its process and descriptor there, and a secret that stands in it."""
    if own is None:
        return 0, 0, 0, 0
    secret = secrets.randbits(62)
    _NUMBER.pack_into(own[1], 0, secret)
    return 1, os.getpid(), own[0], secret


def _make() -> tuple[int, mmap.mmap] | None:
    try:
        file = os.memfd_create("genlock", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # no Linux, or none that allows it
        return None
    try:
        os.ftruncate(file, _AHEAD + MAX_PAYLOAD_BYTES)
        os.posix_fallocate(file, 0, _AHEAD)
        return file, mmap.mmap(file, _AHEAD + MAX_PAYLOAD_BYTES)
    except OSError:
        os.close(file)
        return None


def _open(pid: int, number: int, secret: int) -> tuple[int, mmap.mmap] | None:
    """Open the memory of rank0; None where that is not to be had, as on another host or in another container."""
    try:
        file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        memory = mmap.mmap(file, _AHEAD + MAX_PAYLOAD_BYTES)
        if _NUMBER.unpack_from(memory)[0] == secret:
            return file, memory
        memory.close()
    except (OSError, ValueError):  # some other file
        pass
    os.close(file)
    return None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
