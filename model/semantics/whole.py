"""Shows a network's state to the claims of a protocol: where each rank is, its variables, and what ranks share.

Left out: claims themselves (`claims.py`) and how they are judged (`checker.claims`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ModelError
from ..tables import Data, Shared, Vars
from .network import Network, NetworkState


class Whole:
    """Holds one state of a network, to be asked about."""

    def __init__(self, network: Network, state: NetworkState) -> None:
        self._network, self._state = network, state

    @property
    def ranks(self) -> range:
        """Return every rank."""
        return range(self._network.ranks)

    @property
    def states(self) -> tuple[str, ...]:
        """Return the state of every rank, in the order of the ranks; `CRASHED` for one that is dead."""
        return tuple(self.state(rank) for rank in self.ranks)

    def state(self, rank: int) -> str:
        """Return the state of a rank in its table, or `CRASHED`."""
        return self._network.state_name(self._state, self._known(rank))

    def vars(self, rank: int) -> Vars:
        """Return the variables of a rank. Raise ModelError where they are gone: it has ended or failed."""
        lts = self._network.lts[self._known(rank)]
        local = lts.locals.items[self._state.locals[rank]]
        info = self._network.info(self._state, rank)
        if local.vars is None and (info.terminal or info.failed):
            do = "let the protocol `keeps` them, or ask `ended` and `failed` first"
            raise ModelError(f"rank{rank} is {local.state} and has no variables any more", do=do)
        return local.vars

    def failed(self, rank: int) -> bool:
        """Return whether a rank has failed or died."""
        return self._network.info(self._state, self._known(rank)).failed

    def ended(self, rank: int) -> bool:
        """Return whether a rank has come to an end, failed or not."""
        return self._network.info(self._state, self._known(rank)).terminal

    def playing(self, role: str) -> Sequence[int]:
        """Return the ranks that play a role. Raise ModelError where there is no such role."""
        names = [lts.role.name for lts in self._network.lts]
        if role not in names:
            raise ModelError(f"no rank plays `{role}`", do=f"roles: {', '.join(dict.fromkeys(names))}")
        return [rank for rank, name in enumerate(names) if name == role]

    def held(self, shared: Shared, key: Any = None) -> Data:
        """Return what a cell holds, what is in a channel, as a tuple, or in the slot of a worker; EMPTY: nothing.

        `key` is the worker, from 1, or one of the channel's or cell's keys.
        """
        store = self._network.store
        return store.content(self._state.slots, store.place(shared, key))

    def _known(self, rank: int) -> int:
        if rank not in self.ranks:
            raise ModelError(f"there is no rank{rank} among {len(self.ranks)} ranks")
        return rank
