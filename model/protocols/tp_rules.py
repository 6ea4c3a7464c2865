"""Guards, effects, sends and choices of TP v1.1, as named functions. The rows in `tp_v1_1` name them.

Each docstring is the function's text in diagrams, documents and errors.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..tables import Scope, changed
from .tp_values import Ack, Action, Call, Header, Payload, Plan, TPVars

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
