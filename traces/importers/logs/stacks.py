"""Reads stacks that tools printed of processes that run: py-spy (text and JSON), faulthandler, gdb's py-bt.

Of each process the main thread is kept, as the one that issues the program's operations. Which rank a process is stands
in none of them; it comes from a header of torch's debug server, the file's name, a launcher's prefix, or the pid.

Left out: whether a stack waits (`conformance.evidence`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evidence import Frame, Source, Stack, Writer
from .lines import Family, Line, Sink, axes_in

MAX_FRAMES, MAX_THREADS = 2000, 10_000

_PROCESS = re.compile(r"^Process (\d{1,10}): (.*)$")
_THREAD = re.compile(r'^Thread (0x[0-9A-Fa-f]{1,16}|\d{1,20}) \((idle|active(?:\+gil)?)\)(?:: "(.*)")?\s*$')
_CALL = re.compile(r"^ {4}(?P<function>\S.{0,300}?) \((?P<file>[^()]{1,500}?)(?::(?P<line>\d{1,9}))?\)\s*$")
_FAULT = re.compile(r"^(Current thread|Thread) 0x([0-9A-Fa-f]{1,16})(?: \[(.{1,100})\])? \(most recent call first\):")
_LINE = re.compile(r'^\s*File "(?P<file>[^"]{1,1000})", line (?P<line>\d{1,9}),? in (?P<function>.{1,300})$')
_RANK_HEAD = re.compile(r"=== Rank (\d{1,7}): ")
_RANK_NAME = re.compile(r"(?:^|[^a-z])rank[_\-.]?(\d{1,7})(?!\d)", re.IGNORECASE)
_TITLE = re.compile(r"^(?:sglang::scheduler|VLLM::Worker)((?:_[A-Z]{2,3}\d{1,5}){1,6})")
"""As engines call the processes of their workers."""
_RANK_FLAG = re.compile(r"(?:^|\s)(?:RANK=|--(?:node[_-])?rank[= ])(\d{1,7})(?:\s|$)")
BOOTSTRAP = ("_bootstrap", "_bootstrap_inner", "run_thread", "thread_start")


class _Thread:
    def __init__(self, name: str, number: str, active: bool) -> None:
        self.name, self.number, self.active = name, number, active
        self.frames: list[Frame] = []


class _Dump:
    """Holds all threads of one process."""

    def __init__(self, line: Line, writer: Writer, crashed: bool = False) -> None:
        self.source, self.writer, self.crashed = line.source, writer, crashed
        self.threads: list[_Thread] = []
        self.measured = True

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the dump."""
        text = line.rest
        thread = _THREAD.match(text)
        fault = None if thread else _FAULT.match(text)
        if thread is not None:
            return self._begin(_Thread(thread[3] or "", thread[1], thread[2] != "idle"))
        if fault is not None:
            self.measured = False
            named = fault[3] or ("MainThread" if fault[1] == "Current thread" else "")
            return self._begin(_Thread(named, f"0x{fault[2]}", False))
        call = _CALL.match(text) or _LINE.match(text)
        if call is not None:
            if self.threads and len(self.threads[-1].frames) < MAX_FRAMES:
                frame = Frame(call["function"], call["file"], int(call["line"] or 0))
                self.threads[-1].frames.append(frame)
            return True
        return not text.strip() or text.startswith(("Python v", "Parent Process", "        ", "  ..."))

    def _begin(self, thread: _Thread) -> bool:
        if len(self.threads) < MAX_THREADS:
            self.threads.append(thread)
        return True

    def close(self, sink: Sink) -> None:
        """Keep the main thread."""
        main = _main(self.threads, self.writer.pid)
        if main is not None and main.frames:
            frames = tuple(main.frames)
            stack = Stack(self.source, self.writer, frames, main.active, self.crashed, self.measured)
            sink.keep(stack)


