"""Reads what other tools left of a job, each file by its content: dumps, profiles, logs, stacks, and archives of them.

Kinds may be mixed in one folder. Of a folder, what is of no known format is left alone; a file that is named must be of
one. Nothing is executed, nothing is written, and everything is bounded; a log is read as a stream.

Left out: finding the files (`load`), opening archives (`archives`), and the formats themselves.
"""

from __future__ import annotations

import io
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np

from ...errors import CutFile, UnreadableInput, UsageError
from ..collectives import OPS, OWN, Interned, RankRecord, Recording, packed, recording, renumbered
from ..evidence import Evidence
from ..format import SUFFIX, TraceHeader
from ..journal import is_part
from ..parallel_read import in_processes
from . import collected
from .archives import OWN_HEAD, Opened, is_packed, opened
from .flight_recorder import decode_json, rank_of, read_dump, read_pickle
from .flight_recorder_versions import looks_like
from .genlock_programs import read_programs
from .kineto import MAX_BYTES, KinetoRank, read_kineto
from .logs import stacks
from .logs.scan import Logs

PICKLE = b"\x80"
MAX_PICKLE_PROTOCOL = 5
DUMP_NAME = re.compile(r"(trace|dump|rank)_?\d+(\.json)?$")
"""Names what torch calls its dumps: a file of that name counts as a rank's even where nothing can be read in it."""
KNOWN = (
    "Genlock's traces, Flight Recorder dumps, profiles, logs of torch, NCCL and engines, RAS answers, and stacks, "
    "also packed"
)


def programs(headers: Mapping[Path, TraceHeader], cut: Mapping[Path, CutFile]) -> Recording:
    """Return what ranks of a program without a protocol did together; `cut` are files without a whole header."""
    interned = Interned()
    records: list[RankRecord] = []
    for own, ranks in in_processes(read_programs, list(headers)):
        records += renumbered([rank.record for rank in ranks], own, interned)
    unreadable = {rank_of(file): error.what for file, error in cut.items()}
    world = next(iter(headers.values())).world
    return recording(OWN, interned, records, unreadable, world=world)


class _Found(NamedTuple):
    """Hold what some files held."""

    interned: Interned
    dumps: list[RankRecord]
    profiles: list[KinetoRank]
    cut: list[CutFile]
    """Why a rank's file could not be used; `where` is the file."""
    texts: list[Path]
    """Files that are neither, and may be logs."""


def recorded(files: Sequence[tuple[Path, bool]], paths: Sequence[Path]) -> Recording | Evidence:
    """Return what is in files that Genlock did not write; each with whether it was named. Raises UnreadableInput."""
    found = _Gathered()
    found.read(files)
    if found.empty:
        where = ", ".join(map(str, paths))
        do = f"name the folder of a run; known are {KNOWN}"
        raise found.error or UnreadableInput("there is no trace of a known format", where=where, do=do)
    collectives = found.collectives()
    facts = found.logs.finish()
    return Evidence(facts, collectives, found.said) if facts or collectives is None else collectives


def evidence_beside(own: Recording, files: Sequence[tuple[Path, bool]]) -> Recording | Evidence:
    """Return Genlock's own recording, with what the logs and stacks beside it say. Raises UnreadableInput."""
    found = _Gathered()
    found.read(files)
    if found.dumps or found.profiles:
        where = str((found.dumps or [p.record for p in found.profiles])[0].path)
        if any(named for _, named in files):
            raise UsageError("other traces beside Genlock's own", where=where, do="replay one run at a time")
    facts = found.logs.finish()
    return Evidence(facts, own, found.said) if facts else own


