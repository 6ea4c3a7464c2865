"""rank0 and workers in memory: the real coroutines, driven by rules that come from the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from genlock.conformance.explain import diagnose
from genlock.errors import ContractViolation, ParityMismatch, Refused
from genlock.impl import preflight
from genlock.impl.monitor import Monitor
from genlock.impl.roles import Rank0
from genlock.model.properties import PROPERTIES, Ghost, watch
from genlock.model.protocol import RANK0, WORKER, Action, Call, Header, TPVars, this_call
from genlock.model.tables import By, Row
from genlock.traces.format import read
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated import RANKS, FakeGenerator, Job, fields


def watched(job: Job, rank: int) -> Watched:
    monitor = job.monitors[rank]
    assert isinstance(monitor, Watched)
    return monitor


class Watched(Monitor):
    """A monitor beside which the model's ghosts watch the same moves."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.ghost, self.seen, self.rows = Ghost(), list[str](), set[tuple[str, str]]()

    def _arrive(self, row: Row, data: Any) -> None:
        before = self.vars
        super()._arrive(row, data)
        self._watch(row, "complete" if row.op else "step", data, before)
        self.rows.add(row.key)

    def enter(self, event: str) -> Any:
        op = super().enter(event)
        row = self.role.row(self.state, event)
        self._watch(row, "issue", row.send(self.vars) if row.send else None, self.vars)
        return op

    def _watch(self, row: Row, edge: str, value: Any, before: TPVars) -> None:
        self.ghost, seen = watch(self.ghost, row.event, edge, value, before, self.vars)
        self.seen += seen


# ── rules from the tables ───────────────────────────────────────────────────────────────────────────

SPOIL: Mapping[str, Callable[[], dict[str, Any]]] = {
    "PREFLIGHT_1": lambda: fields(base_seed=lambda: 0),
    "PREFLIGHT_2": lambda: fields(),
    "PREFLIGHT_3": lambda: fields(latents=torch.ones([1] * 4000, dtype=torch.bfloat16)),
    "PREFLIGHT_4": lambda: fields(latents=torch.ones(1, 2, dtype=torch.float32)),
    "PREFLIGHT_5": lambda: fields(latents=torch.ones(1, 2, dtype=torch.bfloat16, device="meta")),
}
"""For each preflight state, a chunk that is refused there (step 2 has nothing that can fail: it is made to)."""


def _refusal(rank0: Rank0, row: Row) -> Any:
    spoiled = SPOIL.get(row.state, lambda: fields(torch.tensor([1]) is None))()
    return rank0.chunk(spoiled)


BY_HAND: Mapping[str, Callable[[Rank0, Row, bool], Any]] = {
    "request": lambda rank0, row, recompute: rank0.chunk(fields(recompute)),
    "refuse": lambda rank0, row, recompute: _refusal(rank0, row),
    "hard_cut": lambda rank0, row, recompute: rank0.hard_cut(),
    "heartbeat": lambda rank0, row, recompute: rank0.heartbeat(),
    "shutdown": lambda rank0, row, recompute: rank0.shutdown(),
    "drain": lambda rank0, row, recompute: rank0.shutdown("drain"),
}
"""How the application brings about each event that the tables leave to the environment."""

ASKED = [r for r in RANK0.rows if r.by is By.ENVIRONMENT]


def test_every_environment_row_of_rank0_has_a_rule() -> None:
    assert {r.event for r in ASKED} == set(BY_HAND)
    assert {r.state for r in ASKED if r.event == "refuse"} == set(SPOIL)
    assert {r.event for r in WORKER.rows if r.by is By.ENVIRONMENT} == {"hold_signal"}


