"""Says what a search never reached, so that a protocol that can do nothing useful does not pass in silence.

What the protocol or its world does by itself (PROTOCOL and ENVIRONMENT rows, the states that they lead to, a
`sometimes`) must be reached, or be declared not to be: else the protocol is vacuous. VIOLATION, FAULT and DETECTION
rows, and what only they lead to, depend on the faults that were chosen: those that were not exercised are listed.

Left out: how rows are counted while a search goes on (`StateGraph.taken`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import UsageError
from ..semantics.network import CRASH, STALL, Network
from ..semantics.properties import Property
from ..tables import By, Data, Guard, Meet, Protocol, Role, Row, Slot, Take, named, row_names
from .reference import Result, Taken

ORDINARY = (By.PROTOCOL, By.ENVIRONMENT)


class UnreachedRow(NamedTuple):
    """Names a row that no run takes."""

    role: str
    row: Row
    guards: tuple[str, ...]
    """Those of its guards that hold nowhere in its state."""
    why: str

    @property
    def name(self) -> str:
        """Return the name by which `--allow-unreached` and `Protocol.may_be_unreached` know it."""
        return f"{self.role}.{self.row.state}.{self.row.event}"


@dataclass(frozen=True)
class Coverage:
    """Lists what a finished search did not reach."""

    rows: tuple[UnreachedRow, ...]
    states: tuple[tuple[str, str], ...]
    """Role and state."""
    sometimes: tuple[Property, ...]
    faults: tuple[str, ...]
    """Chosen faults that never struck."""
    not_exercised: tuple[tuple[str, Row], ...]
    """Role and row that the chosen faults do not ask for."""
    allowed: tuple[str, ...]
    """Rows, and properties that are only sometimes seen, that were declared not to be needed."""

    @property
    def vacuous(self) -> bool:
        """Return whether something is missing that must be there for a verdict to mean something."""
        return bool(self.rows or self.states or self.sometimes or self.faults)

    def lines(self) -> list[str]:
        """Return a line for each thing that was never reached."""
        found = [f"{r.role}, row {r.row}: {r.why}" for r in self.rows]
        found += [f"{role}, state {state}" for role, state in self.states]
        found += [f"{p.name}: {p.text}" for p in self.sometimes]
        return found + [f"fault {fault}: it never strikes" for fault in self.faults]

    def as_json(self) -> dict[str, Any]:
        """Return the parts of `check --format json` that say what was not reached."""
        return {
            "unreached": {
                "rows": [
                    {**_row_json(r.role, r.row), "by": r.row.by.value, "guards": list(r.guards), "why": r.why}
                    for r in self.rows
                ],
                "states": [{"role": role, "state": state} for role, state in self.states],
                "sometimes": [p.name for p in self.sometimes],
                "faults": list(self.faults),
            },
            "not_exercised": [_row_json(role, row) for role, row in self.not_exercised],
            "allowed_unreached": list(self.allowed),
        }


def _row_json(role: str, row: Row) -> dict[str, str]:
    return {"role": role, "state": row.state, "event": row.event, "target": row.target}


def coverage(result: Result, base: Protocol, allowed: Iterable[str], asked: Sequence[str]) -> Coverage:
    """Return what a finished search never reached.

    `base` are the tables before faults and mutants were added. `allowed` are rows, as `[ROLE.]STATE.EVENT`, and names
    of properties that need not be reached, beside those that the protocol declares. `asked` are the kinds of faults
    that the user chose. Raise UsageError for a name that is neither.
    """
    network = result.network
    given = tuple(dict.fromkeys((*base.may_be_unreached, *allowed)))
    taken = _with_what_follows(network, result)
    rows: list[UnreachedRow] = []
    states: list[tuple[str, str]] = []
    idle: list[tuple[str, Row]] = []
    for number, (role, plain) in enumerate(zip(network.protocol.roles, base.roles, strict=True)):
        needed = _needed_rows(plain, given)
        for row in role.rows:
            if (number, *row.key) in taken or _is_allowed(role, row, given):
                continue
            if row.key in needed:
                rows.append(_unreached(network, number, role, row, row.state in _entered(role, number, taken)))
            elif not (
                result.reduced and row.by in (By.DETECTION, By.FAULT)
            ):  # of which a reduced search leaves out some
                idle.append((role.name, row))
        entered = _entered(role, number, taken)
        wanted = dict.fromkeys(row.target for row in plain.rows if row.key in needed)
        known = {r.row.target for r in rows if r.role == role.name}
        states += [(role.name, state) for state in wanted if state not in entered and state not in known]
    missed = tuple(
        v.property
        for v in result.verdicts
        if v.property.kind == "sometimes" and not v.holds and v.property.name not in given
    )
    return Coverage(
        tuple(rows), tuple(states), missed, tuple(_idle_faults(network, result, asked, taken)), tuple(idle), given
    )


def refuse_unknown(protocol: Protocol, properties: Iterable[Property], given: Iterable[str]) -> None:
    """Raise UsageError for a name that is neither a row of the protocol nor a property that is sometimes seen."""
    known = {name for role in protocol.roles for row in role.rows for name in row_names(role, row)}
    known |= {prop.name for prop in properties if prop.kind == "sometimes"}
    for name in given:
        if name not in known:
            do = "name a row as [ROLE.]STATE.EVENT, or a property that is sometimes seen"
            raise UsageError(f"no row `{name}` in {protocol.name}", where="--allow-unreached", do=do)


def _is_allowed(role: Role, row: Row, given: Iterable[str]) -> bool:
    return any(name in given for name in row_names(role, row))


def _needed_rows(role: Role, given: Iterable[str]) -> set[tuple[str, str]]:
    """Return the rows that the protocol and its world take by themselves, without those that need not be taken."""
    ordinary = [row for row in role.rows if row.by in ORDINARY and not _is_allowed(role, row, given)]
    reached = {role.initial}
    while fresh := {row.target for row in ordinary if row.state in reached} - reached:
        reached |= fresh
    return {row.key for row in ordinary if row.state in reached}


def _entered(role: Role, number: int, taken: Iterable[Taken]) -> set[str]:
    """Return the states that a run enters."""
    return {role.initial} | {role.rows_by_key[s, e].target for n, s, e in taken if n == number and s}


def _with_what_follows(network: Network, result: Result) -> frozenset[Taken]:
    """Return the rows taken. A reduced search does not go on after a failure, where all open rows are taken."""
    taken = set(result.graph.taken)
    while result.reduced:
        more: set[Taken] = set()
        for number, role in enumerate(network.protocol.roles):
            failed = {state for state in _entered(role, number, taken) if role.by_name[state].failed}
            more |= {(number, *row.key) for state in failed for row in role.leaving[state] if row.by in ORDINARY}
        if more <= taken:
            break
        taken |= more
    return frozenset(taken)


def _unreached(network: Network, number: int, role: Role, row: Row, entered: bool) -> UnreachedRow:
    if not entered:
        return UnreachedRow(role.name, row, (), f"never taken: {row.state} is never entered")
    guards = tuple(named(guard) for guard in row.guards if not _ever_holds(network, number, row, guard))
    if guards:
        shown = " and ".join(f"`{guard}`" for guard in guards)
        return UnreachedRow(role.name, row, guards, f"never taken: guard {shown} never holds")
    what = "its collective never completes" if row.op is not None else "its gate never opens" if row.gate else ""
    return UnreachedRow(role.name, row, (), f"never taken{': ' + what if what else ''}")


def _ever_holds(network: Network, number: int, row: Row, guard: Guard) -> bool:
    """Return whether a guard holds for some variables that were met in its row's state, and what it may be given."""
    met = {local.vars for lts in network.playing(number) for local in lts.locals.items if local.state == row.state}
    return any(_holds(guard, v, data) for v in met for data in _given(network, row, v))


