"""Inside a recorded program: writes every operation of this process to its rank's trace.

A process becomes a rank, and gets a trace, when it has initialised torch.distributed; the others leave none.
Nothing that goes wrong here reaches the program. Left out: getting into the program (`record`, `attach`).
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace

from ...errors import GenlockError
from ...traces.format import FORMAT_VERSION, NUMBER, P2P, Clock, Event, TraceHeader
from ...traces.recorder import Kind, Recorder
from .c10d_intercept import BLIND_SPOTS, Leave, Operation, caller, forget, site, unknown_operators, watch
from .command import Recording


def attach() -> None:
    """Record this process from now on, as its environment says. Raises GenlockError where this torch is unknown."""
    recording = Recording.inherited()
    if recording is None or not dist.is_available():
        return
    session = Session(recording)
    session.follow_init()
    session.follow_end()
    os.register_at_fork(after_in_child=session.forked)
    watch(session)


MAX_KINDS = 4096
"""Kinds of operations beyond which those that were met are forgotten: a program may never issue the same twice."""


class Session:
    """The trace of this process, once it is a rank."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.forked()

    def forked(self) -> None:
        """This process has written nothing yet, whatever its parent has."""
        self._lock = threading.RLock()
        self._recorder: Recorder | None = None
        self._who = (-1, 0)
        self._over = False
        forget()
        self._groups: set[str] = set()
        self._kinds: dict[tuple[Operation, int, int], tuple[Kind, CodeType | None]] = {}
        """By operation, the `id` of the code that issues it (which has to live on), and where in that: a line's number
        takes long to find."""
        self._counts: defaultdict[tuple[object, ...], Iterator[int]] = defaultdict(lambda: count(1))
        """The next sequence number of each group, and of each way of p2p."""

    def issue(self, operation: Operation) -> Leave | None:
        """Write that the operation is issued, and leave word to write that it has completed."""
        time_ns = time.monotonic_ns()
        kind = self.kind(operation, caller())
        if kind is None:
            return None
        begun = kind.begin(time_ns)
        return lambda outcome: kind.end(begun, time.monotonic_ns(), outcome)

    def kind(self, operation: Operation, frame: FrameType | None) -> Kind | None:
        """What writes of every such operation from that place of the program; None where nothing is written."""
        code, at = (None, 0) if frame is None else (frame.f_code, frame.f_lasti)
        kind, _ = self._kinds.get((operation, id(code), at), (None, None))
        if kind is None:
            try:
                kind = self._kind(operation, frame)
            except Exception as error:
                self._give_up(error)
            if kind is not None:
                if len(self._kinds) >= MAX_KINDS:
                    self._kinds.clear()
                self._kinds[operation, id(code), at] = kind, code
        return kind

    def _kind(self, operation: Operation, frame: FrameType | None) -> Kind | None:
        op, group, root, peer, tag, dtype, numel, asynchronous, thread = operation
        with self._lock:
            if self._recorder is None:
                self.open()
            recorder = self._recorder
            if recorder is None or self._over:
                return None
            if group.name not in self._groups:
                self._groups.add(group.name)
                recorder.group(group)
            left = Event(NUMBER, NUMBER, "", "exit", "", "", group=group.name, sequence=NUMBER, op=op, peer=peer)
            about = replace(left, root=root, tag=tag, dtype=dtype, numel=numel, asynchronous=asynchronous)
            entered = replace(about, edge="enter", thread=thread, site=site(frame))
            counter = self._counts[(group.name, op, peer, tag) if op in P2P else (group.name,)]
            return recorder.kind(entered, replace(left, entered=NUMBER), counter, self._give_up)

    def open(self) -> None:
        """Begin the trace, if this process has become a rank since. A process is one rank in its life."""
        if self._over or not dist.is_initialized():
            return
        who = (dist.get_rank(), dist.get_world_size())
        if self._recorder is None:
            self._who = who
            recording = self._recording.restarted()
            self._recorder = Recorder(Path(recording.out), self._header(recording.run, *who))
        elif who != self._who:
            self.end(f"from here on the process is rank {who[0]} of {who[1]}")

    def end(self, message: str = "", *, failed: bool = False) -> None:
        """The process ends, or is no longer recorded."""
        if self._recorder is not None and not self._over:
            self._recorder.end("exception" if failed else "stopped", 1 if failed else -1, message)
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

        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("init_process_group") is original:
                module.__dict__["init_process_group"] = init_process_group

    def follow_end(self) -> None:
        """Write how the process ends, where Python sees it."""
        original = sys.excepthook

        def excepthook(kind: Any, error: BaseException, traceback: Any) -> None:
            self.end(f"{kind.__name__}: {error}"[:1000], failed=True)
            original(kind, error, traceback)

        sys.excepthook = excepthook
        atexit.register(self.end)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self._kinds.clear()
            if self._recorder is not None:
                self._recorder.close()  # another thread may be about to write, and whoever keeps a kind goes on telling
        what = str(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {error}"
        print(f"genlock: this process is not recorded any further: {what}", file=sys.stderr)

    @staticmethod
    def _header(run: str, rank: int, world: int) -> TraceHeader:
        unknown = [f"operators that this torch has and genlock does not know: {n}" for n in unknown_operators()]
        return TraceHeader(
            FORMAT_VERSION,
            run,
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
        )
