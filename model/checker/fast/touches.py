"""Numbers what is in places, what is done to a place, and what comes of it: any gate changes one place alone.

Whether a gate is open, what its rank is given and what is there afterwards depends on nothing but what was there, and
on what is done: `semantics/places.py` says how. So that is worked out once for each of either, when a search first
meets it, and an engine has to look it up.

Left out: which rank is at which place (`moves.py`, `state_encoding.py`).
"""

from __future__ import annotations

from typing import Any

from ...semantics import places
from ...semantics.lts import Interner
from ...semantics.network import Network
from ...tables import TAKES, At, Data, Link

CLOSED = -1
BEGIN, END, ENDED, FAILED = "begin", "end", "ended", "failed"
"""What is done to a link beside a gate of one step: either end of a send or receive, and a rank that is gone."""


class Touches:
    """Holds them for one network."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.contents: dict[Any, Interner[Data]] = {}
        """Per thing shared what any of its places has held, first what is there at the start."""
        for shared in network.protocol.shared:
            self.contents[shared] = Interner()
            self.contents[shared](places.initial(shared))
        self.at = [shared for shared, _ in network.store.places]
        """Per place what is shared there."""
        self._given: dict[Any, Interner[Data]] = {shared: Interner() for shared in network.protocol.shared}
        self.given = [self._given[shared] for shared in self.at]
        """Per place what ranks were given there."""
        self._actions: Interner[tuple[Any, ...]] = Interner()
        self._gates: dict[int, At] = {}
        self.outcomes: list[tuple[int, int, int]] = []
        """What is there afterwards, what was given, and whether it is bound to come."""

    def gate(self, gate: At, value: Data, *, end: str = "") -> int:
        """Return the number of what a gate does with what its row sends: in one step, or at one `end`."""
        action = self._actions((type(gate), gate.slot, end, value))
        self._gates.setdefault(action, gate)
        return action

    def parting(self, link: Link, *, sender: bool, failed: bool) -> int:
        """Return the number of what becomes of a wire whose sender (else receiver) has ended, or failed."""
        return self._actions((None, link, FAILED if failed else ENDED, sender))

    def outcome(self, content: int, action: int) -> int:
        """Return which of the outcomes an action has where this is in the place; CLOSED: none."""
        _, shared, how, value = self._actions.items[action]
        contents = self.contents[shared]
        found = self._touched(self._gates.get(action), shared, how, value, contents.items[content])
        if found is None:
            return CLOSED
        self.outcomes.append((contents(found.after), self._given[shared](found.given), int(found.bound)))
        return len(self.outcomes) - 1

    def _touched(self, gate: Any, shared: Any, how: str, value: Data, content: Data) -> places.Touched | None:
        if gate is None:
            return places.Touched(places.without(shared, content, sender=value, failed=how == FAILED))
        if how == BEGIN:
            return places.Touched(places.begin(gate, content, value))
        found = places.end(gate, content) if how == END else places.touch(gate, content, value)
        if found is not None and (how == END or isinstance(gate, TAKES)):
            self._network.store.looked(shared, found.given)
        return found

    def number(self, place: int, item: int) -> int:
        """Return the number of what is in a place, given as `NetworkState.slots` has it."""
        return self.contents[self.at[place]](self._network.values.items[item - 1]) if item else 0

    def item(self, place: int, number: int) -> int:
        """Return what a number stands for, as `NetworkState.slots` has it."""
        return self._network.values(self.contents[self.at[place]].items[number]) + 1 if number else 0
