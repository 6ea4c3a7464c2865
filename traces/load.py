"""Finds the traces that paths stand for, sees by their content what wrote them, and reads them.

A path is a file, a folder, or an archive (tar, zip), also within another; any of them may be packed with gzip.

Left out: the formats themselves, and all but Genlock's own traces (`importers.detect`), which takes longer to load.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CutFile, UnreadableInput, UsageError
from . import journal
from .format import EARLIER, NEW, SUFFIX, Trace, TraceHeader, lines_of, opening
from .identical_ranks import fingerprints, read_identical
from .importers.archives import OWN_HEAD, is_packed, opened
from .parallel_read import in_processes

if TYPE_CHECKING:
    from .collectives import Recording
    from .evidence import Evidence


class Own(NamedTuple):
    """Holds traces that Genlock wrote: the headers, and the files that are cut before theirs ends."""

    headers: dict[Path, TraceHeader]
    cut: dict[Path, CutFile]

    @property
    def follows(self) -> bool:
        """Return True if the traces follow a protocol."""
        return any(header.protocol for header in self.headers.values())


def load(paths: Sequence[Path]) -> list[Trace] | Recording:
    """Return the traces that `paths` stand for: Genlock's own, or a recording.

    Raises UnreadableInput, UsageError.
    What logs and stacks beside them say is left out: `gather` has it.
    """
    return drawn(gather(unpacked(paths)), paths)


def traced(found: list[Trace] | Recording | Evidence) -> list[Trace] | Recording | None:
    """Return the traces among what was gathered; None where there are logs alone."""
    from .evidence import Evidence

    return found.recording if isinstance(found, Evidence) else found


def drawn(found: list[Trace] | Recording | Evidence, paths: Sequence[Path]) -> list[Trace] | Recording:
    """Return the traces among what was gathered from `paths`. Raises UsageError where there are logs alone."""
    traces = traced(found)
    if traces is None:
        where = ", ".join(map(str, paths))
        raise UsageError("logs alone, with no trace to draw", where=where, do="`genlock replay` has the verdict")
    return traces


def gather(paths: Sequence[Path]) -> list[Trace] | Recording | Evidence:
    """Return all that `paths` stand for: Genlock's own traces, a recording, or evidence.

    Raises UnreadableInput.
    Genlock's own traces are `unpacked` before. Evidence is what logs and stacks say, with the recording of the same job
    where there is one.
    """
    files = files_of(paths)
    own = own_of(files)
    if own is None:
        from .importers.detect import recorded

        return recorded(files, paths)
    if own.follows:
        return read_identical(own.headers, partial(in_processes, fingerprints))
    from .importers.detect import evidence_beside, programs

    found = programs(*own)
    others = [file for file in files if file[0] not in own.headers and file[0] not in own.cut and not _is_own(file[0])]
    return evidence_beside(found, others)


def files_of(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Return the files that paths stand for, each with True where it was named. Raises UnreadableInput."""
    # sorted, so that the order given never matters; once, also where a folder and a file in it are named
    return list(dict(sorted(file for path in paths for file in _files(path))).items())


class OneJob(NamedTuple):
    """Holds the files of one job, or of one attempt of it."""

    name: str
    """The folder that has them; where several have, the run."""
    files: tuple[Path, ...]
    processes: Mapping[int, str]
    """Maps a rank to its process, where its trace says that."""


