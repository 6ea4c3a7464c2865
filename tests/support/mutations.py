"""Recorded healthy runs, spoilt by machine: one rank, one place, one change; and what replay must say of each.

    python tests/support/mutations.py [FOLDER...]   every mutation of these runs, or of the corpus; the figures by kind

What must be named is read off the files: the first line at which the spoilt file differs from the recorded one, times
aside. So events that nothing tells apart are one event, and where nothing differs the run must conform. What the
environment may ask for at any time, or not, is no difference by itself: of that, the role's `transitions` machine says
what it does not accept. Replay has nothing to do with that machine.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import msgspec
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.protocol.diagnose import diagnose
from genlock.errors import ContractViolation, ModelError
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.stepper import RoleMachine
from genlock.model.tables import By
from genlock.traces.format import Dropped, End, Event, Trace, decode, find, read
from repository import CORPUS

Line = dict[str, Any]
Lines = tuple[Line, ...]
"""The lines of one rank's file: header, events, end."""

HEALTHY = ("healthy/", "refused/")
"""The runs of the corpus that conform."""
DELAY_NS = 5_000_000_000
OTHER = {"group": "elsewhere", "op": "reduce", "root": 1}
"""What a collective is aimed at instead."""


class Mutation(NamedTuple):
    """One change, to the line at `at` of one rank's file (0 is the header)."""

    kind: str
    form: str
    rank: int
    at: int


class Run(NamedTuple):
    """A recorded run, by rank."""

    lines: Mapping[int, Lines]
    traces: Mapping[int, Trace]


def recorded(folder: Path) -> Run:
    """The run in a folder."""
    paths = {read(path).rank: path for path in find(folder)}
    lines = {r: tuple(msgspec.json.decode(raw) for raw in p.read_bytes().splitlines()) for r, p in paths.items()}
    return Run(lines, {r: read(p) for r, p in paths.items()})


# ── how a file is spoilt ────────────────────────────────────────────────────────────────────────────


def _closed(lines: Sequence[Line]) -> list[Line]:
    """The same events, numbered without holes."""
    return [lines[0], *({**line, "index": n} for n, line in enumerate(lines[1:]))]


def recounted(lines: Sequence[Line]) -> list[Line]:
    """The same, with the collectives of each group and the calls of each chunk counted anew, as the rank would have."""
    sequence: Counter[str] = Counter()
    calls: Counter[int] = Counter()
    found = []
    for line in _closed(lines):
        line = dict(line)
        if line.get("edge") == "enter":
            sequence[line["group"]] += 1
            calls[line.get("chunk", 0)] += "call" in line
        if line.get("edge") in ("enter", "exit"):
            line["sequence"] = sequence[line["group"]]
            if "call" in line:
                line["call"] = calls[line.get("chunk", 0)]
        found.append(line)
    return found


def _drop_line(lines: Lines, at: int) -> Sequence[Line]:
    return [*lines[:at], *lines[at + 1 :]]


def _drop_event(lines: Lines, at: int) -> Sequence[Line]:
    return _closed(_drop_line(lines, at))


def _drop_operation(lines: Lines, at: int) -> Sequence[Line]:
    return recounted([*lines[:at], *lines[at + 2 :]])


def _repeat_line(lines: Lines, at: int) -> Sequence[Line]:
    return [*lines[: at + 1], *lines[at:]]


def _repeat_event(lines: Lines, at: int) -> Sequence[Line]:
    return _closed(_repeat_line(lines, at))


def _repeat_operation(lines: Lines, at: int) -> Sequence[Line]:
    return recounted([*lines[: at + 2], *lines[at:]])


def _swap(lines: Lines, at: int) -> Sequence[Line]:
    return _closed([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])


def _swap_operations(lines: Lines, at: int) -> Sequence[Line]:
    return recounted([*lines[:at], *lines[at + 2 : at + 4], *lines[at : at + 2], *lines[at + 4 :]])


def _aimed(field: str, ends: int) -> Callable[[Lines, int], Sequence[Line]]:
    def spoil(lines: Lines, at: int) -> Sequence[Line]:
        return _changed(lines, at, ends, lambda line: {**line, field: OTHER[field]})

    return spoil


def _sized(field: str, ends: int) -> Callable[[Lines, int], Sequence[Line]]:
    def change(line: Line) -> Line:
        return {**line, field: "float16" if field == "dtype" else line[field] + 1}

    return lambda lines, at: _changed(lines, at, ends, change)


def _inside(lines: Lines, at: int) -> Sequence[Line]:
    one_more = {**lines[at]["inside"], "collectives": lines[at]["inside"]["collectives"] + 1}
    return [*lines[:at], {**lines[at], "inside": one_more}, *lines[at + 1 :]]


