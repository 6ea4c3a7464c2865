"""Defines the page: a record in shared memory that a rank writes and its guardian reads.

It says where the rank is, how far it has come, and which rank it waits for. Neither side blocks: `edition` is odd while
the rank writes, and a guardian that reads then keeps its last copy. Left out: what follows from it (`deadlines`).
"""

from __future__ import annotations

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

NOBODY, EVERYONE = -1, -2
"""Values of `waiting`: the rank does work of its own, or it waits for all that have not issued the collective yet."""
DUMPS_STACKS, HAS_WORDS, HAS_SPOKEN = 1, 2, 4
"""Bits of `flags`: SIGUSR2 writes the rank's stacks; it has last words to save; it has saved them."""

MAGIC = b"GLKPAGE1"
EDITION = struct.Struct("<I")
RECORD = struct.Struct("<8sIIQQiId16s64s")
SIZE = 4096


class Page:
    """Holds what a rank says of itself.

    `counter` grows with all progress, `position` with each collective that is issued (0: not counted). `waiting` is a
    rank, NOBODY or EVERYONE. `deadline` in seconds overrides that of the phase; 0: it does not. `commit` is the
    last commitment point, in words.
    """

    __slots__ = ("commit", "counter", "deadline", "flags", "phase", "pid", "position", "waiting")

    def __init__(self) -> None:
        self.pid = self.counter = self.position = self.flags = 0
        self.waiting = NOBODY
        self.deadline = 0.0
        self.phase = self.commit = ""

    def write(self, memory: memoryview, edition: int) -> int:
        """Put the record into the page, and return the next edition."""
        EDITION.pack_into(memory, len(MAGIC), edition + 1)
        RECORD.pack_into(
            memory,
            0,
            MAGIC,
            edition + 1,
            self.pid,
            self.counter,
            self.position,
            self.waiting,
            self.flags,
            self.deadline,
            self.phase.encode()[:16],
            self.commit.encode()[:64],
        )
        EDITION.pack_into(memory, len(MAGIC), edition + 2)
        return edition + 2

    @classmethod
    def read(cls, memory: memoryview) -> Page | None:
        """Return the record; None where there is none yet, it is being written, or it makes no sense."""
        raw = bytes(memory[: RECORD.size])
        magic, edition, pid, counter, position, waiting, flags, deadline, phase, commit = RECORD.unpack(raw)
        again = EDITION.unpack_from(memory, len(MAGIC))[0]
        if magic != MAGIC or edition % 2 or again != edition or waiting < EVERYONE or not 0 <= deadline < 1e9:
            return None
        page = cls()
        page.pid, page.counter, page.position, page.waiting, page.flags = pid, counter, position, waiting, flags
        page.deadline = deadline
        page.phase, page.commit = (text.rstrip(b"\0").decode(errors="replace") for text in (phase, commit))
        return page
