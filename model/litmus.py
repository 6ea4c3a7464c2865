"""Predicts litmus tests: tiny programs, one per rank, and every outcome that the rules of `transport` allow them.

`predict` explores all orders in which ranks may leave their collectives, by `transport`'s rules alone. It
answers twice: while the late ranks are held back (who may have left by then, who cannot), and when they have
come, whenever that was. A real run must show one of the outcomes; where there is but one, that is a *must*.
`impl.litmus` does the real runs.

Left out: how long anything takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from .semantics import transport
from .semantics.transport import Contribution, Fate
from .tables import Collective, Kind


class Do(NamedTuple):
    """Issues a collective and waits for it. `op.size` is in bytes.

    `contiguous`: whether the tensor that the rank puts in is. `dies`: the rank is killed inside it.
    """

    op: Collective
    contiguous: bool = True
    dies: bool = False


class Control(StrEnum):
    """Names a step that is no collective."""

    LATE = "late"
    """Wait until every other rank has settled."""
    DIE = "die"
    """Be killed (SIGKILL)."""
    STOP = "stop"
    """Be stopped (SIGSTOP), for good."""


Program = tuple[Do | Control, ...]


@dataclass(frozen=True)
class Litmus:
    """Holds a program for each rank.

    `checked`: TORCH_DISTRIBUTED_DEBUG=DETAIL.
    """

    name: str
    text: str
    programs: tuple[Program, ...]
    checked: bool = False

    @property
    def ranks(self) -> int:
        return len(self.programs)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Return the groups, each of all ranks, in the order in which the programs first name them."""
        steps = (step for program in self.programs for step in program)
        return tuple(dict.fromkeys(step.op.group for step in steps if isinstance(step, Do)))


class Result(StrEnum):
    """Names what became of a collective, or of the rank: the latter stands last."""

    COMPLETES = "completes"
    GARBAGE = "garbage"
    """It completes, and the value is not what the rank's own collective should have given it."""
    ERROR = "error"
    WAITS = "waits"
    ABORTED = "aborted"
    KILLED = "killed"
    STOPPED = "stopped"
    LATE = "late"


Outcome = tuple[tuple[Result, ...], ...]
"""Per rank the results of the collectives that it has issued, in the order of its program."""
OVER = {Result.ERROR, Result.ABORTED, Result.KILLED}
"""After these a rank takes part in nothing any more."""


class Settled(NamedTuple):
    """Holds the outcomes in which nothing more is bound to happen, and per rank those that it may then wait for."""

    outcomes: frozenset[Outcome]
    waiting: tuple[frozenset[int], ...]


class Prediction(NamedTuple):
    """Holds what may be seen while the late ranks are held back, and when they have come."""

    held: Settled
    end: Settled


def predict(litmus: Litmus) -> Prediction:
    """Return every outcome that the rules allow.

    Without a late rank both answers are the same.
    """
    start = (Lane(),) * litmus.ranks
    return Prediction(_explore(litmus, start, hold=True), _explore(litmus, start, hold=False))


# ── the exploration ─────────────────────────────────────────────────────────────────────────────────────


class Lane(NamedTuple):
    """Says where one rank is: the step of its program, whether it is inside that collective, and the results so far."""

    at: int = 0
    inside: bool = False
    results: tuple[Result, ...] = ()

    @property
    def gone(self) -> bool:
        return bool(self.results) and self.results[-1] in OVER

    @property
    def alive(self) -> bool:
        """Return whether the rank may ever do anything more."""
        return not self.gone and Result.STOPPED not in self.results


State = tuple[Lane, ...]


def _explore(litmus: Litmus, start: State, *, hold: bool) -> Settled:
    """Return what can be reached in which nothing more is bound to happen. `hold`: no late rank comes."""
    outcomes: set[Outcome] = set()
    waiting: list[set[int]] = [set() for _ in start]
    seen: set[State] = set()
    todo = [_run(litmus, start, hold)]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        meetings = _meetings(litmus, state)
        moves = [move for here in meetings for move in _leavings(here, litmus.checked)]
        sure = [move for move in moves if move.bound]
        if sure and not any(move.result in OVER for move in moves):
            # where nobody can be lost, what is sure stays sure: it may as well come first, and at once
            todo.append(_run(litmus, _leave(state, *sure), hold))
            continue
        todo += [_run(litmus, _leave(state, move), hold) for move in moves]
        if not sure:
            outcomes.add(tuple(map(_results, litmus.programs, state)))
            for here in meetings:
                for rank in here.inside:
                    waiting[rank] |= set(transport.missing(here.op, rank, here.issued) or here.lost)
    return Settled(frozenset(outcomes), tuple(map(frozenset, waiting)))


