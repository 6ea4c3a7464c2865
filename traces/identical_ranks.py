"""Reads the traces of a large job, and of ranks that wrote the same only the first.

Workers of a healthy job write the same lines, at other times. A large replay would spend its time on hundreds of
copies of them. A copy keeps its header; its lines, times included, are those of the first such rank.

Left out: what may be concluded for a copy (`conformance.protocol.rank_classes`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from .format import Clock, Trace, TraceHeader, read

FEW = 16
"""Up to so many ranks are read one by one."""
LARGE = 64 << 20
"""A trace of so many bytes or more is not compared with others."""

_TIME = re.compile(rb'"time_ns":(?:0|[1-9]\d{0,17})(?=[,}])')
_ADDRESS = re.compile(rb"(?<!\d)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\]?:\d{1,5}(?!\d)")
"""An address of a peer in a text, which is another on each rank: texts are for people, and no two need differ."""
TIME, ADDRESS = b"\0", b"\1"
"""Stand for what is left out. No line has these bytes, and no address makes sense but in a text, so that where the
first such rank can be read, the others can."""

Fingerprints = Callable[[Sequence[Path]], Iterable[list[bytes]]]


def read_identical(headers: Mapping[Path, TraceHeader], fingerprints: Fingerprints) -> list[Trace]:
    """Read the traces of a run, identical ones once. Raises UnreadableInput."""
    if len(headers) <= FEW:
        return [read(path) for path in headers]
    prints = (fingerprint for some in fingerprints(list(headers)) for fingerprint in some)
    first: dict[tuple[bytes, bytes], Trace] = {}
    traces = []
    for (path, header), fingerprint in zip(headers.items(), prints, strict=True):
        common = msgspec.structs.replace(header, rank=0, clock=Clock(0, 0))
        key = (fingerprint, msgspec.json.encode(common))
        same = first.get(key) if fingerprint else None
        if same is None:
            same = first[key] = read(path)
            traces.append(same)
        else:
            traces.append(msgspec.structs.replace(same, path=path, header=header, same_as=same.rank))
    return traces


def fingerprints(paths: Sequence[Path]) -> list[bytes]:
    """Return a digest for each file: equal where lines differ in times and addresses alone.

    Empty for a large file, and for one that no recorder wrote.
    """
    return [_fingerprint(path) for path in paths]


def _fingerprint(path: Path) -> bytes:
    if path.stat().st_size > LARGE:
        return b""
    _, _, lines = path.read_bytes().partition(b"\n")
    if TIME in lines or ADDRESS in lines:
        return b""
    plain = TIME.join(_TIME.split(lines))
    if b'"text"' in plain or b'"outcome"' in plain or b'"message"' in plain:
        plain = _ADDRESS.sub(ADDRESS, plain)
    return hashlib.blake2b(plain).digest()


def own_lines(traces: Iterable[Trace]) -> Iterator[Trace]:
    """Yield each trace with its own lines and times, a copy read anew."""
    return (trace if trace.same_as is None else read(trace.path) for trace in traces)
