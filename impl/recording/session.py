"""Writes, inside a recorded program, every operation of this process to its rank's trace.

A process becomes a rank, and gets a trace, when it has initialised torch.distributed; the others leave none. Each job
that it joins has a trace of its own: the ranks agree on the job's name by its store. No error in here reaches the
program. Left out: getting into the program (`command`, `attach`), and how a process ends (`endings`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import socket
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace

from ...errors import GenlockError
from ...traces import journal
from ...traces.format import (
    FORMAT_VERSION,
    P2P,
    SUFFIX,
    Clock,
    Group,
    KnownBy,
    Maker,
    Making,
    RepeatedOperation,
    TraceHeader,
)
from ...traces.recorder import OperationRecorder, Recorder
from .c10d_intercept import (
    BLIND_SPOTS,
    OnComplete,
    Operation,
    begin_job,
    forget_observers,
    group_of,
    store_of,
    unknown_operators,
    unregistered,
    watch,
)
from .command import RecordingSettings
from .endings import STOPPED, Ending, follow_endings, of
from .precheck import precheck_from_now_on
from .stack_timer import NEVER, StackTimer, timer
from .stacks import short_stack, stack_key
from .standstill import STACKS, answer
from .torch_compat import put_in_place_of


def attach() -> None:
    """Record this process from now on, as its environment says. Raises GenlockError where this torch is unknown."""
    settings = RecordingSettings.inherited()
    if settings is None or not dist.is_available():
        return
    session = Session(settings)
    _sessions.append(session)
    session.follow_init()
    session.follow_destroy()
    session.follow_groups()
    follow_endings(session.end, session.events, session.keep)
    os.register_at_fork(after_in_child=session.forked)
    timer.follow(put_in_place_of)
    watch(session)
    if settings.precheck is not None:
        precheck_from_now_on(settings.precheck)


_sessions: list[Session] = []
"""The one of this process, where it is recorded."""


def folder_now() -> Path | None:
    """Return where the trace of the job lies that this process has joined; None where there is none."""
    trace = _sessions[0].now if _sessions else None
    return None if trace is None else trace.recorder.path.parent


SOON = 1_000_000_000
"""Nanoseconds after which a process that is no rank is asked again."""
MAX_OPERATIONS = 4096
"""Beyond so many distinct operations, those that were met are forgotten: a program may never issue the same twice."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses of a store that no other host reaches."""
KEY = "genlock/job"
"""Under this key of a job's store lies the name that its ranks agree on."""


