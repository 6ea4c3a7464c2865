"""Reads the collectives out of a Kineto (torch profiler, Chrome) trace: a stretch of one rank's time.

Newer traces say for each `record_param_comms` what it was, in which group, and sometimes its number; in older ones
the `nccl:` annotations name kind and input alone, and the order is all that there is. Times are in µs in the file.

Left out: kernels, and everything else that a profiler records.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...errors import UnreadableInput
from ..collectives import DEFAULT_GROUP, OPS, Group, Interned, RankRecord, Signature, Status
from .flight_recorder import KINDS, MAX_RANKS
from .flight_recorder_versions import LARGEST

MAX_BYTES = 256 << 20
"""Bounds the JSON; a profile of some steps is 1 to 100 MB."""
MAX_OBJECTS = 4_000_000


class _Event(msgspec.Struct):
    name: str = ""
    cat: str | None = None
    ph: str = ""
    ts: float | int | str = 0
    dur: float = 0
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Distributed(msgspec.Struct):
    rank: int
    world_size: int
    backend: str = ""


class _Trace(msgspec.Struct):
    traceEvents: list[_Event]
    distributedInfo: _Distributed | None = None


class KinetoRank(NamedTuple):
    """Holds one rank's stretch of time."""

    record: RankRecord
    world: int
    numbered: bool


class _Op(NamedTuple):
    time: int
    group: int
    signature: int
    sequence: int | None
    peer: int


def read_kineto(path: Path, data: bytes, interned: Interned) -> KinetoRank:
    """Return one rank's trace, already unpacked. Raises UnreadableInput."""
    if len(data) > MAX_BYTES or data.count(b"{") > MAX_OBJECTS:
        raise _bad(path, f"larger than {MAX_BYTES:,} bytes or {MAX_OBJECTS:,} objects")
    try:
        trace = msgspec.json.decode(data, type=_Trace)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"malformed trace ({error})") from None
    info = trace.distributedInfo
    if info is None:
        raise _bad(path, "`distributedInfo` is missing, and with it the rank")
    if not 0 <= info.rank < info.world_size <= MAX_RANKS:
        raise _bad(path, f"rank {info.rank} is not one of {info.world_size}")
    host = [e for e in trace.traceEvents if e.ph == "X" and e.cat in ("cpu_op", "user_annotation")]
    host.sort(key=lambda e: _ns(path, e))
    ops, gap = _described(path, host, interned), None
    if not ops:
        ops = _annotated(path, host, interned)
        gap = _unnamed(path, host, ops) if ops else None  # where none is named, there is nothing to miss one in
    numbered = bool(ops) and all(op.sequence is not None for op in ops)
    rows = _rows(ops, numbered)
    span = (_ns(path, host[0]), _ns(path, host[-1])) if host else None
    record = RankRecord(info.rank, path, np.array(rows, dtype=OPS), lost=True, pending_only=False, span=span, gap=gap)
    return KinetoRank(record, info.world_size, numbered)


def _described(path: Path, host: Sequence[_Event], interned: Interned) -> list[_Op]:
    """Return collectives whose arguments say what they are."""
    found = []
    for event in host:
        if event.name != "record_param_comms":
            continue
        args = _args(path, event)
        kind = args.get("Collective name")
        if not isinstance(kind, str) or kind in ("init", "wait"):
            continue
        kind = KINDS.get(kind, kind)
        sent, received = _number(path, args.get("In msg nelems")), _number(path, args.get("Out msg nelems"))
        name, description = str(args.get("Process Group Name", "")), str(args.get("Process Group Description", ""))
        members = _members(path, args.get("Process Group Ranks"))
        sequence = args.get("Seq")
        end = args.get("Dst Rank") if kind == "send" else args.get("Src Rank") if kind == "recv" else None
        found.append(
            _Op(
                _ns(path, event),
                interned.groups(Group(name, description, members, stated=bool(members))),
                interned.signatures(Signature(kind, str(args.get("dtype", "")), sent, received)),
                sequence if type(sequence) is int and 0 <= sequence < LARGEST else None,
                -1 if end is None else _number(path, end),
            )
        )
    return found


def _annotated(path: Path, host: Sequence[_Event], interned: Interned) -> list[_Op]:
    """Return collectives of which only kind and input are known; the one group stands for all that there may be."""
    found = []
    for event in host:
        if event.cat != "user_annotation" or not event.name.startswith("nccl:"):
            continue
        kind = event.name.removeprefix("nccl:").split(" ")[0]
        args = _args(path, event)
        dims, types = args.get("Input Dims") or [[]], args.get("Input type") or [""]
        if not (isinstance(dims, list) and isinstance(types, list) and isinstance(dims[0], list)):
            raise _bad(path, f"`Input Dims` of a {kind[:40]} is malformed")
        count = 1
        for extent in dims[0]:
            count = min(count * _number(path, extent), LARGEST)
        signature = Signature(KINDS.get(kind, kind), str(types[0])[:40], min(count, LARGEST), -1)
        group = interned.groups(Group("", DEFAULT_GROUP, (), stated=False))
        found.append(_Op(_ns(path, event), group, interned.signatures(signature), None, -1))
    return found


def _unnamed(path: Path, host: Sequence[_Event], ops: Sequence[_Op]) -> int | None:
    """Return the collectives before which a `record_param_comms` has tensors, and no annotation that names it."""
    times = np.array([op.time for op in ops], dtype=np.int64)
    for event in host:
        types = _args(path, event).get("Input type") if event.name == "record_param_comms" else None
        if not isinstance(types, list) or not types or types[0] in ("Scalar", ""):  # those begin, or wait
            continue
        begin = _ns(path, event)
        at = int(np.searchsorted(times, begin))
        if at == len(times) or times[at] > begin + round(event.dur * 1000):
            return at
    return None


def _rows(ops: Sequence[_Op], numbered: bool) -> list[tuple[int, ...]]:
    counts: dict[tuple[int, bool], int] = {}
    rows: list[tuple[int, ...]] = []
    for at, op in enumerate(ops):
        key = (op.group, op.peer >= 0)
        counts[key] = counts.get(key, 0) + 1
        sequence = op.sequence if numbered and op.sequence is not None else counts[key]
        rows.append((at, op.time, sequence, op.group, op.signature, 0, op.peer, 0, int(Status.COMPLETED)))
    return rows


def _args(path: Path, event: _Event) -> dict[str, Any]:
    try:
        return msgspec.json.decode(event.args, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"`args` of {event.name[:40]} is malformed ({error})") from None


def _ns(path: Path, event: _Event) -> int:
    try:
        time = round(float(event.ts) * 1000)
    except (ValueError, OverflowError):
        time = -1
    if not 0 <= time < LARGEST:
        raise _bad(path, f"`ts` of {event.name[:40]} is no time")
    return time


def _number(path: Path, value: object) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise _bad(path, "a size or rank of a collective is not a number")
    return value


def _members(path: Path, text: object) -> tuple[int, ...]:
    """Read `[0, 1]`; a long list is cut by the profiler (`[0, 1, ..., 127]`), and then nothing is known of it."""
    try:
        ranks = msgspec.json.decode(text, type=list[int]) if isinstance(text, str) else []
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        ranks = []
    return tuple(ranks) if all(0 <= r < MAX_RANKS for r in ranks) and len(set(ranks)) == len(ranks) else ()


def _bad(path: Path, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=str(path), do="is it a trace of torch's profiler?")
