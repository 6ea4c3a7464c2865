"""Makes mutants of the tables by machine, and finds which property kills each: how much the properties are worth.

Each mutant changes one row: a guard or the effect dropped, the row dropped, its target moved to the row's own state
or one state further along the main line, or the work of two consecutive steps exchanged. It is searched at two
ranks, without faults first, then with one fault of any kind. A mutant that survives is either the same protocol in
other words (`EQUIVALENT` says why), or a hole in the properties.

Left out: FAULT rows, which are assumptions about the world and no decisions of the protocol; `deadline`, which needs
a clock, and the checker has none; two changes at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...errors import ModelError
from ..checker.engine import check
from ..protocols.tp_v1_1 import TP_V1_1
from ..semantics.faults import FAULTS, with_faults
from ..semantics.network import Faults, Network
from ..semantics.properties import PROPERTIES
from ..tables import By, Protocol, Role, Row, Scope

MAX_STATES = 40_000
"""The largest search of the sound protocol has a third as many: what grows past it counts something without end."""
VALIDATION, BOUNDS = "validation", "bounds"
"""Holds what else kills a mutant: the tables make no sense, or a value is no value; its states have no end."""


@dataclass(frozen=True)
class MachineMutant:
    """Holds a protocol with one change.

    `protocol` has no faults yet, which are added for each search.
    """

    name: str
    protocol: Protocol


# ── making them ─────────────────────────────────────────────────────────────────────────────────────


def mutants(protocol: Protocol) -> Iterator[MachineMutant]:
    """Yield every mutant of the protocol, role by role and row by row."""
    driver, worker = protocol.roles
    for change, rows in _changes(driver):
        yield MachineMutant(f"{driver.name} {change}", replace(protocol, driver=replace(driver, rows=rows)))
    for change, rows in _changes(worker):
        yield MachineMutant(f"{worker.name} {change}", replace(protocol, worker=replace(worker, rows=rows)))


def _changes(role: Role) -> Iterator[tuple[str, tuple[Row, ...]]]:
    for row in role.rows:
        if row.by is By.FAULT or row.event == "deadline":
            continue
        name = f"{row.state}.{row.event}"
        for guard in row.guards:
            kept = tuple(g for g in row.guards if g is not guard)
            yield f"{name}: drop guard {guard.__name__}", _with(role, (row, replace(row, guards=kept)))
        if row.effect is not None:
            yield f"{name}: drop effect {row.effect.__name__}", _with(role, (row, replace(row, effect=None)))
        yield f"{name}: drop row", tuple(r for r in role.rows if r is not row)
        if row.target != row.state:
            yield f"{name}: target own state", _with(role, (row, replace(row, target=row.state)))
        after = main_step(role, row.target)
        if after is not None and after.target != row.state:
            yield f"{name}: target {after.target}", _with(role, (row, replace(row, target=after.target)))
        if after is not None and after.by is By.PROTOCOL and row.by is By.PROTOCOL and row.target != row.state:
            first = replace(after, state=row.state, target=row.target)
            second = replace(row, state=after.state, target=after.target)
            yield f"{name}: exchange with {after.event}", _with(role, (row, first), (after, second))


def main_step(role: Role, state: str) -> Row | None:
    """Return the first row of `state` that leads on along the main line."""
    return next(
        (
            r
            for r in role.leaving[state]
            if r.target != state and r.by in (By.PROTOCOL, By.ENVIRONMENT) and not role.by_name[r.target].failed
        ),
        None,
    )


def _with(role: Role, *changed: tuple[Row, Row]) -> tuple[Row, ...]:
    new = {id(old): row for old, row in changed}
    return tuple(new.get(id(r), r) for r in role.rows)


# ── killing them ────────────────────────────────────────────────────────────────────────────────────


SEARCHES: tuple[tuple[tuple[str, ...], int], ...] = (((), 1), ((), 2), (tuple(FAULTS), 1))
"""Kinds of faults, of which one strikes, and number of chunks; from the quickest to the slowest."""


class _Boundless(Exception):
    """Says that the search has found more states than `MAX_STATES`."""


def kill(protocol: Protocol) -> str | None:
    """Return the property (or `VALIDATION`, `BOUNDS`) that kills the mutant at 2 ranks, or None where it survives."""
    return next((found for kinds, chunks in SEARCHES if (found := _killed_in(protocol, kinds, chunks))), None)


def _killed_in(protocol: Protocol, kinds: tuple[str, ...], chunks: int) -> str | None:
    anywhere: Faults = dict.fromkeys(kinds)
    try:
        broken = with_faults(protocol, kinds)
        network = Network(broken, Scope(2, chunks, 2), faults=min(1, len(kinds)), kinds=anywhere)
        result = check(network, list(PROPERTIES.values()), progress=_bounded)
    except _Boundless:
        return BOUNDS
    except (ModelError, AttributeError, TypeError):
        return VALIDATION
    return next((v.property.name for v in result.verdicts if not v.holds), None)


def _bounded(states: int, depth: int, queue: int) -> None:
    if states > MAX_STATES:
        raise _Boundless


_PEER = "all ranks are given the same facts: the other role's own check ends the run, and detection this rank"
_REFUSES = "the environment need not refuse at every step; each refusal is a row of its own, and the others stay"
_MOVES_ON = "a rank that does not wait goes on by itself, and hears of a lost peer where it next waits"
_OWN_CODE = "a rank's code makes the calls that it makes: other rows' checks of the count decide alone"
_OVERWRITTEN = "what it would clear is written anew before it is read again"


def _in(role: str, reason: str, *changes: str) -> dict[str, str]:
    return {f"{role} {change}": reason for change in changes}


EQUIVALENT: Mapping[str, str] = {
    **_in("rank0", _OVERWRITTEN, "PARITY_CHECK.parity_agrees: drop effect take"),
    **_in("worker", _OVERWRITTEN, "PARITY_CHECK.parity_agrees: drop effect take"),
    **_in("rank0", _OVERWRITTEN, "ACK_CHECK.acks_agree: drop effect end_chunk"),
    **_in("worker", _OVERWRITTEN, "ACK.send_ack: drop effect end_chunk"),
    **_in("rank0", _PEER, "PARITY_CHECK.parity_differs: drop row", "PARITY_CHECK.parity_differs: target own state"),
    **_in("worker", _PEER, "PARITY_CHECK.parity_differs: drop row", "PARITY_CHECK.parity_differs: target own state"),
    "rank0 IDLE.hard_cut: drop guard no_cut_pending": "asking for a cut twice asks for one",
    "rank0 PREFLIGHT_1.refuse: drop effect give_up": "no plan is held before step 1 is done",
    "rank0 PREFLIGHT_5.preflight_materialise: drop effect hold_payload": "a digest of 0 is a name as good as another, "
    "as header and payload agree on it; that it is the right one is for the code that computes it",
    **_in("rank0", _REFUSES, *(f"PREFLIGHT_{step}.refuse: drop row" for step in range(1, 6))),
    **_in("rank0", _OWN_CODE, "GENERATING.generate: drop guard calls_left"),
    **_in("rank0", _OWN_CODE, "GENERATING.leave_phase_b: drop guard calls_done"),
    **_in("worker", _OWN_CODE, "GENERATING.generate: drop guard calls_left"),
    **_in("worker", _OWN_CODE, "GENERATING.leave_phase_b: drop guard calls_done"),
    "worker HEADER_CHECK.accept_infer: drop guard action_is_infer": "only an INFER has a plan, which "
    "`header_plan_holds` asks for",
    **{
        f"{role} {state}.peer_lost: {change}": _MOVES_ON
        for role, states in (
            ("rank0", ("PARITY_CHECK", "PREFLIGHTED", "PAYLOAD_SENT", "ACK_CHECK")),
            ("worker", ("PARITY_CHECK", "HEADER_CHECK", "ENVELOPE_CHECK", "READY")),
        )
        for state in states
        for change in ("drop row", "target own state")
    },
}
"""Mutants that survive, with the reason why they are the same protocol in other words."""


# ── the run ─────────────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    """Kill what can be killed; print the rate and what survives. Fails where a survivor is not explained."""
    parser = argparse.ArgumentParser(
        prog="python -m genlock.model.mutation.generated_mutants", description=main.__doc__
    )
    parser.add_argument("--all", action="store_true", help="also search the mutants that are known to survive")
    parser.add_argument("--verbose", action="store_true", help="print a line for each mutant")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    every = list(mutants(TP_V1_1))
    by: dict[str | None, list[str]] = {}
    for one in every:
        known = one.name in EQUIVALENT and not arguments.all
        killer = None if known else kill(one.protocol)
        by.setdefault(killer, []).append(one.name)
        if arguments.verbose:
            print(f"{killer or 'SURVIVES':30} {one.name}", flush=True)
    survivors = by.pop(None, [])
    killed = len(every) - len(survivors)
    print(f"{len(every)} mutants, {killed} killed ({killed / len(every):.1%}), {time.perf_counter() - begin:.0f} s")
    for killer, names in sorted(by.items(), key=lambda item: -len(item[1])):
        print(f"  {len(names):4} by {killer}")
    unexplained = [name for name in survivors if name not in EQUIVALENT]
    for name in survivors:
        print(f"  survives: {name}: {EQUIVALENT.get(name, 'UNEXPLAINED')}")
    risen = sorted(set(EQUIVALENT) - set(survivors))
    for name in risen:
        print(f"  explained, but killed or unknown: {name}")
    return 1 if unexplained or risen else 0


if __name__ == "__main__":
    raise SystemExit(main())
