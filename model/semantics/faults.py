"""Defines what can go wrong, by kind: each fault as rows that are added to the tables, and what it stands for.

A crash and a stall need no row (`network.py`). The other kinds are FAULT rows: they are taken at most as
often as the budget says, and only where they are asked for. A fault does what the real thing does to the
rank's own variables or messages; whether anybody notices is up to the checks in the tables.

Left out: several faults in one step, and faults of the transport itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ...errors import UsageError
from ..protocols import tp_rules as rules
from ..protocols import tp_v1_1 as tp
from ..protocols import tp_values as values
from ..protocols.tp_values import TPVars
from ..tables import By, Collective, Kind, Protocol, Row, Scope, changed
from .network import CRASH, STALL, Faults, Point

Edit = Callable[[Protocol], Protocol]


@dataclass(frozen=True)
class Fault:
    """Describes one kind of fault: in words, and as an edit of the tables."""

    kind: str
    text: str
    edit: Edit | None = None


# ── what faults do ──────────────────────────────────────────────────────────────────────────────────

FLAGGED = Collective("flagged", Kind.ALL_REDUCE, "device", None, "model", "activations", "generate")
"""The collective that a rank-local flag gates: on the wire it looks like a generator call's."""


def odd_facts(v: TPVars, _: object) -> TPVars:
    """one flag of this rank differs from the others'"""
    return changed(v, facts="odd")


def other_numbers(v: TPVars, _: object) -> TPVars:
    """weights, backend or compile mode of this rank differ, and so does what it computes"""
    return changed(v, facts="other numbers")


def other_plan(v: TPVars, _: object) -> TPVars:
    """this rank runs another `tp_plan`"""
    return changed(v, facts="other plan")


def flag_is_set(v: TPVars, _: object) -> bool:
    """this rank's flag asks for another collective"""
    return v.facts == "odd" and v.observed > 0 and not v.pending_cut


def flag_is_spent(v: TPVars, _: object) -> TPVars:
    """the flagged collective comes once a chunk"""
    return changed(v, pending_cut=True)


def slipped_calls(v: TPVars, scope: Scope) -> Iterable[int]:
    """This rank's own code makes one call too few, or one too many."""
    return (n for calls in rules.own_calls(v, scope) for n in (calls - 1, calls + 1))


def begin_and_keep(v: TPVars, calls: int) -> TPVars:
    """the override is read, but not cleared"""
    return changed(rules.begin_calls(v, calls), override=True)


def drifted_state(v: TPVars, scope: Scope) -> Iterable[int]:
    """This rank's output, cache or sequence of collectives differs."""
    return (1,)


Send = Callable[[TPVars], values.Header]


def _stale(field: str, by: int, text: str) -> Callable[[Send], Send]:
    """Return how to make a header with one field of an earlier time, from how to make it."""

    def of(send: Send) -> Send:
        def stale(v: TPVars) -> values.Header:
            header = send(v)
            return replace(header, **{field: getattr(header, field) + by})

        stale.__name__, stale.__doc__ = f"stale_{field}", text
        return stale

    return of


STALE = (
    _stale("call_id", 3, "A header with an older call_id."),  # modulo 4, the one before
    _stale("chunk_index", -1, "A header that replays the chunk before."),
    _stale("cache_epoch", -1, "A header from before the last hard cut."),
    _stale("control_epoch", -1, "A header with an older control_epoch."),
)
"""Each makes one field of a header stale, so that each check of a header has a fault of its own."""


def reordered_payload(v: TPVars) -> values.Payload:
    """The same tensors in another order than the specs in the header have."""
    return replace(rules.chunk_payload(v), digest=v.payload + 50)


def noop_again(v: TPVars) -> values.Header:
    """The last header, as a heartbeat, once more."""
    return rules.noop_header(v)


def damaged_header(v: TPVars, _: object) -> TPVars:
    """the packet is damaged on this rank: it asks for another call, and its digest is wrong"""
    header = v.received
    if not isinstance(header, values.Header):
        return v
    plan = header.plan and replace(header.plan, steps=header.plan.steps + 1, expected=header.plan.expected + 1)
    return changed(v, received=replace(header, plan=plan, intact=False))


def misread_header(v: TPVars, _: object) -> TPVars:
    """the packet is damaged on this rank: a heartbeat reads as a shutdown, or the reverse, and its digest is wrong"""
    header = v.received
    if not isinstance(header, values.Header):
        return v
    action = values.Action.SHUTDOWN if header.action is values.Action.NOOP else values.Action.NOOP
    return changed(v, received=replace(header, action=action, intact=False))


