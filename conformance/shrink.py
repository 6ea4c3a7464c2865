"""Cuts a divergent run down to the few lines that still show the divergence: a folder that replays to the same.

A witness has of each rank the beginning of its file, byte by byte, or no file at all. Nothing shorter will do: without
its last line, or without one of its files, replay says something else. Left out: other people's recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ..errors import GenlockError
from ..traces.format import SUFFIX, Trace, name_of, read
from .diagnosis import Diagnosis
from .replay import judge, replay

Lengths = Mapping[int, int]
"""Rank to how many lines of it are kept, the header not counted; a rank that is not there has no file."""
MAX_LINES = 20_000
"""From more lines of programs no witness is cut: each attempt reads them anew."""


def witness(
    traces: Sequence[Trace], found: Diagnosis, again: Callable[[Sequence[Trace]], Diagnosis] = judge
) -> list[Trace]:
    """Return the shortest beginnings of the traces that diverge as `found` does; empty where it does not diverge.

    `again` says what is to be said of some beginnings.
    """
    by_rank = {t.rank: t for t in traces}

    def shows(lengths: Lengths) -> bool:
        kept = _kept(by_rank, lengths)
        try:
            return bool(kept) and _essence(again(kept)) == _essence(found)
        except GenlockError:  # so little is no recording any more
            return False

    lengths = {rank: len(t.lines) for rank, t in by_rank.items()}
    if found.divergence is None or not shows(lengths):
        return []
    lengths = _without_ranks(lengths, found, shows)
    for rank in sorted(lengths):
        lengths[rank] = _shortest(lengths, rank, shows)
    # a file that was needed at full length may not be any more
    lengths = _without_ranks(lengths, found, shows)
    return _kept(by_rank, lengths)


def witness_of_program(paths: Sequence[Path], found: Diagnosis) -> list[Trace]:
    """Return the same of Genlock's own traces of a program without a protocol; empty where lines are too many."""
    traces = [read(path) for path in paths]
    if sum(len(t.lines) for t in traces) > MAX_LINES:
        return []
    with TemporaryDirectory() as scratch:

        def again(kept: Sequence[Trace]) -> Diagnosis:
            write(kept, Path(scratch))
            return replay([Path(scratch)]).diagnosis

        return witness(traces, found, again)


def write(traces: Sequence[Trace], folder: Path) -> None:
    """Write the traces of a witness, as the bytes of the files that they were cut from, in place of an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"*{SUFFIX}"):
        old.unlink()
    for trace in traces:
        last = trace.numbers[-1] if trace.numbers else 1
        with trace.path.open("rb") as file:
            (folder / name_of(trace.rank)).write_bytes(b"".join(file.readline() for _ in range(last)))


def _kept(by_rank: Mapping[int, Trace], lengths: Lengths) -> list[Trace]:
    return [_cut(by_rank[rank], length) for rank, length in lengths.items()]


def _cut(trace: Trace, length: int) -> Trace:
    # cut by itself, it is no longer the same as others
    kept = {"lines": trace.lines[:length], "numbers": trace.numbers[:length], "cut": False, "same_as": None}
    return msgspec.structs.replace(trace, **kept)


def _essence(found: Diagnosis) -> object:
    """Return what must stay the same.

    Logical time is counted anew, and who else was left waiting may be cut away.
    """
    divergence = replace(found.divergence, clock=0) if found.divergence else None
    if divergence is not None and divergence.place:  # of a program: what was cut off is told there
        divergence = replace(divergence, why="")
    return (divergence, found.failure_mode, found.culprits, found.stall)


def _without_ranks(lengths: dict[int, int], found: Diagnosis, shows: Callable[[Lengths], bool]) -> dict[int, int]:
    """Leave out files: all but a few at once, as few as will do, then one by one."""
    about = [found.divergence.rank if found.divergence else -1, *found.culprits]
    order = sorted(lengths, key=lambda rank: (rank not in about, rank))
    size = len(set(about))
    while size < len(order) and not shows(few := {rank: lengths[rank] for rank in sorted(order[:size])}):
        size = 2 * size + 1
    if size < len(order):
        lengths = few
    for rank in sorted(lengths, reverse=True):
        others = {r: length for r, length in lengths.items() if r != rank}
        if shows(others):
            lengths = others
    return lengths


def _shortest(lengths: Lengths, rank: int, shows: Callable[[Lengths], bool]) -> int:
    """Return how few lines of a rank will do: halved as long as that shows, then one by one."""
    low, high = 0, lengths[rank]
    while low < high:
        middle = (low + high) // 2
        if shows({**lengths, rank: middle}):
            high = middle
        else:
            low = middle + 1
    while high > 0 and shows({**lengths, rank: high - 1}):
        high -= 1
    return high
