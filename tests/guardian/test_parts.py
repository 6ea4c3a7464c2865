"""The parts of a guardian without processes: what strangers send, settings, the page, and the judgement on it."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from genlock.guardian import wire
from genlock.guardian.child import Watched
from genlock.guardian.deadlines import Failure, Graph, Local, lags, stuck, waits_for
from genlock.guardian.exit_cause import PEER_DIED, by_itself
from genlock.guardian.guardian import Guardian
from genlock.guardian.links import Caller, Listener
from genlock.guardian.places import numeric
from genlock.guardian.settings import Settings, Wrong
from genlock.guardian.status_page import (
    CHECK,
    EVERYONE,
    NOBODY,
    RECORD,
    SIZE,
    SLOT,
    SPARED,
    STACKS,
    VARIABLE,
    Page,
)
from genlock.impl.rank.heartbeat import Beat
from hypothesis import given, settings
from hypothesis import strategies as st

# ── what comes from strangers ───────────────────────────────────────────────────────────────────────

TOKEN, BOND = b"token", b"10.0.0.1 40000 10.0.0.2 29501"


def session() -> tuple[wire.Frames, wire.Frames, bytes, bytes]:
    """Both ends after a handshake, and what was answered to which greeting."""
    listening = wire.Listening(TOKEN, 3, BOND)
    calling = wire.Calling(TOKEN, 2, listening.greeting, BOND)
    rank, proved, down = listening.answered(calling.answer)
    assert rank == 2
    return calling.accepted(proved), down, listening.greeting, calling.answer


def test_frames_arrive_whole_in_any_pieces() -> None:
    up, down, *_ = session()
    status = {"quiet": True, "paused": False, "waiting": -2, "position": 1 << 60, "counter": 3, "deadline": 0.5}
    sent = up.pack("status", {**status, "phase": "stea\ndy", "commit": "é" * 999}) + up.pack("done", {})
    got = [frame for n in range(0, len(sent), 7) for frame in down.feed(sent[n : n + 7])]
    assert got == [{"kind": "status", **status, "phase": "stea dy", "commit": "é" * 800}, {"kind": "done"}]


@given(st.binary(max_size=200))
def test_no_random_answer_is_accepted(raw: bytes) -> None:
    raw = raw.ljust(wire.ANSWER.size, b"\0")[: wire.ANSWER.size]
    with pytest.raises(wire.Malformed):
        wire.Listening(TOKEN, 3, BOND).answered(raw)
    with pytest.raises(wire.Malformed):
        wire.Listening(TOKEN, 3, BOND).answered(wire.VERSION + raw[4:])


def test_a_replayed_a_wrong_and_a_foreign_answer_are_refused_by_name() -> None:
    *_, answer = session()
    with pytest.raises(wire.Malformed, match="does not know the token"):
        wire.Listening(TOKEN, 3, BOND).answered(answer)
    for token, rank, why in ((b"other", 2, "does not know the token"), (TOKEN, 3, "no rank3"), (TOKEN, 0, "no rank0")):
        listening = wire.Listening(TOKEN, 3, BOND)
        with pytest.raises(wire.Malformed, match=why):
            listening.answered(wire.Calling(token, rank, listening.greeting, BOND).answer)
    with pytest.raises(wire.Malformed, match="does not speak GLK2"):
        wire.Calling(TOKEN, 1, b"HTTP/1.1 400 Bad Req", BOND)
    calling = wire.Calling(TOKEN, 1, wire.Listening(TOKEN, 3, BOND).greeting, BOND)
    with pytest.raises(wire.Malformed, match="does not know the token"):
        calling.accepted(bytes(wire.PROOF))


@given(st.binary(max_size=300), st.booleans())
def test_no_random_byte_is_taken_for_a_frame(raw: bytes, after: bool) -> None:
    up, down, *_ = session()
    good = up.pack("ping", {}) if after else b""
    taken = []
    with contextlib.suppress(wire.Malformed):
        taken = list(down.feed(good + raw))
    assert taken in ([], [{"kind": "ping"}])


def test_damaged_replayed_reordered_and_oversized_frames_are_refused_by_name() -> None:
    up, down, *_ = session()
    first, second = up.pack("ping", {}), up.pack("done", {})
    assert list(down.feed(first)) == [{"kind": "ping"}]
    for raw in (first, second[:-1] + b"x", up.pack("gone", {})):
        with pytest.raises(wire.Malformed, match="wrong signature"):
            list(session()[1].feed(raw))
    with pytest.raises(wire.Malformed, match="a frame of 65535 bytes, where 4096 are allowed"):
        list(down.feed(b"\xff" * 18))
    up, down, *_ = session()
    ping = up.pack("ping", {})
    assert len(list(down.feed(ping))) == 1
    with pytest.raises(wire.Malformed, match="wrong signature"):
        list(down.feed(ping))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_even_a_signed_frame_has_known_fields_only(raw: bytes) -> None:
    for body in (raw, b"status\n" + raw, b"abort\n" + raw, b"hello\n" + raw):
        try:
            found = wire.checked(body)
        except wire.Malformed:
            continue
        kind = str(found.pop("kind"))
        assert {name: type(value) for name, value in found.items()} == wire.FIELDS[kind]


def test_a_second_guardian_of_the_same_rank_is_refused() -> None:
    selector, refused = selectors.DefaultSelector(), list[str]()
    listener = Listener(selector, lambda *_: None, refused.append, TOKEN, 3)
    listener.listen(numeric("127.0.0.1", [0]))
    places = numeric("127.0.0.1", listener.ports)
    callers = [Caller(selector, lambda *_: None, refused.append, TOKEN, 2) for _ in range(2)]
    callers[0].call(places, lambda: None)
    turn(selector, lambda: callers[0].ranks)
    callers[1].call(places, lambda: None)
    turn(selector, lambda: refused)
    assert [bool(caller.ranks) for caller in callers] == [True, False]
    assert refused == ["a stranger was refused: rank2 is here already"]
    for one in (listener, *callers):
        one.close()
    selector.close()


def turn(selector: selectors.BaseSelector, over: Callable[[], object], within: float = 20) -> None:
    """Do what is ready until `over`."""
    end = time.monotonic() + within
    while not over():
        assert time.monotonic() < end, "it did not come to that"
        for key, _ in selector.select(0.01):
            key.data()


# ── settings ────────────────────────────────────────────────────────────────────────────────────────

AWAY = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "65535"}


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--", "x"], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not one of WORLD_SIZE=2 ranks"),
        (["--", "x"], {"RANK": "one"}, "RANK=one is not a number"),
        (["--deadline=steady=0", "--", "x"], {}, "--deadline: `steady=0` is not PHASE=SECONDS"),
        (["--", "x"], {"GENLOCK_DEADLINES": "steady"}, "GENLOCK_DEADLINES: `steady` is not PHASE=SECONDS"),
        (["--meet=here", "--", "x"], {}, "--meet: `here` is not HOST:PORT"),
        (["--interface=nosuch0", "--", "x"], {}, "--interface: `nosuch0` has no address"),
        (["--", "x"], AWAY, "guardians that meet at 10.0.0.1 need a secret: set GENLOCK_TOKEN"),
        (["x"], {}, "`x` is no flag"),
        (["--"], {}, "there is no program"),
    ],
)
def test_settings_that_cannot_be_used_are_named(arguments: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        Settings(arguments, environ)


def test_settings_come_from_flags_then_environment_then_defaults() -> None:
    found = Settings(["--deadline=steady=5", "--interface=lo", "--", "prog", "--flag"],
                     {**AWAY, "GENLOCK_TOKEN": "s", "GENLOCK_DEADLINES": "steady=9,ack=2"})  # fmt: skip
    assert (found.deadlines["steady"], found.deadlines["ack"], found.deadlines["startup"]) == (5, 2, 300)
    assert (found.host, found.program) == ("10.0.0.1", ["prog", "--flag"])
    assert str(found.bind[0]) == "127.0.0.1:1024"
    assert found.ports == list(range(1024, 1032))
    odd = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1", "X": ""}
    tokens = {Settings(["--", "x"], {**AWAY, "GENLOCK_TOKEN": "s", key: value}).token for key, value in odd.items()}
    assert len(tokens) == 3, "another run, or another start of it, has another token"


# ── the page, and the judgement on it ───────────────────────────────────────────────────────────────


def test_a_beat_without_a_guardian_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENLOCK_PAGE", raising=False)
    beat = Beat.open()
    with beat.waiting():
        beat.progress()


def test_who_waits_in_two_collectives_waits_until_both_are_complete() -> None:
    """As in a payload that goes in pieces: the first piece has come, and somebody has not sent the second."""
    memory = memoryview(bytearray(SIZE))
    beat = Beat(memory)

    def waiting() -> int:
        page = Page.read(memory)
        assert page is not None
        return page.waiting

    complete = [beat.issue(None), beat.issue(None)]
    seen = []
    for done in complete:
        seen.append(waiting())
        done(None)
    assert [*seen, waiting()] == [EVERYONE, EVERYONE, NOBODY]


@given(st.text(max_size=8), st.text(max_size=20), st.integers(-2, 600), st.floats(0, 1e6))
def test_a_page_is_read_as_it_was_written(phase: str, commit: str, rank: int, deadline: float) -> None:
    memory = memoryview(bytearray(SIZE))
    assert Page.read(memory) is None, "nobody has written"
    beat = Beat(memory)
    beat.phase(phase.replace("\0", ""), deadline=deadline)
    beat.commit(commit.replace("\0", ""))
    beat.enter(rank)
    page = Page.read(memory)
    assert page is not None
    assert (page.pid, page.counter, page.waiting, page.deadline) == (os.getpid(), 4, rank, deadline)
    assert page.position == (rank == EVERYONE)
    assert phase.replace("\0", "").encode()[:16].decode(errors="replace") == page.phase
    assert not page.torn


WRITTEN = RECORD.size + CHECK.size


@given(st.integers(0, WRITTEN - 1), st.booleans())
def test_of_a_write_that_is_caught_anywhere_the_record_before_is_left(caught: int, wait: bool) -> None:
    """The rank stalls when so many bytes of a slot are written."""
    memory = memoryview(bytearray(SIZE))
    beat = Beat(memory)
    beat.phase("steady")
    beat.commit("call_id=1")
    whole, slot = bytes(memory), Page.read(memory)
    beat.enter() if wait else beat.commit("call_id=2")
    after, begin = bytes(memory), next(k for k in (0, SLOT) if memory[k : k + SLOT] != whole[k : k + SLOT])
    memory[:] = whole
    memory[begin : begin + caught] = after[begin : begin + caught]
    page = Page.read(memory)
    assert page is not None
    assert slot is not None
    assert (page.edition, page.counter, page.waiting) == (slot.edition, slot.counter, NOBODY)
    assert (page.phase, page.commit) == ("steady", "call_id=1")
    assert page.torn == (memory[begin : begin + SLOT] != whole[begin : begin + SLOT])


@given(st.binary(min_size=2 * SLOT, max_size=2 * SLOT).filter(any))
def test_a_page_that_nobody_can_read_is_torn_and_not_absent(raw: bytes) -> None:
    page = Page.read(memoryview(bytearray(raw.ljust(SIZE, b"\0"))))
    assert page is not None
    assert page.torn
    assert page.edition == 0


def test_whoever_opens_a_page_again_goes_on_where_it_was() -> None:
    memory = memoryview(bytearray(SIZE))
    beats = [Beat(memory) for _ in range(2)]
    for n in range(6):
        beats[n // 2 % 2].commit(f"call_id={n}")
        page = Page.read(memory)
        assert page is not None
        assert (page.commit, page.edition) == (f"call_id={n}", n + 3)


def test_a_rank_is_charged_while_its_page_is_torn_whatever_it_said_before() -> None:
    guardian, _ = watching(1, 0)
    guardian.child = Living()
    guardian.local = Local(1, {"steady": 1.0}, 0.0)
    beat = Beat(guardian.memory)
    beat.phase("steady")
    beat.enter()
    guardian._read_page(0.0)
    guardian._read_page(50.0)
    assert not guardian.findings, "it waits"
    guardian.memory[0] ^= 1
    guardian._read_page(50.0)
    guardian._read_page(50.9)
    assert not guardian.findings
    guardian.memory[SLOT] ^= 1  # neither slot can be read
    guardian._read_page(51.2)
    assert guardian.findings[0][2].what == "rank1 made no progress for 1.2 s in phase steady (deadline 1 s)"


Rank = tuple[str, int, int]
"""How a rank is (working, waiting, done, paused), whom it waits for, how many collectives it has issued."""


def graph(*ranks: Rank) -> Graph:
    found = Graph(len(ranks), {"steady": 1.0, "collective": 5.0})
    for one, (state, waiting, position) in zip(found.ranks, ranks, strict=True):
        one.quiet, one.done, one.paused = state != "working", state == "done", state == "paused"
        one.page.waiting, one.page.position = waiting, position
    return found


RANKS = st.lists(
    st.tuples(st.sampled_from(["working", "waiting", "done", "paused"]), st.integers(-2, 3), st.integers(0, 3)),
    min_size=2,
    max_size=4,
)


@given(RANKS)
def test_nobody_is_charged_for_waiting_while_somebody_it_waits_for_can_go_on(ranks: list[Rank]) -> None:
    of = graph(*ranks).ranks
    for n, (state, waiting, _) in enumerate(ranks):
        among = stuck(n, of)
        if state != "waiting" or waiting == NOBODY:
            assert (among, waits_for(n, of), lags(n, of)) == (set(), set(), False)
        for m in among:
            assert ranks[m][0] == "done" or (ranks[m][0] == "waiting" and ranks[m][1] != NOBODY)
            assert waits_for(m, of) <= among, "whoever is waited for is among them"
        assert not (lags(n, of) and waits_for(n, of))


@given(RANKS)
def test_a_verdict_needs_its_time_and_names_no_rank_that_works(ranks: list[Rank]) -> None:
    found = graph(*ranks)
    assert found.overdue(0.0) is None
    assert found.overdue(1.0) is None, "no deadline has passed yet"
    finding = found.overdue(5.1)
    assert (finding is not None) == any(stuck(n, found.ranks) or lags(n, found.ranks) for n in range(len(ranks)))
    if finding is not None and finding.culprit >= 0:
        assert ranks[finding.culprit][0] in ("waiting", "done")


def test_progress_sets_the_clock_back_and_waiting_suspends_it() -> None:
    clock, page = Local(1, {"steady": 1.0, "slow": 9.0}, 0.0), Page()

    def at(now: float, **odd: bool) -> bool:
        return clock.look(page, stopped=odd.get("stopped", False), paused=odd.get("paused", False), now=now) is not None

    assert [at(0.0), at(0.9), at(1.1)] == [False, False, True]
    page.counter += 1
    assert [at(1.2), at(2.1), at(2.3)] == [False, False, True]
    page.waiting = EVERYONE
    assert [at(2.4), at(50.0)] == [False, False]
    assert [at(50.1, stopped=True), at(51.0, stopped=True), at(51.2, stopped=True)] == [False, False, True]
    page.waiting = NOBODY
    assert [at(60.0, paused=True), at(90.0, paused=True), at(90.1), at(90.9), at(91.2)] == [*[False] * 4, True]
    page.phase = "slow"
    assert [at(95.0), at(99.2)] == [False, True]
    page.deadline = 20.0
    assert at(100.0) is False


# ── which of two findings it is ─────────────────────────────────────────────────────────────────────


class Gone:
    """A rank's process that has ended, and of which its guardian has not heard."""

    def __init__(self, status: int) -> None:
        self.status: int | None = status

    def reap(self) -> bool:
        return True

    def send(self, number: int) -> None:
        pass


