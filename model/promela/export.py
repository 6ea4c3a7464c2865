"""Writes the network that `check` searches for Spin: `genlock export promela`.

The roles go out as tables (`tables.py`). What makes a network of them, that is transport, channels, counters,
faults and detection, is Promela of its own (`template.py`). Which locals the tables must have is found by searching
the network once; should Spin come to a local or a delivery that they do not have, its assertion `known` fails, so that
a wrong restriction cannot hide a state.

Left out: what Spin cannot be asked (`docs/spin.md`), and running Spin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ..claims import LeadsTo
from ..semantics.network import CRASH, STALL, Network
from ..semantics.properties import NO_FALSE_ABORT, NO_LIVELOCK, NO_MISPAIRING, NO_STRANDING, properties_of
from ..tables import Cell, Fifo, Kind
from . import template as text
from .claims import ASKS, NO, YES, Claims, flag
from .met import Tell, search
from .tables import GATES, At, Tables

NOT_ASKED = (NO_STRANDING, NO_LIVELOCK)
"""They say that some continuation exists, of which Spin cannot be asked."""


@dataclass(frozen=True)
class Export:
    """Holds a network in Promela, and what Genlock's own moves come to: what Spin must find, too."""

    name: str
    """Without a suffix, fit to be a file's."""
    model: str
    states: int
    transitions: int
    deadlocks: int
    """Spin's invalid end states."""
    violated: tuple[str, ...]
    """The properties whose assertions must fail."""
    leads_to: dict[str, bool] = field(default_factory=dict)
    """The claims that are asked in a search of their own, and whether they hold."""
    ranks: int = 0

    def asks(self, claim: str) -> str:
        """Return what makes Spin look for a fair run on which a `LeadsTo` does not hold."""
        build = f"spin -a -DFAIR {self.name}.pml && cc -O1 -DNOREDUCE -o pan pan.c"
        turns = (2 * self.ranks + 1) * (2 * self.ranks + 3)  # who moved last, and what of fairness is still to come
        return f"{build} && ./pan -a -A -E -n -m{2 * turns * self.states} -N {flag(claim)}"

    @property
    def commands(self) -> str:
        """Return what makes Spin search it, in the folder that it is in."""
        build = f"spin -a {self.name}.pml && cc -O1 -DSAFETY -DNOREDUCE -o pan pan.c"
        return f"{build} && ./pan -c0 -n -m{self.states + 10}"

    @property
    def expected(self) -> str:
        """Return what Spin must find."""
        ends = f"{self.deadlocks or 'no'} invalid end state{'' if self.deadlocks == 1 else 's'}"
        violated = f"violations of {', '.join(self.violated)}" if self.violated else "no violation"
        # Spin counts the step into the initial state
        return f"{self.states:,} states, {self.transitions + 1:,} transitions, {violated}, {ends}"


def export(network: Network, name: str | None = None, tell: Tell | None = None) -> Export:
    """Return the network in Promela; `name` is its protocol's unless given.

    Takes as long as a search.

    Raises ModelError for tables that cannot be written down.
    """
    met = search(network, tell)
    asserted = [p.name for p in properties_of(network.protocol.name) if p.kind == "always" and p not in NOT_ASKED]
    judged = [name for name in asserted if name != NO_FALSE_ABORT.name]  # that one is judged on the state
    violated = tuple(name for name in asserted if name in met.violated)
    tables = Tables(network, met, judged, claims=bool(network.protocol.claims))
    claims = Claims(tables)
    stem = re.sub(r"[^\w.-]+", "_", name or network.protocol.name)
    leads_to = {claim.name: met.holds[claim.name] for claim in network.protocol.claims if isinstance(claim, LeadsTo)}
    found = Export(
        stem, "", met.states, met.transitions, met.deadlocks, (*violated, *claims.reported), leads_to, network.ranks
    )
    return replace(found, model=_model(found, tables, claims))


# ── the file ────────────────────────────────────────────────────────────────────────────────────────