class JobTrace:
    """Holds the trace that this process writes of one job."""

    def __init__(self, settings: RecordingSettings, job: journal.Job, rank: int, backend: str) -> None:
        self.job, self.rank = job, rank
        folder = journal.place_of(Path(settings.out), job)
        self.recorder = Recorder(folder, _header(job, rank, backend), settings.keep)
        path = self.recorder.path
        self.stacks = StackTimer(path.with_name(path.name.removesuffix(SUFFIX) + STACKS), settings.stacks_after)
        if settings.stacks:
            answer(folder, rank)
        self.over = False
        """True once its end is written, and the process has not gone on since."""
        self.kept = False
        """True where that is what the process has raised, and somebody keeps: it may go on."""
        self.raised: BaseException | None = None
        """What was about to be raised, or was handled, when its group was destroyed."""
        self._groups: set[str] = set()
        self._made = count(1)
        """The next number of a group in whose making this process takes part."""
        self._counts: defaultdict[tuple[object, ...], Iterator[int]] = defaultdict(lambda: count(1))
        """The next sequence number of each group, and of each way of p2p."""

    def announce(self, group: Group) -> None:
        """Write who is in a group, unless that is written."""
        if group.name not in self._groups:
            self._groups.add(group.name)
            self.recorder.group(group)

    def making(self, by: Maker, members: tuple[int, ...], *, local: bool, frame: FrameType) -> Making:
        """Write that this process begins to make a group, with itself in it or not."""
        known_by: KnownBy = "members" if local else "all"
        place = self.recorder.stack(short_stack(frame))
        making = Making(next(self._made), time.monotonic_ns(), by, members, known_by, place)
        self.recorder.making(making)
        return making

    def made(self, group: Group, making: Making) -> None:
        """Write that the group was made."""
        if group.name:
            self._groups.add(group.name)
        self.recorder.made(replace(group, number=making.number, known_by=making.known_by, site=making.site))

    def operation(
        self, operation: Operation, frame: FrameType | None, failed: Callable[[Exception], None]
    ) -> OperationRecorder:
        """Return what records every such operation from that place of the program."""
        op, group, root, peer, tag, dtype, numel, asynchronous, thread, reduce, splits = operation
        self.announce(group)
        place = None if frame is None else self.recorder.stack(short_stack(frame))
        about = (root, peer, tag, dtype, numel, asynchronous, thread, place, reduce, splits)
        counter = self.counter(group.name, op, peer, tag)
        return self.recorder.operation(RepeatedOperation(0, op, group.name, *about), counter, failed)

    def counter(self, group: str, op: str, peer: int | None, tag: int | None) -> Iterator[int]:
        """Return the sequence numbers of an operation."""
        return self._counts[(group, op, peer, tag) if op in P2P else (group,)]

    def end(self, ending: Ending) -> None:
        """Write why the process ends; the first cause stands, but for an exception after a clean end."""
        if self.over and not (ending.cause == "exception" and self.recorder.ended == "stopped"):
            return
        self.kept = False
        if self.over:
            self.recorder.resume()
        self.over = True
        place = self.recorder.site(ending.place)
        self.recorder.end(ending.cause, ending.exit, ending.message, ending.culprit, place)
        self.stacks.close(keep=ending.cause != "stopped")

    def resume(self) -> None:
        """Go on after an end: the process has joined the same job again."""
        if self.over:
            self.recorder.resume()
            self.stacks = StackTimer(self.stacks.path, self.stacks.after)
            self.over = self.kept = False


