"""One schedule: a job of simulated ranks, an application and perhaps a fault, all of it drawn from one seed.

`run(seed)` says what replay made of its traces and what the model had predicted; the same seed gives the same
schedule, event by event and at the same virtual times. The prediction is read from the tables: `model.matrix`
has, for each kind of fault, the check that is there for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any

import torch
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.protocol.replay_rank import NOTHING
from genlock.errors import Refused
from genlock.impl.chunk import digest, parity
from genlock.impl.chunk.retained_tensors import Override
from genlock.impl.chunk.schema import Mode
from genlock.impl.faults.simulated_faults import (
    AT_A_ROW,
    IN_FACTS,
    IN_GENERATOR,
    ON_THE_WAY,
    Strike,
    StruckMonitor,
    Tamper,
    in_facts,
)
from genlock.impl.faults.simulator import Memory, Simulation
from genlock.impl.rank.conductor import Conductor
from genlock.impl.rank.roles import Rank0, Role, Settings, Worker
from genlock.model.mutation.guard_matrix import MATRIX
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.network import CRASH, STALL
from genlock.model.tables import By
from genlock.traces.format import Trace
from simulated import RANKS, FakeGenerator, fields, header

SAME_CHECK = {"duplicate": "stale", "manifest": "corrupt", "role": "flag", "backend": "flag", "weights": "drift"}
"""Kinds that have no line of their own in the matrix, and those whose check finds them too."""
BY_ITSELF = {"override": "exception", "exception": "exception", "thread": "exception"}
"""Kinds that the struck rank reports itself, by the event."""
BY_PEERS = {CRASH: "peer_lost", STALL: "deadline"}
"""Kinds after which a rank says nothing more, and replay shows where it stands: or its peers do."""


def first_word(observed: str) -> str:
    """The event of what a divergence says was observed."""
    return observed.split(" ")[0]


@cache
def noticed(kind: str) -> frozenset[str]:
    """The events at which a fault of this kind may first be seen, by the tables."""
    if kind in BY_ITSELF:
        return frozenset({BY_ITSELF[kind]})
    if kind in BY_PEERS:
        return frozenset({first_word(NOTHING), *BY_PEERS.values()})
    found: set[str] = set()
    for check in MATRIX:
        if check.fault != SAME_CHECK.get(kind, kind):
            continue
        role = next(r for r in TP_V1_1.roles if r.name == check.role)
        state = next(r.state for r in role.rows if r.event == check.event)
        found |= {r.event for r in role.leaving[state] if r.by is By.VIOLATION}
        # replay may see it one move earlier, in what the ranks put into or got out of that state's collective
        ops = {r.op for r in role.rows if r.target == state and r.op and r.state != state}
        found |= {r.event for both in TP_V1_1.roles for r in both.rows if r.op in ops}
    return frozenset(found)


def strikes(rank: int) -> Iterable[tuple[str, str, bool]]:
    """Every (kind, event, after) that can strike on a rank."""
    role = TP_V1_1.role(rank)
    rows = [r for r in role.rows if r.by not in (By.FAULT, By.DETECTION, By.VIOLATION) and r.event != "abort"]
    for row in {r.event: r for r in rows if r.event not in ("drain", "hold_signal", "refuse")}.values():
        for kind in AT_A_ROW:
            if kind != "thread" or (rank == 0 and row.state in ("HEADER_SENT", "PAYLOAD_SENT", "GENERATING")):
                yield kind, row.event, False
                if row.op and kind != "thread":
                    yield kind, row.event, True
    yield from ((kind, "", False) for kind in (*IN_FACTS, *IN_GENERATOR))
    if rank:
        for kind in ON_THE_WAY:
            if kind != "manifest":
                yield kind, "receive_header", False
            if kind in ("corrupt", "manifest"):
                yield kind, "receive_payload", False


STRIKES = [(rank, *strike) for rank in range(RANKS) for strike in strikes(rank)]


def drawn(chance: random.Random) -> Strike | None:
    """No fault in every third schedule, else any kind, each as often as another."""
    if chance.random() < 1 / 3:
        return None
    kind = chance.choice(sorted(set(FAULTS) - {"request"}))  # a bad request is refused, and no fault of a rank
    rank, _, event, after = chance.choice([s for s in STRIKES if s[1] == kind])
    return Strike(kind, rank, event, chance.randint(1, 3), after)


class Weights:
    """The fingerprint of a rank's weights; `change` makes it another."""

    def __init__(self, rank: int) -> None:
        self.shard = rank + 1

    def __call__(self) -> parity.Fingerprint:
        return parity.Fingerprint(self.shard, 7)


