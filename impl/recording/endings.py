"""Sees how this process ends, wherever Python lets anybody see it, and what it raised.

An exception that nobody catches goes to `sys.excepthook`. A library may catch what a rank raised, and call `sys.exit`,
at once or later; or keep it for whoever asks for the result, and let the process live (a pool, Ray). Whoever does so
writes the traceback down first, by Python's own module. A child of `multiprocessing` ends by `os._exit`, after its
finalizers, without atexit. Left out: a process that is killed, and what is caught in silence.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch

from ...traces.format import Cause


class Ending(NamedTuple):
    """Says why a process ends."""

    cause: Cause
    exit: int = -1
    """Exit status; -1 where it is not known."""
    message: str = ""
    place: str | None = None
    """Where it was raised, as `file:line`."""
    culprit: int | None = None
    """Rank whose process was found to have ended."""


STOPPED = Ending("stopped")
Ended = Callable[[Ending], None]
LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
STANDARD = os.path.dirname(os.__file__) + os.sep
BELOW = (os.path.dirname(torch.__file__) + os.sep, str(Path(__file__).parents[1]) + os.sep, "<frozen")
"""Begins the names of files that stand below the program: torch's, and ours."""
KEEPERS = ("concurrent.futures.process", "multiprocessing.pool", "torch.multiprocessing.spawn", "ray.", "loky.")
"""Begin the names of modules that hand on what a task has raised, to whoever waits for it; the process lives on."""
FRAMES = 400
"""No more frames of a traceback are looked at."""


class Follower(NamedTuple):
    """Writes ends."""

    ended: Ended
    written: Callable[[], int]
    """Counts what it has written so far: an exit after which there was more was caught by somebody."""
    kept: Callable[[BaseException], object]
    """Takes what a task of this process has raised, which lives on."""


_followers: list[Follower] = []


def follow_endings(
    ended: Ended, written: Callable[[], int], kept: Callable[[BaseException], object] = lambda _: None
) -> None:
    """Call `ended` with why this process ends, as early as that is certain; perhaps several times, the truest first.

    `kept` is called with what was raised and handed on by a library.
    """
    _followers.append(Follower(ended, written, kept))
    if len(_followers) == 1:
        _install()


def keep(error: BaseException) -> None:
    """Tell what a task of this process has raised, which lives on."""
    for follower in _followers:
        follower.kept(error)


def _tell(ending: Ending) -> None:
    for follower in _followers:
        follower.ended(ending)


def _written() -> int:
    return sum(follower.written() for follower in _followers)


def _install() -> None:
    ended, written = _tell, _written
    hook, leave, leave_now = sys.excepthook, sys.exit, os._exit
    noted: list[tuple[Ending, int]] = []
    caught: list[tuple[BaseException, int]] = []
    described: Any = traceback.TracebackException
    init = described.__init__

    def written_down(self: Any, kind: Any, error: Any, *given: Any, **named: Any) -> None:
        frame = sys._getframe(1)
        if isinstance(error, Exception) and frame.f_code is not init.__code__:  # what was behind it comes that way
            caught[:] = [(error, written())]
            if _keeps(frame):
                keep(error)
        init(self, kind, error, *given, **named)

    def leaving(status: Any) -> Ending:
        error = sys.exc_info()[1]
        if error is None and caught and caught[0][1] == written():
            error = caught[0][0]
        return _leaving(status, error)

    def excepthook(kind: Any, error: BaseException, frames: Any) -> None:
        ended(of(error))
        hook(kind, error, frames)

    def exit(status: Any = None, /) -> NoReturn:
        noted[:] = [(leaving(status), written())]
        leave(status)

    def exit_now(status: int) -> NoReturn:
        ended(leaving(status))
        leave_now(status)

    def at_end() -> None:
        error, left = sys.exc_info()[1], noted[0][0] if noted and noted[0][1] == written() else None
        if error is not None and not (left and isinstance(error, SystemExit)):
            ended(of(error))
        ended(left or STOPPED)

    def at_end_of_child(_: object = None) -> None:
        util.Finalize(None, at_end, exitpriority=1000)

    # the last three are what their users look up when they leave
    sys.excepthook, sys.exit, os._exit = excepthook, exit, exit_now
    described.__init__ = written_down
    atexit.register(at_end)
    at_end_of_child()
    util.register_after_fork(at_end_of_child, at_end_of_child)  # a forked child forgets its parent's


def _keeps(frame: FrameType | None) -> bool:
    """Return True where the module that has a traceback written is one that hands on what was raised."""
    while frame is not None and frame.f_code.co_filename == traceback.__file__:
        frame = frame.f_back
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    if name == "__main__" and frame is not None:  # a program of Ray's own
        return f"{os.sep}ray{os.sep}_private{os.sep}" in frame.f_code.co_filename
    return name.startswith(KEEPERS)


def of(error: BaseException) -> Ending:
    """Return the ending of a process that raised this, and did not catch it."""
    if isinstance(error, SystemExit):
        return _leaving(error.code, error.__context__)
    root = error
    for _ in range(FRAMES):
        if root.__cause__ is None:
            break
        root = root.__cause__
    text = " ".join(str(root).split())
    return Ending("exception", 1, f"{type(root).__name__}: {text}"[:1000], _place(root))


def _leaving(status: Any, handled: BaseException | None) -> Ending:
    """Return the ending of a process that leaves with a status, while it handles an exception or none."""
    exit = 0 if status is None else status if isinstance(status, int) else 1
    if exit and isinstance(handled, SystemExit):
        handled = handled.__context__
    if exit and isinstance(handled, Exception):
        return of(handled)._replace(exit=exit)
    return Ending("stopped", exit)


def _place(error: BaseException) -> str | None:
    """Return the innermost place of the user's own in a traceback; else the innermost that is not torch's."""
    frames = [
        (frame.f_code.co_filename, line) for frame, line in list(traceback.walk_tb(error.__traceback__))[-FRAMES:]
    ]
    known = [(file, line) for file, line in frames if not file.startswith(BELOW)]
    own = [(file, line) for file, line in known if not _is_library(file)]
    file, line = (own or known or [("", 0)])[-1]
    return f"{file}:{line}" if file else None


def _is_library(file: str) -> bool:
    return file.startswith(STANDARD) or any(part in file for part in LIBRARIES)
