"""Makes the tables of `export.py`: every local, its steps and the ends of its collectives, as columns of small numbers.

Numbers count from 1; 0 is nothing, nowhere, or never met. A local has one number whatever its role. Steps stand in
the order of the rank's own, those of faults, those of detection.

A role is here what has been unfolded once: ranks that start with variables of their own are each a role.

Left out: which locals there are (`met.py` searches for them), and what they do together (`template.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from ...errors import ModelError
from ..semantics.lts import Interner, Step
from ..semantics.network import Network
from ..semantics.transport import REDUCES, Contribution, run_ahead
from ..tables import (
    EMPTY,
    TAKES,
    By,
    Cell,
    Data,
    Fifo,
    Kind,
    Link,
    Meet,
    Poll,
    Post,
    Put,
    Receive,
    See,
    Send,
    Sent,
    Set,
    Slot,
    Take,
)
from .met import Ending, Met

GATES = ("NONE", "PUT", "TAKE", "MEET", "INTO", "OUT_OF", "SET", "SEE", "SEND", "RECEIVE", "POST", "SENT")
"""Put and Take are at a slot; at a channel they are INTO and OUT_OF, and so is Poll."""
GATE_OF = {Set: "SET", See: "SEE", Send: "SEND", Receive: "RECEIVE", Post: "POST", Sent: "SENT", Poll: "OUT_OF"}


class At(NamedTuple):
    """Holds what the network must know of a local."""

    TERMINAL: int = 0
    FAILED: int = 0
    STALLED: int = 0
    WAITS: int = 0
    """1 + the group of the collective that it waits in."""
    INSIDE_OF: int = 0
    """The gate, SEND or RECEIVE, that it waits in; on which link, and with whom."""
    LINK_OF: int = 0
    PEER_OF: int = 0
    LAST: int = 0
    """Where its collective, send or receive ends, the rank ends too."""
    COUNTER: int = 0
    STATE: int = 0
    VARS: int = 0
    """Its variables, by number, where a claim is asked."""
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
    SHARED: int = 0
    """The number of the channel, of the cell, or of the link."""
    PLACE: int = 0
    """1 + the place of a channel or cell; 0: the rank's own."""
    PEER: int = 0
    ITEM: int = 0
    """Holds what it puts, or what it takes."""
    SYNCS: int = 0
    STRUCK_BY: int = 0
    """The kind of fault."""
    INTERRUPTS: int = 0
    ASKED: int = 0
    """The world outside asks for it, and need not."""


class End(NamedTuple):
    """Describes one way in which what a local waits in ends; GIVEN has what is delivered."""

    END_TARGET: int = 0
    END_BY: int = 0
    END_SEEN: int = 0
    END_SEAT: int = 0
    """1 + the place in its group of the rank that it is for, where GIVEN is by place; 0: for any, and a set."""
    END_ITEM: int = 0
    """The message that a receive ends with."""