class Lockstep(RuleBasedStateMachine):
    """Work, refusals, hard cuts, heartbeats and shutdown, with collectives completing in any order."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.job = Job(folder=Path(self.folder.name), seed=seed, monitor=Watched)

    def idle(self) -> bool:
        return self.job.monitors[0].state == "IDLE"

    @precondition(idle)
    @rule(row=st.sampled_from(ASKED), recompute=st.booleans())
    def environment(self, row: Row, recompute: bool) -> None:
        monitor = watched(self.job, 0)
        if row.state == monitor.state and not row.allows(monitor.vars, None):
            return
        before = monitor.vars
        split = preflight.split
        if row.key == ("PREFLIGHT_2", "refuse"):
            preflight.split = _raise_in_split  # type: ignore[assignment]
        try:
            self.job.simulation.start(0, BY_HAND[row.event](self.job.rank0, row, recompute))
        finally:
            preflight.split = split
        error = self.job.simulation.errors.pop(0, None)
        assert (error is not None) == (row.event == "refuse"), error
        if isinstance(error, Refused):
            note(str(error))
            assert f"PREFLIGHT_{error.step}" == row.state
            assert monitor.vars == before
            assert row.key in monitor.rows

    @precondition(lambda self: bool(self.job.simulation.ready()))
    @rule(choice=st.integers(0, RANKS - 1))
    def complete(self, choice: int) -> None:
        ready = self.job.simulation.ready()
        self.job.simulation.complete(ready[choice % len(ready)])

    @invariant()
    def nobody_failed(self) -> None:
        assert not self.job.simulation.errors
        assert not any(m.failed for m in self.job.monitors)

    @invariant()
    def ghosts_saw_nothing_wrong(self) -> None:
        wrong = {name for name, p in PROPERTIES.items() if p.kind == "always"}
        assert not wrong & {name for r in range(RANKS) for name in watched(self.job, r).seen}

    @invariant()
    def workers_are_never_ahead(self) -> None:
        driver, *workers = [m.vars for m in self.job.monitors]
        for v in workers:
            assert v.call_id <= driver.call_id
            assert v.chunk_index <= driver.chunk_index
            assert v.cache_epoch <= driver.cache_epoch

    @precondition(lambda self: self.job.states() == ["STOPPED"] * RANKS)
    @rule(seed=st.integers(0, 2**16))
    def again(self, seed: int) -> None:
        self.finish()
        self.begin(seed)

    def teardown(self) -> None:
        if hasattr(self, "job"):
            self.finish()

    def finish(self) -> None:
        """However far the run has come, it can be shut down, and its traces conform."""
        job = self.job
        job.simulation.run()
        job.stop()
        assert job.states() == ["STOPPED"] * RANKS
        traces = [read(path) for path in sorted(Path(self.folder.name).iterdir())]
        found = diagnose(traces)
        assert found.verdict == "conforming", found
        assert found.witnessed["rank0"] == watched(job, 0).rows
        self.folder.cleanup()


def _raise_in_split(*args: Any) -> Any:
    checked = args[0]
    ids = checked.ids
    raise Refused("made to fail", field="x", value=0, step=2, call_id=ids.call_id, chunk_index=ids.chunk_index)


TestLockstep = Lockstep.TestCase
TestLockstep.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# ── single scenes ───────────────────────────────────────────────────────────────────────────────────


def test_chunk_runs_in_lockstep_and_ends_in_equal_states() -> None:
    job = Job()
    output = job.run(job.rank0.chunk(fields(init_cache=True)))
    assert torch.equal(output, fields()["latents"])
    assert job.monitors[0].vars.chunk_index == 1
    assert {m.vars.cache_epoch for m in job.monitors} == {1}


def test_refusal_changes_nothing_and_a_pending_cut_survives_it() -> None:
    job = Job()
    job.run(job.rank0.chunk(fields()))
    before = job.monitors[0].vars
    with pytest.raises(Refused, match=r"meta\.height"):
        job.run(job.rank0.chunk(fields(init_cache=True, height=-1)))
    after = job.monitors[0].vars
    assert after.pending_cut
    assert (after.call_id, after.chunk_index, after.cache_epoch) == (before.call_id, 1, 0)
    job.simulation.run()
    assert job.states()[1:] == ["AWAIT_HEADER"] * 2
    assert all(m.vars.chunk_index == 1 for m in job.monitors)
    job.run(job.rank0.chunk(fields()))
    assert {m.vars.cache_epoch for m in job.monitors} == {1}
    assert not job.monitors[0].vars.pending_cut


def test_worker_that_counts_one_too_many_dies_at_its_own_assertion() -> None:
    generators = [FakeGenerator(), FakeGenerator(off_by=1), FakeGenerator()]
    job = Job(generators=generators, monitor=Watched)
    job.simulation.start(0, job.rank0.chunk(fields()))
    job.simulation.run()
    assert generators[1].made == 2
    error = job.simulation.errors[1]
    assert isinstance(error, ContractViolation)
    job.simulation.conductors[1].fail(error)
    assert ("GENERATING", "miscount") in watched(job, 1).rows
    assert job.states()[1] == "ABORTED"


def test_worker_that_counts_one_too_few_dies_before_it_leaves_phase_b() -> None:
    job = Job(generators=[FakeGenerator(), FakeGenerator(), FakeGenerator(off_by=-1)])
    job.simulation.start(0, job.rank0.chunk(fields()))
    job.simulation.run()
    assert isinstance(job.simulation.errors[2], ContractViolation)
    assert job.simulation.waits()[0] == ("generate", (2,))


def test_output_that_drifts_on_one_rank_is_named_in_the_ack() -> None:
    job = Job(generators=[FakeGenerator(), FakeGenerator(), FakeGenerator(drift=1.0)])
    with pytest.raises(ContractViolation, match=r"rank2 ack\.output_digest"):
        job.run(job.rank0.chunk(fields()))
    assert job.states()[0] == "POISONED"


def test_parity_names_key_rank_and_both_values_and_no_header_is_sent() -> None:
    job = None
    with pytest.raises(ParityMismatch, match=r"`compile`: rank2 has 'on', the others 'off'"):
        job = Job(facts=[{"compile": "off"}, {"compile": "off"}, {"compile": "on"}])
    assert job is None


def test_traces_of_a_drifted_rank_diverge_at_its_ack(tmp_path: Path) -> None:
    job = Job(generators=[FakeGenerator(), FakeGenerator(drift=1.0), FakeGenerator()], folder=tmp_path)
    with pytest.raises(ContractViolation) as caught:
        job.run(job.rank0.chunk(fields()))
    job.simulation.conductors[0].fail(caught.value)
    found = diagnose([read(path) for path in tmp_path.iterdir()])
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert found.divergence.observed.startswith("send_ack")


def test_ghosts_are_told_calls_and_headers() -> None:
    """The invariants above mean something: the ghosts are given the values that they look for."""
    job = Job(monitor=Watched)
    job.run(job.rank0.chunk(fields()))
    assert "calls_made" in watched(job, 0).seen
    assert isinstance(this_call(job.monitors[0].vars), Call)
    v = TPVars()
    _ghost, seen = watch(Ghost(), "send_header", "issue", _infer(), v, v)
    assert seen == ("parity_before_header", "nothing_sent_before_preflight")


def _infer() -> Header:
    return Header(Action.INFER, 1, 1, 0, 0)
