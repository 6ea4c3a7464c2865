"""Reads files in several processes, where there is much to read. Left out: what is read."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def in_processes(read: Callable[[Sequence[Path]], T], files: Sequence[Path]) -> Iterator[T]:
    """Read in this process or, where there is much to read, in several."""
    workers = os.cpu_count() or 1
    if workers == 1 or sum(file.stat().st_size for file in files) < MUCH:
        yield read(files)
        return
    from concurrent.futures import ProcessPoolExecutor

    chunks = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]
    with ProcessPoolExecutor(min(workers, MAX_WORKERS), initializer=_begin) as pool:
        yield from pool.map(read, chunks)


def _begin() -> None:
    gc.disable()  # what is read makes no cycles, and looking for them costs
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of Ctrl-C, it is this process's parent that tells


MUCH = 48 << 20
"""Starting processes pays from so many bytes on."""
CHUNK = 16
MAX_WORKERS = 8
