"""TP v1.1, generator-only workers: the complete tables of rank0 and worker, and the schedule of collectives.

This is the one place where legality stands. The checker, the `transitions` machines, the Hypothesis
rules, the runtime monitor, the replayer, the diagrams and the documents all read it.

Guards and effects are named functions; their docstrings are their text in diagrams and documents.
They work on plain integers, so that a running rank uses them as they are; the checker starts the same
variables with `Cyclic` call ids, which keeps an endless stream of heartbeats finite.

Left out: what is inside one generator call. Its collectives (160 in the large model) stand here as
one all-reduce; at run time they are counted and hashed, and the hash rides in the ack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from .tables import By, Collective, Frame, Kind, Protocol, Role, Row, Scope, State, changed


class Action(IntEnum):
    """What a header asks of a worker."""

    NOOP = 0
    INFER = 1
    SHUTDOWN = 2


# ── values ──────────────────────────────────────────────────────────────────────────────────────────


class Cyclic(int):
    """A sequence number modulo 4: equal, next, newer by two and older can be told apart, and no more."""

    def __add__(self, other: int) -> Cyclic:
        return Cyclic((int(self) + int(other)) % 4)

    def __gt__(self, other: int) -> bool:
        return (int(self) - int(other)) % 4 in (1, 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chunk will do, as every rank must understand it."""

    steps: int
    recompute: bool
    init_cache: bool
    override: bool
    expected: int
    """`tp_expected_generator_calls`."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header packet, as far as the protocol depends on it."""

    action: Action
    call_id: int
    chunk_index: int
    cache_epoch: int
    control_epoch: int
    plan: Plan | None = None
    payload: int = 0
    """Digest of the payload that follows."""
    intact: bool = True
    """Magic, versions, lengths and digests of the packet are right."""


@dataclass(frozen=True, slots=True)
class Payload:
    """All tensors of a chunk."""

    digest: int
    override: bool
    """`context_frames_override` is a tensor."""
    intact: bool = True
    """Every tensor has the digest that its spec gives."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a rank believes a generator call to be. Nothing of it is on the wire: all-reduces pair blindly."""

    chunk_index: int
    number: int
    inputs: int = 0
    """Digest of the inputs that the rank computes with."""


@dataclass(frozen=True, slots=True)
class Ack:
    """What a rank says at the end of a chunk. Ranks in lockstep say the same."""

    call_id: int
    chunk_index: int
    cache_epoch: int
    observed: int
    """`observed_generator_calls`."""
    state: int = 0
    """Digest of the collective sequence, the cache scalars and the generator's output."""


class TPVars(msgspec.Struct, frozen=True):
    """The variables of either role. Ids and epochs are 0 before the first commit."""

    call_id: int = 0
    chunk_index: int = 0
    cache_epoch: int = 0
    control_epoch: int = 0
    pending_cut: bool = False
    """Rank0: a hard cut was asked for and not yet committed."""
    plan: Plan | None = None
    """Rank0: proposed in preflight, then committed. Worker: as the header says."""
    payload: int = 0
    """Digest of the payload. Rank0: as materialised. Worker: as the header announced it."""
    inputs: int = 0
    """Digest of the inputs that this rank computes with."""
    override: bool = False
    """The slot for the recompute anchor is full."""
    calls: int = 0
    """Generator calls that this rank's own code is going to make."""
    observed: int = 0
    """Generator calls that it has made."""
    state: int = 0
    """Digest of this rank's state at the end of phase B, for the ack."""
    facts: str = "same"
    """What this rank gives for parity; its flags, versions and backends are in it."""
    received: object = None
    """What the last collective delivered, until a check has taken it."""


def start(finite: bool) -> TPVars:
    """The variables at start-up."""
    return TPVars(call_id=Cyclic(0)) if finite else TPVars()


def rebase(value: object, by: int) -> object:
    """`value` with every call id in it moved on by `by`: only differences of call ids mean anything."""
    if isinstance(value, TPVars):
        return changed(value, call_id=value.call_id + by, received=rebase(value.received, by))
    if isinstance(value, Header | Ack):
        return changed(value, call_id=value.call_id + by)
    if isinstance(value, frozenset):
        return frozenset(rebase(item, by) for item in value)
    return value


def base(v: TPVars) -> int:
    """Rank0's call id, from which the others are counted."""
    return int(v.call_id)


# ── schedule ────────────────────────────────────────────────────────────────────────────────────────

PARITY = Collective("parity", Kind.ALL_GATHER, "control", None, "uint8", "parity bytes", "startup")
HEADER = Collective("header", Kind.BROADCAST, "control", 0, "int64", "header packet", "header")
PAYLOAD = Collective("payload", Kind.BROADCAST, "device", 0, "uint8", "payload bytes", "payload")
GENERATE = Collective("generate", Kind.ALL_REDUCE, "device", None, "model", "activations", "generate")
ACK = Collective("ack", Kind.GATHER, "control", 0, "int64", "ack record", "ack")
SCHEDULE = (PARITY, HEADER, PAYLOAD, GENERATE, ACK)
"""Every collective that TP v1.1 may issue, in the order of a chunk's life."""


