"""Asks a rank for its stacks, in ways that cannot end or stop it.

py-spy reads the memory of the process without pausing it: whoever pauses a process and is ended meanwhile leaves it
stopped. A signal is sent only where faulthandler is known to answer it, and the process handles that signal: the
default of most is to end the process. Left out: native frames, for which py-spy would have to pause it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import UnreadableInput
from ..guardian.status_page import DUMPS_STACKS, SIZE, SPARED, STACKS, VARIABLE, Page
from .bounded import Outcome
from .process import name_of
from .ranks import Rank
from .staging import Staging

SECONDS = 12.0
"""Bounds one look at the stacks of a rank, in all."""
TRIES = 3
MAX_STACKS = 8 << 20
RECORDER_ASKS = signal.SIGRTMAX - 5
RECORDED = re.compile(r"/rank\d{1,7}\.stacks\.txt$")
"""Signal on which a recorded rank writes its stacks, and where: as in `impl.recording.standstill`."""
DUMPED = b"(most recent call first)"
"""Stands in every stack that faulthandler writes."""


def py_spy() -> str | None:
    """Return the path of py-spy: beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def stacks(rank: Rank, look: int, staging: Staging, asked_by: signal.Signals | None) -> Outcome:
    """Write the stacks of a rank at one look, in the first of the ways that works.

    `switches` is read outside of both: alike twice, the main thread stood in both stacks all the time.
    """
    before = rank.process.switches()
    outcome = _stacks(rank, look, staging, asked_by)
    outcome.found["kernel"] = rank.process.waits_in()
    outcome.found["switches"] = before if look == 1 else rank.process.switches()
    return outcome


def _stacks(rank: Rank, look: int, staging: Staging, asked_by: signal.Signals | None) -> Outcome:
    whys: list[str] = []
    advice: list[str] = []
    for way in (_py_spy, _recorded, _guarded, _asked, _served):
        try:
            data, suffix = way(rank, asked_by)
        except (OSError, UnreadableInput, subprocess.SubprocessError, http.client.HTTPException) as error:
            what = error.what if isinstance(error, UnreadableInput) else getattr(error, "strerror", None) or str(error)
            whys.append(what)
            advice += [error.do] if isinstance(error, UnreadableInput) and error.do else []
            continue
        return Outcome([staging.write(f"{rank.name}.stack{look}{suffix}", data)], {"by": way.__name__.strip("_")})
    return Outcome(missing="no stacks: " + "; ".join(why for why in whys if why), advice=advice)


def _py_spy(rank: Rank, _: object) -> tuple[bytes, str]:
    program = py_spy()
    if program is None:
        raise UnreadableInput("py-spy is not installed here", do="py-spy")
    command = [program, "dump", "--nonblocking", "--json", "--pid", str(rank.process.pid)]
    said = ""
    for _ in range(TRIES):  # of a process that moves, what is read may not fit together
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS / 3, check=False)
        if not rank.process.alive:
            raise UnreadableInput("the process has ended")
        if done.returncode == 0 and done.stdout.lstrip()[:1] == b"[":
            return done.stdout[:MAX_STACKS], ".json"
        said = done.stderr.decode(errors="replace")
        if "ermission" in said or "not permitted" in said:
            raise UnreadableInput("py-spy may not look into it", do="ptrace")
    raise UnreadableInput(f"py-spy: {' '.join(said.split())[:200]}")


def _recorded(rank: Rank, _: object) -> tuple[bytes, str]:
    """Take the stacks that a rank under `genlock record` writes beside its trace."""
    held = [number for number, target in rank.process.open_files() if RECORDED.search(target)]
    if not held:
        raise UnreadableInput("")
    if not rank.process.others_sleep():
        # the stacks of running threads are not to be walked: the rank may die of it
        raise UnreadableInput("its threads run, so that it is not asked for their stacks")
    file = rank.process.reopen(held[0])
    try:
        return _after_signal(rank, RECORDER_ASKS, file), ".txt"
    finally:
        os.close(file)


