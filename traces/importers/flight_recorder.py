"""Reads torch's Flight Recorder dumps: the ring in which a rank keeps its last collectives (pickle or JSON).

Every quirk of the format is handled here, and here alone:

- the rank stands in the file's name alone, and `record_id` is a rank's own: never align ranks by it;
- JSON writes a null time as 0 and has no frames; 2.9 says `nccl_version`, 2.10 `comm_lib_version`;
- the file's name ends in the rank; before it may stand a host's name, with dots and numbers of its own;
- gloo never says how far an operation came (`state` stays `scheduled`, `retired` is true for what failed),
  and its `pg_config` has one entry, named "", of whichever group was made last;
- a ring drops its oldest entries silently; a dump of what is pending leaves out all that completed;
- send and recv name their ends by the *group's* ranks, or not at all (TorchComms); those of a batch keep the state
  `scheduled`, the one of the `coalesced` entry that ends the batch holds for all of them. It may be no send itself,
  and from 2.7 on it says of a batch of collectives what they are together (`REDUCE_SCATTER_coalesced`);
- `pg_status` is keyed by a number that only entries connect to a group's name, and its last number may be a
  collective's or, in a group that has both, a send's or recv's.

Left out: older versions and TorchComms (`flight_recorder_versions`), and anything but what `collectives` holds (thread
names, time-outs, versions of the library).
"""

from __future__ import annotations

import codecs
import json
import marshal
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...errors import CutFile, UnreadableInput
from ..collectives import OPS, Group, Interned, Ops, RankRecord, Signature, Status, packed
from .flight_recorder_versions import LARGEST, UNANCHORED, is_number, unified
from .places import place_of, place_text
from .safe_pickle import MAX_BYTES, MAX_CONTAINERS, load_plain

KINDS = {
    "_all_gather_base": "all_gather",
    "all_gather_single": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "allreduce_coalesced": "all_reduce",
    "all_reduce_barrier": "barrier",
    "all_to_all_single": "all_to_all",
    "all_to_all_v_single": "all_to_all",
    "_broadcast_oop": "broadcast",
    "_reduce_oop": "reduce",
    "all_gather_v": "all_gather",
    "reduce_scatter_v": "reduce_scatter",
}
"""Names that a collective goes by, to the one that they are on the wire."""

BATCHES = {
    "coalesced": "",
    "ALLGATHER_coalesced": "all_gather",
    "_ALLGATHER_BASE_coalesced": "all_gather",
    "REDUCE_SCATTER_coalesced": "reduce_scatter",
    "_REDUCE_SCATTER_BASE_coalesced": "reduce_scatter",
    "ALLREDUCE_coalesced": "all_reduce",
    "BROADCAST_coalesced": "broadcast",
    "ALLTOALL_coalesced": "all_to_all",
    "COALESCED_coalesced": "",
}
"""Names of the entry that ends a batch, to what the batch is together; empty where that is its members' own kind."""

STATES = {"scheduled": Status.ISSUED, "started": Status.STARTED, "completed": Status.COMPLETED}

FIELDS = (
    *("record_id", "time_created_ns", "process_group", "profiling_name", "collective_seq_id", "p2p_seq_id"),
    *("input_sizes", "output_sizes", "input_dtypes", "output_dtypes", "state", "is_p2p", "pg_id"),
)
FRAME: Callable[[Mapping[str, Any]], tuple[Any, Any, Any]] = itemgetter("filename", "line", "name")
MAX_RANKS = 1_000_000


def rank_of(path: Path) -> int:
    """Return the rank that a dump's name ends in (`trace_3`, `_dump_3`, `nccl_trace_rank_3.json`).

    Raises UnreadableInput.
    """
    stem = _SUFFIXES.sub("", path.name)
    # a host may stand before it, with dots and numbers of its own
    found = re.search(r"(?:^|_|rank)(\d{1,7})$", stem) or re.search(r"rank_?(\d{1,7})(?!\d)", stem)
    found = found or re.search(r"(\d{1,7})$", stem) or re.search(r"(\d{1,7})$", stem.split(".")[0])
    if found is None:
        raise UnreadableInput("no rank in the file's name", where=str(path), do="end it in the rank: `trace_3`")
    return int(found[1])


_SUFFIXES = re.compile(r"(?:\.(?:json|pkl|pickle|bin|gz|dump|trace|jsonl|pt|txt|fr))+$")


def decode_json(path: Path, data: bytes) -> Any:
    """Return the value in `data`. Raises UnreadableInput, CutFile where it ends too early."""
    if len(data) > MAX_BYTES or data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise _bad(path, f"JSON of more than {MAX_BYTES:,} bytes or {MAX_CONTAINERS:,} containers")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _ends_early(data):
            raise CutFile("the JSON ends in the middle", where=str(path)) from None
        raise _bad(path, f"malformed JSON ({error})") from None


