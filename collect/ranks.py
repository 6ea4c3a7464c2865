"""Finds the ranks of a job among the processes of a node.

A rank is known by RANK, or its like, in the environment that it was started with; by the trace that it writes, where it
is recorded; by its title, where it is an engine's worker; or by the order in which one process started them, as
`mp.spawn` does. The last two are conventions, and what is found says so. Left out: what is collected of them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import Unfinished, UsageError
from .bounded import Outcome, Runner, Step
from .process import Process, every
from .redact import SECRET, nodes_in, secrets_in

VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "PMIX_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
"""Pairs of variables with a rank and the number of ranks, the surest first."""
MATTERS = re.compile(
    r"^(?:TORCH_|TORCHELASTIC_|TORCHCOMM_|NCCL_|RCCL_|GLOO_|CUDA_(?:VISIBLE|LAUNCH|DEVICE)|UCX_|FI_|VLLM_|SGLANG_"
    r"|OMPI_COMM_WORLD_|PMIX?_(?:RANK|SIZE)$|GENLOCK_(?:PAGE|STACKS|SPARED)$|(?:LOCAL_|GROUP_|NODE_|ROLE_)?RANK$"
    r"|(?:LOCAL_)?WORLD_SIZE$|MASTER_(?:ADDR|PORT)$|OMP_NUM_THREADS$|PYTHON(?:FAULTHANDLER|UNBUFFERED)$"
    r"|SLURM_(?:PROCID|NTASKS|LOCALID|NODEID|NNODES|JOB_ID)$|(?:HIP|NVIDIA)_VISIBLE_DEVICES$|XDG_CACHE_HOME$|HOME$)"
)
"""Variables that are looked at. Those that say nothing to others (`PRIVATE`) go into no archive."""
PRIVATE = ("HOME", "XDG_CACHE_HOME", "GENLOCK_PAGE", "GENLOCK_STACKS")
TRACE = re.compile(r"/rank(\d{1,7})\.trace\.jsonl$")
_TITLE = re.compile(r"^(?:VLLM::|sglang::)\S*?((?:_?(?:DP|PP|TP|EP)\d{1,5})+)", re.IGNORECASE)
_AXIS = re.compile(r"(DP|PP|TP|EP)(\d{1,5})", re.IGNORECASE)
PROBE_SECONDS = 5.0
MAX_STUCK = 8
"""So many processes that cannot be looked at are left out one by one."""


@dataclass
class Seen:
    """Holds what a look at a process shows, as far as it matters here."""

    pid: int
    start: int
    parent: int
    torch: str = ""
    """Folder of the torch that it has loaded."""
    python: bool = False
    program: str = ""
    """Name of its program, without what it is given."""
    axes: dict[str, int] = field(default_factory=dict)
    """Place among an engine's workers."""
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    trace: int | None = None
    """Rank of the trace that it writes."""
    nccl: bool = False
    """True if it has loaded NCCL."""
    connected: bool = False
    """True if it has a connection of TCP."""
    spawned: bool = False
    """True if Python's multiprocessing started it."""

    def number(self, names: tuple[str, str]) -> tuple[int, int | None] | None:
        """Return the rank and the number of ranks that two variables hold; None where they hold none."""
        rank, world = (self.environment.get(name, "") for name in names)
        return (int(rank), int(world) if world.isdecimal() else None) if rank.isdecimal() else None

    @property
    def job(self) -> tuple[str, ...]:
        """Return what the ranks of one job have in common."""
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "SLURM_JOB_ID")
        return tuple(self.environment.get(name, "") for name in names)


@dataclass
class Rank:
    """Holds a rank of the job on this node."""

    process: Process
    seen: Seen
    number: int | None
    """None where nothing tells it."""
    world: int | None
    by: str
    """Says in words what tells its number."""
    certain: bool = True
    """False where its number follows from a convention alone."""

    @property
    def name(self) -> str:
        """Return what files about it are called."""
        return f"rank{self.number}" if self.number is not None else f"process{self.seen.pid}"


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────


def look(runner: Runner, pids: Iterable[int]) -> tuple[dict[int, Seen], list[str]]:
    """Look at processes, and say which could not be: the memory of one may be locked, and hold whoever looks."""
    left = [pid for pid in pids if pid != os.getpid()]
    said: list[str] = []
    [outcome] = runner.run([Step("look", PROBE_SECONDS, _probe(left))])
    outcomes = [outcome]
    if outcome.missing:  # one of them holds whoever looks at it: each is looked at by itself
        outcomes = runner.run([Step(f"look at {pid}", PROBE_SECONDS / 5, _probe([pid])) for pid in left])
        stuck = [pid for pid, one in zip(left, outcomes, strict=True) if one.missing]
        said += [f"process {pid} could not be looked at in time" for pid in stuck[:MAX_STUCK]]
    refused = sum(one.found.get("refused", 0) for one in outcomes)
    if refused:
        said.append(f"{refused} process{'es' * (refused > 1)} of other users could not be looked at")
    return {one["pid"]: Seen(**one) for outcome in outcomes for one in outcome.found.get("seen", [])}, said