class _Gathered:
    """Holds all that the files of a job held, apart from Genlock's own traces."""

    def __init__(self) -> None:
        self.interned = Interned()
        self.dumps: list[RankRecord] = []
        self.profiles: list[KinetoRank] = []
        self.unreadable: dict[int, str] = {}
        self.error: CutFile | None = None
        self.logs = Logs()
        self.said: list[Path] = []
        self.elsewhere = 0
        """Members of archives that somebody else reads."""

    @property
    def empty(self) -> bool:
        """Tell whether nothing was found that says something of the job."""
        return not (self.dumps or self.profiles or self.said)

    def read(self, files: Sequence[tuple[Path, bool]]) -> None:
        """Read all files. Raises UnreadableInput."""
        present = dict.fromkeys(file for file, _ in files)
        named = {file for file, given in files if given}
        # the same dump once more, without frames
        twins = {
            f for f in present if f.suffix == ".json" and DUMP_NAME.search(f.name) and f.with_suffix("") in present
        }
        chosen = [file for file in present if file not in twins]
        packed_ones = {file for file in chosen if is_packed(_head(file))}
        read_some = partial(_read_some, named=named)
        texts: list[Path] = []
        for found in in_processes(read_some, [file for file in chosen if file not in packed_ones]):
            self._take(found)
            texts += found.texts
        for file in texts:
            with file.open("rb") as stream:
                self._text(file, stream, _head(file), file in named)
        for file in chosen:
            if file in packed_ones:
                self._archive(file, file in named)

    def _take(self, found: _Found) -> None:
        records = [*found.dumps, *(p.record for p in found.profiles)]
        moved = renumbered(records, found.interned, self.interned)
        self.dumps += moved[: len(found.dumps)]
        self.profiles += [p._replace(record=r) for p, r in zip(found.profiles, moved[len(found.dumps) :], strict=True)]
        for error in found.cut:
            self.error = error
            self.unreadable[rank_of(Path(error.where))] = error.what

    def _archive(self, file: Path, named: bool) -> None:
        before = self._count
        found = _Found(Interned(), [], [], [], [])
        try:
            for member in opened(file):
                self._member(member, found, named and not member.packed)
        except CutFile as error:
            if not DUMP_NAME.search(Path(error.where).name.removesuffix(".gz")):
                raise
            found.cut.append(error)
        self._take(found)
        if named and self._count == before:
            raise _unknown(file)

    @property
    def _count(self) -> int:
        """Count what was found so far."""
        return len(self.dumps) + len(self.profiles) + len(self.said) + len(self.unreadable) + self.elsewhere

    def _member(self, member: Opened, found: _Found, named: bool) -> None:
        path, stream, head = member.path, member.stream, member.head
        if path.name.endswith(SUFFIX) or head.startswith(OWN_HEAD) or is_part(path):
            self.elsewhere += 1  # read with the other traces
            return
        if _is_dump(head) or DUMP_NAME.search(path.name):
            if _is_pickle(head) and member.packed and not DUMP_NAME.search(path.name) and not _has_rank(path):
                return  # checkpoints are archives of pickles too
            data = stream.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                what = f"unpacks to more than {MAX_BYTES:,} bytes"
                raise UnreadableInput(what, where=str(path), do="is it a trace?")
            if _keep(path, data, found, named):
                return
            stream = io.BytesIO(data)
        if b"\0" not in head:
            self._text(path, stream, head, named)

    def _text(self, path: Path, stream: BinaryIO, head: bytes, named: bool) -> None:
        if collected.looks_like(head) and collected.read_manifest(path, stream.read(MAX_BYTES + 1), self.logs.sink):
            self.said.append(path)
            return
        threads = _is_threads(head) and _threads(path, stream.read(MAX_BYTES + 1), self.logs)
        if head.lstrip().startswith(SERVED) and (served := _served(path, stream.read(MAX_BYTES + 1))):
            for rank, dump in served:
                self.dumps.append(read_dump(path, dump, self.interned, rank))
            return
        if head.lstrip().startswith(SERVED):
            stream.seek(0)
        if threads or self.logs.scan(path, stream):
            self.said.append(path)
        elif named:
            raise _unknown(path)

    def collectives(self) -> Recording | None:
        """Return the recording that the dumps or profiles are. Raises UsageError."""
        records = [*self.dumps, *(p.record for p in self.profiles)]
        if self.dumps and self.profiles:
            where = str(self.profiles[0].record.path)
            raise UsageError("Flight Recorder and Kineto traces together", where=where, do="replay one run at a time")
        merged = _by_rank(records)
        if self.profiles:
            return _profiled(self.interned, self.profiles, self.unreadable)
        if not self.dumps:
            return None
        for rank in merged:
            self.unreadable.pop(rank, None)
        return recording("flight_recorder", self.interned, list(merged.values()), self.unreadable)