class Session:
    """Keeps the traces of this process, once it is a rank."""

    def __init__(self, settings: RecordingSettings) -> None:
        self._settings = settings
        self.forked()

    def forked(self) -> None:
        """Begin anew: this process has written nothing yet, whatever its parent has."""
        self._lock = threading.RLock()
        self._over = False
        self._joining = False
        """True once it has come to where it joins a job, or has ended before."""
        self._now: JobTrace | None = None
        """The job of the default group, while there is one."""
        self._jobs: dict[journal.Job, JobTrace] = {}
        """All that this process is or was a rank of; of one job, it is one rank."""
        self._others: dict[str, JobTrace] = {}
        """Jobs of groups that torch.distributed does not know, by the group's name."""
        self._operations: dict[tuple[Operation, bytes], OperationRecorder] = {}
        """Keyed by operation and stack."""
        self._due = 0
        """From when on (monotonic) the timer of stacks is to be told that the process goes on."""
        begin_job(again=False)

    @property
    def now(self) -> JobTrace | None:
        """Return the trace of the job of the default group, while there is one."""
        return self._now

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
        trace = self._now
        try:
            self._due = time_ns + SOON if trace is None else trace.stacks.moved(time_ns)
        except OSError:
            self._due = NEVER
        return self._due

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
        with self._lock:
            trace = self._trace_of(operation.group)
            if trace is None or self._over:
                return None
            if trace.kept:
                trace.resume()
            if trace is not self._now:  # its group's name says nothing to the other members
                operation = operation._replace(group=replace(operation.group, name="0"))
            return trace.operation(operation, frame, self._give_up)

    def _trace_of(self, group: Group) -> JobTrace | None:
        """Return the trace that an operation on a group belongs to."""
        own = unregistered(group.name)
        if own is None:
            if self._now is None:
                self.open()
            return self._now
        trace = self._others.get(group.name)
        if trace is None:
            trace = self._others[group.name] = self._join(store_of(own), own.rank(), own.size(), group.backend)
        return trace

    def open(self) -> None:
        """Begin the trace of the job that this process has joined, or go on with it."""
        if self._over or not dist.is_initialized():
            return
        rank, world = dist.get_rank(), dist.get_world_size()
        trace = self._join(store_of(None), rank, world, str(dist.get_backend()))
        begin_job(again=trace.over)
        trace.resume()
        self._now, self._due = trace, 0
        self.tick(time.monotonic_ns())
        self._operations.clear()
        if dist.group.WORLD is not None:
            trace.announce(group_of(dist.group.WORLD))

    def _join(self, store: Any, rank: int, world: int, backend: str) -> JobTrace:
        """Return the trace of the job whose store this is."""
        attempt = self._settings.attempt_now()
        job = journal.Job(agreed_name(store, self._settings.run), attempt, world, self._settings.run)
        known = self._jobs.get(job)
        if known is None or known.rank != rank:
            known = self._jobs[job] = JobTrace(self._settings, job, rank, backend)
        return known

    def end(self, ending: Ending = STOPPED) -> None:
        """Write why the process ends, in each trace that has no end yet; an exception, in the last one at least."""
        if not self._joining and ending.cause == "exception":
            self._joining = True
            came = member(self._settings.attempt_now())
            if came.rank >= 0:
                self._note(failed(came, ending, joining=False))
        with self._lock:
            traces = list(self._jobs.values())
            gone = [trace for name, trace in self._others.items() if unregistered(name) is None]
            for trace in traces:
                if not trace.over or (not self._over and trace is traces[-1]):
                    with contextlib.suppress(Exception):
                        trace.end(STOPPED if trace in gone and trace is not traces[-1] else ending)

    def keep(self, error: BaseException) -> None:
        """Write what a task of this process has raised as the end of its job, until the process goes on with that."""
        with self._lock, contextlib.suppress(Exception):
            trace = next(reversed(self._jobs.values()), None)
            if trace is None or self._over or (trace.over and trace.raised is not error):
                return
            trace.end(of(error)._replace(exit=-1))
            trace.kept = True
            self._operations.clear()
            forget_observers()

    def events(self) -> int:
        """Count what was written so far."""
        return sum(trace.recorder.written for trace in self._jobs.values())

    def follow_init(self) -> None:
        """Begin the trace at once when torch.distributed is initialised, so that a rank that issues nothing has one."""
        original, signature = dist.init_process_group, inspect.signature(dist.init_process_group)

        @functools.wraps(original)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            came = self._came(signature, args, kwargs, sys._getframe())
            try:
                original(*args, **kwargs)
            except Exception as error:
                self._note(failed(came, of(error), joining=True))
                raise
            self._note(journal.Joined(os.getpid()))
            try:
                with self._lock:
                    self.open()
            except Exception as error:
                self._give_up(error)

        put_in_place_of(original, init_process_group)

    def _came(
        self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> journal.Came:
        """Write that this process has come to where it joins its job."""
        self._joining = True
        came = member(self._settings.attempt_now())
        with contextlib.suppress(Exception):  # what torch refuses, it says itself
            given = signature.bind_partial(*args, **kwargs).arguments
            rank, world = (int(given.get(name, -1)) for name in ("rank", "world_size"))
            came = replace(came, rank=max(rank, came.rank), world=max(world, came.world))
        with contextlib.suppress(Exception):
            came = replace(came, place=short_stack(frame)[-1][0])
        self._note(came)
        return came

    def _note(self, line: journal.Line) -> None:
        """Write a line into the journal; what keeps it from that keeps the program from nothing."""
        with contextlib.suppress(OSError):
            journal.append(Path(self._settings.out), line)

    def follow_destroy(self) -> None:
        """Write a clean end when the default group is destroyed: from then on, the process is no rank.

        A Python may end without telling anybody: a forked child, an actor, one that its parent terminates, perhaps as
        soon as it has what it waits for. So the end comes first; what goes wrong in the destroying takes it back.
        """
        original = dist.destroy_process_group

        @functools.wraps(original)
        def destroy_process_group(*args: Any, **kwargs: Any) -> None:
            group = args[0] if args else kwargs.get("group")
            whole = dist.is_initialized() and (group is None or group is dist.group.WORLD)
            if whole and self._now is not None:
                with self._lock, contextlib.suppress(Exception):
                    if self._now.kept:
                        self._now.resume()
                    self._now.raised = sys.exc_info()[1]
                    self._now.end(STOPPED)
                    self._now = None
                    self._operations.clear()
            original(*args, **kwargs)

        put_in_place_of(original, destroy_process_group)

    def follow_groups(self) -> None:
        """Announce a group when this process has taken part in making it, member or not."""
        original, signature = dist.new_group, inspect.signature(dist.new_group)

        @functools.wraps(original)
        def new_group(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind_partial(*args, **kwargs).arguments
            local = bool(given.get("use_local_synchronization"))
            making = self._making("new_group", given.get("ranks"), local, sys._getframe())
            group = original(*args, **kwargs)
            self._made(group, making)
            return group

        put_in_place_of(original, new_group)
        split = dist.split_group

        @functools.wraps(split)
        def split_group(*args: Any, **kwargs: Any) -> Any:
            parent = args[0] if args else kwargs.get("parent_pg")
            local = parent is not None and parent is not dist.group.WORLD
            making = self._making("split_group", (), local, sys._getframe())
            group = split(*args, **kwargs)
            self._made(group, making)
            return group

        put_in_place_of(split, split_group)

    def _making(self, by: Maker, ranks: Any, local: bool, frame: FrameType) -> Making | None:
        """Write that this process begins to make a group; None where nothing is recorded."""
        try:
            with self._lock:
                if self._now is None:
                    self.open()
                if self._now is None or self._over:
                    return None
                if ranks is None:
                    ranks = range(dist.get_world_size())
                # what can be looked at once alone is left to torch
                members = tuple(int(rank) for rank in ranks) if isinstance(ranks, Sequence) else ()
                return self._now.making(by, members, local=local, frame=frame)
        except Exception as error:
            self._give_up(error)
            return None

    def _made(self, group: Any, making: Making | None) -> None:
        """Write that the group was made, with this process in it or not."""
        try:
            with self._lock:
                if making is None or self._now is None or self._over:
                    return
                known = group_of(group) if isinstance(group, dist.ProcessGroup) else Group("", making.members)
                self._now.made(known, making)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self._operations.clear()
            what = str(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {error}"
            for trace in self._jobs.values():
                with contextlib.suppress(Exception):
                    trace.end(Ending("detached", message=what[:1000]))
                trace.recorder.close()  # another thread may be about to write, and observers are called on
        journal.mark(Path(self._settings.out), f"process {os.getpid()} was not recorded any further: {what}")
        print(f"genlock: this process is not recorded any further: {what}", file=sys.stderr)


def agreed_name(store: Any, recording: str) -> str:
    """Return a name for a job that all ranks with this store get alike: that of the first to ask.

    Ranks of several nodes, which have a recording each, get one name too. A store that cannot compare and set leaves
    what the environment says.
    """
    mine = f"{recording}-{uuid.uuid4().hex[:12]}"
    try:
        name = store.compare_set(KEY, "", mine)
        return name.decode() if isinstance(name, bytes) else str(name)
    except Exception:
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        known = "-".join(filter(None, map(os.environ.get, names))).replace("/", "_")
        return f"{recording}-{known or 'job'}"


def member(attempt: int) -> journal.Came:
    """Return which rank this process is to be, as its environment says."""
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    rank, world, local = (int(text) if text.isdecimal() and len(text) < 8 else -1 for text in told.values())
    if os.environ.get("MASTER_ADDR") in LOOPBACK:
        local = world
    return journal.Came(os.getpid(), rank, max(world, 0), max(local, 0), attempt)


def failed(came: journal.Came, ending: Ending, *, joining: bool) -> journal.Failed:
    """Return what a journal says of a process that raised before it was a rank."""
    kind, _, message = ending.message.partition(": ")
    about = (kind, message, ending.place or "")
    return journal.Failed(came.process, came.rank, came.world, came.attempt, joining, *about)


def _header(job: journal.Job, rank: int, backend: str) -> TraceHeader:
    unknown = [f"operators that this torch has and genlock does not know: {n}" for n in unknown_operators()]
    return TraceHeader(
        FORMAT_VERSION,
        job.run,
        rank,
        job.world,
        role="",
        backend=backend,
        protocol="",
        tables="",
        groups={},
        clock=Clock(time.time_ns(), time.monotonic_ns()),
        versions={"torch": str(torch.__version__), "python": sys.version.split()[0]},
        blind_spots=(*BLIND_SPOTS, *unknown),
        process=f"{socket.gethostname()}:{os.getpid()}",
        attempt=job.attempt,
        recording=job.recording,
    )
