"""The `transitions` machine of a role makes the moves of its table, and no others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from genlock.errors import ContractViolation
from genlock.model.checker.reference import explore
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.protocols.tp_values import Plan
from genlock.model.semantics.faults import FAULTS, with_faults
from genlock.model.semantics.lts import Local, Lts
from genlock.model.semantics.network import Network
from genlock.model.semantics.stepper import RoleMachine
from genlock.model.tables import By, Data, Role, Row, Scope
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

SCOPE = Scope(ranks=2, chunks=1, steps=2)
BROKEN_PLAN = Plan(steps=0, recompute=False, init_cache=False, override=True, expected=7)


class Explored(NamedTuple):
    """One role, as far as a small network comes; and what its collectives delivered where."""

    lts: Lts
    locals: list[Local]
    delivered: set[tuple[int, Data]]


@pytest.fixture(scope="module", params=["rank0", "worker"])
def explored(request: pytest.FixtureRequest) -> Explored:
    network = Network(TP_V1_1, SCOPE, faults=0, detection=False)
    graph = explore(network)
    rank = ["rank0", "worker"].index(request.param)
    lts = network.lts[rank]
    reached = [local for local in lts.locals.items if local.vars is not None]
    delivered = {
        (state.locals[rank], move.data)
        for state in graph.states
        for move, _ in network.successors(state)
        if move.rank == rank and move.edge == "complete"
    }
    return Explored(lts, reached, delivered)


def place(machine: RoleMachine, state: str, v: Any, pending: str | None = None) -> None:
    machine.state, machine.vars, machine.pending = state, v, pending


def given(row: Row | None, v: Any) -> list[Data]:
    """What a row may be given: the environment's choices, and a wrong one."""
    if row is None or row.choices is None:
        return [None]
    return [*row.choices(v, SCOPE), *([BROKEN_PLAN] if row.data is Plan else [])]


def breaks_off(role: Role, row: Row) -> bool:
    """Inside a collective a rank can only fail."""
    return row.by in (By.FAULT, By.DETECTION) and role.by_name[row.target].failed


def agree(machine: RoleMachine, role: Role, local: tuple[str, str | None, Any]) -> int:
    """Hold machine against table for every event; how many moves there were."""
    state, pending, v = local
    moves = 0
    for event in role.events:
        for data in given(role.rows_by_key.get((state, event)), v):
            row = role.enabled(state, event, v, data)
            if row is not None and pending is not None and not breaks_off(role, row):
                row = None
            place(machine, state, v, pending)
            assert machine.may(event, data) == (row is not None), (local, event, data)
            if row is None:
                with pytest.raises(ContractViolation):
                    machine.fire(event, data)
                assert (machine.state, machine.pending, machine.vars) == (state, pending, v)
                continue
            moves += 1
            sent = machine.fire(event, data)
            after = (machine.state, machine.pending, machine.vars)
            if row.op is None:
                assert after == (row.target, None, row.apply(v, data)), (local, event, data)
            else:
                assert after == (state, event, v), (local, event, data)
                assert sent == (row.send(v) if row.send else None)
    return moves


def test_machine_and_table_agree_on_all_that_is_reached(explored: Explored) -> None:
    role = explored.lts.role
    machine = RoleMachine(role)
    moves = [agree(machine, role, (local.state, local.pending, local.vars)) for local in explored.locals]
    assert min(moves[:-1]) > 0
    assert {local.state for local in explored.locals} >= {
        s.name for s in role.states if not s.terminal and not s.failed
    }


