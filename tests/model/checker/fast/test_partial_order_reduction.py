"""The reduced search: fewer states, and the same verdicts as of the whole graph."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from genlock.errors import UsageError
from genlock.model.checker.engine import REDUCED_FROM, check
from genlock.model.checker.fast import partial_order_reduction
from genlock.model.checker.fast.partial_order_reduction import Reduction, Unfit
from genlock.model.checker.reference import Result
from genlock.model.checker.report import run_check
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import Network, NetworkState
from genlock.model.semantics.properties import PROPERTIES, properties_of
from genlock.model.semantics.query import Query
from genlock.model.tables import By, Row, Scope
from hypothesis import assume
from programs import any_network, looks_away

FAST = ("numba", "numpy")
GENERIC = tuple(PROPERTIES.values())[:4]


def verdicts(result: Result) -> dict[str, bool]:
    return {v.property.name: v.holds for v in result.verdicts}


def agree(network: Network) -> Result:
    """Reduced and whole search say the same, with symmetry or without; returns the reduced one."""
    properties = properties_of(network.protocol.name)
    whole = check(network, properties, symmetry="off", reduction="off")
    assert not whole.reduced
    for symmetry in ("off", "auto"):
        found = check(network, properties, symmetry=symmetry, reduction="on")
        assert found.reduced
        assert verdicts(found) == verdicts(whole)
        # a rank that has stalled and goes on leaves nothing behind but a smaller budget
        assert bool(found.deadlocks) == bool(whole.deadlocks) or "stall" in network.kinds
        assert len(found.graph.states) <= len(whole.graph.states)
        assert found.worst_steps is None
    return found


def agree_where_fit(network: Network) -> None:
    """Hold a random network's reduced search to the whole one; where it is refused, `auto` leaves nothing out."""
    try:
        check(network, GENERIC, symmetry="off", reduction="on")
    except Unfit:
        assert not check(network, GENERIC, symmetry="off").reduced
        assume(False)  # another network is drawn: so many have to be reduced
    agree(network)


def same_graph(network: Network) -> None:
    numba, numpy = (check(network, GENERIC, engine=engine, reduction="on", symmetry="off") for engine in FAST)
    assert list(numba.graph.states) == list(numpy.graph.states)
    assert list(numba.graph.edges) == list(numpy.graph.edges)


# ── the same verdicts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_the_same_verdicts(kind: str, stream: bool) -> None:
    network = Query("tp_v1.1", Scope(2, 1, 1), fault_points=((kind, None),), stream=stream).network()
    agree(network)
    if kind in ("crash", "stall", "plan"):
        same_graph(network)


@pytest.mark.parametrize("name", [n for n, m in MUTANTS.items() if m.detection is not False])
def test_each_mutant_has_the_same_verdicts(name: str) -> None:
    network = Query("tp_v1.1", Scope(2, 1, 2), mutant=name).network()
    agree(network)


@pytest.mark.parametrize(
    "question",
    [
        Query("tp_v1.1", Scope(3, 1, 1), fault_points=(("crash", None), ("corrupt", None), ("plan", None)), faults=2),
        Query("tp_v1.1", Scope(3, 1, 1), stream=True, fault_points=(("stale", None), ("stall", None))),
        Query("tp_v1.1", Scope(3, 1, 1), fault_points=(("crash", "rank1.READY"), ("exception", "ACK"))),
        Query("tp_v0", Scope(3, 1, 2)),
        Query("tp_v1.1", Scope(3, 1, 2), mutant="FM-04"),
        Query("tp_v1.1", Scope(3, 1, 2), mutant="FM-02"),
        Query("tp_v1.1", Scope(3, 1, 1), mutant="FM-01"),
    ],
    ids=["two-faults", "stream", "points", "v0", "FM-04", "FM-02", "FM-01"],
)
def test_three_ranks_have_the_same_verdicts(question: Query) -> None:
    agree(question.network())


