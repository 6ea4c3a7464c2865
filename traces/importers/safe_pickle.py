"""Reads a pickle that somebody else wrote, without running any of it.

Two walls. Before anything is built, the whole file is read as a run of opcodes, and only those are let through
that build plain values (None, bool, int, float, str, list, tuple, dict): no global, no call, no set, no bytes. Then
an unpickler that refuses every global builds them. Sizes are bounded before the first allocation: of the file, of
what it may hold in containers, and of its memo (one opcode of five bytes can ask for 34 GB of it).

Left out: what the values mean.
"""

from __future__ import annotations

import gc
import io
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

from ...errors import CutFile, UnreadableInput

MAX_BYTES = 32 << 20
"""A Flight Recorder dump of 2,000 entries is 0.3 to 3 MB; a ring of 20,000 with long stacks about 20 MB."""
MAX_CONTAINERS = 2_000_000
MAX_MEMO = b"\x3f"
"""Third byte of the highest memo number: some 4 million."""

_FIXED = re.compile(
    rb"(?:"
    rb"h.|j..[\x00-\x3f]\x00|r..[\x00-\x3f]\x00"  # memo first: most opcodes are of it
    rb"|[(}\])eusta\x85\x86\x87\x88\x89\x94N]"  # mark, containers, None, True, False, memoize
    rb"|[Kq]."
    rb"|M.."
    rb"|J...."
    rb"|[G\x95]........"
    rb"|\x8a(?:\x00|\x01.|\x02..|\x03...|\x04....|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
    rb")*+",
    re.DOTALL,
)
"""A run of the opcodes that have a fixed length. Strings carry their length with them and stand between runs."""

PROTO, STOP, BINUNICODE, SHORT_BINUNICODE = 0x80, 0x2E, 0x58, 0x8C


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names the global {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it has a persistent id")


def load_plain(path: Path, data: bytes) -> Any:
    """Return the value in `data`, executing none of it. Raises UnreadableInput, CutFile where it ends too early."""
    _admit(path, data)
    collecting = gc.isenabled()
    gc.disable()  # plain values make no cycles, and looking for them costs a fifth of the time
    try:
        # an unpickler reads a buffered file ahead, and any other one opcode at a time
        return _Plain(io.BufferedReader(io.BytesIO(data), len(data) + 1)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, OverflowError, IndexError, KeyError) as error:
        raise _refused(path, f"malformed pickle ({error})") from None
    except (MemoryError, RecursionError, AttributeError):
        raise _refused(path, "malformed pickle") from None
    finally:
        if collecting:
            gc.enable()


def _admit(path: Path, data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise _refused(path, f"pickle of {len(data):,} bytes, more than {MAX_BYTES:,}")
    if sum(map(data.count, (b"]", b"}", b"(", b"\x94"))) > 2 * MAX_CONTAINERS:
        raise _refused(path, f"pickle of more than {MAX_CONTAINERS:,} containers")
    at, end = 0, len(data)
    if data[:1] == bytes([PROTO]):
        at = 2
    while True:
        run = _FIXED.match(data, at)
        at = run.end() if run else at
        if at >= end:
            raise CutFile("the pickle ends in the middle", where=str(path))
        op = data[at]
        if op == BINUNICODE:
            at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        elif op == SHORT_BINUNICODE:
            at += 2 + (data[at + 1] if at + 1 < end else 0)
        elif op == STOP:
            return
        elif _known_but_cut(data, at):
            raise CutFile("the pickle ends in the middle", where=str(path))
        else:
            raise _refused(path, f"the pickle wants more than plain values (opcode {op:#04x} at byte {at})")


def _known_but_cut(data: bytes, at: int) -> bool:
    """Return True where the opcode at `at` is one of those of fixed length, and the file too short for it."""
    padded = data[at : at + 10] + bytes(10)
    return at + 10 > len(data) and (run := _FIXED.match(padded)) is not None and run.end() > len(data) - at


def _refused(path: Path, what: str) -> UnreadableInput:
    return UnreadableInput(what, where=str(path), do="is it a dump that torch wrote?")
