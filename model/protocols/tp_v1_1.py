"""Defines TP v1.1, generator-only workers: the rows of rank0 and worker, and the schedule of collectives.

This is the one place where legality stands. Checker, `transitions` machines, Hypothesis rules, runtime monitor,
replayer, diagrams and documents all read it. A row's guards and effects are in `tp_rules`, its values in `tp_values`.

Left out: what is inside one generator call. Its collectives (160 in the large model) stand here as one all-reduce; at
run time they are counted and hashed, and the hash rides in the ack.
"""

from __future__ import annotations

from ..tables import By, Collective, Frame, Kind, Protocol, Role, Row, State
from .tp_rules import (
    acks_agree,
    action_is_infer,
    action_is_noop,
    action_is_shutdown,
    adopt_header,
    adopt_payload,
    ask_cut,
    begin_calls,
    call_is_expected,
    call_is_newer,
    calls_done,
    calls_left,
    chunk_is_newer,
    chunk_is_same,
    chunk_payload,
    close_calls,
    commit_chunk,
    control_epoch_holds,
    count_call,
    count_is_expected,
    end_chunk,
    epoch_follows,
    give_up,
    header_is_intact,
    header_plan_holds,
    hold_payload,
    infer_header,
    next_call,
    no_cut_pending,
    noop_header,
    override_iff_recompute,
    override_is_clear,
    own_ack,
    own_calls,
    own_payload,
    own_state,
    parity_agrees,
    parity_facts,
    payload_fits_plan,
    payload_is_intact,
    pending_cut_is_planned,
    plan_identities_hold,
    plans,
    propose,
    receive,
    shutdown_header,
    take,
    this_call,
    work_left,
)  # fmt: skip
from .tp_values import Ack, Header, Payload, Plan, base, rebase, start

PARITY = Collective("parity", Kind.ALL_GATHER, "control", None, "uint8", "parity bytes", "startup")
HEADER = Collective("header", Kind.BROADCAST, "control", 0, "int64", "header packet", "header")
PAYLOAD = Collective("payload", Kind.BROADCAST, "device", 0, "uint8", "payload bytes", "payload")
GENERATE = Collective("generate", Kind.ALL_REDUCE, "device", None, "model", "activations", "generate")
ACK = Collective("ack", Kind.GATHER, "control", 0, "int64", "ack record", "ack")
SCHEDULE = (PARITY, HEADER, PAYLOAD, GENERATE, ACK)
"""Every collective that TP v1.1 may issue, in the order of a chunk's life."""

