"""Keeps what is collected until it is packed: a folder of nobody else's, in which every file is whole.

Left out: what is collected.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .redact import Redactor

PART = ".part"
LARGE = 8 << 20


class Staging:
    """Holds a private folder. What is written into it has no secrets and names in it any more."""

    def __init__(self, redactor: Redactor) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="genlock-collect-"))  # 0700
        self.redactor = redactor

    def write(self, name: str, data: bytes, *, binary: bool = False) -> str:
        """Write a file at once, in place of one of that name, and return its name."""
        data = self.redactor.binary(data) if binary else self.redactor.text(data)
        part = self.folder / f"{name}.{os.getpid()}{PART}"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        part.replace(self.folder / name)
        return name

    def files(self) -> list[Path]:
        """Return the whole files by name, the large ones last: should time run out, most of them are packed."""
        found = [file for file in self.folder.iterdir() if not file.name.endswith(PART)]
        return sorted(found, key=lambda file: (file.stat().st_size > LARGE, file.name))

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
