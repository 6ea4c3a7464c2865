"""Reads a guardian's settings: its flags, the environment that a launcher gives every rank, and the defaults."""

from __future__ import annotations

import hashlib
import os

from .child import ATTACH
from .deadlines import COLLECTIVE, STEADY
from .places import LINUX, Place, abstract, everywhere, is_here, numeric, of_interface
from .wire import TEXT, proof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINES: Mapping[str, float] = {
    "startup": 300.0,
    "warmup": 900.0,
    STEADY: 120.0,
    "idle": 600.0,
    "aside": 1800.0,
    "operations": 600.0,
    COLLECTIVE: 600.0,
    "meet": 60.0,
    "guardian": 10.0,
}
"""Deadlines in seconds. The first six, and any other name, are phases that a page may name; one without a deadline
has that of `steady`. `operations` and `aside` are those of a program that does not beat itself: between its operations,
and before and after them. `collective`: ranks wait for each other alone. `meet`: rank0's guardian is not found.
`guardian`: a guardian is silent.
"""
ALIKE = {"aside": "startup", "operations": STEADY}
"""Phases of a program that does not beat itself, and whose deadline they have where that is given."""
PORTS = 8
"""So many ports after MASTER_PORT are tried."""
LOOPBACK = "127.0.0.1"
FLAGS = ("--deadline", "--meet", "--interface", "--out", ATTACH)

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
        self.attached = _number({ATTACH: _one(flags, ATTACH)}, ATTACH, 0)
        """Process to guard, which runs already; 0: the guardian starts its rank."""
        if not self.attached and not self.program:
            raise Wrong("there is no program; name it after `--`")
        alike = {name: given[other] for name, other in ALIKE.items() if other in given}
        self.deadlines = {**DEADLINES, **alike, **given}
        self.observe = "--observe" in flags or environ.get(OBSERVE, "") not in ("", "0")
        self.traces = environ.get(TRACES, "")
        self.evidence = _one(flags, "--out") or environ.get(EVIDENCE) or self.traces or f"out/guard-{self.run}"
        self.parent = _number(environ, PARENT, 0)
        self._place(flags, environ)

    def _place(self, flags: Mapping[str, list[str]], environ: Mapping[str, str]) -> None:
        """Set where the guardians meet, and the token by which they know each other. Raises Wrong."""
        one_host = _number(environ, "LOCAL_WORLD_SIZE", self.world) == self.world
        master = environ.get("MASTER_PORT", "")
        meet = _one(flags, "--meet") or environ.get(MEET, "")
        interface = _one(flags, "--interface") or environ.get(INTERFACE, "")
        self.host = LOOPBACK if one_host else environ.get("MASTER_ADDR", LOOPBACK)
        port = _number(environ, "MASTER_PORT", 29500)
        self.ports = [1024 + (port + k - 1024) % (65536 - 1024) for k in range(1, PORTS + 1)]
        if meet:
            self.host, self.ports = place_of(meet)
        interface_hosts = of_interface(interface) if interface else []
        if interface and not interface_hosts:
            raise Wrong(f"--interface: `{interface}` has no address")
        here = is_here(self.host)
        token = environ.get(TOKEN, "")
        if self.world > 1 and not token and not here:
            raise Wrong(f"guardians that meet at {self.host} need a secret: set {TOKEN} to the same on every rank")
        secret = token or f"{self.run} {master} {os.getuid()}"
        parts = [self.run, self.restart, str(self.world)]
        self.token = proof(secret.encode(errors="surrogateescape"), *(x.encode(errors="replace") for x in parts))
        self.places: list[Place] = []
        """Where rank0's guardian is called; empty where a resolver has to be asked first."""
        self.bind: list[Place] = []
        """Where rank0's guardian listens, on a chosen interface."""
        if here and LINUX:
            name = proof(self.token, b"place", meet.encode(errors="replace")).hex()[:32]
            self.places = abstract(name.encode())
        else:
            self.places = numeric(LOOPBACK if here and ":" not in self.host else self.host, self.ports)
            self.bind = [place for host in interface_hosts for place in numeric(host, self.ports)]

    @property
    def inherited(self) -> dict[str, str]:
        """Return the variables by which a guardian has these settings that is asked for from inside of the program."""
        given = ",".join(f"{name}={self.deadlines[name]:g}" for name in sorted(self.explicit))
        evidence = os.path.abspath(self.evidence)
        return {LIMITS: given, OBSERVE: str(int(self.observe)), EVIDENCE: evidence}

    @property
    def at(self) -> str:
        """Return in words where the guardians meet."""
        return "on this host" if is_here(self.host) and LINUX else f"at {Place(0, (self.host, self.ports[0]))}"

    @property
    def posture(self) -> str:
        """Return the settings that must not differ by rank, as one text."""
        limits = [f"deadline {name}={seconds:g}" for name, seconds in sorted(self.deadlines.items())]
        return ",".join([*limits, f"observe={self.observe}"])


def digest(posture: str) -> str:
    """Return a posture's digest, by which guardians are equal however long it is."""
    return hashlib.sha256(posture.encode(errors="replace")).hexdigest()


def pieces(posture: str) -> list[str]:
    """Return a posture in pieces that fit into a frame."""
    return [posture[begin : begin + TEXT] for begin in range(0, len(posture), TEXT)]


def listens_at(found: Sequence[Place], bind: Sequence[Place], ports: Sequence[int]) -> list[list[Place]]:
    """Return where rank0's guardian listens, given what its host's name stands for: alternatives, the first that works.

    A name may stand for several interfaces, and for none: many hosts have their own name on the loopback interface,
    where no other host can call, and behind a translated address it is another's.
    """
    if bind:
        return [list(bind)]
    if found and found[0].address[0] == 0:
        return [list(found)]
    outside = [place for place in found if not is_here(str(place.address[0]))]
    return [outside, everywhere(ports)] if found and len(outside) == len(found) else [everywhere(ports)]


def differences(ours: str, theirs: str, rank: int) -> str:
    """Return how the posture of a rank's guardian differs from rank0's, by name and with both values."""
    mine, its = (dict(clause.partition("=")[::2] for clause in text.split(",")) for text in (ours, theirs))
    odd = [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
    if not odd:
        return f"in more than rank{rank} could say"
    return "; ".join(f"`{name}`: rank{rank} has {its.get(name)}, rank0 {mine.get(name)}" for name in odd)


def place_of(text: str) -> tuple[str, list[int]]:
    """Return the host and the port of `HOST:PORT`, where an IPv6 address stands in brackets. Raises Wrong."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Wrong(f"--meet: `{text}` is not HOST:PORT")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in host and bare == host:
        raise Wrong(f"--meet: `{text}` is not HOST:PORT; an IPv6 address stands in brackets, as in [::1]:29501")
    return bare, [int(port)]


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
