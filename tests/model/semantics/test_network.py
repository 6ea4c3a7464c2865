"""The product of roles, transport and faults: litmus programs whose outcomes are known, and TP v1.1 itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from genlock.model.checker.reference import Graph, explore
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics import transport
from genlock.model.semantics.network import CRASHED, Move, Network, NetworkState
from genlock.model.tables import By, Collective, Kind, Protocol, Role, Row, Scope, State

BROADCAST = Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", "")
GATHER = Collective("ask", Kind.GATHER, "g", 0, "int64", "8", "")
REDUCE = Collective("sum", Kind.ALL_REDUCE, "g", None, "int64", "8", "")


def program(driver: list[Row], worker: list[Row], *schedule: Collective) -> Protocol:
    """Two roles that start at A; a state that no row leaves is an end. Variables are what was last delivered."""

    def role(name: str, rows: list[Row]) -> Role:
        names = dict.fromkeys(name for row in rows for name in (row.state, row.target))
        leaving = {row.state for row in rows}
        states = tuple(State(n, "", terminal=n not in leaving, failed=n == "LOST") for n in names)
        return Role(name, "A", states, tuple(rows), lambda finite: None)

    return Protocol("litmus", "1", role("rank0", driver), role("worker", worker), schedule)


def explored(protocol: Protocol, ranks: int = 3, **faults: Any) -> tuple[Network, Graph]:
    network = Network(protocol, Scope(ranks, 1, 2), **{"faults": 0, "detection": False, **faults})
    return network, explore(network)


def outcomes(network: Network, graph: Graph) -> set[tuple[str, ...]]:
    """Where all ranks are in the states that nothing leaves."""
    return {names(network, s) for s, edges in zip(graph.states, graph.edges, strict=True) if not edges}


def names(network: Network, state: NetworkState) -> tuple[str, ...]:
    return tuple(network.state_name(state, rank) for rank in range(network.ranks))


def moves(network: Network, state: NetworkState, rank: int) -> dict[tuple[str, str], tuple[Move, NetworkState]]:
    """(event, edge) to the move of `rank` and what it leads to."""
    return {(m.event, m.edge): (m, after) for m, after in network.successors(state) if m.rank == rank}


# ── litmus programs ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("op", [BROADCAST, GATHER, REDUCE], ids=lambda op: op.kind)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_one_collective_ends_for_everybody(op: Collective, ranks: int) -> None:
    row = Row("A", "go", "END", op=op)
    network, graph = explored(program([row], [row], op), ranks)
    assert outcomes(network, graph) == {("END",) * ranks}


def test_the_root_of_a_broadcast_does_not_wait_and_a_member_does() -> None:
    tell = Row("A", "tell", "END", op=BROADCAST, send=lambda v: 7)
    hear = Row("A", "hear", "END", op=BROADCAST, effect=lambda v, data: data)
    network, _ = explored(program([tell], [hear], BROADCAST))
    _, early = moves(network, network.initial(), 1)["hear", "issue"]
    assert ("hear", "complete") not in moves(network, early, 1)
    waiting = network.waiting(early, 1)
    assert waiting is not None
    assert (waiting.operation, waiting.waiting_for, waiting.event) == ("tell", (0,), "hear")
    _, told = moves(network, early, 0)["tell", "issue"]
    heard, _ = moves(network, told, 1)["hear", "complete"]
    assert (heard.data, heard.ordinary) == (7, False)  # may, but need not while rank2 has not come
    _, left = moves(network, told, 0)["tell", "complete"]
    assert names(network, left) == ("END", "A", "A")
    _, all_there = moves(network, left, 2)["hear", "issue"]
    assert [moves(network, all_there, rank)["hear", "complete"][0].ordinary for rank in (1, 2)] == [True, True]


def test_an_all_reduce_lets_nobody_go_before_all_have_come() -> None:
    row = Row("A", "add", "END", op=REDUCE)
    network, graph = explored(program([row], [row], REDUCE))
    for state in graph.states:
        position = [n == "END" or network.waiting(state, r) is not None for r, n in enumerate(names(network, state))]
        assert "END" not in names(network, state) or all(position)


def test_equal_signatures_with_another_meaning_pair_and_go_on() -> None:
    twin = replace(BROADCAST, name="twin")
    tell = Row("A", "tell", "END", op=BROADCAST, send=lambda v: "header")
    hear = Row("A", "hear", "CHECK", op=twin, effect=lambda v, data: data)
    check = Row("CHECK", "mistake", "END", guards=(lambda v, data: v == "header",))
    network, graph = explored(program([tell], [hear, check], BROADCAST, twin))
    assert outcomes(network, graph) == {("END",) * 3}


@pytest.mark.parametrize("field", ["kind", "dtype", "size"])
def test_unequal_signatures_hang_and_say_who_they_wait_for(field: str) -> None:
    odd = {
        "kind": replace(BROADCAST, kind=Kind.GATHER),
        "dtype": replace(BROADCAST, dtype="int8"),
        "size": replace(BROADCAST, size="9"),
    }[field]
    driver, worker = Row("A", "go", "END", op=BROADCAST), Row("A", "go", "END", op=odd)
    network, graph = explored(program([driver], [worker], BROADCAST, odd), ranks=2)
    stuck = {s for s, edges in zip(graph.states, graph.edges, strict=True) if not edges}
    assert "A" in {names(network, s)[1] for s in stuck}
    waits = [network.waiting(s, 1) for s in stuck]
    assert [w.waiting_for for w in waits if w is not None] == [(0,)] * len(waits)


def test_a_root_runs_ahead_by_one_collective_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = [Row(a, "tell", b, op=BROADCAST) for a, b in ("AB", "BC", "CD")]
    ahead = ahead_of_slowest(*explored(program(tell, tell, BROADCAST)))
    assert ahead == {0, 1}
    monkeypatch.setattr(transport, "run_ahead", lambda ranks: 2)
    assert ahead_of_slowest(*explored(program(tell, tell, BROADCAST))) == {0, 1, 2}


def ahead_of_slowest(network: Network, graph: Graph) -> set[int]:
    """By how many collectives a rank that left them can be ahead of what the slowest has issued."""
    found = set()
    for state in graph.states:
        for queue in (network.queues.items[number] for number in state.queues):
            came = [sum(entries[rank] != 0 for entries in queue) for rank in range(network.ranks)]
            left = [sum(entries[rank] < 0 for entries in queue) for rank in range(network.ranks)]
            found.add(max(0, max(left) - min(came)))
    return found


def test_collectives_of_one_group_pair_in_order() -> None:
    first, second = replace(BROADCAST, name="first"), replace(BROADCAST, name="second", size="9")
    one, two = Row("A", "one", "B", op=first), Row("B", "two", "END", op=second)
    swapped = [Row("A", "two", "B", op=second), Row("B", "one", "END", op=first)]
    network, graph = explored(program([one, two], swapped, first, second), ranks=2)
    assert all(end[1] == "A" for end in outcomes(network, graph))
    apart = replace(second, group="h")
    rows = [one, replace(two, op=apart)]
    swapped = [Row("A", "two", "B", op=apart), Row("B", "one", "END", op=first)]
    network, graph = explored(program(rows, swapped, first, apart), ranks=2)
    assert outcomes(network, graph) == {("END", "END")}


# ── faults and detection ────────────────────────────────────────────────────────────────────────────


def test_a_crash_strikes_anywhere_once_and_is_no_ordinary_move() -> None:
    rows = [Row("A", "go", "B"), Row("B", "add", "END", op=REDUCE)]
    network, graph = explored(program(rows, rows, REDUCE), ranks=2, faults=1)
    alive = [s for s in graph.states if not s.faults]
    for state in alive:
        for rank in range(2):
            crash = moves(network, state, rank).get(("crash", "crash"))
            assert (crash is None) == (network.info(state, rank).terminal)
            assert crash is None or (
                network.state_name(crash[1], rank),
                crash[1].faults,
                crash[0].ordinary,
            ) == (CRASHED, 1, False)
    assert {sum(network.state_name(s, r) == CRASHED for r in range(2)) for s in graph.states} == {0, 1}
    assert {s.faults for s in graph.states} == {0, 1}
    assert not any(s.faults for s in explored(program(rows, rows, REDUCE), ranks=2, faults=1, kinds={})[1].states)


def test_what_a_rank_put_in_before_it_died_still_counts() -> None:
    row = Row("A", "add", "END", op=REDUCE)
    network, graph = explored(program([row], [row], REDUCE), ranks=2, faults=1)
    assert outcomes(network, graph) >= {("CRASHED", "END"), ("CRASHED", "A")}


def test_detection_reaches_a_rank_only_for_a_peer_that_will_not_come() -> None:
    rows = [
        Row("A", "add", "END", op=REDUCE),
        Row("A", "peer_lost", "LOST", By.DETECTION),
        Row("LOST", "abort", "GONE"),
    ]
    healthy, graph = explored(program(rows, rows, REDUCE), ranks=2, detection=True)
    assert outcomes(healthy, graph) == {("END", "END")}
    assert not any("LOST" in names(healthy, s) for s in graph.states)
    network, graph = explored(program(rows, rows, REDUCE), ranks=2, detection=True, faults=1)
    after_it = {("END", "END"), ("CRASHED", "END"), ("END", "CRASHED")}
    assert outcomes(network, graph) == after_it | {("CRASHED", "GONE"), ("GONE", "CRASHED")}
    blind, graph = explored(program(rows, rows, REDUCE), ranks=2, detection=False, faults=1)
    assert outcomes(blind, graph) == after_it | {("CRASHED", "A"), ("A", "CRASHED")}


def test_detection_reaches_a_rank_whose_peer_has_ended_in_peace() -> None:
    waits = [
        Row("A", "add", "END", op=REDUCE),
        Row("A", "peer_lost", "LOST", By.DETECTION),
        Row("LOST", "abort", "GONE"),
    ]
    network, graph = explored(program(waits, [Row("A", "stop", "END")], REDUCE), ranks=2, detection=True)
    assert outcomes(network, graph) == {("GONE", "END")}


# ── TP v1.1 ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tp() -> tuple[Network, Graph]:
    return explored(TP_V1_1, ranks=2)


def test_heartbeats_without_end_are_finitely_many_states(tp: tuple[Network, Graph]) -> None:
    network, graph = tp
    beats = [n for n, s in enumerate(graph.states) if names(network, s)[0] == "BEATING"]
    assert beats
    bare = replace(TP_V1_1, frame=None)
    tall = len(explored(bare, ranks=2)[1].states)
    assert tall > 2 * len(graph.states)  # without the frame the call id goes round its whole domain


def test_nobody_is_ever_ahead_by_more_than_the_transport_allows(tp: tuple[Network, Graph]) -> None:
    assert ahead_of_slowest(*tp) == {0, 1}


def test_a_rank_inside_a_collective_has_only_its_completion_and_failures(tp: tuple[Network, Graph]) -> None:
    network, graph = tp
    for state in graph.states:
        for rank in range(2):
            if network.waiting(state, rank) is not None:
                assert {edge for _, edge in moves(network, state, rank)} <= {"complete"}


def test_successors_come_in_the_same_order_each_time(tp: tuple[Network, Graph]) -> None:
    _, graph = tp
    again = explored(TP_V1_1, ranks=2)[1]
    assert graph.states == again.states
    assert graph.edges == again.edges


def test_all_is_tidied_away_when_everybody_has_stopped(tp: tuple[Network, Graph]) -> None:
    network, graph = tp
    ends = [s for s in graph.states if set(names(network, s)) == {"STOPPED"}]
    assert len(ends) == 1
    assert all(network.queues.items[number] == () for number in ends[0].queues)