def _by_rank(records: Sequence[RankRecord]) -> dict[int, RankRecord]:
    """Return one record a rank: of several dumps of one ring the latest; back ends, which share no group, together.

    Raises UsageError.
    """
    rings: dict[int, list[RankRecord]] = {}
    for record in records:
        own = rings.setdefault(record.rank, [])
        groups = _groups(record)
        at = next(
            (at for at, known in enumerate(own) if not groups or not _groups(known) or groups & _groups(known)), -1
        )
        if at < 0:
            own.append(record)
        elif (later := _later(own[at], record)) is not None:
            own[at] = later
        else:
            what = f"a second trace of rank {record.rank}, beside {own[at].path}"
            raise UsageError(what, where=str(record.path), do="replay one run at a time")
    return {rank: reduce(_together, own) for rank, own in rings.items()}


def _may_be_one(one: RankRecord, other: RankRecord) -> bool:
    """Return True unless the two are of different back ends: they share a group, or one of them has none."""
    mine, theirs = _groups(one), _groups(other)
    return bool(mine & theirs) or not (mine and theirs)


def _groups(record: RankRecord) -> set[int]:
    return set(np.unique(record.ops["group"]).tolist()) | set(record.issued)


def _together(one: RankRecord, other: RankRecord) -> RankRecord:
    """Return one record of two back ends of a rank."""
    both = np.concatenate([one.ops.astype(OPS), other.ops.astype(OPS)])
    return replace(
        one,
        ops=packed(both[np.argsort(both["time"], kind="stable")]),
        lost=one.lost or other.lost,
        pending_only=one.pending_only or other.pending_only,
        issued={**one.issued, **other.issued},
        gap=one.gap if one.gap is not None else other.gap,
    )


def _later(one: RankRecord, other: RankRecord) -> RankRecord | None:
    """Return the later of two dumps of one ring, or either of two copies; None where they are of no one ring.

    What both hold must be the same operations, and of these none may have come less far in the later one.
    """
    same = ("sequence", "group", "signature", "peer")
    _, mine, theirs = np.intersect1d(one.ops["entry"], other.ops["entry"], return_indices=True)
    both = one.ops[mine], other.ops[theirs]
    if not len(mine) or any(not np.array_equal(both[0][name], both[1][name]) for name in same):
        return None
    last = [(int(record.ops["entry"].max()), sum(record.issued.values())) for record in (one, other)]
    far = [ops["status"] for ops in both]
    if last[0] <= last[1] and bool((far[0] <= far[1]).all()):
        return other
    return one if last[1] <= last[0] and bool((far[1] <= far[0]).all()) else None


def _profiled(interned: Interned, profiles: Sequence[KinetoRank], unreadable: Mapping[int, str]) -> Recording:
    worlds = {p.world for p in profiles}
    if len(worlds) > 1:
        where = str(profiles[0].record.path)
        raise UsageError(
            f"traces of jobs of {sorted(worlds)} ranks together", where=where, do="replay one run at a time"
        )
    return recording(
        "kineto",
        interned,
        [p.record for p in profiles],
        unreadable,
        world=worlds.pop(),
        window=True,
        numbered=all(p.numbered for p in profiles),
    )


