"""Runs steps that may block, each in a process of its own, and leaves behind whoever does not come back in time.

A file of a server that is gone, or a process whose memory is locked, can hold a reader in the kernel where no signal
reaches it: then only somebody else can go on. Left out: what the steps do.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from ..errors import GenlockError

AT_ONCE = 16
"""Steps that run at the same time."""
TICK = 0.01
MAX_ANSWER = 8 << 20


@dataclass
class Outcome:
    """Holds what came of a step: names of files that it wrote, what it found, and why there is no more."""

    files: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why something could not be had; empty where all could."""
    advice: list[str] = field(default_factory=list)
    """Names what would have helped: keys of `advice.NEXT_TIME`."""


class Step(NamedTuple):
    """Defines one step: what it is called, how many seconds it may take, and what it does."""

    name: str
    seconds: float
    work: Callable[[], Outcome]
    alone: bool = False
    """True if it must not run at the same time as another one of the kind."""


class _Running:
    """Holds a step that is under way."""

    def __init__(self, at: int, step: Step, pid: int, pipe: int, until: float) -> None:
        self.at, self.step, self.pid, self.pipe, self.until = at, step, pid, pipe, until
        self.answer = bytearray()

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (part := os.read(self.pipe, 1 << 16)) and len(self.answer) < MAX_ANSWER:
                self.answer += part

    def ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def kill(self) -> None:
        """End it with all that it has started. A process that the kernel holds is left to it."""
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)
        until = time.monotonic() + 0.1
        while not self.ended() and time.monotonic() < until:
            time.sleep(TICK / 4)

    def outcome(self) -> Outcome:
        try:
            return Outcome(**json.loads(self.answer))
        except (ValueError, TypeError):
            return Outcome(missing="it ended without an answer")


class Runner:
    """Runs steps until a time, or until somebody interrupts it."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.interrupted = False

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have Ctrl-C, a scheduler's SIGTERM and a closed terminal end the steps, and nothing else."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupted = True

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def left(self) -> float:
        """Return how many seconds are left."""
        return 0.0 if self.interrupted else max(0.0, self.until - time.monotonic())

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Run steps, and return what came of each: those that ran out of time have left what they have written."""
        outcomes: dict[int, Outcome] = {}
        waiting = list(enumerate(steps))
        running: list[_Running] = []
        while (waiting or running) and self.left > 0:
            while waiting and len(running) < AT_ONCE:
                chosen = next((w for w in waiting if not w[1].alone or not _has_alone(running)), None)
                if chosen is None:
                    break
                waiting.remove(chosen)
                running.append(self._start(*chosen))
            self._attend(running, outcomes)
        why = "interrupted" if self.interrupted else "the time was over"
        for left in running:
            left.read()
            left.kill()
            outcomes[left.at] = Outcome(missing=why)
            os.close(left.pipe)
        return [outcomes.get(at, Outcome(missing=why)) for at in range(len(steps))]

    def pause(self, seconds: float) -> None:
        """Wait, unless the time is over before."""
        until = time.monotonic() + seconds
        while self.left > 0 and time.monotonic() < until:
            time.sleep(0.05)

    def _start(self, at: int, step: Step) -> _Running:
        read, write = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(step, write)
        os.close(write)
        os.set_blocking(read, False)
        return _Running(at, step, pid, read, time.monotonic() + step.seconds)

    def _attend(self, running: list[_Running], outcomes: dict[int, Outcome]) -> None:
        answers = select.poll()
        for one in running:
            answers.register(one.pipe, select.POLLIN)
        answers.poll(TICK * 1000)
        for one in list(running):
            one.read()
            if one.ended():
                one.read()
                outcomes[one.at] = one.outcome()
            elif time.monotonic() > one.until:
                one.kill()
                outcomes[one.at] = Outcome(missing=f"it took longer than {one.step.seconds:g} s")
            else:
                continue
            running.remove(one)
            os.close(one.pipe)
        if running:
            time.sleep(TICK)


def _has_alone(running: Sequence[_Running]) -> bool:
    return any(one.step.alone for one in running)


def _child(step: Step, write: int) -> NoReturn:
    """Do the step, answer, and end without a word of the parent's."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has the terminal's Ctrl-C
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        signal.alarm(int(step.seconds) + 5)  # should the parent be killed
        outcome = _answer(step)
        left = memoryview(json.dumps(outcome.__dict__).encode())
        while left:
            left = left[os.write(write, left) :]
    finally:
        os._exit(0)


def _answer(step: Step) -> Outcome:
    try:
        return step.work()
    except GenlockError as error:
        return Outcome(missing=str(error))
    except OSError as error:
        return Outcome(missing=error.strerror or str(error))
    except Exception as error:  # a bug of ours costs one step, and is told
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(missing=f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})")
