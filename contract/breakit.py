"""Runs the break-it matrix: every row on real processes, its prediction beside what happened and what replay says.

A row is `genlock run --inject …`, in a process of its own and in a folder of its own, forked from one that has torch
loaded (`impl.jobs.zygote`) but for the rows that are `cold`. Its processes are followed by their ids, so that one that
is left behind is seen. The traces say by typed facts which message has to tell the user what it was. Left out: how a
fault is made (`impl.faults.inject`), and the lines of the contract that rest on the rows (`breakit_findings`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ..conformance.replay import replay
from ..errors import Exit, UnreadableInput, UsageError
from ..guardian.child import children, read
from ..impl.faults.process_faults import struck
from ..impl.jobs.zygote import GUARDIAN, RANK, Process, Zygote
from ..impl.rank.parent_death import die_with_parent
from ..impl.scenario import FAULTS, INSIDE, Chunk, Heartbeat, Scenario, Step, Wait, default
from ..traces.format import Trace, find
from ..traces.format import read as read_trace
from ..traces.outcome import Code

Layout = Literal["one agent", "one per rank"]
ONE: Layout = "one agent"
EACH: Layout = "one per rank"
LAYOUTS = (ONE, EACH)
PROGRAM = ("genlock.__main__", "genlock.cli.app")
"""Modules that a row runs, loaded."""
STALLED, STARTING, COLD_START = 2.0, 6.0, 40.0
"""Deadlines in seconds, of a phase and of the start, in runs in which a rank stalls."""
LIMIT = 100.0
"""After so many seconds a run is ended from here, and counts as a rank left behind."""
SIDE_BY_SIDE = 3
"""So many runs go on at once; of those in which a rank stalls most do nothing but wait."""


class Row(NamedTuple):
    """Describes one run. `ids` are refused one after the other in it, or are the one fault that `settings` inject."""

    ids: tuple[str, ...]
    settings: str
    ranks: int
    exit: int
    culprits: tuple[int, ...] | None = ()
    """The ranks that replay must name; None: any, since no rank is to blame."""
    layout: Layout = ONE
    cold: bool = False
    """Started as a user would, interpreters and all."""

    @property
    def injection(self) -> str:
        return f"{self.ids[0]}{self.settings}"


class RowResult(msgspec.Struct, frozen=True):
    """Reports what came of one id in one run.

    `seconds` are from the injection, where its moment is known, else from the start, to the exit of the last rank and
    guardian.
    """

    id: str
    ranks: int
    layout: str
    injection: str
    predicted: str
    happened: str
    seconds: float
    verdict: str
    culprits: tuple[int, ...]
    agrees: bool
    injected: bool
    """True where `seconds` count from the injection."""
    predicted_culprits: tuple[int, ...] | None = None
    """The ranks that replay had to name; None: any."""


REFUSED = tuple(name for name, fault in FAULTS.items() if fault.refused)
KINDS = ("kill", "stop", "loop", "gil")
STRUCK = 2
"""OM-13 strikes in this chunk."""
PHASES = ("startup", "idle", "header", "payload", "generate", "ack", "shutdown")


def _poisoned(ranks: int, layout: Layout) -> Iterator[Row]:
    """Yield the rows of faults that poison a run.

    Where two ranks are all there are, and what they say of each other differs, no third tells who is odd: both are
    named. A miscount and a stray collective are on the rank that makes them, weights are held against those of the
    rank's own start-up, and a header of before can only have come from rank0 again."""
    last, each = ranks - 1, layout == EACH
    kinds = ("stale", "duplicate", "truncated")

    def odd(rank: int) -> tuple[int, ...]:
        return (0, 1) if ranks == 2 else (rank,)

    for id in ("OM-04", "OM-05", "C-01", "C-04"):
        yield Row((id,), ",rank=1", ranks, Exit.PARITY, odd(1), layout)
    yield Row(("OM-03",), f",rank={last},kind={('more', 'fewer')[each]}", ranks, Exit.CONTRACT, (last,), layout)
    yield Row(("OM-06",), f",rank={last}", ranks, Exit.CONTRACT, (last,), layout)
    yield Row(("OM-11",), f",rank={last}", ranks, Exit.CONTRACT, odd(last), layout)
    yield Row(("OM-12",), f",rank={last}", ranks, Exit.CONTRACT, (last,), layout)
    kind = kinds[(ranks + each) % 3]
    culprits = odd(0) if kind == "truncated" else (0,)
    yield Row(("OM-16",), f",kind={kind}", ranks, Exit.CONTRACT, culprits, layout)


PLACES = (*((phase, "") for phase in PHASES), *((phase, "inside") for phase in INSIDE))
"""Lists where OM-13 strikes: a phase, and `inside` for inside its collective."""


