"""The tables themselves: what `validate` refuses, what the digest covers, and that each guard is worth its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from genlock.errors import ModelError
from genlock.model.checker.reference import explore
from genlock.model.protocols.tp_v1_1 import ACK, HEADER, TP_V1_1
from genlock.model.protocols.tp_values import Action
from genlock.model.semantics.network import Network
from genlock.model.tables import (
    By,
    Collective,
    Gate,
    Kind,
    Meet,
    Protocol,
    Put,
    Role,
    Row,
    Scope,
    Slot,
    State,
    Take,
    changed,
    validate,
)

SCOPE = Scope(ranks=2, chunks=2, steps=2)


# ── validate ────────────────────────────────────────────────────────────────────────────────────────


def worker_with(*rows: Row, states: tuple[State, ...] = (), schedule: tuple[Collective, ...] = ()) -> Protocol:
    """TP v1.1 with more rows and states in the worker, and another schedule if given."""
    worker = TP_V1_1.worker
    worker = replace(worker, rows=worker.rows + rows, states=worker.states + states)
    return replace(TP_V1_1, worker=worker, schedule=schedule or TP_V1_1.schedule)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            worker_with(Row("READY", "wander", "NOWHERE")),
            "worker, row READY --wander--> NOWHERE: state `NOWHERE` is not defined; add it to the states",
        ),
        (
            worker_with(Row("NOWHERE", "wander", "READY")),
            "worker, row NOWHERE --wander--> READY: state `NOWHERE` is not defined; add it to the states",
        ),
        (
            worker_with(Row("READY", "enter_phase_b", "ACK")),
            "worker, row READY --enter_phase_b--> ACK: two rows for the same state and event; give one another event",
        ),
        (
            worker_with(Row("STOPPED", "revive", "READY")),
            "worker, row STOPPED --revive--> READY: state `STOPPED` is terminal; no row may leave it",
        ),
        (
            worker_with(states=(State("ISLAND", "idle"),)),
            "worker: state `ISLAND` cannot be reached; remove it or add a row",
        ),
        (
            worker_with(schedule=tuple(op for op in TP_V1_1.schedule if op is not ACK)),
            "rank0, row AWAIT_ACK --collect_acks--> ACK_CHECK: collective `ack` is not in the schedule",
        ),
        (
            replace(TP_V1_1, driver=TP_V1_1.driver.adding(Row("IDLE", "post", "IDLE", gate=Put(Slot("mail"))))),
            "rank0, row IDLE --post--> IDLE: a slot belongs to a worker, and this row does not say to which; "
            "name a function of the variables as the gate's `worker`",
        ),
    ],
    ids=["unknown target", "unknown source", "duplicate", "terminal", "unreachable", "not scheduled", "whose slot"],
)
def test_validate_names_the_row_or_state(broken: Protocol, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        validate(broken)
    assert str(raised.value) == message


def test_a_state_that_only_itself_leads_to_cannot_be_reached() -> None:
    island = worker_with(Row("ISLAND", "swim", "ISLAND"), states=(State("ISLAND", "idle"),))
    with pytest.raises(ModelError, match="state `ISLAND` cannot be reached"):
        validate(island)


def test_the_tables_are_valid() -> None:
    assert validate(TP_V1_1) is TP_V1_1


def test_a_guard_that_raises_is_an_error_of_its_row() -> None:
    def divides(v: Any, data: Any) -> bool:
        return bool(1 / v)

    row = Row("A", "go", "B", guards=(divides,))
    assert row.allows(1, None)
    with pytest.raises(ModelError, match=r"row A --go--> B: guard `divides` raised ZeroDivisionError"):
        row.allows(0, None)


def test_a_row_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"worker in state READY: no row for event `request`"):
        TP_V1_1.worker.edit("READY", "request", target="ACK")


def test_edit_changes_one_row_and_nothing_else() -> None:
    edited = TP_V1_1.worker.edit("GENERATING", "exception", target="ABORTED")
    changed = [(old, new) for old, new in zip(TP_V1_1.worker.rows, edited.rows, strict=True) if old != new]
    assert [(str(old), str(new)) for old, new in changed] == [
        ("GENERATING --exception--> POISONED", "GENERATING --exception--> ABORTED")
    ]


# ── who may move ────────────────────────────────────────────────────────────────────────────────────


def test_a_violation_is_enabled_iff_no_check_of_the_state_passes() -> None:
    check = Row("CHECK", "accept", "OK", guards=(lambda v, data: v == data,))
    fault, asked = Row("CHECK", "fall", "BAD", By.FAULT), Row("CHECK", "ask", "OK", By.ENVIRONMENT)
    rows = (check, Row("CHECK", "reject", "BAD", By.VIOLATION), fault, asked)
    role = Role("r", "CHECK", (State("CHECK", ""), State("OK", ""), State("BAD", "")), rows, lambda finite: 0)
    assert [role.enabled("CHECK", e, 1, 1) is not None for e in role.events] == [True, False, True, True]
    assert [role.enabled("CHECK", e, 1, 2) is not None for e in role.events] == [False, True, True, True]
    assert role.enabled("OK", "accept", 1, 1) is None


# ── digest ──────────────────────────────────────────────────────────────────────────────────────────

OTHER: dict[str, Any] = {
    "state": "X",
    "event": "x",
    "target": "X",
    "by": By.FAULT,
    "op": HEADER,
    "send": lambda v: None,
    "choices": lambda v, scope: (),
    "data": bytes,
    "guards": (lambda v, data: True,),
    "effect": lambda v, data: v,
    "commits": True,
    "syncs": True,
    "fault": "x",
    "gate": Meet(),
    "posts": True,
    "interrupts": True,
}


def test_the_digest_changes_with_every_field_of_a_row() -> None:
    assert set(OTHER) == {field.name for field in fields(Row)}
    plain = Row("A", "go", "B")
    digests = {digest_with(replace(plain, **{name: other})) for name, other in OTHER.items()}
    assert len(digests | {digest_with(plain)}) == len(OTHER) + 1


def test_the_digest_tells_gates_apart() -> None:
    def first(v: Any) -> int:
        return 1

    mail, parcel = Slot("mail"), Slot("parcel")
    gates: list[Gate | None] = [Meet(), Put(mail), Take(mail), Put(parcel), Put(mail, first), None]
    assert len({digest_with(Row("A", "go", "B", gate=gate)) for gate in gates}) == len(gates)


def digest_with(row: Row) -> str:
    return worker_with(row).digest


@pytest.mark.parametrize("rank", [0, 1])
def test_the_digest_misses_no_row(rank: int) -> None:
    role = TP_V1_1.role(rank)
    digests = {TP_V1_1.digest}
    for dropped in role.rows:
        rest = replace(role, rows=tuple(row for row in role.rows if row is not dropped))
        digests.add((replace(TP_V1_1, worker=rest) if rank else replace(TP_V1_1, driver=rest)).digest)
    assert len(digests) == len(role.rows) + 1


def test_the_digest_covers_states_schedule_name_and_version() -> None:
    worker, schedule = TP_V1_1.worker, TP_V1_1.schedule
    others = [
        replace(TP_V1_1, name="tp_v9"),
        replace(TP_V1_1, version="9"),
        replace(TP_V1_1, worker=replace(worker, initial="READY")),
        replace(TP_V1_1, schedule=schedule[::-1]),
        replace(TP_V1_1, schedule=(replace(schedule[0], size="9"), *schedule[1:])),
    ]
    for change in ({"phase": "x"}, {"terminal": True}, {"failed": True}, {"waits": True}):
        states = (replace(worker.states[0], **change), *worker.states[1:])
        others.append(replace(TP_V1_1, worker=replace(worker, states=states)))
    assert len({TP_V1_1.digest, *(other.digest for other in others)}) == len(others) + 1
    assert replace(TP_V1_1).digest == TP_V1_1.digest


def test_the_signature_is_all_that_a_backend_pairs_by() -> None:
    noop = replace(HEADER, name="other", phase="other")
    assert noop.signature == HEADER.signature
    for change in ({"kind": Kind.GATHER}, {"group": "g"}, {"root": 1}, {"dtype": "x"}, {"size": "x"}):
        assert replace(HEADER, **change).signature != HEADER.signature


# ── every guard bites ───────────────────────────────────────────────────────────────────────────────

Tamper = Callable[[Any, Any], tuple[Any, Any]]
"""(variables, data) of a row that is enabled to the same with something wrong."""


def received(**changes: Callable[[Any], Any]) -> Tamper:
    """What came, with fields as a function of the receiver's variables."""
    return lambda v, data: (
        changed(v, received=replace(v.received, **{name: change(v) for name, change in changes.items()})),
        data,
    )


