"""Shows what each guard of TP v1.1 is there for: fault × check.

With every check in its place all properties hold under the fault; without this one check, in this one row, the
property named fails. Guards that are no checks are listed too, with what they are.

Left out: checks that are no guards (the order of the preflight steps, what rides in a collective): `mutants.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ...errors import Unfinished
from ..checker.counterexample import counterexample
from ..checker.engine import check
from ..checker.reference import Result
from ..protocols.tp_v1_1 import TP_V1_1
from ..semantics.faults import with_faults
from ..semantics.known_mutants import without
from ..semantics.network import Network
from ..semantics.properties import (
    ACTS_AS_TOLD,
    CALL_COUNT_AGREEMENT,
    COHERENT_PLAN,
    MONOTONIC_IDS,
    NO_FALSE_ABORT,
    NO_MISPAIRING,
    NO_STALE_OVERRIDE,
    NO_UNSEEN_DRIFT,
    PARITY_BEFORE_HEADER,
    PROPERTIES,
    Property,
)
from ..semantics.run import Counterexample
from ..tables import Protocol, Scope


@dataclass(frozen=True, slots=True)
class Check:
    """Names a guard of a row, the fault that it is there for, and the property that fails without it."""

    role: str
    event: str
    guard: str
    fault: str
    fails: Property

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.role, self.event, self.guard)


@dataclass(frozen=True)
class CheckResult:
    """Holds the result of a check.

    `broken` are the properties that fail with the check in place, `missed` says that none did without it.
    """

    check: Check
    broken: tuple[str, ...]
    missed: bool
    example: Counterexample | None

    @property
    def holds(self) -> bool:
        return not self.broken and not self.missed


def _phase_b(role: str) -> tuple[Check, ...]:
    return (
        Check(role, "generate", "call_is_expected", "plan", CALL_COUNT_AGREEMENT),
        Check(role, "leave_phase_b", "count_is_expected", "plan", CALL_COUNT_AGREEMENT),
        Check(role, "leave_phase_b", "override_is_clear", "override", NO_STALE_OVERRIDE),
    )


def _header(event: str, chunk: str, intact: Property) -> tuple[Check, ...]:
    return (
        Check("worker", event, "header_is_intact", "corrupt", intact),
        Check("worker", event, "call_is_newer", "stale", MONOTONIC_IDS),
        Check("worker", event, chunk, "stale", MONOTONIC_IDS),
        Check("worker", event, "epoch_follows", "stale", MONOTONIC_IDS),
        Check("worker", event, "control_epoch_holds", "stale", MONOTONIC_IDS),
    )


MATRIX = (
    Check("rank0", "parity_agrees", "parity_agrees", "flag", PARITY_BEFORE_HEADER),
    Check("rank0", "preflight_schema", "plan_identities_hold", "request", NO_FALSE_ABORT),
    Check("rank0", "preflight_schema", "override_iff_recompute", "request", NO_FALSE_ABORT),
    Check("rank0", "preflight_schema", "pending_cut_is_planned", "request", NO_FALSE_ABORT),
    *_phase_b("rank0"),
    Check("rank0", "acks_agree", "acks_agree", "drift", NO_UNSEEN_DRIFT),
    Check("worker", "parity_agrees", "parity_agrees", "flag", PARITY_BEFORE_HEADER),
    *_header("accept_infer", "chunk_is_newer", CALL_COUNT_AGREEMENT),
    Check("worker", "accept_infer", "header_plan_holds", "incoherent", COHERENT_PLAN),
    *_header("accept_noop", "chunk_is_same", ACTS_AS_TOLD),
    *_header("accept_shutdown", "chunk_is_same", ACTS_AS_TOLD),
    Check("worker", "accept_envelope", "payload_is_intact", "corrupt", NO_MISPAIRING),
    Check("worker", "accept_envelope", "payload_fits_plan", "incoherent", NO_STALE_OVERRIDE),
    *_phase_b("worker"),
)
"""Every check of the tables."""

_OWN_CODE = "what the rank's own code does next is a fact, not a check: `plan` faults make it differ"
STEERING: Mapping[tuple[str, str, str], str] = {
    ("rank0", "hard_cut", "no_cut_pending"): "asking for a cut twice asks for one",
    ("rank0", "generate", "calls_left"): _OWN_CODE,
    ("rank0", "leave_phase_b", "calls_done"): _OWN_CODE,
    (
        "worker",
        "accept_infer",
        "action_is_infer",
    ): "chooses the row, as `header_plan_holds` would: only INFER has a plan",
    ("worker", "accept_noop", "action_is_noop"): "chooses the row",
    ("worker", "accept_shutdown", "action_is_shutdown"): "chooses the row",
    ("worker", "generate", "calls_left"): _OWN_CODE,
    ("worker", "leave_phase_b", "calls_done"): _OWN_CODE,
}
"""Guards that are no checks, with what they are."""


def unchecked(protocol: Protocol, one: Check) -> Protocol:
    """Return the protocol without this check."""
    role = next(r for r in protocol.roles if r.name == one.role)
    row = next(r for r in role.rows if r.event == one.event)
    edited = role.edit(row.state, row.event, guards=without(row.guards, one.guard))
    return replace(protocol, driver=edited) if role is protocol.driver else replace(protocol, worker=edited)


def run(scope: Scope) -> Iterator[CheckResult]:
    """Yield the result of each check, in place and taken away.

    Two ranks and one chunk show all of them.
    """
    sound: dict[str, tuple[str, ...]] = {}
    for one in MATRIX:
        if one.fault not in sound:
            whole = _finished(check(_network(TP_V1_1, one, scope), list(PROPERTIES.values())))
            sound[one.fault] = tuple(v.property.name for v in whole.verdicts if not v.holds)
        result = _finished(check(_network(unchecked(TP_V1_1, one), one, scope), [one.fails]))
        verdict = result.verdict(one.fails.name)
        yield CheckResult(one, sound[one.fault], verdict.holds, counterexample(result, verdict))


def _finished(result: Result) -> Result:
    """Return a result of a whole search. Raise Unfinished for one that ended early."""
    if result.stopped:
        raise Unfinished(result.stopped)
    return result


def _network(protocol: Protocol, one: Check, scope: Scope) -> Network:
    return Network(with_faults(protocol, [one.fault]), scope, faults=1, kinds={one.fault: None})


def table(results: Iterable[CheckResult]) -> str:
    """Return a line a check: the fault that it is there for, the property that fails without it, in how many steps."""
    lines = [f"{'role':7} {'row':17} {'check':23} {'fault':11} {'with it':9} without it"]
    for r in results:
        c = r.check
        steps = len(r.example.steps) if r.example else 0
        without_it = "NOTHING FAILS" if r.missed else f"{c.fails.name} fails in {steps} steps"
        with_it = f"{', '.join(r.broken)} FAIL" if r.broken else "all hold"
        lines.append(f"{c.role:7} {c.event:17} {c.guard:23} {c.fault:11} {with_it:9} {without_it}")
    return "\n".join(lines)