class Tables:
    """Holds a network's roles, as far as `met` met them.

    `judged` are the properties that a step may be seen to violate.
    """

    def __init__(self, network: Network, met: Met, judged: Sequence[str], *, claims: bool = False) -> None:
        self.network, self.met, self.judged, self.claims = network, met, judged, claims
        self.roles, protocol = met.roles, network.protocol
        if any(self.roles[0].base(local) for local in met.locals[0]):
            raise ModelError("ids do not start at 0", where=protocol.name, do="let `base` of the start be 0")
        self.locals: Interner[Any] = _from_one(
            (role, n) for role in range(len(self.roles)) for n in sorted(met.locals[role])
        )
        issued = (c._replace(lost=False) for c in network.contributions.items if c is not None)
        self.contributions: Interner[Any] = _from_one(issued)
        self.items, self.values, self.states, self.bases = _from_one(), _from_one(), _from_one(), _from_one()
        self.variables = _from_one()
        for things in met.was_in.values():
            for thing in things:
                self.items(thing)
        self.groups = {name: n for n, name in enumerate(protocol.group_names)}
        self.channels = {slot: n * (network.ranks - 1) for n, slot in enumerate(protocol.slots)}
        self.places: dict[tuple[Fifo | Cell, Any], int] = {}
        self.links: dict[Link, int] = {}
        self._number_places()
        self.kinds = {kind: n for n, kind in enumerate(network.kinds, 1)}
        self.least = min(self.roles[role].info(n).counter for role, n in self.locals.items[1:])
        self.lines, self.ends, self.given = [Line()], [End()], [0] * network.ranks
        self.at = [At()] + [self._at(role, n) for role, n in self.locals.items[1:]]

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
        yield from self._lists()
        bases = self.bases.items[1:]
        yield "LATER", [n for base in bases for n in self._later(base)]
        yield "PUT_LATER", [n for base in bases for n in self._put_later(base)]
        if self.network.store.places:
            yield from self._shared()

    # ── what ranks share ────────────────────────────────────────────────────────────────────────────

    def _number_places(self) -> None:
        """Number channels among channels, cells among cells, links among links."""
        counts = {Fifo: 0, Cell: 0}
        for shared, key in self.network.store.places:
            if isinstance(shared, Link):
                self.links.setdefault(shared, len(self.links))
            else:
                self.places[shared, key] = counts[type(shared)]
                counts[type(shared)] += 1

    def of_kind(self, kind: type) -> list[tuple[Fifo | Cell, Any]]:
        """Return the places of channels, or those of cells, in their order."""
        return [place for place in self.places if isinstance(place[0], kind)]

    def box_of(self, place: int) -> int:
        """Return where the things in a channel begin, among those of all channels."""
        return sum(shared.capacity for shared, _ in self.of_kind(Fifo)[:place] if isinstance(shared, Fifo))

    @property
    def devices(self) -> list[int]:
        """Return the groups of which a device completes something by itself: on a stream, or posted."""
        protocol = self.network.protocol
        posted = {row.op.group for role in protocol.roles for row in role.rows if row.posts and row.op is not None}
        streams = protocol.streams if self.network.stream else ()
        return [n for name, n in self.groups.items() if name in streams or name in posted]

    @property
    def keyed(self) -> list[Fifo | Cell]:
        """Return the channels and cells, in the order of their numbers."""
        return list(dict.fromkeys(shared for shared, _ in self.places))

    @property
    def longest(self) -> int:
        """Return how many messages wait on one way of a link, at most."""
        return max(1, self.met.waiting)

    def held_at_first(self) -> list[int]:
        """Return what each cell holds at the start."""
        return [self.items(shared.initial) for shared, _ in self.of_kind(Cell) if isinstance(shared, Cell)]

    def _shared(self) -> Iterator[tuple[str, Sequence[int]]]:
        capacity = [shared.capacity for shared, _ in self.of_kind(Fifo) if isinstance(shared, Fifo)]
        yield "CAPACITY", capacity
        yield "BOX", [self.box_of(place) for place in range(len(capacity))]
        yield "BUFFER", [link.buffer for link in self.links]
        yield (
            "OWN_PLACE",
            [
                self.places.get((shared, None if shared.keys is None else rank), 0)
                for shared in self.keyed
                for rank in range(self.network.ranks)
            ],
        )

    def _lists(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield who is in which list of which group, and where; of each list whose it is, and how far one runs ahead.

        Lists are numbered from 1, and 0 is nobody's.
        """
        size = max(1, len(self.groups)) * self.network.ranks
        lists, seats, known = [0] * size, [0] * size, self.network.groups.lists or (("", (0,)),)
        for n, (group, members) in enumerate(self.network.groups.lists, 1):
            for seat, rank in enumerate(members):
                lists[self.groups[group] * self.network.ranks + rank] = n
                seats[self.groups[group] * self.network.ranks + rank] = seat
        yield "LIST", lists
        yield "SEAT", seats
        yield "LIST_OF", [0, *(self.groups.get(group, 0) for group, _ in known)]
        yield "FIRST_OF", [0, *(members[0] for _, members in known)]
        yield "AHEAD", [0, *(run_ahead(len(members)) for _, members in known)]

    # ── a local ─────────────────────────────────────────────────────────────────────────────────────

    def _at(self, role: int, number: int) -> At:
        lts = self.roles[role]
        info, local, first = lts.info(number), lts.locals.items[number], len(self.lines)
        at = At(info.terminal, info.failed, info.stalled, COUNTER=info.counter - self.least, FIRST=first)
        at = at._replace(STATE=self.states(info.state), VARS=self.variables(local.vars) if self.claims else 0)
        if local.pending is not None:
            row = lts.role.row(info.state, local.pending)
            at = at._replace(LAST=int(lts.role.by_name[row.target].terminal))
            if info.op is not None:
                at = at._replace(WAITS=self.groups[info.op.group] + 1)
            elif info.inside is not None:
                link, peer = lts._slot(row, info.inside, local.vars)
                inside = GATES.index(GATE_OF[type(info.inside)])
                at = at._replace(INSIDE_OF=inside, LINK_OF=self.links[cast(Link, link)], PEER_OF=peer)
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
        puts = self.contributions(step.contribution) if step.contribution else 0
        asked = int(step.row.by is By.ENVIRONMENT)
        return Line(target, by, self._mask(step.seen), puts, INTERRUPTS=int(step.row.interrupts), ASKED=asked)

    def _gated(self, role: int, number: int, step: Step) -> list[Line]:
        """Return a step with its gate; where it is given what is there, one for each thing that was there.

        A violation takes what none of the checks of that slot wants. Raise ModelError where it depends on another slot.
        """
        gate, syncs = step.row.gate, int(step.row.syncs)
        if any(not isinstance(gate, Take) or check.slot != step.slot for check in step.checks):
            what = "a violation that depends on what is in another slot cannot be written in Promela"
            raise ModelError(what, where=f"{self.roles[role].role.name}, row {step.row}")
        if step.slot is None:
            meets = GATES.index("MEET") if isinstance(gate, Meet) else 0
            return [self._line(role, step)._replace(GATE=meets, SYNCS=syncs)]
        shared = step.slot[0]
        name = GATE_OF.get(type(gate), "PUT" if isinstance(gate, Put) else "TAKE")
        if isinstance(shared, Fifo):
            name = "INTO" if isinstance(gate, Put) else "OUT_OF"
        where = {"GATE": GATES.index(name), "SYNCS": syncs, **self._place(*step.slot)}
        if not isinstance(gate, TAKES):
            item = self.items.index.get(step.data, 0) if isinstance(gate, Put | Set | Send | Post) else 0
            return [self._line(role, step)._replace(ITEM=item, **where)]
        found = []
        for value in (*self.met.was_in.get(shared, ()), *((EMPTY,) if isinstance(gate, Poll) else ())):
            taken = self._taken(role, number, step, value)
            if taken is not None and all(self._taken(role, number, check, value) is None for check in step.checks):
                item = 0 if value is EMPTY else self.items(value)
                found.append(self._line(role, taken)._replace(ITEM=item, **where))
        return found

    def _taken(self, role: int, number: int, step: Step, value: Data) -> Step | None:
        """Return the step with what it takes; None where it does not want that, or could not be given it."""
        try:
            return self.roles[role].take(number, step.row, value)
        except ModelError:  # the search would have said so, had it come to that
            return None

    def _place(self, shared: Any, whose: Any) -> dict[str, int]:
        if isinstance(shared, Slot):
            return {"CHANNEL": self.channels[shared], "WORKER": whose}
        if isinstance(shared, Link):
            return {"SHARED": self.links[shared], "PEER": whose}
        if whose is not None and (shared, whose) not in self.places:
            raise ModelError(f"there is no `{shared.name}` of {whose!r}", where=self.network.protocol.name)
        return {"SHARED": self.keyed.index(shared), "PLACE": 0 if whose is None else self.places[shared, whose] + 1}

    def _ends(self, role: int, number: int) -> list[End]:
        """Return how what it waits in was seen to end.

        What is delivered is recognised by what the members put in.
        """
        inside = self.roles[role].info(number).inside
        if inside is not None:
            return self._ends_of(role, number, inside)
        found = []
        for ending in sorted(self.met.ends[role].get(number, ()), key=repr):
            step = self.roles[role].complete(number, ending.data)
            given, seat = self._given(step, ending)
            self.given += given + [0] * (self.network.ranks - len(given))
            found.append(End(*self._target(role, step.target), self._mask(step.seen), seat))
        return found

    def _given(self, step: Step, ending: Ending) -> tuple[list[int], int]:
        data = ending.data
        if ending.seat is not None:
            return [0 if value is EMPTY else self.values(value) for value in ending.put_in], ending.seat + 1
        one = step.row.op is not None and step.row.op.kind is Kind.BROADCAST
        given = [data] if one else sorted(data, key=repr) if isinstance(data, frozenset) else []
        return [self.values(value) for value in given], 0

    def _ends_of(self, role: int, number: int, inside: Send | Receive) -> list[End]:
        """Return how a send ends, or a receive with each message that was on its link."""
        given: Sequence[Data] = tuple(self.met.was_in.get(inside.slot, ())) if isinstance(inside, Receive) else (None,)
        found = []
        for value in given:
            try:
                step = self.roles[role].complete(number, value)
            except ModelError:  # the search would have said so, had it come to that
                continue
            item = self.items(value) if isinstance(inside, Receive) else 0
            self.given += [0] * self.network.ranks  # a row for each end, whatever it is the end of
            found.append(End(*self._target(role, step.target), self._mask(step.seen), 0, item))
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
        yield "FITS", [0, *(int(c.op.kind in REDUCES and c.op.result is None) for c in known)]

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