_BEGUN = re.compile(r'\s*|"(?:[^"\\]|\\.)*\\?|-|t(?:r|ru)?|f(?:a|al|als)?|n(?:u|ul)?', re.DOTALL)
"""Matches the rest of a text in which a JSON value has begun, or none, and nothing is wrong so far."""


def _ends_early(data: bytes) -> bool:
    """Return True for the beginning of a JSON text of which more would be needed."""
    try:
        json.loads(codecs.getincrementaldecoder("utf-8")().decode(data))
    except json.JSONDecodeError as error:
        return _BEGUN.fullmatch(error.doc, error.pos) is not None
    except (ValueError, RecursionError):  # no UTF-8, or a number of thousands of digits
        return False
    return False


def read_pickle(path: Path, data: bytes, interned: Interned) -> RankRecord:
    """Return one rank's dump as torch's `_dump_fr_trace` writes it."""
    return read_dump(path, load_plain(path, data), interned)


def read_dump(path: Path, dump: object, interned: Interned, rank: int | None = None) -> RankRecord:
    """Return one rank's dump, decoded.

    Raises UnreadableInput with the entry where it stops making sense.
    The rank is that of the file's name, where it is not given.
    """
    rank = rank_of(path) if rank is None else rank
    dump = unified(path, dump, rank)
    reader = _Reader(path, rank, _configured(path, dump.get("pg_config"), interned), interned)
    rows = reader.rows(dump["entries"])
    numbers = _array(path, rows)["entry"]
    steps = np.diff(numbers)
    if (steps <= 0).any():
        raise _bad(path, "the entries are not in the order of their `record_id`")
    ops = _array(path, reader.unbatched(rows)) if reader.batched else _array(path, rows)
    statuses = _statuses(path, dump.get("pg_status"))
    active = not reader.gloo and not bool((ops["status"] == Status.COMPLETED).any())
    pending_only = active and (len(ops) > 0 or any(last > 0 for last, _ in statuses.values()))
    names = reader.named(statuses)
    gaps = np.flatnonzero(steps > 1)
    return RankRecord(
        rank,
        path,
        packed(ops),
        lost=bool(len(numbers)) and int(numbers[0]) > 0,
        pending_only=pending_only,
        issued={names[n]: last for n, (last, _) in statuses.items() if n in names},
        gap=None if pending_only or not len(gaps) else int(numbers[gaps[0]]) + 1,
        dropped=reader.endless,
        unanchored=dump.get(UNANCHORED) is True,
    )


Row = tuple[int, int, int, int, int, int, int, int, int]
"""Holds one operation, in the order of OPS."""


def _array(path: Path, rows: Sequence[Row]) -> Ops:
    if not {type(value) for row in rows for value in row} <= {int, Status}:  # numpy would take "1" for 1
        raise _bad(path, "an entry has a number that is none")
    try:
        ops = np.array(rows, dtype=OPS)
    except (TypeError, ValueError, OverflowError):
        raise _bad(path, "an entry has a number out of bounds") from None
    if any((ops[name] < 0).any() for name in ("entry", "time", "sequence")):
        raise _bad(path, "an entry has a number below 0")
    return ops


