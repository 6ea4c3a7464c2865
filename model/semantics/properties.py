"""Defines what must always, sometimes or eventually hold, by name.

Safety is watched by *ghosts*: variables beside the role's own, stepped by event names and by the values
that are sent and delivered. A mutated guard or effect cannot move them, so a broken table is caught.
A ghost watches and never steers.

Left out: how the state space is searched (`checker/`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ...errors import ModelError
from ..claims import Claim, Invariant, LeadsTo
from ..protocols.tp_values import Ack, Action, Call, Header, Payload, Plan, TPVars
from ..tables import Data, Protocol

PREFLIGHT = ("preflight_schema", "preflight_split", "preflight_encode", "preflight_dtypes", "preflight_materialise")
"""The steps of preflight, in their order."""
ACCEPTED = {"accept_infer": Action.INFER, "accept_noop": Action.NOOP, "accept_shutdown": Action.SHUTDOWN}
"""The events by which a worker accepts a header, and what it then does."""


@dataclass(frozen=True, slots=True)
class Property:
    """Holds a named claim.

    `kind` is `always`, `sometimes` or `eventually`.
    """

    name: str
    kind: str
    text: str


NO_STRANDING = Property(
    "no_stranding",
    "always",
    "every live rank has some continuation by ordinary steps in which it advances",
)
CRASH_OVER_HANG = Property(
    "crash_over_hang",
    "eventually",
    "after a crash, stall or poison, with detection, every rank reaches its end under fairness",
)
CLEAN_SHUTDOWN = Property(
    "clean_shutdown", "eventually", "once rank0 shuts down and nothing fails, every rank comes to be STOPPED"
)
NO_FALSE_ABORT = Property("no_false_abort", "always", "without a fault no rank is ever POISONED or ABORTED")
NO_MISPAIRING = Property("no_mispairing", "always", "the members of a collective mean the same by it")
NO_LIVELOCK = Property(
    "no_livelock",
    "always",
    "no live rank comes to where all that it can still do is go round by itself",
)
CALL_COUNT_AGREEMENT = Property(
    "call_count_agreement", "always", "at each issue k < expected, and observed == expected on leaving phase B"
)
NOTHING_SENT_BEFORE_PREFLIGHT = Property(
    "nothing_sent_before_preflight",
    "always",
    "an INFER header is sent only after a request and all preflight steps, in order",
)
REFUSAL_LEAVES_NO_TRACE = Property(
    "refusal_leaves_no_trace",
    "always",
    "a refused chunk has sent nothing, changed no id, epoch or pending cut, and left no plan",
)
EPOCH_FENCE = Property(
    "epoch_fence", "always", "each rank enters phase B in the cache epoch that the hard cuts so far make"
)
NO_STALE_OVERRIDE = Property(
    "no_stale_override", "always", "a chunk uses the override that came with it, and leaves none behind"
)
MONOTONIC_IDS = Property(
    "monotonic_ids",
    "always",
    "no id ever goes back; what a worker accepts has a newer call_id, an INFER a newer chunk; an epoch rises by one",
)
PARITY_BEFORE_HEADER = Property(
    "parity_before_header", "always", "a header is sent or awaited only after all ranks gave the same parity facts"
)
COHERENT_PLAN = Property(
    "coherent_plan", "always", "each rank enters phase B with a plan that does not contradict itself"
)
ACTS_AS_TOLD = Property(
    "acts_as_told", "always", "a worker does what the header that it was sent asks for, and no other"
)
NO_UNSEEN_DRIFT = Property(
    "no_unseen_drift", "always", "each ack tells the state of its rank, and rank0 never accepts acks that differ"
)

ALL_STOPPED = Property("all_stopped", "sometimes", "every rank is STOPPED")
TAKES_PART = Property(
    "takes_part", "sometimes", "a rank takes part in a collective, a slot, the counters or a choice, or ends"
)
ALL_ENDED = Property("all_ended", "sometimes", "after a failure every rank has ended")
CHUNK_REFUSED = Property("chunk_refused", "sometimes", "preflight refuses a chunk")
CALLS_MADE = Property("calls_made", "sometimes", "a rank leaves phase B having made its calls")
HARD_CUT = Property("hard_cut", "sometimes", "a rank enters phase B in a later cache epoch")
RECOMPUTED = Property("recomputed", "sometimes", "a rank enters phase B with an override")
HEARTBEAT_TAKEN = Property("heartbeat_taken", "sometimes", "a worker takes a heartbeat")
PARITY_AGREED = Property("parity_agreed", "sometimes", "all ranks give the same parity facts")
DRAINED = Property("drained", "sometimes", "rank0 drains")
SHUT_DOWN = Property("shut_down", "sometimes", "rank0 shuts down")
SIGNAL_HELD = Property("signal_held", "sometimes", "a worker holds a signal")
ACKS_COLLECTED = Property("acks_collected", "sometimes", "rank0 collects every ack")

PROPERTIES = {
    p.name: p
    for p in (
        NO_STRANDING,
        CRASH_OVER_HANG,
        CLEAN_SHUTDOWN,
        NO_FALSE_ABORT,
        NO_MISPAIRING,
        NO_LIVELOCK,
        CALL_COUNT_AGREEMENT,
        NOTHING_SENT_BEFORE_PREFLIGHT,
        REFUSAL_LEAVES_NO_TRACE,
        EPOCH_FENCE,
        NO_STALE_OVERRIDE,
        MONOTONIC_IDS,
        PARITY_BEFORE_HEADER,
        COHERENT_PLAN,
        ACTS_AS_TOLD,
        NO_UNSEEN_DRIFT,
        ALL_STOPPED,
        TAKES_PART,
        ALL_ENDED,
        CHUNK_REFUSED,
        CALLS_MADE,
        HARD_CUT,
        RECOMPUTED,
        HEARTBEAT_TAKEN,
        PARITY_AGREED,
        DRAINED,
        SHUT_DOWN,
        SIGNAL_HELD,
        ACKS_COLLECTED,
    )
}
"""Every property by name, those that must always hold first."""

GENERIC = (NO_STRANDING, CRASH_OVER_HANG, NO_FALSE_ABORT, NO_MISPAIRING, NO_LIVELOCK, TAKES_PART, ALL_ENDED)
"""The properties that any protocol has; the others speak of TP's events and values."""

