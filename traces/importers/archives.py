"""Opens files that may be packed: gzip, tar and zip, in each other.

Nothing is written, and everything is bounded. Names of members are reported, never used as paths. A member is read as
a stream, so that a log of any size takes no memory.

Left out: what is in the files (`detect`).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from ...errors import CutFile, UnreadableInput

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_MEMBERS = 100_000
MAX_UNPACKED = 8 << 30
"""Bytes that all members of what a user named may unpack to."""
MAX_DEPTH = 4
HEAD = 4096
OWN_HEAD = b'{"kind":"header",'
"""Begins every trace that Genlock wrote."""
GZIP, ZIP, TAR, TAR_AT = b"\x1f\x8b", b"PK\x03\x04", b"ustar", 257


class Opened(NamedTuple):
    """Holds a file or a member of an archive, opened at its beginning."""

    path: Path
    stream: BinaryIO
    head: bytes
    """Its first bytes."""
    packed: bool
    """True if it is a member of an archive."""


class _Bounded(io.RawIOBase):
    """Reads a stream, and ends in an error where more comes out of it than anybody would pack."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream, self.left = path, stream, MAX_UNPACKED

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read like the stream itself. Raises UnreadableInput, CutFile."""
        view = memoryview(buffer)
        with _told(self.path):
            data = self.stream.read(len(view))
        self.left -= len(data)
        if self.left < 0:
            raise UnreadableInput(
                f"unpacks to more than {MAX_UNPACKED:,} bytes", where=str(self.path), do="is it a trace?"
            )
        view[: len(data)] = data
        return len(data)

    def seek(self, to: int, whence: int = 0, /) -> int:
        """Move like the stream itself. Raises UnreadableInput, CutFile."""
        with _told(self.path):
            return self.stream.seek(to, whence)

    def tell(self) -> int:
        """Return the position of the stream."""
        return self.stream.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True: what is opened here can be read again."""
        return True


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what is wrong with a packed file in the one way that a user can meet."""
    try:
        yield
    except EOFError:
        raise CutFile("the gzip file ends in the middle", where=str(path)) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableInput(f"not a whole gzip file ({error})", where=str(path)) from None
    except NotImplementedError as error:
        raise UnreadableInput(f"packed in a way that is not read ({error})", where=str(path)) from None


def _bounded(path: Path, stream: object) -> BinaryIO:
    # the buffer also spares a step back of some bytes, for which gzip would begin anew
    return cast(BinaryIO, io.BufferedReader(_Bounded(path, cast(BinaryIO, stream)), 1 << 20))


def opened(path: Path) -> Iterator[Opened]:
    """Open a file, or the files that are packed in it, one after another. Raises UnreadableInput, CutFile."""
    with path.open("rb") as file:
        yield from _within(path, cast(BinaryIO, file), 0)


def is_packed(head: bytes) -> bool:
    """Tell whether a file's first bytes are those of something that is packed."""
    return head[:2] == GZIP or head[:4] == ZIP or head[TAR_AT : TAR_AT + len(TAR)] == TAR


def _within(path: Path, stream: BinaryIO, depth: int) -> Iterator[Opened]:
    if depth > MAX_DEPTH:
        raise UnreadableInput(f"archives in archives, more than {MAX_DEPTH} deep", where=str(path))
    head = stream.read(HEAD)
    stream.seek(0)
    if head[:2] == GZIP:
        plain = path.with_name(path.name.removesuffix(".gz").replace(".tgz", ".tar") or path.name)
        yield from _within(plain, _bounded(path, gzip.GzipFile(fileobj=stream)), depth + 1)
    elif head[:4] == ZIP:
        yield from _zipped(path, stream, depth)
    elif head[TAR_AT : TAR_AT + len(TAR)] == TAR:
        yield from _tarred(path, stream, depth)
    else:
        yield Opened(path, stream, head, packed=False)


def _tarred(path: Path, stream: BinaryIO, depth: int) -> Iterator[Opened]:
    """Yield the regular files of an archive."""
    import tarfile  # slow to load

    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise UnreadableInput(f"archive of more than {MAX_MEMBERS:,} files", where=str(path))
                file = archive.extractfile(member) if member.isreg() and not member.sparse else None
                if file is not None:
                    yield from _members(path / member.name, cast(BinaryIO, file), depth)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UnreadableInput(f"malformed archive ({error})", where=str(path)) from None


def _zipped(path: Path, stream: BinaryIO, depth: int) -> Iterator[Opened]:
    import zipfile  # slow to load

    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise UnreadableInput(f"archive of more than {MAX_MEMBERS:,} files", where=str(path))
            for member in members:
                if member.is_dir():
                    continue
                if member.flag_bits & 1:
                    raise UnreadableInput("packed with a password", where=str(path / member.filename))
                with archive.open(member) as file:
                    where = path / member.filename
                    yield from _members(where, _bounded(where, file), depth)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UnreadableInput(f"malformed archive ({error})", where=str(path)) from None


def _members(path: Path, stream: BinaryIO, depth: int) -> Iterator[Opened]:
    for found in _within(path, stream, depth + 1):
        yield found._replace(packed=True)
