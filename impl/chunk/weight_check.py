"""Checks that weights stay what they were: a fingerprint of all of them, and a look at some of them each chunk.

Left out: whose weights they are, and when a check is due (`rank.rank_runtime`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from . import digest

LOOKED_AT = 64 * 2**20
"""A chunk without a hard cut looks at so many bytes of weights, at least: all of a small generator's."""


def fingerprint(weights: Mapping[str, Tensor]) -> int:
    """Return an int64 hash of the names and bytes of all weights."""
    sequence = digest.SEQUENCE_START
    for name in sorted(weights):
        sequence = digest.chain(sequence, name, digest.of_tensor(weights[name]))
    return sequence


class WeightCheck:
    """Watches weights from its making on: some of them are looked at in each turn, all of them in turn.

    A hard cut fingerprints everything, and between two cuts a changed weight would pass unseen for as long as the
    video has no cut. `least` bytes are looked at in each turn, so a small model's weights are all looked at.
    """

    def __init__(self, weights: Mapping[str, Tensor], least: int = LOOKED_AT) -> None:
        self._weights = weights
        self._were = {name: digest.of_tensor(weight) for name, weight in weights.items()}
        self._parts = _parts({name: weight.nbytes for name, weight in weights.items()}, least)
        self.turns = len(self._parts)
        """So many turns in a row look at everything."""
        self._turn = 0

    def damage(self) -> str | None:
        """Return which weight of the part whose turn it is has changed, with both digests; None where none has."""
        part = self._parts[self._turn % self.turns]
        self._turn += 1
        for name in part:
            now, was = digest.of_tensor(self._weights[name]), self._were[name]
            if now != was:
                return f"weight `{name}` has digest {digest.to_hex(now)}, but {digest.to_hex(was)} at start-up"
        return None


def _parts(sizes: Mapping[str, int], least: int) -> list[list[str]]:
    """Split the names into groups, in order, each of at least so many bytes but for the last."""
    parts: list[list[str]] = [[]]
    room = least
    for name, size in sizes.items():
        if room <= 0:
            parts.append([])
            room = least
        parts[-1].append(name)
        room -= size
    return parts
