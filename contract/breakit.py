"""The break-it matrix: every row on real processes, its prediction beside what happened and what replay says of it.

A row is `genlock run --inject …`, in a process of its own and in a folder of its own, forked from one that has torch
loaded (`impl.warm`) but for the rows that are `cold`. Its processes are followed by their ids, so that one that is
left behind is seen. Left out: how a fault is made (`impl.inject`), and the lines of the contract that rest on the
rows (`contract.rows`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
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

Layout = Literal["one agent", "one per rank"]
ONE: Layout = "one agent"
EACH: Layout = "one per rank"
LAYOUTS = (ONE, EACH)
PROGRAM = ("genlock.__main__", "genlock.cli.app")
"""What a row runs, loaded."""
STALLED, STARTING, COLD_START = 2.0, 6.0, 40.0
"""Seconds: deadlines of a phase, and of the start, in runs in which a rank stalls."""
LIMIT = 100.0
"""Seconds after which a run is ended from here, and counts as a rank left behind."""
SIDE_BY_SIDE = 3
"""Runs at once; of those in which a rank stalls most do nothing but wait."""


class Row(NamedTuple):
    """One run. `ids` are refused one after the other in it, or are the one fault that is injected by `settings`."""

    ids: tuple[str, ...]
    settings: str
    ranks: int
    exit: int
    culprits: tuple[int, ...] | None = ()
    """Whom replay must name; None: whoever it names, since no rank is to blame."""
    layout: Layout = ONE
    cold: bool = False
    """Started as a user would, interpreters and all."""

    @property
    def injection(self) -> str:
        return f"{self.ids[0]}{self.settings}"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one id in one run. `seconds` are from the injection, where its moment is known, else from the
    start, to the exit of the last rank and guardian."""

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
    """Whether `seconds` count from the injection."""


REFUSED = tuple(name for name, fault in FAULTS.items() if fault.refused)
KINDS = ("kill", "stop", "loop", "gil")
STRUCK = 2
"""The chunk in which OM-13 strikes."""
PHASES = ("startup", "idle", "header", "payload", "generate", "ack", "shutdown")


def _poisoned(ranks: int, layout: Layout) -> Iterator[Row]:
    """Where two ranks are all there are, and what they say of each other differs, no third tells who is odd: both are
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
"""Where OM-13 strikes: a phase, and whether inside its collective."""


def _stricken(kind: str, place: tuple[str, str], rank: int, ranks: int, layout: Layout, *, cold: bool = False) -> Row:
    status = {"kill": Exit.PEER_DIED, "guardian": Exit.PEER_DIED, "launcher": -signal.SIGKILL}.get(kind, Exit.DEADLINE)
    culprits = None if kind == "launcher" else (rank,)
    phase, where = place
    settings = f",kind={kind},rank={rank},phase={phase},chunk={STRUCK}" + f",where={where}" * bool(where)
    return Row(("OM-13",), settings, ranks, int(status), culprits, layout, cold)


def _strikes() -> Iterator[Row]:
    """Each kind at each place on rank0 and on a worker; which worker, the number of ranks and the layout go round."""
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
    """Each kind at each place on each rank of 2, 3 and 4, in either layout."""
    for kind in (*KINDS, "guardian", "launcher"):
        for place in PLACES:
            for ranks in (2, 3, 4):
                for rank in range(1 if place[0] == "shutdown" else ranks):
                    yield from (_stricken(kind, place, rank, ranks, layout) for layout in LAYOUTS)


def plan(*, full: bool = False) -> list[Row]:
    """Every row with 2, 3 and 4 ranks in either layout. OM-13: each kind at each place on rank0 and a worker, with 2,
    3 and 4 ranks and the layouts in turn; with `full` on each rank of each number of ranks in either layout."""
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


def run_rows(rows: Sequence[Row], tell: Callable[[str], None], out: Path) -> list[Outcome]:
    """Run the rows, some at a time, each into a folder under `out`; what came of them, in order.

    Raises UsageError where `out` has the runs of an earlier matrix.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError("there are runs in this folder already", where=str(out), do="choose another --out")
    done: list[int] = []

    def one(number: int) -> list[Outcome]:
        found = _run(rows[number], out / f"{number:03}-{rows[number].ids[0]}", zygote)
        done.append(number)
        tell(f"{len(done)} of {len(rows)} runs")
        return found

    with Zygote(PROGRAM) as zygote, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return [outcome for found in pool.map(one, range(len(rows))) for outcome in found]


