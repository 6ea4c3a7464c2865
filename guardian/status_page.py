"""Defines the page: a record in shared memory that a rank writes and its guardian reads.

It says where the rank is, how far it has come, and which rank it waits for. Neither side blocks. The page has two
slots, which are written in turn, each with a checksum. So whatever catches the rank in the middle of a write, its
last record is still whole in the other slot, and a write that never ends is seen. Left out: what follows from it
(`deadlines`).
"""

from __future__ import annotations

import binascii
import struct

VARIABLE = "GENLOCK_PAGE"
"""Names the page of a rank in its environment."""
STACKS = "GENLOCK_STACKS"
"""Names the file to which the rank writes its stacks on SIGUSR2."""
SPARED = "GENLOCK_SPARED"
"""`1` where the rank is to live on. Only its main thread then writes its stack: walking the stacks of running threads
may end the process.
"""
ASKED = "GENLOCK_ASKED"
"""Names a pipe: a byte in it asks the rank for its last words, what only the rank itself can save."""

NOBODY, EVERYONE, SOMEONE = -1, -2, -3
"""Values of `waiting`: the rank does work of its own; it waits for all that have not issued the collective yet; it
waits, and for whom is not known.
"""
DUMPS_STACKS, HAS_WORDS, HAS_SPOKEN, HAS_LEFT, HAS_FAILED, HAS_LOST = 1, 2, 4, 8, 16, 32
"""Bits of `flags`: SIGUSR2 writes the rank's stacks; it has last words to save; it has saved them; it has left its job,
though the process may live on; it comes to its end, by what `commit` says; and that as its backend has lost a peer.
"""

MAGIC = b"GLKPAGE2"
RECORD = struct.Struct("<8sQQQIiId16s64s")
CHECK = struct.Struct("<I")
SLOT = 256
"""Bytes from the first slot to the second."""
EDITIONS = struct.Struct(f"<8xQ{SLOT - 8}xQ")
"""The editions of both slots."""
SIZE = 4096


class Page:
    """Holds what a rank says of itself.

    `counter` grows with all progress, `position` with each collective that is issued (0: not counted). `waiting` is a
    rank, NOBODY, EVERYONE or SOMEONE. `deadline` in seconds overrides that of the phase; 0: it does not. `commit` is
    the last commitment point, in words. `edition` counts the writes; 0: no record is whole. `torn`: a write has begun
    that has not ended.
    """

    __slots__ = ("commit", "counter", "deadline", "edition", "flags", "phase", "pid", "position", "torn", "waiting")

    def __init__(self) -> None:
        self.edition = self.pid = self.counter = self.position = self.flags = 0
        self.waiting = NOBODY
        self.deadline = 0.0
        self.phase = self.commit = ""
        self.torn = False

    def write(self, memory: memoryview) -> None:
        """Put the record into the older slot. The next edition follows from the page, which others may have written."""
        edition = (max(EDITIONS.unpack_from(memory)) + 1) & (1 << 64) - 1
        raw = RECORD.pack(
            MAGIC,
            edition,
            self.counter,
            self.position,
            self.pid,
            self.waiting,
            self.flags,
            self.deadline,
            self.phase.encode(errors="replace")[:16],
            self.commit.encode(errors="replace")[:64],
        )
        begin = edition % 2 * SLOT
        memory[begin : begin + RECORD.size + CHECK.size] = raw + CHECK.pack(binascii.crc32(raw))

    @classmethod
    def read(cls, memory: memoryview) -> Page | None:
        """Return the newest record that is whole; None where nothing was ever written.

        Where something was written and no record is whole, return an empty one of edition 0 that is torn.
        """
        raw = bytes(memory[: 2 * SLOT])
        if not any(raw):
            return None
        found = cls()
        for slot in (raw[:SLOT], raw[SLOT:]):
            one = cls._of(slot) if any(slot) else found
            if one is None:
                found.torn = True
            elif one.edition > found.edition:
                one.torn, found = found.torn, one
        return found

    @classmethod
    def _of(cls, slot: bytes) -> Page | None:
        """Return the record of a slot; None where it is not whole, or makes no sense."""
        raw = slot[: RECORD.size]
        if CHECK.unpack_from(slot, RECORD.size)[0] != binascii.crc32(raw):
            return None
        page = cls()
        magic, page.edition, page.counter, page.position, page.pid, page.waiting, page.flags, page.deadline, *texts = (
            RECORD.unpack(raw)
        )
        if magic != MAGIC or page.waiting < SOMEONE or not 0 <= page.deadline < 1e9:
            return None
        page.phase, page.commit = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
        return page