def incoherent_header(v: TPVars, _: object) -> TPVars:
    """the header is whole, but its plan contradicts itself: rank0 preflighted it with another version's rules"""
    header = v.received
    if not isinstance(header, values.Header):
        return v
    plan = header.plan and replace(header.plan, expected=header.plan.expected + 1)
    return changed(v, received=replace(header, plan=plan))


def damaged_payload(v: TPVars, _: object) -> TPVars:
    """a byte of the payload is flipped on this rank, and its digest is wrong"""
    payload = v.received
    if not isinstance(payload, values.Payload):
        return v
    return changed(v, received=replace(payload, digest=-payload.digest, intact=False))


def swapped_override(v: TPVars, _: object) -> TPVars:
    """the payload is whole, but its override is there where none is planned, or missing where one is"""
    payload = v.received
    if not isinstance(payload, values.Payload):
        return v
    return changed(v, received=replace(payload, override=not payload.override))


def received_infer(v: TPVars, _: object) -> bool:
    """an INFER header was received"""
    return isinstance(v.received, values.Header) and v.received.action is values.Action.INFER


def received_other(v: TPVars, _: object) -> bool:
    """a header without a payload was received"""
    return isinstance(v.received, values.Header) and v.received.action is not values.Action.INFER


def from_the_owning_thread(v: TPVars, _: object) -> bool:
    """the collective comes from the thread that owns the group"""
    return False


def bad_plans(v: TPVars, scope: Scope) -> Iterable[values.Plan]:
    """Good plans, a wrong count, a missing or left-over override, a hard cut dropped or made up."""
    for plan in rules.plans(v, scope):
        yield plan
        yield replace(plan, expected=plan.expected + 1)
        yield replace(plan, override=not plan.override)
        yield replace(plan, init_cache=not plan.init_cache)


# ── as rows ─────────────────────────────────────────────────────────────────────────────────────────


def _driver(*rows: Row) -> Edit:
    return lambda p: replace(p, driver=p.driver.adding(*rows))


def _worker(*rows: Row) -> Edit:
    return lambda p: replace(p, worker=p.worker.adding(*rows))


def _both(rows: Callable[[str, str], tuple[Row, ...]]) -> Edit:
    """Return the edit that adds the same rows to both roles, which differ in where they enter and leave phase B."""
    return lambda p: _worker(*rows("READY", "ACK"))(_driver(*rows("PAYLOAD_SENT", "AWAIT_ACK"))(p))


def _flag(p: Protocol) -> Protocol:
    odd = Row("STARTUP", "flag_differs", "STARTUP", By.FAULT, effect=odd_facts, fault="flag")
    extra = Row(
        "GENERATING", "flagged_collective", "GENERATING", op=FLAGGED, guards=(flag_is_set,), effect=flag_is_spent
    )
    with_rows = replace(p, schedule=(*p.schedule, FLAGGED))
    return replace(with_rows, driver=p.driver.adding(odd, extra), worker=p.worker.adding(odd, extra))


def _plan_rows(ready: str, done: str) -> tuple[Row, ...]:
    return (
        Row(ready, "plan_slips", "GENERATING", By.FAULT, choices=slipped_calls, effect=rules.begin_calls, fault="plan"),
    )


def _override_rows(ready: str, done: str) -> tuple[Row, ...]:
    return (
        Row(ready, "override_survives", "GENERATING", By.FAULT, choices=rules.own_calls, effect=begin_and_keep,
            fault="override"),
    )  # fmt: skip


def _drift_rows(ready: str, done: str) -> tuple[Row, ...]:
    return (
        Row("GENERATING", "state_drifts", done, By.FAULT, choices=drifted_state, effect=rules.close_calls, syncs=True,
            guards=(rules.calls_done, rules.count_is_expected, rules.override_is_clear), fault="drift"),
    )  # fmt: skip


def _stale_rows(p: Protocol) -> Protocol:
    sent = (
        ("COMMITTED", "HEADER_SENT", rules.infer_header),
        ("BEATING", "IDLE", rules.noop_header),
        ("STOPPING", "STOPPED", rules.shutdown_header),
    )
    rows = [
        Row(state, f"send_{stale(send).__name__}", target, By.FAULT, op=tp.HEADER, send=stale(send), commits=True,
            fault="stale")
        for state, target, send in sent
        for stale in STALE
    ]  # fmt: skip
    return _driver(*rows)(p)