def test_machine_and_table_agree_on_every_state_and_event(explored: Explored) -> None:
    role = explored.lts.role
    sample = list(dict.fromkeys(local.vars for local in explored.locals))
    machine = RoleMachine(role)
    for v in [*sample[:: max(1, len(sample) // 12)], role.start(False)]:
        for state in role.states:
            agree(machine, role, (state.name, None, v))
            ops = (row.event for row in role.leaving[state.name] if row.op)
            for pending in ops:
                agree(machine, role, (state.name, pending, v))


def test_machine_and_table_agree_where_faults_are_rows_too(explored: Explored) -> None:
    faulty = with_faults(TP_V1_1, FAULTS)
    role = faulty.driver if explored.lts.role is TP_V1_1.driver else faulty.worker
    machine = RoleMachine(role)
    extra = set(role.rows) - set(explored.lts.role.rows)
    assert {row.by for row in extra} >= {By.FAULT}
    for local in explored.locals:
        if any(row.state == local.state for row in extra):
            agree(machine, role, (local.state, local.pending, local.vars))


def test_machine_and_unfolded_role_make_the_same_steps(explored: Explored) -> None:
    lts = explored.lts
    machine = RoleMachine(lts.role)
    for number, local in enumerate(list(lts.locals.items)):
        if local.vars is None:
            continue
        expected = {(step.row.event, *where(lts, step.target)) for step in lts.steps(number)}
        found = set()
        for row in lts.role.leaving[local.state]:
            for data in row.choices(local.vars, SCOPE) if row.choices else (None,):
                place(machine, local.state, local.vars, local.pending)
                if machine.may(row.event, data):
                    machine.fire(row.event, data)
                    found.add((row.event, *here(machine)))
        assert found == expected


def test_completing_is_the_other_end_of_the_collective(explored: Explored) -> None:
    lts = explored.lts
    machine = RoleMachine(lts.role)
    assert len(explored.delivered) > 20
    for number, data in explored.delivered:
        local = lts.locals.items[number]
        place(machine, local.state, local.vars, local.pending)
        machine.complete(data)
        assert here(machine) == where(lts, lts.complete(number, data).target)


def where(lts: Lts, number: int) -> tuple[str, str | None, Any]:
    local = lts.locals.items[number]
    return local.state, local.pending, local.vars


def here(machine: RoleMachine) -> tuple[str, str | None, Any]:
    """As `where`, which forgets the variables of a rank that has ended or failed."""
    state = machine.role.by_name[machine.state]
    return machine.state, machine.pending, None if state.terminal or state.failed else machine.vars


def test_an_edited_row_moves_the_machine_with_it() -> None:
    worker = TP_V1_1.worker.edit("STARTUP", "exchange_parity", target="ACK", guards=(lambda v, data: False,))
    assert "exchange_parity" not in RoleMachine(worker).enabled()
    machine = RoleMachine(worker, pending="exchange_parity")
    machine.complete(None)
    assert machine.state == "ACK"


def test_a_move_that_is_not_legal_says_where_and_what_was() -> None:
    machine = RoleMachine(TP_V1_1.driver)
    with pytest.raises(ContractViolation) as raised:
        machine.fire("send_header")
    assert str(raised.value) == (
        "rank0 in STARTUP: event `send_header` is not legal; enabled: exchange_parity, exception, peer_lost, deadline"
    )
    with pytest.raises(ContractViolation, match=r"rank0 in STARTUP: no collective is pending; fire its event first"):
        machine.complete()
    machine.fire("exchange_parity")
    with pytest.raises(ContractViolation, match=r"rank0 in STARTUP, inside `exchange_parity`: .* enabled: exception"):
        machine.fire("exchange_parity")
    with pytest.raises(ContractViolation, match=r"rank0 in STOPPED: .* enabled: nothing"):
        RoleMachine(TP_V1_1.driver, state="STOPPED").fire("abort")


def test_enabled_asks_a_row_that_takes_data_only_about_data_of_its_kind() -> None:
    rank = RoleMachine(TP_V1_1.driver, state="PREFLIGHT_1")
    always = ["refuse", "exception", "peer_lost", "deadline"]
    plan = Plan(steps=1, recompute=False, init_cache=False, override=False, expected=1)
    assert rank.enabled() == ["preflight_schema", *always]
    assert rank.enabled(plan) == ["preflight_schema", *always]
    assert rank.enabled(BROKEN_PLAN) == always
    assert rank.enabled(3) == always
    generating = RoleMachine(TP_V1_1.worker, state="GENERATING")
    assert "leave_phase_b" in generating.enabled()
    generating.pending = "generate"
    assert generating.enabled() == always[1:]


def test_a_chunk_by_hand() -> None:
    rank = RoleMachine(TP_V1_1.driver)
    assert rank.fire("exchange_parity") == "same"
    rank.complete(frozenset({"same"}))
    plan = Plan(steps=1, recompute=False, init_cache=False, override=False, expected=1)
    for event in ("parity_agrees", "request"):
        rank.fire(event)
    assert not rank.may("preflight_schema", replace(plan, expected=2))
    rank.fire("preflight_schema", plan)
    for event in ("preflight_split", "preflight_encode", "preflight_dtypes", "preflight_materialise", "commit"):
        rank.fire(event)
    header = rank.fire("send_header")
    assert (header.chunk_index, header.plan, rank.pending) == (1, plan, "send_header")
    rank.complete(header)
    assert (rank.state, rank.pending) == ("HEADER_SENT", None)


class Walk(RuleBasedStateMachine):
    """Any legal walk of one role, with any of the rows that it may take."""

    role = TP_V1_1.driver

    def __init__(self) -> None:
        super().__init__()
        self.machine = RoleMachine(self.role)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        machine = self.machine
        if machine.pending:
            row = self.role.row(machine.state, machine.pending)
            value = row.send(machine.vars) if row.send else None
            several = row.op is not None and row.op.kind in ("gather", "all_gather", "all_reduce")
            machine.complete(frozenset({value}) if several else value)
            return
        moves = [(row, value) for row in self.role.leaving[machine.state] for value in self.values(row)]
        moves = [
            (row, value) for row, value in moves if not breaks_off(self.role, row) and machine.may(row.event, value)
        ]
        if moves:
            row, value = data.draw(st.sampled_from(moves))
            machine.fire(row.event, value)

    def values(self, row: Row) -> Iterable[Data]:
        return row.choices(self.machine.vars, SCOPE) if row.choices else (None,)

    @invariant()
    def only_an_end_has_no_move(self) -> None:
        terminal = self.role.by_name[self.machine.state].terminal
        assert terminal == (not self.machine.enabled())


def test_a_walk_is_stuck_only_at_its_end() -> None:
    run_state_machine_as_test(Walk, settings=settings(max_examples=40, stateful_step_count=40))


def test_the_checker_does_not_load_transitions() -> None:
    code = (
        "import sys, genlock.model.checker.counterexample, genlock.model.semantics.known_mutants;"
        "print({'transitions', 'graphviz', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