def _run(litmus: Litmus, state: State, hold: bool) -> State:
    """Return the state once every rank has gone on to where it waits.

    That depends on nobody, and takes nothing away.
    """
    return tuple(_run_lane(program, lane, hold) for program, lane in zip(litmus.programs, state, strict=True))


def _run_lane(program: Program, lane: Lane, hold: bool) -> Lane:
    at, inside, results = lane
    while not inside and lane.alive and at < len(program):
        match program[at]:
            case Do(dies=dies):
                return Lane(at, True, (*results, Result.KILLED) if dies else results)
            case Control.DIE:
                return Lane(at, False, (*results, Result.KILLED))
            case Control.STOP:
                return Lane(at, False, (*results, Result.STOPPED))
            case Control.LATE if hold:
                break
        at += 1
    return Lane(at, inside, results)


class Leaving(NamedTuple):
    """Says that a rank leaves its collective.

    `bound`: it will, in this way or in another.
    """

    rank: int
    result: Result
    bound: bool


def _leavings(here: Meeting, checked: bool) -> Iterator[Leaving]:
    bound = transport.bound(here.op, here.issued, lost=here.lost, checked=checked)
    for rank in here.inside:
        for fate in transport.fates(here.op, rank, here.issued, lost=here.lost, checked=checked):
            if fate is not Fate.COMPLETES:
                yield Leaving(rank, Result(fate.value), bound)
            elif here.in_reach:
                yield Leaving(rank, _result(here.op, rank, here.issued), bound)


def _leave(state: State, *moves: Leaving) -> State:
    lanes = list(state)
    for rank, result, _ in moves:
        lane = state[rank]
        left = result not in OVER
        lanes[rank] = Lane(lane.at + left, not left, (*lane.results, result))
    return tuple(lanes)


class Meeting(NamedTuple):
    """Describes what some ranks are in: each member's part, who is gone without having left it, and who is inside."""

    op: Collective
    issued: list[Contribution | None]
    lost: list[int]
    in_reach: bool
    inside: list[int]


def _meetings(litmus: Litmus, state: State) -> Iterable[Meeting]:
    """Return the collectives that some rank is in.

    They meet by position in their group, and differ by what is meant.
    """
    found: dict[tuple[Collective, int], Meeting] = {}
    for rank, lane in enumerate(state):
        step = litmus.programs[rank][lane.at] if lane.inside and lane.alive else None
        if isinstance(step, Do):
            at = len(_done(litmus.programs[rank], lane.at, step.op.group))
            here = found.get((step.op, at)) or _meeting(litmus, state, step.op, at)
            found[step.op, at] = here
            here.inside.append(rank)
    return found.values()


def _meeting(litmus: Litmus, state: State, op: Collective, at: int) -> Meeting:
    issued: list[Contribution | None] = []
    counts, lost = [], []
    for member, lane in enumerate(state):
        steps = _done(litmus.programs[member], lane.at + lane.inside, op.group)
        issued.append(_contribution(steps[at], member) if at < len(steps) else None)
        counts.append(len(steps))
        if lane.gone and len(steps) - lane.inside <= at:
            lost.append(member)
    return Meeting(op, issued, lost, transport.in_reach(at, counts), [])


def _done(program: Program, steps: int, group: str) -> tuple[Do, ...]:
    """Return the collectives of a group among the first steps of a program."""
    return tuple(step for step in program[:steps] if isinstance(step, Do) and step.op.group == group)


def _contribution(step: Do, rank: int) -> Contribution:
    """Return what the rank puts in. Bytes that are read as something else are another value."""
    return Contribution(step.op, (step.op.name, rank, step.op.dtype, step.op.size, step.contiguous))


