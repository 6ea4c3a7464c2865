"""Takes the end of each log that the ranks write, and of each whose it is.

Only regular files are read: what is read from a pipe is lost to whoever it was meant for. A file that several ranks
write, or the process that started them, is nobody's, so that no line of it is taken for a rank's. Left out: reading
them (`traces`).
"""

from __future__ import annotations

import contextlib
import os

from ..errors import UnreadableInput
from .bounded import Outcome
from .process import Process
from .ranks import Rank
from .staging import Staging

SECONDS = 10.0
TAIL = 4 << 20
"""Bytes of the end of a log that are taken."""
STREAMS = {1: "stdout", 2: "stderr"}


def logs(rank: Rank, staging: Staging) -> Outcome:
    """Write the end of what a rank prints to. `found` says which file each of its streams leads to."""
    whys: list[str] = []
    found: dict[str, str] = {}
    files: list[str] = []
    shared = _of_the_parent(rank)
    seen: dict[str, str] = {}
    for descriptor, name in STREAMS.items():
        try:
            about = rank.process.open_file(descriptor)
            if not about.regular:
                kind = about.target.split(":")[0]
                whys.append(f"{name} is {'a pipe' if kind == 'pipe' else kind}")
                continue
            if about.key in seen:
                found[name] = seen[about.key]
                continue
            own = "shared" if about.key in shared else rank.name
            label = f"{own}.{about.key}.log"
            files.append(staging.write(label, _tail(rank.process.reopen(descriptor))))
        except UnreadableInput as error:
            whys.append(f"{name}: {error.what}")
            continue
        except OSError as error:
            whys.append(f"{name}: {error.strerror}")
            continue
        found[name] = seen[about.key] = label
    missing = "" if found else f"no log: {' and '.join(whys)}"
    return Outcome(files, {"streams": found}, missing, [] if found else ["log"])


def _of_the_parent(rank: Rank) -> set[str]:
    """Return the files that the process which started the rank prints to."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        parent = Process(rank.process.parent)
        try:
            for descriptor in STREAMS:
                with contextlib.suppress(OSError):
                    found.add(parent.open_file(descriptor).key)
        finally:
            parent.close()
    return found


def _tail(file: int) -> bytes:
    """Return the last whole lines of a file, and close it."""
    try:
        size = os.fstat(file).st_size
        at = max(0, size - TAIL)
        data = os.pread(file, size - at, at)
        while len(data) < size - at and (part := os.pread(file, size - at - len(data), at + len(data))):
            data += part
    finally:
        os.close(file)
    return data[data.find(b"\n") + 1 :] if at else data


def name_owners(ranks: list[Rank], outcomes: list[Outcome], staging: Staging) -> None:
    """Give a log that several ranks write the name of nobody; else that of its rank and stream."""
    owners: dict[str, set[str]] = {}
    for rank, outcome in zip(ranks, outcomes, strict=True):
        for label in outcome.found.get("streams", {}).values():
            owners.setdefault(label.split(".")[1], set()).add(rank.name)
    names: dict[str, str] = {}
    count = 0
    for rank, outcome in zip(ranks, outcomes, strict=True):
        streams = outcome.found.get("streams", {})
        for stream, label in streams.items():
            own, key, _ = label.split(".")
            if key not in names:
                one = len(owners[key]) == 1 and own != "shared"
                count += not one
                names[key] = f"{rank.name}.{stream}.log" if one else f"shared{count}.log"
            source = staging.folder / label
            with contextlib.suppress(OSError):
                source.replace(staging.folder / names[key])
            streams[stream] = names[key]
        outcome.files[:] = [names[file.split(".")[1]] for file in outcome.files]
