"""Guards one rank: starts it, watches its page and its end, and ends it when the run is lost.

All guardians connect to rank0's. The first that sees a failure sends ABORT before it does anything else; each gathers
evidence and kills its rank, and rank0's guardian, which has heard from all, says whose fault it was. This process waits
for nothing but its selector: whatever may block is done by helpers, each for so long at most.
Left out: whose clock runs (`deadlines`), and what is said on the wire (`wire`).
"""

from __future__ import annotations

import mmap
import os
import selectors
import signal
import socket
import sys
import time

from . import evidence
from .attached import Attached
from .child import HELD, Child, Watched, stopped, traced
from .deadlines import Failure, RankGraph, WorkClock, where
from .exit_cause import LAST, USAGE, by_itself, cause_of, status_of, weight_of
from .helper import Helpers, say_in_time
from .links import Caller, Listener
from .places import numeric, resolved
from .settings import GuardianSettings, Wrong, differences, digest, listens_at, pieces
from .status_page import ASKED, EVERYONE, NOBODY, SIZE, SPARED, STACKS, VARIABLE, Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .helper import Write

TICK = 0.02
"""Seconds between two looks at the page."""
QUIET = 0.2
"""Seconds without progress after which a rank's standing is sent to rank0's guardian."""
PING = 1.0
RETRY = 0.02
"""Seconds between two calls of rank0's guardian."""
GRACE = 0.1
"""Seconds that rank0's guardian waits for a better explanation before it names the culprit."""
SEARCH = 0.8
"""Seconds that it waits if it only knows that peers were lost: the guardian of the lost one will know more."""
VERDICT = 2.0
"""Seconds that the others wait for its word; it gathers evidence meanwhile."""
KILL = 10.0
"""Seconds that a killed rank may take to go; gigabytes have to be given back."""
FAREWELL = 2.0
"""Seconds that a guardian with bad news tries to reach rank0's."""
TWICE = 0.1
"""Seconds in which a signal counts once: sent to the whole group, it also comes from the supervisor."""
STORE = 5.0
"""Seconds that a file may take to be written; the rank is dead by then, and only this process's end waits."""
RESOLVE = 5.0
"""Seconds that the resolver may take for the name of rank0's host, before it is asked again."""
POSTURE = 1 << 16
"""Characters that a guardian may say of its settings."""

SHARED = ("waiting", "position", "counter", "deadline", "phase", "commit")
"""Fields of a page that are sent to rank0's guardian."""