def state_of_facts(v: TPVars, scope: Scope) -> Iterable[int]:
    """A rank that differs in what it computes with has another output."""
    return (int(v.facts == "other numbers"),)


def _computes_by_facts(p: Protocol) -> Protocol:
    driver = p.driver.edit("GENERATING", "leave_phase_b", choices=state_of_facts)
    return replace(p, driver=driver, worker=p.worker.edit("GENERATING", "leave_phase_b", choices=state_of_facts))


def _weights(p: Protocol) -> Protocol:
    p = _computes_by_facts(p)
    driver = Row("IDLE", "weights_change", "IDLE", By.FAULT, effect=other_numbers, fault="weights")
    worker = replace(driver, state="AWAIT_HEADER", target="AWAIT_HEADER")
    return _worker(worker)(_driver(driver)(p))


def _backend(p: Protocol) -> Protocol:
    odd = Row("STARTUP", "backend_differs", "STARTUP", By.FAULT, effect=other_numbers, fault="backend")
    return _worker(odd)(_driver(odd)(_computes_by_facts(p)))


def runs_other_plan(v: TPVars, _: object) -> bool:
    """this rank runs another `tp_plan`"""
    return v.facts == "other plan"


def _role(p: Protocol) -> Protocol:
    odd = Row("STARTUP", "plan_differs", "STARTUP", By.FAULT, effect=other_plan, fault="role")
    whole = Row("HEADER_CHECK", "accept_infer_alone", "READY", effect=rules.adopt_header, commits=True,
                guards=(runs_other_plan, *p.worker.row("HEADER_CHECK", "accept_infer").guards))  # fmt: skip
    return _worker(odd, whole)(p)


_THREAD_STATES = ("HEADER_SENT", "PAYLOAD_SENT", "GENERATING", "AWAIT_ACK")

FAULTS: Mapping[str, Fault] = {
    fault.kind: fault
    for fault in (
        Fault(CRASH, "a rank dies, its contribution to a collective made or not"),
        Fault(STALL, "a rank takes no steps and sends no end-of-file; it may resume"),
        Fault("exception", "a rank raises, in any state"),
        Fault("flag", "a flag that gates a collective is set on one rank", _flag),
        Fault("plan", "one rank's own code makes a call too few or too many", _both(_plan_rows)),
        Fault("override", "one rank reads the override without clearing it", _both(_override_rows)),
        Fault("drift", "one rank's output, cache or sequence of collectives differs", _both(_drift_rows)),
        Fault("stale", "rank0 sends a header of an earlier call, chunk, epoch or control epoch", _stale_rows),
        Fault(
            "duplicate",
            "rank0 sends its last header once more",
            _driver(Row("IDLE", "send_again", "IDLE", By.FAULT, op=tp.HEADER, send=noop_again, fault="duplicate")),
        ),
        Fault(
            "corrupt",
            "a header or payload is damaged on one worker",
            _worker(
                Row(
                    "HEADER_CHECK",
                    "header_damaged",
                    "HEADER_CHECK",
                    By.FAULT,
                    effect=damaged_header,
                    guards=(received_infer,),
                    fault="corrupt",
                ),
                Row(
                    "HEADER_CHECK",
                    "header_misread",
                    "HEADER_CHECK",
                    By.FAULT,
                    effect=misread_header,
                    guards=(received_other,),
                    fault="corrupt",
                ),
                Row(
                    "ENVELOPE_CHECK",
                    "payload_damaged",
                    "ENVELOPE_CHECK",
                    By.FAULT,
                    effect=damaged_payload,
                    fault="corrupt",
                ),
            ),
        ),
        Fault(
            "incoherent",
            "a header or payload is whole, but contradicts the plan, on one worker",
            _worker(
                Row(
                    "HEADER_CHECK",
                    "plan_contradicts",
                    "HEADER_CHECK",
                    By.FAULT,
                    effect=incoherent_header,
                    guards=(received_infer,),
                    fault="incoherent",
                ),
                Row(
                    "ENVELOPE_CHECK",
                    "override_contradicts",
                    "ENVELOPE_CHECK",
                    By.FAULT,
                    effect=swapped_override,
                    fault="incoherent",
                ),
            ),
        ),
        Fault(
            "manifest",
            "rank0 sends the tensors in another order than their specs",
            _driver(
                Row(
                    "HEADER_SENT",
                    "send_reordered",
                    "PAYLOAD_SENT",
                    By.FAULT,
                    op=tp.PAYLOAD,
                    send=reordered_payload,
                    fault="manifest",
                )
            ),
        ),
        Fault("role", "one worker runs another `tp_plan`: it takes no payload, and makes inputs of its own", _role),
        Fault("weights", "a weight changes on one rank, and with it what it computes", _weights),
        Fault("backend", "one rank resolves another attention backend or compile mode", _backend),
        Fault(
            "request",
            "the caller asks for a plan that contradicts itself, or drops a pending hard cut",
            lambda p: replace(p, driver=p.driver.edit("PREFLIGHT_1", "preflight_schema", choices=bad_plans)),
        ),
        Fault(
            "thread",
            "a second thread of rank0 sends a heartbeat in mid-chunk",
            _driver(
                *(
                    Row(
                        state,
                        "second_thread_beats",
                        state,
                        By.FAULT,
                        op=tp.HEADER,
                        send=rules.noop_header,
                        guards=(from_the_owning_thread,),
                        fault="thread",
                    )
                    for state in _THREAD_STATES
                )
            ),
        ),
    )
}
"""Every kind of fault, by name."""


