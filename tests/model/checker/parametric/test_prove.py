"""The proof for every world size: what it says, what it refuses, and what it leaves. See `docs/any-world-size.md`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from containment import Containment, network
from genlock.cli.app import app
from genlock.cli.write_check import write_proof
from genlock.errors import Exit, ModelError, UsageError
from genlock.model.checker.parametric import local_steps, report
from genlock.model.checker.parametric import prove as proving
from genlock.model.checker.parametric.abstract_network import AbstractNetwork
from genlock.model.checker.parametric.abstract_state import DRIVER, WORKER, AbstractState
from genlock.model.checker.parametric.prove import NO_DEADLOCK, prove
from genlock.model.protocols.tp_v0 import TP_V0
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import CRASH, Network, Point
from genlock.model.semantics.properties import NO_FALSE_ABORT, SOMETIMES_FOR, properties_of
from genlock.model.semantics.query import Query
from genlock.model.tables import By, Collective, Frame, Kind, Meet, Protocol, Role, Row, Scope, State
from programs import looks_away
from typer.testing import CliRunner

# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────


def asked(protocol: str = "tp_v1.1", **more: Any) -> Query:
    return Query(protocol, Scope(3, more.pop("chunks", 1), 2), **more)


@pytest.mark.parametrize(("protocol", "states"), [("tp_v1.1", 8_787), ("tp_v0", 5_695)])
def test_both_protocols_hold_at_every_world_size(protocol: str, states: int) -> None:
    proof = prove(asked(protocol))
    assert proof.status is Exit.OK
    assert all(proof.holds(p) for p in proof.properties)
    assert len(proof.search.states) == states
    assert (proof.tried, proof.confirmed) == (0, {})


@pytest.mark.parametrize("protocol", [TP_V1_1, TP_V0], ids=lambda p: p.name)
def test_no_claim_holds_for_want_of_what_it_is_about(protocol: Protocol) -> None:
    abstraction = AbstractNetwork(network(protocol, 1))
    properties = proving.covered(protocol.name)
    search = proving.explore(abstraction, properties)
    known = {p.name for p in properties_of(protocol.name)} - {"all_stopped"}
    witnesses = known.intersection(SOMETIMES_FOR[p.name] for p in properties if p is not NO_DEADLOCK)
    assert len(witnesses) > 4
    assert witnesses <= search.seen.keys()
    assert any(all_stopped(abstraction, state) for state in search.states)


def all_stopped(abstraction: AbstractNetwork, state: AbstractState) -> bool:
    infos = [
        abstraction.lanes.info(DRIVER, state.driver),
        *(abstraction.lanes.info(WORKER, n) for n in state.workers()),
    ]
    return not state.failed and {info.state for info in infos} == {"STOPPED"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FAULTS)
def test_it_holds_with_any_fault_at_every_world_size(kind: str) -> None:
    assert prove(asked(fault_points=((kind, None),))).status is Exit.OK


COVERED = {name for name, mutant in MUTANTS.items() if mutant.killed_by in proving.covered(TP_V1_1.name)}
STANDING_STILL = {"FM-01", "FM-04", "FM-05", "FM-06", "FM-07", "FM-08", "FM-09"}
"""Killed by `no_stranding`, which is not covered; but in these everybody comes to stand still, which is."""
NOT_COVERED = {"FM-18": "a peer that nobody watches is a matter of what comes in the end, after a failure"}


def test_every_mutant_is_covered_or_said_not_to_be() -> None:
    assert COVERED | STANDING_STILL | NOT_COVERED.keys() == MUTANTS.keys()
    assert not COVERED & (STANDING_STILL | NOT_COVERED.keys())


@pytest.mark.parametrize("name", sorted(COVERED | STANDING_STILL))
def test_every_safety_mutant_fails_with_a_confirmed_counterexample(name: str) -> None:
    killer = MUTANTS[name].killed_by.name if name in COVERED else NO_DEADLOCK.name
    proof = prove(Query("tp_v1.1", Scope(3, MUTANTS[name].chunks, 1), mutant=name), [killer])
    assert proof.status is Exit.VIOLATED
    example = proof.counterexample
    assert example is not None
    assert (example.claim, example.ranks) == (killer, 2)
    assert example.steps
    assert bool(example.stuck) is (killer == NO_DEADLOCK.name)


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_is_not_found(name: str) -> None:
    assert prove(asked(mutant=name)).status is Exit.OK


# ── what it takes to be a set ───────────────────────────────────────────────────────────────────────


def program(driver: list[Row], worker: list[Row], *schedule: Collective, **more: Any) -> Protocol:
    """Two roles that start at A; a state that no row leaves is an end. Variables are what was last delivered."""

    def role(name: str, rows: list[Row]) -> Role:
        names = dict.fromkeys(name for row in rows for name in (row.state, row.target))
        leaving = {row.state for row in rows}
        states = tuple(State(n, "", terminal=n not in leaving, failed=n.startswith("LOST")) for n in names)
        return Role(name, "A", states, tuple(rows), lambda finite: None)

    return Protocol("program", "1", role("rank0", driver), role("worker", worker), schedule, **more)


SUM = Collective("sum", Kind.ALL_REDUCE, "g", None, "int64", "8", "")
ASK = Collective("ask", Kind.GATHER, "g", 0, "int64", "8", "")
TELL = Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", "")


def test_a_slot_is_refused_by_the_row_that_has_it() -> None:
    with pytest.raises(ModelError, match="rank0, row HEADER --put_header--> HEADER: slot `header` belongs to one"):
        prove(asked("examples/protocol_m.py"))


def test_a_worker_as_a_root_is_refused_by_the_row_that_has_it() -> None:
    op = replace(TELL, root=1)
    row = Row("A", "hear", "END", op=op)
    with pytest.raises(ModelError, match="rank0, row A --hear--> END: the root of `tell` is one worker"):
        AbstractNetwork(Network(program([row], [row], op), Scope()))


def test_a_fixed_number_of_ranks_and_a_collective_that_fails_are_refused() -> None:
    row = Row("A", "add", "END", op=SUM)
    with pytest.raises(ModelError, match="about 3 ranks and no others"):
        AbstractNetwork(Network(program([row], [row], SUM, ranks=3), Scope()))
    row = Row("A", "add", "LOST", op=SUM)
    with pytest.raises(ModelError, match=r"row A --add--> LOST: `sum` leads to a failed state"):
        AbstractNetwork(Network(program([row], [row], SUM), Scope()))


def test_a_failed_rank_that_takes_part_again_is_refused_by_its_row() -> None:
    good = Row("A", "add", "END", op=SUM)
    for back in (Row("LOST", "recover", "END"), Row("LOST", "tell", "LOST_END", op=SUM)):
        rows = [good, Row("A", "fail", "LOST", By.FAULT, fault="exception"), back]
        with pytest.raises(ModelError, match=f"worker, row {back}: a failed rank takes part again"):
            AbstractNetwork(Network(program([good], rows, SUM), Scope()))


def test_a_queue_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """rank0 tells two things in turn, which are no heap, and hears of nobody."""
    other = replace(TELL, name="other", size="9")
    driver = [Row("A", "tell", "B", op=TELL), Row("B", "tell", "A", op=other)]
    worker = [Row("A", "hear", "B", op=TELL), Row("B", "hear", "A", op=other)]
    monkeypatch.setattr(local_steps, "MAX_UNFINISHED", 6)
    with pytest.raises(ModelError, match="more than 6 unfinished collectives of group `g`"):
        proving.explore(
            AbstractNetwork(Network(program(driver, worker, TELL, other), Scope(), faults=0)), [NO_DEADLOCK]
        )


@pytest.mark.parametrize("shown", ["put in", "given"])
def test_ids_met_in_another_group_behind_a_heap_are_refused(shown: str) -> None:
    """rank0 tells one id after the other; a worker behind it shows its own elsewhere, or is given rank0's there."""
    other = replace(SUM, group="h") if shown == "put in" else replace(TELL, name="other", group="h")

    def own(v: int) -> int:
        return v

    def rise(v: int, data: object) -> int:
        return (v + 1) % 4

    def hear(v: int, data: Any) -> int:
        return int(data)

    frame = Frame(base=lambda v: v, rebase=lambda value, by: (value + by) % 4 if isinstance(value, int) else value)
    driver = [Row("A", "tell", "A", op=TELL, send=own, effect=rise), Row("A", "tell_there", "A", op=other, send=own)]
    worker = [Row("A", "hear", "B", op=TELL, effect=hear)]
    worker += [Row("B", "hear_there", "A", op=other, send=own if shown == "put in" else None)]
    protocol = program(driver, worker, TELL, other, frame=frame)
    roles = [replace(role, start=lambda finite: 0) for role in protocol.roles]
    protocol = replace(protocol, driver=roles[0], worker=roles[1])
    with pytest.raises(ModelError, match=r"worker in [AB]: a worker may meet ids while rank0 is any number"):
        proving.explore(AbstractNetwork(Network(protocol, Scope(), faults=0)), [NO_FALSE_ABORT], at_most_4000)


