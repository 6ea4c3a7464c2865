"""Judges what happened before ranks were ranks: who came to `init_process_group`, who did not, and who failed there.

A process leaves no trace before it has joined its job; the journal of the recording says that it came, and how it came
out. A rank that never came is a culprit where the others, more than half of all, wait for it, all ranks are on the host
that was recorded, and nothing there went unrecorded. One that raised what is nobody else's failure is, in any case.

Left out: what ranks did once they had joined (`collectives`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..traces.importers.logs.tracebacks import follows
from ..traces.journal import Came, Ended, Failed, Joined, Journal, Unrecorded
from .diagnosis import Diagnosis, Divergence, MissingEvidence, Strength, WaitingRank, Wanted, accusations

AT = "init_process_group"
SHOWN = 8
RAISED, NEVER, INSIDE = "raised-before-joining", "never-came", "in-init-process-group"
"""Names the cases of docs/diagnosis.md."""


OWN = ("AssertionError", "AttributeError", "ImportError", "KeyError", "NameError", "TypeError", "ValueError")
"""What torch does not raise for another rank's absence."""


@dataclass
class Start:
    """Holds what is known of one start of a job's ranks, by rank."""

    world: int
    local: bool
    """True where all ranks are on the host that was recorded, and none of its processes went unrecorded."""
    over: bool
    """True where the recording came to its end."""
    places: dict[int, str] = field(default_factory=dict)
    """Ranks that came to the call, with the line that calls it."""
    inside: set[int] = field(default_factory=set)
    """Those that are in it."""
    joined: set[int] = field(default_factory=set)
    failed: dict[int, Failed] = field(default_factory=dict)
    """Ranks that the call failed for, or that ended before it."""

    @property
    def never(self) -> tuple[int, ...]:
        """Return the ranks that never came to the call."""
        came = {*self.inside, *self.joined, *(rank for rank, how in self.failed.items() if how.joining)}
        return tuple(rank for rank in range(self.world) if rank not in came)

    @property
    def raised(self) -> tuple[int, ...]:
        """Return the ranks that raised what does not tell of another one's failure."""
        return tuple(sorted(rank for rank, how in self.failed.items() if not self._follows(how)))

    def _follows(self, how: Failed) -> bool:
        """Return True where a failure tells of another one's, or may, as some rank never came."""
        doubtful = how.joining and bool(self.never) and how.type not in OWN
        return doubtful or follows(how.type, how.message)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Return the ranks that are in the call, or gave up waiting there."""
        gave_up = {rank for rank, how in self.failed.items() if how.joining} - {*self.raised}
        return tuple(sorted({*self.inside, *gave_up}))


def starts_in(journals: Sequence[Journal]) -> list[Start]:
    """Return the starts of jobs that the journals tell of, but for those in which ranks cannot be told apart."""
    found: dict[tuple[int, int], Start] = {}
    process_of: dict[tuple[int, int, int], tuple[int, int]] = {}
    doubtful: set[tuple[int, int]] = set()
    for number, journal in enumerate(journals):
        over = bool(journal.all(Ended))
        unseen = bool(journal.all(Unrecorded))
        in_call: dict[int, tuple[tuple[int, int], Came]] = {}
        for line in journal.lines:
            if isinstance(line, Came) and line.world > 0:
                key = line.attempt, line.world
                local = line.local_world == line.world and not unseen
                start = found.setdefault(key, Start(line.world, local, over))
                start.local, start.over = start.local and local, start.over and over
                if process_of.setdefault((*key, line.rank), (number, line.process)) != (number, line.process):
                    doubtful.add(key)
                in_call[line.process] = key, line
                start.places[line.rank] = line.place
                start.inside.add(line.rank)
                start.joined.discard(line.rank)
            elif isinstance(line, Joined) and line.process in in_call:
                key, came = in_call.pop(line.process)
                found[key].inside.discard(came.rank)
                found[key].joined.add(came.rank)
            elif isinstance(line, Failed) and line.joining and line.process in in_call:
                key, came = in_call.pop(line.process)
                found[key].inside.discard(came.rank)
                found[key].failed[came.rank] = line
            elif isinstance(line, Failed) and not line.joining and line.world > 0:
                start = found.setdefault((line.attempt, line.world), Start(line.world, not unseen, over))
                start.failed.setdefault(line.rank, line)
    return [start for key, start in sorted(found.items()) if key not in doubtful and not _strange(start)]


def _strange(start: Start) -> bool:
    """Return True where a rank's number is not known, or is none."""
    return any(not 0 <= rank < start.world for rank in (*start.inside, *start.joined, *start.failed))


def with_joining(found: Diagnosis, journals: Sequence[Journal]) -> Diagnosis:
    """Return a verdict with what the journals say of those who came to join the job, and who did not."""
    for start in starts_in(journals):
        for told in _judged(start):
            found = _together(found, told)
            break
    return found


