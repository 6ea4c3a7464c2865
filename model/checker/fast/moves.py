"""Works out the moves of a rank's local, as far as they do not depend on the collectives that the rank is in.

A local stands in many lanes (see `state_encoding.py`); its moves are worked out once, and become the options of each.
Locals are told apart by the *kind* of their rank: ranks of one kind have the same table, groups and places.
Left out: those collectives, and what a lane is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ...semantics.lts import Info, Interner, Step
from ...semantics.network import CRASH, STALL, Network
from ...tables import TAKES, TWO_ENDED, By, Collective, Data, Link, Meet, Put, Receive, Row, Slot
from ..reference import Taken
from .layout import (
    ADVANCES,
    ASKED_FOR,
    CHECKED,
    COSTS,
    DETECTS,
    DROPS_FINISHED,
    LOOKS,
    NORMALISES,
    ORDINARY,
    PARTS,
    PARTS_FAILED,
    TAKES_PART,
    Option,
)
from .touches import BEGIN, END, Touches


class Move(NamedTuple):
    """Holds a move of a rank's local, as far as it does not depend on the collectives that the rank is in."""

    option: Option
    to: int
    """The local that it leads to; -1 where that depends on what is in a slot."""
    bits: int
    row: Taken | None = None
    """The row that it takes."""
    a: int = 0
    b: int = 0
    c: int = 0
    striking: int = 0
    sees: int = 0
    issues: tuple[int, int] | None = None
    """The group and the contribution of the collective that it issues."""
    leaves: int | None = None
    """The group of the collective that it takes the rank out of."""
    fails: bool = False
    """It takes the rank out of every collective."""
    syncs: bool = False
    """It waits until nothing is outstanding on a stream."""
    takes: Step | None = None
    """The step that takes something out of a slot."""
    checks: tuple[Move, ...] = ()
    """Holds what a violation comes after: see `lts.Step`."""


_ENDS = 1 << 20
"""Bit of an arrival, not of an option: the rank ends or fails there."""
Plain = tuple[int, int, Taken]
"""A move that neither waits nor issues, nor fails: where to, bits and row, as `Move` has them. Most are, so they are
small."""
Menu = tuple[Sequence[Move | Plain], ...]
"""A local's own moves, and what faults, detection, and a crash or a stall do to it."""


