"""Each property holds on TP v1.1, fails on a table that breaks it, and is watched beside an empty model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.reference import Result, check
from genlock.model.protocols.tp_rules import (
    commit_chunk,
    header_is_intact,
    header_plan_holds,
    next_call,
    override_is_clear,
    plans,
)
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.protocols.tp_values import Ack, Action, Call, Header, Plan, TPVars
from genlock.model.semantics.faults import begin_and_keep, with_faults
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.properties import ALL_ENDED, PROPERTIES, SOMETIMES_FOR, Ghost, observer, watch
from genlock.model.semantics.properties import PREFLIGHT as PREFLIGHT_STEPS
from genlock.model.semantics.run import Counterexample
from genlock.model.tables import By, Protocol, Row, Scope, changed

ALL = tuple(PROPERTIES.values())


def checked(protocol: Protocol, **network: Any) -> Result:
    options: dict[str, Any] = {"faults": 0, "detection": False, **network}
    return check(Network(protocol, Scope(2, 1, 2), **options), ALL)


# ── on TP v1.1 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("faults", "detection"), [(0, False), (0, True), (1, True)])
def test_every_property_holds(faults: int, detection: bool) -> None:
    result = checked(TP_V1_1, faults=faults, detection=detection)
    assert {v.property.name: v.holds for v in result.verdicts} == dict.fromkeys(PROPERTIES, True)
    for verdict in result.verdicts:
        witnessed = verdict.property.kind == "sometimes" and (faults > 0 or verdict.property is not ALL_ENDED)
        assert (verdict.state is not None) == witnessed, verdict
        assert counterexample(result, verdict) is None


def test_each_always_has_its_sometimes() -> None:
    kinds = {name: p.kind for name, p in PROPERTIES.items()}
    assert {name for name, kind in kinds.items() if kind != "sometimes"} == set(SOMETIMES_FOR)
    assert {kinds[name] for name in SOMETIMES_FOR.values()} == {"sometimes"}


# ── on tables that break it ─────────────────────────────────────────────────────────────────────────


def without_rows(*events: str) -> Callable[[Protocol], Protocol]:
    """TP v1.1 less every row of rank0 that has one of these events."""
    return lambda protocol: replace(
        protocol,
        driver=replace(protocol.driver, rows=tuple(r for r in protocol.driver.rows if r.event not in events)),
    )


def worker_forgets_to_count(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=protocol.worker.edit("GENERATING", "generate", effect=None))


def worker_poisons_itself(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=protocol.worker.edit("AWAIT_HEADER", "hold_signal", target="POISONED"))


def worker_hears_no_shutdown(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=protocol.worker.edit("HEADER_CHECK", "accept_shutdown", by=By.FAULT))


def worker_keeps_the_override(protocol: Protocol) -> Protocol:
    guards = tuple(g for g in protocol.worker.row("GENERATING", "leave_phase_b").guards if g is not override_is_clear)
    kept = protocol.worker.edit("READY", "enter_phase_b", effect=begin_and_keep)
    return replace(protocol, worker=kept.edit("GENERATING", "leave_phase_b", guards=guards))


def bumps_always(v: TPVars, data: Any) -> TPVars:
    after = commit_chunk(v, data)
    return changed(after, cache_epoch=v.cache_epoch + 1)


def goes_back(v: TPVars, data: Any) -> TPVars:
    return changed(v, call_id=v.call_id + 3)


def no_recompute(v: TPVars, scope: Scope) -> Iterable[Plan]:
    return (plan for plan in plans(v, scope) if not plan.recompute)


def another_fact(v: TPVars) -> str:
    return "another"


def in_driver(state: str, event: str, **changes: Any) -> Callable[[Protocol], Protocol]:
    return lambda protocol: replace(protocol, driver=protocol.driver.edit(state, event, **changes))


def with_flag_unchecked(protocol: Protocol) -> Protocol:
    faulty = with_faults(protocol, ["flag"])
    return replace(faulty, driver=faulty.driver.edit("PARITY_CHECK", "parity_agrees", guards=()))


def with_drift_unchecked(protocol: Protocol) -> Protocol:
    return in_driver("ACK_CHECK", "acks_agree", guards=())(with_faults(protocol, ["drift"]))


def with_unchecked(guard: Callable[..., bool], event: str, kind: str) -> Callable[[Protocol], Protocol]:
    """TP v1.1 with faults of this kind, and a worker that does not ask `guard`."""

    def edit(protocol: Protocol) -> Protocol:
        faulty = with_faults(protocol, [kind])
        row = faulty.worker.row("HEADER_CHECK", event)
        guards = tuple(g for g in row.guards if g is not guard)
        return replace(faulty, worker=faulty.worker.edit(*row.key, guards=guards))

    return edit


def without_worker_row(event: str) -> Callable[[Protocol], Protocol]:
    return lambda protocol: replace(
        protocol, worker=replace(protocol.worker, rows=tuple(r for r in protocol.worker.rows if r.event != event))
    )


def with_odd_worker(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=protocol.worker.edit("STARTUP", "exchange_parity", send=another_fact))


def only_going_round(protocol: Protocol) -> Protocol:
    """Both roles poll for ever what never comes."""
    rows = (Row("STARTUP", "poll", "PARITY_CHECK"), Row("PARITY_CHECK", "nothing_yet", "STARTUP"))
    roles = (replace(r, rows=rows, states=tuple(r.by_name[row.state] for row in rows)) for r in protocol.roles)
    driver, worker = roles
    return replace(protocol, driver=driver, worker=worker)


BREAKS: dict[str, tuple[Callable[[Protocol], Protocol], dict[str, Any]]] = {
    "no_stranding": (MUTANTS["FM-04"].edit, {}),
    "crash_over_hang": (lambda protocol: protocol, {"faults": 1, "detection": False}),
    "clean_shutdown": (worker_hears_no_shutdown, {}),
    "no_false_abort": (worker_poisons_itself, {}),
    "no_mispairing": (worker_forgets_to_count, {}),
    "call_count_agreement": (MUTANTS["FM-02"].edit, {}),
    "nothing_sent_before_preflight": (MUTANTS["FM-04"].edit, {}),
    "refusal_leaves_no_trace": (in_driver("PREFLIGHT_3", "refuse", effect=next_call), {}),
    "epoch_fence": (in_driver("PREFLIGHTED", "commit", effect=bumps_always), {}),
    "no_stale_override": (worker_keeps_the_override, {}),
    "monotonic_ids": (in_driver("IDLE", "heartbeat", effect=goes_back), {}),
    "parity_before_header": (with_flag_unchecked, {"faults": 1, "kinds": {"flag": None}}),
    "coherent_plan": (
        with_unchecked(header_plan_holds, "accept_infer", "incoherent"),
        {"faults": 1, "kinds": {"incoherent": None}},
    ),
    "acts_as_told": (
        with_unchecked(header_is_intact, "accept_noop", "corrupt"),
        {"faults": 1, "kinds": {"corrupt": None}},
    ),
    "no_unseen_drift": (with_drift_unchecked, {"faults": 1, "kinds": {"drift": None}}),
    "no_livelock": (only_going_round, {}),
    "all_stopped": (worker_hears_no_shutdown, {}),
    "takes_part": (only_going_round, {}),
    "all_ended": (
        in_driver("POISONED", "abort", by=By.FAULT),
        {"faults": 1, "kinds": {"exception": frozenset({Point("READY")})}},
    ),
    "chunk_refused": (without_rows("refuse"), {}),
    "calls_made": (MUTANTS["FM-02"].edit, {}),
    "hard_cut": (without_rows("hard_cut"), {}),
    "recomputed": (in_driver("PREFLIGHT_1", "preflight_schema", choices=no_recompute), {}),
    "heartbeat_taken": (in_driver("IDLE", "heartbeat", by=By.FAULT), {}),
    "parity_agreed": (with_odd_worker, {}),
    "drained": (without_rows("drain"), {}),
    "shut_down": (without_rows("shutdown"), {}),
    "signal_held": (without_worker_row("hold_signal"), {}),
    "acks_collected": (MUTANTS["FM-02"].edit, {}),
}


def test_every_property_has_a_table_that_breaks_it() -> None:
    assert set(BREAKS) == set(PROPERTIES)


@pytest.mark.parametrize("name", BREAKS)
def test_a_property_fails_where_the_table_breaks_it(name: str) -> None:
    edit, network = BREAKS[name]
    result = checked(edit(TP_V1_1), **network)
    verdict = result.verdict(name)
    assert not verdict.holds
    example = counterexample(result, verdict)
    if PROPERTIES[name].kind == "sometimes":
        assert example is None
    else:
        assert isinstance(example, Counterexample)
        assert (example.claim, example.text) == (name, PROPERTIES[name].text)
        assert [step.number for step in example.steps] == list(range(1, len(example.steps) + 1))


def test_a_path_ends_with_the_step_that_breaks_the_property() -> None:
    result = checked(worker_forgets_to_count(TP_V1_1))
    example = counterexample(result, result.verdict("no_mispairing"))
    assert example is not None
    last = example.steps[-1]
    assert (last.edge, last.operation, last.sequence, example.stuck) == ("complete", "generate", 2, ())
    assert example.summary == f"no_mispairing is violated when {last.text}"


# ── the ghost ───────────────────────────────────────────────────────────────────────────────────────

PLAN = Plan(steps=2, recompute=False, init_cache=False, override=False, expected=2)
INFER = Header(Action.INFER, 1, 1, 0, 0, PLAN)
NOOP = Header(Action.NOOP, 1, 0, 0, 0)
REQUEST = ("request", "step", None)
STEPS = [(event, "step", None) for event in PREFLIGHT_STEPS]
PREFLIGHT = [REQUEST, *STEPS]
CALLS = [("generate", "issue", Call(1, n)) for n in range(2)]
SEND, HEAR = ("send_header", "issue", INFER), ("receive_header", "complete", INFER)
LEAVE = ("leave_phase_b", "step", 0)


@pytest.mark.parametrize(
    ("run", "seen"),
    [
        ([*PREFLIGHT, SEND], ()),
        ([*STEPS, SEND], ("nothing_sent_before_preflight",)),
        ([REQUEST, *STEPS[::-1], SEND], ("nothing_sent_before_preflight",)),
        ([*PREFLIGHT[:5], SEND], ("nothing_sent_before_preflight",)),
        ([*PREFLIGHT, SEND, SEND], ("nothing_sent_before_preflight",)),
        ([*PREFLIGHT[:2], ("refuse", "step", None), *PREFLIGHT[2:], SEND],
         ("chunk_refused", "nothing_sent_before_preflight")),
        ([*PREFLIGHT[:2], ("request", "step", None), *PREFLIGHT[2:], SEND], ("nothing_sent_before_preflight",)),
        ([("send_noop", "issue", NOOP)], ()),
        ([HEAR, *CALLS, LEAVE], ("calls_made",)),
        ([HEAR, *CALLS, LEAVE, ("send_ack", "issue", Ack(1, 1, 0, 2, 0))], ("calls_made",)),
        ([HEAR, *CALLS, LEAVE, ("send_ack", "issue", Ack(1, 1, 0, 2, 1))], ("calls_made", "no_unseen_drift")),
        ([("receive_header", "complete", NOOP), ("accept_shutdown", "step", None)],
         ("monotonic_ids", "acts_as_told")),
        ([HEAR, *CALLS[:1], LEAVE], ("call_count_agreement",)),
        ([HEAR, *CALLS, CALLS[0]], ("call_count_agreement",)),
        ([HEAR, *CALLS, LEAVE, CALLS[0]], ("calls_made", "call_count_agreement")),
        ([*PREFLIGHT, SEND, *CALLS, LEAVE], ("calls_made",)),
        ([("collect_acks", "complete", frozenset({1, 2})), ("acks_agree", "step", None)],
         ("acks_collected", "no_unseen_drift")),
        ([("collect_acks", "complete", frozenset({1})), ("acks_agree", "step", None)], ("acks_collected",)),
    ],
)  # fmt: skip
def test_what_the_ghost_sees(run: list[tuple[str, str, Any]], seen: tuple[str, ...]) -> None:
    ghost, found, v = Ghost(parity=True), list[str](), TPVars()
    for event, edge, value in run:
        ghost, names = watch(ghost, event, edge, value, v, v)
        found += names
    assert tuple(found) == seen


def test_only_tp_is_watched() -> None:
    assert observer("tp_v1.1") == (Ghost(), watch)
    assert observer("mine") == (None, None)