def _probe(pids: Sequence[int]) -> Callable[[], Outcome]:
    def work() -> Outcome:
        seen: list[dict[str, object]] = []
        refused = 0
        for pid in pids:
            try:
                process = Process(pid)
            except OSError:
                continue
            try:
                found = _seen(process)
                if found is not None:
                    seen.append(found.__dict__)
            except PermissionError:
                refused += 1
            except (OSError, ValueError):
                continue  # it has ended meanwhile
            finally:
                process.close()
        return Outcome(found={"seen": seen, "refused": refused})

    return work


def _seen(process: Process) -> Seen | None:
    fields = process.stat()
    if fields[0] in "ZX" or not process.link("exe"):
        return None
    environment = process.environment()
    arguments = process.arguments()
    python = re.match(r"python|pypy", os.path.basename(process.link("exe"))) is not None
    title = _TITLE.match(arguments[0])
    torch, nccl = process.torch() if python or title else ("", False)
    found = Seen(process.pid, int(fields[19]), int(fields[1]), torch, python, nccl=nccl)
    found.axes = {axis.upper(): int(index) for axis, index in _AXIS.findall(title[1])} if title else {}
    found.program = _program(arguments)
    found.environment = {name: value for name, value in environment.items() if MATTERS.match(name)}
    found.secrets, found.hosts = secrets_in(environment), nodes_in(environment)
    found.spawned = "--multiprocessing-fork" in arguments
    if torch:
        targets = [target for _, target in process.open_files()]
        traces = [int(match[1]) for target in targets if (match := TRACE.search(target))]
        found.trace = traces[0] if len(set(traces)) == 1 else None
        sockets = {target[8:-1] for target in targets if target.startswith("socket:[")}
        found.connected = bool(sockets & _tcp(process))
    return found


def _tcp(process: Process) -> set[str]:
    found: set[str] = set()
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in process.read(table, 8 << 20).decode(errors="replace").splitlines()[1:]:
                found.update(line.split()[9:10])
    return found


def _program(arguments: Sequence[str]) -> str:
    """Return the name of a Python program: what it is given may hold secrets."""
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "-m":
            return f"-m {next(rest, '')}"
        if argument == "-c" or argument.startswith("--multiprocessing"):
            break
        if not argument.startswith("-"):
            return os.path.basename(argument)
    return os.path.basename(arguments[0])


# ── choosing ────────────────────────────────────────────────────────────────────────────────────────────


def find(runner: Runner, named: Mapping[int, int | None]) -> tuple[list[Rank], list[str]]:
    """Return the ranks of the one job on this node, or of the processes that are named; and what could not be told.

    Raises UsageError where there is none, or there are several jobs.
    """
    seen, said = look(runner, every())
    for pid in _line(seen, os.getpid()):
        seen.pop(pid, None)  # a shell of the job's that runs this command is no rank
    numbered = {pid: number for pid, number in named.items() if number is not None}
    for pid in named:
        if pid not in seen:
            raise UsageError(f"there is no process {pid} that can be looked at", where="--pid", do="`ps` has them")
    everyone = seen
    if named:
        seen = {pid: one for pid, one in seen.items() if set(named) & {pid, *_line(seen, pid)}}
    found: list[Choice] = [(seen[pid], number, _world(seen[pid]), "--pid", True) for pid, number in numbered.items()]
    rest = {pid: one for pid, one in seen.items() if not set(numbered) & {pid, *_line(seen, pid)}}
    found += choose(rest, everyone)
    if not found:
        found = [(seen[pid], None, None, "", False) for pid in named]
    if not found and runner.interrupted:
        raise Unfinished("interrupted before a rank was found")
    if not found:
        do = "name its processes: `--pid PID=RANK`, once for each"
        what = "no process here is known to be a rank: none has RANK in its environment"
        raise UsageError("; ".join([what, *said]), where="collect", do=do)
    ranks = []
    for one, number, world, by, certain in found:
        with contextlib.suppress(OSError):
            process = Process(one.pid)
            if process.start == one.start:
                ranks.append(Rank(process, one, number, world, by, certain))
    ranks.sort(key=lambda rank: (rank.number is None, rank.number or 0, rank.seen.pid))
    _check(ranks, by_name=bool(named))
    return ranks, said


Choice = tuple[Seen, int | None, int | None, str, bool]


def _world(one: Seen) -> int | None:
    return next((found[1] for names in VARIABLES if (found := one.number(names)) is not None), None)


