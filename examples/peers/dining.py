"""Dijkstra's dining philosophers: each takes one fork, then the other; all with one fork each is a deadlock.

    genlock check examples/peers/dining.py --param philosophers=5              violated: the deadlock
    genlock check examples/peers/dining.py --param philosophers=5 --param polite=yes    holds: one reaches round

A fork is a slot, full while it is held; philosopher n is worker n, and fork n is worker n's slot. rank0 gives each
philosopher its number, as workers of one table cannot be told apart, and has ended when they have them.

Left out: eating takes no time, and nobody crashes by itself (`--faults 0`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genlock.model.tables import By, Protocol, Put, Role, Row, Slot, State, Take

NUMBER, FORK = Slot("number"), Slot("fork")


@dataclass(frozen=True)
class V:
    """`id`: rank0, how many numbers are given out; a philosopher, its number."""

    id: int = 0


def protocol(philosophers: int = 3, polite: bool = False) -> Protocol:
    """So many philosophers. `polite`: the last one takes the other fork first, and nobody starves of good manners."""

    def backwards(v: V) -> bool:
        return polite and v.id == philosophers

    def own(v: V) -> int:
        return v.id

    def other(v: V) -> int:
        return v.id % philosophers + 1

    def first(v: V) -> int:
        return other(v) if backwards(v) else own(v)

    def second(v: V) -> int:
        return own(v) if backwards(v) else other(v)

    def whose(v: V) -> int:
        return v.id + 1

    def more(v: V, data: object) -> bool:
        """there is a philosopher after this one"""
        return v.id + 1 < philosophers

    def last(v: V, data: object) -> bool:
        """this is the last philosopher"""
        return v.id + 1 == philosophers

    def turn(v: V, data: object) -> V:
        return replace(v, id=v.id + 1)

    def sit(v: V, number: int) -> V:
        return replace(v, id=number)

    names = ("START", "THINK", "ONE", "EAT", "HALF")
    lost = tuple(Row(state, "peer_lost", "DEAD", By.DETECTION) for state in names)
    driver = (
        Row("START", "number", "START", gate=Put(NUMBER, whose), send=whose, guards=(more,), effect=turn),
        Row("START", "number_last", "END", gate=Put(NUMBER, whose), send=whose, guards=(last,), effect=turn),
        lost[0],
    )
    worker = (
        Row("START", "named", "THINK", gate=Take(NUMBER), effect=sit),
        Row("THINK", "take_first", "ONE", gate=Put(FORK, first), send=own),
        Row("ONE", "take_second", "EAT", gate=Put(FORK, second), send=own),
        Row("EAT", "drop_first", "HALF", gate=Take(FORK, first)),
        Row("HALF", "drop_second", "THINK", gate=Take(FORK, second)),
        *lost,
    )
    dead, end = State("DEAD", "end", terminal=True, failed=True), State("END", "end", terminal=True)
    return Protocol(
        "dining",
        "1",
        Role("rank0", "START", (State("START", "seating"), end, dead), driver, lambda finite: V()),
        Role("worker", "START", (*(State(n, n.lower()) for n in names), dead), worker, lambda finite: V()),
        (),
        slots=(NUMBER, FORK),
        ranks=philosophers + 1,
    )
