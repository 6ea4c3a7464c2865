"""Hangs with known truth: a mesh of TP, PP and DP groups runs training steps, somebody breaks it, torch's dumps remain.

A plain discrete simulator, which knows nothing of the rules that it is used to test. Each rank has a host, which
issues its program and blocks where it synchronises, and a device, which does what was issued: each group's (each
pair's) operations in order, and none before what the program made it wait for. A member completes a collective once
those that it depends on have started it, and all agree what it is. Nothing is timed: the state in which nothing
moves any more does not depend on the order of moves.

Left out: what a hang does after it (time-outs, aborts).
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

FAULTS = ("stall", "crash", "device_after", "device_before", "skip", "extra", "kind", "size")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
TORCH = {"all_gather": "_all_gather_base", "reduce_scatter": "_reduce_scatter_base"}
P2P = ("send", "recv")


@dataclass(frozen=True)
class Step:
    """One instruction of a rank's program. `wait` joins what is asynchronous, `sync` blocks the host."""

    kind: str
    group: str = ""
    size: int = 1
    peer: int = -1
    asynchronous: bool = False
    eager: bool = False
    line: int = 0


@dataclass
class Issued:
    """An operation on a rank's device."""

    step: Step
    number: int
    """Which of its group, or of its send or receive channel, from 1."""
    collective: int
    p2p: int
    needs: list[Issued]
    noticed: bool = True
    """Whether the recorder will notice that it is done."""
    blocked: bool = False
    started: bool = False
    done: bool = False


@dataclass
class Rank:
    """Host and device of one rank."""

    rank: int
    program: list[Step]
    stop: int = 1 << 30
    """The host never executes the step of this number."""
    blind: int = 1 << 30
    """From this step on, the device takes part but the recorder does not notice."""
    broken: int = 1 << 30
    """From this step on, the device does not start anything."""
    at: int = 0
    issued: list[Issued] = field(default_factory=list)
    frontier: list[Issued] = field(default_factory=list)
    loose: list[Issued] = field(default_factory=list)
    streams: dict[tuple[str, int], Issued] = field(default_factory=dict)
    counts: dict[tuple[str, bool], int] = field(default_factory=dict)
    channels: dict[tuple[str, str, int], Issued] = field(default_factory=dict)

    def step(self) -> bool:
        """One move of the host; False if it cannot move."""
        if self.at >= min(len(self.program), self.stop):
            return False
        step = self.program[self.at]
        if step.kind == "sync":
            if not all(i.done and i.noticed for i in self.frontier):
                return False
        elif step.kind == "wait":
            self.frontier += self.loose
            self.loose = []
        else:
            self._issue(step)
        self.at += 1
        return True

    def _issue(self, step: Step) -> None:
        p2p = step.kind in P2P
        key, stream = (step.group, p2p), (step.group, step.peer)
        self.counts[key] = self.counts.get(key, 0) + 1
        channel = (step.group, step.kind if p2p else "", step.peer)
        number = self.channels[channel].number + 1 if channel in self.channels else 1
        counts = [self.counts.get((step.group, of), 0) for of in (False, True)]
        needs = [*self.frontier, *([self.streams[stream]] if stream in self.streams else [])]
        op = Issued(step, number, counts[0], counts[1], needs, self.at < self.blind, self.at >= self.broken)
        self.channels[channel] = self.streams[stream] = op
        self.issued.append(op)
        if step.asynchronous:
            self.loose.append(op)
        else:
            self.frontier = [op]


@dataclass(frozen=True)
class Hang:
    """A job that stands still, and who is to blame for it."""

    fault: str
    culprits: tuple[int, ...]
    ranks: Sequence[Rank]
    groups: dict[str, tuple[str, tuple[int, ...]]]
    """Name to description and members."""
    crashed: tuple[int, ...] = ()
    broken: tuple[Step, ...] = ()
    """The step of each culprit at which it left the program, in the order of `culprits`."""


