"""The fast search, by numba and on NumPy, against the reference: the same states, edges, depths and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from genlock.errors import Exit, UsageError
from genlock.model.checker import engine
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.engine import check
from genlock.model.checker.fast import search
from genlock.model.checker.fast.state_encoding import Space, indexes_a_worker
from genlock.model.checker.reference import Result
from genlock.model.checker.report import run_check
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.properties import PROPERTIES, Property, properties_of
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from programs import any_network
from repository import PROTOCOL_M

FAST = ("numba", "numpy")
EXAMPLE = str(PROTOCOL_M)
GENERIC = tuple(PROPERTIES.values())[:4]


def agree(network: Network, properties: tuple[Property, ...], *, judge_all: bool = False) -> Result:
    """All engines, and with symmetry where there are workers to be sorted; returns what the reference finds."""
    expected = check(network, properties, engine="reference", judge_all=judge_all)
    graph = expected.graph
    for name in FAST:
        found = check(network, properties, engine=name, symmetry="off", judge_all=judge_all)
        assert found.graph.seen == graph.seen
        assert list(found.graph.states) == list(graph.states)
        assert list(found.graph.edges) == list(graph.edges)
        assert [*found.graph.parent] == [*graph.parent]
        assert [*found.graph.depth] == [*graph.depth]
        same(found, expected)
        assert found.verdicts == expected.verdicts
        if network.ranks > 2 and indexes_a_worker(network) is None:
            sorted_ = check(network, properties, engine=name, symmetry="on", judge_all=judge_all)
            same(sorted_, expected)
            assert [v.holds for v in sorted_.verdicts] == [v.holds for v in expected.verdicts]
    return expected


def same(found: Result, expected: Result) -> None:
    """What does not depend on how the states are numbered: orbit sums are the direct count."""
    assert found.graph.counts == expected.graph.counts
    assert found.graph.depth[-1] == expected.graph.depth[-1]
    assert (found.deadlocks, found.worst_steps) == (expected.deadlocks, expected.worst_steps)


# ── any protocol ────────────────────────────────────────────────────────────────────────────────────────


@any_network(60)
def test_engines_agree_on_any_protocol(network: Network) -> None:
    agree(network, GENERIC)


@any_network(60, alike=True)
def test_engines_agree_where_workers_are_alike(network: Network) -> None:
    assert indexes_a_worker(network) is None
    expected = agree(network, GENERIC, judge_all=True)
    for violated in (v for v in expected.verdicts if not v.holds):
        sorted_ = check(network, [violated.property], symmetry="on", judge_all=True)
        there, here = counterexample(sorted_, sorted_.verdicts[0]), counterexample(expected, violated)
        assert (there is None) == (here is None)
        if there is not None and here is not None and not here.stuck:
            assert len(there.steps) == len(here.steps)


@pytest.mark.slow
@any_network(1000)
def test_engines_agree_on_many_protocols(network: Network) -> None:
    agree(network, GENERIC)


@pytest.mark.slow
@any_network(1000, alike=True)
def test_engines_agree_on_many_where_workers_are_alike(network: Network) -> None:
    agree(network, GENERIC)


# ── what is built in ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
@pytest.mark.parametrize("kind", FAULTS)
def test_engines_agree_on_each_fault(kind: str, stream: bool) -> None:
    question = Query("tp_v1.1", Scope(2, 1, 2), fault_points=((kind, None),), stream=stream)
    agree(question.network(), properties_of("tp_v1.1"))


@pytest.mark.parametrize("name", MUTANTS)
def test_engines_agree_on_each_mutant(name: str) -> None:
    network = Query("tp_v1.1", Scope(2, 1, 2), mutant=name).network()
    agree(network, properties_of("tp_v1.1"), judge_all=not network.detection)


@pytest.mark.parametrize(
    "question",
    [
        Query("tp_v0", Scope(3, 1, 2)),
        pytest.param(
            Query("tp_v0", Scope(3, 1, 1), stream=True, fault_points=(("stall", None),)), marks=pytest.mark.slow
        ),
        Query("tp_v1.1", Scope(3, 1, 1), stream=True, faults=0),
        pytest.param(Query("tp_v1.1", Scope(3, 1, 1), stream=True), marks=pytest.mark.slow),
        Query("tp_v1.1", Scope(3, 1, 1), detection=False),
        Query("tp_v1.1", Scope(3, 1, 1), fault_points=(("crash", "AWAIT_ACK"), ("stall", "rank1.READY"))),
        Query(EXAMPLE, Scope(), params={"W": "3", "C": "1", "K": "2"}),
        Query("tp_v1.1", Scope(3, 1, 1), mutant="FM-04"),
        pytest.param(Query("tp_v1.1", Scope(3, 1, 1), mutant="FM-18"), marks=pytest.mark.slow),
    ],
    ids=["v0", "v0-stall", "stream", "stream-crash", "no-detection", "points", "protocol-m", "FM-04", "FM-18"],
)
def test_engines_agree_on_three_ranks(question: Query) -> None:
    network = question.network()
    agree(network, properties_of(network.protocol.name), judge_all=not network.detection)


def test_protocol_m_has_the_states_that_others_count() -> None:
    network = Query(EXAMPLE, Scope(), params={"W": "3", "C": "2", "K": "3"}).network()
    for name in FAST:
        assert check(network, GENERIC, engine=name).graph.counts == (32826, 91509)


@pytest.mark.slow
def test_protocol_m_with_five_workers() -> None:
    result = check(Query(EXAMPLE, Scope(), params={"W": "5", "C": "2", "K": "3"}).network(), GENERIC)
    assert result.graph.counts == (2253672, 9855423)
    assert result.holds


# ── symmetry ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (Query(EXAMPLE, Scope()), "row HEADER --put_header--> HEADER of rank0 picks a worker for slot `header`"),
        (
            Query("tp_v1.1", Scope(), fault_points=(("crash", "rank2.READY"),)),
            "fault crash@rank2.READY names rank2",
        ),
    ],
    ids=["row", "fault"],
)
def test_symmetry_is_refused_where_something_indexes_a_worker(question: Query, why: str) -> None:
    with pytest.raises(UsageError, match="workers are not interchangeable") as caught:
        run_check(question, symmetry="on")
    assert why in str(caught.value)
    assert not check(question.network(), GENERIC).symmetric


def test_sorting_protocol_m_would_lose_states(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Query(EXAMPLE, Scope(), params={"W": "2", "C": "1", "K": "2"}).network()
    assert check(network, GENERIC).graph.counts[0] == 1187
    monkeypatch.setattr(engine, "_symmetric", lambda *_: True)
    assert check(network, GENERIC).graph.counts[0] != 1187


def test_one_worker_is_not_sorted() -> None:
    network = Query("tp_v1.1", Scope(2, 1, 2)).network()
    found, direct = (check(network, GENERIC, symmetry=symmetry) for symmetry in ("on", "off"))
    assert not found.symmetric
    assert list(found.graph.states) == list(direct.graph.states)


def test_the_reference_does_not_sort() -> None:
    with pytest.raises(UsageError, match="the reference engine sorts nothing"):
        run_check(Query("tp_v1.1", Scope()), engine="reference", symmetry="on")


@pytest.mark.parametrize("name", ["FM-02", "FM-04", "FM-10", "FM-18"])
def test_a_counterexample_under_symmetry_is_one_of_real_ranks(name: str) -> None:
    question = Query("tp_v1.1", Scope(3, 1, 2), mutant=name)
    sorted_, direct = (run_check(question, symmetry=symmetry) for symmetry in ("on", "off"))
    there, here = sorted_.counterexample, direct.counterexample
    assert there is not None
    assert here is not None
    assert (there.claim, len(there.steps)) == (here.claim, len(here.steps))
    assert sorted(s.state for s in there.stuck) == sorted(s.state for s in here.stuck)
    network, state = question.network(), question.network().initial()
    for step in there.steps:  # a run of the network, rank by rank as it says
        state = next(
            after
            for move, after in network.successors(state)
            if (move.rank, move.event, move.edge) == (step.rank, step.event, step.edge)
            and tuple(network.state_name(after, r) for r in range(3)) == step.states
        )


# ── what it is when it stops early ──────────────────────────────────────────────────────────────────────


def interrupted(at: int) -> Callable[[int, int, int], None]:
    calls = iter(range(at))

    def progress(states: int, depth: int, queue: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_ctrl_c_ends_with_what_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE", 1 << 12)
    network = Query("tp_v1.1", Scope(3, 2, 2)).network()
    found = check(network, GENERIC, engine=name, symmetry="off", progress=interrupted(2))
    assert (found.stopped, found.verdicts) == ("interrupted", ())
    whole = check(network, GENERIC, symmetry="off").graph
    assert 0 < len(found.graph.states) < len(whole.states)
    assert list(found.graph.states) == list(whole.states[: len(found.graph.states)])


def test_a_report_says_what_was_covered() -> None:
    report = run_check(Query("tp_v1.1", Scope(3, 2, 2)), engine="reference", progress=interrupted(2))
    assert report.exit == Exit.UNKNOWN
    assert "STOPPED: interrupted; every run of up to" in report.as_text()
    assert report.as_json()["stopped"] == "interrupted"
    assert report.as_json()["properties"] == []


def once_past(state: int) -> Callable[[int, int, int], None]:
    def progress(states: int, depth: int, queue: int) -> None:
        if states - queue > state:
            raise KeyboardInterrupt

    return progress


def test_what_is_violated_before_ctrl_c_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE", 1 << 12)
    question = Query("tp_v1.1", Scope(3, 2, 2), mutant="FM-02")
    first, _ = run_check(question, symmetry="off").result.graph.seen["call_count_agreement"]
    report = run_check(question, symmetry="off", progress=once_past(first))
    assert report.exit == Exit.VIOLATED  # what was not searched can only add to it
    assert [v.property.name for v in report.result.verdicts] == ["call_count_agreement"]
    assert report.counterexample is not None


def test_too_little_memory_ends_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 30, *[1 << 30] * 3])
    monkeypatch.setattr(search, "PAUSE", 1 << 12)
    monkeypatch.setattr(search, "available_memory", lambda: next(free, 0))
    report = run_check(Query("tp_v1.1", Scope(3, 2, 2)), symmetry="off")
    assert report.exit == Exit.UNKNOWN
    assert "STOPPED: out of memory (0 MiB more are needed, 0 MiB are left)" in report.as_text()


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────


def spaces() -> Iterator[Space]:
    for question in (
        Query("tp_v1.1", Scope(3, 1, 1), stream=True),
        Query(EXAMPLE, Scope(), params={"W": "2", "C": "1", "K": "1"}),
    ):
        graph = check(question.network(), GENERIC, symmetry="off").graph
        assert isinstance(graph, search.PackedGraph)
        for number, state in enumerate(graph.states):
            assert graph.stands_for(number, state)
            assert not graph.stands_for(number - 1, state)
        yield graph.space


def test_a_state_is_its_fields() -> None:
    for space in spaces():
        assert space.fits(space.layout)
        used = [0] * space.layout.words
        for word, shift, mask in zip(space.layout.word, space.layout.shift, space.layout.mask, strict=True):
            field = int(mask) << int(shift)
            assert field < 1 << 64
            assert not used[word] & field
            used[word] |= field


def test_states_that_do_not_fit_one_word_are_searched_in_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = Space._widths
    monkeypatch.setattr(Space, "_widths", lambda space, *spare: [width + 20 for width in tight(space, *spare)])
    network = Query("tp_v1.1", Scope(3, 1, 1), faults=0).network()
    for name in FAST:
        graph = check(network, GENERIC, engine=name, symmetry="off").graph
        assert isinstance(graph, search.PackedGraph)
        assert graph.space.layout.words == 2
    agree(network, GENERIC)


def test_a_point_is_a_place_for_a_fault() -> None:
    network = Query("tp_v1.1", Scope(2, 1, 1), fault_points=(("crash", "READY"),)).network()
    assert network.kinds == {"crash": frozenset({Point("READY")})}
    tables = Space(network).tables()
    assert np.count_nonzero(tables.strikes) == 1
