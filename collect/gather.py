"""Looks twice at each rank of a job on this node, and packs what it finds.

What is alike at both looks stands still; a job that went on meanwhile hangs nowhere, and the archive says so. Whatever
could not be had is named, rank by rank, with what would have helped. Left out: the ways of looking (`stacks`, `dumps`,
`logs`, `ras`), and the verdict (`conformance`).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from . import dumps, ras
from . import logs as ends
from .advice import next_time
from .archive import Archive
from .bounded import Outcome, Runner, Step
from .ranks import Rank, describe, environment_shown, find
from .redact import Redactor
from .stacks import SECONDS as STACK_SECONDS
from .stacks import stacks
from .staging import Staging

FORMAT = 1
SHARE = 0.85
"""Part of the whole time that looking may take; the rest is for packing."""
HURRY = 1.2
"""Seconds for packing, once interrupted."""
APART = 10.0
"""Seconds between the two looks at a rank: a job that is only slow moves meanwhile."""
SECONDS = 60.0
STATE_SECONDS = 3.0
FILES = re.compile(r"nfs|^rpc_|fuse|request_wait_answer|folio_|page_bit|io_schedule|ceph|ptlrpc|cl_sync_io|gpfs")
"""Functions of the kernel in which a process waits for a file system."""


@dataclass
class OfRank:
    """Holds what was found of a rank."""

    rank: Rank
    states: list[str] = field(default_factory=list)
    stacks: list[Outcome] = field(default_factory=list)
    records: list[Outcome] = field(default_factory=list)
    logs: Outcome = field(default_factory=Outcome)
    ended: bool = False
    """True if its process ended while it was looked at."""

    @property
    def stopped(self) -> bool:
        """Return True if a signal had stopped it at both looks."""
        return len(self.states) > 1 and set(self.states) == {"T"}

    @property
    def moved(self) -> bool:
        """Return True if it issued operations between the looks."""
        positions = {one.found.get("position", "") for one in self.records}
        return len(self.records) > 1 and "" not in positions and len(positions) > 1

    @property
    def still(self) -> bool:
        """Return True if it is certain that it issued nothing between the looks."""
        positions = {one.found.get("position", "") for one in self.records}
        return not self.moved and (self.slept or (len(self.records) > 1 and "" not in positions))

    @property
    def slept(self) -> bool:
        """Return True if its main thread never ran between the looks."""
        switches = {one.found.get("switches", "") for one in self.stacks}
        return len(self.stacks) > 1 and "" not in switches and len(switches) == 1

    @property
    def elsewhere(self) -> bool:
        """Return True if it lay in one sleep all the time, or waited for a file system: no wait for others is either.

        A sleep of which a thread wakes up now and then may be a library's way to wait.
        """
        kernel = [one.found.get("kernel", "") for one in self.stacks]
        if len(kernel) < 2:
            return False
        slept = self.slept and all("nanosleep" in name for name in kernel)
        return slept or (set(self.states) == {"D"} and all(FILES.search(name) for name in kernel))

    @property
    def shown(self) -> bool:
        """Return True if something says where it stands."""
        return any(one.files for one in (*self.stacks, *self.records)) or self.stopped

    def missing(self) -> Iterator[str]:
        """Yield what could not be had of it, in words."""
        if self.ended:
            yield "its process ended meanwhile"
            return
        for outcomes in (self.stacks, self.records, [self.logs]):
            yield from dict.fromkeys(one.missing for one in outcomes if one.missing)


@dataclass
class Collected:
    """Holds what was collected, and where it is."""

    path: Path
    ranks: list[OfRank]
    general: list[str]
    """Says what could not be had of the job as a whole."""
    advice: list[str]
    interrupted: bool
    seconds: float

    @property
    def complete(self) -> bool:
        """Return True if each rank found shows where it stands."""
        return not self.interrupted and all(one.shown for one in self.ranks)


def collect(
    named: Mapping[int, int | None],
    out: Path,
    *,
    seconds: float = SECONDS,
    apart: float = APART,
    asked_by: signal.Signals | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Collected:
    """Collect what the ranks on this node show, into an archive: `out`, a .zip, or a new one in that folder.

    `named` are processes, with their rank where that is known; without any, ranks are looked for. Raises UsageError
    where there are none, OSError where the archive cannot be written.
    """
    begun = time.monotonic()
    runner = Runner(seconds * SHARE)
    with runner.interruptible():
        ranks, general = find(runner, named)
        redactor = _redactor(ranks)
        archive = Archive(_path(out, redactor))
        staging = Staging(redactor)
        try:
            found = [OfRank(rank) for rank in ranks]
            for one in found:
                tell(redactor.name(describe(one.rank)))
            asked = _look(found, runner, staging, apart, asked_by, tell)
            if {one.rank.world for one in found} == {len(found)}:
                general.clear()  # nobody is missing here
            general += list(dict.fromkeys(one.missing for one in asked if one.missing))
            advice = list(_advice(found, asked))
            looked = time.monotonic()
            done = Collected(archive.path, found, general, advice, runner.interrupted, looked - begun)
            tell("packing")

            def over() -> bool:
                now = time.monotonic()
                return now > begun + seconds or (runner.interrupted and now > looked + HURRY)

            unpacked = archive.pack(staging.files(), over, lambda left: _manifest(done, redactor, asked, left, apart))
            general += [f"there was no time to pack {name}" for name in unpacked]
            done.interrupted |= runner.interrupted
            return done
        except BaseException:
            archive.discard()
            raise
        finally:
            staging.remove()


def _look(
    found: Sequence[OfRank],
    runner: Runner,
    staging: Staging,
    apart: float,
    asked_by: signal.Signals | None,
    tell: Callable[[str], None],
) -> list[Outcome]:
    """Look twice at each rank, and return what NCCL's RAS answered."""
    ranks = [one.rank for one in found]
    asked: list[Outcome] = []
    for look in (1, 2):
        tell(f"look {look} of 2")
        steps = [Step("ras", ras.SECONDS, partial(ras.ask, ranks, look, staging))]
        for one in found:
            work = partial(stacks, one.rank, look, staging, asked_by)
            steps.append(Step("state", STATE_SECONDS, partial(_state, one.rank)))
            steps.append(Step("stacks", STACK_SECONDS, work, alone=asked_by is not None))
            steps.append(Step("record", dumps.SECONDS, partial(dumps.record, one.rank, staging, last=look == 2)))
        outcomes = runner.run(steps)
        asked.append(outcomes[0])
        for one, state, stack, record in zip(found, outcomes[1::3], outcomes[2::3], outcomes[3::3], strict=True):
            one.states.append(state.found.get("state", ""))
            one.stacks.append(stack)
            one.records.append(record)
        if look == 1:
            runner.pause(apart)
    tell("logs")
    outcomes = runner.run([Step("logs", ends.SECONDS, partial(ends.logs, rank, staging)) for rank in ranks])
    ends.name_owners(ranks, outcomes, staging)
    for one, outcome in zip(found, outcomes, strict=True):
        one.logs, one.ended = outcome, not one.rank.process.alive
    return asked


