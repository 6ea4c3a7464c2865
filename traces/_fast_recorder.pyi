"""What `_fast_recorder.c` has for Python."""

from array import array
from collections.abc import Callable, Iterator

from .recorder import Begun, _Kind

class Straight:
    """A `recorder.Kind`: writes an event by itself where nothing has to stand before its line, else by `whole`."""

    def __init__(
        self,
        whole: _Kind,
        lock: object,
        cut: Callable[[int], None],
        shared: array[int],
        sequence: Iterator[int],
        entered: bytes,
        left: bytes,
        /,
    ) -> None: ...
    def begin(self, time_ns: int, /) -> Begun | None: ...
    def end(self, begun: Begun | None, time_ns: int, outcome: str | None = None, /) -> None: ...