class Struck:
    """A job of ranks of which one may be struck, recorded in memory, in virtual time."""

    def __init__(
        self,
        seed: int,
        strike: Strike | None,
        monitor: type[StruckMonitor] = StruckMonitor,
        mode: Mode = Mode.BRING_UP,
    ) -> None:
        self.strike, self.mode = strike, mode
        self.monitors = [monitor(TP_V1_1.role(r), r, strike) for r in range(RANKS)]
        self.memories = [Memory(header(r), lambda: self.simulation.now) for r in range(RANKS)]
        self.tamper = Tamper(strike, seed)
        conductors = [Conductor(m, memory) for m, memory in zip(self.monitors, self.memories, strict=True)]
        self.simulation = Simulation(conductors, seed, tamper=self.tamper, aborts=True)
        self.weights = [Weights(r) for r in range(RANKS)]
        self.generators = [FakeGenerator() for _ in range(RANKS)]
        own = facts()
        self.roles: list[Role] = []
        for r in range(RANKS):
            settings = Settings(in_facts(strike, r, own), mode, fingerprint=self.weights[r])
            self.roles.append((Worker if r else Rank0)(self.monitors[r], settings, self.generators[r]))
        self._break()
        for role in self.roles[1:]:
            assert isinstance(role, Worker)
            self.simulation.start(role.monitor.rank, role.serve())

    @property
    def rank0(self) -> Rank0:
        rank0 = self.roles[0]
        assert isinstance(rank0, Rank0)
        return rank0

    def fields(self, recompute: bool = False, fresh: bool = False, **changes: Any) -> dict[str, Any]:
        """A good chunk, with changes. In optimize mode it brings conditioning where `fresh`, or nothing is held yet."""
        if self.mode is Mode.BRING_UP:
            return fields(recompute, **changes)
        held = self.rank0.conditioning.epoch
        fresh = fresh or held == 0
        lean = {"conditioning_epoch": held + fresh, **({} if fresh else {"conditioning_embeds": None})}
        return fields(recompute, **lean, **changes)

    def _break(self) -> None:
        """The faults of IN_GENERATOR, which come in the chunk that the strike names."""
        strike = self.strike
        if strike is None or strike.kind not in IN_GENERATOR:
            return
        rank, at = strike.rank, strike.nth
        if strike.kind == "plan":
            self.generators[rank] = FakeGenerator(off_by=1 - 2 * (at % 2), at=at)
        elif strike.kind == "drift":
            self.generators[rank] = FakeGenerator(drift=1.0, at=at)
        elif strike.kind == "override":
            self.roles[rank].override = Uncleared()
        self.roles[rank].generator = self.generators[rank]

    def do(self, moves: Any) -> BaseException | None:
        """One of rank0's coroutines to its end, or as far as it goes; what it raised."""
        self.simulation.start(0, moves)
        self.simulation.run(until_idle=[0])
        return self.simulation.errors.pop(0, None)

    def finish(self) -> list[Trace]:
        """Shut down where rank0 still can, let everybody come to an end, and hand over the traces."""
        if self.idle():
            self.do(self.rank0.shutdown())
        self.simulation.run()
        for rank, memory in enumerate(self.memories):
            if self.monitors[rank].state == "STOPPED":
                memory.end("stopped", 0)
        return [memory.trace() for memory in self.memories]

    def idle(self) -> bool:
        return self.monitors[0].state == "IDLE" and not self.simulation.stuck

    def came(self) -> bool:
        """Whether the fault has struck."""
        strike = self.strike
        if strike is None:
            return False
        if strike.kind in AT_A_ROW:
            return self.monitors[strike.rank].struck is not None
        if strike.kind in ON_THE_WAY:
            return bool(self.tamper.struck)
        if strike.kind in IN_FACTS:
            return True
        plans = self.generators[strike.rank].plans
        if strike.kind == "override":
            return any(p["tp_do_kv_recompute"] for p in plans)
        if strike.kind == "weights":
            return self.weights[strike.rank].shard != strike.rank + 1 and any(
                p["init_cache"] for p in plans if p["chunk_index"] >= strike.nth
            )
        return any(p["chunk_index"] == strike.nth for p in plans)


class Uncleared(Override):
    """A slot that is read and not cleared."""

    def take(self, recompute: bool) -> torch.Tensor | None:
        tensor = super().take(recompute)
        self.put(tensor)
        return tensor


@cache
def facts() -> Mapping[str, str]:
    posture = parity.Posture(
        dtype="float32", attention_backend="math", kv_bias_backend="math", compile="off", recompute_schedule="none"
    )
    return parity.own_facts(TP_V1_1, RANKS, posture.facts)