def at_most_4000(states: int, depth: int, queue: int) -> None:
    assert states <= 4000, "it was not refused"


def test_a_heap_without_ids_has_an_end() -> None:
    driver, worker = [Row("A", "tell", "A", op=TELL)], [Row("A", "hear", "A", op=TELL)]
    one = Network(program(driver, worker, TELL), Scope(3), faults=0)
    search = proving.explore(AbstractNetwork(one), [NO_DEADLOCK])
    assert any(any(state.heaps) for state in search.states)
    assert Containment(one).whole().nothing


def test_a_barrier_of_counters_is_a_function_of_the_set() -> None:
    """Everybody counts to two, and passes once everybody has come as far."""

    def more(v: int, data: object) -> bool:
        """not twice yet"""
        return v < 2

    def count(v: int, data: object) -> int:
        return v + 1

    rows = (Row("A", "arrive", "B", guards=(more,), effect=count), Row("B", "leave", "A", gate=Meet()))
    states = (State("A", ""), State("B", ""))
    role = Role("rank", "A", states, rows, lambda finite: 0)
    protocol = Protocol("barrier", "1", replace(role, name="rank0"), role, (), counter=lambda v: v)
    for workers in (1, 2, 3):
        assert Containment(Network(protocol, Scope(workers + 1), faults=0)).whole().nothing