class LocalMoves:
    """Holds the menus of all kinds of ranks, each local's made when it is first asked for.

    `ranks` has one of each kind. `channels` number what is put into slots, `touches` what is done to places,
    `seen` the properties. `reduced`: whoever stalls has failed.
    """

    def __init__(
        self,
        network: Network,
        ranks: Sequence[int],
        channels: tuple[Interner[Data], ...],
        touches: Touches,
        seen: Interner[str],
        *,
        reduced: bool,
    ) -> None:
        self._network, self._channels, self._touches, self._seen_names = network, channels, touches, seen
        self._ranks = ranks
        self._lts = [network.lts[rank] for rank in ranks]
        self.roles = [network.role_of[rank] for rank in ranks]
        self._reduced = reduced
        self._links = any(isinstance(shared, Link) for shared in network.protocol.shared)
        self._keeps = reduced or bool(network.protocol.group_names) or len(set(self._lts)) < len(self._lts)
        """A local may be asked for again: it stands in several lanes, of one kind or of several."""
        self._menus: list[dict[int, Menu]] = [{} for _ in ranks]
        self._rows: list[dict[int, tuple[int, bool, Taken] | None]] = [{} for _ in ranks]
        self._arrivals: list[dict[int, tuple[int, bool]]] = [{} for _ in ranks]

    def of(self, kind: int, local: int) -> Menu:
        """Return the moves of a local: its own steps, then what faults, detection, and a crash or a stall do to it."""
        menu = self._menus[kind].get(local)
        if menu is None:
            lts = self._lts[kind]
            info = lts.info(local)
            if info.terminal:
                menu = ((), (), (), ())
            elif info.stalled:
                menu = (self._awakening(kind, local), (), (), ())
            else:
                steps = lts.menu(local, keep=self._keeps)
                detects = steps.detects if self._network.detection else ()
                struck = self._network.faults > 0
                menu = (
                    [self._own(kind, local, step) for step in steps.own],
                    list(self._faults(kind, local, steps.faults)) if struck else (),
                    [self.made(Option.DETECT, kind, local, step) for step in detects],
                    list(self._strikes_on(kind, local)) if struck else (),
                )
            if self._keeps:
                self._menus[kind][local] = menu
        return menu

    def _awakening(self, kind: int, local: int) -> tuple[Move, ...]:
        wakes = Move(Option.FREE, self._lts[kind].stalled(local, False), ADVANCES)
        dead = self._lts[kind].crashed(local)
        bits = ADVANCES | DETECTS | DROPS_FINISHED | self.parting(self._lts[kind].info(dead))
        killed = Move(Option.FREE, dead, bits, fails=True)
        return (wakes, killed) if self._network.detection else (wakes,)

    def _faults(self, kind: int, local: int, steps: Iterable[Step]) -> Iterator[Move]:
        state = self._lts[kind].info(local).state
        for step in steps:
            points = self._network.kinds.get(step.row.fault, frozenset())
            here = [
                rank
                for rank in range(self._network.ranks)
                if points is None or any(p.state == state and p.rank in (None, rank) for p in points)
            ]
            if here:
                yield self.made(Option.FAULT, kind, local, step)._replace(striking=sum(1 << rank for rank in here))

    def _strikes_on(self, kind: int, local: int) -> Iterator[Move]:
        lts = self._lts[kind]
        if CRASH in self._network.kinds:
            dead, role = lts.crashed(local), self.roles[kind]
            bits = ADVANCES | DROPS_FINISHED | COSTS | self.parting(lts.info(dead))
            yield Move(Option.CRASH, dead, bits, fails=True, row=(role, "", CRASH))
        if STALL in self._network.kinds:  # whoever stalls leaves nothing, unless all that follows is one state
            still = lts.stalled(local, True)
            yield Move(Option.STALL, still, COSTS, fails=self._reduced, row=(self.roles[kind], "", STALL))

    def parting(self, info: Info) -> int:
        """Return the bit of what a rank that has ended or failed does to its links."""
        return (PARTS_FAILED if info.failed else PARTS if info.terminal else 0) * self._links

    def _own(self, kind: int, local: int, step: Step) -> Move | Plain:
        if step.checks:
            move = self._unchecked(kind, local, step)
            checks = tuple(self._unchecked(kind, local, check) for check in step.checks)
            return move._replace(bits=move.bits | CHECKED, checks=checks)
        if step.row.gate is None and (plain := self._plain(kind, step.row)) is not None and not step.seen:
            bits, takes_part, row = plain
            after, fails = self._arrival(kind, step.target)
            if (takes_part or after & _ENDS) and not self._lts[kind].info(local).failed:
                bits |= TAKES_PART
            bits |= (after & ~_ENDS) | ADVANCES * (step.target != local)
            return Move(Option.FREE, step.target, bits, row, fails=True) if fails else (step.target, bits, row)
        return self._unchecked(kind, local, step)

    def _unchecked(self, kind: int, local: int, step: Step) -> Move:
        gate = step.row.gate
        if isinstance(gate, Meet):
            return self.made(Option.MEET, kind, local, step)
        if step.slot is None:
            return self.made(Option.FREE, kind, local, step)
        if not isinstance(step.slot[0], Slot):
            return self._at_a_place(kind, local, step)
        channel = self._network.protocol.slots.index(step.slot[0])
        base = channel * (self._network.ranks - 1)
        if isinstance(gate, Put):
            value = self._channels[channel](step.data)
            return self.made(Option.PUT, kind, local, step)._replace(a=base, b=step.slot[1], c=value)
        return Move(Option.TAKE, -1, 0, None, base, step.slot[1], channel, syncs=step.row.syncs, takes=step)

    def _at_a_place(self, kind: int, local: int, step: Step) -> Move:
        """Return a step whose gate is at a channel, cell or link."""
        gate, rank = step.row.gate, self._ranks[kind]
        assert gate is not None
        assert not isinstance(gate, Meet)
        place = self._network.ranks + self._network.store.at(rank, step)
        action = self._touches.gate(gate, step.data, end=BEGIN if isinstance(gate, TWO_ENDED) else "")
        if isinstance(gate, TAKES):
            return Move(Option.TOUCH, -1, LOOKS, None, place, action, syncs=step.row.syncs, takes=step)
        return self.made(Option.TOUCH, kind, local, step)._replace(a=place, b=action)

    def end(self, kind: int, local: int) -> Move | None:
        """Return the end of the send or receive that a rank is in; None where it is in none."""
        inside = self._lts[kind].info(local).inside
        if inside is None:
            return None
        rank, receives = self._ranks[kind], isinstance(inside, Receive)
        place = self._network.store.wire(inside.slot, rank, self.peer(kind, local), receives=receives)
        action = self._touches.gate(inside, None, end=END)
        return Move(Option.TOUCH, -1, LOOKS, None, self._network.ranks + place, action)

    def peer(self, kind: int, local: int) -> int:
        """Return the rank with which a send or receive is that a rank is in; -1 where it is in none."""
        inside = self._lts[kind].info(local).inside
        return -1 if inside is None else self._network.peer(self._ranks[kind], local, inside)

    def checked(self, kind: int, op: Collective, step: Step) -> int:
        """Return the number of a collective's group. Raise ModelError where the rank is in none."""
        self._network.queue(self._ranks[kind], op, step.row)
        return self._network.protocol.group_names.index(op.group)

    def _plain(self, kind: int, row: Row) -> tuple[int, bool, Taken] | None:
        """Return the bits of a row, whether it takes part by itself, and its name.

        None for one with a collective, or with more to it than guards and an effect. As `made`, once for each row.
        """
        try:
            return self._rows[kind][id(row)]
        except KeyError:
            found = None
            if row.op is None and not row.syncs and not row.interrupts and row.by in (By.PROTOCOL, By.ENVIRONMENT):
                bits = ORDINARY | NORMALISES | ASKED_FOR * (row.by is By.ENVIRONMENT)
                found = bits, row.choices is not None, (self.roles[kind], *row.key)
            self._rows[kind][id(row)] = found
            return found

    def _arrival(self, kind: int, local: int) -> tuple[int, bool]:
        """Return the bits that each step to a local has, _ENDS with them, and whether the rank has failed there."""
        try:
            return self._arrivals[kind][local]
        except KeyError:
            info = self._lts[kind].info(local)
            ends = _ENDS * (info.terminal or info.failed)
            found = DROPS_FINISHED * info.terminal | ends | self.parting(info), info.failed
            self._arrivals[kind][local] = found
            return found

    def made(self, option: Option, kind: int, local: int, step: Step) -> Move:
        info, by = self._lts[kind].info(step.target), step.row.by
        ordinary = by not in (By.FAULT, By.DETECTION)
        bits = (
            ORDINARY * ordinary
            | TAKES_PART * (ordinary and self._lts[kind].takes_part(local, step))
            | DETECTS * (by is By.DETECTION and step.edge != "complete")
            | ADVANCES * (step.target != local)
            | COSTS * (by is By.FAULT)
            | DROPS_FINISHED * info.terminal
            | NORMALISES
            | ASKED_FOR * (by is By.ENVIRONMENT and step.edge != "complete")
            | self.parting(info)
        )
        issues = leaves = None
        if step.contribution is not None:
            group = self.checked(kind, step.contribution.op, step)
            issues = (group, self._network.contributions(step.contribution))
        fails = info.failed and issues is None
        if step.row.interrupts and (op := self._lts[kind].info(local).op) is not None:
            leaves = self.checked(kind, op, step)
        return Move(
            option,
            step.target,
            bits,
            sees=self.names_of(step.seen),
            issues=issues,
            leaves=leaves,
            fails=fails,
            syncs=ordinary and step.row.syncs,
            row=None if self._lts[kind].locals.items[step.target].pending else (self.roles[kind], *step.row.key),
        )

    def names_of(self, seen: Iterable[str]) -> int:
        return sum(1 << bit for bit in {self._seen_names(name) for name in seen})
