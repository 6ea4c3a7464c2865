"""Failure modes by how they look: rows, fields in which ranks differ, and a rank's own word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import corpus
import msgspec
import pytest
import schedules
from genlock.conformance.diagnosis import Divergence
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.protocol.failure_modes import FIELDS, SIGNS, accused_by_word, failure_mode
from genlock.conformance.replay import replay
from genlock.impl.chunk import parity, wire
from genlock.impl.faults.simulated_faults import ON_THE_WAY
from genlock.impl.rank.roles import Settings
from genlock.impl.scenario import FAULTS
from genlock.traces.format import Event, Trace
from repository import CORPUS


def divergence(observed: str, why: str = "", phase: str = "generate") -> Divergence:
    return Divergence(1, 2, 0, 1, phase, None, 1, "SOMEWHERE", observed, (), why)


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - {"OM-15"}))
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
        ("send_noop (enter)", "what arrived on rank1 and rank2 is not what it says that it sent", "header", "FM-10"),
        ("exception (step)", "a second thread asks for a heartbeat", "payload", "FM-09"),
        ("exception (step)", "rank0, phase B: the override was read and not cleared", "generate", "FM-15"),
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


STRUCK = {
    "crash": "FM-18",
    "stall": "FM-18",
    "thread": "FM-09",
    "override": "FM-15",
    "plan": "FM-02",
    "weights": "FM-11",
    "role": "FM-01",
    "flag": "FM-03",
    "backend": "FM-14",
    "drift": "FM-14",
    "manifest": "FM-05",
    "stale": "FM-10",
    "duplicate": "FM-10",
}
"""The failure mode of each kind of fault that has one of its own; a damaged message and an exception have several."""


def test_whoever_is_struck_in_a_simulated_run_is_named_and_nobody_else() -> None:
    """Random schedules with a random fault each, the truth known. Silence that nobody waited for is `unknown`."""
    kinds = set()
    for seed in range(20_000, 20_400):
        outcome = schedules.run(seed)
        strike = outcome.strike if outcome.struck else None
        found = diagnose(outcome.traces)
        if strike is None:
            assert found.verdict == "conforming", seed
        elif found.verdict == "divergent":
            # what rank0 sent wrong to all is its own fault, whoever was to be struck
            sent_wrong = ON_THE_WAY.get(strike.kind) == "all"
            assert found.culprits == ((0,) if sent_wrong else (strike.rank,)), (seed, strike)
            assert found.failure_mode == STRUCK.get(strike.kind, found.failure_mode), (seed, strike)
            kinds.add(strike.kind)
        else:
            assert (found.verdict, strike.kind in ("crash", "stall")) == ("unknown", True), (seed, strike)
    assert kinds >= STRUCK.keys()


def test_whatever_ranks_must_agree_on_has_a_failure_mode() -> None:
    settings = Settings(schedules.facts(), fingerprint=lambda: parity.Fingerprint(1, 2))
    said = parity.unpack(settings.record())
    fields = [*said.facts, *said.marks, "flag.test_hook", *(f"ack.{name}" for name in wire.Ack.__struct_fields__)]
    without = {f for f in fields if not any(re.fullmatch(field, f) for _, field in FIELDS)}
    assert without == {"ack.call_id", "ack.chunk_index"}, "the ids of an ack are those of its header"


def test_every_sign_and_field_is_of_a_failure_mode() -> None:
    modes = {sign.mode for sign in SIGNS} | {mode for mode, _ in FIELDS}
    assert all(re.fullmatch(r"FM-(0[1-9]|1[0-8])", mode) for mode in modes)


def ended_by_its_guardian(lines: list[str], move: str) -> list[str]:
    """A rank's trace as if its guardian had ended it within the collective of the last such move."""
    last = max(at for at, line in enumerate(lines) if f'"transition":"{move}","edge":"enter"' in line)
    end = json.loads(lines[-1]) | {"index": json.loads(lines[last])["index"] + 1, "cause": "peer_lost", "exit": 11}
    return [*lines[: last + 1], json.dumps(end | {"message": "rank1 exited with 10", "culprit": 1})]


@pytest.mark.parametrize(("witness", "culprits"), [(True, (0,)), (False, (0, 1))])
def test_a_header_that_another_rank_was_given_too_did_not_get_lost(
    witness: bool, culprits: tuple[int, ...], tmp_path: Path
) -> None:
    """rank0 was ended before it could say what it sent: only what others were given can tell."""
    for path in sorted((CORPUS / "broken" / "OM-16-duplicate").glob("rank*")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.name.startswith("rank0"):
            lines = ended_by_its_guardian(lines, "send_header")
        if path.name.startswith("rank2") and not witness:
            lines = ended_by_its_guardian(lines, "receive_header")
        (tmp_path / path.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.failure_mode, found.named) == ("divergent", "FM-10", culprits)


def of_two(name: str) -> list[Trace]:
    """A run of three ranks, as if rank0 and the one that is odd, or given something odd, had been all there are."""
    other = corpus.expected(name).culprits[0] or 1
    text = {0: "0", other: "1"}
    found = []
    for trace in corpus.traces(name):
        if trace.rank in text:
            header = msgspec.structs.replace(
                trace.header,
                rank=int(text[trace.rank]),
                world=2,
                groups=dict.fromkeys(trace.header.groups, (0, 1)),
            )
            lines = tuple(_renamed(line, other) for line in trace.lines)
            found.append(msgspec.structs.replace(trace, header=header, lines=lines, groups=header.groups))
    return found


def _renamed(line: Any, other: int) -> Any:
    if isinstance(line, Event) and line.outcome:
        return msgspec.structs.replace(line, outcome=line.outcome.replace(f"rank{other}", "rank1"))
    return line


@pytest.mark.parametrize(
    ("name", "culprits", "state"),
    [
        ("broken/OM-12", (1,), "ACK"),
        ("broken/OM-16-stale", (0,), "COMMITTED"),
        ("broken/OM-16-duplicate", (0,), "COMMITTED"),
        ("broken/OM-16-truncated", (0, 1), "AWAIT_HEADER"),
        ("broken/OM-11", (0, 1), "AWAIT_PAYLOAD"),
    ],
)
def test_of_two_ranks_one_is_blamed_only_where_something_tells(
    name: str, culprits: tuple[int, ...], state: str
) -> None:
    found = diagnose(of_two(name))
    assert (found.named, found.failure_mode) == (culprits, corpus.expected(name).failure_mode)
    assert bool(found.culprits) == (len(culprits) == 1), "of several, none is called a culprit"
    assert found.divergence is not None
    assert found.divergence.state == state
    assert found.divergence.rank in culprits