# ── confirmed, or possibly spurious ─────────────────────────────────────────────────────────────────


def differing(needed: int) -> Protocol:
    """Each worker answers with one of three values; with `needed` different ones rank0 gives up."""

    def answers(v: object, scope: Scope) -> tuple[str, ...]:
        return ("x", "y", "z")

    def differ(v: Any, data: object) -> bool:
        """too many different answers came"""
        return len(v) > needed

    def agree(v: Any, data: object) -> bool:
        """few enough different answers came"""
        return len(v) <= needed

    def keep(v: object, data: object) -> object:
        return data

    driver = [
        Row("A", "ask", "B", op=ASK, effect=keep),
        Row("B", "agree", "END", guards=(agree,)),
        Row("B", "differ", "LOST", By.VIOLATION, guards=(differ,)),
        Row("LOST", "abort", "LOST_END"),
    ]
    worker = [
        Row("A", "decide", "B", choices=answers, effect=keep),
        Row("B", "answer", "END", op=ASK, send=lambda v: v),
    ]
    return program(driver, worker, ASK)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Query]:
    """A question about the protocol in which so many workers differ."""

    def question(needed: int) -> Query:
        monkeypatch.setattr("genlock.model.semantics.query.load", lambda name, params: differing(needed))
        return asked("differing", faults=0)

    return question


def test_a_violation_is_confirmed_on_the_smallest_network_that_has_it(source: Callable[[int], Query]) -> None:
    for needed, ranks in ((1, 2), (2, 3), (3, 4)):
        proof = prove(source(needed), [NO_FALSE_ABORT.name])
        assert (proof.status, proof.tried) == (Exit.VIOLATED, ranks)
        assert proof.counterexample is not None
        assert proof.counterexample.ranks == ranks