CLOSING_PHASES = ("shutdown", "stopped")
"""In these rank0 is on its way to STOPPED."""
WHEN = ".when"
"""Ends the name of the claim that what a `LeadsTo` speaks of comes about."""

NOT_IN_V0 = (NO_STALE_OVERRIDE, NO_UNSEEN_DRIFT, RECOMPUTED, ACKS_COLLECTED, DRAINED, SIGNAL_HELD)
"""TP v0 has no payload, no ack and no drain, so that there is nothing to say about them."""

SOMETIMES_FOR = {
    NO_STRANDING.name: ALL_STOPPED.name,
    CRASH_OVER_HANG.name: ALL_ENDED.name,
    CLEAN_SHUTDOWN.name: ALL_STOPPED.name,
    NO_FALSE_ABORT.name: ALL_STOPPED.name,
    NO_MISPAIRING.name: CALLS_MADE.name,
    NO_LIVELOCK.name: TAKES_PART.name,
    CALL_COUNT_AGREEMENT.name: CALLS_MADE.name,
    NOTHING_SENT_BEFORE_PREFLIGHT.name: CHUNK_REFUSED.name,
    REFUSAL_LEAVES_NO_TRACE.name: CHUNK_REFUSED.name,
    EPOCH_FENCE.name: HARD_CUT.name,
    NO_STALE_OVERRIDE.name: RECOMPUTED.name,
    MONOTONIC_IDS.name: HEARTBEAT_TAKEN.name,
    PARITY_BEFORE_HEADER.name: PARITY_AGREED.name,
    COHERENT_PLAN.name: RECOMPUTED.name,
    ACTS_AS_TOLD.name: HEARTBEAT_TAKEN.name,
    NO_UNSEEN_DRIFT.name: ACKS_COLLECTED.name,
}
"""The `sometimes` that keeps a claim from holding in an empty model."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """Holds, beside each rank's variables, what its own events and messages have been."""

    parity: bool = False
    """All ranks gave the same facts."""
    preflight: int = 0
    """Preflight steps passed since the request."""
    needed: int = 5
    """Preflight steps that there are."""
    asked: bool = False
    """A request is being prepared, and nothing has been done about it yet that could not be taken back."""
    dirty: bool = False
    """Something was sent or changed since the request."""
    epoch: int = 0
    """Hard cuts in the headers sent or received."""
    override: bool = False
    """The chunk at hand came with an override."""
    calls: int = 0
    expected: int = 0
    """Calls made, and calls that the header asked for."""
    drift: bool = False
    """The acks collected last differ."""
    state: int = 0
    """The digest with which the rank left phase B, until an ack has told it."""
    told: Action | None = None
    """Holds what the last header delivered asks for, until a worker has taken it."""