def jobs_of(files: Sequence[tuple[Path, bool]]) -> list[OneJob]:
    """Return the jobs and attempts whose traces Genlock wrote into several folders, in the order in which they began.

    A single one, whatever its files are, is returned as none: then all files belong to it.
    """
    own = [file for file, _ in files if file.name.endswith(SUFFIX)]
    if len({file.parent for file in own}) < 2:
        return []
    found: dict[tuple[str, int, int], list[tuple[int, Path]]] = {}
    processes: dict[tuple[str, int, int], dict[int, str]] = {}
    places: dict[Path, tuple[str, int, int]] = {}
    cut: list[Path] = []
    for file in own:
        try:
            header = opening(file, lines_of(file))
        except CutFile:
            cut.append(file)
            continue
        key = places[file.parent] = header.run, header.attempt, header.world
        found.setdefault(key, []).append((header.clock.wall_ns, file))
        processes.setdefault(key, {})[header.rank] = header.process
    if len(found) < 2:
        return []
    for file in cut:
        found.setdefault(places.get(file.parent, (str(file), 0, 0)), []).append((0, file))
    jobs: list[tuple[int, OneJob]] = []
    for key, traces in found.items():
        run, attempt, _ = key
        paths = tuple(sorted(file for _, file in traces))
        folders = {file.parent for file in paths}
        name = str(folders.pop()) if len(folders) == 1 else f"run {run}" + (f", attempt {attempt}" if attempt else "")
        jobs.append((max(begin for begin, _ in traces), OneJob(name, paths, processes.get(key, {}))))
    return [job for _, job in sorted(jobs, key=lambda each: (each[0], each[1].name))]


class Start(NamedTuple):
    """Names one start of a job's ranks, and the recording that keeps a journal of it."""

    recording: str
    run: str
    attempt: int


def starts_of(files: Sequence[Path]) -> dict[Start, set[Path]]:
    """Return what traces that Genlock wrote are of, with the folders that have them."""
    found: dict[Start, set[Path]] = {}
    for file in files:
        if file.name.endswith(SUFFIX):
            with suppress(CutFile):
                header = opening(file, lines_of(file))
                found.setdefault(Start(header.recording, header.run, header.attempt), set()).add(file.parent)
    return found


def journals_of(paths: Sequence[Path], starts: Mapping[Start, set[Path]]) -> list[journal.Journal]:
    """Return the journals of the recordings that paths stand for, and those beside traces that belong to one."""
    found = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    folders = {file.parent for file in found if journal.is_part(file)}
    for start, places in starts.items():
        if start.recording:  # the first job's traces lie beside it, those of others one folder below
            beside = (folder for place in places for folder in (place, place.parent))
            folders |= {folder for folder in beside if any(map(journal.is_part, folder.iterdir()))}
    return [journal.Journal(folder) for folder in sorted(folders)]


def starts_in(folder: Path) -> frozenset[tuple[str, int]]:
    """Return run and attempt of the traces below a folder, as one trace of each place has them."""
    files: dict[Path, Path] = {}
    for file in folder.rglob(f"*{SUFFIX}"):
        files.setdefault(file.parent, file)
    return frozenset((start.run, start.attempt) for start in starts_of(list(files.values())))


def own_of(files: Sequence[tuple[Path, bool]]) -> Own | None:
    """Return Genlock's own traces among files, of one run; None where there are none.

    Raises UnreadableInput, UsageError.
    """
    own = [file for file, _ in files if file.name.endswith(SUFFIX) or _is_own(file)]
    if not own:
        return None
    found = Own({}, {})
    for file in own:
        try:
            found.headers[file] = opening(file, lines_of(file))
        except CutFile as error:
            found.cut[file] = error
    _leave_out_older(found.headers)
    if found.cut and (not found.headers or found.follows):
        raise next(iter(found.cut.values()))
    strangers = [file for file, named in files if named and file not in own and not _is_packed(file)]
    if strangers and found.follows:
        raise UsageError("other traces beside Genlock's own", where=str(strangers[0]), do="replay one run at a time")
    if not found.follows:
        check_one_run(list(found.headers.items()))
    return found


def _leave_out_older(headers: dict[Path, TraceHeader]) -> None:
    """Leave out a trace of which another file has all, and perhaps more: two looks at a rank, or two copies."""
    seen: dict[tuple[str, int, int], Path] = {}
    for path, header in list(headers.items()):
        key = (header.run, header.attempt, header.rank)
        other = seen.setdefault(key, path)
        if other is path or headers[other] != header:
            continue
        short, long = sorted((other, path), key=lambda file: (file.stat().st_size, file))
        if _begins(long, short):
            del headers[short]
            seen[key] = long