def _changed(lines: Lines, at: int, ends: int, change: Callable[[Line], Line]) -> Sequence[Line]:
    return [*lines[:at], *map(change, lines[at : at + ends]), *lines[at + ends :]]


def _cut(lines: Lines, at: int) -> Sequence[Line]:
    return lines[:at]


def _stopped(lines: Lines, at: int) -> Sequence[Line]:
    return _closed([*lines[:at], lines[-1]])


def _delay(lines: Lines, at: int) -> Sequence[Line]:
    return [*lines[:at], *({**line, "time_ns": line["time_ns"] + DELAY_NS} for line in lines[at:])]


class Form(NamedTuple):
    """How a file is spoilt, and the lines that it can be done to."""

    spoil: Callable[[Lines, int], Sequence[Line]]
    fits: Callable[[Lines, int], bool]


def _is_event(lines: Lines, at: int) -> bool:
    return bool(lines[at]["kind"] == "event")


def _is_pair(lines: Lines, at: int) -> bool:
    """A collective, both of whose ends stand here, one after the other."""
    return lines[at].get("edge") == "enter" and lines[at + 1].get("edge") == "exit"


def _are_neighbours(lines: Lines, at: int) -> bool:
    return _is_event(lines, at) and _is_event(lines, at + 1)


def _are_pairs(lines: Lines, at: int) -> bool:
    return _is_pair(lines, at) and _is_pair(lines, at + 2)


def _has(field: str) -> Callable[[Lines, int], bool]:
    return lambda lines, at: field in lines[at]


def _pair_with(field: str) -> Callable[[Lines, int], bool]:
    return lambda lines, at: _is_pair(lines, at) and field in lines[at]


FORMS: Mapping[tuple[str, str], Form] = {
    ("drop", "line"): Form(_drop_line, _is_event),
    ("drop", "event"): Form(_drop_event, _is_event),
    ("drop", "operation"): Form(_drop_operation, _is_pair),
    ("duplicate", "line"): Form(_repeat_line, _is_event),
    ("duplicate", "event"): Form(_repeat_event, _is_event),
    ("duplicate", "operation"): Form(_repeat_operation, _is_pair),
    ("swap", "events"): Form(_swap, _are_neighbours),
    ("swap", "operations"): Form(_swap_operations, _are_pairs),
    **{("retarget", f): Form(_aimed(f, 2), _pair_with(f if f != "root" else "op")) for f in OTHER},
    **{("retarget", f"{f} of one end"): Form(_aimed(f, 1), _has(f if f != "root" else "op")) for f in OTHER},
    **{("resize", f): Form(_sized(f, 2), _pair_with(f)) for f in ("numel", "dtype")},
    **{("resize", f"{f} of one end"): Form(_sized(f, 1), _has(f)) for f in ("numel", "dtype")},
    ("resize", "inside of a call"): Form(_inside, _has("inside")),
    ("truncate", "the file is cut"): Form(_cut, lambda lines, at: True),
    ("truncate", "the rank says that it stopped"): Form(_stopped, _is_event),
    ("delay", "from here on"): Form(_delay, lambda lines, at: True),
}


def mutations_of(run: Run, rank: int) -> Iterator[Mutation]:
    """Every mutation of one rank's file."""
    lines = run.lines[rank]
    for at in range(1, len(lines)):
        for (kind, form), how in FORMS.items():
            if how.fits(lines, at):
                yield Mutation(kind, form, rank, at)


def spoilt(run: Run, mutation: Mutation) -> Sequence[Line]:
    """The lines of the rank's file, after the mutation."""
    return FORMS[mutation.kind, mutation.form].spoil(run.lines[mutation.rank], mutation.at)


# ── what must be said of it ─────────────────────────────────────────────────────────────────────────


def first_difference(before: Sequence[Line], after: Sequence[Line]) -> int | None:
    """Where the lines begin to differ, times and numbers aside; None where they do not."""
    for at, (a, b) in enumerate(zip(before, after, strict=False)):
        if {**a, "time_ns": 0, "index": 0} != {**b, "time_ns": 0, "index": 0}:
            return at
    return None if len(before) == len(after) else min(len(before), len(after))


def refused(lines: Sequence[Line], rank: int) -> int | None:
    """The first line that the role's machine does not accept, or at which the rank saw itself elsewhere."""
    machine = RoleMachine(TP_V1_1.role(rank))
    for at, line in enumerate(lines[1:], 1):
        if line["kind"] == "end":
            return None if machine.role.by_name[machine.state].terminal else at
        try:
            _fire(machine, line)
        except (ContractViolation, ModelError, LookupError):
            return at
        v = machine.vars
        seen = tuple(line.get(name, 0) for name in ("call_id", "chunk", "epoch"))
        if seen != (v.call_id, v.chunk_index, v.cache_epoch):
            return at
    return len(lines)


