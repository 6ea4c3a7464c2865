"""Gathers evidence of a rank before it is killed, stores it after, and writes the end marker of its trace.

Everything here may block, and runs in a helper that is cut off after its time (`helper`); what has come by then is
kept.

Stacks come from the rank itself, by faulthandler, which needs no GIL; a stopped rank cannot give them. Left out:
what would need root (kernel stacks) or the device's own tools.
"""

from __future__ import annotations

import os
import signal
import time

from .child import FLAGS, PF_EXITING, descends, read
from .deadlines import COLLECTIVE, Failure
from .status_page import ASKED, DUMPS_STACKS, EVERYONE, HAS_SPOKEN, HAS_WORDS, NOBODY, SOMEONE, Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

STACKS_TIME = {"deadline": 0.4, COLLECTIVE: 0.4}
"""Seconds that a rank has to write its stacks, by cause; where a rank has died, HURRY."""
HURRY = 0.05
WORDS_TIME = 0.5
"""Seconds that it has for its last words, where it has any, and Flight Recorder for a dump by NCCL's pipe."""
SLACK = 0.1
"""Seconds more in which a helper may start, and read /proc."""
PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
TAIL = 1 << 20
"""No line of a trace is longer."""
END = ".end"
"""Follows the name of a trace in that of an end marker that has no trace."""


def limit(found: Failure, page: Page, environ: Mapping[str, str]) -> float:
    """Return the seconds in which evidence of a living rank is taken; it is killed then, however far that has come."""
    talks = bool(page.flags & HAS_WORDS or environ.get(PIPE))
    return max(STACKS_TIME.get(found.cause, HURRY), WORDS_TIME * talks) + SLACK


class LastWords:
    """Asks a rank, by a pipe, for its last words: what only the rank itself can save, as Flight Recorder's dump."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._read, self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        environ[ASKED] = f"/proc/{os.getpid()}/fd/{self._read}"

    def ask(self, page: Page) -> None:
        if page.flags & HAS_WORDS:
            try:
                os.write(self.pipe, b"1")
            except OSError:  # it has been asked too often
                return

    def come(self, page: Page, memory: memoryview, pid: int, until: float) -> str:
        """Wait for the last words. Return in words if they came; empty where there are none."""
        if not page.flags & HAS_WORDS:
            return ""
        while (state := state_of(pid)) == "alive":
            if (Page.read(memory) or page).flags & HAS_SPOKEN:
                return "last words: kept by the rank"
            if time.monotonic() > until:
                return f"last words: none came in {WORDS_TIME:g} s"
            time.sleep(0.003)
        return f"last words: none, the rank is {state}"


def gather(
    write: Callable[[str], None],
    found: Failure,
    page: Page,
    child: int,
    stacks: int,
    words: LastWords,
    memory: memoryview,
    environ: Mapping[str, str],
) -> None:
    """Write what can be known of a rank, each part as soon as it is known: in a helper, which may be cut off.

    `child` is the process that the guardian has started, `stacks` the file to which the rank writes its stacks.
    """
    begin = time.monotonic()
    words.ask(page)
    write("\n".join([found.what, "", *_page(page), ""]))
    pid = page.pid if page.pid and descends(page.pid, child) else child
    parts = (
        lambda: _stacks(page, pid, stacks, begin + STACKS_TIME.get(found.cause, HURRY)),
        lambda: [words.come(page, memory, pid, begin + WORDS_TIME)],
        lambda: [_flight_recorder(environ, begin + WORDS_TIME)],
        lambda: _process(pid) if state_of(pid) != "dead" else (),
        _host,
    )
    for part in parts:
        before = "\n"
        for line in part():
            if line:
                write(f"{before}{line}\n")
                before = ""


def store(write: Callable[[str], None], folder: str, names: Iterator[str], text: str) -> None:
    """Write evidence to the first of the names that is free, and hand its path over: in a helper, which may be cut off.

    Whatever stands under a name already, a link or a pipe, is left alone.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in names:
        path = os.path.join(folder, name)
        try:
            file = new_file(path)
        except FileExistsError:
            continue
        with os.fdopen(file, "w", encoding="utf-8", errors="replace") as out:
            out.write(text)
        write(path)
        return


