"""Connects guardians: rank0's listens, the others call it, and strangers get nothing.

A peer that has proved the token is a link; each frame from it calls `on_frame(rank, frame)`, its end
`on_frame(rank, None)`. Left out: what a frame means (`guardian`).
"""

from __future__ import annotations

import selectors
import socket
import time

from .wire import ANSWER, BUFFER, GREETING, PROOF, Calling, Frames, Listening, Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    OnFrame = Callable[[int, dict[str, object] | None], None]
    Refused = Callable[[str], None]
    Fields = Mapping[str, object]

NONE: Fields = {}
STRANGERS = 64
"""Connections that have proved nothing, at most."""
PATIENCE = 2.0
"""Seconds that one of them has to prove itself."""
TRY = 0.25
"""Seconds that a caller gives one port to answer."""


class Link:
    """Holds a connection to a guardian that has proved itself."""

    def __init__(self, sock: socket.socket, rank: int, frames: Frames) -> None:
        self.sock, self.rank, self._frames = sock, rank, frames
        self.heard = time.monotonic()
        sock.settimeout(0.5)  # a guardian that takes nothing for so long is gone

    def send(self, kind: str, fields: Fields = NONE) -> bool:
        """Send a frame. Return True if it could be sent."""
        try:
            self.sock.sendall(self._frames.pack(kind, fields))
        except OSError:
            return False
        return True

    def receive(self, on_frame: OnFrame) -> bool:
        """Take in what has come. Return False at the end of the connection. Raises Malformed."""
        try:
            raw = self.sock.recv(BUFFER)
        except TimeoutError:
            return True
        except OSError:
            raw = b""
        if not raw:
            return False
        self.heard = time.monotonic()
        for frame in self._frames.feed(raw):
            on_frame(self.rank, frame)
        return True


class Links:
    """Holds the links of one guardian, in a selector whose data are the methods to call."""

    def __init__(self, selector: selectors.BaseSelector, on_frame: OnFrame, refused: Refused) -> None:
        self._selector, self._on_frame, self._refused = selector, on_frame, refused
        self.ranks: dict[int, Link] = {}

    def send(self, rank: int, kind: str, fields: Fields = NONE) -> None:
        link = self.ranks.get(rank)
        if link is not None and not link.send(kind, fields):
            self.drop(link)

    def send_all(self, kind: str, fields: Fields = NONE, *, but: int = -1) -> None:
        for rank in list(self.ranks):
            if rank != but:
                self.send(rank, kind, fields)

    def add(self, link: Link) -> None:
        self.ranks[link.rank] = link
        self._selector.register(link.sock, selectors.EVENT_READ, lambda: self._read(link))

    def drop(self, link: Link) -> None:
        """Close a link whose other end is gone, or sends what no guardian sends."""
        if self.ranks.get(link.rank) is link:
            del self.ranks[link.rank]
            self._selector.unregister(link.sock)
            link.sock.close()
            self._on_frame(link.rank, None)

    def close(self) -> None:
        """Close all links, without telling the other ends."""
        for link in self.ranks.values():
            link.sock.close()
        self.ranks.clear()

    def _read(self, link: Link) -> None:
        try:
            open_ = link.receive(self._on_frame)
        except Malformed as error:
            self._refused(f"the guardian of rank{link.rank} sent {error}")
            open_ = False
        if not open_:
            self.drop(link)


class _Stranger:
    def __init__(self, sock: socket.socket, greeter: Listening) -> None:
        self.sock, self.greeter = sock, greeter
        self.until = time.monotonic() + PATIENCE
        self.heard = b""


class Listener(Links):
    """Listens, at rank0's end: a caller that proves the token becomes a link; one link a rank."""

    def __init__(
        self, selector: selectors.BaseSelector, on_frame: OnFrame, refused: Refused, token: bytes, world: int
    ) -> None:
        super().__init__(selector, on_frame, refused)
        self._token, self._world = token, world
        self._strangers: dict[int, _Stranger] = {}
        self._socket: socket.socket | None = None

    def listen(self, host: str, ports: Sequence[int]) -> int:
        """Listen on the first of the ports that is free, and return it. Raises OSError where none is."""
        last: OSError | None = None
        for port in ports:
            try:
                self._socket = socket.create_server((host, port), backlog=STRANGERS)
            except OSError as error:
                last = error
                continue
            self._socket.setblocking(False)
            self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
            return int(self._socket.getsockname()[1])
        raise last or OSError("no port to listen on")

    def close(self) -> None:
        super().close()
        for sock in [self._socket, *(stranger.sock for stranger in self._strangers.values())]:
            if sock is not None:
                sock.close()

    def tidy(self, now: float) -> None:
        """Close connections that have proved nothing in time."""
        for stranger in [s for s in self._strangers.values() if now > s.until]:
            self._away(stranger, f"it proved nothing in {PATIENCE:g} s")

    def _accept(self) -> None:
        if self._socket is None:
            return
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        if len(self._strangers) >= STRANGERS:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stranger = _Stranger(sock, Listening(self._token, self._world))
        self._strangers[sock.fileno()] = stranger
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._hear(stranger))
        try:
            sock.send(stranger.greeter.greeting)
        except OSError:
            self._away(stranger, "it is gone")

    def _hear(self, stranger: _Stranger) -> None:
        try:
            raw = stranger.sock.recv(ANSWER.size - len(stranger.heard))
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        stranger.heard += raw
        if not raw:
            self._away(stranger, "it closed before it proved anything" if stranger.heard else "")
        elif len(stranger.heard) == ANSWER.size:
            self._judge(stranger)

    def _judge(self, stranger: _Stranger) -> None:
        try:
            rank, answer, frames = stranger.greeter.answered(stranger.heard)
            if rank in self.ranks:
                raise Malformed(f"rank{rank} is here already")
            stranger.sock.send(answer)
        except (Malformed, OSError) as error:
            self._away(stranger, str(error))
            return
        del self._strangers[stranger.sock.fileno()]
        self._selector.unregister(stranger.sock)
        self.add(Link(stranger.sock, rank, frames))

    def _away(self, stranger: _Stranger, why: str) -> None:
        """Close a stranger's connection. One that sent nothing is not reported: a delayed guardian leaves so, too."""
        del self._strangers[stranger.sock.fileno()]
        self._selector.unregister(stranger.sock)
        stranger.sock.close()
        if why:
            self._refused(f"a stranger was refused: {why}")


class Caller(Links):
    """Calls, from every other rank: one link, to rank0."""

    def call(self, host: str, ports: Sequence[int], token: bytes, rank: int) -> bool:
        """Try each port once for a guardian that knows the token. Return True if one was found."""
        for port in ports:
            try:
                # as bytes: of a text Python would make an international name, for 800 kB of tables
                sock = socket.create_connection((host.encode(), port), timeout=TRY)  # type: ignore[arg-type]
            except OSError:
                continue
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                calling = Calling(token, rank, _exactly(sock, GREETING))
                sock.sendall(calling.answer)
                frames = calling.accepted(_exactly(sock, PROOF))
            except (Malformed, OSError):
                sock.close()  # somebody else's port: the next may be ours
                continue
            self.add(Link(sock, 0, frames))
            return True
        return False


def _exactly(sock: socket.socket, size: int) -> bytes:
    raw = b""
    until = time.monotonic() + TRY
    while len(raw) < size and time.monotonic() < until:
        part = sock.recv(size - len(raw))
        if not part:
            break
        raw += part
    return raw