# ── what goes into a collective ─────────────────────────────────────────────────────────────────────


def parity_facts(v: TPVars) -> str:
    """Everything that must not differ by rank."""
    return v.facts


def infer_header(v: TPVars) -> Header:
    """INFER with the committed ids and the plan."""
    return Header(Action.INFER, v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch, v.plan, v.payload)


def noop_header(v: TPVars) -> Header:
    """NOOP: a heartbeat."""
    return Header(Action.NOOP, v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch)


def shutdown_header(v: TPVars) -> Header:
    """SHUTDOWN: exit cleanly."""
    return Header(Action.SHUTDOWN, v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch)


def chunk_payload(v: TPVars) -> Payload:
    """The chunk's tensors, as one run of bytes."""
    return Payload(v.payload, override=v.plan is not None and v.plan.override)


def this_call(v: TPVars) -> Call:
    """One generator call."""
    return Call(v.chunk_index, v.observed, v.inputs)


def own_ack(v: TPVars) -> Ack:
    """Ids and counts as this rank has them."""
    return Ack(v.call_id, v.chunk_index, v.cache_epoch, v.observed, v.state)


# ── what the environment may choose, in the checker ─────────────────────────────────────────────────


def work_left(v: TPVars, scope: Scope) -> Iterable[None]:
    """Work comes until the scope's chunks are done."""
    return (None,) if v.chunk_index < scope.chunks else ()


def plans(v: TPVars, scope: Scope) -> Iterable[Plan]:
    """With and without a recompute; a hard cut where one is pending."""
    for recompute in (False, True):
        yield Plan(scope.steps, recompute, v.pending_cut, recompute, scope.steps + recompute)


def own_calls(v: TPVars, scope: Scope) -> Iterable[int]:
    """A rank's own code makes the calls of the plan."""
    return () if v.plan is None else (int(v.plan.recompute) + v.plan.steps,)


def own_payload(v: TPVars, scope: Scope) -> Iterable[int]:
    """Each chunk has tensors of its own."""
    return (v.chunk_index + 1,)


def own_state(v: TPVars, scope: Scope) -> Iterable[int]:
    """Ranks in lockstep have the same digest."""
    return (0,)


# ── guards ──────────────────────────────────────────────────────────────────────────────────────────


def parity_agrees(v: TPVars, _: object) -> bool:
    """all ranks gave the same parity facts"""
    return isinstance(v.received, frozenset) and len(v.received) == 1


def no_cut_pending(v: TPVars, _: object) -> bool:
    """no hard cut is pending"""
    return not v.pending_cut


def plan_identities_hold(v: TPVars, plan: Plan) -> bool:
    """steps > 0 and expected calls == recompute + steps"""
    return plan.steps > 0 and plan.expected == int(plan.recompute) + plan.steps


def override_iff_recompute(v: TPVars, plan: Plan) -> bool:
    """the override is a tensor iff a recompute is planned"""
    return plan.override == plan.recompute


def pending_cut_is_planned(v: TPVars, plan: Plan) -> bool:
    """a pending hard cut is in the plan, and no other"""
    return plan.init_cache == v.pending_cut


def _header(v: TPVars) -> Header | None:
    return v.received if isinstance(v.received, Header) else None


def header_is_intact(v: TPVars, _: object) -> bool:
    """what came is a header packet, of this version, undamaged"""
    header = _header(v)
    return header is not None and header.intact


def call_is_newer(v: TPVars, _: object) -> bool:
    """call_id is above the last"""
    header = _header(v)
    return header is not None and header.call_id > v.call_id


def control_epoch_holds(v: TPVars, _: object) -> bool:
    """control_epoch does not decrease"""
    header = _header(v)
    return header is not None and header.control_epoch >= v.control_epoch


def action_is_infer(v: TPVars, _: object) -> bool:
    """the action is INFER"""
    header = _header(v)
    return header is not None and header.action is Action.INFER


def action_is_noop(v: TPVars, _: object) -> bool:
    """the action is NOOP"""
    header = _header(v)
    return header is not None and header.action is Action.NOOP


def action_is_shutdown(v: TPVars, _: object) -> bool:
    """the action is SHUTDOWN"""
    header = _header(v)
    return header is not None and header.action is Action.SHUTDOWN


def chunk_is_newer(v: TPVars, _: object) -> bool:
    """chunk_index is above the last"""
    header = _header(v)
    return header is not None and header.chunk_index > v.chunk_index


def chunk_is_same(v: TPVars, _: object) -> bool:
    """chunk_index is the last one"""
    header = _header(v)
    return header is not None and header.chunk_index == v.chunk_index


def epoch_follows(v: TPVars, _: object) -> bool:
    """cache_epoch rises by one on a hard cut, and only then"""
    header = _header(v)
    cut = header is not None and header.plan is not None and header.plan.init_cache
    return header is not None and header.cache_epoch == v.cache_epoch + int(cut)