def _fire(machine: RoleMachine, line: Line) -> None:
    if line["state"] != machine.state:
        raise LookupError(line["state"])
    row = machine.role.rows_by_key[line["state"], line["transition"]]
    data = msgspec.convert(line["data"], row.data) if "data" in line else None
    if line["edge"] == "exit":
        if machine.pending != row.event:
            raise LookupError(row.event)
        machine.complete(data)
    elif (line["edge"] == "enter") == (row.op is not None):
        machine.fire(row.event, data)
    else:
        raise LookupError(line["edge"])


def due(run: Run, mutation: Mutation, after: Sequence[Line]) -> int | None:
    """The line that must be named; None where the run must conform."""
    rank, before = mutation.rank, run.lines[mutation.rank]
    own = [line for line in before if not _asked_for(line, rank)]
    theirs = [(at, line) for at, line in enumerate(after) if not _asked_for(line, rank)]
    at = first_difference(own, [line for _, line in theirs])
    hole = next((n for n, line in enumerate(after[1:], 1) if line["index"] != n - 1), None)
    places = [hole, refused(after, rank), None if at is None else theirs[at][0] if at < len(theirs) else len(after)]
    return min((place for place in places if place is not None), default=None)


def _asked_for(line: Line, rank: int) -> bool:
    """Whether it is a move that the environment may ask for at any time, or not."""
    row = TP_V1_1.role(rank).rows_by_key.get((line.get("state", ""), line.get("transition", "")))
    return row is not None and row.by is By.ENVIRONMENT


def replayed(run: Run, mutation: Mutation, lines: Sequence[Line]) -> Diagnosis:
    """What replay says of the run with one file spoilt, without a detour over the disk."""
    own = run.traces[mutation.rank]
    whole = (decode(own.path, at, msgspec.json.encode(line)) for at, line in enumerate(lines[1:], 2))
    body = tuple(line for line in whole if isinstance(line, Event | Dropped | End))
    trace = Trace(own.path, own.header, body, tuple(range(2, len(lines) + 1)), False, own.groups)
    return diagnose([trace if r == mutation.rank else t for r, t in run.traces.items()])


def wrong(run: Run, mutation: Mutation) -> str | None:
    """What replay should have said of a mutation and did not; None where it is right."""
    after = spoilt(run, mutation)
    found = replayed(run, mutation, after)
    at, rank = due(run, mutation, after), mutation.rank
    if mutation.form == "the file is cut":
        last = next((line["index"] for line in reversed(after) if line["kind"] == "event"), -1)
        named = [r for r in found.reasons if r.startswith(f"rank{rank}: ") and f"after event {last} " in r]
        return None if found.verdict == "unknown" and named else f"{found.verdict}: {found.reasons}"
    divergence = found.divergence
    if at is None:
        return None if found.verdict == "conforming" else f"it is legal, and called {found.verdict}"
    if divergence is None:
        return f"it is {found.verdict}"
    said = (divergence.rank, found.culprits, divergence.line, divergence.chunk)
    right = (rank, (rank,), at + 1, after[at - 1].get("chunk", 0))
    return None if said == right else f"(rank, culprits, line, chunk) is {said}, not {right}: {divergence.why}"


def main(folders: Sequence[str]) -> int:
    """Every mutation of the runs in the folders, or of the corpus's of three ranks and more; 1 if one was missed."""
    own = (name for name in corpus.names() if name.startswith(HEALTHY) and len(corpus.traces(name)) > 2)
    folders = folders or [str(CORPUS / name) for name in own]
    made: Counter[tuple[str, str]] = Counter()
    legal: Counter[tuple[str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    for folder in folders:
        run = recorded(Path(folder))
        for rank in run.lines:
            for mutation in mutations_of(run, rank):
                key = (mutation.kind, mutation.form)
                made[key] += 1
                legal[key] += due(run, mutation, spoilt(run, mutation)) is None
                if why := wrong(run, mutation):
                    missed[key] += 1
                    print(f"{folder}: {mutation}: {why}", file=sys.stderr)
    print(f"{'kind':10} {'form':30} {'made':>7} {'illegal':>7} {'right':>7}")
    for key in made:
        print(f"{key[0]:10} {key[1]:30} {made[key]:7} {made[key] - legal[key]:7} {made[key] - missed[key]:7}")
    print(f"{'':41} {made.total():7} {made.total() - legal.total():7} {made.total() - missed.total():7}")
    return int(missed.total() > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
