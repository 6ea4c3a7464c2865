"""Typed outcomes: what errors say of themselves, and that a trace keeps all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.errors import ContractViolation, PeerLost, Refused, UsageError
from genlock.traces.format import name_of, read
from genlock.traces.outcome import Code, Difference, Outcome, outcome_of
from genlock.traces.recorder import Recorder
from hypothesis import given
from hypothesis import strategies as st
from simulated import header

TEXT = st.text(max_size=12)
RANKS = st.lists(st.integers(0, 999), max_size=3).map(tuple)
DIFFERENCES = st.builds(
    Difference, field=TEXT, ranks=RANKS, values=st.lists(TEXT, max_size=2).map(tuple), usual=TEXT, alike=st.booleans()
)
OUTCOMES = st.builds(
    Outcome,
    code=st.sampled_from(Code),
    ranks=RANKS,
    field=TEXT,
    text=TEXT,
    differences=st.lists(DIFFERENCES, max_size=2).map(tuple),
)


@given(outcome=OUTCOMES)
def test_a_trace_keeps_an_outcome(tmp_path_factory: pytest.TempPathFactory, outcome: Outcome) -> None:
    recorder = Recorder(tmp_path_factory.mktemp("traces"), header(0))
    recorder.event("exception", "step", "S", "s", outcome=outcome)
    [event] = read(recorder.path).events
    assert event.outcome == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ContractViolation("no"), Outcome(Code.CONTRACT, text="no")),
        (
            ContractViolation("x", code=Code.CACHE, field="f", ranks=[1], differences=[Difference("f", (1,))]),
            Outcome(Code.CACHE, (1,), "f", "x", (Difference("f", (1,)),)),
        ),
        (PeerLost("gone"), Outcome(Code.PEER, text="gone")),
        (UsageError("wrong"), Outcome(Code.EXCEPTION, text="wrong")),
        (ValueError("first\nsecond"), Outcome(Code.EXCEPTION, text="ValueError: first")),
        (KeyboardInterrupt(), Outcome(Code.EXCEPTION, text="KeyboardInterrupt: ")),
    ],
)
def test_an_error_says_by_type_and_fields_what_it_is(error: BaseException, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome


def test_a_refusal_names_its_field() -> None:
    refusal = Refused("no", field="latents", value=1, step=4, call_id=2, chunk_index=1)
    assert outcome_of(refusal) == Outcome(Code.PREFLIGHT, (), "latents", str(refusal))


def test_a_code_that_nobody_knows_is_no_line_of_a_trace(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, header(0))
    recorder.event("exception", "step", "S", "s", outcome=Outcome(Code.RULE))
    path = tmp_path / name_of(0)
    path.write_bytes(path.read_bytes().replace(b"rule_broken", b"rule_bent"))
    with pytest.raises(Exception, match="line 2: not a line of a trace"):
        read(path)
