"""From what was read to a verdict, whatever recorded it. Left out: reading (`traces.load`), and judging itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..traces.collectives import Recording
from ..traces.format import Trace
from ..traces.load import load
from .verdict import Diagnosis


def judge(found: Sequence[Trace] | Recording) -> Diagnosis:
    """Hold Genlock's own traces against the model, or a recording against itself. Raises UnreadableInput."""
    if isinstance(found, Recording):
        from .collectives import judge as judge_recording

        return judge_recording(found)
    from .explain import diagnose

    return diagnose(found)


def judge_paths(paths: Sequence[Path]) -> Diagnosis:
    """The verdict on what the paths stand for. Raises UnreadableInput, UsageError."""
    return judge(load(paths))
