"""Finds the places at which guardians meet: a socket of this host's own, or addresses of the network.

On one host it is an abstract socket: the kernel says which user is at the other end, and nobody in between can be.
Across hosts it is TCP. Left out: what is said there (`wire`), and the connections (`links`).
"""

from __future__ import annotations

import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Address = bytes | tuple[str, int] | tuple[str, int, int, int]

LINUX = sys.platform == "linux"
NAMES = 8
"""Counts the abstract sockets that are tried; a stranger may have the first."""
CREDENTIALS = struct.Struct("3i")
NOBODY = -1


class Place:
    """Holds an address to listen at, or to call."""

    __slots__ = ("address", "family")

    def __init__(self, family: int, address: Address) -> None:
        self.family, self.address = family, address

    def __str__(self) -> str:
        if isinstance(self.address, bytes):
            return "a socket of this host"
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_here(host: str) -> bool:
    """Return True for the names of the loopback interface: whoever meets there is on this host."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.count(".") == 3)


def abstract(name: bytes) -> list[Place]:
    """Return abstract sockets of this name, to be tried in turn."""
    return [Place(socket.AF_UNIX, b"\0genlock-%s-%d" % (name, k)) for k in range(NAMES)]


def numeric(host: str, ports: Iterable[int]) -> list[Place]:
    """Return the places of an address in digits, IPv4 or IPv6; none for a name. This asks no resolver."""
    try:
        return resolved(host, ports, socket.AI_NUMERICHOST)
    except OSError:
        return []


def resolved(host: str, ports: Iterable[int], flags: int = 0) -> list[Place]:
    """Return the places of a host's addresses. Asks the resolver, which may block. Raises OSError."""
    # as bytes: of a text Python would make an international name, for 800 kB of tables
    found = socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM, flags=flags)
    hosts = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    return [
        Place(family, (str(address[0]), port, *address[2:]))
        for port in ports
        for family, address in hosts
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def everywhere(ports: Iterable[int]) -> list[Place]:
    """Return the places of all interfaces of this host."""
    if socket.has_dualstack_ipv6():
        return [Place(socket.AF_INET6, ("::", port, 0, 0)) for port in ports]
    return [Place(socket.AF_INET, ("0.0.0.0", port)) for port in ports]


def of_interface(name: str) -> list[str]:
    """Return the addresses of a network interface of this host, IPv4 first; empty if it has none."""
    if not LINUX:
        return []
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            found.append(socket.inet_ntoa(raw[20:24]))
        except OSError:
            pass
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        rows = []
    for digits, index, _, scope, _, own in rows:
        if own == name:
            text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            found.append(f"{text}%{int(index, 16)}" if int(scope, 16) == 0x20 else text)
    return found


def user_of(sock: socket.socket) -> int:
    """Return the user at the other end of a socket of this host; NOBODY where the kernel does not say."""
    if not LINUX or sock.family != socket.AF_UNIX:
        return NOBODY
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return int(CREDENTIALS.unpack(raw)[1])


def bond(sock: socket.socket, *, called: bool) -> bytes:
    """Return what both ends know of their connection, and a relay's two do not share: the caller's and the listener's
    address.

    `called`: this end has called. On a socket of this host it is the family alone, as the kernel vouches for the user.
    Raises OSError where the other end is gone.
    """
    if sock.family == socket.AF_UNIX:
        return b"host"
    ends = [sock.getsockname(), sock.getpeername()]
    return " ".join(_plain(end) for end in (ends if called else ends[::-1])).encode()


def _plain(address: Sequence[object]) -> str:
    """Return an address in one form: IPv4 may come in IPv6's clothes, and a scope's number differs by host."""
    host, port = str(address[0]).partition("%")[0], address[1]
    return f"{host.removeprefix('::ffff:') if '.' in host else host} {port}"
