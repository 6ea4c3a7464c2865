"""Failure modes by typed facts: rows, fields in which ranks differ, and codes of a rank's own checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import corpus
import msgspec
import pytest
import schedules
from genlock.conformance.diagnosis import Diagnosis, Divergence, Observation, Seen
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.protocol.failure_modes import FIELDS, SIGNS, accused_by_check, failure_mode, mode_of
from genlock.conformance.replay import replay
from genlock.impl.chunk import parity, wire
from genlock.impl.faults.simulated_faults import ON_THE_WAY
from genlock.impl.rank.roles import Settings
from genlock.impl.scenario import FAULTS
from genlock.traces.format import Event, Trace
from genlock.traces.outcome import Code, Difference, Outcome
from repository import CORPUS


def divergence(
    transition: str,
    code: Code | None = None,
    phase: str = "generate",
    seen: Seen = Seen.MOVE,
    *,
    field: str = "",
    differences: Sequence[Difference] = (),
) -> Divergence:
    outcome = None if code is None else Outcome(code, field=field, text="some words", differences=tuple(differences))
    facts = Observation(seen, transition, "step", outcome)
    return Divergence(1, 2, 0, 1, phase, None, 1, "SOMEWHERE", "seen", (), "some words", facts=facts)


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
    ("found", "mode"),
    [
        (divergence("", Code.COLLECTIVE, seen=Seen.OPERATION), "FM-08"),
        (divergence("", Code.THREAD, seen=Seen.OPERATION), "FM-09"),
        (divergence("commit", phase="preflight"), "FM-04"),
        (divergence("leave_phase_b"), "FM-02"),
        (divergence("reject_header", Code.RULE, "header"), "FM-10"),
        (divergence("reject_envelope", Code.MESSAGE, "payload"), "FM-05"),
        (divergence("send_noop", phase="header"), "FM-10"),
        (divergence("exception", Code.THREAD, "payload"), "FM-09"),
        (divergence("exception", Code.COLLECTIVE), "FM-08"),
        (divergence("exception", Code.CALLS), "FM-02"),
        (divergence("exception", Code.WEIGHTS), "FM-11"),
        (divergence("exception", Code.OVERRIDE), "FM-15"),
        (divergence("exception", Code.EXCEPTION, "ack"), "FM-04"),
        (divergence("exception", Code.EXCEPTION, "idle"), None),
        (divergence("exception", Code.RESET, "payload"), "FM-12"),
        (divergence("exception", Code.CACHE, field="current_start_frame"), "FM-13"),
        (divergence("exception", Code.CACHE, field="local_end_index"), "FM-12"),
        (divergence("exception", Code.CACHE, field="latents"), "FM-04"),
        (divergence("exception", Code.UNTYPED, "ack"), None),
        (divergence("deadline", phase="payload", seen=Seen.END), "FM-18"),
        (divergence("peer_lost", Code.PEER, "idle"), "FM-18"),
        (divergence("", phase="idle", seen=Seen.NOTHING), "FM-18"),
        (divergence("generate", seen=Seen.GAP), None),
        (divergence("request", phase="payload"), None),
    ],
)
def test_a_sign_names_its_failure_mode(found: Divergence, mode: str | None) -> None:
    assert failure_mode(found, ()) == mode


def odd(field: str, *ranks: int, alike: bool = False) -> Difference:
    return Difference(field, ranks, alike=alike)


@pytest.mark.parametrize(
    ("differences", "mode", "accused"),
    [
        ([odd("tp_plan", 1), odd("flag.x", 1)], "FM-01", (1,)),
        ([odd("flag.x", 0, 2)], "FM-03", (0, 2)),
        ([odd("compile", 3), odd("flag.generator", 3)], "FM-14", (3,)),
        ([odd("weights_replica", 1)], "FM-11", (1,)),
        ([odd("weights_shard", 1, 2, alike=True)], "FM-11", (1, 2)),
        ([odd("tp_rng_policy", 1)], "FM-16", (1,)),
        ([odd("tables", 1)], "FM-01", (1,)),
        ([odd("header_version", 1)], "FM-01", (1,)),
        ([odd("what a user named", 1)], "FM-01", (1,)),
    ],
)
def test_parity_says_what_differs_and_on_which_ranks(
    differences: Sequence[Difference], mode: str, accused: tuple[int, ...]
) -> None:
    found = divergence("parity_differs", Code.PARITY, "startup", differences=differences)
    assert (failure_mode(found, ()), accused_by_check(found, 9)) == (mode, accused)


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        ([odd("ack.weights_fingerprint", 2), odd("ack.output_digest", 2)], "FM-11"),
        ([odd("ack.local_end_index", 1)], "FM-12"),
        ([odd("ack.current_start_frame", 1), odd("ack.local_end_index", 1)], "FM-13"),
        ([odd("ack.output_digest", 1)], "FM-14"),
        ([odd("ack.observed_generator_calls", 1)], "FM-02"),
        ([odd("ack.sequence_hash", 1)], "FM-03"),
        ([], None),
    ],
)
def test_acks_say_what_differs(told: Sequence[Difference], mode: str | None) -> None:
    assert failure_mode(divergence("send_ack", phase="ack"), told) == mode
    found = divergence("acks_differ", Code.ACKS, "ack", differences=told)
    assert accused_by_check(found, 4) == tuple(sorted({rank for d in told for rank in d.ranks}))


def test_where_as_many_say_the_one_as_the_other_all_are_named() -> None:
    differs = divergence("parity_differs", Code.PARITY, "startup", differences=[odd("compile", 1)])
    assert accused_by_check(differs, 2) == (0, 1)
    assert accused_by_check(differs, 3) == (1,)
    shared = divergence("parity_differs", Code.PARITY, differences=[odd("weights_shard", 1, 2, alike=True)])
    assert accused_by_check(shared, 3) == (1, 2)
    acks = divergence("acks_differ", Code.ACKS, "ack", differences=[odd("ack.x", 0, 2)])
    assert accused_by_check(acks, 3) == (1,), "it differs from all others"


def with_outcome(name: str, change: Callable[[Outcome], Outcome]) -> Diagnosis:
    """What replay says of a recorded run with other outcomes in it."""

    def changed(line: Any) -> Any:
        known = isinstance(line, Event) and line.outcome is not None
        return msgspec.structs.replace(line, outcome=change(line.outcome)) if known else line

    return diagnose(
        [msgspec.structs.replace(t, lines=tuple(changed(line) for line in t.lines)) for t in corpus.traces(name)]
    )


def test_an_exception_that_reads_like_a_reset_is_what_it_was() -> None:
    text = "the connection was reset by the store"
    found = with_outcome("struck/worker-ready-raise", lambda outcome: msgspec.structs.replace(outcome, text=text))
    assert (found.failure_mode, found.culprits) == ("FM-04", (1,))


def test_a_value_that_reads_like_an_accusation_accuses_nobody_else() -> None:
    def lie(outcome: Outcome) -> Outcome:
        told = "`compile`: rank1 has 'x', as rank0 has it"
        values = tuple(d._replace(values=("as rank0 has it",)) for d in outcome.differences)
        return msgspec.structs.replace(outcome, text=told, differences=values)

    found = with_outcome("broken/C-04", lie)
    assert (found.failure_mode, found.culprits) == ("FM-14", (2,))


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
    without = {field for field in fields if mode_of([field]) is None}
    assert without == {"ack.call_id", "ack.chunk_index"}, "the ids of an ack are those of its header"


def test_every_sign_and_field_is_of_a_failure_mode() -> None:
    modes = {sign.mode for sign in SIGNS} | {mode for mode, *_ in FIELDS}
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
    if not isinstance(line, Event) or line.outcome is None:
        return line
    outcome = line.outcome
    differences = tuple(d._replace(ranks=_as_one(d.ranks, other)) for d in outcome.differences)
    changed = msgspec.structs.replace(outcome, ranks=_as_one(outcome.ranks, other), differences=differences)
    return msgspec.structs.replace(line, outcome=changed)


def _as_one(ranks: tuple[int, ...], other: int) -> tuple[int, ...]:
    return tuple(1 if rank == other else rank for rank in ranks)


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