def _state(rank: Rank) -> Outcome:
    return Outcome(found={"state": rank.process.state})


def _redactor(ranks: Sequence[Rank]) -> Redactor:
    import pwd

    users = {os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    for rank in ranks:
        with contextlib.suppress(OSError, KeyError):
            account = pwd.getpwuid(rank.process.user)
            users |= {account.pw_name, Path(account.pw_dir).name}
        users.add(Path(rank.seen.environment.get("HOME", "")).name)
    hosts = {platform.node(), *(host for rank in ranks for host in rank.seen.hosts)}
    secrets = {secret for rank in ranks for secret in rank.seen.secrets}
    # what is the same on all nodes of the job, and is not known to whoever reads the archive
    return Redactor("\0".join(ranks[0].seen.job), users, hosts, secrets)


def _path(out: Path, redactor: Redactor) -> Path:
    if out.suffix == ".zip" and not out.is_dir():
        return out
    out.mkdir(parents=True, exist_ok=True)
    return out / f"genlock-{redactor.host(platform.node())}-{time.strftime('%Y%m%d-%H%M%S')}.zip"


def _advice(found: Sequence[OfRank], asked: Sequence[Outcome]) -> Iterator[str]:
    there = [one for one in found if not one.ended]
    keys = [key for one in there for outcome in one.stacks for key in outcome.advice if outcome.missing]
    keys += [key for one in there for outcome in (*one.records, one.logs) for key in outcome.advice]
    keys += [key for outcome in asked for key in outcome.advice]
    yield from next_time(keys, dumps.version(found[0].rank.seen.torch))


def _manifest(
    done: Collected, redactor: Redactor, asked: Sequence[Outcome], left: Sequence[str], apart: float
) -> bytes:
    """Return what the archive says of itself; `traces.importers.collected` reads it."""
    about: dict[str, Any] = {
        "genlock_collect": FORMAT,
        "genlock": __version__,
        "host": redactor.host(platform.node()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(done.seconds, 1),
        "apart": apart,
        "interrupted": done.interrupted,
        "ranks": [_of_rank(one) for one in done.ranks],
        "ras": [outcome.files for outcome in asked],
        "missing": done.general,
        "not_packed": list(left),
        "next_time": done.advice,
    }
    text = json.dumps(about, indent=1)
    return redactor.text(text.encode()) + b"\n"


def _of_rank(one: OfRank) -> dict[str, Any]:
    rank = one.rank
    torch = dumps.version(rank.seen.torch)
    return {
        "rank": rank.number,
        "known_by": rank.by,
        "certain": rank.certain,
        "world": rank.world,
        "pid": rank.seen.pid,
        "program": rank.seen.program,
        "torch": ".".join(map(str, torch)) if torch != (0, 0) else "",
        "states": one.states,
        "stopped": one.stopped,
        "ended": one.ended,
        "moved": one.moved,
        "still": one.still,
        "kernel": [outcome.found.get("kernel", "") for outcome in one.stacks],
        "elsewhere": one.elsewhere,
        "files": [file for outcome in (*one.stacks, *one.records, one.logs) for file in outcome.files],
        "missing": list(one.missing()),
        "environment": environment_shown(rank.seen),
    }