def _main(threads: Sequence[_Thread], pid: int | None) -> _Thread | None:
    named = [t for t in threads if t.name == "MainThread" or t.number == str(pid)]
    if named:
        return named[0]
    own = [t for t in threads if t.frames and not any(f.function in BOOTSTRAP for f in t.frames[-4:])]
    return own[-1] if own else None


def _begin(line: Line, sink: Sink) -> None:
    key = (line.source.path, line.writer)
    head = _RANK_HEAD.search(line.rest)
    if head is not None:
        sink.ranks[key] = int(head[1])
        return
    process = _PROCESS.match(line.rest)
    if process is not None:
        writer = _known(line, sink)._replace(pid=int(process[1]))
        flag = _RANK_FLAG.search(process[2])
        if flag is not None and writer.rank is None:
            writer = writer._replace(rank=int(flag[1]))
        title = _TITLE.match(process[2])
        if title is not None:
            writer = writer._replace(worker=axes_in(title[1]))
        sink.open(line, _Dump(line, writer))
        return
    if isinstance(sink.blocks.get(key), _Dump):
        return
    if _THREAD.match(line.rest) or _FAULT.match(line.rest):
        dump = _Dump(line, _known(line, sink), crashed=sink.crashed.pop(key, False))
        dump.feed(line, sink)
        sink.open(line, dump)


def _known(line: Line, sink: Sink) -> Writer:
    """Return the writer, with the rank that a header or the file's name gives it."""
    writer = line.writer
    if writer.rank is not None:
        return writer
    rank = sink.ranks.get((line.source.path, writer))
    return writer._replace(rank=rank if rank is not None else rank_in_name(line.source.path))


def rank_in_name(path: Path) -> int | None:
    """Return the rank that a file's name has: `stacks.rank3.txt`."""
    found = _RANK_NAME.search(path.name)
    return int(found[1]) if found is not None else None


def _fatal(line: Line, sink: Sink) -> None:
    sink.crashed[line.source.path, line.writer] = True


FAMILIES = (
    Family((b"Fatal Python error: ",), _fatal),
    Family((b"Process ", b" (idle)", b" (active", b"(most recent call first)"), _begin, b"hread "),
    Family((b"=== Rank ",), _begin),
)


# ── JSON of py-spy ──────────────────────────────────────────────────────────────────────────────────────


def looks_like(value: object) -> bool:
    """Tell whether a decoded value is what `py-spy dump --json` prints."""
    return isinstance(value, list) and bool(value) and all(_is_thread(thread) for thread in value)


def _is_thread(value: object) -> bool:
    return isinstance(value, dict) and {"pid", "thread_id", "frames"} <= value.keys()


def read_threads(path: Path, threads: Sequence[Mapping[str, Any]], sink: Sink) -> None:
    """Keep the main thread of each process. Threads that make no sense are left out."""
    processes: dict[int, list[_Thread]] = {}
    for given in threads[:MAX_THREADS]:
        pid, frames = given.get("pid"), given.get("frames")
        if not isinstance(pid, int) or not isinstance(frames, list):
            continue
        number = given.get("os_thread_id") or given.get("thread_id")
        thread = _Thread(str(given.get("thread_name") or ""), str(number), given.get("active") is True)
        thread.frames = [frame for f in frames[:MAX_FRAMES] if (frame := _frame(f)) is not None]
        processes.setdefault(pid, []).append(thread)
    rank = rank_in_name(path) if len(processes) == 1 else None
    for pid, own in processes.items():
        main = _main(own, pid)
        if main is not None and main.frames:
            writer = Writer(rank=rank, pid=pid)
            sink.keep(Stack(Source(path), writer, tuple(main.frames), main.active))


def _frame(given: object) -> Frame | None:
    if not isinstance(given, dict):
        return None
    file, line = given.get("filename") or given.get("short_filename") or "", given.get("line")
    return Frame(str(given.get("name", ""))[:300], str(file)[:1000], line if isinstance(line, int) else 0)
