"""Machine-made mutants: a fixed sample is killed by the properties, and each that survives has its reason."""

from __future__ import annotations

from collections import Counter

import pytest
from genlock.model.mutation.generated_mutants import BOUNDS, EQUIVALENT, SEARCHES, VALIDATION, kill, main_step, mutants
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.properties import PROPERTIES

EVERY = {m.name: m.protocol for m in mutants(TP_V1_1)}

SAMPLE = {
    "rank0 STARTUP.exchange_parity: drop row": VALIDATION,
    "rank0 PARITY_CHECK.parity_agrees: drop guard parity_agrees": "parity_before_header",
    "rank0 PARITY_CHECK.parity_agrees: target PREFLIGHT_1": "nothing_sent_before_preflight",
    "rank0 IDLE.hard_cut: drop effect ask_cut": "hard_cut",
    "rank0 IDLE.shutdown: drop effect next_call": "clean_shutdown",
    "rank0 IDLE.shutdown: drop row": "shut_down",
    "rank0 IDLE.drain: drop row": "drained",
    "rank0 PREFLIGHT_1.preflight_schema: drop guard pending_cut_is_planned": "no_stranding",
    "rank0 PREFLIGHT_3.preflight_encode: exchange with preflight_dtypes": "nothing_sent_before_preflight",
    "rank0 PREFLIGHT_5.preflight_materialise: exchange with commit": "no_mispairing",
    "rank0 PREFLIGHT_4.refuse: drop effect give_up": "refusal_leaves_no_trace",
    "rank0 PREFLIGHT_4.refuse: target PREFLIGHT_1": "nothing_sent_before_preflight",
    "rank0 COMMITTED.send_header: exchange with send_payload": "no_stranding",
    "rank0 GENERATING.leave_phase_b: drop guard override_is_clear": "no_stale_override",
    "rank0 GENERATING.leave_phase_b: drop effect close_calls": "no_unseen_drift",
    "rank0 ACK_CHECK.acks_agree: drop guard acks_agree": "no_unseen_drift",
    "rank0 ACK_CHECK.acks_agree: target own state": "no_stranding",
    "worker AWAIT_HEADER.hold_signal: drop row": "signal_held",
    "worker HEADER_CHECK.accept_infer: drop guard call_is_newer": "monotonic_ids",
    "worker HEADER_CHECK.accept_infer: drop guard epoch_follows": "epoch_fence",
    "worker HEADER_CHECK.accept_infer: drop guard header_plan_holds": "coherent_plan",
    "worker HEADER_CHECK.accept_noop: target own state": "no_stranding",
    "worker HEADER_CHECK.accept_shutdown: drop guard header_is_intact": "acts_as_told",
    "worker ENVELOPE_CHECK.accept_envelope: drop guard payload_is_intact": "no_mispairing",
    "worker GENERATING.generate: drop row": "no_stranding",
    "worker ACK.send_ack: exchange with receive_header": "no_stranding",
    "rank0 IDLE.peer_lost: target own state": "crash_over_hang",
    "worker AWAIT_PAYLOAD.peer_lost: drop row": "crash_over_hang",
}
"""Mutant to what kills it."""


def test_the_changes_are_of_every_kind() -> None:
    kinds = Counter(name.split(": ")[1].split(" ")[0] for name in EVERY)
    assert set(kinds) == {"drop", "target", "exchange"}
    assert len(EVERY) == len(list(mutants(TP_V1_1))) == 272  # each name is there once


def test_each_mutant_is_another_protocol() -> None:
    sound = TP_V1_1.digest
    assert {p.digest for p in EVERY.values()}.isdisjoint({sound})


def test_the_main_line_of_rank0_leads_through_a_chunk() -> None:
    state, line = "IDLE", list[str]()
    while not line or state != "IDLE":
        row = main_step(TP_V1_1.driver, state)
        assert row is not None
        line.append(row.event)
        state = row.target
    assert line[0] == "request"
    assert line[-1] == "acks_agree"


def test_the_sound_protocol_survives() -> None:
    assert kill(TP_V1_1) is None
    assert len(SEARCHES) == 3


@pytest.mark.parametrize("name", SAMPLE)
def test_a_mutant_of_the_sample_is_killed(name: str) -> None:
    assert kill(EVERY[name]) == SAMPLE[name]


def test_the_sample_has_every_kind_of_change_and_most_killers() -> None:
    assert {name.split(": ")[1].split(" ")[0] for name in SAMPLE} == {"drop", "target", "exchange"}
    assert set(SAMPLE.values()) <= {*PROPERTIES, VALIDATION, BOUNDS}
    assert len(set(SAMPLE.values())) > 12


def test_survivors_are_mutants_with_a_reason() -> None:
    assert set(EQUIVALENT) <= set(EVERY)
    assert not set(EQUIVALENT) & set(SAMPLE)
    assert all(EQUIVALENT.values())


@pytest.mark.parametrize("name", list(EQUIVALENT)[::10])
def test_some_survivors_survive(name: str) -> None:
    assert kill(EVERY[name]) is None
