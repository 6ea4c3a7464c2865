"""The real coroutines under rules from the tables, faults among them: replay must say what the model predicts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from genlock.errors import Refused
from genlock.impl.chunk import ack_check, parity, preflight, wire
from genlock.impl.chunk.schema import Mode
from genlock.impl.faults.simulated_faults import AT_A_ROW, IN_FACTS, IN_GENERATOR, ON_THE_WAY, Strike
from genlock.impl.rank.monitor import Monitor
from genlock.model.protocols.tp_v1_1 import RANK0, TP_V1_1, WORKER
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.properties import PROPERTIES
from genlock.model.tables import By, Row
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from repository import SUPPORT
from schedules import STRIKES, Struck, change_weights, digest_of, judged, noticed, run
from simulated import RANKS, Watched

SPOIL: Mapping[str, Callable[[], dict[str, Any]]] = {
    "PREFLIGHT_1": lambda: {"base_seed": lambda: 0},
    "PREFLIGHT_2": dict,
    "PREFLIGHT_3": lambda: {"latents": torch.ones([1] * 4000, dtype=torch.bfloat16)},
    "PREFLIGHT_4": lambda: {"latents": torch.ones(1, 2, dtype=torch.float32)},
    "PREFLIGHT_5": lambda: {"latents": torch.ones(1, 2, dtype=torch.bfloat16, device="meta")},
}
"""For each preflight state, what makes a chunk refused there (step 2 has nothing that can fail: it is made to)."""

BY_HAND: Mapping[str, Callable[[Struck, Row, bool, bool], Any]] = {
    "request": lambda job, row, recompute, fresh: job.rank0.chunk(job.fields(recompute, fresh)),
    "refuse": lambda job, row, recompute, fresh: job.rank0.chunk(job.fields(**SPOIL[row.state]())),
    "hard_cut": lambda job, row, recompute, fresh: job.rank0.hard_cut(),
    "heartbeat": lambda job, row, recompute, fresh: job.rank0.heartbeat(),
    "shutdown": lambda job, row, recompute, fresh: job.rank0.shutdown(),
    "drain": lambda job, row, recompute, fresh: job.rank0.shutdown("drain"),
}
"""How the application brings about each event that the tables leave to the environment."""

ASKED = [r for r in RANK0.rows if r.by is By.ENVIRONMENT]
ROWS = {role.name: {r.key for r in role.rows} for role in TP_V1_1.roles}


def test_every_environment_row_has_a_rule() -> None:
    assert {r.event for r in ASKED} == set(BY_HAND)
    assert {r.state for r in ASKED if r.event == "refuse"} == set(SPOIL)
    assert {r.event for r in WORKER.rows if r.by is By.ENVIRONMENT} == {"hold_signal"}


def test_every_kind_of_fault_of_the_model_can_strike() -> None:
    kinds = {*AT_A_ROW, *ON_THE_WAY, *IN_FACTS, *IN_GENERATOR}
    assert {*kinds, "request"} == set(FAULTS), "a bad request is refused: the rules above make them"
    assert {kind for _, kind, _, _ in STRIKES} == kinds
    for role, ranks in ((RANK0, {0}), (WORKER, {1, 2})):
        events = {event for rank, kind, event, _ in STRIKES if kind == "crash" and rank in ranks}
        asked = {"refuse", "drain", "hold_signal", "abort"}
        causes = (By.FAULT, By.DETECTION, By.VIOLATION)
        assert events == {r.event for r in role.rows if r.by not in causes} - asked


def test_what_is_predicted_is_read_from_the_tables() -> None:
    assert {"reject_header", "reject_envelope"} <= noticed("corrupt")
    assert "reject_envelope" not in noticed("stale")
    assert "acks_differ" in noticed("weights")
    assert "parity_differs" in noticed("flag")
    assert "miscount" in noticed("plan")


class Lockstep(RuleBasedStateMachine):
    """Work in either mode, refusals, hard cuts, overrides, heartbeats, shutdown and one fault, in any order."""

    witnessed: ClassVar[set[tuple[str, tuple[str, str]]]] = set()
    verdicts: ClassVar[dict[str, int]] = {}

    @initialize(
        seed=st.integers(0, 2**16), strike=st.one_of(st.none(), st.sampled_from(STRIKES)), nth=st.integers(1, 3)
    )
    def begin(self, seed: int, strike: tuple[int, str, str, bool] | None, nth: int) -> None:
        found = None
        if strike is not None:
            rank, kind, event, after = strike
            found = Strike(kind, rank, event, nth, after)
        self.job = Struck(seed, found, Watched, list(Mode)[seed % 2])
        self.done = False
        self.job.do(self.job.rank0.startup())

    def idle(self) -> bool:
        return hasattr(self, "job") and not self.done and self.job.idle()

    def holds(self, rank: int) -> Watched:
        monitor = self.job.monitors[rank]
        assert isinstance(monitor, Watched)
        return monitor

    @precondition(idle)
    @rule(row=st.sampled_from(ASKED), recompute=st.booleans(), fresh=st.booleans())
    def environment(self, row: Row, recompute: bool, fresh: bool) -> None:
        monitor = self.holds(0)
        if row.state == monitor.state and not row.allows(monitor.vars, None):
            return
        change_weights(self.job)
        before, split = monitor.vars, preflight.split
        if row.key == ("PREFLIGHT_2", "refuse"):
            preflight.split = _raise_in_split  # type: ignore[assignment]
        try:
            self.job.simulation.start(0, BY_HAND[row.event](self.job, row, recompute, fresh))
        finally:
            preflight.split = split
        error = self.job.simulation.errors.pop(0, None)
        if isinstance(error, Refused):
            note(str(error))
            assert row.event == "refuse"
            assert f"PREFLIGHT_{error.step}" == row.state
            assert monitor.vars == before
            assert row.key in monitor.rows
        else:
            assert error is None or self.job.came()

    @precondition(lambda self: hasattr(self, "job") and bool(self.job.simulation.ready()))
    @rule(choice=st.integers(0, RANKS - 1))
    def complete(self, choice: int) -> None:
        ready = [rank for rank in self.job.simulation.ready() if rank not in self.job.simulation.stalled]
        if ready:
            self.job.simulation.complete(ready[choice % len(ready)])

    @precondition(lambda self: hasattr(self, "job"))
    @rule(rank=st.integers(1, RANKS - 1))
    def signal(self, rank: int) -> None:
        self.job.roles[rank].signalled = lambda: True

    @invariant()
    def without_a_fault_nobody_fails_and_ghosts_see_nothing_wrong(self) -> None:
        if not hasattr(self, "job") or self.job.came():
            return
        assert not any(m.failed for m in self.job.monitors)
        wrong = {name for name, p in PROPERTIES.items() if p.kind == "always"}
        assert not wrong & {name for r in range(RANKS) for name in self.holds(r).seen}

    @invariant()
    def workers_are_never_ahead(self) -> None:
        if not hasattr(self, "job") or self.job.came():
            return
        driver, *workers = [m.vars for m in self.job.monitors]
        for v in workers:
            assert v.call_id <= driver.call_id
            assert v.chunk_index <= driver.chunk_index
            assert v.cache_epoch <= driver.cache_epoch

    def teardown(self) -> None:
        if not hasattr(self, "job"):
            return
        job = self.job
        job.simulation.run()
        outcome = judged(0, job, job.finish())
        assert outcome.wrong is None, f"{outcome.wrong} ({outcome.strike})"
        for role, rows in outcome.witnessed.items():
            self.witnessed.update((role, row) for row in rows)
        self.verdicts[outcome.verdict] = self.verdicts.get(outcome.verdict, 0) + 1
        if outcome.verdict == "conforming":
            assert outcome.witnessed["rank0"] == self.holds(0).rows


def _raise_in_split(*args: Any) -> Any:
    checked = args[0]
    ids = checked.ids
    raise Refused("made to fail", field="x", value=0, step=2, call_id=ids.call_id, chunk_index=ids.chunk_index)


TestLockstep = Lockstep.TestCase
TestLockstep.settings = settings(
    max_examples=400, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def test_lockstep_saw_much_of_the_model() -> None:
    """It runs after the machine, which leaves its counts."""
    if not Lockstep.verdicts:
        pytest.skip("it asks what the state machine above has shown, and that was not selected")
    assert set(Lockstep.verdicts) >= {"conforming", "divergent"}
    total = sum(len(rows) for rows in ROWS.values())
    print(f"the machine has shown {len(Lockstep.witnessed)} of {total} transitions")
    assert len(Lockstep.witnessed) >= 50


# ── schedules from a seed ───────────────────────────────────────────────────────────────────────────

SEEDS = 400
UNREACHED = {
    "rank0": {
        ("PREFLIGHT_2", "refuse"),  # nothing in it can fail; the machine above makes it
        # a root is done with a broadcast before it can miss anybody, unless it runs too far ahead
        ("HEADER_SENT", "peer_lost"),
        ("HEADER_SENT", "deadline"),
        ("BEATING", "deadline"),
        ("STOPPING", "deadline"),
    },
    "worker": set[tuple[str, str]](),
}
"""Transitions that these schedules do not come to, beside detection in states that wait for nobody."""


def test_every_strike_is_seen_as_predicted_and_together_they_cover_the_model() -> None:
    witnessed: dict[str, set[tuple[str, str]]] = {"rank0": set(), "worker": set()}
    struck = set()
    for nth in (1, 2):
        for number, (rank, kind, event, after) in enumerate(STRIKES):
            for seed in range(8 * number, 8 * number + 8):  # until the application comes as far as the strike
                outcome = run(seed, Strike(kind, rank, event, nth, after))
                assert outcome.wrong is None, f"seed {seed}, {outcome.strike}: {outcome.wrong}"
                for role, rows in outcome.witnessed.items():
                    witnessed[role] |= rows
                if outcome.struck:
                    struck.add(kind)
                    break
    assert struck == {kind for _, kind, _, _ in STRIKES}
    for one in TP_V1_1.roles:
        waits, unseen = {r.state for r in one.rows if r.op}, ROWS[one.name] - witnessed[one.name]
        alone = {(s, event) for s, event in unseen if event in ("peer_lost", "deadline") and s not in waits}
        assert unseen - alone == UNREACHED[one.name]
    covered = sum(len(rows) for rows in witnessed.values()), sum(len(rows) for rows in ROWS.values())
    assert covered == (94, 127), "transitions of the model that real coroutines have shown, of all"


def test_schedules_drawn_from_seeds_are_as_predicted() -> None:
    verdicts: dict[str, int] = {}
    for seed in range(SEEDS):
        outcome = run(seed)
        assert outcome.wrong is None, f"seed {seed}: {outcome.wrong} ({outcome.strike})"
        verdicts[outcome.verdict] = verdicts.get(outcome.verdict, 0) + 1
    assert verdicts == {"conforming": 224, "divergent": 176}


def test_a_seed_replays_exactly() -> None:
    for seed in (3, 5, 12):
        one, again = run(seed), run(seed)
        assert digest_of(one.traces) == digest_of(again.traces)
        assert any(line.time_ns for trace in one.traces for line in trace.lines if hasattr(line, "time_ns"))
    assert digest_of(run(3).traces) != digest_of(run(5).traces)


def test_a_seed_replays_exactly_in_another_process() -> None:
    """Neither the order of sets nor an address may show: among the seeds are facts that differ, and a refusal."""
    seeds = (1, 5, 12)
    program = f"from schedules import digest_of, run\nfor seed in {seeds}: print(digest_of(run(seed).traces))"
    alike = {**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONHASHSEED": "1"}
    told = subprocess.run([sys.executable, "-c", program], env=alike, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [digest_of(run(seed).traces) for seed in seeds]


BROKEN: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "payload digests are not looked at": lambda patch: patch.setattr(
        wire, "spec_digest", lambda spec, plain, policy, chunk: spec.digest
    ),
    "acks are not compared": lambda patch: patch.setattr(ack_check.AckBook, "state", lambda self, ack, cut, rank: 0),
    "the monitor lets every move pass": lambda patch: patch.setattr(
        Monitor, "_row", lambda self, event, data: self.role.row(self.state, event)
    ),
    "parity is not compared": lambda patch: patch.setattr(parity, "project", lambda records: frozenset({"same"})),
}


@pytest.mark.parametrize("what", BROKEN)
def test_code_without_a_check_is_found_by_some_schedule(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[what](monkeypatch)
    for seed in range(SEEDS):
        try:
            if run(seed).wrong is not None:
                return
        except Exception:
            return
    pytest.fail(f"{SEEDS} schedules find nothing wrong where {what}")
