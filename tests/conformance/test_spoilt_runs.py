"""Healthy runs spoilt by machine: the exact rank, chunk and event is named, and what remains legal conforms."""

from __future__ import annotations

from functools import cache
from operator import attrgetter

import corpus
import genlock.conformance.protocol.match_ranks as matching
import mutations
import pytest
from genlock.conformance.protocol import replay_rank
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import FORMS, HEALTHY, Mutation, Run, due, mutations_of, recorded, spoilt, wrong
from repository import CORPUS

MANY = settings(max_examples=300)
SMALLEST = "healthy/drained-ack"
TWO_RANKS = "refused/step-2"
RUNS = [name for name in corpus.names() if name.startswith(HEALTHY) and len(corpus.traces(name)) > 2]


@cache
def run_of(name: str) -> Run:
    return recorded(CORPUS / name)


@given(data=st.data())
@MANY
def test_a_mutation_anywhere_is_named_at_its_event(data: st.DataObject) -> None:
    """Any recorded run, rank, line, and form that fits there."""
    run = run_of(data.draw(st.sampled_from(RUNS)))
    rank = data.draw(st.sampled_from(sorted(run.lines)))
    at = data.draw(st.integers(1, len(run.lines[rank]) - 1))
    fitting = [key for key, form in FORMS.items() if form.fits(run.lines[rank], at)]
    mutation = Mutation(*data.draw(st.sampled_from(fitting)), rank, at)
    assert wrong(run, mutation) is None


def test_every_mutation_of_the_smallest_run_is_named() -> None:
    run = run_of(SMALLEST)
    for rank in run.lines:
        assert [(m, why) for m in mutations_of(run, rank) if (why := wrong(run, m))] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_mutation_of_every_run_is_named(name: str) -> None:
    run = run_of(name)
    for rank in run.lines:
        assert [(m, why) for m in mutations_of(run, rank) if (why := wrong(run, m))] == []


def test_of_two_ranks_the_spoilt_one_is_among_the_culprits() -> None:
    """Nothing tells which of two is right where they disagree, so that then both are named."""
    run = run_of(TWO_RANKS)
    both = 0
    for rank in run.lines:
        for mutation in mutations_of(run, rank):
            after = spoilt(run, mutation)
            found = mutations.replayed(run, mutation, after)
            if found.verdict == "divergent":
                assert rank in found.named, mutation
                both += found.suspects == (0, 1)
            elif due(run, mutation, after) is not None:
                assert found.verdict == "unknown"
                assert mutation.form == "the file is cut"
    assert both


def test_each_kind_is_made_and_some_mutations_remain_legal() -> None:
    run = run_of(SMALLEST)
    made = {m.kind for rank in run.lines for m in mutations_of(run, rank)}
    assert made == {"drop", "duplicate", "swap", "retarget", "resize", "truncate", "delay"}
    [held] = [at for at, line in enumerate(run.lines[1]) if line.get("transition") == "hold_signal"]
    for kind in ("drop", "duplicate"):
        mutation = Mutation(kind, "event", 1, held)
        assert due(run, mutation, spoilt(run, mutation)) is None
        assert wrong(run, mutation) is None


def test_a_replay_that_looks_away_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(SMALLEST)
    monkeypatch.setattr(replay_rank, "WIRE", ("group", "sequence"))
    monkeypatch.setattr(replay_rank, "_wire", attrgetter("group", "sequence"))
    assert any(wrong(run, m) for m in mutations_of(run, 1) if m.form == "op of one end")
    monkeypatch.setattr(matching, "_shape", lambda part: ())
    assert any(wrong(run, m) for m in mutations_of(run, 1) if m.form == "numel")