def _model(found: Export, tables: Tables, claims: Claims) -> str:
    network = tables.network
    number = {"at": _type(len(tables.at)), "item": _type(len(tables.items.items))}
    state = text.STATE.format(
        starts=_listed([_start(tables, rank) for rank in range(network.ranks)]),
        contribution=_type(len(tables.contributions.items)),
        places=text.PLACES.format(board=_listed(tables.held_at_first() or [0]), **number)
        if network.store.places
        else "",
        **number,
    )
    devices = "".join(text.DEVICE_OWES.format(group) for group in tables.devices)
    owed = _listed(_owed_at_first(network))
    return "\n".join(
        (
            _head(found, network),
            _constants(tables),
            text.unrolled(network.ranks, tables.devices),
            _strikes(tables),
            text.TABLES,
            *(_comment(f"{n}: {title}") for n, title in enumerate(tables.titles(), 1)),
            *(_array(name, column) for name, column in tables.columns()),
            *(_array(name, column) for name, column in claims.trees.columns() if claims.judged),
            "",
            state,
            text.AT_PLACES if network.store.places else text.NO_PLACES,
            text.GATES_AND_COLLECTIVES,
            text.FAIRNESS.format(owed=owed, devices=devices),
            text.judged(tables.judged),
            claims.text(),
            text.MOVES,
            *_processes(tables),
            text.IDLE if found.leads_to else "",
            claims.never(),
        )
    )


def _start(tables: Tables, rank: int) -> int:
    return tables.number(tables.met.role_of[rank], tables.network.lts[rank].initial)


def _owed_at_first(network: Network) -> list[bool]:
    """Return, for each rank and then for each device, whether it owes a move at the start."""
    owing = {
        move.rank + network.ranks * (move.edge == "device")
        for move, _ in network.successors(network.initial())
        if (move.ordinary and not move.asked_for) or move.detects
    }
    return [n in owing for n in range(2 * network.ranks)]


def _head(found: Export, network: Network) -> str:
    scope = network.scope
    asked = "".join(
        f"\n\n   {found.asks(claim)}\n   {'no acceptance cycle' if holds else 'an acceptance cycle'}: "
        f"`{claim}` {'holds' if holds else 'does not hold'}"
        for claim, holds in found.leads_to.items()
    )
    return _comment(
        f"{network.protocol.name}: {scope.ranks} ranks, {scope.chunks} chunks of {scope.steps} steps, at most "
        f"{network.faults} faults ({', '.join(network.kinds) or 'none'}),\n"
        f"   {'stream' if network.stream else 'rendezvous'} transport, detection "
        f"{'on' if network.detection else 'off'}. Written by `genlock export promela`.\n\n"
        f"   {found.commands}\n   {found.expected}{asked}"
    )


def _comment(words: str) -> str:
    return f"/* {words.replace('*/', '* /')} */"


def _constants(tables: Tables) -> str:
    network = tables.network
    sizes = {
        "R": network.ranks,
        "G": max(1, len(tables.groups)),
        "LISTS": max(1, len(network.groups.lists)),
        "D": tables.met.depth,
        "SLOTS": max(1, len(tables.channels) * (network.ranks - 1)),
        "LOCALS": len(tables.at),
        "CONTRIBUTIONS": len(tables.contributions.items),
        "BUDGET": network.faults,
        "DETECTION": int(network.detection),
        "NO_MISPAIRING": tables.judged.index(NO_MISPAIRING.name),
        **{kind.name: n for n, kind in enumerate(Kind)},
        **{gate: n for n, gate in enumerate(GATES)},
    }
    if network.store.places:
        fifos = tables.of_kind(Fifo)
        sizes |= {
            "FIFOS": max(1, len(fifos)),
            "BOXES": tables.box_of(len(fifos)) + 1,
            "CELLS": max(1, len(tables.of_kind(Cell))),
            "LINKS": len(tables.links),
            "WAYS": max(1, len(tables.links) * network.ranks**2),
            "W": tables.longest,
        }
    if network.protocol.claims:
        sizes |= {"NO": NO, "YES": YES, **{ask: n for n, ask in enumerate(ASKS)}}
    return "\n".join(f"#define {name} {value}" for name, value in sizes.items()) + "\n"


