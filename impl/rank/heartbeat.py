"""Tells a guardian where its rank is: a page in shared memory, written on progress. No torch.

    beat = Beat.open()                 # without a guardian it writes to nobody
    beat.phase("steady")
    with beat.waiting():               # inside: the clock of whoever is not here yet runs, not ours
        dist.all_reduce(tensor)
    beat.progress()

Write from where the work is done, never from a thread of its own: a beat says that the work goes on. Left out:
what the guardian makes of it (docs/guardian.md).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import mmap
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from ...guardian.status_page import (
    ASKED,
    DUMPS_STACKS,
    EVERYONE,
    HAS_FAILED,
    HAS_LEFT,
    HAS_LOST,
    HAS_SPOKEN,
    HAS_WORDS,
    NOBODY,
    SIZE,
    SOMEONE,
    SPARED,
    STACKS,
    VARIABLE,
    Page,
)


class Beat:
    """Holds the page of this process. Any thread may write."""

    taken = False
    """True once the program has opened the page of this process itself."""

    def __init__(self, memory: memoryview, flags: int = 0, *, guarded: bool = False, phase: str = "startup") -> None:
        self.guarded = guarded
        """True where somebody reads it."""
        self._memory, self._lock = memory, threading.Lock()
        self._awaited: Counter[int] = Counter()
        """Counts its operations by whom they wait for."""
        self._page = Page()
        self._page.pid, self._page.flags = os.getpid(), flags
        self.phase(phase)

    @classmethod
    def open(cls) -> Beat:
        """Return the page that the guardian of this process has made, if there is one; stacks go there on SIGUSR2."""
        Beat.taken = True
        return cls.open_for("startup")

    @classmethod
    def open_for(cls, phase: str, environ: Mapping[str, str] = os.environ) -> Beat:
        """Return the page, for a program that does not know of it; no stacks if that handles SIGUSR2 itself.

        `environ` names it, and what else the guardian has made.
        """
        path = environ.get(VARIABLE)
        if path is None:
            return cls(memoryview(bytearray(SIZE)))
        with open(path, "r+b", buffering=0) as file:
            memory = memoryview(mmap.mmap(file.fileno(), SIZE))
        if not Beat.taken and signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return cls(memory, guarded=True, phase=phase)
        # unbuffered, and open for good: faulthandler writes to the descriptor
        stacks = os.open(environ[STACKS], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if threading.current_thread() is threading.main_thread():
            # in force again once Python, on its way out, has let go of faulthandler: else stacks asked for then kill it
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=environ.get(SPARED) != "1")
        return cls(memory, DUMPS_STACKS, guarded=True, phase=phase)

    def last_words(self, speak: Callable[[], object]) -> None:
        """Have `speak` called when the guardian is about to end this process, to keep what only this process can.

        It runs in a thread of its own, and has half a second at most; nobody who is stopped or holds the GIL is heard.
        Once for a process.
        """
        path = os.environ.get(ASKED)
        if path is None or not self.guarded:
            return
        asked = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        threading.Thread(target=self._await_asked, args=(asked, speak), name="genlock-words", daemon=True).start()
        self._flag(HAS_WORDS)

    def _await_asked(self, asked: int, speak: Callable[[], object]) -> None:
        while os.read(asked, 1):
            with contextlib.suppress(Exception):
                speak()
            self._flag(HAS_SPOKEN)

    def _flag(self, flag: int) -> None:
        with self._lock:
            self._page.flags |= flag
            self._page.write(self._memory)

    def left(self) -> None:
        """Say that this process is no rank any more, whatever becomes of it."""
        self._flag(HAS_LEFT)

    def failed(self, why: str, *, lost: bool = False) -> None:
        """Say that this process comes to its end, and by what; only 64 bytes of that are kept. `lost`: the backend has
        lost a peer, and that is why.
        """
        with self._lock:
            self._page.commit = why
            self._page.flags |= HAS_FAILED | (HAS_LOST if lost else 0)
            self._page.write(self._memory)

    def phase(self, name: str, *, deadline: float = 0.0) -> None:
        """Begin work of this kind. `deadline` in seconds overrides that of the phase; at most 16 bytes of name."""
        with self._lock:
            self._page.phase, self._page.deadline = name, deadline
            self._write()

    def move(self, phase: str, commit: str, deadline: float = 0.0) -> None:
        """Write `phase`, `commit` and `progress` at once."""
        with self._lock:
            self._page.phase, self._page.commit, self._page.deadline = phase, commit, deadline
            self._write()

    def progress(self) -> None:
        """Say that something is done that had not been done before."""
        with self._lock:
            self._write()

    def commit(self, what: str) -> None:
        """Pass a commitment point: from now on peers wait for more from us. At most 64 bytes."""
        with self._lock:
            self._page.commit = what
            self._write()

    def enter(self, rank: int = EVERYONE) -> None:
        """Issue a collective (or begin to wait for one `rank`): this rank's clock is suspended."""
        with self._lock:
            self._page.position += rank == EVERYONE
            self._page.waiting = rank
            self._write()

    def leave(self) -> None:
        """Say that it has completed."""
        with self._lock:
            self._page.waiting = NOBODY
            self._write()

    @contextlib.contextmanager
    def waiting(self, rank: int = EVERYONE) -> Iterator[None]:
        """Call `enter`, and `leave` at the end. Every rank must come here for the same collectives, in one order."""
        self.enter(rank)
        try:
            yield
        finally:
            self.leave()

    def issue(self, operation: object) -> Callable[[object], None]:
        """Watch for the interceptor: the clock is suspended until all collectives of this process have completed."""
        return self.await_also(EVERYONE, counts=True)

    def await_also(self, whom: int, *, counts: bool) -> Callable[[object], None]:
        """Begin to wait for `whom`, perhaps beside others; return what ends it. `counts`: every rank will come here."""
        with self._lock:
            self._awaited[whom] += 1
            self._page.position += counts
            self._wait()
        return functools.partial(self._complete, whom)

    def await_for_good(self, *, counts: bool) -> None:
        """Wait for somebody, and nobody can say until when."""
        with self._lock:
            self._awaited[SOMEONE] = 1
            self._page.position += counts
            self._wait()

    def _complete(self, whom: int, outcome: object) -> None:
        with self._lock:
            self._awaited[whom] -= 1
            self._wait()

    def _wait(self) -> None:
        awaited = [whom for whom, number in self._awaited.items() if number]
        self._page.waiting = NOBODY if not awaited else awaited[0] if len(awaited) == 1 else SOMEONE
        self._write()

    def _write(self) -> None:
        self._page.counter += 1
        self._page.write(self._memory)
