"""Fetches a rank's record of its collectives: Genlock's own trace, or a dump of torch's Flight Recorder.

A dump is asked for without stacks of its own, for which torch may need the interpreter's lock. Of a rank that Genlock
records the trace is taken, and no dump is asked for. Left out: reading them (`traces`).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import stat
import time
from pathlib import Path

from ..errors import UnreadableInput
from .bounded import Outcome
from .ranks import TRACE, Rank
from .stacks import ask_worker
from .staging import Staging

SECONDS = 20.0
PIPE_SECONDS = 6.0
"""Time that a rank has to write a dump: torch looks at its pipe once a second."""
MAX_DUMP = 256 << 20
MAX_TRACE = 512 << 20
MAX_SEARCHED = 16 << 20
"""In longer ones known secrets and names alone are looked for: searching for the forms of others takes its time."""
HANDLERS = (
    ("dump_nccl_trace_json", ".json"),
    ("fr_trace_json", ".json"),
    ("torchcomms_fr_trace_json", ".json"),
    ("dump_nccl_trace_pickle", ""),
)
"""Handlers of torch's worker server, and what the name of a file of theirs ends with."""
TEMP_FILES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCHCOMM_FR_DUMP_TEMP_FILE")
JOURNAL = "recording.jsonl"
"""Journal of a recording: beside the traces of its first job, and one folder above those of others."""
DEFAULTS = ("comm_lib_trace_rank_", "nccl_trace_rank_")


def version(torch: str) -> tuple[int, int]:
    """Return the version of the torch in a folder; (0, 0) where it does not say."""
    with contextlib.suppress(OSError):
        text = Path(torch, "version.py").read_text(errors="replace")[:4096]
        found = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)", text)
        if found:
            return int(found[1]), int(found[2])
    return 0, 0


def record(rank: Rank, staging: Staging, *, last: bool) -> Outcome:
    """Fetch the record of a rank, and say where it stands: `position` changes while the rank goes on.

    What is fetched at the last look is kept.
    """
    traces = [(number, target) for number, target in rank.process.open_files() if TRACE.search(target)]
    if traces:
        return _trace(rank, *traces[0], staging, last=last)
    if rank.number is None:
        return Outcome(missing="no dump: which rank it is is not known", advice=["rank"])
    whys: list[str] = []
    for way in (_served, _piped, _written):
        try:
            data, suffix = way(rank)
        except (OSError, UnreadableInput, http.client.HTTPException) as error:
            whys.append(error.what if isinstance(error, UnreadableInput) else error.__class__.__name__)
            continue
        position = hashlib.sha256(data).hexdigest()[:16]
        files = (
            [staging.write(f"trace_{rank.number}{suffix}", data, binary=not suffix or len(data) > MAX_SEARCHED)]
            if last
            else []
        )
        return Outcome(files, {"position": position if way is not _written else "", "by": way.__name__.strip("_")})
    told = "; ".join(why for why in whys if why) or "nothing was switched on by which it could be asked for"
    return Outcome(missing=f"no Flight Recorder dump: {told}", advice=["flight_recorder"])


# ── Genlock's own trace ─────────────────────────────────────────────────────────────────────────────────


def _trace(rank: Rank, descriptor: int, target: str, staging: Staging, *, last: bool) -> Outcome:
    """Copy the trace up to its last whole line, and what the recorder keeps beside it."""
    file = rank.process.reopen(descriptor)
    try:
        size = os.fstat(file).st_size
        found = {"position": str(size), "by": "recorder"}
        if not last:
            return Outcome(found=found)
        if size > MAX_TRACE:
            return Outcome(found=found, missing=f"its trace has {size:,} bytes: fetch {Path(target).name} by hand")
        data = read_all(file, size)
    finally:
        os.close(file)
    name = Path(target).name
    lines = data[: data.rfind(b"\n") + 1]
    files = [staging.write(name, lines, binary=len(lines) > MAX_SEARCHED)]
    stem = name.removesuffix("trace.jsonl")
    folder = Path(rank.process.path(str(Path(target).parent)))
    journals = [place / JOURNAL for place in (folder, folder.parent)]
    for beside in (*sorted(folder.glob(f"{stem}*")), *journals):
        if beside.name == JOURNAL or (beside.name != name and not beside.name.endswith(".jsonl")):
            with contextlib.suppress(OSError, UnreadableInput):
                if data := read_regular(str(beside), MAX_DUMP, rank):
                    files.append(staging.write(beside.name, data))
    return Outcome(files, found)