def also(other: object) -> Tamper:
    """One more, different value among those that came."""
    return lambda v, data: (changed(v, received=v.received | {other}), data)


def own(change: Callable[[Any], Any]) -> Tamper:
    """The rank's own variables."""
    return lambda v, data: (change(v), data)


def asked(change: Callable[[Any], Any]) -> Tamper:
    """What the environment asks for."""
    return lambda v, data: (v, change(data))


DAMAGED = received(intact=lambda v: False)
REPEATED = received(call_id=lambda v: v.call_id)
WRONG_EPOCH = received(cache_epoch=lambda v: v.received.cache_epoch + 1)
OLD_CONTROL = received(control_epoch=lambda v: v.control_epoch - 1)
SKIPPED_CHUNK = received(chunk_index=lambda v: v.chunk_index + 1)

ONLY_A_FAULT: dict[tuple[str, str], tuple[str, Tamper]] = {
    ("parity_agrees", "parity_agrees"): ("a rank was started with other facts", also("other")),
    ("preflight_schema", "plan_identities_hold"): (
        "the request is wrong: a count that is not recompute + steps",
        asked(lambda plan: replace(plan, expected=plan.expected + 1)),
    ),
    ("preflight_schema", "override_iff_recompute"): (
        "the request is wrong: an override without a recompute, or the reverse",
        asked(lambda plan: replace(plan, override=not plan.override)),
    ),
    ("preflight_schema", "pending_cut_is_planned"): (
        "the request is wrong: it forgets a pending cut, or makes one up",
        asked(lambda plan: replace(plan, init_cache=not plan.init_cache)),
    ),
    ("generate", "calls_left"): (
        "a rank's code makes exactly the calls of the plan, unless it is broken: here, fewer",
        own(lambda v: changed(v, calls=v.observed)),
    ),
    ("generate", "call_is_expected"): (
        "a rank's code makes exactly the calls of the plan, unless it is broken: here, more",
        own(lambda v: changed(v, observed=v.plan.expected, calls=v.plan.expected + 1)),
    ),
    ("leave_phase_b", "calls_done"): (
        "a rank's code makes exactly the calls of the plan, unless it is broken: here, more",
        own(lambda v: changed(v, calls=v.observed + 1)),
    ),
    ("leave_phase_b", "count_is_expected"): (
        "a rank's code makes exactly the calls of the plan, unless it is broken: here, fewer",
        own(lambda v: changed(v, observed=v.observed - 1, calls=v.observed - 1)),
    ),
    ("leave_phase_b", "override_is_clear"): (
        "phase B clears the override as it begins; only a rank's own code can fill it again",
        own(lambda v: changed(v, override=True)),
    ),
    ("acks_agree", "acks_agree"): ("a rank drifted", also("another ack")),
    ("accept_infer", "header_is_intact"): ("damaged on the wire", DAMAGED),
    ("accept_infer", "action_is_infer"): (
        "a NOOP never has a new chunk and a plan, unless damaged",
        received(action=lambda v: Action.NOOP),
    ),
    ("accept_infer", "call_is_newer"): ("a header that comes twice", REPEATED),
    ("accept_infer", "chunk_is_newer"): ("a chunk that comes twice", received(chunk_index=lambda v: v.chunk_index)),
    ("accept_infer", "epoch_follows"): ("rank0 lost or invented a hard cut", WRONG_EPOCH),
    ("accept_infer", "control_epoch_holds"): ("a rank0 of an earlier run", OLD_CONTROL),
    ("accept_infer", "header_plan_holds"): (
        "rank0's preflight has checked it",
        received(plan=lambda v: replace(v.received.plan, expected=v.received.plan.expected + 1)),
    ),
    ("accept_noop", "header_is_intact"): ("damaged on the wire", DAMAGED),
    ("accept_noop", "call_is_newer"): ("a header that comes twice", REPEATED),
    ("accept_noop", "chunk_is_same"): ("the worker missed a chunk", SKIPPED_CHUNK),
    ("accept_noop", "epoch_follows"): ("rank0 lost or invented a hard cut", WRONG_EPOCH),
    ("accept_noop", "control_epoch_holds"): ("a rank0 of an earlier run", OLD_CONTROL),
    ("accept_shutdown", "header_is_intact"): ("damaged on the wire", DAMAGED),
    ("accept_shutdown", "call_is_newer"): ("a header that comes twice", REPEATED),
    ("accept_shutdown", "chunk_is_same"): ("the worker missed a chunk", SKIPPED_CHUNK),
    ("accept_shutdown", "epoch_follows"): ("rank0 lost or invented a hard cut", WRONG_EPOCH),
    ("accept_shutdown", "control_epoch_holds"): ("a rank0 of an earlier run", OLD_CONTROL),
    ("accept_envelope", "payload_is_intact"): ("damaged on the wire", DAMAGED),
    ("accept_envelope", "payload_fits_plan"): (
        "rank0's payload is made from the plan that its header carries",
        received(override=lambda v: not v.received.override),
    ),
}
"""(event, guard) of every guard that no healthy run falsifies alone: why, and a fault that does."""


