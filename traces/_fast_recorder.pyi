"""Declares the types of `_fast_recorder.c`."""

from array import array
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType

from .outcome import Outcome
from .recorder import Begun, SlowOperationRecorder

class Lock:
    """Holds off other threads, those without the GIL too; its holder may take it again."""

    def __enter__(self) -> bool: ...
    def __exit__(self, *raised: object) -> None: ...

class FastOperationRecorder:
    """Writes an event by itself where nothing has to stand before its line, else by `whole`."""

    def __init__(
        self,
        whole: SlowOperationRecorder,
        lock: Lock,
        cut: Callable[[int], None],
        shared: array[int],
        sequence: Iterator[int],
        entered: bytes,
        waited: bytes,
        left: bytes,
        number: int = 0,
        way: array[int] | None = None,
        wire: int = 0,
        full: int = 0,
        open: array[int] | None = None,
        /,
    ) -> None: ...
    def begin(self, time_ns: int, /) -> Begun | None: ...
    def wait(self, begun: Begun | None, time_ns: int, /) -> None: ...
    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None: ...

def stack_key(
    frame: FrameType, programs: Mapping[int, bool], learn: Callable[[CodeType], bool | None], /
) -> bytes | None:
    """Return what tells the stack from `frame` up to the program's first frame from any other."""

native: object
"""Holds, as a capsule, what `fast_recorder.h` describes."""