@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
def test_a_host_that_looks_away_from_its_device_does_so_no_earlier_than_it_must(stream: bool) -> None:
    found = agree(Network(looks_away(), Scope(4, 1, 1), faults=0, stream=stream))
    assert not verdicts(found)["no_false_abort"]


@any_network(40, ended=True)
def test_any_protocol_has_the_same_verdicts(network: Network) -> None:
    agree_where_fit(network)
    same_graph(network)


@any_network(40, alike=True, ended=True)
def test_any_protocol_of_equal_workers_has_the_same_verdicts(network: Network) -> None:
    agree_where_fit(network)


@pytest.mark.slow
@any_network(1500, ended=True)
def test_many_protocols_have_the_same_verdicts(network: Network) -> None:
    agree(network)


@pytest.mark.slow
@any_network(1500, alike=True, ended=True)
def test_many_protocols_of_equal_workers_have_the_same_verdicts(network: Network) -> None:
    agree(network)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_the_same_verdicts_at_three_ranks(kind: str, stream: bool) -> None:
    agree(Query("tp_v1.1", Scope(3, 2, 2), fault_points=((kind, None),), stream=stream).network())


# ── what it leaves out ──────────────────────────────────────────────────────────────────────────────────

PINNED = {(3, 1): 2229, (4, 1): 10027, (4, 2): 29571, (6, 1): 39506}


@pytest.mark.parametrize(("ranks", "chunks"), PINNED)
def test_so_many_states_are_left(ranks: int, chunks: int) -> None:
    network = Query("tp_v1.1", Scope(ranks, chunks, 2)).network()
    result = check(network, properties_of("tp_v1.1"), reduction="on")
    assert (len(result.graph.states), result.holds, result.deadlocks) == (PINNED[ranks, chunks], True, 0)


def test_it_is_done_where_it_pays() -> None:
    few, many = (Query("tp_v1.1", Scope(ranks, 1, 1), faults=0).network() for ranks in (REDUCED_FROM - 1, REDUCED_FROM))
    assert not check(few, GENERIC).reduced
    assert check(many, GENERIC).reduced
    assert not check(many, GENERIC, reduction="off").reduced
    assert not check(many, GENERIC, symmetry="off").reduced


def test_the_report_says_so() -> None:
    report = run_check(Query("tp_v1.1", Scope(3, 1, 1)), reduction="on")
    assert "states of a reduced search" in report.as_text()
    assert report.as_json()["reduction"] is True
    assert report.as_json()["worst_steps_to_end"] is None


@pytest.mark.parametrize("name", ["FM-01", "FM-02", "FM-04", "FM-10"])
def test_a_counterexample_is_a_run_of_the_network(name: str) -> None:
    question = Query("tp_v1.1", Scope(3, 1, 2), mutant=name)
    shown = run_check(question, reduction="on").counterexample
    whole = run_check(question, reduction="off").counterexample
    assert shown is not None
    assert whole is not None
    assert shown.title == f"counterexample to {whole.claim}, {len(shown.steps)} steps"
    assert whole.title == f"shortest counterexample to {whole.claim}, {len(whole.steps)} steps"
    assert bool(shown.stuck) == bool(whole.stuck)
    network, state = question.network(), question.network().initial()
    for step in shown.steps:
        state = next(
            after
            for move, after in network.successors(state)
            if (move.rank, move.event, move.edge) == (step.rank, step.event, step.edge)
            and tuple(network.state_name(after, r) for r in range(3)) == step.states
        )


# ── its conditions ──────────────────────────────────────────────────────────────────────────────────────


def refused(network: Network) -> str:
    with pytest.raises(UsageError, match="the search cannot be reduced") as caught:
        check(network, GENERIC, reduction="on")
    return re.sub(r".*reduced: |; leave.*", "", str(caught.value))


