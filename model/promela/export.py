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
from dataclasses import dataclass, replace

import numpy as np

from ...errors import ModelError, Unfinished
from ..checker.engine import check, fast
from ..checker.fast.search import PackedGraph
from ..semantics.network import CRASH, STALL, Network
from ..semantics.properties import NO_FALSE_ABORT, NO_LIVELOCK, NO_MISPAIRING, NO_STRANDING, properties_of
from ..semantics.transport import run_ahead
from ..tables import Kind, beyond
from . import template as text
from .tables import GATES, At, Met, Tables

NOT_ASKED = (NO_STRANDING, NO_LIVELOCK)
"""They say that some continuation exists, of which Spin cannot be asked."""
Tell = Callable[[int], None]
"""Called now and then with the states found."""


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
    more = beyond(network.protocol)
    if more is not None:
        raise ModelError(f"Promela cannot be written for {more}", where=network.protocol.name)
    if network.protocol.claims:
        what = f"its claim `{network.protocol.claims[0].name}` is a function, which Promela has no word for"
        raise ModelError(what, where=network.protocol.name, do="export it without its claims")
    met = _search(network, tell)
    asserted = [p.name for p in properties_of(network.protocol.name) if p.kind == "always" and p not in NOT_ASKED]
    judged = [name for name in asserted if name != NO_FALSE_ABORT.name]  # that one is judged on the state
    violated = tuple(name for name in asserted if name in met.violated)
    stem = re.sub(r"[^\w.-]+", "_", name or network.protocol.name)
    found = Export(stem, "", met.states, met.transitions, met.deadlocks, violated)
    return replace(found, model=_model(found, Tables(network, met, judged)))


def _search(network: Network, tell: Tell | None) -> Met:
    """Search every state; returns what the tables must have: locals, deliveries, what is in the slots."""
    progress = None if tell is None else (lambda states, depth, queue: tell(states))
    result = check(network, [NO_FALSE_ABORT], engine=fast(), reduction="off", progress=progress)
    graph = result.graph
    assert isinstance(graph, PackedGraph)
    if graph.stopped:
        raise Unfinished(f"the search that the export needs was {graph.stopped}", do="take a smaller scope")
    met, space = Met(), graph.space
    met.states, met.transitions = graph.counts
    met.deadlocks = result.deadlocks
    met.violated = {*graph.seen, *(v.property.name for v in result.verdicts if not v.holds)}
    for rank in range(network.ranks):
        role = min(rank, 1)
        for lane in np.unique(graph.field(rank)).tolist():
            local, columns = space.lanes[role].items[lane]
            met.locals[role].add(local)
            met.depth = max(met.depth, *map(len, columns), 1)
    for at in range(len(network.protocol.slots) * (network.ranks - 1)):
        for value in np.unique(graph.field(network.ranks + at)).tolist():
            if value:
                met.items.add((at, space.slot_item(at, value)))
    for role, local, data in space.completed():
        met.ends[role].setdefault(local, set()).add(data)
    return met


# ── the file ────────────────────────────────────────────────────────────────────────────────────────


def _model(found: Export, tables: Tables) -> str:
    network = tables.network
    groups = [tables.groups[g] for g in network.protocol.streams if g in tables.groups]
    streams = groups if network.stream else []
    starts = (tables.number(int(rank > 0), lts.initial) for rank, lts in enumerate(network.lts))
    state = text.STATE.format(
        at=_type(len(tables.at)),
        starts=", ".join(map(str, starts)),
        contribution=_type(len(tables.contributions.items)),
        item=_type(len(tables.items.items)),
    )
    return "\n".join(
        (
            _head(found, network),
            _constants(tables),
            text.unrolled(network.ranks, streams),
            _strikes(tables),
            text.TABLES,
            *(_comment(f"{n}: {title}") for n, title in enumerate(tables.titles(), 1)),
            *(_array(name, column) for name, column in tables.columns()),
            "",
            state,
            text.judged(tables.judged),
            text.RULES,
            *(_process(tables, role, streams) for role in (0, 1)),
        )
    )


def _head(found: Export, network: Network) -> str:
    scope = network.scope
    return _comment(
        f"{network.protocol.name}: {scope.ranks} ranks, {scope.chunks} chunks of {scope.steps} steps, at most "
        f"{network.faults} faults ({', '.join(network.kinds) or 'none'}),\n"
        f"   {'stream' if network.stream else 'rendezvous'} transport, detection "
        f"{'on' if network.detection else 'off'}. Written by `genlock export promela`.\n\n"
        f"   {found.commands}\n   {found.expected}"
    )


def _comment(words: str) -> str:
    return f"/* {words.replace('*/', '* /')} */"


def _constants(tables: Tables) -> str:
    network = tables.network
    sizes = {
        "R": network.ranks,
        "G": max(1, len(tables.groups)),
        "D": tables.met.depth,
        "SLOTS": max(1, len(tables.channels) * (network.ranks - 1)),
        "LOCALS": len(tables.at),
        "CONTRIBUTIONS": len(tables.contributions.items),
        "AHEAD": run_ahead(network.ranks),
        "BUDGET": network.faults,
        "DETECTION": int(network.detection),
        "NO_MISPAIRING": tables.judged.index(NO_MISPAIRING.name),
        **{kind.name: n for n, kind in enumerate(Kind)},
        **{gate: n for n, gate in enumerate(GATES)},
    }
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


def _process(tables: Tables, role: int, streams: Sequence[int]) -> str:
    """Return the ranks of a role: an option for each step that a local may have, for its last step another."""
    at, network = tables.of(role), tables.network
    begins: list[tuple[str, int, Callable[[At], int], Callable[[At], int]]] = [
        ("OWN", 0, lambda a: a.FIRST, lambda a: a.OWNS),
        ("FAULT", 1, lambda a: a.FIRST + a.OWNS, lambda a: a.FAULTS),
        ("DETECT", 0, lambda a: a.FIRST + a.OWNS + a.FAULTS, lambda a: a.DETECTS),
    ]
    options = ["COMPLETE"] if any(a.WAITS for a in at) else []
    for name, cost, first, count in begins:
        for k in range(max(map(count, at))):
            lines = (tables.lines[first(a) + k] for a in at if k < count(a))
            for last in sorted({bool(tables.at[line.TARGET].TERMINAL) for line in lines}):
                options.append(f"TAKE_{'LAST' if last else 'STEP'}({name}_MAY({k}), {name}({k}), {cost})")
    options += [kind.upper() for kind in (CRASH, STALL) if kind in network.kinds]
    lts = tables.roles[role]
    return text.process(
        "worker" if role else "driver",
        network.ranks - 1 if role else 1,
        [] if lts.info(lts.initial).terminal else options or [":: false"],
        [f"ON_DEVICE({group})" for group in streams],
    )


def _type(numbers: int) -> str:
    """Return the smallest type that holds so many numbers, from 0."""
    return "byte" if numbers <= 1 << 8 else "short" if numbers <= 1 << 15 else "int"


def _array(name: str, numbers: Sequence[int]) -> str:
    """Return a table, outside of Spin's state."""
    filled = [int(n) for n in numbers] or [0]
    return f"hidden {_type(max(filled) + 1)} {name}[{len(filled)}] = {{ {', '.join(map(str, filled))} }};"