def _stricken(kind: str, place: tuple[str, str], rank: int, ranks: int, layout: Layout, *, cold: bool = False) -> Row:
    status = {"kill": Exit.PEER_DIED, "guardian": Exit.PEER_DIED, "launcher": -signal.SIGKILL}.get(kind, Exit.DEADLINE)
    culprits = None if kind == "launcher" else (rank,)
    phase, where = place
    settings = f",kind={kind},rank={rank},phase={phase},chunk={STRUCK}" + f",where={where}" * bool(where)
    return Row(("OM-13",), settings, ranks, int(status), culprits, layout, cold)


def _strikes() -> Iterator[Row]:
    """Yield each kind at each place on rank0 and a worker; which worker, how many ranks and the layout go round."""
    for k, kind in enumerate(KINDS):
        for p, place in enumerate(PLACES):
            for worker in range(1 if place[0] == "shutdown" else 2):
                turn = k + p + worker
                ranks = (2, 3, 4)[turn % 3]
                hit = 1 + (k + p // 3) % (ranks - 1) if worker else 0
                yield _stricken(kind, place, hit, ranks, LAYOUTS[turn % 2])
    for n, kind in enumerate(("guardian", "launcher")):
        for ranks in (2, 3, 4):
            yield _stricken(kind, PLACES[1 + 3 * n], ranks - 2, ranks, LAYOUTS[(n + ranks) % 2])


def _every_strike() -> Iterator[Row]:
    """Yield each kind at each place on each rank of 2, 3 and 4, in either layout."""
    for kind in (*KINDS, "guardian", "launcher"):
        for place in PLACES:
            for ranks in (2, 3, 4):
                for rank in range(1 if place[0] == "shutdown" else ranks):
                    yield from (_stricken(kind, place, rank, ranks, layout) for layout in LAYOUTS)


def plan(*, full: bool = False) -> list[Row]:
    """Return every row with 2, 3 and 4 ranks in either layout.

    OM-13: each kind at each place on rank0 and a worker, with 2, 3 and 4 ranks and the layouts in turn; with `full` on
    each rank of each number of ranks in either layout.
    """
    rows = [_stricken("stop", ("startup", ""), 1, 2, ONE, cold=True)]  # the longest first
    rows += [_stricken("kill", ("idle", ""), 0, 3, layout, cold=True) for layout in LAYOUTS]
    for n, layout in enumerate(LAYOUTS):
        for ranks in (2, 3, 4):
            rows.append(Row(REFUSED, "", ranks, Exit.OK, layout=layout))
            phase = ("ack", "generate", "idle")[(ranks + n) % 3]
            rows.append(Row(("OM-15",), f",phase={phase}", ranks, Exit.OK, layout=layout))
            rows += _poisoned(ranks, layout)
    rows += _every_strike() if full else _strikes()
    return rows


def run_rows(rows: Sequence[Row], tell: Callable[[str], None], out: Path) -> list[RowResult]:
    """Run the rows, some at a time, each into a folder under `out`; returns what came of them, in order.

    Raises UsageError where `out` has the runs of an earlier matrix.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError("there are runs in this folder already", where=str(out), do="choose another --out")
    done: list[int] = []

    stop = threading.Event()

    def one(number: int) -> list[RowResult]:
        results = _run(rows[number], out / f"{number:03}-{rows[number].ids[0]}", zygote, stop)
        done.append(number)
        tell(f"{len(done)} of {len(rows)} runs")
        return results

    with Zygote(PROGRAM) as zygote, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            return [result for results in pool.map(one, range(len(rows))) for result in results]
        except BaseException:  # Ctrl-C: what runs ends now, not when it would have
            stop.set()
            zygote.kill()
            raise


def _run(row: Row, out: Path, zygote: Zygote, stop: threading.Event) -> list[RowResult]:
    out.mkdir(parents=True)
    scenario = out / "scenario.json"
    scenario.write_bytes(msgspec.json.encode(_scenario(row)))
    flags = [str(scenario), f"--ranks={row.ranks}", f"--out={out}", *["--agent-per-rank"] * (row.layout == EACH)]
    if len(row.ids) == 1:
        flags.append(f"--inject={row.injection}")
    flags += [f"--deadline={text}" for text in _deadlines(row)]
    begin = time.monotonic()
    process = _start([sys.executable, "-m", "genlock", "run", *flags], out / "said.txt", None if row.cold else zygote)
    last, left = _follow(process, stop)
    status = process.wait()
    moment = struck(out)
    seconds = last - (moment.time_ns / 1e9 if moment else begin)
    return [_result(row, id, out, status, seconds, moment is not None, left) for id in row.ids]


def _start(words: Sequence[str], said: Path, zygote: Zygote | None) -> subprocess.Popen[bytes] | Process:
    if zygote is not None:
        return zygote.start(words, said)
    with said.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, preexec_fn=partial(die_with_parent, os.getpid()))


def _scenario(row: Row) -> Scenario:
    if row.ids == ("OM-13",):  # workers wait for the header of the chunk in which it strikes
        return Scenario((Heartbeat(), Chunk(), Wait(0.2), *[Chunk()] * (STRUCK - 1)))
    if len(row.ids) == 1:
        return default(4)
    steps: list[Step] = [Chunk()]
    for id in row.ids:
        steps += [Chunk(spoil=id), Heartbeat(), Chunk(prompt=id)]
    return Scenario(tuple(steps))


def _deadlines(row: Row) -> Iterator[str]:
    """Yield deadlines: short where they have to pass, the default where nothing may run into them."""
    if row.exit == Exit.DEADLINE:
        starting = "phase=startup" in row.settings
        yield f"startup={(COLD_START if row.cold else STARTING) if starting else 120}"
        yield from (f"{phase}={STALLED}" for phase in PHASES if phase != "startup" and not starting)


def _follow(process: subprocess.Popen[bytes] | Process, stop: threading.Event) -> tuple[float, list[int]]:
    """Wait for all processes of a run.

    Returns when the last of its ranks and guardians ended, and the processes that had to be killed.
    """
    handles: dict[int, int] = {}
    ranks: set[int] = set()
    last, until = time.monotonic(), time.monotonic() + LIMIT
    while (process.poll() is None or handles) and time.monotonic() < until and not stop.is_set():
        for pid in _descendants(process.pid, *handles):
            if pid not in handles:
                with contextlib.suppress(OSError):
                    handles[pid] = os.pidfd_open(pid)
            if _of_a_rank(pid):
                ranks.add(pid)
        gone = select.select(list(handles.values()), [], [], 0.05)[0]
        for pid in [pid for pid, handle in handles.items() if handle in gone]:
            os.close(handles.pop(pid))
            last = time.monotonic() if pid in ranks else last
    for handle in handles.values():
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    if process.poll() is None:
        process.kill()
    process.wait()
    return last, sorted(handles)


def _of_a_rank(pid: int) -> bool:
    """Return True for a process that is a rank or a guardian."""
    named = read(f"/proc/{pid}/comm").strip() in (GUARDIAN, RANK)
    return named or "\0genlock.impl.jobs.rank_main\0" in read(f"/proc/{pid}/cmdline")


def _descendants(*pids: int) -> set[int]:
    below: set[int] = set()
    more = list(pids)
    while more:
        new = [child for child in children(more.pop()) if child not in below]
        below.update(new)
        more += new
    return below


def _result(row: Row, id: str, out: Path, status: int, seconds: float, injected: bool, left: list[int]) -> RowResult:
    traces: list[Trace] = []
    try:
        traces = [read_trace(path) for path in find(out)]
        diagnosis = replay([out]).diagnosis
        verdict, culprits = str(diagnosis.verdict), diagnosis.named
    except UnreadableInput as error:
        verdict, culprits = f"unreadable: {error}", ()
    agrees = status == row.exit and not left and verdict == ("divergent" if row.exit else "conforming")
    agrees = agrees and (row.culprits is None or culprits == row.culprits)
    message = message_of(row, id, traces)
    named = bool(message) and (row.exit < 0 or message in (out / "said.txt").read_text(errors="replace"))
    return RowResult(
        id,
        row.ranks,
        row.layout,
        id if len(row.ids) > 1 else row.injection,
        _predicted(row),
        f"exit {status}, {f'LEFT BEHIND: {left}' if left else 'nothing left'}: {message if named else 'NOT NAMED'}",
        round(seconds, 3),
        verdict,
        culprits,
        agrees and named,
        injected,
        row.culprits,
    )


def _predicted(row: Row) -> str:
    if row.exit == Exit.OK:
        return "refused, and the run goes on: exit 0" if len(row.ids) > 1 else "drained: exit 0"
    named = "the launcher" if row.culprits is None else ", ".join(f"rank{rank}" for rank in row.culprits)
    return f"all ranks end: exit {int(row.exit)}, culprit {named}"


def message_of(row: Row, id: str, traces: Sequence[Trace]) -> str:
    """Return the message that has to tell the user what it was; empty where the traces have none."""
    if len(row.ids) > 1:
        events = (event for trace in traces if trace.rank == 0 for event in trace.events)
        refusals = [e.outcome.text for e in events if e.outcome is not None and e.outcome.code is Code.PREFLIGHT]
        return refusals[row.ids.index(id)] if len(refusals) == len(row.ids) else ""
    ends = [(trace.rank, trace.end) for trace in traces if trace.end is not None]
    if row.exit < 0:  # who would have passed it on was killed
        return "the launcher died, and its ranks with it"
    if row.exit == Exit.OK:
        drained = any(event.transition == "drain" for trace in traces for event in trace.events)
        return next((end.message for rank, end in ends if drained and rank == 0), "")
    broken = [(rank, end) for rank, end in ends if end.cause != "stopped"]
    if id == "OM-13":  # those that name the rank first, those that have only lost somebody last
        culprits = row.culprits or ()
        broken.sort(key=lambda one: (one[1].culprit not in culprits, one[0] not in culprits))
    return next((end.message for _, end in broken), "")
