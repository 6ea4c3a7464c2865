"""Runs the litmus programs on real gloo ranks, and writes down what was predicted and what was seen.

    python -m genlock.impl.litmus [NAME…] [--repeat 20] [--out docs/litmus.md]

Each run has processes of its own, forked from one that has imported torch and not used it, and killed when
the run is over. A rank *waits* when nothing has moved for `probe` seconds and the prediction lets it wait;
where it is bound to move, it is given `limit` seconds.

`--backend nccl` runs them where there is a GPU, all ranks on one if there is no more, after a first collective that
joins them; a collective completes there when the device has done it. Left out: how long anything takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..model.litmus import LITMUS, OVER, Control, Do, Litmus, Outcome, Prediction, Result, Settled, predict
from ..model.tables import Collective, Kind
from .rank.devices import gpus, sharing
from .rank.parent_death import die_with_parent

READY, ENTER, END = "ready", "enter", "end"
"""Names what a rank tells besides results."""
SPREAD = 0.3
"""Seconds for which a rank that dies inside a collective lets its contribution spread. Any length will do."""


class Seen(NamedTuple):
    """Holds one run: the outcome while the late ranks were held back, and the one after they had come."""

    held: Outcome
    end: Outcome

    def predicted(self, prediction: Prediction) -> bool:
        return self.held in prediction.held.outcomes and self.end in prediction.end.outcomes


# ── the parent ──────────────────────────────────────────────────────────────────────────────────────────


class Rank:
    """Holds the parent's end of one rank: its process, and what it has told so far."""

    def __init__(self, litmus: Litmus, rank: int, store: str, backend: str) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_live, args=(litmus, rank, store, backend, far))
        self.process.start()
        far.close()
        self.results: tuple[Result, ...] = ()
        self.doing = ""
        """The last that it told: READY, ENTER, END, or a result."""
        self.gone = False

    @property
    def settled(self) -> bool:
        """Return True if the rank does nothing more of itself."""
        return self.gone or self.doing in {END, Result.LATE, Result.STOPPED}

    @property
    def outcome(self) -> tuple[Result, ...]:
        now = {ENTER: (Result.WAITS,), Result.LATE: (Result.LATE,)}
        return self.results + (() if self.gone else now.get(self.doing, ()))

    def hear(self) -> None:
        """Take in one word, or the end of the process."""
        try:
            self.doing = self.pipe.recv_bytes().decode()
        except EOFError:
            self.gone = True
            self.process.join()
            ends = {-signal.SIGKILL: Result.KILLED, -signal.SIGABRT: Result.ABORTED}
            if self.process.exitcode not in ends:
                raise RuntimeError(f"a rank ended by itself, status {self.process.exitcode}") from None
            self.results += (ends[self.process.exitcode],)
        else:
            if self.doing in set(Result) - {Result.LATE}:
                self.results += (Result(self.doing),)

    def go_on(self) -> None:
        self.pipe.send_bytes(b"")


def observe(
    litmus: Litmus, prediction: Prediction, *, probe: float = 1.0, limit: float = 60.0, backend: str = "gloo"
) -> Seen:
    """Run a program once, on fresh processes. Raises RuntimeError when they do not come up."""
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[Rank] = []
        try:
            ranks += [Rank(litmus, rank, f"{folder}/store", backend) for rank in range(litmus.ranks)]
            for rank in ranks:
                rank.hear()
            for rank in ranks:
                rank.go_on()
            held = end = _settle(ranks, prediction.held.outcomes, probe, limit)
            late = [rank for rank in ranks if rank.doing == Result.LATE]
            if late:
                for rank in late:
                    rank.doing = ""
                    rank.go_on()
                end = _settle(ranks, prediction.end.outcomes, probe, limit)
            return Seen(held, end)
        finally:
            for rank in ranks:
                rank.process.kill()
            for rank in ranks:
                rank.process.join()


def _settle(ranks: Sequence[Rank], expected: Collection[Outcome], probe: float, limit: float) -> Outcome:
    """Listen until no rank can move of itself, or none has moved for a while and none was bound to."""
    until = time.monotonic() + limit
    while True:
        outcome = tuple(rank.outcome for rank in ranks)
        if all(rank.settled for rank in ranks) or time.monotonic() > until:
            return outcome
        here = {rank.pipe: rank for rank in ranks if not rank.gone}
        told = wait(here, timeout=probe)
        for pipe in told:
            here[pipe].hear()  # type: ignore[index]
        if not told and outcome in expected and all(rank.settled or rank.doing == ENTER for rank in ranks):
            return outcome


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    die_with_parent(parent.pid if parent is not None else None)