# ── one file ────────────────────────────────────────────────────────────────────────────────────────────


def _read_some(files: Sequence[Path], named: Container[Path]) -> _Found:
    found = _Found(Interned(), [], [], [], [])
    for path in files:
        head = _head(path)
        try:
            if _is_dump(head) or DUMP_NAME.search(path.name):
                if path.stat().st_size > MAX_BYTES and not _is_lines(head):
                    raise UnreadableInput(f"larger than {MAX_BYTES:,} bytes", where=str(path), do="is it a trace?")
                if not _is_lines(head) and _keep(path, path.read_bytes(), found, path in named):
                    continue
            if b"\0" not in head:
                found.texts.append(path)
            elif path in named:
                raise _unknown(path)
        except CutFile as error:
            found.cut.append(error)
    return found


def _keep(path: Path, data: bytes, found: _Found, named: bool) -> bool:
    """Tell whether the file is a dump or a profile, or a dump in which nothing can be read. Raises UnreadableInput."""
    dump_name = DUMP_NAME.search(path.name) is not None
    if dump_name and data in (b"", PICKLE):
        raise CutFile("the file is empty", where=str(path))
    if _is_pickle(data[:2]):
        found.dumps.append(read_pickle(path, data, found.interned))
        return True
    first = data.lstrip(b" \t\r\n")[:1]
    if first == b"{" and b'"traceEvents"' in data:
        found.profiles.append(read_kineto(path, data, found.interned))
        return True
    if first == b"{" and (dump_name or b'"entries"' in data or b'"pg_config"' in data):
        decoded = decode_json(path, data)
        if looks_like(decoded):
            found.dumps.append(read_dump(path, decoded, found.interned))
            return True
    if dump_name and (first == b"{" or b"\0" in data[:4096]):
        raise _unknown(path)
    return False


def _is_dump(head: bytes) -> bool:
    return _is_pickle(head) or (head.lstrip(b" \t\r\n")[:1] == b"{" and not _is_lines(head))


def _is_pickle(head: bytes) -> bool:
    return head[:1] == PICKLE and len(head) > 1 and head[1] <= MAX_PICKLE_PROTOCOL


def _is_lines(head: bytes) -> bool:
    """Tell whether the first line is an object of its own, so that there is one a line."""
    line, newline, rest = head.partition(b"\n")
    return bool(newline) and line.rstrip().endswith(b"}") and line.startswith(b"{") and rest[:1] in (b"{", b"")


def _has_rank(path: Path) -> bool:
    return re.search(r"(?:^|_|rank)\d{1,7}$", path.name) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _unknown(path: Path) -> UnreadableInput:
    return UnreadableInput("of no known format", where=str(path), do=f"known are {KNOWN}")


SERVED = b"=== Rank "
"""Begins each rank's part of what torch's debug server gives."""


def _served(path: Path, data: bytes) -> list[tuple[int, object]]:
    """Return dumps of several ranks in one file, each behind a line that names the rank; none where they are none."""
    parts = re.split(rb"^=== Rank (\d{1,7}): [^\n]{0,400}===[ \t]*\r?\n", data, flags=re.MULTILINE)
    found: list[tuple[int, object]] = []
    for rank, text in zip(parts[1::2], parts[2::2], strict=True):
        if text.lstrip()[:1] != b"{":
            continue
        decoded = decode_json(path, text.strip())
        if looks_like(decoded):
            found.append((int(rank), decoded))
    return found


def _is_threads(head: bytes) -> bool:
    return head.lstrip()[:1] == b"[" and b'"frames"' in head and b'"thread_id"' in head


def _threads(path: Path, data: bytes, logs: Logs) -> bool:
    """Keep the stacks of py-spy's JSON; whether it is that."""
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    if not stacks.looks_like(decoded):
        return False
    stacks.read_threads(path, decoded, logs.sink)
    return True
