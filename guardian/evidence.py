"""Keeps evidence of a rank before it is killed, and writes the end marker of its trace. All is bounded in time.

Stacks come from the rank itself, by faulthandler, which needs no GIL; a stopped rank cannot give them. Left out:
what would need root (kernel stacks) or the device's own tools.
"""

from __future__ import annotations

import os
import signal
import time

from .child import Child, descends, read
from .deadlines import COLLECTIVE, Failure
from .status_page import ASKED, DUMPS_STACKS, EVERYONE, HAS_SPOKEN, HAS_WORDS, NOBODY, Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STACKS_TIME = {"deadline": 0.4, COLLECTIVE: 0.4}
"""Seconds that a rank has to write its stacks, by cause; where a rank has died, HURRY."""
HURRY = 0.05
WORDS_TIME = 0.5
"""Seconds that it has for its last words, where it has any, and Flight Recorder for a dump by NCCL's pipe."""
TAIL = 1 << 20
"""No line of a trace is longer."""
END = ".end"
"""Follows the name of a trace in that of an end marker that has no trace."""


class LastWords:
    """Asks a rank, by a pipe, for its last words: what only the rank itself can save, as Flight Recorder's dump."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        environ[ASKED] = f"/proc/{os.getpid()}/fd/{self._read}"

    def ask(self, page: Page) -> None:
        if page.flags & HAS_WORDS:
            try:
                os.write(self._write, b"1")
            except OSError:  # it has been asked too often
                return

    def come(self, page: Page, memory: memoryview, child: Child) -> str:
        """Wait for the last words, `WORDS_TIME` at most. Return in words if they came; empty where there are none."""
        if not page.flags & HAS_WORDS:
            return ""
        until = time.monotonic() + WORDS_TIME
        while child.alive and not child.stopped:
            if (Page.read(memory) or page).flags & HAS_SPOKEN:
                return "last words: kept by the rank"
            if time.monotonic() > until:
                return f"last words: none came in {WORDS_TIME:g} s"
            time.sleep(0.003)
        return f"last words: none, the rank is {'stopped' if child.stopped else 'dead'}"


def gather(
    path: str,
    found: Failure,
    page: Page,
    child: Child,
    stacks: int,
    words: LastWords,
    memory: memoryview,
    environ: Mapping[str, str],
) -> bool:
    """Write what can be known of a rank to a file. Return True if it could be written."""
    words.ask(page)
    pid = page.pid if page.pid and descends(page.pid, child.pid) else child.pid
    parts = [found.what, "", *_page(page)]
    if child.alive:
        parts += ["", *_process(pid)]
    parts += ["", *_host(), "", *_stacks(page, pid, child, stacks, STACKS_TIME.get(found.cause, HURRY))]
    for part in (words.come(page, memory, child), _flight_recorder(environ)):
        parts += ["", part] if part else []
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(parts) + "\n")
    except OSError:
        return False
    return True


def _page(page: Page) -> Iterator[str]:
    waits = {NOBODY: "nobody", EVERYONE: "everyone"}.get(page.waiting, f"rank{page.waiting}")
    yield f"phase {page.phase or '(no beat yet)'}, {page.counter} beats, {page.position} collectives issued"
    yield f"waiting for {waits}; last commitment point: {page.commit or 'none'}"


def _process(pid: int) -> Iterator[str]:
    yield f"process {pid}: {read(f'/proc/{pid}/cmdline').replace(chr(0), ' ').strip()}"
    wanted = ("State", "TracerPid", "Threads", "VmRSS", "VmHWM", "SigBlk", "voluntary_ctxt", "nonvoluntary_ctxt")
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(wanted):
            yield "  " + line.replace("\t", " ")
    try:
        tasks = sorted(os.listdir(f"/proc/{pid}/task"), key=int)[:64]
    except OSError:
        return
    for task in tasks:
        stat = read(f"/proc/{pid}/task/{task}/stat")
        state = stat.rpartition(")")[2].split()[:1]
        name, wait = (read(f"/proc/{pid}/task/{task}/{x}").strip() for x in ("comm", "wchan"))
        yield f"  thread {task} {name}: state {''.join(state)}, in {wait if wait not in ('', '0') else 'user code'}"


def _host() -> Iterator[str]:
    system = os.uname()
    yield f"host {system.nodename}, {system.sysname} {system.release}, load {read('/proc/loadavg').strip()}"
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(("MemTotal", "MemAvailable")):
            yield "  " + line
    folder = "/proc/driver/nvidia/gpus"
    for gpu in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        model = [x for x in read(f"{folder}/{gpu}/information").splitlines() if x.startswith("Model")]
        yield f"device {gpu}: {''.join(model[:1])}"


def _stacks(page: Page, pid: int, child: Child, stacks: int, seconds: float) -> Iterator[str]:
    """Yield the stacks that the rank writes, of all threads if it is to be ended; or why there are none."""
    if not page.flags & DUMPS_STACKS:
        yield "no stacks: the rank has not opened its page"
        return
    if child.stopped or not child.alive:
        yield f"no stacks: the rank is {'stopped' if child.stopped else 'dead'}"
        return
    before = size = os.fstat(stacks).st_size  # of a rank that was asked already, and lived on
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        yield f"no stacks: {error.strerror}"
        return
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.003)
        now = os.fstat(stacks).st_size
        if now > before and now == size:
            break
        size = now
    yield os.pread(stacks, 1 << 18, before).decode(errors="replace").rstrip() or "no stacks: none came in time"


def _flight_recorder(environ: Mapping[str, str]) -> str:
    """Ask torch for its dump by its pipe, where the program was started with one."""
    prefix, rank = environ.get("TORCH_NCCL_DEBUG_INFO_PIPE_FILE"), environ.get("RANK", "0")
    if not prefix:
        return ""
    dump = f"{environ.get('TORCH_NCCL_DEBUG_INFO_TEMP_FILE', '/tmp/nccl_trace_rank_')}{rank}"
    try:
        before = os.stat(dump).st_mtime_ns if os.path.exists(dump) else 0
        pipe = os.open(f"{prefix}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, b"1\n")
        os.close(pipe)
    except OSError as error:
        return f"no Flight Recorder dump: {error.strerror}"
    until = time.monotonic() + WORDS_TIME
    while time.monotonic() < until:
        if os.path.exists(dump) and os.stat(dump).st_mtime_ns != before:
            return f"Flight Recorder dump: {dump}"
        time.sleep(0.01)
    return f"no Flight Recorder dump came to {dump} in {WORDS_TIME:g} s"


def mark(path: str, cause: str, exit_status: int, message: str, culprit: int) -> bool:
    """Append the end marker to a rank's trace that has none. Return True if one was written.

    The format is that of `traces.format.End`. A trace that ends in half a line is left as it is. If there is no trace
    yet, the marker goes into a file beside it, named by END: the launcher, which knows the run, can begin the trace.
    """
    import json  # not before it is needed

    end = {
        "kind": "end",
        "index": 0,
        "time_ns": time.monotonic_ns(),
        "cause": cause,
        "exit": exit_status,
        "message": message,
        "culprit": culprit if culprit >= 0 else None,
    }
    try:
        if not os.path.exists(path) or not os.path.getsize(path):
            with open(path + END, "wb") as file:
                return bool(file.write(_line(end)))
        with open(path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * TAIL))
            tail = file.read()
            if not tail.endswith(b"\n"):
                return False
            last = json.loads(tail.rstrip(b"\n").rpartition(b"\n")[2])
            if not isinstance(last, dict) or last.get("kind") == "end":
                return False
            end["index"] = _next([json.loads(line) for line in tail.splitlines()[-3:]])
            return bool(file.write(_line(end)))
    except (OSError, ValueError):
        return False


def _line(fields: Mapping[str, object]) -> bytes:
    import json

    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode() + b"\n"


def _next(lines: list[dict[str, object]]) -> int:
    """Return the number of the next event: lines of groups have none, and a `dropped` line stands for several."""
    for line in reversed(lines):
        if line.get("kind") in ("event", "dropped"):
            return int(str(line["index"])) + int(str(line.get("count", 1)))
    return 0
