"""Makes the tables of `export.py`: every local, its steps and the ends of its collectives, as columns of small numbers.

Numbers count from 1; 0 is nothing, nowhere, or never met. A local has one number whatever its role. Steps stand in
the order of the rank's own, those of faults, those of detection.

Left out: which locals there are (`export.py` searches for them), and what they do together (`template.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from ...errors import ModelError
from ..semantics.lts import Interner, Lts, Step
from ..semantics.network import Network
from ..semantics.transport import Contribution
from ..tables import Data, Kind, Meet, Put, Slot, Take

GATES = ("NONE", "PUT", "TAKE", "MEET")


@dataclass
class Met:
    """Holds what a search met.

    Pairs are by role: the driver, the worker.
    """

    locals: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    ends: tuple[dict[int, set[Data]], dict[int, set[Data]]] = field(default_factory=lambda: ({}, {}))
    """Local to what it was given when its collective completed."""
    items: set[tuple[int, int]] = field(default_factory=set)
    """(index of a slot, number of a value that was in it)."""
    depth: int = 1
    """Unfinished collectives of one group, at most."""
    states: int = 0
    transitions: int = 0
    deadlocks: int = 0
    violated: set[str] = field(default_factory=set)


class At(NamedTuple):
    """Holds what the network must know of a local."""

    TERMINAL: int = 0
    FAILED: int = 0
    STALLED: int = 0
    WAITS: int = 0
    """1 + the group of the collective that it waits in."""
    LAST: int = 0
    """Where its collective ends, the rank ends too."""
    COUNTER: int = 0
    STATE: int = 0
    FIRST: int = 0
    """Its first step, and how many it has of each sort."""
    OWNS: int = 0
    FAULTS: int = 0
    DETECTS: int = 0
    ENDS_FIRST: int = 0
    ENDS: int = 0
    DEAD: int = 0
    """The local that it is when it has crashed, has stalled, goes on again."""
    STALLED_AS: int = 0
    RESUMED_AS: int = 0


class Line(NamedTuple):
    """Describes a step."""

    TARGET: int = 0
    BY: int = 0
    """By which of the driver's moves forward all ids are moved back."""
    SEEN: int = 0
    """A bit a property."""
    PUTS: int = 0
    """The contribution to the collective that it issues."""
    GATE: int = 0
    CHANNEL: int = 0
    """The channel's slots come after so many others."""
    WORKER: int = 0
    """Says whose slot; 0: the rank's own."""
    ITEM: int = 0
    """Holds what it puts, or what it takes."""
    SYNCS: int = 0
    STRUCK_BY: int = 0
    """The kind of fault."""


class End(NamedTuple):
    """Describes one way in which a local's collective ends; GIVEN has what is delivered."""

    END_TARGET: int = 0
    END_BY: int = 0
    END_SEEN: int = 0