def _result(op: Collective, rank: int, issued: list[Contribution | None]) -> Result:
    """Return whether `rank` is given what it would be if everyone had issued the collective that it issued."""
    if not transport.heard(op, rank, len(issued)):
        return Result.COMPLETES
    meant = [_contribution(Do(op), member) for member in range(len(issued))]
    right = transport.delivered(op, rank, issued) == transport.delivered(op, rank, meant)
    return Result.COMPLETES if right else Result.GARBAGE


def _results(program: Program, lane: Lane) -> tuple[Result, ...]:
    if not lane.alive or lane.at == len(program):
        return lane.results
    return (*lane.results, Result.WAITS if lane.inside else Result.LATE)


# ── the programs ────────────────────────────────────────────────────────────────────────────────────────


def _do(
    kind: Kind, name: str, root: int | None, *, dtype: str = "float32", size: int = 64, group: str = "g", **how: bool
) -> Do:
    return Do(Collective(name or kind.value, kind, group, root, dtype, str(size), ""), **how)


def _broadcast(name: str = "", **how: Any) -> Do:
    return _do(Kind.BROADCAST, name, 0, **how)


def _gather(name: str = "", **how: Any) -> Do:
    return _do(Kind.GATHER, name, 0, **how)


def _all_gather(name: str = "", **how: Any) -> Do:
    return _do(Kind.ALL_GATHER, name, None, **how)


def _all_reduce(name: str = "", **how: Any) -> Do:
    return _do(Kind.ALL_REDUCE, name, None, **how)


def _late(ranks: int, late: int, *steps: Do) -> tuple[Program, ...]:
    """Return the same steps on all ranks, of which one comes late."""
    return tuple((Control.LATE, *steps) if rank == late else steps for rank in range(ranks))


def _odd(ranks: int, odd: int, usual: Do, other: Do) -> tuple[Program, ...]:
    """Return one step on all ranks but one, which has another step."""
    return tuple((other if rank == odd else usual,) for rank in range(ranks))


def _unequal() -> Iterator[Litmus]:
    """Yield programs whose ranks do not mean the same, each without and with torch's checks."""
    every = (_broadcast(), _all_reduce(), _all_gather(), _gather())
    first, second, third = (_all_reduce(name) for name in ("first", "second", "third"))
    cases = {
        "equal": ("all ranks issue the same four collectives", (every,) * 3),
        "other_dtype": (
            "the receiver of a broadcast has another dtype of as many bytes",
            _odd(2, 1, _broadcast(), _broadcast(dtype="int32")),
        ),
        "other_dtype_all_reduce": (
            "one rank of an all-reduce has another dtype of as many bytes",
            _odd(2, 1, _all_reduce(), _all_reduce(dtype="int32")),
        ),
        "strided_source": (
            "the root of a broadcast sends every other element of a tensor",
            _odd(2, 0, _broadcast(), _broadcast(contiguous=False)),
        ),
        "strided_all_reduce": (
            "one rank of an all-reduce puts in every other element of a tensor",
            _odd(2, 0, _all_reduce(), _all_reduce(contiguous=False)),
        ),
        "receiver_smaller": (
            "the receiver of a broadcast has room for half of it",
            _odd(2, 1, _broadcast(), _broadcast(size=32)),
        ),
        "receiver_smaller_4": (
            "rank 1 of 4 has room for half of a broadcast, and feeds rank 3",
            _odd(4, 1, _broadcast(), _broadcast(size=32)),
        ),
        "receiver_larger": (
            "the receiver of a broadcast has room for twice as much",
            _odd(2, 1, _broadcast(), _broadcast(size=128)),
        ),
        "receiver_larger_4": (
            "rank 1 of 4 has room for twice as much as is broadcast, and feeds rank 3",
            _odd(4, 1, _broadcast(), _broadcast(size=128)),
        ),
        "other_kind": ("a broadcast here, an all-reduce there", _odd(2, 1, _broadcast(), _all_reduce())),
        "other_kind_3": ("two ranks in a broadcast, one in an all-reduce", _odd(3, 1, _broadcast(), _all_reduce())),
        "skipped_all_reduce": (
            "one rank skips the second of three equal all-reduces",
            ((first, second, third), (first, second, third), (first, third)),
        ),
        "header_as_payload": (
            "rank 0 fails between header 1 and payload 1, and serves the next request",
            (
                (_broadcast("header 1"), _broadcast("header 2"), _broadcast("payload 2")),
                tuple(_broadcast(name) for name in ("header 1", "payload 1", "header 2", "payload 2")),
            ),
        ),
    }
    for name, (text, programs) in cases.items():
        yield Litmus(name, text, programs)
        yield Litmus(f"{name}_detail", f"{text}; DETAIL", programs, checked=True)


