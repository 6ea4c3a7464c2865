"""Starts Genlock's own programs without the start of an interpreter: forks them from a process that has torch loaded.

    with Zygote() as zygote:  # some seconds, once
        process = zygote.start([sys.executable, "-m", "genlock", "run", …], said)

Launcher, torchrun, guardians and ranks are the processes that they would be, with the same code, command lines,
parents, sessions and signals, in a second instead of six. Left out is what comes of an exec: /proc/PID/cmdline and
environ stay the zygote's (`comm` tells what a process is), and memory is shared until it is written. So nothing is
measured here of how big a process is, or how long it takes to start.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self

from ...guardian import command as guardian
from ..rank.parent_death import die_with_parent

GUARDIAN, RANK = "genlock-guard", "genlock-rank"
"""Names of processes, in /proc/PID/comm."""
SET_NAME = 15
"""PR_SET_NAME of Linux's prctl."""


class Process:
    """Holds a program that a zygote has forked; like a Popen, as far as it goes.

    `status` is the file that its exit status goes to. `gone` says whether the zygote has ended, and so the program.
    """

    def __init__(self, pid: int, status: Path, gone: Callable[[], bool]) -> None:
        self.pid, self._status, self._gone = pid, status, gone
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, once it has ended; None before."""
        if self.returncode is None:
            gone = self._gone()
            if self._status.exists():
                self.returncode = int(self._status.read_text())
            elif gone:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.005)
        return self.returncode or 0


class Zygote:
    """Holds the process that is forked from; it ends with this one, and what it has forked ends with it.

    `modules` are further ones for it to load; with a `main`, one is run by its name, as by `python -m`.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=partial(die_with_parent, os.getpid()),
            start_new_session=True,  # Ctrl-C in a terminal is for this process alone, which ends the others
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        """End it at once, and all that it has forked."""
        self._process.kill()
        self._process.wait()

    def _gone(self) -> bool:
        return self._process.poll() is not None

    def start(self, words: Sequence[str], said: Path) -> Process:
        """Run a program; what it says goes to a file, and its exit status to another beside it.

        Raises BrokenPipeError where the zygote has ended.
        """
        status = said.with_suffix(".status")
        assert self._process.stdin
        assert self._process.stdout
        with self._asking:
            self._process.stdin.write(json.dumps([list(words), str(said), str(status)]) + "\n")
            self._process.stdin.flush()
            pid = self._process.stdout.readline()
            if not pid:
                raise BrokenPipeError("the zygote has ended")
            return Process(int(pid), status, self._gone)


# ── in the zygote, and in what it forks ─────────────────────────────────────────────────────────────


class Forked:
    """Runs a program as a child of this process, forked instead of started.

    It is like a Popen as far as torchrun and `launch` need one.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        start_new_session: bool = False,
        preexec_fn: Callable[[], object] = lambda: None,
    ) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        outputs = [
            stream if isinstance(stream, int) or stream is None else stream.fileno() for stream in (stdout, stderr)
        ]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            _be(args, os.environ if env is None else env, preexec_fn, outputs)

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
            time.sleep(0.002)
        return self.returncode or 0

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _be(
    words: Sequence[str],
    environ: Mapping[str, str],
    first: Callable[[], object] = lambda: None,
    outputs: Sequence[int | None] = (None, None),
) -> None:
    """Become a program, in a fork, and end with it.

    What the process before had open or handled is gone, as by exec.
    """
    status: object = 1
    try:
        gc.freeze()  # nothing of the process before is ever given back: its descriptors have other owners by now
        signal.set_wakeup_fd(-1)
        for handled in signal.valid_signals():
            if callable(signal.getsignal(handled)) and handled != signal.SIGINT:
                signal.signal(handled, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(outputs, 1):
            if stream is not None:
                os.dup2(stream, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, 4096)
        given = dict(environ)
        os.environ.clear()
        os.environ.update(given)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        first()
        status = _program(list(words))
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _program(words: list[str]) -> int:
    """Do what a command line asks for; what this process has not loaded is started."""
    count = len(guardian())
    module = words[2] if words[1:2] == ["-m"] else "" if words[:count] == guardian() else None
    if module in PROGRAMS:
        name, run = PROGRAMS[module]
        sys.argv = words[2:] if module else words
        if name:
            ctypes.CDLL(None).prctl(SET_NAME, name.encode(), 0, 0, 0)
        return run(words[3:] if module else words[count:])
    os.execvp(words[0], words)
    raise AssertionError("unreachable")


def _run(main: Callable[[], object], arguments: Sequence[str]) -> int:
    """Run a program that reads `sys.argv`."""
    main()
    return 0


PROGRAMS: dict[str, tuple[str, Callable[[list[str]], int]]] = {}
"""The process's name, if it has one, and the function to run, by module; filled by `_load`.
The guardian is a file: it has no module."""


def _torchrun_forks(handler: Any, args: Sequence[str], env: Mapping[str, str]) -> Forked:
    """Fork a rank's program, in place of `SubprocessHandler._popen`."""
    return Forked(args, env=env, stdout=handler._stdout, stderr=handler._stderr, start_new_session=True)


def _load() -> None:
    """Load all programs, and have each fork the next."""
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    from ...guardian import child, guardian, supervisor
    from . import launch, rank_main

    assert guardian  # loaded, for the supervisor to fork
    PROGRAMS[""] = (GUARDIAN, supervisor.main)
    PROGRAMS["genlock.impl.jobs.rank_main"] = (RANK, lambda arguments: rank_main.main(*arguments))
    PROGRAMS["torch.distributed.run"] = ("", lambda arguments: torchrun.main(arguments) or 0)
    for module in map(import_module, sys.argv[1:]):
        if hasattr(module, "main"):
            PROGRAMS[module.__name__.removesuffix(".__main__")] = ("", partial(_run, module.main))
    handler: Any = SubprocessHandler
    assert callable(handler._popen)
    handler._popen = _torchrun_forks
    launch.start_process = Forked
    child.become = lambda file, words, environ: _be(words, environ)


def main() -> None:
    """Start a program for each line of the input, and answer with its id.

    The line also names where what the program says and its end go.
    """
    die_with_parent()
    _load()
    own = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    for line in sys.stdin:
        if os.fork() == 0:
            words, said, status = json.loads(line)
            _keep(words, said, status, own)


def _keep(words: Sequence[str], said: str, status: str, zygote: int) -> None:
    """Keep a program, in a process of its own: start it, wait for it, and tell its end."""
    try:
        die_with_parent(zygote)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with open(said, "wb") as file:
            process = Forked(words, stdout=file, stderr=file, preexec_fn=partial(die_with_parent, os.getpid()))
        print(process.pid, flush=True)
        ended = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        Path(f"{status}.new").write_text(str(ended))
        os.rename(f"{status}.new", status)
    finally:
        os._exit(0)