def _run(row: Row, out: Path, zygote: Zygote) -> list[Outcome]:
    out.mkdir(parents=True)
    scenario = out / "scenario.json"
    scenario.write_bytes(msgspec.json.encode(_scenario(row)))
    flags = [str(scenario), f"--ranks={row.ranks}", f"--out={out}", *["--agent-per-rank"] * (row.layout == EACH)]
    if len(row.ids) == 1:
        flags.append(f"--inject={row.injection}")
    flags += [f"--deadline={text}" for text in _deadlines(row)]
    begin = time.monotonic()
    process = _start([sys.executable, "-m", "genlock", "run", *flags], out / "said.txt", None if row.cold else zygote)
    last, left = _follow(process)
    status = process.wait()
    moment = struck(out)
    seconds = last - (moment.time_ns / 1e9 if moment else begin)
    return [_outcome(row, id, out, status, seconds, moment is not None, left) for id in row.ids]


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
    """Short where they have to pass, as they are by default where nothing may run into them."""
    if row.exit == Exit.DEADLINE:
        starting = "phase=startup" in row.settings
        yield f"startup={(COLD_START if row.cold else STARTING) if starting else 120}"
        yield from (f"{phase}={STALLED}" for phase in PHASES if phase != "startup" and not starting)


def _follow(process: subprocess.Popen[bytes] | Process) -> tuple[float, list[int]]:
    """Wait for all processes of a run; when the last of its ranks and guardians ended, and who had to be killed."""
    handles: dict[int, int] = {}
    ranks: set[int] = set()
    last, until = time.monotonic(), time.monotonic() + LIMIT
    while (process.poll() is None or handles) and time.monotonic() < until:
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
    """Whether a process is a rank or a guardian."""
    named = read(f"/proc/{pid}/comm").strip() in (GUARDIAN, RANK)
    return named or "\0genlock.impl.jobs.rank_main\0" in read(f"/proc/{pid}/cmdline")


def _descendants(*pids: int) -> set[int]:
    found: set[int] = set()
    more = list(pids)
    while more:
        new = [child for child in children(more.pop()) if child not in found]
        found.update(new)
        more += new
    return found


def _outcome(row: Row, id: str, out: Path, status: int, seconds: float, injected: bool, left: list[int]) -> Outcome:
    said = [line for line in (out / "said.txt").read_text(errors="replace").splitlines() if line]
    try:
        found = replay([out]).diagnosis
        verdict, culprits = str(found.verdict), found.named
    except UnreadableInput as error:
        verdict, culprits = f"unreadable: {error}", ()
    agrees = status == row.exit and not left and verdict == ("divergent" if row.exit else "conforming")
    agrees = agrees and (row.culprits is None or culprits == row.culprits)
    told = _told(row, id, said)
    return Outcome(
        id,
        row.ranks,
        row.layout,
        id if len(row.ids) > 1 else row.injection,
        _predicted(row),
        f"exit {status}, {f'LEFT BEHIND: {left}' if left else 'nothing left'}: {told or 'NOT NAMED'}",
        round(seconds, 3),
        verdict,
        culprits,
        agrees and bool(told),
        injected,
    )


def _predicted(row: Row) -> str:
    if row.exit == Exit.OK:
        return "refused, and the run goes on: exit 0" if len(row.ids) > 1 else "drained: exit 0"
    named = "the launcher" if row.culprits is None else ", ".join(f"rank{rank}" for rank in row.culprits)
    return f"all ranks end: exit {int(row.exit)}, culprit {named}"


def _told(row: Row, id: str, said: Sequence[str]) -> str:
    """The line that tells the user what it was; empty where there is none."""
    if len(row.ids) > 1:
        refusals = [line for line in said if "refused a chunk, nothing was sent" in line]
        return refusals[row.ids.index(id)] if len(refusals) == len(row.ids) else ""
    if row.exit < 0:  # who would have passed it on was killed
        return "the launcher died, and its ranks with it"
    if row.exit == Exit.OK:
        return next((line for line in said if "draining" in line), "")
    lines = [line for line in said if line.startswith("rank")]
    if id != "OM-13":
        return next(iter(lines), "")
    named = [f"rank{rank}" for rank in row.culprits or ()]
    return next((line for line in lines if any(name in line.partition(" was ended: ")[2] for name in named)), "")
