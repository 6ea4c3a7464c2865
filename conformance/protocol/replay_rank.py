"""Steps one rank's trace through its table, and stops at the first event that the table does not allow.

Left out: what ranks owe each other (`match_ranks`), and whose fault it is (`diagnose`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

import msgspec

from ...errors import ModelError, UnreadableInput
from ...model.protocols.tp_values import TPVars
from ...model.semantics.rows import arrive, breaks_off, enabled_row
from ...model.tables import By, Data, Kind, Protocol, Role, Row
from ...traces.format import Dropped, End, Event, Trace
from ...traces.outcome import Code, Outcome
from ..diagnosis import Divergence, Observation, Seen


@dataclass(frozen=True, slots=True)
class Meeting:
    """Holds one rank's part in one collective: what it issued, and what it was given when it completed."""

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
    """Holds what the table says that this rank put in, from its variables."""


@dataclass(frozen=True)
class RankReplay:
    """Holds one rank, replayed as far as its table allows."""

    trace: Trace
    role: Role
    events: int
    meetings: tuple[Meeting, ...]
    divergence: Divergence | None
    failure: Divergence | None
    """The step by which the rank says itself that the run is poisoned."""
    state: str
    pending: Row | None
    stop: Divergence
    """Where the replay of this rank ended, in whatever way."""
    unknown: str | None
    """Why the trace cannot be replayed to its end."""
    gap: bool
    """True where it goes on after what is missing, so that nothing follows from where the replay stopped."""
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
        self.hole = False
        """An event is missing before the one that was looked at last."""
        self.issued: dict[str, int] = {}
        """Group to the sequence number of its last collective."""

    def take(self, at: int, event: Event) -> str | None:
        """Make the event's move; a text says why the table does not allow it."""
        if event.index != self.next:
            self.hole = event.index > self.next
            return f"event {self.next} is missing" if event.index > self.next else "an event out of order"
        self.next += 1
        if not event.transition:  # no move: an operation that the protocol did not announce
            refused = event.outcome is not None and event.outcome.code in REFUSED
            return f"refused: {event.outcome.text}" if refused and event.outcome else None
        if event.edge == "exit":
            return self._exit(at, event)
        row = self.role.rows_by_key.get((self.state, event.transition))
        if self.pending is not None and (row is None or not breaks_off(self.role, row)):
            return f"{self.pending.event} has not completed"
        if row is None:
            return f"no row leads from {self.state} by {event.transition}"
        if (row.op is not None) != (event.edge == "enter") or (row.op is None and (event.op or event.group)):
            return f"{event.transition} {'carries a' if row.op else 'has no'} collective"
        data = None if row.op else self._data(at, row, event)
        if enabled_row(self.role, self.state, row.event, self.vars, data) is not row:
            return self._refused(row, data)
        if row.op is None:
            return self._arrive(at, row, event, data)
        if wrong := self._other_collective(row, event):
            return wrong
        sent = row.send(self.vars) if row.send else None
        self.pending, self.entered = row, (event, at, row, sent)
        return self._view(event)

    def divergence(self, at: int, event: Event | End | None, why: str) -> Divergence:
        observed = event.cause if isinstance(event, End) else _observed(event) if event else NOTHING
        v = self.vars
        return Divergence(
            self.trace.rank,
            self.trace.numbers[at] if self.trace.lines else 1,
            event.index if event else self.next,
            v.chunk_index,
            self.role.by_name[self.state].phase,
            v.observed or None,
            v.call_id,
            self.state,
            observed,
            self.expected(),
            why,
            facts=self.facts(event),
        )

    def facts(self, event: Event | End | None) -> Observation:
        """Return what stands where the replay stopped, as facts."""
        if event is None:
            return Observation(Seen.NOTHING)
        if isinstance(event, End):
            return Observation(Seen.GAP if self.hole else Seen.END, event.cause)
        seen = Seen.GAP if self.hole else Seen.MOVE if event.transition else Seen.OPERATION
        return Observation(seen, event.transition, event.edge, event.outcome)

    def stop(self, at: int) -> Divergence:
        """Return where the rank is after the line at `at`, the last that was looked at."""
        line = self.trace.lines[at] if self.trace.lines else None
        if isinstance(line, End):
            return self.divergence(at, line, line.message)
        stood = self.divergence(at, line if isinstance(line, Event) else None, "nothing more is recorded")
        return replace(stood, observed=NOTHING, facts=Observation(Seen.NOTHING))

    def expected(self) -> tuple[str, ...]:
        """Return what the table would have allowed here, failing aside.

        Where its checks failed, that is what they would have led to.

        Rows that need data are listed whether or not it would fit.
        """
        if self.pending is not None:
            return (f"{self.pending.event} (exit)",)
        ordinary = [r for r in self.role.leaving[self.state] if r.by in (By.PROTOCOL, By.ENVIRONMENT)]
        open_ended = [r for r in ordinary if r.data is not None and r.op is None]
        enabled = [r for r in ordinary if r in open_ended or r.allows(self.vars, None)]
        return tuple(f"{row.event} ({'enter' if row.op else 'step'})" for row in enabled or ordinary)

    @property
    def where(self) -> str:
        """Name state, chunk, and the collective that is not completed."""
        inside = f", inside {self.pending.event}" if self.pending else ""
        return f"{self.state} of chunk {self.vars.chunk_index}{inside}"

    def _exit(self, at: int, event: Event) -> str | None:
        row, entered = self.pending, self.entered
        if row is None or entered is None:
            return f"{event.transition} completes, but was not issued"
        if row.event != event.transition:
            return f"{event.transition} completes, but {row.event} was issued"
        if _wire(entered[0]) != _wire(event):
            pairs = zip(WIRE, _wire(entered[0]), _wire(event), strict=True)
            name, issued, completed = next(p for p in pairs if p[1] != p[2])
            return f"{row.event} was issued with {name} {issued}, and completes with {completed}"
        self.pending = self.entered = None
        self._meet(entered, (event, at))
        data = self._data(at, row, event)
        if row.op and row.op.kind is Kind.BROADCAST and row.op.root == self.trace.rank and data != entered[3]:
            return f"it says that it sent {data}, and {entered[3]} is due"
        return self._arrive(at, row, event, data)

    def take_outcome(self, at: int, event: Event) -> None:
        """Take the rank's own word that something is wrong, beyond a gap, where its state is not known."""
        row = self.role.rows_by_key.get((event.state, event.transition))
        if self.failure is None and row is not None and row.by in (By.VIOLATION, By.FAULT):
            due = [
                f"{r.event} ({'enter' if r.op else 'step'})"
                for r in self.role.leaving[row.state]
                if r.by is By.PROTOCOL
            ]
            where = (self.trace.rank, self.trace.numbers[at], event.index, event.chunk, event.phase, event.call)
            told = (_observed(event), tuple(due), _text(event.outcome) or row.event)
            facts = Observation(Seen.MOVE, event.transition, event.edge, event.outcome)
            self.failure = Divergence(*where, event.call_id, event.state, *told, facts=facts)

    def leave_open(self, entered: tuple[Event, int, Row, Data]) -> None:
        """End the trace inside a collective."""
        self._meet(entered, None)

    def _meet(self, entered: tuple[Event, int, Row, Data], exited: tuple[Event, int] | None) -> None:
        event, at, row, sent = entered
        done, done_at = exited or (None, None)
        key = (self.trace.rank, str(event.group), event.sequence or 0)
        self.meetings.append(Meeting(*key, event, at, done, done_at, row, sent))

    def _arrive(self, at: int, row: Row, event: Event, data: Data) -> str | None:
        if self.role.by_name[row.target].failed and self.failure is None:
            self.failure = self.divergence(at, event, _text(event.outcome) or row.event)
        if self.entered is not None and breaks_off(self.role, row):
            self._meet(self.entered, None)
            self.pending = self.entered = None
        self.witnessed.add(row.key)
        before = self.state
        self.state, self.vars = arrive(row, self.vars, data)
        return self._view(event, before)

    def _view(self, event: Event, state: str | None = None) -> str | None:
        """Return how the rank saw itself elsewhere than the table has it; None where it did not."""
        v, state = self.vars, state or self.state
        call = None if event.call is None else v.observed + (event.edge == "enter")
        ours = (state, self.role.by_name[state].phase, v.call_id, v.chunk_index, v.cache_epoch, call)
        theirs = (event.state, event.phase, event.call_id, event.chunk, event.epoch, event.call)
        if ours == theirs:
            return None
        names = ("state", "phase", "call_id", "chunk", "epoch", "call")
        name, mine, its = next(p for p in zip(names, ours, theirs, strict=True) if p[1] != p[2])
        return f"the rank saw itself at {name} {its}, its events lead to {mine}"

    def _other_collective(self, row: Row, event: Event) -> str | None:
        """Return what of the issued collective is not as the schedule has it."""
        op, dtype = row.op, event.dtype
        if op is None:
            return None
        if (op.group, op.kind.value, op.root, op.dtype) != (event.group, event.op, event.root, dtype or op.dtype):
            root = "" if op.root is None else f" from rank{op.root}"
            return f"the schedule has {op.kind} of {op.dtype} on group {op.group}{root}"
        due = self.issued.get(op.group, 0) + 1
        if event.sequence != due:
            return f"it is number {event.sequence} of group {op.group}, and number {due} is due"
        self.issued[op.group] = due
        return None

    def ends(self, at: int, end: End) -> str | None:
        """Return why the table does not allow that the rank ends here, and in this way."""
        state = self.role.by_name[self.state]
        if end.index != self.next:
            self.hole = True
            return f"event {self.next} is missing"
        row = self.role.rows_by_key.get((self.state, end.cause))
        noticed = row is not None and row.by is By.DETECTION
        if noticed or (end.culprit is not None and not state.terminal):
            # ended where it stood, by itself or by its guardian: the end marker is all that is written of it
            if not state.failed:
                stood = self.divergence(at, end, end.message)
                if not noticed:
                    until = f"{NOTHING}, until it was ended"
                    stood = replace(stood, observed=until, facts=Observation(Seen.NOTHING))
                self.failure = stood
                self.witnessed |= {row.key} if noticed and row else set()
            return None
        if not state.terminal:
            return f"the rank ends in {self.state}"
        if (end.cause == "stopped") is state.failed:
            return f"the rank says `{end.cause}`, and ends in {self.state}"
        return None

    def _refused(self, row: Row, data: Data) -> str:
        if row.by is By.VIOLATION:
            return "the checks of this state hold"
        wrong = [str(g.__doc__) for g in row.guards if not g(self.vars, data)]
        return f"it does not hold that {'; '.join(wrong)}"

    def _data(self, at: int, row: Row, event: Event) -> Data:
        if event.data is None:
            return None
        what = f"{event.transition} is given no data, but has some here"
        if row.data is not None:
            try:
                return msgspec.convert(event.data, row.data)
            except msgspec.ValidationError as error:
                what = f"data of {event.transition}: {error}"
        raise UnreadableInput(what, where=f"{self.trace.path}, line {self.trace.numbers[at]}")