def read_all(file: int, size: int) -> bytes:
    """Return the first `size` bytes of a file."""
    parts: list[bytes] = []
    at = 0
    while at < size and (part := os.pread(file, min(size - at, 1 << 20), at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def read_regular(path: str, limit: int, rank: Rank) -> bytes:
    """Return the contents of a regular file of the rank's own user, never of a link, pipe or device.

    Raises OSError, UnreadableInput. Whoever is root here is not led by a job's paths to what the job may not read.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableInput(f"{os.path.basename(path)} is no regular file")
        if about.st_uid != rank.process.user != 0:
            raise UnreadableInput(f"{os.path.basename(path)} is another user's file")
        if about.st_size > limit:
            raise UnreadableInput(f"{os.path.basename(path)} has {about.st_size:,} bytes")
        return read_all(file, about.st_size)
    finally:
        os.close(file)


# ── Flight Recorder ─────────────────────────────────────────────────────────────────────────────────────


def _served(rank: Rank) -> tuple[bytes, str]:
    """Ask torch's worker server."""
    why = ""
    for handler, suffix in HANDLERS:
        try:
            data = ask_worker(rank, handler, MAX_DUMP)
        except UnreadableInput as error:
            why = error.what
            if not why.endswith(("(404)", "(500)")):
                break
            continue
        if suffix and b'"entries"' not in data:
            why = "Flight Recorder is off, or has nothing yet"
            continue
        return data, suffix
    raise UnreadableInput(why)


def _piped(rank: Rank) -> tuple[bytes, str]:
    """Write into the pipe that torch was told to look at, and wait for the dump."""
    prefix = rank.seen.environment.get("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "")
    if not prefix.startswith("/"):
        raise UnreadableInput("")
    path = f"{prefix}{rank.number}.pipe"
    if not any(target == path for _, target in rank.process.open_files()):
        raise UnreadableInput("torch has not opened its pipe: no group of NCCL is there")
    paths = [rank.process.path(dump) for dump in _dumps(rank)]
    before = {dump: _changed(dump) for dump in paths}
    pipe = os.open(rank.process.path(path), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            raise UnreadableInput("what stands at its pipe's path is none")
        os.write(pipe, b"1\n")
    finally:
        os.close(pipe)
    until = time.monotonic() + PIPE_SECONDS
    while time.monotonic() < until:
        time.sleep(0.1)
        for dump in paths:
            now = _changed(dump)
            if now != before[dump]:
                if now[1]:
                    time.sleep(0.3)
                    if _changed(dump) == now:
                        return read_regular(dump, MAX_DUMP, rank), ""
                before[dump] = (-1, -1)
    raise UnreadableInput(f"asked by its pipe, torch wrote none in {PIPE_SECONDS:g} s: is its recorder on?")


def _written(rank: Rank) -> tuple[bytes, str]:
    """Take the dump that torch wrote of this process before, at a time-out."""
    born = time.time() - _age(rank)
    for dump in _dumps(rank):
        path = rank.process.path(dump)
        changed, size = _changed(path)
        if size > 0 and changed / 1e9 >= born:
            return read_regular(path, MAX_DUMP, rank), ""
    raise UnreadableInput("")


def _age(rank: Rank) -> float:
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - rank.process.start / os.sysconf("SC_CLK_TCK")


def _dumps(rank: Rank) -> list[str]:
    """Return where torch writes the dumps of a rank, by what it was told and by its defaults."""
    given = rank.seen.environment
    told = [given[name] for name in TEMP_FILES if given.get(name, "").startswith("/")]
    home = given.get("HOME", "")
    cache = given.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home.startswith("/") else "")
    defaults = [f"{cache}/torch/{name}" for name in DEFAULTS if cache.startswith("/")]
    return [f"{prefix}{rank.number}" for prefix in (*told, *defaults, "/tmp/nccl_trace_rank_")]


def _changed(path: str) -> tuple[int, int]:
    """Return when a file was last written, and its size; (-1, -1) where there is none."""
    try:
        about = os.lstat(path)
    except OSError:
        return -1, -1
    return about.st_mtime_ns, about.st_size
