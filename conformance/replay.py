"""From what was read to a verdict, whatever recorded it. Left out: reading (`traces.load`), and judging itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..traces.format import Trace
from ..traces.load import files_of, gather, own_of
from .diagnosis import Diagnosis

if TYPE_CHECKING:
    from ..traces.collectives import Recording
    from ..traces.evidence import Evidence

LARGE = 64 << 20
"""Bytes from which on a recording is first asked whether all is as it should be, which takes no memory."""


def judge(found: Sequence[Trace] | Recording | Evidence) -> Diagnosis:
    """Hold Genlock's own traces against the model, all else against itself. Raises UnreadableInput."""
    if isinstance(found, Sequence):
        from .protocol.diagnose import diagnose

        return diagnose(found)
    from ..traces.evidence import Evidence

    if isinstance(found, Evidence):
        from .evidence.merge import judge_evidence

        return judge_evidence(found)
    from .collectives.diagnose import judge as judge_recording

    return judge_recording(found)


def judge_paths(paths: Sequence[Path]) -> Diagnosis:
    """The verdict on what the paths stand for. Raises UnreadableInput, UsageError."""
    return _at_a_glance(paths) or judge(gather(paths))


def _at_a_glance(paths: Sequence[Path]) -> Diagnosis | None:
    """`conforming`, of a large recording of a program of which that can be seen without keeping what was read."""
    files = files_of(paths)
    if sum(file.stat().st_size for file, _ in files) < LARGE:
        return None
    own = own_of(files)
    if own is None or own.follows or len(own.headers) < len(files):  # a log beside them may say otherwise
        return None
    from ..traces.fast_summary import agreed

    found = agreed(own)
    if found is None:
        return None
    return Diagnosis("conforming", found.ranks, found.entries, found.matched, None, None, (), (), (), None, {})
