"""Finds where in the program an operation is issued, and the calls of libraries between: a short stack.

A short stack leads from the innermost call to the first frame of the program. Programs repeat their operations, so that
a stack is taken apart once; each time, its key alone is made.

Left out: whose line is whose (`traces.importers.places`), and how a stack is written (`traces.recorder`).
"""

from __future__ import annotations

import os
import struct
from types import CodeType, FrameType

from ...traces.importers.places import PACKAGE, PROGRAM, layer
from ...traces.recorder import Frame

__all__ = [
    "caller",
    "fast_stack_key",
    "is_ours",
    "learn",
    "programs",
    "short_stack",
    "site",
    "stack_key",
]

try:
    from ...traces._fast_recorder import stack_key as fast_stack_key
except ImportError:  # it was not built: a compiler was missing
    fast_stack_key = None  # type: ignore[assignment]

MAX_WALK = 64
"""Frames that are looked at."""
MAX_FRAMES = 12
"""Frames of a short stack that are kept: the innermost ones, and the program's."""
MAX_CODES = 1 << 16
"""Codes of which it is remembered whose they are; stacks with others have no key."""

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
programs: dict[int, bool] = {}
"""Maps the `id` of a code to whether it is the program's."""
_codes: list[CodeType] = []
"""Keeps them alive, and so their numbers apart."""


def stack_key(frame: FrameType) -> bytes | None:
    """Return what tells the stack from a frame on, up to the program, from any other; None where nothing is safe to."""
    return _stack_key(frame)


def _key_in_python(frame: FrameType) -> bytes | None:
    key: list[int] = []
    at: FrameType | None = frame
    while at is not None and len(key) < 2 * MAX_WALK:
        code = at.f_code
        key += (id(code), at.f_lasti)
        program = programs.get(id(code))
        if program is None:
            program = learn(code)
        if program is None:
            return None
        if program:
            break
        at = at.f_back
    return struct.pack(f"{len(key)}q", *key)


def _key_in_c(frame: FrameType) -> bytes | None:
    return fast_stack_key(frame, programs, learn)


_stack_key = _key_in_python if fast_stack_key is None else _key_in_c


def learn(code: CodeType) -> bool | None:
    """Return whether a code is the program's, and keep that; None where too many are kept."""
    if len(_codes) >= MAX_CODES:
        return None
    _codes.append(code)
    known = programs[id(code)] = layer(code.co_filename) == PROGRAM
    return known


def short_stack(frame: FrameType | None) -> list[Frame]:
    """Return the calls from a frame to the program, innermost first; without Genlock's own, and bounded."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) < MAX_WALK:
        if frames or not is_ours(frame):
            frames.append(frame)
            if layer(frame.f_code.co_filename) == PROGRAM:
                break
        frame = frame.f_back
    at = _program(frames)
    kept = frames[:MAX_FRAMES] if at is None else [*frames[: min(at, MAX_FRAMES - 1)], frames[at]]
    return [(site(each) or "", each.f_code.co_qualname[:200]) for each in kept]


def is_ours(frame: FrameType) -> bool:
    """Return True for a frame of Genlock's own, inside a rank."""
    return frame.f_code.co_filename.startswith(_OURS)


def caller(inner: FrameType) -> FrameType | None:
    """Return where the program issues an operation, outward from a frame; None where it is not on the stack."""
    frames: list[FrameType] = []
    frame: FrameType | None = inner
    while frame is not None and len(frames) < MAX_WALK:
        frames.append(frame)
        frame = frame.f_back
    at = _program(frames)
    return None if at is None else frames[at]


def _program(frames: list[FrameType]) -> int | None:
    layers = [layer(frame.f_code.co_filename) for frame in frames]
    return next((layers.index(wanted) for wanted in (PROGRAM, PACKAGE) if wanted in layers), None)


def site(frame: FrameType | None) -> str | None:
    """Return a place in the program as `file:line`."""
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
