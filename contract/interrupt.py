"""Ends a long piece of work on Ctrl-C or SIGTERM at once, wherever it is, and lets what is known be told.

A search takes a KeyboardInterrupt for its own end and leaves what it has found; a long line of searches would go on to
the next. What is raised here nobody else catches. Left out: processes that were started; who started them ends them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Says that Ctrl-C or SIGTERM has come."""


@contextmanager
def interrupts() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise Interrupted within; in any thread but the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
