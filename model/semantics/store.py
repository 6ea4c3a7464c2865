"""Keeps what ranks share apart from groups: numbers the slots, channels, cells and links, and what is in them.

What is in them is a tuple of numbers: per slot and worker 0 for empty, else the number of the value in it; then per
*place* of a channel, cell or link 0 for what is there at the start, else the number of what is in it.

Left out: what a gate does there (`places.py`), and which gate a rank is at (`network.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import ModelError
from ..tables import EMPTY, Cell, Data, Fifo, Link, Protocol, Receive, Scope, Shared, Slot
from . import places
from .groups import with_item
from .lts import Interner, Step

Held = tuple[int, ...]
"""What is in each slot and place, by number."""


class Store:
    """Numbers the places of a network's ranks, which play `roles`, and the values in them."""

    def __init__(self, protocol: Protocol, scope: Scope, roles: Sequence[str]) -> None:
        self._roles, self._ranks = roles, scope.ranks
        self.values: Interner[Data] = Interner()
        self.values(None)
        self._channel = {slot: n * (scope.ranks - 1) for n, slot in enumerate(protocol.slots)}
        self.first_place = len(self._channel) * (scope.ranks - 1)
        self.places = tuple(_places(protocol, scope))
        """Lists what is shared beside slots, with its keys."""
        self._place = {place: self.first_place + n for n, place in enumerate(self.places)}
        self.given: dict[Shared, set[Data]] = {}
        """Holds what channels, cells and links had for those who looked."""

    def __len__(self) -> int:
        return self.first_place + len(self.places)

    def content(self, held: Held, at: int) -> Data:
        """Return what is in a slot or place; EMPTY for a slot in which nothing is."""
        number = held[at]
        if number:
            return self.values.items[number - 1]
        return EMPTY if at < self.first_place else places.initial(self.places[at - self.first_place][0])

    def filled(self, held: Held, at: int, content: Data) -> Held:
        """Return what is held once something else is in a place. Raise ModelError for what has no hash."""
        first = places.initial(self.places[at - self.first_place][0])
        return with_item(held, at, 0 if content == first else self.values(content) + 1)

    def looked(self, shared: Shared, given: Data) -> None:
        """Keep in mind what something shared had for one who looked."""
        self.given.setdefault(shared, set()).add(given)

    def wire(self, link: Link, rank: int, peer: int, *, receives: bool) -> int:
        """Return the place of what a rank receives from, or sends to, a peer on a link."""
        return self._place[link, (peer, rank) if receives else (rank, peer)]

    def without_rank(self, held: Held, rank: int, *, failed: bool) -> Held:
        """Return what is held once a rank is gone: what it had on its way on a link may arrive, and need not."""
        for n, (shared, key) in enumerate(self.places, self.first_place):
            if held[n] and isinstance(shared, Link) and rank in key:
                content = self.values.items[held[n] - 1]
                held = self.filled(held, n, places.without(shared, content, sender=key[0] == rank, failed=failed))
        return held

    def at(self, rank: int, step: Step) -> int:
        """Return which slot or place the gate of a step is at. Raise ModelError where there is none."""
        if step.slot is None:
            raise ValueError(f"{step.row} has no slot")
        shared, whose = step.slot
        if isinstance(shared, Slot):
            return self._channel[shared] + (whose or rank) - 1
        key: Any
        if isinstance(shared, Link):
            key = (whose, rank) if isinstance(step.row.gate, Receive) else (rank, whose)
        else:
            key = whose if whose is not None or shared.keys is None else rank
        at = self._place.get((shared, key))
        if at is None:
            keys = ", ".join(str(k) for s, k in self.places if s is shared and k is not None) or "no keys"
            what = f"there is none of {whose!r}" if whose is not None else f"rank{rank} has none of its own"
            if isinstance(shared, Link):
                what, keys = f"rank{rank} has no peer {whose!r}", f"rank0 to rank{self._ranks - 1}, not itself"
            where = f"{self._roles[rank]}, row {step.row}"
            raise ModelError(what, where=where, do=f"`{shared.name}` has {keys}")
        return at

    def place(self, shared: Shared, key: Any = None) -> int:
        """Return where something shared stands among the slots of a state: of a slot a worker's, else of a key.

        Raise ModelError where there is none.
        """
        if isinstance(shared, Slot):
            if shared not in self._channel or not isinstance(key, int) or not 1 <= key < self._ranks:
                raise ModelError(f"there is no slot `{shared.name}` of rank{key}", do="slots belong to workers, from 1")
            return self._channel[shared] + key - 1
        at = self._place.get((shared, key))
        if at is None:
            raise ModelError(f"there is no `{getattr(shared, 'name', shared)}` of {key!r}")
        return at


def _places(protocol: Protocol, scope: Scope) -> Iterator[tuple[Fifo | Cell | Link, Any]]:
    """Yield each channel, cell and link with each of its keys. Raise ModelError for keys that make no sense."""
    for shared in protocol.shared:
        where = f"{protocol.name}, keys of `{shared.name}`"
        if isinstance(shared, Link):
            ranks = range(scope.ranks)
            yield from ((shared, (one, other)) for one in ranks for other in ranks if one != other)
        elif shared.keys is None:
            yield shared, None
        else:
            try:
                keys = list(dict.fromkeys(shared.keys(scope)))
            except Exception as error:
                raise ModelError(f"they raised {type(error).__name__}: {error}", where=where) from error
            if not keys or None in keys:
                raise ModelError("there are none, or None is one", where=where, do="leave `keys` out for one of all")
            yield from ((shared, key) for key in keys)