WITNESSED = {"drain": DRAINED, "shutdown": SHUT_DOWN, "hold_signal": SIGNAL_HELD}
"""Events that need no more than to be possible."""

Watch = Callable[[Ghost, str, str, Data, Any, Any], tuple[Ghost, tuple[str, ...]]]
"""(ghost, event, edge, value, variables before, after) to the ghost after it and the properties seen."""


def watch(
    ghost: Ghost, event: str, edge: str, value: Data, before: TPVars, after: TPVars
) -> tuple[Ghost, tuple[str, ...]]:
    """Step the ghost of one rank of TP.

    `edge` is `step`, `issue` or `complete`; `value` the choice, what was sent, or what was delivered.
    Return the ghost after it, and the properties that the step violates (`always`) or witnesses (`sometimes`).
    """
    seen: list[str] = []
    if _went_back(before, after) or _stood_still(event, before, after):
        seen.append(MONOTONIC_IDS.name)
    if ghost.asked and (edge == "issue" or _identity(before) != _identity(after)):
        ghost = replace(ghost, dirty=True)
    if edge == "issue":
        ghost = _issued(ghost, event, value, seen)
    elif edge == "complete":
        ghost = _completed(ghost, event, value, seen)
    else:
        ghost = _stepped(ghost, event, value, before, after, seen)
    return ghost, tuple(seen)


def _stepped(ghost: Ghost, event: str, value: Data, before: TPVars, after: TPVars, seen: list[str]) -> Ghost:
    """Return the ghost after a row without a collective."""
    if event == "request":
        ghost = replace(ghost, preflight=0, asked=True, dirty=_identity(before) != _identity(after))
    elif event.startswith("preflight_"):
        in_turn = event not in PREFLIGHT or PREFLIGHT.index(event) == ghost.preflight
        ghost = replace(ghost, preflight=ghost.preflight + in_turn)
    elif event == "refuse":
        trace = ghost.dirty or after.plan is not None or after.payload
        seen.append(REFUSAL_LEAVES_NO_TRACE.name if trace else CHUNK_REFUSED.name)
        ghost = replace(ghost, preflight=0, asked=False, dirty=False)
    elif event in ("enter_phase_b", "plan_slips", "override_survives"):
        ghost = _entered_phase_b(ghost, before, after, seen)
    elif event in ("leave_phase_b", "state_drifts"):
        seen.append(CALLS_MADE.name if ghost.calls == ghost.expected else CALL_COUNT_AGREEMENT.name)
        if after.override:
            seen.append(NO_STALE_OVERRIDE.name)
        ghost = replace(ghost, calls=0, expected=0, override=False, state=value)
    elif event in ACCEPTED:
        if ghost.told is not ACCEPTED[event]:
            seen.append(ACTS_AS_TOLD.name)
        elif event == "accept_noop":
            seen.append(HEARTBEAT_TAKEN.name)
        ghost = replace(ghost, told=None)
    elif event in WITNESSED:
        seen.append(WITNESSED[event].name)
    elif event == "acks_agree":
        if ghost.drift:
            seen.append(NO_UNSEEN_DRIFT.name)
        ghost = replace(ghost, drift=False)
    return ghost


def _entered_phase_b(ghost: Ghost, before: TPVars, after: TPVars, seen: list[str]) -> Ghost:
    if after.cache_epoch != ghost.epoch:
        seen.append(EPOCH_FENCE.name)
    elif ghost.epoch:
        seen.append(HARD_CUT.name)
    if before.override != ghost.override:
        seen.append(NO_STALE_OVERRIDE.name)
    elif ghost.override:
        seen.append(RECOMPUTED.name)
    if not _coherent(before.plan):
        seen.append(COHERENT_PLAN.name)
    return replace(ghost, asked=False, dirty=False)


def _issued(ghost: Ghost, event: str, value: Data, seen: list[str]) -> Ghost:
    if not ghost.parity and (isinstance(value, Header) or event == "receive_header"):
        seen.append(PARITY_BEFORE_HEADER.name)
    if isinstance(value, Header):
        if value.action is Action.INFER:
            if ghost.preflight != ghost.needed or not ghost.asked:
                seen.append(NOTHING_SENT_BEFORE_PREFLIGHT.name)
            ghost = replace(_with_header(ghost, value), preflight=0)
    elif isinstance(value, Payload):
        ghost = replace(ghost, override=value.override)
    elif isinstance(value, Call):
        if ghost.calls >= ghost.expected:
            seen.append(CALL_COUNT_AGREEMENT.name)
        ghost = replace(ghost, calls=min(ghost.calls + 1, ghost.expected + 1))
    elif isinstance(value, Ack):
        if value.state != ghost.state:
            seen.append(NO_UNSEEN_DRIFT.name)
        ghost = replace(ghost, state=0)
    return ghost