class _Reader:
    """Turns one rank's entries into rows; what was met before is looked up, not taken apart again."""

    def __init__(self, path: Path, rank: int, config: Mapping[str, Group], interned: Interned) -> None:
        self.path, self.rank, self.config, self.interned = path, rank, config, interned
        self.gloo = False
        self.batched = False
        self.endless = False
        """True where a send or receive was left out because its other end is not known."""
        self._groups: dict[tuple[str, str], int] = {}
        self._ids: dict[int, int] = {}
        self._closing: dict[int, tuple[str, int]] = {}
        """Record number of an entry that ends a batch, to what the batch is, and its number among sends."""
        self._names: dict[str, tuple[str, str, tuple[int, int] | None]] = {}
        self._signatures: dict[tuple[str, bytes], int] = {}
        self._sites: dict[tuple[tuple[str, int, str], ...], int] = {}

    def rows(self, entries: Sequence[Any]) -> list[Row]:
        """Return one row an entry. Raises UnreadableInput at the first that makes no sense."""
        fields: Callable[[Any], tuple[Any, ...]] = itemgetter(*FIELDS)
        rows: list[Row] = []
        try:
            for entry in entries:
                row = self._row(fields(entry), entry.get("frames"))
                if row is None:
                    self.endless = True
                else:
                    rows.append(row)
        except KeyError as error:
            raise _bad(self.path, f"it has no {str(error)[:40]}", len(rows)) from None
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise _bad(self.path, f"malformed ({type(error).__name__})", len(rows)) from None
        return rows

    def _row(self, values: tuple[Any, ...], frames: Any) -> Row | None:
        number, time, group_name, name, collective, p2p, *shape, state, is_p2p, pg_id = values
        backend, kind, ends = self._names.get(name) or self._name(name)
        group = self._groups.get(tuple(group_name)) or self._group(group_name)
        self._ids[pg_id] = group - 1
        # marshal, because it is the fastest way to something that can be looked up
        key = (kind, marshal.dumps(shape, 2))
        signature = self._signatures.get(key)
        if signature is None:
            signature = self._signatures[key] = self._signature(kind, *shape)
        if type(is_p2p) is not bool:
            raise TypeError
        status = STATES[state] if backend != "gloo" else Status.UNSAID
        site = self._site(frames) if frames else 0
        peer = -1 if ends is None else self._peer(group - 1, ends, kind)
        if ends is None and kind in ("send", "recv"):
            members = self.interned.groups.values[group - 1].members
            if len(members) != 2:
                return None
            peer = members[0] if members[1] == self.rank else members[1]
        if kind in BATCHES:
            self._closing[number] = (BATCHES[kind], p2p)
        return number, time, p2p if is_p2p else collective, group - 1, signature, site, peer, 0, status

    def _name(self, name: str) -> tuple[str, str, tuple[int, int] | None]:
        """Take `nccl:send 0->1` apart; ends are (from, to), as ranks of the group."""
        found = re.fullmatch(r"(\w{1,20}):(\w{1,60})(?: (\d{1,7})(->|<-)(\d{1,7}))?", name, re.ASCII)
        if found is None:
            raise ValueError
        ends = None
        if found[3] is not None:
            one, other = int(found[3]), int(found[5])
            ends = (one, other) if found[4] == "->" else (other, one)
        if found[2] not in ("send", "recv") and ends is not None:
            raise ValueError
        self.gloo |= found[1] == "gloo"
        self.batched |= found[2] in BATCHES
        self._names[name] = parts = (found[1], KINDS.get(found[2], found[2]), ends)
        return parts

    def _group(self, given: Sequence[str]) -> int:
        """Return the group's number, plus one."""
        name, description = given
        if not isinstance(name, str) or not isinstance(description, str):
            raise TypeError
        group = self.config.get(name)
        if group is None:
            group = Group(name, description, (), stated=False)
        elif self.rank not in group.members:
            what = f"rank {self.rank} is no member of group {name} ({description[:80]})"
            raise UnreadableInput(what, where=str(self.path), do="is the rank in the file's name right?")
        self._groups[name, description] = number = self.interned.groups(group) + 1
        return number

    def _signature(self, kind: str, sent: Any, received: Any, in_types: Any, out_types: Any) -> int:
        types = in_types or out_types
        if not all(isinstance(t, str) for t in types):
            raise TypeError
        dtype = "+".join(dict.fromkeys(types))
        return self.interned.signatures(Signature(kind, dtype, _elements(sent), _elements(received)))

    def _site(self, frames: Sequence[Mapping[str, Any]]) -> int:
        """Return where the program issued it, with the library's line beside it."""
        key = tuple(map(FRAME, frames))
        site = self._sites.get(key)
        if site is None:
            place, library = place_of([(file, int(line), name[:80]) for file, line, name in key])
            site = self._sites[key] = self.interned.sites(place_text(place, library))
        return site

    def _peer(self, group: int, ends: tuple[int, int], kind: str) -> int:
        members = self.interned.groups.values[group].members
        if members and max(ends) >= len(members):
            raise _bad(self.path, f"an entry names rank {max(ends)} of a group of {len(members)}")
        source, target = (members[ends[0]], members[ends[1]]) if members else ends
        mine, peer = (source, target) if kind == "send" else (target, source)
        if mine != self.rank:
            raise _bad(self.path, f"an entry is of rank {mine}, the file's name says {self.rank}")
        return peer

    def unbatched(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows without those that end a batch.

        A batch's sends and receives take the state of its end, its collectives are one.
        Those of a batch come one after another in their group, with one sequence number and the end last. An end
        without members stands for the operation itself, where it says which.
        """
        out: list[Row] = []
        batch: dict[tuple[int, bool], list[int]] = {}
        for row in rows:
            if row[0] in self._closing:
                self._close(row, out, batch)
                continue
            key = (row[3], row[6] >= 0)
            members = batch.get(key, [])
            if members and out[members[0]][2] != row[2]:
                members = batch[key] = []
            if members and row[6] < 0:
                first = out[members[0]]
                out[members[0]] = (*first[:4], self._together(first[4], row[4]), *first[5:])
            else:
                batch.setdefault(key, []).append(len(out))
                out.append(row)
        return out

    def _close(self, row: Row, out: list[Row], batch: dict[tuple[int, bool], list[int]]) -> None:
        kind, p2p_number = self._closing[row[0]]
        closed = False
        for p2p, number in ((True, p2p_number), (False, row[2])):
            members = batch.pop((row[3], p2p), [])
            if not members or out[members[0]][2] not in (number, row[2]):
                continue
            closed = True
            for at in members:
                signature = out[at][4] if p2p or not kind else self._whole(kind, out[at][4])
                out[at] = (*out[at][:4], signature, *out[at][5:8], row[8])
        if not closed and kind:
            signature = self.interned.signatures(Signature(kind, "", -1, -1))
            out.append((*row[:4], signature, *row[5:]))

    def _whole(self, kind: str, number: int) -> int:
        """Return the signature of a collective that was issued in parts, one for each member: of the parts the sum."""
        parts = self.interned.signatures.values[number]
        sent, received = (-1, parts.received) if kind == "all_gather" else (parts.sent, -1)
        return self.interned.signatures(Signature(kind, parts.dtype, sent, received))

    def _together(self, one: int, other: int) -> int:
        """Return the signature of two collectives that are issued as one."""
        a, b = self.interned.signatures.values[one], self.interned.signatures.values[other]
        kind = a.kind if a.kind == b.kind else "batch"
        return self.interned.signatures(Signature(kind, a.dtype, a.sent + b.sent, a.received + b.received))

    def named(self, statuses: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """Map `pg_id` to group, for those that the entries or, all being there, their order connects.

        Both `pg_id` and a numeric name count up as a rank makes its groups; where there is one status for each
        configured group, and no entry contradicts, the smallest belongs to the smallest.
        """
        names = sorted((n for n in self.config if is_number(n)), key=int)
        if len(names) == len(self.config) == len(statuses):
            groups = (self.interned.groups(self.config[name]) for name in names)
            ordered = dict(zip(sorted(statuses), groups, strict=True))
            if all(ordered.get(n) == group for n, group in self._ids.items()):
                return ordered
        return self._ids


def _elements(sizes: Sequence[Sequence[int]]) -> int:
    total = 0
    for shape in sizes:
        count = 1
        for extent in shape:
            if type(extent) is not int or extent < 0:
                raise TypeError
            count *= extent
            if count > LARGEST:
                raise ValueError
        total += count
        if total > LARGEST:
            raise ValueError
    return total


def _statuses(path: Path, given: object) -> dict[int, tuple[int, int]]:
    """Map `pg_id` to the last number issued and completed, from `pg_status`."""
    found = {}
    if not isinstance(given, dict | None):
        raise _bad(path, "`pg_status` is not a dictionary")
    for name, about in (given or {}).items():
        try:
            last, done = about["last_enqueued_collective"], about["last_completed_collective"]
            found[_counter(name)] = (_counter(last), _counter(done))
        except (KeyError, TypeError, ValueError):
            raise _bad(path, "`pg_status` is malformed") from None
    return found


def _counter(given: object) -> int:
    """Return a number, as pickles have it, or as JSON, in a text. Raises ValueError."""
    if type(given) is not int and not (isinstance(given, str) and re.fullmatch(r"-?\d{1,18}", given, re.ASCII)):
        raise ValueError
    number = int(given)
    if not -1 <= number < LARGEST:
        raise ValueError
    return number


def _configured(path: Path, config: object, interned: Interned) -> dict[str, Group]:
    """Map name to group, from `pg_config`; the one that gloo writes under the name "" names no group."""
    found = {}
    if not isinstance(config, dict | None):
        raise _bad(path, "`pg_config` is not a dictionary")
    for name, about in (config or {}).items():
        if not isinstance(name, str) or not isinstance(about, dict) or not isinstance(about.get("desc", ""), str):
            raise _bad(path, "`pg_config` is malformed")
        members = _ranks(path, about.get("ranks"))
        if not members:
            continue
        group = Group(name, about.get("desc", ""), members)
        interned.groups(group)
        if name:
            found[name] = group
    return found


def _ranks(path: Path, text: object) -> tuple[int, ...]:
    """Read `[0, 1]` as numbers and nothing else."""
    try:
        ranks = msgspec.json.decode(text, type=list[int]) if isinstance(text, str) else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        ranks = None
    if ranks is None:
        raise _bad(path, "`ranks` of a group is not a list of numbers")
    if not all(0 <= r < MAX_RANKS for r in ranks) or len(set(ranks)) != len(ranks):
        raise _bad(path, "`ranks` of a group are not distinct ranks")
    return tuple(ranks)


def _bad(path: Path, what: str, at: int | None = None) -> UnreadableInput:
    where = str(path) if at is None else f"{path}, entry {at}"
    return UnreadableInput(what, where=where, do="is it a dump that torch wrote?")
