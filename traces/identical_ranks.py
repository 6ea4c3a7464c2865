"""Reads the traces of a large job, and of ranks that wrote the same only the first.

Workers of a healthy job write the same lines, at other times. Reading and replaying hundreds of copies of them is what
a large replay would spend its time with. A copy keeps its header; its lines, times included, are the twin's.

Left out: what may be concluded for a copy (`conformance.crew`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from .format import Clock, Trace, TraceHeader, read

FEW = 16
"""So many ranks are read one by one."""
LARGE = 64 << 20
"""Bytes from which on a trace is taken as the only one of its kind."""

_TIME = re.compile(rb'"time_ns":\d+')
_ADDRESS = re.compile(rb"\d+\.\d+\.\d+\.\d+\]?:\d+")
"""Where a peer was, in the message of an exception: each rank has another."""

Fingerprints = Callable[[Sequence[Path]], Iterable[list[bytes]]]


def read_twins(headers: Mapping[Path, TraceHeader], fingerprints: Fingerprints) -> list[Trace]:
    """The traces of a run, by file. Raises UnreadableInput."""
    if len(headers) <= FEW:
        return [read(path) for path in headers]
    prints = (found for some in fingerprints(list(headers)) for found in some)
    first: dict[tuple[bytes, bytes], Trace] = {}
    traces = []
    for (path, header), found in zip(headers.items(), prints, strict=True):
        common = msgspec.structs.replace(header, rank=0, clock=Clock(0, 0))
        key = (found, msgspec.json.encode(common))
        twin = first.get(key) if found else None
        if twin is None:
            twin = first[key] = read(path)
            traces.append(twin)
        else:
            traces.append(msgspec.structs.replace(twin, path=path, header=header, twin=twin.rank))
    return traces


def fingerprints(paths: Sequence[Path]) -> list[bytes]:
    """What is equal for files whose lines, but the first, differ in nothing but times and addresses; else empty."""
    return [_fingerprint(path) for path in paths]


def _fingerprint(path: Path) -> bytes:
    if path.stat().st_size > LARGE:
        return b""
    _, _, lines = path.read_bytes().partition(b"\n")
    plain = b"\0".join(_TIME.split(lines))
    if b'"outcome"' in plain or b'"message"' in plain:
        plain = _ADDRESS.sub(b"", plain)
    return hashlib.blake2b(plain).digest()


def own_lines(traces: Iterable[Trace]) -> Iterator[Trace]:
    """Each trace with its own lines and times, a copy read anew."""
    return (trace if trace.twin is None else read(trace.path) for trace in traces)
