"""Writes, inside a recorded program, every operation of this process to its rank's trace.

A process becomes a rank, and gets a trace, when it has initialised torch.distributed; the others leave none.
No error in here reaches the program. Left out: getting into the program (`command`, `attach`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace

from ...errors import GenlockError
from ...traces.format import FORMAT_VERSION, P2P, Cause, Clock, Group, RepeatedOperation, TraceHeader
from ...traces.recorder import OperationRecorder, Recorder
from .c10d_intercept import (
    BLIND_SPOTS,
    OnComplete,
    Operation,
    forget_observers,
    group_of,
    unknown_operators,
    watch,
)
from .command import RecordingSettings
from .stacks import short_stack, stack_key
from .standstill import NEVER, Stacks, timer


def attach() -> None:
    """Record this process from now on, as its environment says. Raises GenlockError where this torch is unknown."""
    settings = RecordingSettings.inherited()
    if settings is None or not dist.is_available():
        return
    session = Session(settings)
    session.follow_init()
    session.follow_groups()
    session.follow_end()
    timer.follow(_put_in_place_of)
    os.register_at_fork(after_in_child=session.forked)
    watch(session)


SOON = 1_000_000_000
MAX_OPERATIONS = 4096
"""Beyond so many distinct operations, those that were met are forgotten: a program may never issue the same twice."""


class Session:
    """Keeps the trace of this process, once it is a rank."""

    def __init__(self, settings: RecordingSettings) -> None:
        self._settings = settings
        self.forked()

    def forked(self) -> None:
        """Begin anew: this process has written nothing yet, whatever its parent has."""
        self._lock = threading.RLock()
        self._recorder: Recorder | None = None
        self._stacks: Stacks | None = None
        self._due = 0
        """From when on (monotonic) the stacks are to be told that the process goes on."""
        self._who = (-1, 0)
        self._over = False
        forget_observers()
        self._groups: set[str] = set()
        self._made = count(1)
        """The next number of a group in whose making this process takes part."""
        self._operations: dict[tuple[Operation, bytes], OperationRecorder] = {}
        """Keyed by operation and stack."""
        self._counts: defaultdict[tuple[object, ...], Iterator[int]] = defaultdict(lambda: count(1))
        """The next sequence number of each group, and of each way of p2p."""

    def issue(self, operation: Operation) -> OnComplete | None:
        """Write that the operation is issued; returns what writes that it has completed."""
        time_ns = time.monotonic_ns()
        if time_ns >= self._due:
            self.tick(time_ns)
        recorder = self.observer(operation, sys._getframe(1))
        if recorder is None:
            return None
        begun = recorder.begin(time_ns)
        return lambda outcome: recorder.end(begun, time.monotonic_ns(), outcome)

    def tick(self, time_ns: int) -> int:
        """Take note that the process goes on; returns from when on this is to be called again."""
        try:
            self._due = NEVER if self._stacks is None else self._stacks.moved(time_ns)
        except OSError:
            self._due = NEVER
        return time_ns + SOON if self._stacks is None else self._due

    def observer(self, operation: Operation, frame: FrameType) -> OperationRecorder | None:
        """Return what records every such operation of that stack; None where nothing is recorded."""
        key = stack_key(frame)
        recorder = None if key is None else self._operations.get((operation, key))
        if recorder is None:
            try:
                recorder = self._recorder_of(operation, frame)
            except Exception as error:
                self._give_up(error)
            if recorder is not None and key is not None:
                if len(self._operations) >= MAX_OPERATIONS:
                    self._operations.clear()
                self._operations[operation, key] = recorder
        return recorder

    def _recorder_of(self, operation: Operation, frame: FrameType) -> OperationRecorder | None:
        op, group, root, peer, tag, dtype, numel, asynchronous, thread, reduce, splits = operation
        with self._lock:
            if self._recorder is None:
                self.open()
            recorder = self._recorder
            if recorder is None or self._over:
                return None
            if group.name not in self._groups:
                self._groups.add(group.name)
                recorder.group(group)
            site = recorder.stack(short_stack(frame))
            about = (root, peer, tag, dtype, numel, asynchronous, thread, site, reduce, splits)
            counter = self._counts[(group.name, op, peer, tag) if op in P2P else (group.name,)]
            return recorder.operation(RepeatedOperation(0, op, group.name, *about), counter, self._give_up)

    def open(self) -> None:
        """Begin the trace, if this process has become a rank since. A process is one rank in its life."""
        if self._over or not dist.is_initialized():
            return
        who = (dist.get_rank(), dist.get_world_size())
        if self._recorder is None:
            self._who = who
            settings = self._settings.restarted()
            self._recorder = Recorder(Path(settings.out), self._header(settings, *who))
            self._stacks = Stacks(self._recorder.path.with_name(f"rank{who[0]}.stacks.txt"), settings.stacks_after)
            self._stacks.moved(time.monotonic_ns())
            self._due = 0
        elif who != self._who:
            self.end("detached", message=f"from here on the process is rank {who[0]} of {who[1]}")

    def end(self, cause: Cause = "stopped", exit: int = -1, message: str = "") -> None:
        """Write why the process ends, or is recorded no further."""
        if self._recorder is not None and not self._over:
            self._recorder.end(cause, exit, message)
            if self._stacks is not None:
                self._stacks.close(keep=cause != "stopped")
        self._over = True

    def follow_init(self) -> None:
        """Begin the trace at once when torch.distributed is initialised, so that a rank that issues nothing has one."""
        original = dist.init_process_group

        @functools.wraps(original)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            try:
                with self._lock:
                    self.open()
            except Exception as error:
                self._give_up(error)

        _put_in_place_of(original, init_process_group)

    def follow_groups(self) -> None:
        """Announce a group when this process has taken part in making it, member or not."""
        original, signature = dist.new_group, inspect.signature(dist.new_group)

        @functools.wraps(original)
        def new_group(*args: Any, **kwargs: Any) -> Any:
            group = original(*args, **kwargs)
            try:
                given = signature.bind(*args, **kwargs).arguments
                self._announce(group, given.get("ranks"), bool(given.get("use_local_synchronization")), sys._getframe())
            except Exception as error:
                self._give_up(error)
            return group

        _put_in_place_of(original, new_group)

    def _announce(self, group: Any, ranks: Any, local: bool, frame: FrameType) -> None:
        with self._lock:
            if self._recorder is None:
                self.open()
            if self._recorder is None or self._over:
                return
            if isinstance(group, dist.ProcessGroup):
                described = group_of(group)
            else:
                everyone = range(dist.get_world_size())
                described = Group("", tuple(int(rank) for rank in (everyone if ranks is None else ranks)))
            if described.name:  # it may have been announced, without a number, by an operation on it
                self._groups.add(described.name)
            number, place = next(self._made), self._recorder.stack(short_stack(frame))
            made = replace(described, number=number, known_by="members" if local else "all", site=place)
            self._recorder.group(made)

    def follow_end(self) -> None:
        """Write how the process ends, where Python sees it."""
        original = sys.excepthook

        def excepthook(kind: Any, error: BaseException, traceback: Any) -> None:
            self.end("exception", 1, f"{kind.__name__}: {error}"[:1000])
            original(kind, error, traceback)

        sys.excepthook = excepthook
        atexit.register(self.end)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self._operations.clear()
            what = str(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {error}"
            if self._recorder is not None:
                with contextlib.suppress(Exception):
                    self._recorder.end("detached", -1, what[:1000])
                self._recorder.close()  # another thread may be about to write, and observers are called on
        print(f"genlock: this process is not recorded any further: {what}", file=sys.stderr)

    @staticmethod
    def _header(settings: RecordingSettings, rank: int, world: int) -> TraceHeader:
        unknown = [f"operators that this torch has and genlock does not know: {n}" for n in unknown_operators()]
        return TraceHeader(
            FORMAT_VERSION,
            settings.run,
            rank,
            world,
            role="",
            backend=str(dist.get_backend()),
            protocol="",
            tables="",
            groups={},
            clock=Clock(time.time_ns(), time.monotonic_ns()),
            versions={"torch": str(torch.__version__), "python": sys.version.split()[0]},
            blind_spots=(*BLIND_SPOTS, *unknown),
            attempt=settings.attempt,
        )


def _put_in_place_of(original: Any, wrapper: Any) -> None:
    """Put a wrapper wherever a module has the original by its name."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            module.__dict__[name] = wrapper