BAD: tuple[Callable[[], dict[str, Any]], ...] = (
    lambda: {"base_seed": len},  # no object whose name has an address: a seed must replay in any process
    lambda: {"tp_expected_generator_calls": 9},
    lambda: {"latents": torch.ones([1] * 4000, dtype=torch.bfloat16)},
    lambda: {"latents": torch.ones(1, 2, dtype=torch.float32)},
    lambda: {"latents": torch.ones(1, 2, dtype=torch.bfloat16, device="meta")},
)
"""What makes a chunk one that preflight refuses: the fault `request`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a schedule. `wrong` says what the model had not predicted, if anything."""

    seed: int
    strike: Strike | None
    struck: bool
    verdict: str
    observed: str
    culprits: tuple[int, ...]
    witnessed: Mapping[str, frozenset[tuple[str, str]]]
    traces: tuple[Trace, ...]
    wrong: str | None


def program(job: Struck, chance: random.Random) -> None:
    """The application: a few chunks, refusals, hard cuts, new conditioning and heartbeats, in any order."""
    if job.do(job.rank0.startup()) is not None:
        return
    for _ in range(chance.randint(1, 5)):
        change_weights(job)
        if not job.idle():
            return
        what = chance.random()
        if what < 0.6:
            recompute, fresh, cut = (chance.random() < share for share in (0.4, 0.3, 0.3))
            error = job.do(job.rank0.chunk(job.fields(recompute, fresh, init_cache=cut)))
            assert not isinstance(error, Refused), error
        elif what < 0.75:
            before = job.monitors[0].vars
            error = job.do(job.rank0.chunk(job.fields(**chance.choice(BAD)())))
            if isinstance(error, Refused):
                assert job.monitors[0].vars == before
        elif what < 0.85 and not job.monitors[0].vars.pending_cut:
            job.do(job.rank0.hard_cut())
        else:
            job.do(job.rank0.heartbeat())
    if job.idle() and chance.random() < 0.3:
        job.do(job.rank0.shutdown("drain"))


def change_weights(job: Struck) -> None:
    """The fault `weights`, before the chunk that it names."""
    strike = job.strike
    if strike and strike.kind == "weights" and job.monitors[0].vars.chunk_index + 1 >= strike.nth:
        job.weights[strike.rank].shard = 100


def run(seed: int, strike: Strike | None = None) -> Outcome:
    """The schedule of a seed, with this fault in place of the one that the seed draws."""
    chance = random.Random(seed)
    own = drawn(chance)
    job = Struck(seed, strike or own, mode=Mode.OPTIMIZE if chance.random() < 1 / 3 else Mode.BRING_UP)
    if chance.random() < 0.2:
        for role in job.roles[1:]:
            role.signalled = MethodType(lambda role: role.monitor.vars.chunk_index > 0, role)
    program(job, chance)
    return judged(seed, job, job.finish())


def judged(seed: int, job: Struck, traces: list[Trace]) -> Outcome:
    """Replay the traces, and hold the verdict against what the model predicts."""
    found = diagnose(traces)
    at = found.divergence
    observed = first_word(at.observed) if at else ""
    struck = job.came()
    wrong = mistaken(job, struck, found.verdict, observed, found.culprits)
    return Outcome(
        seed, job.strike, struck, found.verdict, observed, found.culprits, found.witnessed, tuple(traces), wrong
    )


def mistaken(job: Struck, struck: bool, verdict: str, observed: str, culprits: tuple[int, ...]) -> str | None:
    """What the model had not predicted of a schedule, or None."""
    strike = job.strike
    stopped = [m.state == "STOPPED" for m in job.monitors]
    if strike is None or not struck:
        return None if verdict == "conforming" and all(stopped) else f"{verdict} at {observed} without a fault"
    silent = strike.kind in BY_PEERS
    if silent and observed == "" and verdict == "unknown":
        alone = all(stopped[r] or r == strike.rank for r in range(RANKS))
        return None if alone else "peers of a silent rank are left, and replay names nobody"
    if verdict != "divergent":
        return f"{verdict} after {strike.kind}"
    if any(m.state in ("GENERATING", "AWAIT_HEADER") for r, m in enumerate(job.monitors) if r != strike.rank):
        return "a rank is left behind"
    if observed not in noticed(strike.kind):
        return f"seen at {observed}, predicted at {', '.join(sorted(noticed(strike.kind)))}"
    # facts that differ are told by every rank alike, and a message that rank0 sent wrong is found by all workers
    if strike.kind not in IN_FACTS and ON_THE_WAY.get(strike.kind) != "all" and strike.rank not in culprits:
        return f"blames {culprits}, but rank{strike.rank} was struck"
    return None


def digest_of(traces: Iterable[Trace]) -> str:
    """A digest of all that traces say, virtual times included."""
    return digest.to_hex(digest.of_bytes(repr([(t.header.rank, t.lines) for t in traces]).encode()))
