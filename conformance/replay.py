"""The one road from paths to a verdict, whatever recorded the ranks.

Left out: reading (`traces.load`), and judging itself (`protocol`, `collectives`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..traces.format import Trace
from ..traces.load import files_of, load, own_of
from .diagnosis import Diagnosis

if TYPE_CHECKING:
    from ..traces.collectives import Recording

LARGE = 64 << 20
"""Bytes from which on a recording is first asked whether all is as it should be, which takes no memory."""


class Replayed:
    """A run that was replayed: the verdict on it, and what was read for that."""

    def __init__(self, paths: Sequence[Path], diagnosis: Diagnosis | None = None) -> None:
        self.paths = tuple(paths)
        self.diagnosis = diagnosis or judge(self.traces)

    def __repr__(self) -> str:
        return f"<Replayed {self.diagnosis.verdict}: {', '.join(map(str, self.paths))}>"

    @cached_property
    def traces(self) -> Sequence[Trace] | Recording:
        """Genlock's own traces of a protocol, or a recording of collectives; of a large one, read when first asked for.

        Raises UnreadableInput.
        """
        return load(self.paths)


def replay(paths: Sequence[Path]) -> Replayed:
    """Read what the paths stand for, and judge it. Raises UnreadableInput, UsageError."""
    return Replayed(paths, _at_a_glance(paths))


def judge(traces: Sequence[Trace] | Recording) -> Diagnosis:
    """Hold Genlock's own traces against the model, or a recording against itself. Raises UnreadableInput."""
    if isinstance(traces, Sequence):
        from .protocol.diagnose import diagnose

        return diagnose(traces)
    from .collectives.diagnose import diagnose as diagnose_recording

    return diagnose_recording(traces)


def _at_a_glance(paths: Sequence[Path]) -> Diagnosis | None:
    """Return `conforming`, of a large recording of which that can be seen without keeping what was read."""
    files = files_of(paths)
    if sum(file.stat().st_size for file, _ in files) < LARGE:
        return None
    own = own_of(files)
    if own is None or own.follows:
        return None
    from ..traces.fast_summary import agreed

    summary = agreed(own)
    if summary is None:
        return None
    return Diagnosis("conforming", summary.ranks, summary.entries, summary.matched, None, None, (), (), (), None, {})
