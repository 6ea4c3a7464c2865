"""Defines what guardians send each other: a handshake that proves the token both ways, then small signed frames.

The listener speaks first, so that nothing is ever sent to a stranger's port. Nonces make a recorded handshake
worthless, numbers in the signatures a recorded frame. Both proofs, and the key of the session, are over the connection
as each end sees it: a relay has two connections, of which neither end proves the other's. A frame is at most
BODY bytes of text: its kind, then its fields, a line each; anything else is `Malformed`, by name. (Not JSON: `re`
alone, which json needs, is half a megabyte on every rank.) Left out: sockets (`links`).
"""

from __future__ import annotations

import hmac
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VERSION = b"GLK3"
NONCE, PROOF, SIGNATURE, BODY = 16, 32, 16, 4096
GREETING = len(VERSION) + NONCE
ANSWER = struct.Struct(f"<4sI{NONCE}s{PROOF}s")
HEAD = struct.Struct(f"<H{SIGNATURE}s")
BUFFER = 4 * (HEAD.size + BODY)
"""Bytes that are buffered of a peer, at most."""

FIELDS: dict[str, dict[str, type]] = {
    "posture": {"part": str},
    "hello": {"digest": str},
    "status": {
        "quiet": bool,
        "paused": bool,
        "stopped": bool,
        "waiting": int,
        "position": int,
        "counter": int,
        "deadline": float,
        "phase": str,
        "commit": str,
    },
    "done": {},
    "ping": {},
    "abort": {"cause": str, "culprit": int, "what": str, "weight": int},
    "gone": {},
    "verdict": {"cause": str, "culprit": int, "what": str},
}
"""Every frame by its kind: the fields that it must have, and no others."""


STRANGE = "it does not know the token, or something between alters addresses"
TEXT = 800
"""Characters of a text, at most; what is longer is cut."""


class Malformed(Exception):
    """Says that what came is not what a guardian sends."""


def proof(token: bytes, *parts: bytes) -> bytes:
    """Return the HMAC-SHA256 of the parts, none of which can be moved into another."""
    return hmac.new(token, b"".join(len(p).to_bytes(4, "little") + p for p in parts), "sha256").digest()


class Listening:
    """Greets a stranger, and checks its answer."""

    def __init__(self, token: bytes, world: int, bond: bytes) -> None:
        self._token, self._world, self._bond = token, world, bond
        self._nonce = os.urandom(NONCE)
        self.greeting = VERSION + self._nonce

    def answered(self, raw: bytes) -> tuple[int, bytes, Frames]:
        """Return the rank that has proved itself, the bytes to send back, and its frames. Raises Malformed."""
        version, rank, nonce, proved = ANSWER.unpack(raw)
        if version != VERSION:
            raise Malformed(f"it does not speak {VERSION.decode()}")
        if not hmac.compare_digest(proved, proof(self._token, b"answer", self._bond, self._nonce, nonce, raw[4:8])):
            raise Malformed(STRANGE)
        if not 0 < rank < self._world:
            raise Malformed(f"there is no rank{rank} to wait for")
        key = proof(self._token, b"session", self._bond, self._nonce, nonce)
        return rank, proof(self._token, b"listener", self._bond, self._nonce, nonce), Frames(key, b"down", b"up")


class Calling:
    """Answers a greeting, and checks the listener's proof."""

    def __init__(self, token: bytes, rank: int, greeting: bytes, bond: bytes) -> None:
        """Raises Malformed where no guardian greets like that."""
        if not greeting.startswith(VERSION) or len(greeting) != GREETING:
            raise Malformed(f"it does not speak {VERSION.decode()}")
        self._token, self._bond = token, bond
        self._theirs, self._nonce = greeting[len(VERSION) :], os.urandom(NONCE)
        number = rank.to_bytes(4, "little")
        proved = proof(token, b"answer", bond, self._theirs, self._nonce, number)
        self.answer = ANSWER.pack(VERSION, rank, self._nonce, proved)

    def accepted(self, proved: bytes) -> Frames:
        """Return the frames, once the listener has proved itself too. Raises Malformed."""
        if not hmac.compare_digest(proved, proof(self._token, b"listener", self._bond, self._theirs, self._nonce)):
            raise Malformed(STRANGE)
        key = proof(self._token, b"session", self._bond, self._theirs, self._nonce)
        return Frames(key, b"up", b"down")


class Frames:
    """Signs what goes out of one end of a session, and takes in no byte that is not signed and in its place."""

    def __init__(self, key: bytes, ours: bytes, theirs: bytes) -> None:
        self._key, self._ours, self._theirs = key, ours, theirs
        self._sent = self._taken = 0
        self._buffer = b""

    def pack(self, kind: str, fields: Mapping[str, object]) -> bytes:
        """Return one frame. Long texts are cut, so that it always fits."""
        lines = [str(fields[name]).replace("\n", " ")[:TEXT] for name in FIELDS[kind]]
        body = "\n".join([kind, *lines]).encode(errors="replace")
        self._sent += 1
        return HEAD.pack(len(body), self._sign(self._ours, self._sent, body)) + body

    def feed(self, raw: bytes) -> Iterator[dict[str, object]]:
        """Yield the frames that are complete with these bytes. Raises Malformed."""
        self._buffer += raw
        while len(self._buffer) >= HEAD.size:
            size, signature = HEAD.unpack_from(self._buffer)
            if size > BODY:
                raise Malformed(f"a frame of {size} bytes, where {BODY} are allowed")
            if len(self._buffer) < HEAD.size + size:
                return
            body, self._buffer = self._buffer[HEAD.size : HEAD.size + size], self._buffer[HEAD.size + size :]
            self._taken += 1
            if not hmac.compare_digest(signature, self._sign(self._theirs, self._taken, body)):
                raise Malformed("a frame with a wrong signature")
            yield checked(body)

    def _sign(self, way: bytes, number: int, body: bytes) -> bytes:
        return proof(self._key, way, number.to_bytes(8, "little"), body)[:SIGNATURE]


def checked(body: bytes) -> dict[str, object]:
    """Return a frame's fields. Raises Malformed."""
    try:
        kind, *lines = body.decode().split("\n")
    except UnicodeDecodeError:
        raise Malformed("a frame that is no text") from None
    if kind not in FIELDS:
        raise Malformed("a frame of no known kind")
    fields = FIELDS[kind]
    if len(lines) != len(fields):
        raise Malformed(f"a {kind} frame with {len(lines)} fields instead of {len(fields)}")
    try:
        read = {name: READ[of](line) for (name, of), line in zip(fields.items(), lines, strict=True)}
    except (KeyError, ValueError):
        raise Malformed(f"a {kind} frame with a field of the wrong type") from None
    return {"kind": kind, **read}


READ: dict[type, Callable[[str], object]] = {
    str: str,
    int: lambda line: int(line[:20]),
    float: float,
    bool: lambda line: {"True": True, "False": False}[line],
}