# ── a rank ──────────────────────────────────────────────────────────────────────────────────────────────


def _live(litmus: Litmus, rank: int, store: str, backend: str, pipe: Connection) -> None:
    """Run the process of one rank: it plays its program, then waits to be killed."""
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    c10d: Any = dist  # which does not declare all that it exports
    if litmus.checked:
        c10d.set_debug_level(c10d.DebugLevel.DETAIL)
    device = _gpu(rank, litmus.ranks) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, store=c10d.FileStore(store, litmus.ranks), rank=rank, world_size=litmus.ranks)
    groups: dict[str, Any] = {name: dist.new_group() for name in litmus.groups}
    for group in groups.values() if backend == "nccl" else ():
        dist.all_reduce(torch.zeros(1, device=device), group=group)  # which makes the communicator, in seconds
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # where gloo and torch report what is meant to fail

    def tell(word: str) -> None:
        pipe.send_bytes(word.encode())

    tell(READY)
    pipe.recv_bytes()
    for step in litmus.programs[rank]:
        if isinstance(step, Do):
            tell(ENTER)
            result = _perform(step, rank, litmus.ranks, groups[step.op.group], device)
            tell(result)
            if result in OVER:
                break
        elif step is Control.LATE:
            tell(Result.LATE)
            pipe.recv_bytes()
        elif step is Control.DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            tell(Result.STOPPED)
            os.kill(os.getpid(), signal.SIGSTOP)
    tell(END)
    pipe.recv_bytes()


def _gpu(rank: int, ranks: int) -> torch.device:
    """Choose the GPU of a rank, and set what NCCL needs if others have it too."""
    count = torch.cuda.device_count()
    os.environ.update(sharing(rank, ranks, count))
    torch.cuda.set_device(rank % count)
    return torch.device("cuda", rank % count)


def _perform(step: Do, rank: int, ranks: int, group: Any, device: torch.device) -> Result:
    op = step.op
    mine = _tensor(op, rank).to(device)
    if not step.contiguous:
        mine = torch.full((2 * len(mine),), -1, dtype=mine.dtype, device=device)[::2].copy_(mine)
    everyone = [torch.zeros_like(mine) for _ in range(ranks)]
    try:
        work = _issue(op, mine, everyone, rank, group)
        if step.dies:
            time.sleep(SPREAD)
            os.kill(os.getpid(), signal.SIGKILL)
        work.wait()
        if device.type == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return Result.ERROR
    return Result.COMPLETES if _right(op, mine.cpu(), [t.cpu() for t in everyone], rank) else Result.GARBAGE


def _issue(op: Collective, mine: torch.Tensor, everyone: list[torch.Tensor], rank: int, group: Any) -> Any:
    root = op.root or 0
    match op.kind:
        case Kind.BROADCAST:
            return dist.broadcast(mine, root, group=group, async_op=True)
        case Kind.GATHER:
            return dist.gather(mine, everyone if rank == root else None, root, group=group, async_op=True)
        case Kind.ALL_GATHER:
            return dist.all_gather(everyone, mine, group=group, async_op=True)
        case Kind.ALL_REDUCE:
            return dist.all_reduce(mine, group=group, async_op=True)


def _right(op: Collective, mine: torch.Tensor, everyone: list[torch.Tensor], rank: int) -> bool:
    """Return True if the rank was given what it would be if everyone had issued `op`."""
    meant = [_tensor(op, member) for member in range(len(everyone))]
    match op.kind:
        case Kind.BROADCAST:
            return rank == op.root or torch.equal(mine, meant[op.root or 0])
        case Kind.GATHER if rank != op.root:
            return True
        case Kind.ALL_REDUCE:
            return torch.equal(mine, torch.stack(meant).sum(0, dtype=mine.dtype))
        case _:
            return all(map(torch.equal, everyone, meant))


