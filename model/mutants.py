"""Known failure modes as edits of the tables, each with the property that must catch it.

A checker that lets one of these pass is worth nothing. Left out for now: FM-01, FM-03 and FM-05 to FM-18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..errors import UsageError
from .properties import CALL_COUNT_AGREEMENT, NO_FALSE_ABORT, NO_STRANDING, Property
from .protocol import TPVars, count_is_expected, own_calls
from .tables import Guard, Protocol, Role, Scope


@dataclass(frozen=True)
class Mutant:
    """A broken protocol: what was edited, and the property that must fail."""

    name: str
    title: str
    edit: Callable[[Protocol], Protocol]
    killed_by: Property
    faults: int = 0
    """Faults that it takes to bring it out."""


def one_call_short(v: TPVars, scope: Scope) -> Iterable[int]:
    """A rank's own code makes one call less than the plan says."""
    return (calls - 1 for calls in own_calls(v, scope))


def without(guards: tuple[Guard, ...], name: str) -> tuple[Guard, ...]:
    """`guards` less the one with this name."""
    return tuple(g for g in guards if g.__name__ != name)


def _short_worker(worker: Role) -> Role:
    return worker.edit("READY", "enter_phase_b", choices=one_call_short)


def _fm_02(protocol: Protocol) -> Protocol:
    worker = _short_worker(protocol.worker)
    guards = without(worker.row("GENERATING", "leave_phase_b").guards, count_is_expected.__name__)
    return replace(protocol, worker=worker.edit("GENERATING", "leave_phase_b", guards=guards))


def _fm_02_asserted(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=_short_worker(protocol.worker))


def _fm_04(protocol: Protocol) -> Protocol:
    driver = (
        protocol.driver.edit("PREFLIGHT_3", "preflight_encode", target="PREFLIGHTED")
        .edit("COMMITTED", "send_header", target="PREFLIGHT_4")
        .edit("PREFLIGHT_5", "preflight_materialise", target="HEADER_SENT")
    )
    return replace(protocol, driver=driver)


MUTANTS = {
    m.name: m
    for m in (
        Mutant(
            "FM-02",
            "workers make one generator call too few, and nobody asserts the count",
            _fm_02,
            CALL_COUNT_AGREEMENT,
        ),
        Mutant(
            "FM-02-asserted",
            "workers make one generator call too few, and their assertion poisons the run",
            _fm_02_asserted,
            NO_FALSE_ABORT,
        ),
        Mutant(
            "FM-04",
            "the header is sent after preflight step 3; steps 4 and 5 can still refuse the chunk",
            _fm_04,
            NO_STRANDING,
        ),
    )
}
"""Mutants of TP v1.1 by name."""


def mutant(name: str) -> Mutant:
    """The mutant of this name. Raises UsageError."""
    try:
        return MUTANTS[name]
    except KeyError:
        raise UsageError(f"no mutant `{name}`", do=f"choose one of {', '.join(MUTANTS)}") from None
