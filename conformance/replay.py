"""Steps one rank's trace through its table, and stops at the first event that the table does not allow.

Left out: what ranks owe each other (`match`), and the words for it (`explain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import ModelError, UnreadableInput
from ..model.protocol import TPVars
from ..model.tables import By, Data, Protocol, Role, Row
from ..traces.format import Dropped, End, Event, Trace
from .verdict import Divergence


@dataclass(frozen=True, slots=True)
class Meeting:
    """One rank's part in one collective: what it issued, and what it was given when it completed."""

    rank: int
    group: str
    sequence: int
    entered: Event
    entered_at: int
    """Position among the rank's lines."""
    exited: Event | None
    exited_at: int | None
    row: Row
    sent: Data
    """What the table says that this rank put in, from its variables."""


@dataclass(frozen=True)
class RankReplay:
    """One rank, replayed as far as its table allows."""

    trace: Trace
    role: Role
    events: int
    meetings: tuple[Meeting, ...]
    divergence: Divergence | None
    failure: Divergence | None
    """The step by which the rank says itself that the run is poisoned."""
    state: str
    pending: Row | None
    unknown: str | None
    """Why the trace cannot be replayed to its end."""
    witnessed: frozenset[tuple[str, str]]
    """(state, event) of each row that was seen."""


class _Rank:
    def __init__(self, trace: Trace, role: Role) -> None:
        self.trace, self.role = trace, role
        self.state = role.initial
        self.vars: TPVars = role.start(False)
        self.pending: Row | None = None
        self.entered: tuple[Event, int, Row, Data] | None = None
        self.meetings: list[Meeting] = []
        self.witnessed: set[tuple[str, str]] = set()
        self.failure: Divergence | None = None
        self.next = 0

    def take(self, at: int, event: Event) -> str | None:
        """Make the event's move; a text says why the table does not allow it."""
        if event.index != self.next:
            return f"event {self.next} is missing" if event.index > self.next else "an event out of order"
        self.next += 1
        if not event.transition:  # no move: an operation that the protocol did not announce
            return None
        if event.edge == "exit":
            return self._exit(at, event)
        if self.pending is not None and not self._breaks_off(event):
            return f"{self.pending.event} has not completed"
        row = self.role.rows_by_key.get((self.state, event.transition))
        if row is None:
            return f"no row leads from {self.state} by {event.transition}"
        if (row.op is not None) != (event.edge == "enter"):
            return f"{event.transition} {'carries a' if row.op else 'has no'} collective"
        data = None if row.op else self._data(at, row, event)
        if self.role.enabled(self.state, row.event, self.vars, data) is not row:
            return self._refused(row, data)
        if row.op is None:
            return self._arrive(at, row, event, data)
        if wrong := _other_collective(row, event):
            return wrong
        sent = row.send(self.vars) if row.send else None
        self.pending, self.entered = row, (event, at, row, sent)
        return self._view(event)

    def divergence(self, at: int, event: Event | End, why: str) -> Divergence:
        seen = event.cause if isinstance(event, End) else f"{event.transition} ({event.edge})"
        v = self.vars
        return Divergence(
            self.trace.rank,
            self.trace.numbers[at],
            event.index,
            v.chunk_index,
            self.role.by_name[self.state].phase,
            v.observed or None,
            v.call_id,
            self.state,
            seen,
            self.expected(),
            why,
        )

    def expected(self) -> tuple[str, ...]:
        """What the table would have allowed here; rows that need data are listed whether or not it would fit."""
        if self.pending is not None:
            return (f"{self.pending.event} (exit)",)
        names = []
        for row in self.role.leaving[self.state]:
            if row.by in (By.FAULT, By.DETECTION):
                continue
            open_ended = row.data is not None and row.op is None
            if open_ended or self.role.enabled(self.state, row.event, self.vars, None) is row:
                names.append(f"{row.event} ({'enter' if row.op else 'step'})")
        return tuple(names)

    def _exit(self, at: int, event: Event) -> str | None:
        row, entered = self.pending, self.entered
        if row is None or entered is None:
            return f"{event.transition} completes, but was not issued"
        if row.event != event.transition or (entered[0].group, entered[0].sequence) != (event.group, event.sequence):
            return f"{event.transition} completes, but {row.event} was issued"
        self.pending = self.entered = None
        self._meet(entered, (event, at))
        return self._arrive(at, row, event, self._data(at, row, event))

    def leave_open(self, entered: tuple[Event, int, Row, Data]) -> None:
        """The trace ends inside a collective."""
        self._meet(entered, None)

    def _meet(self, entered: tuple[Event, int, Row, Data], exited: tuple[Event, int] | None) -> None:
        event, at, row, sent = entered
        done, done_at = exited or (None, None)
        key = (self.trace.rank, str(event.group), event.sequence or 0)
        self.meetings.append(Meeting(*key, event, at, done, done_at, row, sent))

    def _arrive(self, at: int, row: Row, event: Event, data: Data) -> str | None:
        if self.role.by_name[row.target].failed and self.failure is None:
            self.failure = self.divergence(at, event, event.outcome or row.event)
        if row.by in (By.FAULT, By.DETECTION) and self.entered is not None:
            self._meet(self.entered, None)
            self.pending = self.entered = None
        self.vars = row.apply(self.vars, data)
        self.witnessed.add(row.key)
        before, self.state = self.state, row.target
        return self._view(event, before)

    def _view(self, event: Event, state: str | None = None) -> str | None:
        """Whether the rank saw itself where the table says it was."""
        ours = (state or self.state, self.vars.call_id, self.vars.chunk_index, self.vars.cache_epoch)
        theirs = (event.state, event.call_id, event.chunk, event.epoch)
        for name, mine, its in zip(("state", "call_id", "chunk", "epoch"), ours, theirs, strict=True):
            if mine != its:
                return f"the rank saw itself at {name} {its}, its events lead to {mine}"
        return None

    def _breaks_off(self, event: Event) -> bool:
        """A rank may be poisoned in the middle of a collective."""
        row = self.role.rows_by_key.get((self.state, event.transition))
        return row is not None and row.by in (By.FAULT, By.DETECTION)

    def _refused(self, row: Row, data: Data) -> str:
        if row.by is By.VIOLATION:
            return "the checks of this state hold"
        wrong = [str(g.__doc__) for g in row.guards if not g(self.vars, data)]
        return f"it does not hold that {'; '.join(wrong)}"

    def _data(self, at: int, row: Row, event: Event) -> Data:
        if event.data is None:
            return None
        where = f"{self.trace.path}, line {self.trace.numbers[at]}"
        if row.data is None:
            raise UnreadableInput(f"{event.transition} is given no data, but has some here", where=where)
        try:
            found: Any = msgspec.convert(event.data, row.data)
        except msgspec.ValidationError as error:
            raise UnreadableInput(f"data of {event.transition}: {error}", where=where) from None
        return found


