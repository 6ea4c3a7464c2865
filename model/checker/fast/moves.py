"""Works out the moves of a rank's local, as far as they do not depend on the collectives that the rank is in.

A local stands in many lanes (see `state_encoding.py`); its moves are worked out once, and become the options of each.
Left out: those collectives, and what a lane is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ...semantics.lts import Interner, Lts, Step
from ...semantics.network import CRASH, STALL, Network
from ...tables import By, Data, Meet, Put, Take
from ..reference import Taken
from .layout import ADVANCES, CHECKED, COSTS, DETECTS, DROPS_FINISHED, NORMALISES, ORDINARY, TAKES_PART, Option


class Move(NamedTuple):
    """Holds a move of a rank's local, as far as it does not depend on the collectives that the rank is in."""

    option: Option
    to: int
    """The local that it leads to; -1 where that depends on what is in a slot."""
    bits: int
    a: int = 0
    b: int = 0
    c: int = 0
    striking: int = 0
    sees: int = 0
    issues: tuple[int, int] | None = None
    """The group and the contribution of the collective that it issues."""
    fails: bool = False
    """It takes the rank out of every collective."""
    syncs: bool = False
    """It waits until nothing is outstanding on a stream."""
    takes: Step | None = None
    """The step that takes something out of a slot."""
    checks: tuple[Move, ...] = ()
    """Holds what a violation comes after: see `lts.Step`."""
    row: Taken | None = None
    """The row that it takes."""


Menu = tuple[tuple[Move, ...], ...]
"""A local's own moves, and what faults, detection, and a crash or a stall do to it."""


class LocalMoves:
    """Holds the menus of both roles, each local's made when it is first asked for.

    `channels` number what is put into slots, `seen` the properties. `reduced`: whoever stalls has failed.
    """

    def __init__(
        self,
        network: Network,
        lts: tuple[Lts, Lts],
        channels: tuple[Interner[Data], ...],
        seen: Interner[str],
        *,
        reduced: bool,
    ) -> None:
        self._network, self._lts, self._channels, self._seen_names = network, lts, channels, seen
        self._reduced = reduced
        self._menus: tuple[dict[int, Menu], ...] = ({}, {})

    def of(self, role: int, local: int) -> Menu:
        """Return the moves of a local: its own steps, then what faults, detection, and a crash or a stall do to it."""
        menu = self._menus[role].get(local)
        if menu is None:
            lts = self._lts[role]
            info = lts.info(local)
            if info.terminal:
                menu = ((), (), (), ())
            elif info.stalled:
                menu = (self._awakening(role, local), (), (), ())
            else:
                steps = lts.menu(local)
                detects = steps.detects if self._network.detection else ()
                menu = (
                    tuple(self._own(role, local, step) for step in steps.own),
                    tuple(self._faults(role, local, steps.faults)),
                    tuple(self.made(Option.DETECT, role, local, step) for step in detects),
                    tuple(self._strikes_on(role, local)),
                )
            self._menus[role][local] = menu
        return menu

    def _awakening(self, role: int, local: int) -> tuple[Move, ...]:
        wakes = Move(Option.FREE, self._lts[role].stalled(local, False), ADVANCES)
        killed = Move(Option.FREE, self._lts[role].crashed(local), ADVANCES | DETECTS | DROPS_FINISHED, fails=True)
        return (wakes, killed) if self._network.detection else (wakes,)

    def _faults(self, role: int, local: int, steps: Iterable[Step]) -> Iterator[Move]:
        state = self._lts[role].info(local).state
        for step in steps:
            points = self._network.kinds.get(step.row.fault, frozenset())
            here = [
                rank
                for rank in range(self._network.ranks)
                if points is None or any(p.state == state and p.rank in (None, rank) for p in points)
            ]
            if here:
                yield self.made(Option.FAULT, role, local, step)._replace(striking=sum(1 << rank for rank in here))

    def _strikes_on(self, role: int, local: int) -> Iterator[Move]:
        lts = self._lts[role]
        if CRASH in self._network.kinds:
            dead = lts.crashed(local)
            yield Move(Option.CRASH, dead, ADVANCES | DROPS_FINISHED | COSTS, fails=True, row=(role, "", CRASH))
        if STALL in self._network.kinds:  # whoever stalls leaves nothing, unless all that follows is one state
            still = lts.stalled(local, True)
            yield Move(Option.STALL, still, COSTS, fails=self._reduced, row=(role, "", STALL))

    def _own(self, role: int, local: int, step: Step) -> Move:
        move = self._own_unchecked(role, local, step)
        if not step.checks:
            return move
        checks = tuple(self._own_unchecked(role, local, check) for check in step.checks)
        return move._replace(bits=move.bits | CHECKED, checks=checks)

    def _own_unchecked(self, role: int, local: int, step: Step) -> Move:
        gate = step.row.gate
        if isinstance(gate, Meet):
            return self.made(Option.MEET, role, local, step)
        if isinstance(gate, Put | Take) and step.slot is not None:
            channel = self._network.protocol.slots.index(step.slot[0])
            base = channel * (self._network.ranks - 1)
            if isinstance(gate, Put):
                value = self._channels[channel](step.data)
                return self.made(Option.PUT, role, local, step)._replace(a=base, b=step.slot[1], c=value)
            return Move(Option.TAKE, -1, 0, base, step.slot[1], channel, syncs=step.row.syncs, takes=step)
        return self.made(Option.FREE, role, local, step)

    def made(self, option: Option, role: int, local: int, step: Step) -> Move:
        info, by = self._lts[role].info(step.target), step.row.by
        ordinary = by not in (By.FAULT, By.DETECTION)
        bits = (
            ORDINARY * ordinary
            | TAKES_PART * (ordinary and self._lts[role].takes_part(local, step))
            | DETECTS * (by is By.DETECTION and step.edge != "complete")
            | ADVANCES * (step.target != local)
            | COSTS * (by is By.FAULT)
            | DROPS_FINISHED * info.terminal
            | NORMALISES
        )
        issues = None
        if step.contribution is not None:
            group = self._network.protocol.group_names.index(step.contribution.op.group)
            issues = (group, self._network.contributions(step.contribution))
        fails = info.failed and issues is None
        return Move(
            option,
            step.target,
            bits,
            sees=self.names_of(step.seen),
            issues=issues,
            fails=fails,
            syncs=ordinary and step.row.syncs,
            row=None if self._lts[role].locals.items[step.target].pending else (role, *step.row.key),
        )

    def names_of(self, seen: Iterable[str]) -> int:
        return sum(1 << bit for bit in {self._seen_names(name) for name in seen})
