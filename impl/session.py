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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import GenlockError
from ..traces.format import FORMAT_VERSION, P2P, Clock, TraceHeader
from ..traces.recorder import Recorder
from .intercept import BLIND_SPOTS, Leave, Operation, caller, unknown_operators, watch
from .record import Recording


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
        self._groups: set[str] = set()
        self._sequence: dict[tuple[object, ...], int] = {}

    def issue(self, operation: Operation) -> Leave | None:
        """Write that the operation is issued, and leave word to write that it has completed."""
        try:
            with self._lock:
                if self._recorder is None:
                    self.open()
                return None if self._recorder is None or self._over else self._enter(self._recorder, operation)
        except Exception as error:
            self._give_up(error)
            return None

    def _enter(self, recorder: Recorder, operation: Operation) -> Leave:
        op, group, root, peer, tag, dtype, numel, asynchronous, thread = operation
        if group.name not in self._groups:
            self._groups.add(group.name)
            recorder.group(group)
        key = (group.name, op, peer, tag) if op in P2P else (group.name,)
        sequence = self._sequence[key] = self._sequence.get(key, 0) + 1
        index = recorder.event(
            edge="enter",
            group=group.name,
            sequence=sequence,
            op=op,
            root=root,
            peer=peer,
            tag=tag,
            dtype=dtype,
            numel=numel,
            asynchronous=asynchronous,
            thread=thread,
            site=caller(),
        )

        def leave(outcome: str | None) -> None:
            if not self._over:
                recorder.event(
                    edge="exit", group=group.name, sequence=sequence, op=op, peer=peer, entered=index, outcome=outcome
                )

        return leave

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
        self._over = True
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
