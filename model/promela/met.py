"""Searches a network, and keeps what the tables of the export must have: locals, deliveries, what ranks shared.

Left out: the tables themselves (`tables.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...errors import ModelError, Unfinished
from ..checker.engine import REFERENCE, check, fast
from ..checker.fast.search import PackedGraph
from ..checker.reference import Result, StateGraph
from ..semantics import transport
from ..semantics.lts import Lts
from ..semantics.network import Network, NetworkState
from ..semantics.places import Wire
from ..semantics.properties import NO_FALSE_ABORT, own_properties
from ..tables import EMPTY, Cell, Collective, Data, Kind, Shared, beyond

Tell = Callable[[int], None]
"""Called now and then with the states found."""
SHARES = (Kind.SCATTER, Kind.ALL_TO_ALL)
"""Kinds that give each member something else."""


class Ending(NamedTuple):
    """Says what a rank was given when its collective completed.

    Where that depends on who put in what, `seat` is the rank's place in the group, and `put_in` has what it was given
    of: by place, EMPTY for whose value it is not.
    """

    data: Data
    seat: int | None = None
    put_in: tuple[Data, ...] = ()


@dataclass
class Met:
    """Holds what a search met. Roles are numbered as `roles` has them."""

    roles: list[Lts]
    """Each role that was unfolded by itself."""
    role_of: list[int]
    """Per rank, its role."""
    graph: StateGraph
    holds: dict[str, bool]
    """Per property of the protocol's own, whether it holds."""
    locals: list[set[int]] = field(default_factory=list)
    ends: list[dict[int, set[Ending]]] = field(default_factory=list)
    """Local to how its collective completed."""
    was_in: dict[Shared, dict[Data, None]] = field(default_factory=dict)
    """What was in a slot or channel, what a cell held, what was sent on a link."""
    depth: int = 1
    """Unfinished collectives of one group, at most."""
    waiting: int = 0
    """Messages on one way of a link, at most."""
    states: int = 0
    transitions: int = 0
    deadlocks: int = 0
    violated: set[str] = field(default_factory=set)


def search(network: Network, tell: Tell | None) -> Met:
    """Search every state, and return what was met."""
    progress = None if tell is None else (lambda states, depth, queue: tell(states))
    engine = fast() if beyond(network.protocol) is None else REFERENCE
    own = own_properties(network.protocol)
    result = check(network, [NO_FALSE_ABORT, *own], engine=engine, reduction="off", progress=progress)
    if result.graph.stopped:  # type: ignore[attr-defined]
        raise Unfinished(f"the search that the export needs was {result.stopped}", do="take a smaller scope")
    met = _begun(network, result)
    if isinstance(result.graph, PackedGraph):
        _by_columns(met, network, result.graph)
    else:
        for state in result.graph.states:
            _by_state(met, network, state)
    for shared, _ in network.store.places:
        if isinstance(shared, Cell):
            met.was_in.setdefault(shared, {})[shared.initial] = None
    return met


def _begun(network: Network, result: Result) -> Met:
    roles = list(dict.fromkeys(network.lts))
    holds = {v.property.name: v.holds for v in result.verdicts}
    met = Met(roles, [roles.index(lts) for lts in network.lts], result.graph, holds)
    met.locals, met.ends = [set() for _ in roles], [{} for _ in roles]
    met.states, met.transitions = result.graph.counts
    met.deadlocks = result.deadlocks
    met.violated = {*result.graph.seen, *([] if holds[NO_FALSE_ABORT.name] else [NO_FALSE_ABORT.name])}
    return met


def _by_columns(met: Met, network: Network, graph: PackedGraph) -> None:
    """Keep what the columns of a fast search have: of driver and workers, with slots."""
    space = graph.space
    for rank in range(network.ranks):
        role = min(rank, 1)
        for lane in np.unique(graph.field(rank)).tolist():
            local, columns = space.lanes[role].items[lane]
            met.locals[role].add(local)
            met.depth = max(met.depth, *map(len, columns), 1)
    for n, slot in enumerate(network.protocol.slots):
        for at in range(n * (network.ranks - 1), (n + 1) * (network.ranks - 1)):
            for value in np.unique(graph.field(network.ranks + at)).tolist():
                if value:
                    item = network.values.items[space.slot_item(at, value) - 1]
                    met.was_in.setdefault(slot, {})[item] = None
    for role, local, data in space.completed():
        met.ends[role].setdefault(local, set()).add(Ending(data))


def _by_state(met: Met, network: Network, state: NetworkState) -> None:
    """Keep what one state has."""
    for rank, local in enumerate(state.locals):
        met.locals[met.role_of[rank]].add(local)
        op = network.lts[rank].info(local).op
        if op is not None:
            _completed(met, network, state, rank, op)
    met.depth = max(met.depth, *(len(network.queues.items[queue]) for queue in state.queues), 1)
    for at, number in enumerate(state.slots):
        if number:
            _held(met, network, at, network.values.items[number - 1])


def _held(met: Met, network: Network, at: int, content: Data) -> None:
    slots = len(network.protocol.slots) * (network.ranks - 1)
    if at < slots:
        met.was_in.setdefault(network.protocol.slots[at // (network.ranks - 1)], {})[content] = None
        return
    shared = network.store.places[at - slots][0]
    if isinstance(content, Wire):
        met.waiting = max(met.waiting, len(content.messages))
        things: Sequence[Data] = [value for value, _ in content.messages]
    else:
        things = (content,) if isinstance(shared, Cell) else content
    met.was_in.setdefault(shared, {}).update(dict.fromkeys(things))


def _completed(met: Met, network: Network, state: NetworkState, rank: int, op: Collective) -> None:
    """Keep how the collective that a rank waits in may complete for it, if it may, by the rules of `transport`."""
    number, members = next(
        (n, members) for n, (group, members) in enumerate(network.groups.lists) if group == op.group and rank in members
    )
    queue, seat = network.queues.items[state.queues[number]], members.index(rank)
    entries = [instance[seat] for instance in queue]
    at = next(n for n, entry in enumerate(entries) if entry > 0)
    if any(entries[at + 1 :]):  # its host waits in a later one
        return
    issued = [network.contributions.items[abs(entry)] for entry in queue[at]]
    counts = [sum(instance[member] != 0 for instance in queue) for member in range(len(members))]
    if not transport.may_complete(op, seat, issued) or not transport.in_reach(at, counts):
        return
    try:
        data = transport.delivered(op, seat, issued)
    except ModelError:  # what is mispaired is given as it is
        data = frozenset(other.value for other in issued if other is not None)
    ending = Ending(data)
    if op.kind in SHARES or (op.result is not None and op.kind not in (Kind.BROADCAST, Kind.BARRIER)):
        ending = Ending(data, seat, tuple(_heard(op, seat, member, issued) for member in range(len(members))))
    met.ends[met.role_of[rank]].setdefault(state.locals[rank], set()).add(ending)


def _heard(op: Collective, seat: int, member: int, issued: Sequence[Any]) -> Data:
    """Return what a member put in, where that is delivered to the rank at this place of the group, else EMPTY."""
    if op.kind is Kind.SCATTER and member != (op.root or 0):
        return EMPTY
    if op.kind in (Kind.GATHER, Kind.REDUCE) and seat != op.root:
        return EMPTY
    return EMPTY if issued[member] is None else issued[member].value
