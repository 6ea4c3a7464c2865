"""Beats for a program that does not beat itself: at each operation of torch.distributed, issued and completed.

Nothing is charged before torch.distributed is initialised, and a program that opens its own page has that to itself.
A rank is said to wait for all ranks only in an operation of all of them that nobody can leave before all have come, and
only where the host sees its end (gloo). Of any other that waits it is not said for whom, so that it is never taken to
lag behind. Left out: getting into the program (`impl.recording.command`, `impl.recording.attach`).
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from typing import Any

import torch
import torch.distributed as dist

from ...guardian.status_page import EVERYONE, SOMEONE, VARIABLE
from ..recording.c10d_intercept import OnComplete, Operation, watch
from ..recording.torch_compat import put_in_place_of
from .heartbeat import Beat

ASIDE, OPERATIONS = "aside", "operations"
"""The phases of such a program: before its first operation and after its last, and between them."""
ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
"""Names operations of all ranks that some may leave before others have come."""


def attach() -> None:
    """Beat from now on, where this process has a guardian that reads it."""
    if VARIABLE not in os.environ or not dist.is_available():
        return
    beats = OperationBeats()
    beats.follow_groups()
    os.register_at_fork(after_in_child=beats.stop)
    watch(beats)


class OperationBeats:
    """Watches the operations of this process, and beats."""

    def __init__(self) -> None:
        self._beat: Beat | None = None
        self._over = False
        self._lock = threading.Lock()
        self._number = 0

    def stop(self) -> None:
        """Beat no more: after a fork this is another process than the rank."""
        self._over = True

    def follow_groups(self) -> None:
        """Open the page when torch.distributed is initialised, which waits for peers; expect less once it is left."""
        init, destroy = dist.init_process_group, dist.destroy_process_group

        @functools.wraps(init)
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            beat = self._open()
            arrived = _nothing if beat is None else beat.await_also(SOMEONE, counts=False)
            try:
                return init(*args, **kwargs)
            finally:
                arrived(None)

        @functools.wraps(destroy)
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            try:
                return destroy(*args, **kwargs)
            finally:
                if not dist.is_initialized():
                    self.leave()

        put_in_place_of(init, init_process_group)
        put_in_place_of(destroy, destroy_process_group)
        atexit.register(self.leave)

    def leave(self) -> None:
        """Say that no further operation is to be expected."""
        if self._beat is not None and not self._over and not Beat.taken:
            self._beat.phase(ASIDE)

    def issue(self, operation: Operation) -> OnComplete | None:
        """Beat, and return what beats again when the operation has completed."""
        beat = self._open()
        if beat is None:
            return None
        if not self._number and not _is_guarded_rank():
            self.stop()
            return None
        with self._lock:
            self._number += 1
            beat.move(OPERATIONS, f"operation {self._number}: {operation.op}")
        everyone = len(operation.group.members) == dist.get_world_size() and operation.peer is None
        if not _seen_to_end(operation):
            beat.await_for_good(counts=everyone)
            return None
        whom = EVERYONE if everyone and operation.op not in ROOTED else SOMEONE
        return beat.await_also(whom if operation.peer is None else operation.peer, counts=everyone)

    def _open(self) -> Beat | None:
        """Return this process's page; None where it is not for this to write."""
        if self._over or Beat.taken:
            return None
        if self._beat is None:
            try:
                self._beat = Beat.open_for(ASIDE)
            except OSError:  # its guardian is gone, or is another process's
                self._over = True
        return self._beat


def _nothing(_: object) -> None:
    """Do nothing: nobody reads of it."""


def _is_guarded_rank() -> bool:
    """Return True if this process is the rank that its guardian knows, and not one of several that it has started."""
    known = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return known == (str(dist.get_rank()), str(dist.get_world_size()))


def _seen_to_end(operation: Operation) -> bool:
    """Return True if the host sees the end of an operation; of one on a GPU it sees that it was enqueued."""
    return operation.group.backend == "gloo" or not torch.cuda.is_available()
