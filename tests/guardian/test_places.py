"""Where guardians meet, and who is let in: users of this host, relays between hosts, both families of addresses."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from genlock.guardian import wire
from genlock.guardian.links import Caller, Listener
from genlock.guardian.places import Place, abstract, bond, everywhere, is_here, numeric, of_interface, resolved, user_of
from genlock.guardian.settings import GuardianSettings, Wrong, listens_at, place_of
from guardian_jobs import BUSY, Job

TOKEN = b"token"
STRANGER = 65534
"""A user who is not this one."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, too")


class Ends:
    """rank0's listener and rank1's caller, in one selector."""

    def __init__(self) -> None:
        self.selector, self.refused = selectors.DefaultSelector(), list[str]()
        self.heard: list[dict[str, object] | None] = []
        self.listener = Listener(self.selector, lambda *_: None, self.refused.append, TOKEN, 2)
        self.caller = Caller(self.selector, lambda _, frame: self.heard.append(frame), self.refused.append, TOKEN, 1)

    def turn(self, over: Callable[[], object], within: float = 20) -> None:
        end = time.monotonic() + within
        while not over():
            assert time.monotonic() < end, f"it did not come to that: {self.refused}"
            for key, _ in self.selector.select(0.01):
                key.data()

    def meet(self, places: list[Place]) -> None:
        self.caller.call(places, lambda: None)
        self.turn(lambda: self.caller.ranks and self.listener.ranks)


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.caller.close()
    both.listener.close()
    both.selector.close()


def name() -> bytes:
    return os.urandom(8).hex().encode()


# ── on one host ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def as_stranger() -> Iterator[socket.socket]:
    """A socket of another user: the kernel notes who connects, or listens, at that moment."""
    with socket.socket(socket.AF_UNIX) as sock:
        os.seteuid(STRANGER)
        try:
            yield sock
        finally:
            os.seteuid(0)


@needs_root
def test_another_user_of_this_host_is_not_even_greeted(ends: Ends) -> None:
    [place] = ends.listener.listen(abstract(name())[:1])
    with as_stranger() as stranger:
        stranger.connect(place.address)
        os.seteuid(0)
        ends.turn(lambda: ends.refused)
        assert stranger.recv(100) == b""
    assert ends.refused == [f"a stranger was refused: it belongs to user {STRANGER}"]


@needs_root
def test_another_user_who_has_the_name_first_is_passed_over(ends: Ends) -> None:
    """It may relay to the real one as it likes: the kernel says whose socket it is."""
    places = abstract(name())
    with as_stranger() as stranger:
        stranger.bind(places[0].address)
        stranger.listen()
        os.seteuid(0)
        [taken] = ends.listener.listen(places)
        assert taken.address == places[1].address
        ends.meet(places)
    assert ends.refused == [f"a stranger is where rank0's guardian should be: it belongs to user {STRANGER}"]


def test_somebody_who_has_the_name_first_and_knows_no_token_is_passed_over(start: Callable[..., Job]) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        job = start({"*": [("work", 0.2)]}, world=2, before=lambda own: squat(squatter, own))
        assert job.ends() == [0, 0]
        assert job.said[0] == ""
        with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_UNIX) as other:
            other.bind(job.places[0].address)


def squat(sock: socket.socket, job: Job) -> None:
    sock.bind(job.places[0].address)
    sock.listen()


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    with socket.socketpair()[0] as one, socket.socket() as other:
        assert user_of(one) == os.geteuid()
        assert user_of(other) == -1