def _guarded(rank: Rank, _: object) -> tuple[bytes, str]:
    """Take the stacks that a rank under `genlock guard` writes for its guardian."""
    given = rank.seen.environment
    if VARIABLE not in given or STACKS not in given or given.get(SPARED) != "1":
        # asked for those of all threads, a rank that runs may die of it
        raise UnreadableInput("")
    with open(given[VARIABLE], "rb") as file:
        page = Page.read(memoryview(file.read(SIZE)))
    if page is None or page.pid != rank.process.pid or not page.flags & DUMPS_STACKS:
        raise UnreadableInput("its guardian's page is of another process")
    file_of_stacks = os.open(given[STACKS], os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _after_signal(rank, signal.SIGUSR2, file_of_stacks), ".txt"
    finally:
        os.close(file_of_stacks)


def _asked(rank: Rank, asked_by: signal.Signals | None) -> tuple[bytes, str]:
    """Send the signal on which the user says that faulthandler writes to stderr."""
    if asked_by is None:
        raise UnreadableInput("", do="faulthandler")
    if not rank.process.catches(asked_by):
        raise UnreadableInput(f"it does not handle {asked_by.name}, which would end it", do="faulthandler")
    stderr = rank.process.reopen(2)
    try:
        return _after_signal(rank, asked_by, stderr), ".txt"
    finally:
        os.close(stderr)


def _after_signal(rank: Rank, number: int, file: int) -> bytes:
    """Send a signal, and return what the process then writes to a file."""
    if rank.process.state in "Tt":
        raise UnreadableInput("it is stopped, and would answer a signal when it goes on")
    before = size = os.fstat(file).st_size
    rank.process.send(number)
    until = time.monotonic() + SECONDS / 6
    while time.monotonic() < until:
        time.sleep(0.05)
        now = os.fstat(file).st_size
        if now > before and now == size:
            break
        size = now
    data = os.pread(file, MAX_STACKS, before)
    if DUMPED not in data:
        raise UnreadableInput(f"it wrote no stacks on {name_of(number)}")
    return data


def _served(rank: Rank, _: object) -> tuple[bytes, str]:
    """Ask torch's worker server, where the program has one."""
    data = ask_worker(rank, "dump_traceback")
    if DUMPED not in data:
        raise UnreadableInput("torch's worker server gave no stacks")
    return data, ".txt"


# ── torch's worker server ───────────────────────────────────────────────────────────────────────────────


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_worker(rank: Rank, handler: str, limit: int = MAX_STACKS) -> bytes:
    """Return what a handler of the rank's worker server answers. Raises OSError, UnreadableInput."""
    path = rank.seen.environment.get("TORCH_WORKER_SERVER_SOCKET", "")
    if not path.startswith("/"):
        raise UnreadableInput("")
    if not _listens(rank, path):
        raise UnreadableInput("no worker server of this rank listens at TORCH_WORKER_SERVER_SOCKET")
    connection = _OverSocket(rank.process.path(path), SECONDS / 3)
    with contextlib.closing(connection):
        connection.request("POST", f"/handler/{handler}?includestacktraces=false", body=b"")
        answer = connection.getresponse()
        data = answer.read(limit)
    if answer.status != 200:
        raise UnreadableInput(f"torch's worker server has no `{handler}` ({answer.status})")
    return data


def _listens(rank: Rank, path: str) -> bool:
    """Tell whether a socket of that path is the rank's: all ranks may have been given the same."""
    own = {target[8:-1] for _, target in rank.process.open_files() if target.startswith("socket:[")}
    for line in rank.process.read("net/unix", 8 << 20).decode(errors="replace").splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7] == path and fields[6] in own:
            return True
    return False


Way = Callable[[Rank, signal.Signals | None], tuple[bytes, str]]
