"""The reference engine: pinned state spaces, judgements against naive ones, and counterexamples that replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.reference import Edge, Graph, Result, check, explore, path_to, replay
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.network import Network, NetworkState, Point
from genlock.model.semantics.properties import ALL_STOPPED, CRASH_OVER_HANG, NO_STRANDING, PROPERTIES, Property
from genlock.model.semantics.run import Counterexample
from genlock.model.tables import By, Collective, Kind, Protocol, Role, Row, Scope, State
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = tuple(PROPERTIES.values())
TELL = Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", "")
TWIN = replace(TELL, name="twin")
SUM = Collective("sum", Kind.ALL_REDUCE, "h", None, "int64", "8", "")
SCHEDULE = (TELL, TWIN, SUM)


def program(driver: Sequence[Row], worker: Sequence[Row], start: str = "A") -> Protocol:
    """Two roles that begin in `start`; a state that no row leaves is an end, and LOST has failed."""

    def role(name: str, rows: Sequence[Row]) -> Role:
        names = dict.fromkeys((start, *(name for row in rows for name in (row.state, row.target))))
        leaving = {row.state for row in rows}
        states = tuple(State(n, "", terminal=n not in leaving, failed=n == "LOST") for n in names)
        return Role(name, start, states, tuple(rows), lambda finite: 0)

    return Protocol("program", "1", role("rank0", driver), role("worker", worker), SCHEDULE)


def checked(protocol: Protocol, ranks: int, chunks: int = 1, *properties: Property, **network: bool | int) -> Result:
    options = {"faults": 0, "detection": False, **network}
    return check(Network(protocol, Scope(ranks, chunks, 2), **options), properties)  # type: ignore[arg-type]


def told(result: Result, claim: Property) -> Counterexample:
    found = counterexample(result, result.verdict(claim.name))
    assert found is not None
    return found


# ── TP v1.1, pinned ─────────────────────────────────────────────────────────────────────────────────

PINNED = {
    # (ranks, chunks, faults, detection): (states, transitions, depth, deadlocks)
    (2, 1, 0, False): (1107, 2493, 52, 0),
    (2, 1, 0, True): (1107, 2493, 52, 0),
    (3, 1, 0, False): (9231, 29943, 76, 0),
    (3, 2, 0, False): (24560, 79342, 125, 0),
    (2, 1, 1, True): (2405, 6737, 52, 0),
    (2, 1, 1, False): (1917, 5578, 52, 64),
    (2, 2, 1, True): (6343, 17971, 87, 0),
}


@pytest.mark.parametrize(("ranks", "chunks", "faults", "detection"), PINNED)
def test_the_state_space_is_the_pinned_one(ranks: int, chunks: int, faults: int, detection: bool) -> None:
    result = checked(TP_V1_1, ranks, chunks, faults=faults, detection=detection)
    graph = result.graph
    measured = (*graph.counts, max(graph.depth), result.deadlocks)
    assert measured == PINNED[ranks, chunks, faults, detection]


@pytest.fixture(scope="module")
def largest() -> Result:
    """Three ranks, two chunks, one crash anywhere, detection on: the shipped claim."""
    return check(Network(TP_V1_1, Scope(3, 2, 2), faults=1), ALL)


@pytest.mark.slow
def test_the_largest_configuration(largest: Result) -> None:
    graph = largest.graph
    measured = (*graph.counts, max(graph.depth), largest.deadlocks)
    assert measured == (168979, 546423, 127, 0)
    assert [v.property.name for v in largest.verdicts if not v.holds] == []


def test_progress_is_told_while_it_goes_on() -> None:
    told_of: list[tuple[int, int, int]] = []
    graph = explore(
        Network(TP_V1_1, Scope(3, 1, 2), faults=0, detection=False), lambda *numbers: told_of.append(numbers)
    )
    assert len(told_of) == 1 + (len(graph.states) - 1) // 4096
    assert [states for states, _, _ in told_of] == sorted(states for states, _, _ in told_of)
    assert told_of[0][1] == 0
    assert told_of[-1][0] <= len(graph.states)


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────────


def test_without_detection_a_crash_strands_the_others() -> None:
    result = checked(TP_V1_1, 3, 1, CRASH_OVER_HANG, faults=1, detection=False)
    assert not result.holds
    example = told(result, CRASH_OVER_HANG)
    assert [(s.rank, s.event) for s in example.steps if s.edge == "crash"] == [(0, "crash")]
    stuck = [(s.rank, s.state, s.operation, s.waiting_for, s.since) for s in example.stuck]
    assert stuck == [(1, "STARTUP", "parity", (0,), None), (2, "STARTUP", "parity", (0,), None)]
    assert checked(TP_V1_1, 2, 1, CRASH_OVER_HANG, faults=1, detection=True).holds


def test_stranding_is_judged_until_a_failure_unless_all_is_asked_for() -> None:
    network = Network(TP_V1_1, Scope(2, 1, 2), faults=1, detection=False)
    assert check(network, [NO_STRANDING]).holds
    everywhere = check(network, [NO_STRANDING], judge_all=True)
    assert not everywhere.holds
    (stuck,) = told(everywhere, NO_STRANDING).stuck
    assert (stuck.rank, stuck.operation, stuck.waiting_for) == (0, "parity", (1,))


# ── AG EF ───────────────────────────────────────────────────────────────────────────────────────────

ROUND = [Row("A", "on", "B"), Row("B", "back", "A")]
LEFT_BEHIND = [*ROUND, Row("B", "listen", "HEARD", op=TELL), Row("HEARD", "go_on", "A")]


def test_a_rank_left_behind_while_others_go_round_for_ever_is_found() -> None:
    result = checked(program(ROUND, LEFT_BEHIND), 3, 1, NO_STRANDING)
    assert result.deadlocks == 0
    assert not result.holds
    example = told(result, NO_STRANDING)
    assert [step.text for step in example.steps] == ["rank1 on → B", "rank1 listen, issues tell #1 → B"]
    assert [(s.rank, s.operation, s.waiting_for) for s in example.stuck] == [(1, "tell", (0,))]
    rescued = [*ROUND, Row("A", "call", "A", op=TELL)]
    assert checked(program(rescued, LEFT_BEHIND), 3, 1, NO_STRANDING).holds


def test_to_go_round_on_the_spot_is_not_to_advance() -> None:
    on_the_spot = [Row("A", "spin", "A"), Row("A", "never", "END", guards=(lambda v, data: False,))]
    result = checked(program(ROUND, on_the_spot), 2, 1, NO_STRANDING)
    assert (result.deadlocks, result.holds, result.verdict("no_stranding").rank) == (0, False, 1)


def test_to_wait_for_ever_is_no_stranding_where_it_is_an_end() -> None:
    assert checked(program(ROUND, [Row("A", "stop", "END")]), 2, 1, NO_STRANDING).holds


def test_a_deadlock_is_counted_and_found() -> None:
    waits = [Row("A", "add", "END", op=SUM)]
    stops = [Row("A", "stop", "END")]
    result = checked(program(waits, stops), 2, 1, NO_STRANDING)
    assert result.deadlocks == 1
    example = told(result, NO_STRANDING)
    assert [(s.rank, s.waiting_for) for s in example.stuck] == [(0, (1,))]
    assert example.summary == "rank0 is stuck in A (sum), waiting for rank1"


def test_a_commitment_is_named_as_what_a_stuck_rank_waits_on() -> None:
    promise = [Row("A", "promise", "B", op=TELL, commits=True), Row("B", "leave", "END")]
    believe = [Row("A", "believe", "B", op=TELL), Row("B", "add", "END", op=SUM)]
    example = told(checked(program(promise, believe), 2, 1, NO_STRANDING), NO_STRANDING)
    (stuck,) = example.stuck
    assert stuck.since is not None
    assert (stuck.rank, example.steps[stuck.since - 1].event) == (1, "promise")
    assert example.summary.endswith(f"waiting for rank0, since step {stuck.since} (promise)")


def test_a_collective_that_completes_on_the_stream_keeps_its_number() -> None:
    network = Network(
        TP_V1_1, Scope(2, 1, 2), kinds={"crash": frozenset({Point("AWAIT_ACK")})}, detection=False, stream=True
    )
    example = told(check(network, [CRASH_OVER_HANG]), CRASH_OVER_HANG)
    calls = [(s.edge, s.sequence) for s in example.steps if s.rank == 0 and s.operation == "generate"]
    assert calls == [("issue", 1), ("issue", 2), ("device", 1), ("device", 2)]
    assert "rank0 completes generate #1 on its stream → GENERATING" in [s.text for s in example.steps]


def test_what_never_happens_has_no_path_to_show() -> None:
    result = checked(program(ROUND, ROUND), 2, 1, ALL_STOPPED)
    assert not result.holds
    assert counterexample(result, result.verdict("all_stopped")) is None


# ── fairness ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("watched", "holds"), [("AB", True), ("A", False), ("", False)], ids=["always", "now and then", "never"]
)
def test_after_a_crash_only_what_detection_can_always_do_is_sure_to_happen(watched: str, holds: bool) -> None:
    caught = [Row(state, "peer_lost", "LOST", By.DETECTION) for state in watched]
    rows = [*ROUND, *caught, *([Row("LOST", "abort", "END")] if watched else [])]
    result = checked(program(rows, rows), 2, 1, CRASH_OVER_HANG, faults=1, detection=True)
    assert (result.holds, result.deadlocks) == (holds, 0)


def test_to_stand_still_after_a_crash_is_a_hang() -> None:
    rows = [Row("A", "add", "END", op=SUM)]
    result = checked(program(rows, rows), 2, 1, CRASH_OVER_HANG, faults=1, detection=True)
    assert (result.holds, result.deadlocks) == (False, 2)
    assert [(s.rank, s.waiting_for) for s in told(result, CRASH_OVER_HANG).stuck] == [(1, (0,))]


# ── random protocols, against plain definitions ─────────────────────────────────────────────────────

LIVE = ("A", "B", "C")
CAUSES = (
    (By.PROTOCOL, "p"),
    (By.PROTOCOL, "q"),
    (By.ENVIRONMENT, "e"),
    (By.VIOLATION, "bad"),
    (By.DETECTION, "peer_lost"),
)


def is_zero(v: int, data: object) -> bool:
    return v == 0


def flip(v: int, data: object) -> int:
    return 1 - v


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Rows between a handful of states, over one bit; only the reachable ones are kept."""
    rows = {}
    for number in range(draw(st.integers(3, 8))):
        by, event = draw(st.sampled_from(CAUSES))
        row = Row(
            draw(st.sampled_from(LIVE)) if number else "A",
            event,
            draw(st.sampled_from((*LIVE, "LOST", "END"))),
            by,
            op=draw(st.sampled_from((None, None, *SCHEDULE))) if by is By.PROTOCOL else None,
            send=lambda v: v,
            guards=draw(st.sampled_from(((), (is_zero,)))),
            effect=draw(st.sampled_from((None, flip))),
        )
        rows[row.key] = row
    if draw(st.booleans()):
        rows["LOST", "abort"] = Row("LOST", "abort", "END")
    reached = {"A"}
    while new := {row.target for row in rows.values() if row.state in reached} - reached:
        reached |= new
    return [row for row in rows.values() if row.state in reached]