def header_plan_holds(v: TPVars, _: object) -> bool:
    """the plan's identities hold"""
    header = _header(v)
    if header is None or header.plan is None:
        return False
    return plan_identities_hold(v, header.plan) and override_iff_recompute(v, header.plan)


def payload_is_intact(v: TPVars, _: object) -> bool:
    """what came is the payload that the header announced, undamaged"""
    payload = v.received
    return isinstance(payload, Payload) and payload.intact and payload.digest == v.payload


def payload_fits_plan(v: TPVars, _: object) -> bool:
    """the payload has an override iff a recompute is planned"""
    payload = v.received
    return isinstance(payload, Payload) and v.plan is not None and payload.override == v.plan.recompute


def calls_left(v: TPVars, _: object) -> bool:
    """this rank's code has another call to make"""
    return v.observed < v.calls


def calls_done(v: TPVars, _: object) -> bool:
    """this rank's code has no more calls to make"""
    return v.observed >= v.calls


def call_is_expected(v: TPVars, _: object) -> bool:
    """observed calls < expected calls"""
    return v.plan is not None and v.observed < v.plan.expected


def count_is_expected(v: TPVars, _: object) -> bool:
    """observed calls == expected calls"""
    return v.plan is not None and v.observed == v.plan.expected


def override_is_clear(v: TPVars, _: object) -> bool:
    """the override slot is empty"""
    return not v.override


def acks_agree(v: TPVars, _: object) -> bool:
    """every rank's ack is the same, rank0's own among them"""
    return v.received == frozenset({own_ack(v)})


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────


def receive(v: TPVars, data: object) -> TPVars:
    """keep what was delivered"""
    return changed(v, received=data)


def take(v: TPVars, _: object) -> TPVars:
    """done with what was delivered"""
    return changed(v, received=None)


def ask_cut(v: TPVars, _: object) -> TPVars:
    """the next committed chunk starts a new cache epoch"""
    return changed(v, pending_cut=True)


def propose(v: TPVars, plan: Plan) -> TPVars:
    """hold the plan; nothing else changes before commit"""
    return changed(v, plan=plan)


def hold_payload(v: TPVars, digest: int) -> TPVars:
    """the payload is ready to be sent, and has this digest"""
    return changed(v, payload=digest)


def give_up(v: TPVars, _: object) -> TPVars:
    """forget the plan; ids, epochs and pending decisions stay as they were"""
    return changed(v, plan=None, payload=0)


def next_call(v: TPVars, _: object) -> TPVars:
    """call_id + 1"""
    return changed(v, call_id=v.call_id + 1)


def commit_chunk(v: TPVars, _: object) -> TPVars:
    """ids and epoch advance; the pending cut and the override are spent on this chunk"""
    return changed(
        v,
        call_id=v.call_id + 1,
        chunk_index=v.chunk_index + 1,
        cache_epoch=v.cache_epoch + int(v.pending_cut),
        pending_cut=False,
        override=v.plan is not None and v.plan.override,
        inputs=v.payload,
    )


def adopt_header(v: TPVars, _: object) -> TPVars:
    """take ids, epochs and plan from the header"""
    header = _header(v)
    if header is None:
        return v
    return changed(
        v,
        call_id=header.call_id,
        chunk_index=header.chunk_index,
        cache_epoch=header.cache_epoch,
        control_epoch=header.control_epoch,
        plan=header.plan,
        payload=header.payload,
        received=None,
    )


def adopt_payload(v: TPVars, _: object) -> TPVars:
    """compute with these inputs; fill the override slot"""
    payload = v.received
    if not isinstance(payload, Payload):
        return v
    return changed(v, override=payload.override, inputs=payload.digest, payload=0, received=None)


def begin_calls(v: TPVars, calls: int) -> TPVars:
    """read and clear the override, count from 0"""
    return changed(v, calls=calls, observed=0, override=False)


def count_call(v: TPVars, _: object) -> TPVars:
    """observed + 1"""
    return changed(v, observed=v.observed + 1)


def close_calls(v: TPVars, state: int) -> TPVars:
    """keep the digest of this rank's state"""
    return changed(v, calls=0, state=state)


def end_chunk(v: TPVars, _: object) -> TPVars:
    """the chunk is done"""
    return changed(v, plan=None, payload=0, inputs=0, observed=0, state=0, received=None)


# ── rank0 ───────────────────────────────────────────────────────────────────────────────────────────

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


# ── worker ──────────────────────────────────────────────────────────────────────────────────────────

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


# ── what can go wrong in any state ──────────────────────────────────────────────────────────────────


def failure_rows(states: tuple[State, ...]) -> tuple[Row, ...]:
    """From every live state, the same three ways out: the rank raises, a peer is gone, its time is up.

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
TP_V1_1 = Protocol("tp_v1.1", "1", RANK0, WORKER, SCHEDULE, Frame(base, rebase), streams=("device",))
