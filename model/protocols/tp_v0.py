"""Defines TP v0, full pipeline on every rank: what TP v1.1 replaced, in the same terms.

rank0 broadcasts the arguments of a call; every rank runs the whole pipeline on them, encode and decode
included, and only the generator's collectives keep the ranks together. There is no payload, so nothing
needs five preflight steps, and no ack, so nobody learns whether the ranks still agree.

Left out: `tp_plan=v0_full_pipeline` as an implementation (`impl` runs v1.1 alone).
"""

from __future__ import annotations

from ..tables import By, Frame, Protocol, Role, Row, State
from . import tp_rules as rules
from . import tp_v1_1 as tp
from . import tp_values as values
from .tp_values import TPVars

SCHEDULE = (tp.PARITY, tp.HEADER, tp.GENERATE)
"""Every collective that TP v0 may issue; the header carries the call's arguments."""


def end_calls(v: TPVars, state: int) -> TPVars:
    """the chunk is done"""
    return rules.end_chunk(rules.close_calls(v, state), None)


_PHASE_B = (rules.calls_left, rules.call_is_expected)
_DONE = (rules.calls_done, rules.count_is_expected, rules.override_is_clear)

RANK0_STATES = (
    State("STARTUP", "startup"),
    State("PARITY_CHECK", "startup"),
    State("IDLE", "idle", waits=True),
    State("PREFLIGHT", "preflight"),
    State("PREFLIGHTED", "preflight"),
    State("COMMITTED", "header"),
    State("CALL_SENT", "generate"),
    State("GENERATING", "generate"),
    State("BEATING", "header"),
    State("STOPPING", "shutdown"),
    State("STOPPED", "stopped", terminal=True),
    State("POISONED", "poisoned", failed=True),
    State("ABORTED", "aborted", terminal=True, failed=True),
)

RANK0_ROWS = (
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=tp.PARITY, send=rules.parity_facts, data=frozenset[str],
        effect=rules.receive),
    Row("PARITY_CHECK", "parity_agrees", "IDLE", guards=(rules.parity_agrees,), effect=rules.take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("IDLE", "hard_cut", "IDLE", By.ENVIRONMENT, guards=(rules.no_cut_pending,), effect=rules.ask_cut),
    Row("IDLE", "request", "PREFLIGHT", By.ENVIRONMENT, choices=rules.work_left),
    Row("IDLE", "heartbeat", "BEATING", By.ENVIRONMENT, effect=rules.next_call),
    Row("IDLE", "shutdown", "STOPPING", By.ENVIRONMENT, effect=rules.next_call),
    Row("PREFLIGHT", "preflight_schema", "PREFLIGHTED", choices=rules.plans, data=values.Plan,
        guards=(rules.plan_identities_hold, rules.override_iff_recompute, rules.pending_cut_is_planned),
        effect=rules.propose),
    Row("PREFLIGHT", "refuse", "IDLE", By.ENVIRONMENT, effect=rules.give_up),
    Row("PREFLIGHTED", "commit", "COMMITTED", effect=rules.commit_chunk),
    Row("COMMITTED", "send_header", "CALL_SENT", op=tp.HEADER, send=rules.infer_header, data=values.Header,
        commits=True),
    Row("CALL_SENT", "enter_phase_b", "GENERATING", choices=rules.own_calls, data=int, effect=rules.begin_calls,
        commits=True),
    Row("GENERATING", "generate", "GENERATING", op=tp.GENERATE, send=rules.this_call, guards=_PHASE_B,
        effect=rules.count_call),
    Row("GENERATING", "leave_phase_b", "IDLE", choices=rules.own_state, data=int, guards=_DONE, effect=end_calls,
        syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    #
    Row("BEATING", "send_noop", "IDLE", op=tp.HEADER, send=rules.noop_header, data=values.Header, commits=True),
    Row("STOPPING", "send_shutdown", "STOPPED", op=tp.HEADER, send=rules.shutdown_header, data=values.Header,
        commits=True),
    Row("POISONED", "abort", "ABORTED"),
)  # fmt: skip

WORKER_STATES = (
    State("STARTUP", "startup"),
    State("PARITY_CHECK", "startup"),
    State("AWAIT_HEADER", "idle", waits=True),
    State("HEADER_CHECK", "header"),
    State("READY", "generate"),
    State("GENERATING", "generate"),
    State("STOPPED", "stopped", terminal=True),
    State("POISONED", "poisoned", failed=True),
    State("ABORTED", "aborted", terminal=True, failed=True),
)

_HEADER = (rules.header_is_intact, rules.call_is_newer, rules.epoch_follows, rules.control_epoch_holds)

WORKER_ROWS = (
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=tp.PARITY, send=rules.parity_facts, data=frozenset[str],
        effect=rules.receive),
    Row("PARITY_CHECK", "parity_agrees", "AWAIT_HEADER", guards=(rules.parity_agrees,), effect=rules.take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("AWAIT_HEADER", "receive_header", "HEADER_CHECK", op=tp.HEADER, data=values.Header, effect=rules.receive),
    Row("HEADER_CHECK", "accept_infer", "READY", effect=rules.adopt_header, commits=True,
        guards=(*_HEADER, rules.action_is_infer, rules.chunk_is_newer, rules.header_plan_holds)),
    Row("HEADER_CHECK", "accept_noop", "AWAIT_HEADER", effect=rules.adopt_header,
        guards=(*_HEADER, rules.action_is_noop, rules.chunk_is_same)),
    Row("HEADER_CHECK", "accept_shutdown", "STOPPED", effect=rules.adopt_header,
        guards=(*_HEADER, rules.action_is_shutdown, rules.chunk_is_same)),
    Row("HEADER_CHECK", "reject_header", "POISONED", By.VIOLATION),
    Row("READY", "enter_phase_b", "GENERATING", choices=rules.own_calls, data=int, effect=rules.begin_calls,
        commits=True),
    Row("GENERATING", "generate", "GENERATING", op=tp.GENERATE, send=rules.this_call, guards=_PHASE_B,
        effect=rules.count_call),
    Row("GENERATING", "leave_phase_b", "AWAIT_HEADER", choices=rules.own_state, data=int, guards=_DONE,
        effect=end_calls, syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    Row("POISONED", "abort", "ABORTED"),
)  # fmt: skip

TP_V0 = Protocol(
    "tp_v0",
    "0",
    Role("rank0", "STARTUP", RANK0_STATES, RANK0_ROWS + tp.failure_rows(RANK0_STATES), values.start),
    Role("worker", "STARTUP", WORKER_STATES, WORKER_ROWS + tp.failure_rows(WORKER_STATES), values.start),
    SCHEDULE,
    Frame(values.base, values.rebase),
    streams=("device",),
    former_digests=("d96a138c92918108",),
)
