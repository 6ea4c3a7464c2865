"""Finds a shortest run in which something happens: what a chart of the healthy protocol shows.

Left out: whether anything holds (`engine`).
"""

from __future__ import annotations

from collections import deque

from ...errors import UsageError
from ..semantics.network import Move, Network, NetworkState
from ..semantics.run import Counterexample
from .counterexample import numbered

LIMIT = 300_000
"""A run that is not found among so many states is none that a chart could show."""


def shortest(network: Network, event: str | None) -> Counterexample:
    """Return the shortest run that ends with `event` on some rank; None: with every rank at its end, nobody failed.

    Raises UsageError where there is none.
    """
    start = network.initial()
    came: dict[NetworkState, tuple[Move, NetworkState] | None] = {start: None}
    queue = deque([start])
    while queue and len(came) < LIMIT:
        state = queue.popleft()
        for move, target in network.successors(state):
            if target in came:
                continue
            came[target] = (move, state)
            if (move.event == event and move.edge != "issue") if event else network.verdict(target) == (False, True):
                return Counterexample("", _title(event), network.ranks, (), numbered(network, _path(came, target)))
            queue.append(target)
    events = dict.fromkeys(e for role in network.protocol.roles for e in role.events)
    raise UsageError(f"no run has {event or 'an end'}", do=f"name an event that can happen: {', '.join(events)}")


def _title(event: str | None) -> str:
    return f"the shortest run to {event}" if event else "the shortest run to every rank's end"


def _path(
    came: dict[NetworkState, tuple[Move, NetworkState] | None], state: NetworkState
) -> list[tuple[Move, NetworkState]]:
    path = []
    while (before := came[state]) is not None:
        path.append((before[0], state))
        state = before[1]
    return path[::-1]
