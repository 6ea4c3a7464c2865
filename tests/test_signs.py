"""Failure modes by how they look: rows, fields in which ranks differ, and a rank's own word."""

from __future__ import annotations

import re

import corpus
import pytest
from genlock.conformance.explain import diagnose
from genlock.conformance.signs import FIELDS, SIGNS, accused_by_word, failure_mode
from genlock.conformance.verdict import Divergence
from genlock.impl.scenario import FAULTS


def divergence(observed: str, why: str = "", phase: str = "generate") -> Divergence:
    return Divergence(1, 2, 0, 1, phase, None, 1, "SOMEWHERE", observed, (), why)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if name != "OM-15"])
def test_each_fault_of_the_matrix_is_recognised_from_its_traces_alone(name: str) -> None:
    """A fault that preflight refuses ends nothing: its run conforms, as does OM-15, an orderly drain."""
    runs = [run for run in corpus.names() if re.search(rf"--inject {name}\b", corpus.expected(run).made)]
    assert runs
    for run in runs:
        found = diagnose(corpus.traces(run))
        refused = run.startswith("refused/")
        assert found.verdict == ("conforming" if refused else "divergent")
        assert found.failure_mode == (None if refused else FAULTS[name].failure_mode), run


@pytest.mark.parametrize(
    ("observed", "why", "phase", "mode"),
    [
        ("broadcast on group device, which no row announces", "refused: all_reduce is due", "generate", "FM-08"),
        ("broadcast on group control by thread beat, which no row announces", "refused: x", "generate", "FM-09"),
        ("commit (step)", "", "preflight", "FM-04"),
        ("leave_phase_b (step)", "", "generate", "FM-02"),
        ("reject_header (step)", "", "header", "FM-10"),
        ("reject_envelope (step)", "", "payload", "FM-05"),
        ("exception (step)", "RuntimeError('x')", "ack", "FM-04"),
        ("exception (step)", "RuntimeError('x')", "idle", None),
        ("exception (step)", "the cache was reset in the middle of a chunk", "payload", "FM-12"),
        ("exception (step)", "start frame is 1, expected 0", "generate", "FM-13"),
        ("deadline in receive_payload", "", "payload", "FM-18"),
        ("peer_lost (step)", "", "idle", "FM-18"),
        ("nothing", "its trace ends here", "idle", "FM-18"),
        ("generate (enter)", "event 7 is missing", "generate", None),
        ("request (step)", "no row leads from READY by request", "payload", None),
    ],
)
def test_a_sign_names_its_failure_mode(observed: str, why: str, phase: str, mode: str | None) -> None:
    assert failure_mode(divergence(observed, why, phase), "") == mode


@pytest.mark.parametrize(
    ("why", "mode", "accused"),
    [
        ("`tp_plan`: rank1 has 'v0', the others 'v1'; `flag.x`: rank1 has 'on', the others 'off'", "FM-01", (1,)),
        ("`flag.x`: rank0 has 'on', rank2 has None, the others 'off'", "FM-03", (0, 2)),
        ("`compile`: rank3 has 'on', the others 'off'; `flag.generator`: rank3 has 'a', the others 'b'", "FM-14", (3,)),
        ("`weights_replica`: rank1 has 'a', the others 'b'", "FM-11", (1,)),
        ("`weights_shard`: rank1 and rank2 have the same, and no two ranks may", "FM-11", (1, 2)),
        ("`tp_rng_policy`: rank1 has 'own', the others 'broadcast'", "FM-16", (1,)),
        ("`tables`: rank1 has 'a', the others 'b'", "FM-01", (1,)),
    ],
)
def test_parity_says_what_differs_and_on_whom(why: str, mode: str, accused: tuple[int, ...]) -> None:
    found = divergence("parity_differs (step)", why, "startup")
    assert (failure_mode(found, ""), accused_by_word(found, 9)) == (mode, accused)


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        ("rank2 ack.weights_fingerprint = 3, at start-up it was 4; rank2 ack.output_digest = 1, rank0 has 2", "FM-11"),
        ("rank1 ack.local_end_index = 2, rank0 has 4", "FM-12"),
        ("rank1 ack.current_start_frame = 2, rank0 has 4; rank1 ack.local_end_index = 2, rank0 has 4", "FM-13"),
        ("rank1 ack.output_digest = 1, rank0 has 2", "FM-14"),
        ("rank1 ack.observed_generator_calls = 4, rank0 has 5", "FM-02"),
        ("rank1 ack.sequence_hash = 4, rank0 has 5", "FM-03"),
        ("", None),
    ],
)
def test_acks_say_what_differs(told: str, mode: str | None) -> None:
    assert failure_mode(divergence("send_ack (enter)", "", "ack"), told) == mode
    assert accused_by_word(divergence("acks_differ (step)", told), 4) == tuple(
        sorted({int(rank) for rank in re.findall(r"rank(\d) ack", told)})
    )


def test_where_as_many_say_the_one_as_the_other_all_are_named() -> None:
    differs = "`compile`: rank1 has 'on', the others 'off'"
    assert accused_by_word(divergence("parity_differs (step)", differs), 2) == (0, 1)
    assert accused_by_word(divergence("parity_differs (step)", differs), 3) == (1,)
    shared = "`weights_shard`: rank1 and rank2 have the same, and no two ranks may"
    assert accused_by_word(divergence("parity_differs (step)", shared), 3) == (1, 2)
    acks = "rank0 ack.x = 1, rank1 has 2; rank2 ack.x = 1, rank1 has 2"
    assert accused_by_word(divergence("acks_differ (step)", acks), 3) == (1,), "it differs from all others"


def test_every_sign_and_field_is_of_a_failure_mode() -> None:
    modes = {sign.mode for sign in SIGNS} | {mode for mode, _ in FIELDS}
    assert all(re.fullmatch(r"FM-(0[1-9]|1[0-8])", mode) for mode in modes)