def _other_collective(row: Row, event: Event) -> str | None:
    op = row.op
    if op is None:
        return None
    planned, seen = (op.group, op.kind.value, op.root), (event.group, event.op, event.root)
    if planned != seen or event.sequence is None:
        return f"the schedule has {op.kind} on group {op.group} with root {op.root}"
    return None


def replay_rank(trace: Trace, protocol: Protocol) -> RankReplay:
    """Replay one rank. Raises UnreadableInput where an event's data is not what its row is given."""
    role = protocol.role(trace.rank)
    rank = _Rank(trace, role)
    divergence: Divergence | None = None
    unknown: str | None = "the file ends without an end marker" if trace.end is None else None
    count = 0
    for at, line in enumerate(trace.lines):
        if isinstance(line, Dropped):
            unknown = f"{line.count} events from {line.index} on were dropped"
            break
        if isinstance(line, End):
            if line.index != rank.next:
                divergence = rank.divergence(at, line, f"event {rank.next} is missing")
            elif line.cause == "stopped" and not role.by_name[rank.state].terminal:
                divergence = rank.divergence(at, line, f"the rank ends in {rank.state}")
            elif at + 1 < len(trace.lines):
                unknown = "lines follow the end marker"
            break
        count += 1
        state = (rank.state, rank.vars, rank.pending, rank.entered)
        try:
            why = rank.take(at, line)
        except ModelError as error:
            raise UnreadableInput(str(error), where=f"{trace.path}, line {trace.numbers[at]}") from None
        if why is not None:
            rank.state, rank.vars, rank.pending, rank.entered = state
            divergence = rank.divergence(at, line, why)
            break
    if rank.entered is not None:
        rank.leave_open(rank.entered)
    return RankReplay(
        trace,
        role,
        count,
        tuple(rank.meetings),
        divergence,
        rank.failure,
        rank.state,
        rank.pending,
        unknown,
        frozenset(rank.witnessed),
    )
