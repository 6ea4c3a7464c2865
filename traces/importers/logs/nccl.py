"""Reads what NCCL logs of the collectives that it is called for (NCCL_DEBUG=INFO, NCCL_DEBUG_SUBSYS=INIT,COLL).

There may be millions of these lines, so that they are matched in whole blocks of a file, not one by one. Traps of the
form, handled here alone:

- `opCount` is hexadecimal;
- a pointer names a communicator in one process alone, until it is destroyed; the init line ties it to rank and id;
- `[1]` is the CUDA device, and a pid is no rank;
- lines tear: one may stand in the middle of another, or two run together. Of a torn line the kind and number count.

Left out: NCCL's errors (`connections`), and what follows from the calls.
"""

from __future__ import annotations

import re
from array import array
from pathlib import Path

from ...evidence import Calls, GroupName, Operation, Process, Source
from .lines import Sink

KINDS = {
    "AllReduce": "all_reduce",
    "AllGather": "all_gather",
    "ReduceScatter": "reduce_scatter",
    "Broadcast": "broadcast",
    "Reduce": "reduce",
    "Send": "send",
    "Recv": "recv",
    "AlltoAll": "all_to_all",
    "AllToAll": "all_to_all",
    "Gather": "gather",
    "Scatter": "scatter",
}
"""NCCL's names, to the one on the wire."""
DTYPES = (
    *("int8", "uint8", "int32", "uint32", "int64", "uint64", "half", "float", "double", "bfloat16"),
    *("float8_e4m3", "float8_e5m2"),
)
REDUCTIONS = ("sum", "prod", "max", "min", "avg")
REDUCING = ("AllReduce", "ReduceScatter", "Reduce")
ROOTED = ("Broadcast", "Reduce", "Gather", "Scatter")
MAX_CALLS = 50_000_000
MAX_HEAD, MAX_HEADS = 300, 100_000

_HEAD = re.compile(rb"([\w.\-]{1,200}):(\d{1,10}):\d{1,10} \[(\d{1,5})\]$")
# the head is taken apart by itself: a search that begins with a word of any length is slow
_CALL = re.compile(
    rb" NCCL INFO (?:\[\d{1,5}\] )?(\w{1,20}): opCount ([0-9a-f]{1,16})"
    rb"(?: sendbuff \S{1,30} recvbuff \S{1,30} (count \d{1,18} datatype \d{1,3} op \d{1,10} root \d{1,7}) "
    rb"comm (\S{1,30})(?: \[nranks=(\d{1,7})\])?)?"
)
_INIT = re.compile(
    rb"([\w.\-]{1,200}):(\d{1,10}):\d{1,10} \[(\d{1,5})\] NCCL INFO [^\n]{0,120}?"
    rb"comm (0x[0-9a-f]{1,16}) rank (\d{1,7}) nranks (\d{1,7}) [^\n]{0,200}? - Init COMPLETE"
)
_COMM_ID = re.compile(rb"commId (0x[0-9a-f]{1,32})")
_TAIL = re.compile(rb"count (\d+) datatype (\d+) op (\d+) root (\d+)")


class _Stream:
    """Hold what one process issued in one communicator."""

    def __init__(self, source: Source, head: tuple[bytes, bytes, bytes], size: int) -> None:
        self.source, self.head, self.size = source, head, size
        self.rank: int | None = None
        self.comm = b""
        self.numbers, self.operations = array("q"), array("l")