def test_a_violation_that_no_network_tried_shows_is_possibly_spurious(
    source: Callable[[int], Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "CONFIRM_UP_TO", 3)
    proof = prove(source(3), [NO_FALSE_ABORT.name])
    assert (proof.status, proof.counterexample, proof.tried) == (Exit.UNKNOWN, None, 3)
    assert [p.name for p in proof.spurious] == [NO_FALSE_ABORT.name]
    text = report.as_text(proof)
    assert "possibly spurious: no network of 2 to 3 ranks shows it" in text
    assert "rank0 differ" in text
    data = report.as_json(proof)
    assert (data["verdict"], data["properties"][0]["holds"], data["counterexample"]) == ("unknown", None, None)
    assert data["possibly_spurious"][0]["steps"][-1] == "rank0 differ"
    suite = ElementTree.fromstring(report.as_junit(proof))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


def test_a_network_too_large_to_try_is_not_tried(
    source: Callable[[int], Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "CONFIRM_STATES", 0)
    proof = prove(source(1), [NO_FALSE_ABORT.name])
    assert (proof.status, proof.tried) == (Exit.UNKNOWN, 0)
    assert "every network is too large to try" in report.as_text(proof)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


def genlock(line: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, line, prog_name="genlock")
    return result.exit_code, result.output


def test_the_command_says_what_holds_and_what_it_does_not_cover() -> None:
    status, output = genlock("check tp_v0 --any-world-size --chunks 1 --faults 0 --format json")
    found = json.loads(output)
    assert (status, found["ranks"], found["engine"], found["verdict"]) == (0, "any", "any-world-size", "holds")
    assert {"no_stranding", "crash_over_hang", "clean_shutdown"} <= set(found["not_covered"])
    status, output = genlock("check tp_v0 --any-world-size --chunks 1 --faults 0")
    assert "any number of workers" in output
    assert "Not covered" in output
    assert "no_stranding, crash_over_hang, clean_shutdown" in output
    assert ElementTree.fromstring(genlock("check tp_v0 --any-world-size --chunks 1 --faults 0 --format junit")[1])


def test_the_command_refuses_what_it_does_not_cover() -> None:
    assert genlock("check examples/protocol_m.py --any-world-size")[0] == Exit.USAGE
    assert genlock("check --any-world-size --property no_stranding")[0] == Exit.USAGE
    with pytest.raises(UsageError, match="`no_stranding` is not covered"):
        prove(asked(), ["no_stranding"])


def test_a_confirmed_counterexample_is_written_out(tmp_path: Path) -> None:
    proof = prove(asked(mutant="FM-16"), ["no_mispairing"])
    write_proof(proof, tmp_path)
    assert json.loads((tmp_path / "check.json").read_text())["counterexample"]["confirmed_at_ranks"] == 2
    assert "Confirmed on a network of 2 ranks" in (tmp_path / "check.txt").read_text()
    assert {p.name for p in tmp_path.iterdir()} >= {"counterexample.svg", "counterexample.mmd", "scenario.json"}
    suite = ElementTree.fromstring(report.as_junit(proof))
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")


@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
def test_a_host_that_looks_away_from_its_device_does_so_no_earlier_than_it_must(stream: bool) -> None:
    proof = prove(Query("looks_away", Scope(2, 1, 1), faults=0, stream=stream, given=looks_away()))
    assert proof.holds(NO_FALSE_ABORT) is False


def test_a_named_worker_of_a_fault_is_any_worker() -> None:
    """`rank3` of a world of any size is one of its workers, and no worker is told from another."""

    def crashing(*ranks: int | None) -> set[str]:
        one = AbstractNetwork(
            Network(TP_V0, Scope(), kinds={CRASH: frozenset(Point("STARTUP", rank) for rank in ranks)})
        )
        first, *_ = one.initial()
        return {hop.who for hop, _ in one.successors(first) if hop.event == CRASH}

    assert crashing(3) == crashing(1) == {"a worker"}
    assert crashing(0) == crashing(None) == {"rank0"}
    assert crashing(0, 3) == {"rank0", "a worker"}