class Guardian:
    """Guards one rank, from the start of its program to the guardian's own exit status."""

    def __init__(self, settings: GuardianSettings, environ: dict[str, str]) -> None:
        self.settings, self.environ = settings, environ
        self.rank, self.world = settings.rank, settings.world
        self.selector = selectors.DefaultSelector()
        self.graph = RankGraph(self.world, settings.deadlines)
        self.finding: Failure | None = None
        self.findings: list[tuple[int, float, Failure]] = []
        self.begun = self.lost_at = time.monotonic()
        self.sealed = self.gone = self.asked = self.paused = self.stopped = False
        self.reported: set[int] = set()
        self.met: set[int] = set()
        self.kept = ""
        self.left = self.orphaned = self._answered = False
        self.places = settings.places
        self.postures: dict[int, str] = {}
        self._said = self._pinged = self._called = 0.0
        self._resolved = float("-inf")
        self._quiet, self._at = False, (NOBODY, 0)
        self._printed: set[str] = set()
        self._passed: dict[int, float] = {}
        pids: set[int] = set()
        self._pids = pids
        self.helpers = Helpers(self.selector, pids)

    # ── start ───────────────────────────────────────────────────────────────────────────────────────

    def start(self, launcher: int) -> None:
        """Hold signals, start the rank, and meet the others. Raises OSError where there is no such program."""
        self._hold_signals()
        self._watch(launcher)
        self.memory = mmap.mmap(self._shared(VARIABLE, SIZE), SIZE)
        self.stacks = self._shared(STACKS, 0)
        self.environ[SPARED] = str(int(self.settings.observe))
        self.words = evidence.LastWords(self.environ)
        token = self.settings.token
        if self.rank == 0:
            self.hub: Listener | None = Listener(self.selector, self.hear, self._once, token, self.world)
            self.links: Listener | Caller = self.hub
        else:
            self.hub = None
            self.links = Caller(self.selector, self.hear, self._once, token, self.rank)
        self.listening = self.hub is None or self.world == 1
        if self.places:
            self._listen()
        self.child: Child | Attached
        if self.settings.attached:
            self.child = Attached(self.settings.attached, memoryview(self.memory))
        else:
            self.environ |= self.settings.inherited
            self.child = Child(self.settings.program, self.environ, self._pids)
        self.page = Page()
        self.local = WorkClock(self.rank, self.settings.deadlines, time.monotonic())
        self._moved = time.monotonic()
        self._meet(self._moved)

    def _answer(self) -> None:
        """Tell the rank that has asked for this guardian what it needs to know, and that it is guarded from now on."""
        lines = [f"{name}={self.environ[name]}\n" for name in (VARIABLE, STACKS, SPARED, ASKED)]
        self._answered = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.write(1, "".join([*lines, "\n"]).encode())
        except BrokenPipeError:
            return  # it has not waited
        finally:
            os.dup2(nothing, 1)
            os.close(nothing)

    def _watch(self, launcher: int) -> None:
        """Watch the launcher, and the supervisor that this process was forked from. Raises Wrong if they are gone."""
        try:
            self.launcher, self.supervisor = Watched(launcher), Watched(os.getppid())
        except ProcessLookupError:
            raise Wrong("the launcher has died before the rank was started") from None
        for one in (self.launcher, self.supervisor):
            if one.handle >= 0:  # to wake up at once; `_see_parents` looks
                self.selector.register(
                    one.handle, selectors.EVENT_READ, lambda own=one: self.selector.unregister(own.handle)
                )

    def _hold_signals(self) -> None:
        inbox, outbox = socket.socketpair()
        inbox.setblocking(False)
        outbox.setblocking(False)
        self._wake = (inbox, outbox)
        for number in HELD:
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _nothing)
        signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        self.selector.register(inbox, selectors.EVENT_READ, self._signalled)

    def _shared(self, name: str, size: int) -> int:
        """Make memory that the rank reaches by a path in its environment, whatever it does to inherited descriptors."""
        number = os.memfd_create(name)
        os.ftruncate(number, size)
        self.environ[name] = f"/proc/{os.getpid()}/fd/{number}"
        return number

    def _listen(self) -> None:
        """Listen, as rank0's guardian. Raises OSError where no place is free."""
        last = OSError("no place to listen at")
        for places in listens_at(self.places, self.settings.bind, self.settings.ports):
            if self.hub is None or self.listening:
                return
            try:
                self.listening = bool(self.hub.listen(places))
            except OSError as error:
                last = error
        if not self.listening:
            raise last

    def _meet(self, now: float) -> None:
        """Go on with meeting: ask the resolver for rank0's host if need be, and call rank0's guardian."""
        self._called = now
        if not self.settings.places and now - self._resolved > RESOLVE and (self.hub is None or not self.listening):
            host, self._resolved = self.settings.host, now
            work = lambda write: write("\n".join(str(x.address[0]) for x in resolved(host, [0])))  # noqa: E731
            self.helpers.run(work, RESOLVE, self._found, awaited=False)
        if isinstance(self.links, Caller) and self.places:
            self.links.call(self.places, self._greet)

    def _found(self, text: str, _: bool) -> None:
        """Take in what the resolver has found. A name may get another address while a job starts."""
        self.places = [place for host in text.split() for place in numeric(host, self.settings.ports)] or self.places
        if self.places and not self.listening:
            try:
                self._listen()
            except OSError as error:
                what = f"the guardian of rank0 cannot listen {self.settings.at}: {error.strerror or error}"
                self.find(Failure("guardian", self.rank, what))

    def _greet(self) -> None:
        """Tell rank0's guardian, just met, by which settings this one works."""
        for part in pieces(self.settings.posture):
            self.links.send(0, "posture", {"part": part})
        self.links.send(0, "hello", {"digest": digest(self.settings.posture)})
        self.met.add(0)
        if self.findings:  # before they met
            self.links.send(0, "abort", self._abort(self._best()[2]))
        if self.graph.ranks[self.rank].done and self.child.status == 0:
            self.links.send(0, "done")

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        """Watch until the rank has ended and its end is explained. Return the exit status."""
        while not self._over():
            busy = self.finding is not None or (self.rank > 0 and not self.links.ranks)
            for key, _ in self.selector.select(0.005 if busy else TICK):
                key.data()
            self._look(time.monotonic())
        status = self._leave()
        self._finish()
        return status

    def _finish(self) -> None:
        """Give helpers that still write their time; nothing that comes from outside counts any more."""
        self.left = True
        while self.helpers.busy:
            for key, _ in self.selector.select(0.005):
                key.data()
            self.helpers.look(time.monotonic())

    def _look(self, now: float) -> None:
        self.helpers.look(now)
        if self.finding is None:
            self._see_end()
        else:
            self._await_end(now)
        if not self.orphaned and (found := self._see_parents()) is not None:
            self.orphaned = True
            self.find(found)
        if self.hub is not None:
            self.hub.tidy(now)
        waits = not self.links.ranks if self.hub is None else not self.listening
        if waits and not self.sealed and now - self._called > RETRY:
            self._meet(now)
        self._expect_all(now)
        others = {0} if self.rank else {*range(1, self.world)}
        if self.settings.attached and not self._answered and self.met >= others:
            self._answer()
        if self.child.status is None and self.finding is None:
            self._read_page(now)
        if self.hub is not None and self.finding is None:
            stuck = self.graph.overdue(now)
            if stuck is not None:
                self.find(stuck)
        self._watch_guardians(now)

    def _expect_all(self, now: float) -> None:
        """Fail the run if a guardian has not connected by the deadline `meet`."""
        late = now - self.begun > self.settings.deadlines["meet"]
        missing = {0} if self.rank else {*range(1, self.world)}
        missing -= self.met
        if late and missing and self.finding is None:
            rank, unknown = min(missing), not self.places and not self.settings.bind
            at = f"at {self.settings.host}, whose address is not known," if unknown else self.settings.at
            what = f"the guardian of rank{rank} was not met {at} within {now - self.begun:.0f} s"
            self.find(Failure("guardian", rank, what))

    def _read_page(self, now: float) -> None:
        page = self._newest()
        if page is None:
            if "startup" not in self.settings.explicit:
                return  # a program that writes no page is charged for nothing, unless it was said that it does
            page, page.phase = self.page, "startup"
        moved = page.counter != self.page.counter or page.waiting != self.page.waiting
        self.page, self._moved = page, now if moved else self._moved
        self.stopped = self.child.stopped or (now - self._moved > QUIET and stopped(page.pid))
        overdue = self.local.look(page, stopped=self.stopped, paused=self.paused, now=now)
        if overdue is not None and not self._debugged():
            self.find(overdue)
        self._send_standing(now)

    def _newest(self) -> Page | None:
        """Return the page; None where the rank has never written one. One that cannot be read is as it last was:
        that is no progress, and never the absence of a duty to make some.
        """
        page = Page.read(memoryview(self.memory))
        if page is None or page.edition:
            return page
        torn = page if not self.page.edition else self.page
        torn.phase, torn.torn = torn.phase or "startup", True
        return torn

    def _debugged(self) -> bool:
        return traced(self.child.pid) or (self.page.pid != 0 and traced(self.page.pid))

    def _send_standing(self, now: float) -> None:
        """Send the rank's standing to rank0's guardian: when it turns quiet or goes on; while it is quiet, every PING
        seconds; while it is not, when it has entered or left a collective, as others may be in that one still.
        """
        quiet, passed = now - self._moved > QUIET, now - self._said
        at = (self.page.waiting, self.page.position)
        if quiet != self._quiet or (quiet and passed > PING) or (at != self._at and passed > QUIET):
            self._stand(quiet, self.paused or (quiet and self._debugged()))
            self._quiet, self._at, self._said = quiet, at, now

    def _stand(self, quiet: bool, paused: bool) -> None:
        facts: dict[str, object] = {name: getattr(self.page, name) for name in SHARED}
        facts |= {"quiet": quiet, "paused": paused, "stopped": self.stopped}
        if self.stopped or self.page.torn:  # it cannot even wait: in a collective it is as if it had not come
            facts["position"] = self.page.position - (self.page.waiting == EVERYONE)
            facts["waiting"] = NOBODY
        if self.hub is None:
            self.links.send(0, "status", facts)
        else:
            self._note(0, facts)

    def _note(self, rank: int, facts: dict[str, object]) -> None:
        one, page = self.graph.ranks[rank], Page()
        for name in SHARED:
            setattr(page, name, facts[name])
        one.page, one.quiet, one.paused = page, bool(facts["quiet"]), bool(facts["paused"])
        one.stopped = bool(facts["stopped"])  # its own guardian charges it for that

    def _watch_guardians(self, now: float) -> None:
        if now - self._pinged > PING:
            self._pinged = now
            self.links.send_all("ping")
            for link in list(self.links.ranks.values()):
                silent = now - link.heard
                if silent > self.settings.deadlines["guardian"]:
                    self.find(Failure("guardian", link.rank, f"the guardian of rank{link.rank} is silent"))

    # ── what comes ──────────────────────────────────────────────────────────────────────────────────

    def _signalled(self) -> None:
        try:
            numbers = self._wake[0].recv(256)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGUSR1:
                self.paused = not self.paused
                self.helpers.say(f"rank{self.rank}: deadlines are {'paused' if self.paused else 'in force again'}")
            elif number != signal.SIGCHLD and time.monotonic() - self._passed.get(number, 0.0) > TWICE:
                self._passed[number] = time.monotonic()
                self.asked = True
                self.child.send(number)

    def hear(self, rank: int, frame: dict[str, object] | None) -> None:
        """Act on a frame from another guardian, or on None: it is gone."""
        if self.left:
            return
        if frame is None:
            if rank not in self.met:
                return  # it gave up before it had heard that it was let in, and calls again
            one = self.graph.ranks[rank]
            known = self.rank == 0 and self.finding is not None and (rank in self.reported or self._best()[0] < LAST)
            if not (self.sealed or one.done or known):
                self.find(Failure("guardian", rank, f"the guardian of rank{rank} is gone"))
            self.reported.add(rank)
            one.done |= self.settings.observe
            return
        kind = frame.pop("kind")
        if kind == "posture":
            self.postures[rank] = (self.postures.get(rank, "") + str(frame["part"]))[:POSTURE]
        elif kind == "hello":
            self.met.add(rank)
            theirs = self.postures.pop(rank, "")
            if frame["digest"] != digest(self.settings.posture):
                odd = differences(self.settings.posture, theirs, rank)
                self.find(Failure("parity", rank, f"guardians differ: {odd}"))
            elif self.finding is not None:
                self.links.send(rank, "abort", self._abort(self.finding))
        elif kind == "status":
            self._note(rank, frame)
        elif kind == "done":
            self.graph.ranks[rank].done = True
        elif kind == "gone":
            self.reported.add(rank)
        elif kind == "abort":
            self.find(_finding(frame), int(str(frame["weight"])), source=rank)
        elif kind == "verdict":
            if self.finding is None:  # it met us after its ABORT had gone out
                self.find(_finding(frame), source=rank)
            self.finding, self.sealed = _finding(frame), True

    # ── what follows ────────────────────────────────────────────────────────────────────────────────

    def find(self, finding: Failure, weight: int | None = None, source: int = -1) -> None:
        """End the run: tell the other guardians, keep the evidence, kill the rank. After the first time, only note it.

        A rank that has ended by itself may be the cause: its peers see its connections close before its guardian looks.
        """
        if self.left:
            return
        seen = time.monotonic()
        if self.finding is None:
            self._see_end()
        if source < 0:
            seen = time.monotonic()  # what others say was before the end that has just been seen
        weight = weight_of(finding) if weight is None else weight
        if self.settings.observe:
            self._observe(finding, source)
            return
        self.findings.append((weight, seen, finding))
        if self.finding is not None:
            if source < 0:
                self.links.send_all("abort", self._abort(finding))
            return
        self.finding, self.lost_at = finding, time.monotonic()
        self._pass_on(finding, but=source)
        self._gather(finding, self._kill)

    def _gather(self, finding: Failure, then: Callable[[str], None]) -> None:
        """Have evidence gathered, and call `then` with it, in so many seconds at the latest."""
        page, child, memory = self.page, self.child.pid, memoryview(self.memory)
        living = self.child.status is None and not self.child.dying()
        seconds = evidence.limit(finding, page, self.environ) if living else STORE

        def work(write: Write) -> None:
            evidence.gather(write, finding, page, child, self.stacks, self.words, memory, self.environ)

        def came(text: str, whole: bool) -> None:
            then(text if whole else f"{text or finding.what}\n\nThis is not all: the rest did not come in time.\n")

        self.helpers.run(work, seconds, came, keep=(self.stacks, self.words.pipe))

    def _kill(self, text: str) -> None:
        self.child.send(signal.SIGKILL)

        def stored(path: str) -> None:
            self.kept = path

        self._store(text, self._names(), stored)

    def _names(self) -> Iterator[str]:
        """Return names for the file of evidence, to be tried in turn."""
        again = [self.settings.restart] if self.settings.restart != "0" else []
        more = [str(len(self._printed))] if len(self._printed) > 1 and self.settings.observe else []
        stem = ".".join([f"rank{self.rank}", *again, *more])
        return iter([f"{stem}{k}.evidence.txt" for k in ("", *(f"-{n}" for n in range(2, 100)))])

    def _store(self, text: str, names: Iterator[str], then: Callable[[str], None]) -> None:
        """Have evidence written, and call `then` with the file's path; with an empty one where that failed."""
        folder = self.settings.evidence
        self.helpers.run(
            lambda write: evidence.store(write, folder, names, text), STORE, lambda path, whole: then(path * whole)
        )

    def _await_end(self, now: float) -> None:
        """Wait for the rank's end; rank0's guardian also collects the failures that the others have seen."""
        if not self.gone and self.child.gone():
            self.gone = True
            self.links.send_all("gone")
        waited, others = now - self.lost_at, set(range(1, self.world))
        if self.hub is None or self.sealed:
            return
        met = self.reported | self.links.ranks.keys() >= others
        # a rank that says itself what it has raised does so before another's guardian can see that its own has died
        search = FAREWELL if self.settings.attached else SEARCH
        patience = GRACE if self._best()[0] < LAST else search
        if (waited > GRACE and self.reported >= others) or (met and waited > patience) or waited > FAREWELL:
            self.finding = self._best()[2]
            self.links.send_all("verdict", _fields(self.finding))
            self.sealed = True

    def _best(self) -> tuple[int, float, Failure]:
        """Return the failure that explains the others."""
        return min(self.findings, key=lambda found: found[:2])

    def _pass_on(self, finding: Failure, but: int) -> None:
        self.links.send_all("abort", self._abort(finding), but=but)

    def _abort(self, finding: Failure) -> dict[str, object]:
        return {**_fields(finding), "weight": weight_of(finding)}

    def _observe(self, finding: Failure, source: int) -> None:
        """Report a failure and let the run go on; each is reported once, however long it lasts."""
        thing = f"{finding.cause} {finding.culprit} {finding.what.rpartition(' in phase ')[2]}"
        if thing in self._printed:
            return
        self._printed.add(thing)
        line = f"rank{self.rank} would have been ended: {finding.what}"
        if source >= 0:
            self.helpers.say(line + _at(self.kept))
            return
        self._pass_on(finding, but=-1)
        names = self._names()

        def stored(path: str) -> None:
            self.kept = path or self.kept
            self.helpers.say(line + _at(path))

        self._gather(finding, lambda text: self._store(text, names, stored))

    def _see_end(self) -> None:
        """Find out if the rank, which nobody has killed yet, has ended by itself, or is about to."""
        status = self.child.status if self.child.reap() else self.child.dying()
        one = self.graph.ranks[self.rank]
        if one.done or status is None or (status == 0 and self.child.status is None):
            return
        self._signalled()  # its launcher may have asked for it
        if one.done:
            return
        self.page = self._newest() or self.page
        one.done = True
        self._stand(quiet=True, paused=False)
        if status == 0:
            self.links.send_all("done")
            return
        # of a launcher that has died ranks may die before it is reaped: its pipes, and its store, are closed by then
        parents = self._see_parents()
        self.orphaned |= parents is not None
        self.find(parents or by_itself(self.rank, status, where(self.page), asked=self.asked, how=self.child.how))
        if self.settings.observe:
            self.links.send_all("done")

    def _see_parents(self) -> Failure | None:
        """Return the failure if the launcher has ended, or the supervisor was killed."""
        if self.launcher.ended():
            return Failure("launcher", -1, f"the launcher of rank{self.rank} died")
        if self.supervisor.ended():
            return Failure("guardian", self.rank, f"the guardian of rank{self.rank} is gone")
        return None

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────

    def _over(self) -> bool:
        now = time.monotonic()
        if self.finding is None:
            if self.child.status is None:
                return False
            if self.hub is None:
                return bool(self.links.ranks) or self.settings.observe
            return all(one.done for one in self.graph.ranks)
        waited = now - self.lost_at
        patience = VERDICT if self.links.ranks or 0 in self.reported else FAREWELL
        explained = self.sealed or (self.hub is None and waited > patience)
        return explained and (self.gone or waited > KILL) and not self.helpers.busy

    def _leave(self) -> int:
        if self.findings and not self.sealed:  # rank0's guardian has not said what it was
            self.finding = self._best()[2]
        found, own = self.finding, self.child.status or 0
        if found is None or (self.graph.ranks[self.rank].done and own == 0):
            return own if own >= 0 else 128 - own
        status = status_of(found, self.rank, own)
        stood = "" if found.culprit == self.rank else f"; it stood {where(self.page)}"
        self.helpers.say(f"rank{self.rank} was ended: {found.what}{stood}{_at(self.kept)}")
        if self.settings.traces:
            path = os.path.join(self.settings.traces, f"rank{self.rank}.trace.jsonl")
            cause = cause_of(found, self.rank)

            def work(_: Write) -> None:
                evidence.mark(path, cause, status, found.what, found.culprit)

            self.helpers.run(work, STORE, _nothing)
        return status

    def _once(self, what: str) -> None:
        """Print one line for each kind of refusal, however often it comes."""
        if what not in self._printed and len(self._printed) < 100:
            self._printed.add(what)
            self.helpers.say(f"rank{self.rank}'s guardian: {what}")


def _at(path: str) -> str:
    return f"; evidence in {path}" if path else ""


def _fields(finding: Failure) -> dict[str, object]:
    return {"cause": finding.cause, "culprit": finding.culprit, "what": finding.what}


def _finding(frame: dict[str, object]) -> Failure:
    return Failure(str(frame["cause"]), int(str(frame["culprit"])), str(frame["what"]))


def _nothing(*_: object) -> None:
    """Do nothing: a handler must exist for the wake-up to be written."""


def main(arguments: Sequence[str], launcher: int) -> int:
    """Run a guardian, for `genlock guard`, below its supervisor. Return its exit status."""
    guardian = None
    try:
        settings = GuardianSettings(arguments, os.environ)
        if settings.parent and settings.parent != launcher:
            raise Wrong("the launcher has died before the rank was started")
        guardian = Guardian(settings, dict(os.environ))
        guardian.start(launcher)
    except (Wrong, OSError) as error:
        say_in_time(f"genlock guard: {error}")
        return USAGE
    try:
        return guardian.run()
    finally:
        guardian.child.end()
        sys.stderr.flush()
