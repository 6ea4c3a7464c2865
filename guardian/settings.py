"""Reads a guardian's settings: its flags, the environment that a launcher gives every rank, and the defaults."""

from __future__ import annotations

import os
import socket
import struct
import sys

from .deadlines import COLLECTIVE, STEADY
from .wire import proof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINES: Mapping[str, float] = {
    "startup": 300.0,
    "warmup": 900.0,
    STEADY: 120.0,
    "idle": 600.0,
    COLLECTIVE: 600.0,
    "meet": 60.0,
    "guardian": 10.0,
}
"""Deadlines in seconds. The first four, and any other name, are phases that a page may name; one without a deadline
has that of `steady`. `collective`: ranks wait for each other alone. `meet`: rank0's guardian is not found.
`guardian`: a guardian is silent.
"""
PORTS = 8
"""So many ports after MASTER_PORT are tried."""
LOOPBACK = "127.0.0.1"
FLAGS = ("--deadline", "--meet", "--interface", "--out")

TOKEN, LIMITS, OBSERVE = "GENLOCK_TOKEN", "GENLOCK_DEADLINES", "GENLOCK_OBSERVE"
MEET, INTERFACE, TRACES, EVIDENCE = "GENLOCK_MEET", "GENLOCK_INTERFACE", "GENLOCK_TRACES", "GENLOCK_EVIDENCE"
PARENT = "GENLOCK_LAUNCHER"


class Wrong(Exception):
    """Says that a flag or a variable cannot be used; the text is for the user."""


class GuardianSettings:
    """Holds the settings of one guardian."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        """Raises Wrong."""
        flags, self.program = _parse(arguments)
        self.rank, self.world = _number(environ, "RANK", 0), _number(environ, "WORLD_SIZE", 1)
        if not 0 <= self.rank < self.world:
            raise Wrong(f"RANK={self.rank} is not one of WORLD_SIZE={self.world} ranks")
        self.run = environ.get("TORCHELASTIC_RUN_ID", "none")
        self.restart = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        given = {**limits(environ.get(LIMITS, "").split(","), LIMITS), **limits(flags["--deadline"], "--deadline")}
        self.explicit = frozenset(given)
        self.deadlines = {**DEADLINES, **given}
        self.observe = "--observe" in flags or environ.get(OBSERVE, "") not in ("", "0")
        self.traces = environ.get(TRACES, "")
        self.evidence = _one(flags, "--out") or environ.get(EVIDENCE) or self.traces or f"out/guard-{self.run}"
        self.parent = _number(environ, PARENT, 0)
        self._place(flags, environ)

    def _place(self, flags: Mapping[str, list[str]], environ: Mapping[str, str]) -> None:
        """Set where the guardians meet, and the token by which they know each other. Raises Wrong."""
        local = _number(environ, "LOCAL_WORLD_SIZE", self.world) == self.world
        master = environ.get("MASTER_PORT", "")
        meet = _one(flags, "--meet") or environ.get(MEET, "")
        interface = _one(flags, "--interface") or environ.get(INTERFACE, "")
        self.host = LOOPBACK if local else environ.get("MASTER_ADDR", LOOPBACK)
        port = _number(environ, "MASTER_PORT", 29500)
        self.ports = [1024 + (port + k - 1024) % (65536 - 1024) for k in range(1, PORTS + 1)]
        if meet:
            self.host, _, text = meet.rpartition(":")
            if not self.host or not text.isdecimal() or not 0 < int(text) < 65536:
                raise Wrong(f"--meet: `{meet}` is not HOST:PORT")
            self.ports = [int(text)]
        self.host = LOOPBACK if self.host == "localhost" else self.host
        self.bind = address_of(interface) if interface else self.host
        token = environ.get(TOKEN, "")
        if self.world > 1 and not token and not (self.host.startswith("127.") and self.bind.startswith("127.")):
            raise Wrong(f"guardians that meet at {self.host} need a secret: set {TOKEN} to the same on every rank")
        secret = token or f"{self.run} {master} {os.getuid()}"
        self.token = proof(secret.encode(), self.run.encode(), self.restart.encode(), str(self.world).encode())

    @property
    def posture(self) -> str:
        """Return the settings that must not differ by rank, as one text."""
        limits = [f"deadline {name}={seconds:g}" for name, seconds in sorted(self.deadlines.items())]
        return ",".join([*limits, f"observe={self.observe}"])


def differences(ours: str, theirs: str, rank: int) -> str:
    """Return how the posture of a rank's guardian differs from rank0's, by name and with both values."""
    mine, its = (dict(clause.partition("=")[::2] for clause in text.split(",")) for text in (ours, theirs))
    odd = [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
    return "; ".join(f"`{name}`: rank{rank} has {its.get(name)}, rank0 {mine.get(name)}" for name in odd)


def _parse(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    flags: dict[str, list[str]] = {name: [] for name in FLAGS}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if word == "--observe":
            flags[word] = []
        elif name in FLAGS and (equals or rest):
            flags[name].append(value if equals else rest.pop(0))
        else:
            raise Wrong(f"`{word}` is no flag; a program comes after `--`")
    if not rest:
        raise Wrong("there is no program; name it after `--`")
    return flags, rest


def _one(flags: Mapping[str, list[str]], name: str) -> str:
    return flags[name][-1] if flags[name] else ""


def limits(given: Sequence[str], where: str) -> dict[str, float]:
    """Return seconds by name, from texts like `steady=30`. Raises Wrong."""
    found = {}
    for text in filter(None, given):
        name, _, value = text.partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not name or not 0 < seconds < 1e9:
            raise Wrong(f"{where}: `{text}` is not PHASE=SECONDS")
        found[name] = seconds
    return found


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise Wrong(f"{name}={text} is not a number")
    return int(text)


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface of this machine. Raises Wrong."""
    if sys.platform != "linux":
        raise Wrong("--interface needs Linux")
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = fcntl.ioctl(sock, 0x8915, struct.pack("256s", interface.encode()[:15]))  # SIOCGIFADDR
        except OSError as error:
            raise Wrong(f"--interface: `{interface}` has no address ({error.strerror})") from None
    return socket.inet_ntoa(raw[20:24])