def _together(found: Diagnosis, told: Diagnosis) -> Diagnosis:
    """Return a verdict on a job with that on the joining of it."""
    reasons = tuple(dict.fromkeys((*found.reasons, *told.reasons)))
    if told.divergence is not None:
        if found.divergence is not None and set(found.culprits) != set(told.culprits):
            return replace(found, reasons=(*found.reasons, told.divergence.why))
        return replace(told, ranks=found.ranks, events=found.events, reasons=found.reasons, jobs=found.jobs)
    if found.divergence is not None:
        return replace(found, reasons=reasons)
    suspects = tuple(sorted({*found.suspects} & {*told.suspects})) or told.suspects
    accused = accusations(suspects, Strength.SUSPECT, told.accused[0].case) if suspects else found.accused
    missing = (*found.missing, *told.missing)
    return replace(found, verdict="unknown", accused=accused, reasons=reasons, missing=missing)


def _judged(start: Start) -> Iterator[Diagnosis]:
    """Yield what a start of a job shows, the surest first."""
    place = next((start.places[rank] for rank in start.waiting if start.places.get(rank)), "")
    call = AT + (f" at {place}" if place else "")
    waits = tuple(WaitingRank(rank, call, start.never) for rank in start.waiting)
    if start.raised:
        rank = start.raised[0]
        how = start.failed[rank]
        said = f"{how.type}: {how.message}"
        why = f"rank{rank} raised {said} {'in' if how.joining else 'before it came to'} {AT}"
        why += f"; {_ranks(start.waiting)} {'waits' if len(start.waiting) == 1 else 'wait'} there" if waits else ""
        at = f"in {AT}" if how.joining else f"before {AT}"
        yield _divergent(Divergence(rank, 1, 0, None, how.place, None, None, at, said, (AT,), why, place=at),
                         start.raised, RAISED, waits)  # fmt: skip
        return
    if start.never and start.waiting and not start.joined:
        yield _never_came(start, call, waits)
    elif start.inside and not start.never and start.over:
        yield _inside(start, call)


def _never_came(start: Start, call: str, waits: tuple[WaitingRank, ...]) -> Diagnosis:
    never, few = start.never, 2 * len(start.never) < start.world
    why = f"{_ranks(never)} never came to {call}, where {_ranks(start.waiting)} waited"
    if few and start.local and start.over:
        at = f"before {AT}"
        found = Divergence(never[0], 1, 0, None, "", None, None, at, "nothing", (call,), why, place=at)
        return _divergent(found, never, NEVER, waits)
    reasons = [why]
    missing = []
    if not start.over:
        reasons.append("the recording has not come to its end: whoever did not come may come yet")
    if not start.local:
        reasons.append("the ranks are not all on the host that was recorded, or some of it went unrecorded")
        text = f"the journal of the recording on the host of {_ranks(never)}"
        missing.append(MissingEvidence(Wanted.JOURNAL, never, text))
    text = f"where {_ranks(never)} {'stands' if len(never) == 1 else 'stand'}: `genlock collect` while it hangs"
    missing.append(MissingEvidence(Wanted.STACK, never, text))
    suspects = never if few else tuple(range(start.world))
    return _unknown(reasons, suspects, NEVER, missing)


def _inside(start: Start, call: str) -> Diagnosis:
    """Return what follows where all came, and some have not come out."""
    inside = tuple(sorted(start.inside))
    others = tuple(sorted(start.joined))
    why = f"{_ranks(inside)} came to {call} and did not come out of it"
    nobody = ", nobody did: the store, the network between hosts, or one of them"
    why += f", as {_ranks(others)} did" if others else nobody
    if len(inside) == 1 and len(others) == start.world - 1:
        at, due = f"in {AT}", (f"the end of {AT}",)
        place = start.places[inside[0]]
        found = Divergence(inside[0], 1, 0, None, place, None, None, at, "nothing", due, why, place=at)
        return _divergent(found, inside, INSIDE, ())
    text = f"where {_ranks(inside)} stand: `genlock collect` while they hang"
    return _unknown([why], inside, INSIDE, [MissingEvidence(Wanted.STACK, inside, text)])


def _divergent(found: Divergence, culprits: tuple[int, ...], case: str, waits: tuple[WaitingRank, ...]) -> Diagnosis:
    accused = accusations(culprits, Strength.CULPRIT, case)
    return Diagnosis("divergent", 0, 0, 0, found, "FM-18", accused, (), waits, "host", {})


def _unknown(
    reasons: Sequence[str], suspects: tuple[int, ...], case: str, missing: Sequence[MissingEvidence]
) -> Diagnosis:
    accused = accusations(suspects, Strength.SUSPECT, case)
    return Diagnosis("unknown", 0, 0, 0, None, None, accused, tuple(reasons), (), None, {}, missing=tuple(missing))


def _ranks(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return ", ".join(f"rank{rank}" for rank in ranks[:SHOWN]) + more