def _begins(long: Path, short: Path) -> bool:
    """Return True if a file begins with all of another one."""
    with long.open("rb") as whole, short.open("rb") as part:
        while block := part.read(1 << 20):
            if whole.read(len(block)) != block:
                return False
    return True


def check_one_run(headers: Sequence[tuple[Path, TraceHeader]]) -> None:
    """Raise UsageError if the traces are of several runs or attempts, or two of them of one rank."""
    first_path, first = headers[0]
    seen: dict[int, Path] = {}
    for path, header in headers:
        if (header.run, header.attempt, header.world) != (first.run, first.attempt, first.world):
            what = f"this trace is of {run_of(header)}, {first_path} is of {run_of(first)}"
            raise UsageError(what, where=str(path), do="replay one run at a time")
        if header.rank in seen:
            what = f"a second trace of rank {header.rank}, beside {seen[header.rank]}"
            raise UsageError(what, where=str(path), do="name each rank's trace once")
        seen[header.rank] = path


def run_of(header: TraceHeader) -> str:
    """Return a run's name for messages, with the attempt where it is not the first."""
    return f"run {header.run}" + (f", attempt {header.attempt}" if header.attempt else "")


def _files(path: Path) -> Iterator[tuple[Path, bool]]:
    if path.is_dir():
        yield from ((file, False) for file in sorted(path.rglob("*")) if file.is_file() and not _belongs(file))
    elif path.is_file():
        if not journal.is_part(path):
            yield path, True
    elif path.exists():
        raise UnreadableInput("neither a file nor a folder", where=str(path), do="name traces")
    else:
        raise UnreadableInput("no such file or folder", where=str(path), do="check the path")


def _belongs(path: Path) -> bool:
    """Return True for a file that is read with others: of a journal, or of a trace with a cap."""
    return journal.is_part(path) or path.name.endswith((EARLIER, NEW))


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(OWN_HEAD)) == OWN_HEAD


def unpacked(paths: Sequence[Path]) -> list[Path]:
    """Return the paths, and for each archive that has Genlock's own traces a folder with them and their journal.

    They are read more than once and in several processes, which a member of an archive is not made for. What else is
    in the archive is read from there. The folders go when the process ends.
    """
    found = list(paths)
    for file, _ in files_of(paths):
        if _is_packed(file):
            folder = _scratch()
            with suppress(CutFile):  # where it ends in the middle, whoever reads the rest says so
                for member in opened(file):
                    if _is_of_recording(member.path, member.head):
                        copy = _place(folder, file, member.path)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        with copy.open("wb") as out:
                            shutil.copyfileobj(member.stream, out)
            if any(folder.iterdir()):
                found.append(folder)
            else:
                folder.rmdir()
    return found


def _is_packed(file: Path) -> bool:
    with file.open("rb") as stream:
        return is_packed(stream.read(512))


def _is_of_recording(path: Path, head: bytes) -> bool:
    return path.name.endswith(SUFFIX) or head.startswith(OWN_HEAD) or journal.is_part(path)


def _place(folder: Path, archive: Path, member: Path) -> Path:
    """Return where a member of an archive goes: as it lies there, never out of the folder, and over no other."""
    parts = member.relative_to(archive).parts if member.is_relative_to(archive) else (member.name,)
    plain = [re.sub(r"[^A-Za-z0-9._-]", "_", part)[-MAX_NAME:] for part in parts if part.strip("./")]
    place = folder.joinpath(*plain[-MAX_NESTED:])
    number = 1
    while place.exists() or any(parent.is_file() for parent in place.parents):
        number += 1
        place = folder / f"_{number}" / place.name
    return place


def _scratch() -> Path:
    folder = tempfile.mkdtemp(prefix="genlock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


MAX_NAME, MAX_NESTED = 200, 6
"""Limit the names of what is unpacked, and how deep it lies."""