@given(tables(), tables(), st.integers(2, 3), st.integers(0, 1), st.booleans())
@settings(max_examples=80)
def test_random_protocols_are_searched_as_defined(
    driver: list[Row], worker: list[Row], ranks: int, faults: int, detection: bool
) -> None:
    result = checked(program(driver, worker), ranks, 1, *ALL[:3], faults=faults, detection=detection)
    network, graph = result.network, result.graph
    assert isinstance(graph, Graph)
    explored_as_defined(network, graph)
    ends = [all(network.info(s, r).terminal for r in range(ranks)) for s in graph.states]
    assert result.deadlocks == sum(not edges and not end for edges, end in zip(graph.edges, ends, strict=True))
    doomed = stranded(network, graph)
    verdict = result.verdict("no_stranding")
    assert (verdict.state, verdict.rank) == min(doomed, default=(None, None))
    for verdict in result.verdicts:
        path = path_to(network, graph, verdict)
        assert verdict.state is None or len(path) == graph.depth[verdict.state]
        assert not path or path[-1][1] == graph.states[verdict.state or 0]


def explored_as_defined(network: Network, graph: Graph) -> None:
    """Closed under `successors`, numbered by distance, each state reached from its parent in one move."""
    assert [graph.index[state] for state in graph.states] == list(range(len(graph.states)))
    layer, distance, seen = {network.initial()}, 0, {network.initial()}
    depths: dict[NetworkState, int] = {}
    while layer:
        depths |= dict.fromkeys(layer, distance)
        layer = {after for state in layer for _, after in network.successors(state)} - seen
        seen |= layer
        distance += 1
    assert depths == dict(zip(graph.states, graph.depth, strict=True))
    assert graph.depth == sorted(graph.depth)
    for number, state in enumerate(graph.states):
        moves = list(network.successors(state))
        assert graph.edges[number] == [
            Edge(m.rank, graph.index[s], m.ordinary, m.advances, m.detects, m.ordinary and m.takes_part)
            for m, s in moves
        ]
        if number:
            parent = graph.parent[number]
            assert graph.depth[parent] == graph.depth[number] - 1
            assert [s for _, s in replay(network, graph, [number], graph.states[parent])] == [state]
    assert graph.parent[0] == -1


def stranded(network: Network, graph: Graph) -> list[tuple[int, int]]:
    """(state, rank) of every live rank that no ordinary path lets advance, before any failure: searched forwards."""
    found = []
    for number, state in enumerate(graph.states):
        infos = [network.info(state, rank) for rank in range(network.ranks)]
        if any(info.failed for info in infos):
            continue
        reached, stack, advancing = {number}, [number], set()
        while stack:
            for rank, target, ordinary, advances, *_ in graph.edges[stack.pop()]:
                if ordinary and advances:
                    advancing.add(rank)
                if ordinary and target not in reached:
                    reached.add(target)
                    stack.append(target)
        found += [(number, r) for r, info in enumerate(infos) if not info.terminal and r not in advancing]
    return found
