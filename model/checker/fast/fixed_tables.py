"""Works out what of the tables stays as it is however far a search comes: who is in which group, and on which links.

Left out: what grows (`state_encoding.py`).
"""

from __future__ import annotations

import numpy as np

from ...semantics import transport
from ...semantics.lts import Interner
from ...semantics.network import CRASH, STALL, Network
from ...tables import Link
from .layout import MEMBERS, Array
from .touches import Touches


def strikes(network: Network, points: Interner[str]) -> Array:
    """Return, per kind without a row, and rank, the states of any rank in which it strikes."""
    found = np.zeros((2, network.ranks), np.int32)
    for n, kind in enumerate((CRASH, STALL)):
        where = network.kinds.get(kind, frozenset())
        if where is None:
            found[n] = -1
        for point in where or ():
            if (point.rank or 0) < network.ranks:
                found[n, point.rank or 0] |= 1 << points.index[point.state]
    return found


def queues(network: Network) -> Array:
    """Return, per queue, its group, how far a member may run ahead, and its members: as `Groups` numbers them."""
    lists = network.groups.lists
    table = np.zeros((max(1, len(lists)), MEMBERS + network.ranks), np.int32)
    for n, (group, members) in enumerate(lists):
        ahead = transport.run_ahead(len(members))
        row = (network.protocol.group_names.index(group), ahead, len(members), *members)
        table[n, : len(row)] = row
    return table


def seats(network: Network) -> Array:
    """Return, per rank and group, its place in its list, and which queue that is; -1 where it is in none."""
    groups = network.groups
    table = np.full((network.ranks, max(1, len(network.protocol.group_names)), 2), -1, np.int32)
    for rank, queues in enumerate(groups.queue_of):
        for group, queue in queues.items():
            seat = groups.seat[rank][queue]
            table[rank, network.protocol.group_names.index(group)] = seat, queue
    return table


def wires(network: Network, touches: Touches) -> Array:
    """Return, per rank, the fields of what is on its way to or from it, and what becomes of it once it is gone."""
    found: list[list[tuple[int, ...]]] = [[] for _ in range(network.ranks)]
    first = network.ranks + network.store.first_place
    for field, (shared, key) in enumerate(network.store.places, first):
        if isinstance(shared, Link):
            for rank in key:
                gone = (touches.parting(shared, sender=rank == key[0], failed=f) for f in (False, True))
                found[rank].append((field, *gone))
    return np.array(found, np.int32).reshape(network.ranks, -1, 3)