class Tables:
    """Holds a network's roles, as far as `met` met them.

    `judged` are the properties that a step may be seen to violate.
    """

    def __init__(self, network: Network, met: Met, judged: Sequence[str]) -> None:
        self.network, self.met, self.judged = network, met, judged
        self.roles: tuple[Lts, Lts] = (network.lts[0], network.lts[1])
        if any(self.roles[0].base(local) for local in met.locals[0]):
            raise ModelError("ids do not start at 0", where=network.protocol.name, do="let `base` of the start be 0")
        self.locals: Interner[Any] = _from_one((role, n) for role in (0, 1) for n in sorted(met.locals[role]))
        issued = (c._replace(lost=False) for c in network.contributions.items if c is not None)
        self.contributions: Interner[Any] = _from_one(issued)
        self.items: Interner[Any] = _from_one(network.values.items)
        self.values, self.states, self.bases = _from_one(), _from_one(), _from_one()
        self.groups = {name: n for n, name in enumerate(network.protocol.group_names)}
        self.channels = {slot: n * (network.ranks - 1) for n, slot in enumerate(network.protocol.slots)}
        self.kinds = {kind: n for n, kind in enumerate(network.kinds, 1)}
        self.least = min(self.roles[role].info(n).counter for role in (0, 1) for n in met.locals[role])
        self.lines, self.ends, self.given = [Line()], [End()], [0] * network.ranks
        self.at = [At()] + [self._at(role, n) for role, n in self.locals.items[1:]]

    def of(self, role: int) -> list[At]:
        """Return the locals of a role."""
        return [at for at, (its, _) in zip(self.at[1:], self.locals.items[1:], strict=True) if its == role]

    def number(self, role: int, local: int) -> int:
        """Return the number of a local of a role; 0 if it was never met."""
        return self.locals.index.get((role, local), 0)

    def titles(self) -> list[str]:
        """Return what each local is, from number 1 on."""
        found = []
        for role, number in self.locals.items[1:]:
            local = self.roles[role].locals.items[number]
            pending = f", in {local.pending}" if local.pending else ""
            found.append(f"{self.roles[role].role.name} {local.state}{pending}{', stalled' if local.stalled else ''}")
        return found

    def columns(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield every table by name."""
        for rows in (self.at, self.lines, self.ends):
            for n, name in enumerate(rows[0]._fields):
                yield name, [row[n] for row in rows]
        yield "GIVEN", self.given
        yield from self._contributions()
        bases = self.bases.items[1:]
        yield "LATER", [n for base in bases for n in self._later(base)]
        yield "PUT_LATER", [n for base in bases for n in self._put_later(base)]

    # ── a local ─────────────────────────────────────────────────────────────────────────────────────

    def _at(self, role: int, number: int) -> At:
        lts = self.roles[role]
        info, pending, first = lts.info(number), lts.locals.items[number].pending, len(self.lines)
        at = At(info.terminal, info.failed, info.stalled, COUNTER=info.counter - self.least, FIRST=first)
        at = at._replace(STATE=self.states(info.state))
        if pending is not None and info.op is not None:
            last = lts.role.by_name[lts.role.row(info.state, pending).target].terminal
            at = at._replace(WAITS=self.groups[info.op.group] + 1, LAST=int(last))
        if info.terminal:
            return at
        at = at._replace(DEAD=self.number(role, lts.crashed(number)))
        if info.stalled:
            return at._replace(RESUMED_AS=self.number(role, lts.stalled(number, False)))
        steps, ends = self._steps(role, number), self._ends(role, number)
        at = at._replace(OWNS=len(steps[0]), FAULTS=len(steps[1]), DETECTS=len(steps[2]))
        at = at._replace(ENDS_FIRST=len(self.ends), ENDS=len(ends))
        self.lines += [line for lines in steps for line in lines]
        self.ends += ends
        return at._replace(STALLED_AS=self.number(role, lts.stalled(number, True)))

    def _target(self, role: int, local: int) -> tuple[int, int]:
        """Return where a step leads, its ids counted from the driver's, and by which move forward."""
        base = self.roles[0].base(local) if role == 0 else 0
        if base == 0:
            return self.number(role, local), 0
        return self.number(role, self.roles[role].rebased(local, -base)), self.bases(base)

    def _mask(self, seen: Iterable[str]) -> int:
        return sum(1 << n for n, name in enumerate(self.judged) if name in seen)

    # ── its steps ───────────────────────────────────────────────────────────────────────────────────

    def _steps(self, role: int, number: int) -> tuple[list[Line], list[Line], list[Line]]:
        """Return the rank's own steps, what faults do to it, and what detection does.

        Only its own wait at a gate.
        """
        menu = self.roles[role].menu(number)
        own = [line for step in menu.own for line in self._gated(role, number, step)]
        faults = [self._line(role, s)._replace(STRUCK_BY=self.kinds.get(s.row.fault, 0)) for s in menu.faults]
        return own, faults, [self._line(role, s) for s in menu.detects]

    def _line(self, role: int, step: Step) -> Line:
        target, by = self._target(role, step.target)
        return Line(
            target, by, self._mask(step.seen), self.contributions(step.contribution) if step.contribution else 0
        )

    def _gated(self, role: int, number: int, step: Step) -> list[Line]:
        """Return a step with its gate; where it takes something out of a slot, one for each thing that was in there.

        A violation takes what none of the checks of that slot wants. Raise ModelError where it depends on another slot.
        """
        gate, syncs = step.row.gate, int(step.row.syncs)
        if any(not isinstance(gate, Take) or check.slot != step.slot for check in step.checks):
            what = "a violation that depends on what is in another slot cannot be written in Promela"
            raise ModelError(what, where=f"{self.roles[role].role.name}, row {step.row}")
        if step.slot is None:
            meets = GATES.index("MEET") if isinstance(gate, Meet) else 0
            return [self._line(role, step)._replace(GATE=meets, SYNCS=syncs)]
        slot, worker = cast(tuple[Slot, int], step.slot)  # nothing else that is shared is written in Promela
        place = {"CHANNEL": self.channels[slot], "WORKER": worker, "SYNCS": syncs}
        if isinstance(gate, Put):
            item = self.items.index.get(step.data, 0)
            return [self._line(role, step)._replace(GATE=GATES.index("PUT"), ITEM=item, **place)]
        return [
            self._line(role, taken)._replace(GATE=GATES.index("TAKE"), ITEM=self.items(value), **place)
            for value in self._was_in(slot)
            if (taken := self.roles[role].take(number, step.row, value)) is not None
            and all(self.roles[role].take(number, check.row, value) is None for check in step.checks)
        ]

    def _was_in(self, slot: Slot) -> list[Data]:
        begin = self.channels[slot]
        found = {item for at, item in self.met.items if begin <= at < begin + self.network.ranks - 1}
        return [self.network.values.items[item - 1] for item in sorted(found)]

    def _ends(self, role: int, number: int) -> list[End]:
        """Return how its collective was seen to end.

        What is delivered is recognised by what the members put in.
        """
        found = []
        for data in sorted(self.met.ends[role].get(number, ()), key=repr):
            step = self.roles[role].complete(number, data)
            one = step.row.op is not None and step.row.op.kind is Kind.BROADCAST
            given = [data] if one else sorted(data, key=repr) if isinstance(data, frozenset) else []
            self.given += [self.values(value) for value in given] + [0] * (self.network.ranks - len(given))
            found.append(End(*self._target(role, step.target), self._mask(step.seen)))
        return found

    # ── contributions, and ids that move on ─────────────────────────────────────────────────────────

    def _contributions(self) -> Iterator[tuple[str, Sequence[int]]]:
        known: list[Contribution] = self.contributions.items[1:]
        wires: Interner[Hashable] = Interner()
        names: Interner[str] = Interner()
        yield "GROUP", [0, *(self.groups[c.op.group] for c in known)]
        yield "KIND", [0, *(list(Kind).index(c.op.kind) for c in known)]
        yield "ROOT", [0, *(c.op.root or 0 for c in known)]
        yield "WIRE", [0, *(wires(c.op.signature) for c in known)]
        yield "NAME", [0, *(names(c.op.name) for c in known)]
        yield "VALUE", [0, *(self.values(c.value) for c in known)]

    def _later(self, base: int) -> list[int]:
        """Return every local with its ids moved back by `base`."""
        return [0] + [self.number(role, self.roles[role].rebased(n, -base)) for role, n in self.locals.items[1:]]

    def _put_later(self, base: int) -> list[int]:
        """Return every contribution with its ids moved back by `base`."""
        frame, known = self.network.protocol.frame, self.contributions.items[1:]
        moved = [c._replace(value=frame.rebase(c.value, -base)) if frame else c for c in known]
        return [0] + [self.contributions.index.get(c, 0) for c in moved]


def _from_one(items: Iterable[Any] = ()) -> Interner[Any]:
    """Return the items numbered from 1; number 0 is nothing."""
    numbers: Interner[Any] = Interner()
    numbers.items.append(None)
    for item in items:
        numbers(item)
    return numbers