def _late_ranks() -> Iterator[Litmus]:
    """Yield programs in which one rank comes late, at 3, 4 and 8 ranks."""
    for ranks in (3, 4, 8):
        for late in range(ranks):
            name = f"broadcast_{ranks}_late_{late}"
            yield Litmus(name, f"broadcast, rank {late} of {ranks} is late", _late(ranks, late, _broadcast()))
        for kind, step, lates in (
            ("gather", _gather(), (0, ranks - 1)),
            ("all_reduce", _all_reduce(), (ranks - 1,)),
            ("all_gather", _all_gather(), (ranks - 1,)),
        ):
            for late in lates:
                text = f"{kind.replace('_', '-')}, rank {late} of {ranks} is late"
                yield Litmus(f"{kind}_{ranks}_late_{late}", text, _late(ranks, late, step))
        several = [_broadcast(f"broadcast {n}") for n in range(ranks.bit_length())]
        text = f"{len(several)} broadcasts in a row, rank {ranks - 1} of {ranks} is late"
        yield Litmus(f"run_ahead_{ranks}", text, _late(ranks, ranks - 1, *several))
    yield Litmus("broadcast_4_late_3_detail", "broadcast, rank 3 of 4 is late; DETAIL", _late(4, 3, _broadcast()), True)
    yield Litmus("gather_4_late_3_detail", "gather, rank 3 of 4 is late; DETAIL", _late(4, 3, _gather()), True)


def _two_groups() -> Iterator[Litmus]:
    """Yield programs over two groups: the position of a collective counts within its group."""
    one, other = _all_reduce("one", group="one"), _all_reduce("other", group="other")
    yield Litmus("crossed_groups", "all-reduces in two groups, in opposite order", ((one, other), (other, one)))
    chunks = [_broadcast(f"{name} {n}", group=name) for n in (1, 2, 3) for name in ("header", "payload")]
    yield Litmus("run_ahead_two_groups", "3 headers and payloads, rank 3 of 4 is late", _late(4, 3, *chunks))


def _gone() -> Iterator[Litmus]:
    """Yield programs with a peer that is killed, stopped, or does not call."""
    for name, step in {"all_reduce": _all_reduce, "broadcast": _broadcast, "gather": _gather}.items():
        called = name.replace("_", "-")
        for dead in (0, 3):
            before = tuple((Control.LATE, Control.DIE) if rank == dead else (step(),) for rank in range(4))
            text = f"rank {dead} of 4 is killed while the others are in the {called}"
            yield Litmus(f"killed_before_{name}_{dead}", text, before)
        inside = ((step(dies=True),), (step(),), (Control.LATE, step()))
        yield Litmus(f"killed_in_{name}", f"rank 0 of 3 is killed inside the {called}, rank 2 comes later", inside)
    for ranks in (3, 4):
        several = tuple(_broadcast(f"broadcast {n}") for n in range(ranks.bit_length()))
        past = tuple((Control.LATE, Control.DIE) if rank == ranks - 1 else several for rank in range(ranks))
        text = f"{len(several)} broadcasts in a row, rank {ranks - 1} of {ranks} is killed before the first"
        yield Litmus(f"run_ahead_killed_{ranks}", text, past)
    first, dies = _broadcast("first"), (_broadcast("first"), Control.LATE, Control.DIE)
    yield Litmus("killed_idle", "rank 1 is killed while rank 0 is in no collective", ((first,), dies))
    again = (first, Control.LATE, _broadcast("second"))
    yield Litmus("killed_idle_then_broadcast", "rank 1 is killed as rank 0 is about to broadcast again", (again, dies))
    yield Litmus("stopped", "rank 1 is stopped (SIGSTOP)", ((_all_reduce(),), (Control.STOP,)))
    yield Litmus("not_calling", "rank 1 is alive and does not call", ((_all_reduce(),), ()))


LITMUS = {litmus.name: litmus for family in (_unequal, _late_ranks, _two_groups, _gone) for litmus in family()}
"""All of them, by name."""