def test_no_port_is_open_on_one_host(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start({"*": [("say", "here"), ("until", str(tmp_path / "enough"))]}, world=2)
    for guardian in job.guardians:
        assert guardian.stdout
        assert guardian.stdout.readline() == "here\n"
    ports = [f":{job.port + k:04X} " for k in range(1, 9)]
    tables = [Path(f"/proc/net/{table}") for table in ("tcp", "tcp6")]
    assert not any(port in table.read_text() for table in tables if table.exists() for port in ports)
    (tmp_path / "enough").touch()
    assert job.ends() == [0, 0]


def test_the_last_word_of_a_guardian_that_has_gone_is_heard(ends: Ends) -> None:
    """The verdict has come, and what is sent before it is read finds the other end closed."""
    places = abstract(name())
    ends.listener.listen(places)
    ends.meet(places)
    ends.listener.send(1, "verdict", {"cause": "died", "culprit": 1, "what": "rank1 died"})
    ends.listener.close()
    ends.caller.send(0, "gone")
    assert [frame and frame["kind"] for frame in ends.heard] == ["verdict", None]
    assert not ends.caller.ranks


# ── across hosts ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def relay(host: str, port: int) -> Iterator[int]:
    """A process that passes on every byte, both ways, between whoever calls it and a port. Its own port."""
    code = """
import selectors, socket, sys
entry = socket.create_server(("127.0.0.1", 0)); print(entry.getsockname()[1], flush=True)
near, far = entry.accept()[0], socket.create_connection((sys.argv[1], int(sys.argv[2])))
chosen = selectors.DefaultSelector()
chosen.register(near, 1, far); chosen.register(far, 1, near)
while True:
    for key, _ in chosen.select():
        raw = key.fileobj.recv(4096)
        if not raw: sys.exit()
        key.data.sendall(raw)
"""
    words = [sys.executable, "-I", "-S", "-c", code, host, str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.kill()


def test_a_relay_gains_nothing(ends: Ends) -> None:
    """It has every byte that was said, and neither end takes it for the other."""
    ends.listener.listen(numeric("127.0.0.1", [0]))
    [port] = ends.listener.ports
    with relay("127.0.0.1", port) as between:
        ends.caller.call(numeric("127.0.0.1", [between]), lambda: None)
        ends.turn(lambda: ends.refused)
        assert not ends.caller.ranks
        assert not ends.listener.ranks
    assert ends.refused == [f"a stranger was refused: {wire.STRANGE}"]
    ends.caller.close()
    ends.meet(numeric("127.0.0.1", [port]))


def test_a_proof_for_one_connection_proves_nothing_on_another() -> None:
    listening = wire.Listening(TOKEN, 3, b"a b")
    calling = wire.Calling(TOKEN, 2, listening.greeting, b"a c")
    with pytest.raises(wire.Malformed, match="something between alters addresses"):
        listening.answered(calling.answer)
    calling = wire.Calling(TOKEN, 2, listening.greeting, b"a b")
    _, proved, _ = listening.answered(calling.answer)
    calling._bond = b"a c"
    with pytest.raises(wire.Malformed, match="something between alters addresses"):
        calling.accepted(proved)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")


@pytest.mark.parametrize(
    ("listens", "calls"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("::1", "::1", marks=needs_ipv6),
        ("everywhere", "127.0.0.1"),
        ("everywhere", "127.0.0.3"),
        pytest.param("everywhere", "::1", marks=needs_ipv6),
    ],
)
def test_either_family_and_any_interface_will_do(ends: Ends, listens: str, calls: str) -> None:
    ends.listener.listen(everywhere([0]) if listens == "everywhere" else numeric(listens, [0]))
    ends.meet(numeric(calls, [9, *ends.listener.ports]))
    assert not ends.refused
    links = [ends.listener.ranks[1], ends.caller.ranks[0]]
    assert len({bond(link.sock, called=called) for link, called in zip(links, (False, True), strict=True)}) == 1


def test_the_addresses_of_an_interface_are_found() -> None:
    assert of_interface("lo")[0] == "127.0.0.1"
    assert of_interface("nosuch0") == []
    if has_ipv6():
        assert "::1" in of_interface("lo")


def test_a_name_is_resolved_and_digits_are_not() -> None:
    assert [str(place) for place in numeric("::1", [5])] == ["[::1]:5"]
    assert [str(place) for place in numeric("10.1.2.3", [5, 6])] == ["10.1.2.3:5", "10.1.2.3:6"]
    assert numeric("localhost", [5]) == []
    assert "127.0.0.1:5" in map(str, resolved("localhost", [5])) or "[::1]:5" in map(str, resolved("localhost", [5]))


def test_where_rank0_listens_follows_from_what_its_name_stands_for() -> None:
    """A host's own name is often on its loopback interface, where no other host can call."""
    ports = [5, 6]
    outside, inside = numeric("10.1.2.3", ports), numeric("127.0.1.1", ports)
    anywhere = texts([everywhere(ports)])
    assert texts(listens_at(outside, [], ports)) == texts([outside]) + anywhere
    assert texts(listens_at(inside, [], ports)) == anywhere
    assert texts(listens_at([*inside, *outside], [], ports)) == anywhere
    assert texts(listens_at([], [], ports)) == anywhere
    assert texts(listens_at(inside, outside, ports)) == texts([outside])
    [here] = listens_at(abstract(b"x"), [], ports)
    assert len(here) == len(abstract(b"x"))


def texts(alternatives: list[list[Place]]) -> list[list[str]]:
    return [[str(place) for place in places] for places in alternatives]


@pytest.mark.parametrize(
    ("text", "host", "port"), [("node1:5", "node1", 5), ("[fe80::1%eth0]:5", "fe80::1%eth0", 5), ("[::1]:5", "::1", 5)]
)
def test_a_place_to_meet_is_read(text: str, host: str, port: int) -> None:
    assert place_of(text) == (host, [port])


@pytest.mark.parametrize("text", ["::1:5", "fe80::1:5", "node1", "node1:0", "node1:x", ":5"])
def test_a_place_to_meet_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Wrong, match="is not HOST:PORT"):
        place_of(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_whoever_meets_on_the_loopback_interface_meets_on_this_host(host: str) -> None:
    assert is_here(host)
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": host}
    found = [GuardianSettings(["--", "x"], {**environ, "MASTER_PORT": port}).places for port in ("1", "1", "2")]
    assert all(place.family == socket.AF_UNIX for places in found for place in places)
    addresses = [[place.address for place in places] for places in found]
    assert addresses[0] == addresses[1]
    assert addresses[0] != addresses[2], "another job's place is another"


def own_address() -> str:
    """An address of this host by which others reach it; empty where it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])
    return ""


@pytest.mark.skipif(not own_address(), reason="this host has no address but its own loopback")
def test_guardians_meet_over_the_network(start: Callable[..., Job]) -> None:
    environ = {"LOCAL_WORLD_SIZE": "1", "GENLOCK_TOKEN": "a secret", "MASTER_ADDR": own_address()}
    job = start({1: [("kill", None)], "*": BUSY}, environ=environ)
    assert job.ends() == [12, 128 + signal.SIGKILL, 12]
    assert "rank1 died by SIGKILL" in job.said[2]