# ── the job ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Mesh:
    """Ranks count up along TP first, then DP, then PP, as Megatron does."""

    tp: int
    dp: int
    pp: int

    @property
    def world(self) -> int:
        return self.tp * self.dp * self.pp

    def rank(self, t: int, d: int, p: int) -> int:
        return (p * self.dp + d) * self.tp + t

    def groups(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        found = [("default_pg", tuple(range(self.world)))]
        for p, t in product(range(self.pp), range(self.tp)):
            found.append(("DATA_PARALLEL_GROUP", tuple(self.rank(t, d, p) for d in range(self.dp))))
        for p, d in product(range(self.pp), range(self.dp)):
            found.append(("TENSOR_MODEL_PARALLEL_GROUP", tuple(self.rank(t, d, p) for t in range(self.tp))))
        for d, t in product(range(self.dp), range(self.tp)):
            found.append(("PIPELINE_MODEL_PARALLEL_GROUP", tuple(self.rank(t, d, p) for p in range(self.pp))))
        return {str(name): group for name, group in enumerate(found)}


def program(mesh: Mesh, rank: int, seed: int) -> list[Step]:
    """What one rank does in some training steps of one-forward-one-backward; the same seed gives all ranks one job."""
    rng = random.Random(seed)
    own = {about: name for name, (about, members) in mesh.groups().items() if rank in members}
    stage = rank // (mesh.tp * mesh.dp)
    previous = rank - mesh.tp * mesh.dp if stage else -1
    following = rank + mesh.tp * mesh.dp if stage < mesh.pp - 1 else -1
    tp, dp, pp, world = (
        own[f"{name}_GROUP" if name != "default" else "default_pg"]
        for name in ("TENSOR_MODEL_PARALLEL", "DATA_PARALLEL", "PIPELINE_MODEL_PARALLEL", "default")
    )
    layers, experts, blocking = rng.randint(1, 3), rng.random() < 0.4, rng.random() < 0.3
    reduces, eager, loader = rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.5
    hidden = rng.choice([64, 128])
    batches = mesh.pp + rng.randint(0, 2)

    def layer(line: int) -> Iterator[Step]:
        if mesh.tp > 1:
            kinds = ("all_reduce", "all_reduce") if reduces else ("all_gather", "reduce_scatter")
            for k, kind in enumerate(kinds):
                yield Step(kind, tp, hidden * 8, line=line + k)
        if experts and mesh.dp > 1:
            yield Step("all_to_all", dp, hidden * 4, line=line + 4)
            yield Step("sync")
            yield Step("all_to_all", dp, hidden * 4, line=line + 5)

    def moved(out: int, into: int, line: int) -> Iterator[Step]:
        """Send and receive at once; odd stages receive first, so that two neighbours meet."""
        both = [Step("send", pp, hidden, out, True, eager, line)] if out >= 0 else []
        both += [Step("recv", pp, hidden, into, True, False, line + 1)] if into >= 0 else []
        yield from both if stage % 2 == 0 else reversed(both)
        yield Step("wait")

    def forward() -> Iterator[Step]:
        if loader and mesh.tp > 1:
            yield Step("broadcast", tp, 16, line=10)
        for at in range(layers):
            yield from layer(20 + 10 * at)

    def backward() -> Iterator[Step]:
        for at in reversed(range(layers)):
            yield from layer(60 + 10 * at)

    def once() -> Iterator[Step]:
        warm = min(mesh.pp - stage - 1, batches)
        for _ in range(warm):
            yield from moved(-1, previous, 100)
            yield from forward()
            yield from moved(following, -1, 102)
        if batches > warm:
            yield from moved(-1, previous, 104)
        for at in range(batches - warm):
            yield from forward()
            yield from moved(following, following, 106)
            yield from backward()
            yield from moved(previous, previous if at < batches - warm - 1 else -1, 108)
        for _ in range(warm):
            yield from moved(-1, following, 110)
            yield from backward()
            yield from moved(previous, -1, 112)
        if mesh.dp > 1:
            for bucket in range(2):
                yield Step("all_reduce", dp, hidden * 16 + bucket, asynchronous=True, line=120 + bucket)
            yield Step("wait")
        yield Step("all_reduce", world, 1, line=130)
        yield Step("sync")
        if mesh.dp > 1:
            yield Step("all_gather", dp, hidden * 2, line=140)

    steps = [step for _ in range(rng.randint(2, 3)) for step in once()]
    if blocking:
        steps = [s for step in steps for s in ([step, Step("sync")] if step.kind in KINDS else [step])]
    return steps


def run(ranks: Sequence[Rank], groups: dict[str, tuple[str, tuple[int, ...]]], severed: Severed | None = None) -> None:
    """Until nothing moves any more. What is `severed` starts, and never ends for those ranks: their network."""
    severed = severed or {}
    index: Index = {}
    seen = dict.fromkeys(range(len(ranks)), 0)
    left: list[tuple[int, Issued]] = []
    moved = True
    while moved:
        moved = False
        for rank in ranks:
            while rank.step():
                moved = True
            for op in rank.issued[seen[rank.rank] :]:
                index.setdefault(_key(rank.rank, op), {})[rank.rank] = op
                left.append((rank.rank, op))
            seen[rank.rank] = len(rank.issued)
        for _, op in left:
            if not op.started and not op.blocked and all(n.done for n in op.needs):
                op.started = moved = True
        for rank_number, op in left:
            ends = rank_number not in severed.get(_key(rank_number, op), ()) or (
                op.step.eager and op.step.kind == "send"
            )
            if op.started and ends and _completes(rank_number, op, index, groups):
                op.done = moved = True
        left = [(r, op) for r, op in left if not op.done]


Key = tuple[str, str, int, int]
Severed = dict[Key, tuple[int, ...]]
Index = dict[Key, dict[int, Issued]]


def _key(rank: int, op: Issued) -> Key:
    return key_of(rank, op.step, op.number)


def key_of(rank: int, step: Step, number: int) -> Key:
    """Return what all members have in common of an operation that is the rank's `number`th of its group."""
    if step.kind not in P2P:
        return (step.group, "", number, 1)
    ends = (rank, step.peer) if step.kind == "send" else (step.peer, rank)
    return (step.group, f"{ends[0]}>{ends[1]}", number, 0)


def _completes(rank: int, op: Issued, index: Index, groups: dict[str, tuple[str, tuple[int, ...]]]) -> bool:
    step = op.step
    if step.kind in P2P:
        other = index[_key(rank, op)].get(step.peer)
        if step.kind == "send" and step.eager:
            return True
        return other is not None and other.started and other.step.size == step.size
    members = groups[step.group][1]
    parts = index[step.group, "", op.number, 1]
    there = {m: parts[m] for m in members if m in parts and parts[m].started}
    if any((p.step.kind, p.step.size) != (step.kind, step.size) for p in there.values()):
        return False
    return (members[0] in there) if step.kind == "broadcast" and rank != members[0] else len(there) == len(members)


# ── breaking it ─────────────────────────────────────────────────────────────────────────────────────────


def hang(seed: int, fault: str) -> Hang | None:
    """A broken job; None where this seed's fault leaves nobody waiting."""
    rng = random.Random(f"{seed}{fault}")
    mesh = Mesh(*rng.choice([(2, 2, 2), (4, 2, 2), (2, 4, 2), (4, 1, 2), (2, 2, 4), (4, 4, 1), (1, 4, 4), (4, 2, 4)]))
    groups = mesh.groups()
    ranks = [Rank(r, program(mesh, r, seed)) for r in range(mesh.world)]
    several = fault in ("stall", "crash", "device_after") and rng.random() < 0.25
    culprits = sorted(rng.sample(range(mesh.world), 2 if several else 1))
    where = rng.random()
    broken = tuple(_break(ranks[culprit], fault, where, rng, groups) for culprit in culprits)
    run(ranks, groups)
    left = [r for r in ranks if r.at < len(r.program) and r.rank not in culprits]
    waiting = [r for r in ranks if any(not i.done for i in r.issued)]
    if not waiting or (not left and fault in ("stall", "crash", "device_after", "device_before")):
        return None
    return Hang(fault, tuple(culprits), ranks, groups, tuple(culprits) if fault == "crash" else (), broken)


def _break(rank: Rank, fault: str, where: float, rng: random.Random, groups: dict[str, Any]) -> Step:
    """Break the rank, and return the step at which it leaves the program."""
    moves = [at for at, step in enumerate(rank.program) if step.kind in KINDS + P2P]
    at = moves[int(len(moves) * where)]
    if fault in ("skip", "kind", "size"):
        fits: dict[str, Callable[[Step], bool]] = {
            "skip": lambda s: s.kind in KINDS and len(groups[s.group][1]) > 1,
            "kind": lambda s: s.kind in KINDS and len(groups[s.group][1]) > 1,
            "size": lambda s: s.kind in KINDS and s.kind != "all_to_all" and len(groups[s.group][1]) > 1,
        }
        at = rng.choice([at for at in moves if fits[fault](rank.program[at])])
    step = rank.program[at]
    if fault in ("stall", "crash"):
        rank.stop = at
    elif fault == "device_after":
        rank.blind, rank.broken = at, at + rng.randint(1, 8)
    elif fault == "device_before":
        rank.broken = at
    elif fault == "skip":
        del rank.program[at]
    elif fault == "extra":
        others = [s for s in rank.program if s.kind in KINDS and len(groups[s.group][1]) > 1]
        rank.program.insert(at, replace(rng.choice(others), line=999))
    elif fault == "kind":
        rank.program[at] = replace(step, kind=rng.choice([k for k in KINDS if k != step.kind]))
    elif fault == "size":
        rank.program[at] = replace(step, size=step.size * 2)
    return step if fault == "skip" else rank.program[at]


# ── what torch would have dumped ────────────────────────────────────────────────────────────────────────


def dumps(job: Hang, version: str, *, ring: int = 2000, timing: bool = False) -> dict[int, dict[str, Any]]:
    """Rank to its dump, for those that left one: 2.9 of what is pending, 2.10 of the last `ring` operations."""
    return {r.rank: _dump(r, job, version, ring, timing) for r in job.ranks if r.rank not in job.crashed}


def write(job: Hang, folder: Path, version: str, **how: Any) -> None:
    """The dumps as files, as torch names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, dump in dumps(job, version, **how).items():
        (folder / f"trace_{rank}").write_bytes(pickle.dumps(dump, protocol=2))


def _dump(rank: Rank, job: Hang, version: str, ring: int, timing: bool) -> dict[str, Any]:
    own = {name: group for name, group in job.groups.items() if rank.rank in group[1]}
    local = {name: at for at, name in enumerate(own)}
    entries = [_entry(at, op, rank, own, local, timing) for at, op in enumerate(rank.issued)]
    status: dict[str, dict[str, int]] = {}
    for op in rank.issued:
        last = op.p2p if op.step.kind in P2P else op.collective
        about = status.setdefault(str(local[op.step.group]), dict.fromkeys(STATUS, -1))
        about[STATUS[0]] = last
        if op.done and op.noticed:
            about[STATUS[2]] = last
    config = {n: {"name": n, "desc": about, "ranks": str(list(members))} for n, (about, members) in own.items()}
    pending = [e for e in entries if e["state"] != "completed"]
    library = "nccl_version" if version == "2.9" else "comm_lib_version"
    return {
        "version": version,
        "pg_config": config,
        library: "2.27.3",
        "pg_status": status,
        "entries": pending if version == "2.9" else entries[-ring:],
    }


STATUS = ("last_enqueued_collective", "last_started_collective", "last_completed_collective")


def _entry(
    at: int, op: Issued, rank: Rank, own: dict[str, tuple[str, tuple[int, ...]]], local: dict[str, int], timing: bool
) -> dict[str, Any]:
    step = op.step
    about, members = own[step.group]
    name = TORCH.get(step.kind, step.kind)
    if step.kind in P2P:
        arrow = "->" if step.kind == "send" else "<-"
        name = f"{step.kind} {members.index(rank.rank)}{arrow}{members.index(step.peer)}"
    n = len(members)
    done = op.done and op.noticed
    started = timing and op.started
    entry = {
        "record_id": at,
        "pg_id": local[step.group],
        "process_group": (step.group, about),
        "collective_seq_id": op.collective,
        "p2p_seq_id": op.p2p,
        "op_id": op.collective + op.p2p,
        "profiling_name": f"nccl:{name}",
        "time_created_ns": 1_700_000_000_000_000_000 + at * 1_000_000 + rank.rank,
        "input_sizes": [[step.size * (n if step.kind == "reduce_scatter" else 1)]],
        "input_dtypes": ["Float"],
        "output_sizes": [[step.size * (n if step.kind == "all_gather" else 1)]],
        "output_dtypes": ["Float"],
        "state": "completed" if done else "started" if started else "scheduled",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None,
        "retired": done,
        "timeout_ms": 600_000,
        "is_p2p": step.kind in P2P,
    }
    if step.line:
        entry["frames"] = [{"name": "train", "filename": "train.py", "line": step.line}]
    return entry