RANK0_ROWS = (
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=PARITY, send=parity_facts, data=frozenset[str],
        effect=receive),
    Row("PARITY_CHECK", "parity_agrees", "IDLE", guards=(parity_agrees,), effect=take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("IDLE", "hard_cut", "IDLE", By.ENVIRONMENT, guards=(no_cut_pending,), effect=ask_cut),
    Row("IDLE", "request", "PREFLIGHT_1", By.ENVIRONMENT, choices=work_left),
    Row("IDLE", "heartbeat", "BEATING", By.ENVIRONMENT, effect=next_call),
    Row("IDLE", "shutdown", "STOPPING", By.ENVIRONMENT, effect=next_call),
    Row("IDLE", "drain", "STOPPING", By.ENVIRONMENT, effect=next_call),
    #
    Row("PREFLIGHT_1", "preflight_schema", "PREFLIGHT_2", choices=plans, data=Plan,
        guards=(plan_identities_hold, override_iff_recompute, pending_cut_is_planned), effect=propose),
    Row("PREFLIGHT_2", "preflight_split", "PREFLIGHT_3"),
    Row("PREFLIGHT_3", "preflight_encode", "PREFLIGHT_4"),
    Row("PREFLIGHT_4", "preflight_dtypes", "PREFLIGHT_5"),
    Row("PREFLIGHT_5", "preflight_materialise", "PREFLIGHTED", choices=own_payload, data=int, effect=hold_payload),
    Row("PREFLIGHT_1", "refuse", "IDLE", By.ENVIRONMENT, effect=give_up),
    Row("PREFLIGHT_2", "refuse", "IDLE", By.ENVIRONMENT, effect=give_up),
    Row("PREFLIGHT_3", "refuse", "IDLE", By.ENVIRONMENT, effect=give_up),
    Row("PREFLIGHT_4", "refuse", "IDLE", By.ENVIRONMENT, effect=give_up),
    Row("PREFLIGHT_5", "refuse", "IDLE", By.ENVIRONMENT, effect=give_up),
    Row("PREFLIGHTED", "commit", "COMMITTED", effect=commit_chunk),
    #
    Row("COMMITTED", "send_header", "HEADER_SENT", op=HEADER, send=infer_header, data=Header, commits=True),
    Row("HEADER_SENT", "send_payload", "PAYLOAD_SENT", op=PAYLOAD, send=chunk_payload, data=Payload),
    Row("PAYLOAD_SENT", "enter_phase_b", "GENERATING", choices=own_calls, data=int, effect=begin_calls, commits=True),
    Row("GENERATING", "generate", "GENERATING", op=GENERATE, send=this_call,
        guards=(calls_left, call_is_expected), effect=count_call),
    Row("GENERATING", "leave_phase_b", "AWAIT_ACK", choices=own_state, data=int,
        guards=(calls_done, count_is_expected, override_is_clear), effect=close_calls, syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    Row("AWAIT_ACK", "collect_acks", "ACK_CHECK", op=ACK, send=own_ack, data=frozenset[Ack], effect=receive),
    Row("ACK_CHECK", "acks_agree", "IDLE", guards=(acks_agree,), effect=end_chunk),
    Row("ACK_CHECK", "acks_differ", "POISONED", By.VIOLATION),
    #
    Row("BEATING", "send_noop", "IDLE", op=HEADER, send=noop_header, data=Header, commits=True),
    Row("STOPPING", "send_shutdown", "STOPPED", op=HEADER, send=shutdown_header, data=Header, commits=True),
    Row("POISONED", "abort", "ABORTED"),
)  # fmt: skip

RANK0_STATES = (
    State("STARTUP", "startup"),
    State("PARITY_CHECK", "startup"),
    State("IDLE", "idle", waits=True),
    State("PREFLIGHT_1", "preflight"),
    State("PREFLIGHT_2", "preflight"),
    State("PREFLIGHT_3", "preflight"),
    State("PREFLIGHT_4", "preflight"),
    State("PREFLIGHT_5", "preflight"),
    State("PREFLIGHTED", "preflight"),
    State("COMMITTED", "header"),
    State("HEADER_SENT", "payload"),
    State("PAYLOAD_SENT", "payload"),
    State("GENERATING", "generate"),
    State("AWAIT_ACK", "ack"),
    State("ACK_CHECK", "ack"),
    State("BEATING", "header"),
    State("STOPPING", "shutdown"),
    State("STOPPED", "stopped", terminal=True),
    State("POISONED", "poisoned", failed=True),
    State("ABORTED", "aborted", terminal=True, failed=True),
)


# ── worker ──────────────────────────────────────────────────────────────────────────────────────────

WORKER_ROWS = (
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=PARITY, send=parity_facts, data=frozenset[str],
        effect=receive),
    Row("PARITY_CHECK", "parity_agrees", "AWAIT_HEADER", guards=(parity_agrees,), effect=take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("AWAIT_HEADER", "receive_header", "HEADER_CHECK", op=HEADER, data=Header, effect=receive),
    Row("AWAIT_HEADER", "hold_signal", "AWAIT_HEADER", By.ENVIRONMENT),
    Row("HEADER_CHECK", "accept_infer", "AWAIT_PAYLOAD", effect=adopt_header, commits=True,
        guards=(header_is_intact, action_is_infer, call_is_newer, chunk_is_newer, epoch_follows,
                control_epoch_holds, header_plan_holds)),
    Row("HEADER_CHECK", "accept_noop", "AWAIT_HEADER", effect=adopt_header,
        guards=(header_is_intact, action_is_noop, call_is_newer, chunk_is_same, epoch_follows,
                control_epoch_holds)),
    Row("HEADER_CHECK", "accept_shutdown", "STOPPED", effect=adopt_header,
        guards=(header_is_intact, action_is_shutdown, call_is_newer, chunk_is_same, epoch_follows,
                control_epoch_holds)),
    Row("HEADER_CHECK", "reject_header", "POISONED", By.VIOLATION),
    Row("AWAIT_PAYLOAD", "receive_payload", "ENVELOPE_CHECK", op=PAYLOAD, data=Payload, effect=receive),
    Row("ENVELOPE_CHECK", "accept_envelope", "READY", guards=(payload_is_intact, payload_fits_plan),
        effect=adopt_payload),
    Row("ENVELOPE_CHECK", "reject_envelope", "POISONED", By.VIOLATION),
    Row("READY", "enter_phase_b", "GENERATING", choices=own_calls, data=int, effect=begin_calls, commits=True),
    Row("GENERATING", "generate", "GENERATING", op=GENERATE, send=this_call,
        guards=(calls_left, call_is_expected), effect=count_call),
    Row("GENERATING", "leave_phase_b", "ACK", choices=own_state, data=int,
        guards=(calls_done, count_is_expected, override_is_clear), effect=close_calls, syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    Row("ACK", "send_ack", "AWAIT_HEADER", op=ACK, send=own_ack, data=Ack, effect=end_chunk),
    Row("POISONED", "abort", "ABORTED"),
)  # fmt: skip

WORKER_STATES = (
    State("STARTUP", "startup"),
    State("PARITY_CHECK", "startup"),
    State("AWAIT_HEADER", "idle", waits=True),
    State("HEADER_CHECK", "header"),
    State("AWAIT_PAYLOAD", "payload"),
    State("ENVELOPE_CHECK", "payload"),
    State("READY", "payload"),
    State("GENERATING", "generate"),
    State("ACK", "ack"),
    State("STOPPED", "stopped", terminal=True),
    State("POISONED", "poisoned", failed=True),
    State("ABORTED", "aborted", terminal=True, failed=True),
)


# ── what can go wrong in any state ──────────────────────────────────────────────────────────────────


def failure_rows(states: tuple[State, ...]) -> tuple[Row, ...]:
    """Return the same three ways out of every live state: the rank raises, a peer is gone, its time is up.

    What preflight finds wrong with a chunk is no exception but a refusal, and changes nothing.
    """
    live = [s for s in states if not s.terminal and not s.failed]
    return (
        *(Row(s.name, "exception", "POISONED", By.FAULT, fault="exception") for s in live),
        *(Row(s.name, "peer_lost", "POISONED", By.DETECTION) for s in live),
        *(Row(s.name, "deadline", "POISONED", By.DETECTION) for s in live),
    )


RANK0 = Role("rank0", "STARTUP", RANK0_STATES, RANK0_ROWS + failure_rows(RANK0_STATES), start)
WORKER = Role("worker", "STARTUP", WORKER_STATES, WORKER_ROWS + failure_rows(WORKER_STATES), start)
TP_V1_1 = Protocol(
    "tp_v1.1",
    "1",
    RANK0,
    WORKER,
    SCHEDULE,
    Frame(base, rebase),
    streams=("device",),
    former_digests=("78295347348560a9",),
)
