"""Connects guardians: rank0's listens, the others call it, and strangers get nothing. Nothing here ever blocks.

A peer that has proved the token is a link; each frame from it calls `on_frame(rank, frame)`, its end
`on_frame(rank, None)`. Left out: what a frame means (`guardian`), and where one is met (`places`).
"""

from __future__ import annotations

import os
import selectors
import socket
import time

from .places import bond, user_of
from .wire import ANSWER, BUFFER, GREETING, PROOF, Calling, Frames, Listening, Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .places import Place

    OnFrame = Callable[[int, dict[str, object] | None], None]
    Refused = Callable[[str], None]
    Fields = Mapping[str, object]

NONE: Fields = {}
STRANGERS = 64
"""Connections that have proved nothing, at most."""
PATIENCE = 2.0
"""Seconds that either end gives the other to prove itself."""


class Link:
    """Holds a connection to a guardian that has proved itself."""

    def __init__(self, sock: socket.socket, rank: int, frames: Frames) -> None:
        self.sock, self.rank, self._frames = sock, rank, frames
        self.heard = time.monotonic()
        self.broken = False

    def send(self, kind: str, fields: Fields = NONE) -> bool:
        """Send a frame. Return False where it could not be sent at once: a guardian whose buffer is full is gone."""
        raw = self._frames.pack(kind, fields)
        try:
            return self.sock.send(raw) == len(raw)
        except OSError:
            return False

    def receive(self, on_frame: OnFrame) -> bool:
        """Take in what has come. Return False at the end of the connection. Raises Malformed, and BlockingIOError where
        nothing has come.
        """
        try:
            raw = self.sock.recv(BUFFER)
        except ConnectionError:
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
        if link is None or link.broken or link.send(kind, fields):
            return
        link.broken = True
        while self._hears(link):  # of a guardian that has gone, its last word may have come: the verdict
            pass
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
        if not self._hears(link, nothing=True):
            self.drop(link)

    def _hears(self, link: Link, *, nothing: bool = False) -> bool:
        """Take in what has come over a link. Return False at its end, and `nothing` where nothing has come."""
        try:
            return link.receive(self._on_frame)
        except BlockingIOError:
            return nothing
        except OSError:
            return False
        except Malformed as error:
            self._refused(f"the guardian of rank{link.rank} sent {error}")
            return False


def _known(sock: socket.socket) -> None:
    """Raise Malformed where the other end, on this host, is another user's."""
    if sock.family == socket.AF_UNIX and (user := user_of(sock)) != os.geteuid():
        raise Malformed(f"it belongs to user {user}")


def _prompt(sock: socket.socket) -> None:
    """Have small frames sent at once."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
        self._sockets: dict[tuple[int, object], socket.socket] = {}

    def listen(self, places: Sequence[Place]) -> list[Place]:
        """Listen at one place of each host that is named. Return those that were free. Raises OSError where none is."""
        last: OSError | None = None
        taken = []
        for place in places:
            host = (place.family, place.address[0])
            if host in self._sockets:
                continue
            try:
                self._sockets[host] = sock = _listening(place)
            except OSError as error:
                last = error
                continue
            self._selector.register(sock, selectors.EVENT_READ, lambda own=sock: self._accept(own))
            taken.append(place)
        if not taken:
            raise last or OSError("no place to listen at")
        return taken

    @property
    def ports(self) -> list[int]:
        """Return the ports it listens on."""
        return [sock.getsockname()[1] for sock in self._sockets.values() if sock.family != socket.AF_UNIX]

    def close(self) -> None:
        super().close()
        for sock in [*self._sockets.values(), *(stranger.sock for stranger in self._strangers.values())]:
            sock.close()

    def tidy(self, now: float) -> None:
        """Close connections that have proved nothing in time."""
        for stranger in [s for s in self._strangers.values() if now > s.until]:
            self._away(stranger, f"it proved nothing in {PATIENCE:g} s")

    def _accept(self, own: socket.socket) -> None:
        try:
            sock, _ = own.accept()
        except OSError:
            return
        try:
            _known(sock)
            _prompt(sock)
            bound = bond(sock, called=False)
        except (Malformed, OSError) as error:
            sock.close()
            self._refused(f"a stranger was refused: {error}")
            return
        if len(self._strangers) >= STRANGERS:
            sock.close()
            return
        stranger = _Stranger(sock, Listening(self._token, self._world, bound))
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


def _listening(place: Place) -> socket.socket:
    """Return a socket that listens at a place. Raises OSError where it is taken, or is not of this host."""
    sock = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        if place.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place.address[0] != "::"))
        sock.bind(place.address)
        sock.listen(STRANGERS)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class _Call:
    """Is under way to a place: connecting, then greeted, then waiting for the listener's proof."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.until = sock, time.monotonic() + PATIENCE
        self.calling: Calling | None = None
        self.heard = b""