def _completed(ghost: Ghost, event: str, value: Data, seen: list[str]) -> Ghost:
    if isinstance(value, Header) and event.startswith("receive"):
        return replace(_with_header(ghost, value), told=value.action)
    if isinstance(value, Payload) and event.startswith("receive"):
        return replace(ghost, override=value.override)
    if event == "exchange_parity":
        agreed = isinstance(value, frozenset) and len(value) == 1
        seen += [PARITY_AGREED.name] * agreed
        return replace(ghost, parity=agreed)
    if event == "collect_acks":
        seen.append(ACKS_COLLECTED.name)
        return replace(ghost, drift=isinstance(value, frozenset) and len(value) > 1)
    return ghost


def _with_header(ghost: Ghost, header: Header) -> Ghost:
    plan = header.plan
    if header.action is not Action.INFER or plan is None:
        return ghost
    return replace(ghost, expected=plan.expected, epoch=ghost.epoch + plan.init_cache, calls=0)


def _coherent(plan: Plan | None) -> bool:
    """Return whether the identities of a plan hold.

    They are said once more: a broken preflight must not move what it is judged by.
    """
    return plan is not None and plan.expected == plan.recompute + plan.steps and plan.override is plan.recompute


def _identity(v: TPVars | None) -> tuple[object, ...]:
    """Return what a refusal must leave alone."""
    if v is None:
        return ()
    return (int(v.call_id), v.chunk_index, v.cache_epoch, v.control_epoch, v.pending_cut)


def _went_back(before: TPVars, after: TPVars) -> bool:
    same = after.call_id == before.call_id or after.call_id > before.call_id
    forward = after.chunk_index >= before.chunk_index and after.control_epoch >= before.control_epoch
    return not (same and forward and after.cache_epoch - before.cache_epoch in (0, 1))


def _stood_still(event: str, before: TPVars, after: TPVars) -> bool:
    """Return whether a worker accepts what it has had."""
    same_chunk = event == "accept_infer" and after.chunk_index <= before.chunk_index
    return same_chunk or (event in ACCEPTED and not after.call_id > before.call_id)


def observer(protocol_name: str) -> tuple[Any, Watch | None]:
    """Return the ghost that a protocol starts with, and what steps it.

    A user's own protocol has none.
    """
    if protocol_name == "tp_v0":
        return (Ghost(needed=1), watch)
    return (Ghost(), watch) if protocol_name.startswith("tp_") else (None, None)


def properties_of(protocol_name: str) -> tuple[Property, ...]:
    """Return the properties that a protocol is judged by when none are named."""
    if observer(protocol_name)[0] is None:
        return GENERIC
    return tuple(p for p in PROPERTIES.values() if protocol_name != "tp_v0" or p not in NOT_IN_V0)


def of_any(protocol: Protocol) -> tuple[Property, ...]:
    """Return the properties that can be judged of a protocol, whether it has them by itself or not."""
    closes = any(state.phase in CLOSING_PHASES for state in protocol.driver.states)
    return (*GENERIC, ALL_STOPPED, *((CLEAN_SHUTDOWN,) if closes else ()))


def own_properties(protocol: Protocol) -> tuple[Property, ...]:
    """Return what a protocol claims of its own, as properties; a `LeadsTo` comes with what it must not lack."""
    for claim in protocol.claims:
        if claim.name in PROPERTIES:
            what = f"a claim is called `{claim.name}`, as a property is that every protocol may have"
            raise ModelError(what, where=f"{protocol.name}, claims", do="give it another name")
    return tuple(prop for claim in protocol.claims for prop in _as_properties(claim))


def _as_properties(claim: Claim) -> tuple[Property, ...]:
    if isinstance(claim, LeadsTo):
        when = Property(claim.name + WHEN, "sometimes", f"what {claim.name} speaks of comes about")
        return (Property(claim.name, "eventually", claim.text), when)
    return (Property(claim.name, "always" if isinstance(claim, Invariant) else "sometimes", claim.text),)