def _tensor(op: Collective, rank: int) -> torch.Tensor:
    """Return what `rank` puts into `op`: another value for another meaning.

    Sums of it are exact.
    """
    dtype: torch.dtype = getattr(torch, op.dtype)
    meaning = zlib.crc32(op.name.encode()) % 1000
    return (torch.arange(int(op.size) // dtype.itemsize) % 7 + 16 * meaning + rank).to(dtype)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────

HEAD = """\
# Litmus tests of the transport

Each program has a few ranks, and a few collectives on each. `genlock.model.litmus` derives every outcome that the
rules of `genlock.model.semantics.transport` allow; a real run must show one of them. *While late*: before the late
rank comes; whoever has completed by then left early. *Waits for* names the ranks that it may be left waiting for.
*Garbage* completes, with a value that is not what this rank's own collective should have given it; *aborted* and
*killed* end the process, by SIGABRT and SIGKILL. DETAIL is `TORCH_DISTRIBUTED_DEBUG=DETAIL`.

Written by `python -m genlock.impl.litmus --repeat {repeat} --out docs/litmus.md`, which runs each {repeat} times;
seen with torch {torch} on gloo ({system}).

| program | what the ranks do | predicted | seen on gloo | NCCL |
|---|---|---|---|---|
"""


def table(seen: Mapping[str, Sequence[Seen]], repeat: int) -> str:
    """Return the document in Markdown: each program, what may happen, and what did."""
    head = HEAD.format(repeat=repeat, torch=torch.__version__.partition("+")[0], system=platform.system())
    rows = []
    for name, runs in seen.items():
        litmus = LITMUS[name]
        shown = [Settled(frozenset(outcomes), ()) for outcomes in zip(*runs, strict=True)]
        cells = (f"`{name}`", litmus.text, cell(litmus, *predict(litmus)), cell(litmus, *shown), "not measured")
        rows.append(f"| {' | '.join(cells)} |\n")
    return head + "".join(rows)


def cell(litmus: Litmus, held: Settled, end: Settled) -> str:
    """Return what may be, or was, seen of a program: one line, or two where a rank is late."""
    if any(Control.LATE in program for program in litmus.programs):
        return f"*while late* {_ranks(Settled(held.outcomes, ()))}<br>*then* {_ranks(end)}"
    return _ranks(end)


def _ranks(settled: Settled) -> str:
    """Return one entry for all ranks of which the same is to be said."""
    texts = [_either(set(results)) for results in zip(*settled.outcomes, strict=True)]
    for rank, whom in enumerate(settled.waiting):
        if whom:
            texts[rank] = texts[rank].replace("waits", f"waits for {'/'.join(map(str, sorted(whom)))}")
    if len(set(texts)) == 1:
        return f"all: {texts[0]}"
    ranks = {text: [str(rank) for rank, other in enumerate(texts) if other == text] for text in texts}
    return "; ".join(f"{','.join(who)}: {text}" for text, who in ranks.items())


def _either(alternatives: set[tuple[Result, ...]]) -> str:
    """Return what may become of one rank.

    Results that differ only in how often it completes first are one.
    """
    counts: dict[tuple[Result, ...], list[int]] = {}
    for results in sorted(alternatives):
        first = sum(1 for _ in takewhile(lambda result: result is Result.COMPLETES, results))
        counts.setdefault(results[first:], []).append(first)
    return " or ".join(_series(times, rest) for rest, times in counts.items())


def _series(times: Sequence[int], rest: Iterable[Result]) -> str:
    low, high = min(times), max(times)
    many = f" ×{low}–{high}" if low < high else f" ×{high}" if high > 1 else ""
    return ", ".join([f"completes{many}"] * (high > 0) + [result.value for result in rest]) or "nothing"


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────


def _runs(name: str, *, repeat: int, probe: float, limit: float, backend: str) -> list[tuple[Seen, bool]]:
    """Make some runs of a program, and say for each whether the prediction has room for it."""
    prediction = predict(LITMUS[name])
    runs = (observe(LITMUS[name], prediction, probe=probe, limit=limit, backend=backend) for _ in range(repeat))
    return [(run, run.predicted(prediction)) for run in runs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run programs, print each run as a line of JSON. Returns 1 when one of them was not predicted."""
    parser = argparse.ArgumentParser(prog="python -m genlock.impl.litmus", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to run; all, if none is named")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    parser.add_argument("--probe", type=float, default=1.0, help="seconds without a move after which a rank waits")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for what is bound to happen")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    given = parser.parse_args(arguments)
    if given.backend == "nccl" and gpus() == 0:
        parser.error("NCCL needs a GPU, and there is none here")
    unknown = sorted(set(given.names) - set(LITMUS))
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; choose from {', '.join(LITMUS)}")
    names = given.names or list(LITMUS)
    seen: dict[str, list[Seen]] = {}
    status = 0
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(given.jobs, mp_context=context, initializer=_die_with_parent) as pool:
        run = partial(_runs, repeat=given.repeat, probe=given.probe, limit=given.limit, backend=given.backend)
        for name, runs in zip(names, pool.map(run, names), strict=True):
            seen[name] = [run for run, _ in runs]
            for (held, end), predicted in runs:
                status |= not predicted
                print(json.dumps({"name": name, "predicted": predicted, "held": held, "end": end}), flush=True)
    if given.out:
        given.out.write_text(table(seen, given.repeat), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