class Caller(Links):
    """Calls, from every other rank: one link, to rank0."""

    def __init__(
        self, selector: selectors.BaseSelector, on_frame: OnFrame, refused: Refused, token: bytes, rank: int
    ) -> None:
        super().__init__(selector, on_frame, refused)
        self._token, self._rank = token, rank
        self._calls: list[_Call] = []

    def call(self, places: Sequence[Place], met: Callable[[], object]) -> None:
        """Try all places at once for a guardian that knows the token, unless a call is under way. At the first that
        does call `met()`.
        """
        now = time.monotonic()
        for one in [one for one in self._calls if now > one.until]:
            self._give_up(one)
        if self.ranks or self._calls:
            return
        for place in places:
            sock = socket.socket(place.family, socket.SOCK_STREAM)
            try:
                _prompt(sock)
                sock.connect(place.address)
            except BlockingIOError:
                if place.family == socket.AF_UNIX:  # too many others are calling
                    sock.close()
                    continue
            except OSError:
                sock.close()
                continue
            one = _Call(sock)
            self._calls.append(one)
            self._selector.register(sock, selectors.EVENT_WRITE, lambda own=one: self._go_on(own, met))

    def close(self) -> None:
        super().close()
        for one in list(self._calls):
            self._give_up(one)

    def _give_up(self, one: _Call) -> None:
        self._calls.remove(one)
        self._selector.unregister(one.sock)
        one.sock.close()

    def _go_on(self, one: _Call, met: Callable[[], object]) -> None:
        if one not in self._calls:  # it was given up after it had been found ready
            return
        try:
            frames = self._step(one, met)
        except OSError:
            self._give_up(one)
            return
        except Malformed as error:  # somebody else's place: another may be ours
            self._give_up(one)
            if one.sock.family == socket.AF_UNIX:
                self._refused(f"a stranger is where rank0's guardian should be: {error}")
            return
        if frames is not None:
            self._calls.remove(one)
            self._selector.unregister(one.sock)
            for other in list(self._calls):
                self._give_up(other)
            self.add(Link(one.sock, 0, frames))
            met()

    def _step(self, one: _Call, met: Callable[[], object]) -> Frames | None:
        """Do what is next. Return the frames once the listener has proved itself. Raises Malformed, OSError."""
        if self._selector.get_key(one.sock).events == selectors.EVENT_WRITE:
            failed = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed))
            _known(one.sock)
            self._selector.modify(one.sock, selectors.EVENT_READ, lambda: self._go_on(one, met))
            return None
        wanted = PROOF if one.calling else GREETING
        try:
            raw = one.sock.recv(wanted - len(one.heard))
        except BlockingIOError:
            return None
        one.heard += raw
        if not raw:
            raise ConnectionResetError
        if len(one.heard) < wanted:
            return None
        heard, one.heard = one.heard, b""
        if one.calling is not None:
            return one.calling.accepted(heard)
        one.calling = Calling(self._token, self._rank, heard, bond(one.sock, called=True))
        one.sock.send(one.calling.answer)
        return None