def _given(network: Network, row: Row, v: Any) -> Iterator[Data]:
    if isinstance(row.gate, Take) and isinstance(row.gate.slot, Slot):
        yield from network.values.items[1:]
    elif row.gate is not None and not isinstance(row.gate, Meet) and not isinstance(row.gate.slot, Slot):
        yield from network.store.given.get(row.gate.slot, ())
    elif row.choices is not None:
        yield from row.choices(v, network.scope)
    else:
        yield None


def _holds(guard: Guard, v: Any, data: Data) -> bool:
    try:
        return bool(guard(v, data))
    except Exception:  # it was never asked about this value
        return False


def _idle_faults(network: Network, result: Result, asked: Sequence[str], taken: Iterable[Taken]) -> Iterator[str]:
    """Yield the chosen faults that never struck; a reduced search does not try all of them in all states."""
    struck = set()
    for number, state, event in taken:
        rows = network.protocol.roles[number].rows_by_key
        struck.add(rows[state, event].fault if state else event)
    for kind in asked:
        by_row = {row.fault for role in network.protocol.roles for row in role.rows}
        known = kind in (CRASH, STALL) or (kind in by_row and not result.reduced)
        if known and kind not in struck and network.faults:
            points = network.kinds.get(kind)
            yield kind if points is None else f"{kind}@{'|'.join(sorted(map(str, points)))}"
