"""Reads recordings that are no traces of a protocol: of programs without one, and of other people's tools.

A file may be packed with gzip, or be a tar archive. Of a folder, what is of no known format is left alone; a file that
is named must be of one. Nothing is unpacked to disk, and everything is bounded.

Left out: finding the files (`load`), and the formats themselves.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ...errors import CutFile, UnreadableInput, UsageError
from ..collectives import OWN, Interned, RankRecord, Recording, recording, renumbered
from ..format import TraceHeader
from ..parallel_read import in_processes
from .flight_recorder import decode_json, looks_like, rank_of, read_dump, read_pickle
from .genlock_programs import read_programs
from .kineto import MAX_BYTES, KinetoRank, read_kineto

GZIP, PICKLE, TAR_AT = b"\x1f\x8b", b"\x80", 257
MAX_MEMBERS = 100_000
DUMP_NAME = re.compile(r"(trace|dump|rank)_?\d+(\.json)?$")
"""Matches the names of torch's dumps: a file of that name counts as a rank's even where nothing can be read in it."""


class Source(NamedTuple):
    """Holds a file, or a member of an archive."""

    path: Path
    data: bytes
    named: bool
    """True where the user named it, rather than a folder around it."""


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
    """Holds what some files held."""

    interned: Interned
    dumps: list[RankRecord]
    profiles: list[KinetoRank]
    cut: list[CutFile]
    """Why a rank's file could not be used; `where` is the file."""


def recorded(files: Sequence[tuple[Path, bool]], paths: Sequence[Path]) -> Recording:
    """Return what is in files that Genlock did not write; each with True where it was named. Raises UnreadableInput."""
    present = dict.fromkeys(file for file, _ in files)
    # the same dump once more, without frames
    twins = {f for f in present if f.suffix == ".json" and DUMP_NAME.search(f.name) and f.with_suffix("") in present}
    interned = Interned()
    seen: dict[int, Path] = {}
    dumps: list[RankRecord] = []
    profiles: list[KinetoRank] = []
    unreadable: dict[int, str] = {}
    cut: CutFile | None = None
    read_some = partial(_read_some, named={file for file, named in files if named})
    for found in in_processes(read_some, [file for file in present if file not in twins]):
        records = [*found.dumps, *(p.record for p in found.profiles)]
        moved = renumbered(records, found.interned, interned)
        dumps += moved[: len(found.dumps)]
        profiles += [p._replace(record=r) for p, r in zip(found.profiles, moved[len(found.dumps) :], strict=True)]
        for record in records:
            if record.rank in seen:
                what = f"a second trace of rank {record.rank}, beside {seen[record.rank]}"
                raise UsageError(what, where=str(record.path), do="replay one run at a time")
            seen[record.rank] = record.path
        for cut in found.cut:
            unreadable[rank_of(Path(cut.where))] = cut.what
    if not dumps and not profiles:
        where = ", ".join(map(str, paths))
        raise cut or UnreadableInput("there is no trace of a known format", where=where, do="name the folder of a run")
    if dumps and profiles:
        where = str(profiles[0].record.path)
        raise UsageError("Flight Recorder and Kineto traces together", where=where, do="replay one run at a time")
    if profiles:
        return _profiled(interned, profiles, unreadable)
    return recording("flight_recorder", interned, dumps, unreadable)


def _read_some(files: Sequence[Path], named: Container[Path]) -> _Found:
    found = _Found(Interned(), [], [], [])
    for file in files:
        try:
            for source in _unpacked(file, file in named):
                read = _read(source, found.interned)
                if isinstance(read, KinetoRank):
                    found.profiles.append(read)
                elif read is not None:
                    found.dumps.append(read)
        except CutFile as error:
            found.cut.append(error)
    return found


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


def _read(source: Source, interned: Interned) -> RankRecord | KinetoRank | None:
    """Return what is in the file; None where it is of no known format and nobody said that it was."""
    path, data = source.path, source.data
    dump_name = DUMP_NAME.search(path.name) is not None
    if dump_name and data in (b"", PICKLE):
        raise CutFile("the file is empty", where=str(path))
    if data[:1] == PICKLE and len(data) > 1 and data[1] <= 5:
        return read_pickle(path, data, interned)
    if data.lstrip(b" \t\r\n")[:1] == b"{":
        if b'"traceEvents"' in data:
            return read_kineto(path, data, interned)
        if b'"entries"' in data or source.named or dump_name:
            decoded = decode_json(path, data)
            if looks_like(decoded):
                return read_dump(path, decoded, interned)
    if source.named or dump_name:
        raise UnreadableInput(
            "of no known format", where=str(path), do="name traces, Flight Recorder dumps or profiles"
        )
    return None


# ── archives ────────────────────────────────────────────────────────────────────────────────────────────


def _unpacked(path: Path, named: bool) -> Iterator[Source]:
    if path.stat().st_size > MAX_BYTES:
        raise UnreadableInput(f"larger than {MAX_BYTES:,} bytes", where=str(path), do="is it a trace?")
    data = path.read_bytes()
    if data[:2] == GZIP:
        data = _gunzip(path, data)
        path = path.with_name(path.name.removesuffix(".gz").replace(".tgz", ".tar"))
    if data[TAR_AT : TAR_AT + 5] == b"ustar":
        yield from _members(path, data)
    else:
        yield Source(path, data, named)


def _gunzip(path: Path, data: bytes) -> bytes:
    try:
        unpacking = zlib.decompressobj(wbits=31)
        plain = unpacking.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise UnreadableInput(f"not a whole gzip file ({error})", where=str(path)) from None
    if len(plain) > MAX_BYTES:
        raise UnreadableInput(f"unpacks to more than {MAX_BYTES:,} bytes", where=str(path), do="is it a trace?")
    if not unpacking.eof:
        raise CutFile("the gzip file ends in the middle", where=str(path))
    return plain


def _members(path: Path, data: bytes) -> Iterator[Source]:
    """Yield regular files of an archive, in memory; their names are told, never used as paths."""
    import tarfile  # slow to load

    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise UnreadableInput(f"archive of more than {MAX_MEMBERS:,} files", where=str(path))
                file = archive.extractfile(member) if member.isreg() and not member.sparse else None
                if file is not None:
                    yield Source(path / member.name, file.read(), named=False)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UnreadableInput(f"malformed archive ({error})", where=str(path)) from None
