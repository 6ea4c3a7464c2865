"""Declares the types of `_fast_recorder.c`."""

from array import array
from collections.abc import Callable, Iterator

from .outcome import Outcome
from .recorder import Begun, SlowOperationRecorder

class FastOperationRecorder:
    """Writes an event by itself where nothing has to stand before its line, else by `whole`."""

    def __init__(
        self,
        whole: SlowOperationRecorder,
        lock: object,
        cut: Callable[[int], None],
        shared: array[int],
        sequence: Iterator[int],
        entered: bytes,
        left: bytes,
        /,
    ) -> None: ...
    def begin(self, time_ns: int, /) -> Begun | None: ...
    def end(self, begun: Begun | None, time_ns: int, outcome: Outcome | None = None, /) -> None: ...
