"""Schedulers that return early from a collective: each looks whether it has something running, and only then votes.

Every rank runs the same loop: receive requests, look at its own list, agree on how many entries are finished, compute.
Whether a list is empty depends on the rank's own memory and timing, so that one rank returns while another votes.

    genlock check examples/early_return.py --faults 0 --ranks 3                      # exit 1: who is stuck, and where
    genlock check examples/early_return.py --faults 0 --ranks 3 --param mended=yes   # every rank votes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from genlock import Collective, Kind, Protocol, Role, Row, Scope, State, everyone, least

REQUESTS = Collective("requests", Kind.BROADCAST, "tp", 0, "uint8", "list", "receive")
VOTE = Collective("vote", Kind.ALL_REDUCE, "tp", None, "int64", "1", "look", result=least)
FORWARD = Collective("forward", Kind.ALL_REDUCE, "tp", None, "bfloat16", "activations", "compute")


@dataclass(frozen=True)
class V:
    """`running`: entries of this rank's own list. `finished`: what all agreed on."""

    tick: int = 0
    running: int = 0
    finished: int = 0


def some_or_none(v: V, scope: Scope) -> Iterable[int]:
    return (0, 1)


def look(v: V, running: int) -> V:
    return replace(v, running=running)


def own(v: V) -> int:
    return v.running


def take_off(v: V, finished: int) -> V:
    return replace(v, finished=finished)


def has_some(v: V, data: object) -> bool:
    """the rank's own list is not empty"""
    return v.running > 0


def has_none(v: V, data: object) -> bool:
    """the rank's own list is empty"""
    return v.running == 0


def next_tick(v: V, data: object) -> V:
    return V(v.tick + 1)


def protocol(ticks: int = 2, mended: bool = False) -> Protocol:
    """`mended`: a rank votes whatever it has."""

    def goes_on(v: V, data: object) -> bool:
        """there is another tick"""
        return v.tick < ticks

    def is_over(v: V, data: object) -> bool:
        """that was the last tick"""
        return v.tick == ticks

    vote = Row("LOOKED", "vote", "READY", op=VOTE, send=own, effect=take_off)
    early = (replace(vote, guards=(has_some,)), Row("LOOKED", "return_early", "READY", guards=(has_none,)))
    rows = (
        Row("TICK", "receive", "CHECK", op=REQUESTS, guards=(goes_on,)),
        Row("TICK", "stop", "DONE", guards=(is_over,)),
        Row("CHECK", "look", "LOOKED", choices=some_or_none, effect=look),
        *((vote,) if mended else early),
        Row("READY", "forward", "TICK", op=FORWARD, effect=next_tick),
    )
    states = (
        State("TICK", "receive"),
        State("CHECK", "look"),
        State("LOOKED", "look"),
        State("READY", "compute"),
        State("DONE", "end", terminal=True),
    )
    scheduler = Role("scheduler", "TICK", states, rows, lambda finite: V(), ranks=everyone)
    return Protocol("early_return", "1", cast=(scheduler,), schedule=(REQUESTS, VOTE, FORWARD))