def with_faults(protocol: Protocol, kinds: Iterable[str]) -> Protocol:
    """Return the protocol with the rows of these kinds of faults.

    Raises UsageError for a kind that does not exist.
    """
    own = {row.fault for role in protocol.roles for row in role.rows if row.fault}
    for kind in kinds:
        fault = FAULTS.get(kind)
        if fault is None and kind in own:
            continue
        if fault is None:
            raise UsageError(f"no fault `{kind}`", where="--fault", do=f"choose from {', '.join(FAULTS)}")
        if fault.edit is not None:
            if not protocol.name.startswith("tp_v1"):
                raise UsageError(f"fault `{kind}` is one of TP v1.1", where="--fault", do=f"use {CRASH} or {STALL}")
            protocol = fault.edit(protocol)
    return protocol


def asked(points: Iterable[tuple[str, str | None]], protocol: Protocol) -> Faults:
    """Return the kinds and points of `--fault KIND[@[rankN.]STATE]`.

    Raises UsageError for a state that does not exist.
    """
    chosen: dict[str, frozenset[Point] | None] = {}
    known = {s.name for role in protocol.roles for s in role.states}
    for kind, text in points:
        before = chosen.get(kind, frozenset())
        if text is None or before is None:
            chosen[kind] = None
            continue
        match = re.fullmatch(r"(?:rank(\d+)\.)?(\w+)", text)
        if match is None or match[2] not in known:
            raise UsageError(
                f"`{text}` is no point", where=f"--fault {kind}", do=f"use [rankN.]STATE of {', '.join(sorted(known))}"
            )
        chosen[kind] = before | {Point(match[2], int(match[1]) if match[1] else None)}
    return chosen


def refuse_idle(kinds: Faults, protocol: Protocol, scope: Scope) -> None:
    """Raise UsageError for a fault that cannot strike: no such rank, or no row of its kind where it is to strike."""
    ranks = scope.ranks
    for kind, points in kinds.items():
        where = f"--fault {kind}"
        for point in points or ():
            if point.rank is not None and point.rank >= ranks:
                do = f"take rank0 to rank{ranks - 1}"
                raise UsageError(f"`{point}` cannot strike: there are {ranks} ranks", where=where, do=do)
        if kind in (CRASH, STALL):
            continue
        rows = [
            (number, row.state) for number, role in enumerate(protocol.roles) for row in role.rows if row.fault == kind
        ]
        edits = FAULTS[kind].edit is not None if kind in FAULTS else False
        if not rows and not edits:
            do = f"use {CRASH} or {STALL}, or add FAULT rows of this kind"
            raise UsageError(f"it cannot strike: {protocol.name} has no row of it", where=where, do=do)
        for point in points or ():
            roles = protocol.roles if point.rank is None else (protocol.role(point.rank, scope),)
            if not any(protocol.roles[number] in roles and state == point.state for number, state in rows):
                states = ", ".join(sorted({state for _, state in rows})) or "no single state"
                raise UsageError(f"`{point}` cannot strike: it strikes in {states}", where=where)