class Living(Gone):
    """A rank's process that is there."""

    def __init__(self) -> None:
        self.status = None
        self.pid, self.stopped = os.getpid(), False

    def reap(self) -> bool:
        return False

    def dying(self) -> int:
        return 0


class Wires:
    """Links to nobody."""

    def send_all(self, *_: object, **__: object) -> None:
        pass

    send = send_all


def watching(rank: int, status: int) -> tuple[Any, socket.socket]:
    """A guardian of one of two ranks, whose process has ended; and by what signals come to it."""
    settings = Settings(["--", "x"], {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    guardian: Any = Guardian(settings, {})
    guardian.child, guardian.memory, guardian.page = Gone(status), bytearray(SIZE), Page()
    guardian.links, guardian.met = Wires(), {1 - rank}
    guardian.hub = guardian.links if rank == 0 else None
    guardian._gather = lambda found, then: None
    guardian.launcher = guardian.supervisor = Watched(0)
    guardian._wake = socket.socketpair()
    guardian._wake[0].setblocking(False)
    return guardian, guardian._wake[1]


@pytest.mark.parametrize("status", [-signal.SIGABRT, 1])
def test_of_two_deaths_the_one_that_was_told_first_is_the_cause(status: int) -> None:
    """rank0 dies of what rank1 did, and its guardian hears of both at once."""
    guardian, _ = watching(0, status)
    guardian.find(by_itself(1, status, "there", asked=False), source=1)
    assert [found.culprit for _, _, found in sorted(guardian.findings, key=lambda found: found[:2])] == [1, 0]
    assert guardian._best()[2].culprit == 1


def test_a_death_that_is_seen_before_a_deadline_is_charged_is_the_cause() -> None:
    guardian, _ = watching(0, -signal.SIGKILL)
    guardian.find(Failure("deadline", 0, "rank0 made no progress"))
    assert guardian._best()[2].cause == "died"


def test_of_a_rank_that_ends_with_its_launcher_the_launcher_is_the_cause() -> None:
    guardian, _ = watching(0, -signal.SIGPIPE)
    with subprocess.Popen(["true"]) as launcher:
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)  # it is not reaped
        guardian.launcher = Watched(launcher.pid)
        guardian._see_end()
        without = Watched(launcher.pid)
        os.close(without.handle)
        without.handle = -1
        assert without.ended(), "also where the kernel has no handles of processes"
    assert [found.cause for _, _, found in guardian.findings] == ["launcher"]
    assert not Watched(os.getppid()).ended()


def test_a_launcher_that_dies_is_the_cause_though_a_rank_was_seen_to_die_before() -> None:
    """Of `genlock run` the launcher is a torchrun, which dies a moment after the pipes that `genlock run` has read."""
    guardian, _ = watching(0, -signal.SIGPIPE)
    guardian._see_end()
    guardian.find(Failure("launcher", -1, "the launcher of rank1 died"), source=1)
    assert guardian._best()[2].cause == "launcher"


def test_rank0_is_sent_that_a_rank_whose_page_is_torn_does_not_wait() -> None:
    guardian, _ = watching(1, 0)
    guardian.child, guardian.local = Living(), Local(1, {"steady": 1.0}, 0.0)
    sent: list[object] = []
    guardian.links.send = lambda rank, kind, fields: sent.append(fields["waiting"])
    beat = Beat(guardian.memory)
    beat.enter()
    beat.progress()  # both slots say that it waits
    guardian._read_page(0.0)
    guardian._read_page(5.0)
    guardian.memory[0] ^= 1
    guardian._read_page(10.0)
    assert sent[-1] == NOBODY
    assert EVERYONE in sent


def test_a_rank_that_its_launcher_ended_has_not_died_of_itself() -> None:
    """The guardian reads of its own signal after the others' word."""
    guardian, signals = watching(1, -signal.SIGTERM)
    signals.send(bytes([signal.SIGTERM]))
    guardian.find(by_itself(0, -signal.SIGTERM, "there", asked=True), source=0)
    assert {found.cause for _, _, found in guardian.findings} == {"asked"}


def test_without_a_verdict_what_explains_more_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    guardian, _ = watching(1, PEER_DIED)
    guardian.hear(0, None)
    assert guardian.finding.cause == "lost"
    assert guardian._leave() == PEER_DIED
    guardian._finish()
    assert "rank1 was ended: the guardian of rank0 is gone" in capfd.readouterr().err


@pytest.mark.parametrize("reported", [False, True])
def test_a_guardian_that_has_said_that_its_rank_is_gone_is_not_missed(reported: bool) -> None:
    guardian, _ = watching(0, PEER_DIED)
    guardian._see_end()
    if reported:
        guardian.hear(1, {"kind": "gone"})
    guardian.hear(1, None)
    assert guardian._best()[2].cause == ("lost" if reported else "guardian")


def test_stacks_asked_for_at_the_very_end_kill_nobody(tmp_path: Path) -> None:
    """As Python comes to its end it lets go of faulthandler, and the signal has the effect of before."""
    page, stacks = tmp_path / "page", tmp_path / "stacks"
    page.write_bytes(bytes(SIZE))
    stacks.touch()
    program = (
        "import faulthandler, os, signal; from genlock.impl.rank.heartbeat import Beat; Beat.open(); "
        "faulthandler.unregister(signal.SIGUSR2); os.kill(os.getpid(), signal.SIGUSR2)"
    )
    environment = {**os.environ, VARIABLE: str(page), STACKS: str(stacks)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60).returncode == 0


BUSY_THREADS = """
import threading
import time
from genlock.guardian.guardian import Guardian
from genlock.impl.rank.heartbeat import Beat
Beat.open()
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def busy():
    while True:
        fib(12), sum(n for n in range(50)), exec("[n for n in range(20)]", {})
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
print("here", flush=True)
busy()
"""


def test_a_rank_that_is_to_live_on_does_however_often_it_is_asked_for_its_stacks(tmp_path: Path) -> None:
    """faulthandler reads other threads' frames while these run: asked so, this program dies within some 300 times."""
    page, stacks = tmp_path / "page", tmp_path / "stacks"
    page.write_bytes(bytes(SIZE))
    stacks.touch()
    environment = {**os.environ, VARIABLE: str(page), STACKS: str(stacks), SPARED: "1"}
    with subprocess.Popen([sys.executable, "-c", BUSY_THREADS], env=environment, stdout=subprocess.PIPE) as rank:
        try:
            assert rank.stdout is not None
            assert rank.stdout.readline() == b"here\n"
            for _ in range(1500):
                rank.send_signal(signal.SIGUSR2)
                time.sleep(0.001)
            assert rank.poll() is None
        finally:
            rank.kill()
    told = stacks.read_text()
    assert "in busy" in told
    assert "Thread 0x" not in told, "other threads' stacks are told by name"