@pytest.fixture(scope="module")
def reached() -> list[tuple[Role, Row, Any, Any]]:
    """Every row with all variables and choices with which a healthy run comes to it."""
    network = Network(TP_V1_1, SCOPE, faults=0, detection=False)
    explore(network)
    return [
        (lts.role, row, local.vars, data)
        for lts in network.lts
        for local in lts.locals.items
        if local.pending is None
        for row in lts.role.leaving[local.state]
        if row.guards
        for data in (row.choices(local.vars, SCOPE) if row.choices else (None,))
    ]


def falsified_alone(row: Row, v: Any, data: Any) -> Iterator[str]:
    """The guard that says no, if it is the only one."""
    refused = [guard.__name__ for guard in row.guards if not guard(v, data)]
    yield from refused if len(refused) == 1 else ()


def test_each_guard_bites_or_only_a_fault_can_falsify_it(reached: list[tuple[Role, Row, Any, Any]]) -> None:
    guards = {(role.name, row.key, guard.__name__) for role, row, _, _ in reached for guard in row.guards}
    assert len(guards) == sum(len(row.guards) for role in TP_V1_1.roles for row in role.rows)
    biting = {(role.name, row.key, name) for role, row, v, data in reached for name in falsified_alone(row, v, data)}
    assert {(event, name) for _, (_, event), name in guards - biting} == set(ONLY_A_FAULT)


def test_the_fault_that_falsifies_a_guard_is_caught_by_it_alone(reached: list[tuple[Role, Row, Any, Any]]) -> None:
    caught = set()
    for role, row, v, data in reached:
        if not row.allows(v, data):
            continue
        for (event, name), (_, tamper) in ONLY_A_FAULT.items():
            if event == row.event and list(falsified_alone(row, *tamper(v, data))) == [name]:
                caught.add((role.name, row.key, name))
    rows = {(role.name, row.key): row for role in TP_V1_1.roles for row in role.rows}
    excused = {
        (*where, guard.__name__)
        for where, row in rows.items()
        for guard in row.guards
        if (row.event, guard.__name__) in ONLY_A_FAULT
    }
    assert caught == excused