def new_file(path: str) -> int:
    """Make a file that was not there, for its owner alone. Return its descriptor. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def state_of(pid: int) -> str:
    """Return how a process is: `alive`, `stopped` by a signal, or `dead`."""
    facts = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(facts) <= FLAGS or facts[0] in "ZX" or int(facts[FLAGS]) & PF_EXITING:
        return "dead"
    return "stopped" if facts[0] == "T" else "alive"


def _page(page: Page) -> Iterator[str]:
    waits = {NOBODY: "nobody", EVERYONE: "everyone", SOMEONE: "somebody"}.get(page.waiting, f"rank{page.waiting}")
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
        facts = read(f"/proc/{pid}/task/{task}/stat")
        state = facts.rpartition(")")[2].split()[:1]
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


def _stacks(page: Page, pid: int, stacks: int, until: float) -> Iterator[str]:
    """Yield the stacks that the rank writes, of all threads if it is to be ended; or why there are none."""
    if not page.flags & DUMPS_STACKS:
        yield "no stacks: the rank has not opened its page"
        return
    state = state_of(pid)
    if state != "alive":
        yield f"no stacks: the rank is {state}"
        return
    before = size = os.fstat(stacks).st_size  # of a rank that was asked already, and lived on
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        yield f"no stacks: {error.strerror}"
        return
    while time.monotonic() < until:
        time.sleep(0.003)
        now = os.fstat(stacks).st_size
        if now > before and now == size:
            break
        size = now
    yield os.pread(stacks, 1 << 18, before).decode(errors="replace").rstrip() or "no stacks: none came in time"


def _flight_recorder(environ: Mapping[str, str], until: float) -> str:
    """Ask torch for its dump by its pipe, where the program was started with one."""
    prefix, rank = environ.get(PIPE), environ.get("RANK", "0")
    if not prefix:
        return ""
    dump = f"{environ.get('TORCH_NCCL_DEBUG_INFO_TEMP_FILE', '/tmp/nccl_trace_rank_')}{rank}"
    try:
        before = os.stat(dump).st_mtime_ns if os.path.exists(dump) else 0
        pipe = os.open(f"{prefix}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        os.write(pipe, b"1\n")
        os.close(pipe)
    except OSError as error:
        return f"no Flight Recorder dump: {error.strerror}"
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
        try:
            trace = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return _begin(path + END, _line(end))
        with os.fdopen(trace, "rb+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return _begin(path + END, _line(end))
            file.seek(max(0, size - 2 * TAIL))
            tail = file.read()
            if not tail.endswith(b"\n"):
                return False
            last = json.loads(tail.rstrip(b"\n").rpartition(b"\n")[2])
            if isinstance(last, dict) and last.get("kind") == "end":
                return False
            end["index"] = _next([json.loads(line) for line in tail.splitlines()[-3:]])
            return bool(file.write(_line(end)))
    except (OSError, ValueError):
        return False


def _begin(path: str, line: bytes) -> bool:
    """Write a file of one line, in place of an earlier one. Raises OSError."""
    try:
        file = new_file(path)
    except FileExistsError:
        os.unlink(path)  # it is ours by its name; of a link this is the link
        file = new_file(path)
    with os.fdopen(file, "wb") as out:
        return bool(out.write(line))


def _line(fields: Mapping[str, object]) -> bytes:
    import json

    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode() + b"\n"


def _next(lines: list[dict[str, object] | list[object]]) -> int:
    """Return the number of the next event: lines of groups have none, and a `dropped` line stands for several."""
    for line in reversed(lines):
        if isinstance(line, list):
            return int(str(line[1])) + 1
        if line.get("kind") in ("event", "dropped"):
            return int(str(line["index"])) + int(str(line.get("count", 1)))
    return 0