def tp(*rows: Row, without: tuple[tuple[str, str], ...] = (), detection: bool = True) -> Network:
    driver = replace(TP_V1_1.driver, rows=tuple(r for r in TP_V1_1.driver.rows if r.key not in without) + rows)
    return Network(replace(TP_V1_1, driver=driver), Scope(4, 1, 1), faults=0, detection=detection)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (tp(detection=False), "with detection off nothing ends the others after a failure"),
        (tp(without=(("IDLE", "peer_lost"),)), "detection does not end rank0 in IDLE"),
        (tp(Row("POISONED", "linger", "POISONED")), "a failed rank0 may go round for ever"),
        (
            tp(Row("POISONED", "recover", "STOPPED")),
            "a failed rank takes part again: rank0, row POISONED --recover--> STOPPED",
        ),
        (
            tp(Row("IDLE", "shrug", "IDLE", By.DETECTION)),
            "detection does not end rank0 in IDLE",
        ),
    ],
    ids=["detection", "unwatched", "stays", "recovers", "shrugs"],
)
def test_what_it_asks_of_the_tables(network: Network, why: str) -> None:
    assert refused(network) == why
    assert not check(network, GENERIC, judge_all=not network.detection).reduced


def test_a_rank_that_goes_round_lets_others_go() -> None:
    """A cycle of hasty steps has a state in which others may move."""
    round_ = tp(Row("PREFLIGHT_2", "back", "PREFLIGHT_1"))
    network = Network(round_.protocol, Scope(2, 1, 1))
    agree(network)
    hasty, lts = Reduction(network), network.lts[0]
    cycle = {lts.locals.items[n].state for n in range(len(lts.locals.items)) if hasty.is_hasty(0, n)}
    assert "PREFLIGHT_2" in cycle or "PREFLIGHT_1" in cycle
    assert not {"PREFLIGHT_1", "PREFLIGHT_2"} <= cycle


# ── the checks bite ─────────────────────────────────────────────────────────────────────────────────────


def test_haste_past_a_wait_would_show_what_is_not_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream a rank waits for its device before it leaves phase B."""
    monkeypatch.setattr(partial_order_reduction.Reduction, "_is_own_affair", lambda *_: True)
    network = Query("tp_v1.1", Scope(2, 1, 2), stream=True).network()
    properties = properties_of("tp_v1.1")
    assert check(network, properties, reduction="off").holds
    assert not check(network, properties, reduction="on").holds


def test_a_fault_that_does_not_fail_has_its_turn() -> None:
    sound = Query("tp_v1.1", Scope(2, 1, 1)).network()
    damaged = Query("tp_v1.1", Scope(2, 1, 1), fault_points=(("corrupt", None),)).network()
    assert hasty_states(sound, 1) - hasty_states(damaged, 1) == {"ENVELOPE_CHECK"}


def hasty_states(network: Network, rank: int) -> set[str]:
    """The states in which a rank is hasty whenever it is in them and waits for nobody."""
    check(network, GENERIC)
    found, lts = Reduction(network), network.lts[rank]
    slow = {lts.locals.items[n].state for n in range(len(lts.locals.items)) if not found.is_hasty(rank, n)}
    return {s.name for s in lts.role.states} - slow


def test_the_dead_hold_others_up_as_the_late_do() -> None:
    """With three ranks nobody is more than one broadcast ahead of a dead member; else a failure would show new runs."""
    network = Query("tp_v1.1", Scope(3, 1, 1)).network()
    seen: set[NetworkState] = set()
    todo = [network.initial()]
    while todo:
        state = todo.pop()
        for _, after in network.successors(state):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    for state in seen:
        dead = [r for r in range(3) if network.info(state, r).failed]
        for queue in (network.queues.items[q] for q in state.queues):
            for rank in {0, 1, 2} - set(dead):
                assert sum(instance[rank] < 0 and not all(instance[d] for d in dead) for instance in queue) <= 1