NOTHING = "nothing"
"""Stands in a text where a rank says no more."""
REFUSED = (Code.COLLECTIVE, Code.THREAD)
"""Outcomes of an operation that was kept from the backend."""
WIRE = ("group", "sequence", "op", "root", "dtype", "numel")
"""Lists what the two ends of a collective say alike."""
_wire = attrgetter(*WIRE)


def _text(outcome: Outcome | None) -> str:
    return "" if outcome is None else outcome.text


def _observed(event: Event) -> str:
    if event.transition:
        return f"{event.transition} ({event.edge})"
    by = f" by thread {event.thread}" if event.thread else ""
    return f"{event.op} on group {event.group}{by}, which no row announces"


def replay_rank(trace: Trace, protocol: Protocol) -> RankReplay:
    """Replay one rank. Raises UnreadableInput where an event's data is not what its row is given."""
    role = protocol.role(trace.rank)
    rank = _Rank(trace, role)
    divergence: Divergence | None = None
    unknown: str | None = None
    count, at = 0, 0
    for at, line in enumerate(trace.lines):
        if isinstance(line, Dropped):
            unknown = f"{line.count} events from {line.index} on were dropped"
            for later, event in enumerate(trace.lines[at:], at):
                if isinstance(event, Event):
                    rank.take_outcome(later, event)
            break
        if isinstance(line, End):
            if why := rank.ends(at, line):
                divergence = rank.divergence(at, line, why)
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
    else:
        unknown = f"the file ends without an end marker, after event {rank.next - 1} in {rank.where}"
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
        divergence or rank.failure or rank.stop(at),
        unknown,
        bool(trace.lines) and isinstance(trace.lines[at], Dropped),
        frozenset(rank.witnessed),
    )