def _strikes(tables: Tables) -> str:
    """Return whether a kind of fault may strike `me`."""
    rows = [f"((kind) == {n} && {_points(tables, kind)})" for kind, n in tables.kinds.items()]
    return "\n".join(
        (
            "#define IS_AT(s, me, m) (STATE[at[m]] == (s))",
            f"#define STRIKES(kind, me) ({' || '.join(rows) or '0'})",
            f"#define CRASHES(me) {_points(tables, CRASH)}",
            f"#define STALLS(me) {_points(tables, STALL)}\n",
        )
    )


def _points(tables: Tables, kind: str) -> str:
    """Return the condition under which a fault strikes.

    A crash or stall strikes one rank while any is in the state; the others one that is in it itself.
    """
    points = tables.network.kinds.get(kind, frozenset())
    if points is None:
        return "1"
    found = []
    for point in sorted(points, key=str):
        state = tables.states.index.get(point.state, len(tables.states.items))  # no rank is in a state never met
        if kind in (CRASH, STALL):
            found.append(f"((me) == {point.rank or 0} && SOME(IS_AT, {state}, me))")
        else:
            found.append(f"(IS_AT({state}, me, me) && {1 if point.rank is None else f'(me) == {point.rank}'})")
    return f"({' || '.join(found) or '0'})"


def _processes(tables: Tables) -> list[str]:
    """Return the ranks, those next to each other at once that have a move to make, or have ended at the start."""
    network, at = tables.network, tables.at[1:]
    devices = [f"ON_DEVICE({group})" for group in tables.devices]
    found: list[str] = []
    for ended, ranks in groupby(range(network.ranks), lambda rank: bool(tables.at[_start(tables, rank)].TERMINAL)):
        options = [] if ended else _options(tables, at) or [":: false"]
        found.append(text.process(f"rank{len(found) or ''}", len(list(ranks)), options, devices))
    return found


def _options(tables: Tables, at: Sequence[At]) -> list[str]:
    """Return an option for each step that a local may have, for its last step another."""
    begins: list[tuple[str, int, Callable[[At], int], Callable[[At], int]]] = [
        ("OWN", 0, lambda a: a.FIRST, lambda a: a.OWNS),
        ("FAULT", 1, lambda a: a.FIRST + a.OWNS, lambda a: a.FAULTS),
        ("DETECT", 0, lambda a: a.FIRST + a.OWNS + a.FAULTS, lambda a: a.DETECTS),
    ]
    options = ["COMPLETE"] if any(a.WAITS for a in at) else []
    options += ["END"] if any(a.INSIDE_OF for a in at) else []
    for name, cost, first, count in begins:
        for k in range(max(map(count, at))):
            lines = (tables.lines[first(a) + k] for a in at if k < count(a))
            for last in sorted({bool(tables.at[line.TARGET].TERMINAL) for line in lines}):
                options.append(f"TAKE_{'LAST' if last else 'STEP'}({name}_MAY({k}), {name}({k}), {cost})")
    return options + [kind.upper() for kind in (CRASH, STALL) if kind in tables.network.kinds]


def _type(numbers: int) -> str:
    """Return the smallest type that holds so many numbers, from 0."""
    return "byte" if numbers <= 1 << 8 else "short" if numbers <= 1 << 15 else "int"


def _array(name: str, numbers: Sequence[int]) -> str:
    """Return a table, outside of Spin's state."""
    filled = [int(n) for n in numbers] or [0]
    return f"hidden {_type(max(filled) + 1)} {name}[{len(filled)}] = {{ {_listed(filled)} }};"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(int(n)) for n in numbers)
