"""What must always, sometimes or eventually hold, by name.

Safety is watched by *ghosts*: variables beside the role's own, stepped by event names and by the values
that are sent and delivered. A mutated guard or effect cannot move them, so a broken table is caught.
A ghost watches and never steers.

Left out: how the state space is searched (`checker/`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .protocol import Action, Call, Header
from .tables import Data

PREFLIGHT_STEPS = 5


@dataclass(frozen=True, slots=True)
class Property:
    """A named claim. `kind` is `always`, `sometimes` or `eventually`."""

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
    "after a crash or poison, with detection, every rank can still reach its end",
)
NO_FALSE_ABORT = Property("no_false_abort", "always", "without a fault no rank is ever POISONED or ABORTED")
NO_MISPAIRING = Property("no_mispairing", "always", "the members of a collective mean the same by it")
CALL_COUNT_AGREEMENT = Property(
    "call_count_agreement",
    "always",
    "at each issue k < expected, and observed == expected on leaving phase B",
)
NOTHING_SENT_BEFORE_PREFLIGHT = Property(
    "nothing_sent_before_preflight", "always", "an INFER header is sent only after all five preflight steps"
)
ALL_STOPPED = Property("all_stopped", "sometimes", "every rank is STOPPED")
CHUNK_REFUSED = Property("chunk_refused", "sometimes", "preflight refuses a chunk and rank0 is IDLE again")
CALLS_MADE = Property("calls_made", "sometimes", "a rank leaves phase B having made its calls")

PROPERTIES = {
    p.name: p
    for p in (
        NO_STRANDING,
        CRASH_OVER_HANG,
        NO_FALSE_ABORT,
        NO_MISPAIRING,
        CALL_COUNT_AGREEMENT,
        NOTHING_SENT_BEFORE_PREFLIGHT,
        ALL_STOPPED,
        CHUNK_REFUSED,
        CALLS_MADE,
    )
}
"""Every property by name, those that are always checked first."""

SOMETIMES_FOR = {
    NO_STRANDING.name: ALL_STOPPED.name,
    NO_FALSE_ABORT.name: ALL_STOPPED.name,
    CALL_COUNT_AGREEMENT.name: CALLS_MADE.name,
    NO_MISPAIRING.name: CALLS_MADE.name,
    NOTHING_SENT_BEFORE_PREFLIGHT.name: CHUNK_REFUSED.name,
}
"""The `sometimes` that keeps an `always` from holding in an empty model."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """Beside each rank's variables: preflight steps passed, calls made and calls that the header asked for."""

    preflight: int = 0
    calls: int = 0
    expected: int = 0


Watch = Callable[[Ghost, str, str, Data], tuple[Ghost, tuple[str, ...]]]
"""(ghost, event, edge, value) to the ghost after it and the names of properties seen: violated or witnessed."""


def watch(ghost: Ghost, event: str, edge: str, value: Data) -> tuple[Ghost, tuple[str, ...]]:
    """Step the ghost of one rank.

    `edge` is `step`, `issue` or `complete`; `value` the choice, what was sent, or what was delivered.
    Returns the properties that the step violates (`always`) or witnesses (`sometimes`).
    """
    seen: list[str] = []
    if edge == "issue":
        if isinstance(value, Header) and value.action is Action.INFER:
            if ghost.preflight != PREFLIGHT_STEPS:
                seen.append(NOTHING_SENT_BEFORE_PREFLIGHT.name)
            ghost = replace(ghost, preflight=0, expected=_expected(value))
        elif isinstance(value, Call):
            if ghost.calls >= ghost.expected:
                seen.append(CALL_COUNT_AGREEMENT.name)
            ghost = replace(ghost, calls=min(ghost.calls + 1, ghost.expected + 1))
    elif edge == "complete":
        if isinstance(value, Header):
            ghost = replace(ghost, expected=_expected(value))
        elif isinstance(value, frozenset) and len(value) > 1 and any(isinstance(x, Call) for x in value):
            seen.append(NO_MISPAIRING.name)
    elif event.startswith("preflight_"):
        ghost = replace(ghost, preflight=ghost.preflight + 1)
    elif event == "request":
        ghost = replace(ghost, preflight=0)
    elif event == "refuse":
        seen.append(CHUNK_REFUSED.name)
        ghost = replace(ghost, preflight=0)
    elif event == "leave_phase_b":
        seen.append(CALLS_MADE.name if ghost.calls == ghost.expected else CALL_COUNT_AGREEMENT.name)
        ghost = replace(ghost, calls=0, expected=0)
    return ghost, tuple(seen)


def _expected(header: Header) -> int:
    return header.plan.expected if header.plan else 0


def observer(protocol_name: str) -> tuple[Any, Watch | None]:
    """The ghost that a protocol starts with, and what steps it. A user's own protocol has none."""
    return (Ghost(), watch) if protocol_name.startswith("tp_") else (None, None)
