"""TP v0, full pipeline on every rank: what TP v1.1 replaced, in the same terms.

rank0 broadcasts the arguments of a call; every rank runs the whole pipeline on them, encode and decode
included, and only the generator's collectives keep the ranks together. There is no payload, so nothing
needs five preflight steps, and no ack, so nobody learns whether the ranks still agree.

Left out: `tp_plan=v0_full_pipeline` as an implementation (`impl` runs v1.1 alone).
"""

from __future__ import annotations

from . import protocol as tp
from .protocol import TPVars
from .tables import By, Frame, Protocol, Role, Row, State

SCHEDULE = (tp.PARITY, tp.HEADER, tp.GENERATE)
"""Every collective that TP v0 may issue; the header carries the call's arguments."""


def end_calls(v: TPVars, state: int) -> TPVars:
    """the chunk is done"""
    return tp.end_chunk(tp.close_calls(v, state), None)


_PHASE_B = (tp.calls_left, tp.call_is_expected)
_DONE = (tp.calls_done, tp.count_is_expected, tp.override_is_clear)

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
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=tp.PARITY, send=tp.parity_facts, data=frozenset[str],
        effect=tp.receive),
    Row("PARITY_CHECK", "parity_agrees", "IDLE", guards=(tp.parity_agrees,), effect=tp.take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("IDLE", "hard_cut", "IDLE", By.ENVIRONMENT, guards=(tp.no_cut_pending,), effect=tp.ask_cut),
    Row("IDLE", "request", "PREFLIGHT", By.ENVIRONMENT, choices=tp.work_left),
    Row("IDLE", "heartbeat", "BEATING", By.ENVIRONMENT, effect=tp.next_call),
    Row("IDLE", "shutdown", "STOPPING", By.ENVIRONMENT, effect=tp.next_call),
    Row("PREFLIGHT", "preflight_schema", "PREFLIGHTED", choices=tp.plans, data=tp.Plan,
        guards=(tp.plan_identities_hold, tp.override_iff_recompute, tp.pending_cut_is_planned), effect=tp.propose),
    Row("PREFLIGHT", "refuse", "IDLE", By.ENVIRONMENT, effect=tp.give_up),
    Row("PREFLIGHTED", "commit", "COMMITTED", effect=tp.commit_chunk),
    Row("COMMITTED", "send_header", "CALL_SENT", op=tp.HEADER, send=tp.infer_header, data=tp.Header, commits=True),
    Row("CALL_SENT", "enter_phase_b", "GENERATING", choices=tp.own_calls, data=int, effect=tp.begin_calls,
        commits=True),
    Row("GENERATING", "generate", "GENERATING", op=tp.GENERATE, send=tp.this_call, guards=_PHASE_B,
        effect=tp.count_call),
    Row("GENERATING", "leave_phase_b", "IDLE", choices=tp.own_state, data=int, guards=_DONE, effect=end_calls,
        syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    #
    Row("BEATING", "send_noop", "IDLE", op=tp.HEADER, send=tp.noop_header, data=tp.Header, commits=True),
    Row("STOPPING", "send_shutdown", "STOPPED", op=tp.HEADER, send=tp.shutdown_header, data=tp.Header, commits=True),
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

_HEADER = (tp.header_is_intact, tp.call_is_newer, tp.epoch_follows, tp.control_epoch_holds)

WORKER_ROWS = (
    Row("STARTUP", "exchange_parity", "PARITY_CHECK", op=tp.PARITY, send=tp.parity_facts, data=frozenset[str],
        effect=tp.receive),
    Row("PARITY_CHECK", "parity_agrees", "AWAIT_HEADER", guards=(tp.parity_agrees,), effect=tp.take),
    Row("PARITY_CHECK", "parity_differs", "POISONED", By.VIOLATION),
    #
    Row("AWAIT_HEADER", "receive_header", "HEADER_CHECK", op=tp.HEADER, data=tp.Header, effect=tp.receive),
    Row("HEADER_CHECK", "accept_infer", "READY", effect=tp.adopt_header, commits=True,
        guards=(*_HEADER, tp.action_is_infer, tp.chunk_is_newer, tp.header_plan_holds)),
    Row("HEADER_CHECK", "accept_noop", "AWAIT_HEADER", effect=tp.adopt_header,
        guards=(*_HEADER, tp.action_is_noop, tp.chunk_is_same)),
    Row("HEADER_CHECK", "accept_shutdown", "STOPPED", effect=tp.adopt_header,
        guards=(*_HEADER, tp.action_is_shutdown, tp.chunk_is_same)),
    Row("HEADER_CHECK", "reject_header", "POISONED", By.VIOLATION),
    Row("READY", "enter_phase_b", "GENERATING", choices=tp.own_calls, data=int, effect=tp.begin_calls, commits=True),
    Row("GENERATING", "generate", "GENERATING", op=tp.GENERATE, send=tp.this_call, guards=_PHASE_B,
        effect=tp.count_call),
    Row("GENERATING", "leave_phase_b", "AWAIT_HEADER", choices=tp.own_state, data=int, guards=_DONE,
        effect=end_calls, syncs=True),
    Row("GENERATING", "miscount", "POISONED", By.VIOLATION),
    Row("POISONED", "abort", "ABORTED"),
)  # fmt: skip

TP_V0 = Protocol(
    "tp_v0",
    "0",
    Role("rank0", "STARTUP", RANK0_STATES, RANK0_ROWS + tp.failure_rows(RANK0_STATES), tp.start),
    Role("worker", "STARTUP", WORKER_STATES, WORKER_ROWS + tp.failure_rows(WORKER_STATES), tp.start),
    SCHEDULE,
    Frame(tp.base, tp.rebase),
    streams=("device",),
)