class NcclCalls:
    """Gathers the calls of all processes."""

    def __init__(self) -> None:
        self.streams: list[_Stream] = []
        self.torn: set[tuple[bytes, bytes]] = set()
        self.damaged = False
        """True if there is a line of which nobody can be told to have written it."""
        self.kinds: list[Operation] = []
        self.count = 0
        self._open: dict[tuple[bytes, bytes, bytes], _Stream] = {}
        self._known: dict[tuple[bytes, bytes], int] = {}
        self._hosts: set[bytes] = set()
        """Those that a line named at which a communicator was made."""
        self._heads: dict[bytes, tuple[bytes, bytes, bytes]] = {}

    def read(self, path: Path, data: bytes, sink: Sink, first_line: int) -> bool:
        """Take the calls in whole lines of a file; whether there was one."""
        if b" - Init COMPLETE" in data:
            for match in _INIT.finditer(data):
                self._init(path, data, match, sink, first_line)
        if b"opCount " not in data:
            return False
        found = 0
        for match in _CALL.finditer(data):
            head = self._head(data, match.start())
            if head is None:
                continue
            found += 1
            name, number, tail, comm, nranks = match.groups()
            if tail is None:
                self.torn.add(head[:2])
                continue
            stream = self._open.get((head[0], head[1], comm))
            if stream is None:
                source = Source(path, first_line + data.count(b"\n", 0, match.start()))
                stream = self._open[head[0], head[1], comm] = _Stream(source, head, int(nranks or 0))
                self.streams.append(stream)
            if self.count < MAX_CALLS:
                self.count += 1
                stream.numbers.append(int(number, 16) & (1 << 62) - 1)
                known = self._known.get((name, tail))
                stream.operations.append(self._operation(name, tail) if known is None else known)
        self.damaged |= data.count(b": opCount ") > found
        return found > 0

    def _head(self, data: bytes, end: int) -> tuple[bytes, bytes, bytes] | None:
        """Return host, pid and device in front of a call: the two words before it."""
        device = data.rfind(b" ", max(end - MAX_HEAD, 0), end)
        least = max(device - MAX_HEAD, 0)
        begin = max(data.rfind(b" ", least, device), data.rfind(b"\n", least, device))
        words = data[begin + 1 : end]
        known = self._heads.get(words)
        if known is None and (found := _HEAD.search(words)) is not None:
            # two lines that ran together have a word in front of the host
            host = next((h for h in self._hosts if found[1].endswith(h)), found[1])
            known = (host, found[2], found[3])
            if len(self._heads) < MAX_HEADS:
                self._heads[words] = known
        return known

    def _init(self, path: Path, data: bytes, match: re.Match[bytes], sink: Sink, first_line: int) -> None:
        host, pid, device, comm, rank, size = match.groups()
        source = Source(path, first_line + data.count(b"\n", 0, match.start()))
        if len(self._hosts) < MAX_HEADS:
            self._hosts.add(host)
        stream = _Stream(source, (host, pid, device), int(size))
        comm_id = _COMM_ID.search(match[0])
        stream.rank, stream.comm = int(rank), comm_id[1] if comm_id else b""
        # a pointer that comes once more is of another communicator
        self._open[host, pid, comm] = stream
        self.streams.append(stream)

    def _operation(self, name: bytes, tail: bytes) -> int:
        kind = name.decode("ascii", "replace")
        found = _TAIL.match(tail)
        assert found is not None
        count, dtype, reduction, root = map(int, found.groups())
        said = [DTYPES[dtype] if dtype < len(DTYPES) else f"type {dtype}"]
        if kind in REDUCING:
            said.append(REDUCTIONS[reduction] if reduction < len(REDUCTIONS) else f"op {reduction}")
        if kind in ROOTED:
            said.append(f"root {root}")
        if kind in ("Send", "Recv"):
            said.append(f"peer {root}")
        self._known[name, tail] = len(self.kinds)
        self.kinds.append(Operation(KINDS.get(kind, kind), count, -1, ", ".join(said)))
        return len(self.kinds) - 1

    def finish(self, sink: Sink) -> None:
        """Put each process's calls into the sink; communicators without an id are those of as many ranks."""
        sizes: dict[int, int] = {}
        for stream in self.streams:
            sizes[stream.size] = sizes.get(stream.size, 0) + 1
        ranks = self._ranks()
        largest = max((s.size for s in self.streams), default=0)
        for stream in self.streams:
            host, pid, device = (part.decode("ascii", "replace") for part in stream.head)
            if stream.rank is not None and stream.size == largest and ranks:
                sink.add(Process(stream.source, host, int(pid), stream.rank), (host, pid, stream.rank))
            if not stream.numbers:
                continue
            name = stream.comm.decode("ascii", "replace")
            # without an id, as many processes as the communicator has ranks are the one communicator of that size
            shared = bool(name) or sizes[stream.size] == stream.size
            sink.keep(
                Calls(
                    stream.source,
                    (host, int(pid), int(device)),
                    stream.rank,
                    stream.size == largest and (not name or bool(ranks)),
                    GroupName("nccl", name or f"of {stream.size}", shared=shared),
                    stream.size,
                    stream.numbers,
                    stream.operations,
                    self.kinds,
                    self.damaged or stream.head[:2] in self.torn,
                )
            )

    def _ranks(self) -> dict[tuple[bytes, bytes, bytes], int]:
        """Return each process's rank in the job: that in the largest communicator, if there is but one order of it."""
        largest = max((s.size for s in self.streams if s.rank is not None), default=0)
        found: dict[tuple[bytes, bytes, bytes], int] = {}
        taken: dict[int, tuple[bytes, bytes, bytes]] = {}
        for stream in self.streams:
            if stream.rank is None or stream.size != largest:
                continue
            if found.setdefault(stream.head, stream.rank) != stream.rank:
                return {}
            if taken.setdefault(stream.rank, stream.head) != stream.head:
                return {}  # several communicators of that size, of other processes: none is the job's
        return found