def choose(seen: Mapping[int, Seen], everyone: Mapping[int, Seen]) -> list[Choice]:
    """Return the ranks among processes, by the surest sign that any of them has.

    `everyone` has their parents and siblings too.
    """
    recorded = {pid: (one.trace, _world(one)) for pid, one in seen.items() if one.trace is not None}
    if recorded:
        return _topmost(seen, recorded, "its trace")
    for names in VARIABLES:
        numbers = {pid: number for pid, one in seen.items() if (number := one.number(names)) is not None}
        able = {pid: number for pid, number in numbers.items() if seen[pid].torch}
        if not able and names[0] == "RANK":  # torch may not be loaded yet
            able = {pid: number for pid, number in numbers.items() if seen[pid].python}
        if able:
            return _topmost(seen, able, names[0])
    workers = {pid: one for pid, one in seen.items() if "TP" in one.axes or "PP" in one.axes}
    if workers:
        width = 1 + max(one.axes.get("TP", 0) for one in workers.values())
        return [
            (one, one.axes.get("PP", 0) * width + one.axes.get("TP", 0), None, "its title", False)
            for one in workers.values()
        ]
    return [choice for choice in _started(everyone) if choice[0].pid in seen]


def _topmost(seen: Mapping[int, Seen], numbers: Mapping[int, tuple[int, int | None]], by: str) -> list[Choice]:
    """Return those that are no helper of another rank, and no launcher of ranks.

    A data loader's workers have the environment of their rank, and a launcher may have one of its own.
    """
    chosen: list[Choice] = []
    above = {pid: [p for p in _line(seen, pid) if p in numbers] for pid in numbers}
    launchers = {
        parent
        for pid, line in above.items()
        for parent in line
        if numbers[parent] != numbers[pid] or seen[parent].job != seen[pid].job
    }
    for pid, (number, world) in numbers.items():
        if pid not in launchers and not [p for p in above[pid] if p not in launchers]:
            chosen.append((seen[pid], number, world, by, True))
    return chosen


def _started(seen: Mapping[int, Seen]) -> Iterator[Choice]:
    """Yield processes with torch and a connection that one process has started, in the order of their start."""
    families: dict[int, list[Seen]] = defaultdict(list)
    started = {
        pid: one for pid, one in seen.items() if one.torch and one.connected and _is_python(seen.get(one.parent))
    }
    for pid, one in started.items():
        if not [parent for parent in _line(seen, pid) if parent in started]:
            families[one.parent].append(one)
    for parent, children in families.items():
        ordered = sorted(children, key=lambda one: (one.start, one.pid))
        for number, one in enumerate(ordered):
            by = f"the order in which process {parent} started them"
            yield one, number, len(ordered), by, False


def _is_python(one: Seen | None) -> bool:
    return one is not None and one.python


def _line(seen: Mapping[int, Seen], pid: int) -> Iterator[int]:
    """Yield the processes above one, from its parent on."""
    for _ in range(64):
        if pid not in seen:
            with contextlib.suppress(OSError):
                process = Process(pid)
                try:
                    pid = process.parent
                finally:
                    process.close()
                yield pid
                continue
            return
        pid = seen[pid].parent
        yield pid


def _check(ranks: Sequence[Rank], *, by_name: bool) -> None:
    """Raise UsageError where the ranks are of several jobs, or two are called alike."""
    jobs: dict[object, list[Rank]] = defaultdict(list)
    for rank in ranks:
        jobs[rank.seen.job if rank.certain else rank.by].append(rank)
    numbers = [rank.number for rank in ranks if rank.number is not None]
    if (len(jobs) > 1 and not by_name) or len(set(numbers)) < len(numbers):
        told = "; ".join(_told(own) for own in jobs.values())
        raise UsageError(f"ranks of several jobs run here: {told}", where="collect", do="choose one: `--pid PID`")


def _told(ranks: Sequence[Rank]) -> str:
    pids = ", ".join(str(rank.seen.pid) for rank in ranks[:8])
    parents = {rank.seen.parent for rank in ranks}
    under = f", all under process {parents.pop()}" if len(parents) == 1 else ""
    return f"{ranks[0].seen.program} ({len(ranks)} ranks, processes {pids}{under})"


def describe(rank: Rank) -> str:
    """Return one line on a rank, for people."""
    of = f" of {rank.world}" if rank.world else ""
    known = f", by {rank.by}" if rank.by else ", its rank is not known"
    return f"{rank.name}{of}: process {rank.seen.pid}, {rank.seen.program}{known}"


def environment_shown(seen: Seen) -> dict[str, str]:
    """Return the part of a rank's environment that matters to others."""
    return {
        name: value
        for name, value in sorted(seen.environment.items())
        if name not in PRIVATE and not SECRET.search(name)
    }
