"""Packs what was collected into one archive, which nobody else may read and which replaces nothing.

Left out: what is in it.
"""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError

MANIFEST = "manifest.json"
PIECE = 1 << 20


class Archive:
    """Holds the file of an archive open from the start: that it cannot be written is known before any work."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError where there is one already, OSError where it cannot be made."""
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._raw = os.fdopen(os.open(path, flags, 0o600), "w+b")
        except FileExistsError:
            raise UsageError("there is such a file already", where=str(path), do="choose another --out") from None

    def discard(self) -> None:
        """Remove the file again: there is nothing in it, or half of an archive."""
        with contextlib.suppress(OSError):
            self._raw.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def pack(
        self, files: Sequence[Path], over: Callable[[], bool], manifest: Callable[[list[str]], bytes]
    ) -> list[str]:
        """Pack files, and the manifest last. Return the names of those that are not in it whole, as time was `over`.

        Raises OSError, naming the archive.
        """
        folder = self.path.name.split(".")[0]
        left: list[str] = []
        try:
            with self._raw as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in files:
                    if over() or not _add(archive, f"{folder}/{file.name}", file, over):
                        left.append(file.name)
                archive.writestr(_member(f"{folder}/{MANIFEST}"), manifest(left))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        return left


def _add(archive: zipfile.ZipFile, name: str, file: Path, over: Callable[[], bool]) -> bool:
    """Add a file, and return True if all of it went in before the time was over."""
    with file.open("rb") as stream, archive.open(_member(name), "w", force_zip64=True) as member:
        while piece := stream.read(PIECE):
            if over():
                return False
            member.write(piece)
    return True


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, time.localtime()[:6])
    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
    return member
