"""Beats for a program that does not beat itself: at each operation of torch.distributed, issued and completed.

Nothing is charged before torch.distributed is initialised, and a program that opens its own page has that to itself.
A process that is a rank, and not the one that its guardian knows, gets a guardian of its own (`guard`).
A rank is said to wait for all ranks only in an operation of all of them that nobody can leave before all have come, and
only where the host sees its end (gloo). Of any other that waits it is not said for whom, so that it is never taken to
lag behind. Left out: getting into the program (`impl.recording.command`, `impl.recording.attach`).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...errors import Code
from ...guardian.status_page import EVERYONE, SOMEONE, VARIABLE
from ...traces.outcome import Outcome
from ..recording.c10d_intercept import OnComplete, Operation, watch
from ..recording.channel import follow_waits
from ..recording.endings import Ending, follow_endings, of
from ..recording.torch_compat import put_in_place_of
from . import sidecar
from .heartbeat import Beat

ASIDE, OPERATIONS = "aside", "operations"
"""The phases of such a program: before its first operation and after its last, and between them."""
ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
"""Names operations of all ranks that some may leave before others have come."""


FOR_GOOD = 9e8
"""Seconds that nobody waits for."""

_beats: list[OperationBeats] = []
"""Those of this process, once it has any."""


def guard(deadlines: Mapping[str, float] | None = None, *, observe: bool = False) -> None:
    """Guard this process as a rank of its job, from inside: for ranks that no launcher has put under `genlock guard`.

    Call it at the start of every worker that mp.spawn, Ray or an engine starts, before or after `init_process_group`. A
    guardian is started once the job is joined, and watches until it is left: when a rank dies, stands still or hangs,
    every rank is killed, and each guardian says on stderr whose fault it was.

    - `deadlines`: seconds by phase, as in `--deadline`: `steady` is how long a rank may go without an operation,
      `collective` how long ranks may wait for each other. What is not given is as GENLOCK_DEADLINES says, or by itself.
    - `observe`: report, and end nothing.

    Raises UsageError for seconds that are none, and GenlockError, here or in `init_process_group`, where no guardian
    can be started, or a rank does not call this. On Linux alone.
    """
    given = sidecar.variables(deadlines, observe=observe)
    if not _beats:
        attach(wanted=True)
    _beats[0].ask(given)


def attach(*, wanted: bool = False) -> None:
    """Beat from now on, where this process has a guardian that reads it, or wants one."""
    if not dist.is_available() or not (wanted or VARIABLE in os.environ) or _beats:
        return
    beats = OperationBeats()
    _beats.append(beats)
    beats.follow_groups()
    os.register_at_fork(after_in_child=beats.forked)
    follow_endings(beats.end, beats.issued, beats.keep)
    follow_waits(beats.meet)
    watch(beats)


class OperationBeats:
    """Watches the operations of this process, and beats."""

    def __init__(self) -> None:
        self._given: Mapping[str, str] = {}
        """Settings for a guardian of its own."""
        self._inherited = VARIABLE in os.environ
        """True where the page that the environment names may be this process's."""
        self.forked(inherited=self._inherited)

    def forked(self, *, inherited: bool = False) -> None:
        """Begin anew: after a fork this is another process than the rank."""
        self._inherited = inherited
        self._beat: Beat | None = None
        self._own = False
        """True where the page is of a guardian that this process has asked for."""
        self._over = False
        self._lost = False
        """True once the backend could not complete the operation that was issued last."""
        self._lock = threading.Lock()
        self._number = 0

    def ask(self, given: Mapping[str, str]) -> None:
        """Take settings for a guardian of this process, and start it if the job is joined."""
        self._given = given
        if dist.is_initialized() and not self._own:
            self.join()

    def issued(self) -> int:
        """Count the operations so far."""
        return self._number

    def join(self) -> None:
        """Find the guardian of this rank, or start it: the job has just been joined."""
        if Beat.taken or (self._inherited and _is_guarded_rank()):
            return
        if self._beat is not None:
            self._beat.phase(ASIDE, deadline=FOR_GOOD)  # the page is another's
        self._inherited = False
        if dist.get_world_size() > 1:
            self._number = 0
            self._beat, self._own = sidecar.start(ASIDE, self._given, _traces()), True

    def keep(self, error: BaseException) -> None:
        """Tell the guardian what a task of this process has raised, which lives on: it is why nothing follows."""
        if self._beat is not None and not self._over and not Beat.taken:
            self._beat.commit(f"raised {of(error).message}")

    def end(self, ending: Ending) -> None:
        """Tell the guardian why this process ends, where nobody else does."""
        if not self._own:
            self.leave()
        if self._beat is None or not self._own:
            return
        if ending.cause == "exception":
            self._beat.failed(f"raised {ending.message}", lost=self._lost)
        elif ending.cause == "stopped" and ending.exit > 0:
            self._beat.failed(f"exited with {ending.exit}")
        else:
            self._beat.left()
        self._beat = None

    def follow_groups(self) -> None:
        """Open the page when torch.distributed is initialised, which waits for peers; expect less once it is left."""
        init, destroy = dist.init_process_group, dist.destroy_process_group

        @functools.wraps(init)
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            beat = self._open() if "RANK" in os.environ else None
            arrived = _nothing if beat is None else beat.await_also(SOMEONE, counts=False)
            try:
                result = init(*args, **kwargs)
            finally:
                arrived(None)
            self.join()
            return result

        @functools.wraps(destroy)
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            try:
                return destroy(*args, **kwargs)
            finally:
                if not dist.is_initialized():
                    self.leave()

        put_in_place_of(init, init_process_group)
        put_in_place_of(destroy, destroy_process_group)

    def leave(self) -> None:
        """Say that no further operation is to be expected."""
        if self._beat is None or self._over or Beat.taken:
            return
        if self._own:
            self._beat.left()
            self._beat = None
        else:
            self._beat.phase(ASIDE)

    def issue(self, operation: Operation) -> OnComplete | None:
        """Beat, and return what beats again when the operation has completed."""
        beat = self._open()
        if beat is None:
            return None
        if not self._number and not self._own and not _is_guarded_rank():
            self._over = True
            return None
        with self._lock:
            self._number += 1
            self._lost = False
            beat.move(OPERATIONS, f"operation {self._number}: {operation.op}")
        everyone = len(operation.group.members) == dist.get_world_size() and operation.peer is None
        if not _seen_to_end(operation):
            beat.await_for_good(counts=everyone)
            return None
        whom = EVERYONE if everyone and operation.op not in ROOTED else SOMEONE
        completed = beat.await_also(whom if operation.peer is None else operation.peer, counts=everyone)

        def complete(outcome: Outcome | None) -> None:
            self._lost |= outcome is not None and outcome.code is Code.BACKEND
            completed(outcome)

        return complete

    def meet(self, op: str) -> Callable[[None], object]:
        """Beat for a wait by a channel, for whom is not said; return what beats again when it is over."""
        beat = self._beat
        if beat is None or self._over or Beat.taken:
            return _nothing
        beat.move(OPERATIONS, f"{op} by a channel")
        return beat.await_also(SOMEONE, counts=False)

    def _open(self) -> Beat | None:
        """Return this process's page; None where it is not for this to write."""
        if self._over or Beat.taken or (self._beat is None and not self._inherited):
            return None
        if self._beat is None:
            try:
                self._beat = Beat.open_for(ASIDE)
            except OSError:  # its guardian is gone, or is another process's
                self._over = True
        return self._beat


def _traces() -> str:
    """Return the folder of this rank's trace, where it is recorded, so that its guardian can write its end."""
    recording = sys.modules.get(f"{__package__.rpartition('.')[0]}.recording.session")
    place = None if recording is None else recording.folder_now()
    return "" if place is None else str(place)


def _nothing(_: object) -> None:
    """Do nothing: nobody reads of it."""


def _is_guarded_rank() -> bool:
    """Return True if this process is the rank that its guardian knows, and not one of several that it has started."""
    known = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return known == (str(dist.get_rank()), str(dist.get_world_size()))


def _seen_to_end(operation: Operation) -> bool:
    """Return True if the host sees the end of an operation; of one on a GPU it sees that it was enqueued."""
    return operation.group.backend == "gloo" or not torch.cuda.is_available()
