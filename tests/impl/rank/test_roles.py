"""rank0 and workers in memory: the real coroutines, one scene at a time (`test_statemachine` has the rest)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from genlock.conformance.protocol.diagnose import diagnose
from genlock.errors import ContractViolation, GenlockError, ParityMismatch, Refused
from genlock.impl.chunk import parity, preflight, wire
from genlock.impl.chunk.schema import MAX_PAYLOAD_BYTES, Committed, Ids, Meta, Mode, encode
from genlock.impl.rank.conductor import Conductor
from genlock.impl.rank.monitor import Monitor
from genlock.impl.rank.roles import Settings, Worker
from genlock.model.protocols.tp_rules import this_call
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.protocols.tp_values import Action, Call, Header, TPVars
from genlock.model.semantics.properties import Ghost, watch
from genlock.traces.format import read
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import FakeGenerator, Job, Watched, fields, watched


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


def test_what_sending_takes_is_reserved_before_the_commitment_point() -> None:
    job, asked = Job(), list[int]()

    def reserve(payload: torch.Tensor) -> None:
        asked.append(payload.numel())
        if len(asked) == 1:
            raise GenlockError("no memory for a payload", where="rank0")

    job.rank0.settings = replace(job.rank0.settings, reserve=reserve)
    with pytest.raises(Refused, match=r"preflight step 5 refused `payload` = .*: rank0: no memory for a payload"):
        job.run(job.rank0.chunk(fields()))
    assert job.states()[1:] == ["AWAIT_HEADER"] * 2
    job.run(job.rank0.chunk(fields()))
    assert asked[0] == asked[1] > 0
    assert {m.vars.chunk_index for m in job.monitors} == {1}


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


def test_tensors_that_are_not_as_meta_says_are_rejected_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look at the envelope, after the digests: whatever happened to the tensors since they were unpacked."""
    unpack = wire.unpack_payload

    def turned(*given: Any) -> dict[str, torch.Tensor | None]:
        tensors = unpack(*given)
        assert tensors["latents"] is not None
        return {**tensors, "latents": tensors["latents"].mT}

    job = Job()
    monkeypatch.setattr(wire, "unpack_payload", turned)
    job.simulation.start(0, job.rank0.chunk(fields()))
    job.simulation.run()
    for rank in (1, 2):
        assert "reject_envelope" in str(job.simulation.errors[rank])
        assert "`latents`" in str(job.simulation.errors[rank])


# ── a worker that is sent anything ──────────────────────────────────────────────────────────────────


def awaiting_header() -> tuple[Conductor, Any]:
    """A worker alone, past parity, and the operation by which it waits for a header."""
    monitor = Monitor(TP_V1_1.role(1), 1)
    own = Settings(parity.own_facts(TP_V1_1, 2, {}))
    conductor = Conductor(monitor)
    pending = conductor.start(Worker(monitor, own, FakeGenerator()).serve())
    assert pending is not None
    return conductor, conductor.advance([own.record()] * 2)


def good_packet() -> torch.Tensor:
    checked = preflight.check_schema(fields(), Ids(1, 1, 0, 0), Committed(), Mode.BRING_UP)
    typed = preflight.check_dtypes(preflight.encode_meta(preflight.split(checked)))
    return preflight.materialise(typed).packet


def repacked(meta: Meta, nbytes: int) -> torch.Tensor:
    """A header whose own digests are right, whatever its meta says."""
    sizes = {"tensor_count": len(meta.tensor_specs), "payload_nbytes": nbytes}
    return wire.pack_header(Action.INFER, Ids(1, 1, 0, 0), meta=encode(meta), **sizes)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "tp_num_denoise_steps": st.integers(-1, 2**40),
        "tp_expected_generator_calls": st.integers(-1, 2**40),
        "tp_do_kv_recompute": st.booleans(),
        "tp_envelope_version": st.integers(0, 3),
        "height": st.integers(-(2**63), 2**63 - 1),
        "shape": st.lists(st.integers(0, 2**62), max_size=5),
        "dtype": st.sampled_from(["bfloat16", "float64", "bits16", "complex128", "nonsense"]),
    },
)


EDITS = st.lists(st.tuples(st.integers(0, 8 * wire.HEADER_NUMEL - 1), st.integers(0, 255)), max_size=4)


def packet_of(sent: Any, data: st.DataObject) -> torch.Tensor | None:
    """A header packet with bytes changed, or with meta changed and digests that fit; None: it cannot be packed."""
    if isinstance(sent, list):
        raw = bytearray(good_packet().numpy().tobytes())
        for at, byte in sent:
            raw[at] = byte
        return torch.frombuffer(raw, dtype=torch.int64)
    good = wire.unpack_meta(wire.unpack_header(good_packet()))
    first, *others = good.tensor_specs
    odd = {name: sent.pop(name) for name in ("shape", "dtype") if name in sent}
    specs = (msgspec.structs.replace(first, **{k: tuple(v) if k == "shape" else v for k, v in odd.items()}), *others)
    try:
        meta = msgspec.structs.replace(good, tensor_specs=specs, **sent)
        return repacked(meta, data.draw(st.integers(1, 2**28)) if odd else wire.payload_nbytes(specs))
    except ContractViolation:
        return None


@settings(max_examples=300)
@given(st.one_of(EDITS, CHANGES), st.data())
def test_whatever_a_header_says_nothing_is_allocated_that_was_not_validated(sent: Any, data: st.DataObject) -> None:
    packet = packet_of(sent, data)
    if packet is None:
        return
    conductor, pending = awaiting_header()
    asked: list[int] = []
    allocate = wire.allocate_payload

    def watched_allocation(meta: Meta, device: Any = "cpu") -> torch.Tensor:
        asked.append(wire.payload_nbytes(meta.tensor_specs))
        return allocate(meta, device)

    error = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "allocate_payload", watched_allocation)
        try:
            conductor.advance(pending[1].tensor.copy_(packet))
        except ContractViolation as violation:
            error = violation
    if error is not None:
        assert "reject_header" in str(error)
        assert (asked, conductor.monitor.state) == ([], "POISONED")
        return
    header = wire.unpack_header(packet)
    if header.action is Action.INFER:
        assert asked == [header.payload_nbytes]
        assert asked[0] <= MAX_PAYLOAD_BYTES
