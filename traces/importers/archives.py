"""Opens files that may be packed: gzip, tar and zip, in each other.

Nothing is written, and everything is bounded. Names of members are reported, never used as paths. A member is read as
a stream, so that a log of any size takes no memory.

Left out: what is in the files (`detect`).
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from ...errors import CutFile, UnreadableInput

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_MEMBERS = 100_000
MAX_UNPACKED, MAX_RATIO, SMALL = 8 << 30, 400, 64 << 20
"""Bytes that all members of what a user named may unpack to: so many, and not more than so many times what is packed,
where that is no small file. Logs of the plainest kind are packed to a hundredth."""
MAX_DEPTH = 4
HEAD = 4096
OWN_HEAD = b'{"kind":"header",'
"""Begins every trace that Genlock wrote."""
GZIP, ZIP, TAR, TAR_AT = b"\x1f\x8b", b"PK\x03\x04", b"ustar", 257


MALFORMED = (EOFError, ValueError, OSError, OverflowError, LookupError, RuntimeError, struct.error, zlib.error)
"""Raised by Python's own readers of archives, apart from their own errors."""


class Opened(NamedTuple):
    """Holds a file or a member of an archive, opened at its beginning."""

    path: Path
    stream: BinaryIO
    head: bytes
    """Its first bytes."""
    packed: bool
    """True if it is a member of an archive."""


class _Room:
    """Counts what comes out of one file, over all archives in it."""

    def __init__(self, packed: int) -> None:
        self.most = self.left = min(MAX_UNPACKED, SMALL + MAX_RATIO * packed)

    def take(self, path: Path, size: int) -> None:
        """Count bytes. Raises UnreadableInput where there are more than anybody would pack."""
        self.left -= size
        if self.left < 0:
            raise UnreadableInput(f"unpacks to more than {self.most:,} bytes", where=str(path), do="is it a trace?")


class _Bounded(io.RawIOBase):
    """Reads a stream, and ends in an error where more comes out of it than anybody would pack."""

    def __init__(self, path: Path, stream: BinaryIO, room: _Room) -> None:
        self.path, self.stream, self.room = path, stream, room

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read like the stream itself. Raises UnreadableInput, CutFile."""
        view = memoryview(buffer)
        with _told(self.path):
            data = self.stream.read(len(view))
        self.room.take(self.path, len(data))
        view[: len(data)] = data
        return len(data)

    def seek(self, to: int, whence: int = 0, /) -> int:
        """Move like the stream itself. Raises UnreadableInput, CutFile."""
        with _told(self.path):
            begin = self.stream.tell()
            end = to if whence == io.SEEK_SET else begin + to
        self.room.take(self.path, max(end - begin, 0))  # what is skipped is unpacked as well
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
        raise CutFile("the packed file ends in the middle", where=str(path)) from None
    except NotImplementedError as error:
        raise UnreadableInput(f"packed in a way that is not read ({error})", where=str(path)) from None
    except Exception as error:  # each of Python's readers of archives has errors of its own
        raise UnreadableInput(f"not a whole packed file ({str(error)[:300]})", where=str(path)) from None


def _bounded(path: Path, stream: object, room: _Room) -> BinaryIO:
    # the buffer also spares a step back of some bytes, for which gzip would begin anew
    return cast(BinaryIO, io.BufferedReader(_Bounded(path, cast(BinaryIO, stream), room), 1 << 20))


def opened(path: Path) -> Iterator[Opened]:
    """Open a file, or the files that are packed in it, one after another. Raises UnreadableInput, CutFile."""
    with path.open("rb") as file:
        yield from _within(path, cast(BinaryIO, file), 0, _Room(path.stat().st_size))


def is_packed(head: bytes) -> bool:
    """Tell whether a file's first bytes are those of something that is packed."""
    return head[:2] == GZIP or head[:4] == ZIP or head[TAR_AT : TAR_AT + len(TAR)] == TAR


def _within(path: Path, stream: BinaryIO, depth: int, room: _Room) -> Iterator[Opened]:
    if depth > MAX_DEPTH:
        raise UnreadableInput(f"archives in archives, more than {MAX_DEPTH} deep", where=str(path))
    head = stream.read(HEAD)
    stream.seek(0)
    if head[:2] == GZIP:
        plain = path.with_name(path.name.removesuffix(".gz").replace(".tgz", ".tar") or path.name)
        yield from _within(plain, _bounded(path, gzip.GzipFile(fileobj=stream), room), depth + 1, room)
    elif head[:4] == ZIP:
        yield from _zipped(path, stream, depth, room)
    elif head[TAR_AT : TAR_AT + len(TAR)] == TAR:
        yield from _tarred(path, stream, depth, room)
    else:
        yield Opened(path, stream, head, packed=False)


def _tarred(path: Path, stream: BinaryIO, depth: int, room: _Room) -> Iterator[Opened]:
    """Yield the regular files of an archive."""
    import tarfile  # slow to load

    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise UnreadableInput(f"archive of more than {MAX_MEMBERS:,} files", where=str(path))
                file = archive.extractfile(member) if member.isreg() and not member.sparse else None
                if file is not None:
                    where = path / member.name
                    yield from _members(where, _bounded(where, file, room), depth, room)
    except (tarfile.TarError, *MALFORMED) as error:
        raise UnreadableInput(f"malformed archive ({str(error)[:300]})", where=str(path)) from None


def _zipped(path: Path, stream: BinaryIO, depth: int, room: _Room) -> Iterator[Opened]:
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
                    yield from _members(where, _bounded(where, file, room), depth, room)
    except (zipfile.BadZipFile, *MALFORMED) as error:
        raise UnreadableInput(f"malformed archive ({str(error)[:300]})", where=str(path)) from None


def _members(path: Path, stream: BinaryIO, depth: int, room: _Room) -> Iterator[Opened]:
    for found in _within(path, stream, depth + 1, room):
        yield found._replace(packed=True)
