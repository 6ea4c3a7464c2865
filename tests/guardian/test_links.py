"""Connections between guardians: one link a rank."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from genlock.guardian.links import Caller, Listener
from genlock.guardian.places import numeric

TOKEN = b"token"


def turn(selector: selectors.BaseSelector, over: Callable[[], object], within: float = 20) -> None:
    """Do what is ready until `over`."""
    end = time.monotonic() + within
    while not over():
        assert time.monotonic() < end, "it did not come to that"
        for key, _ in selector.select(0.01):
            key.data()


def test_a_second_guardian_of_the_same_rank_is_refused() -> None:
    selector, refused = selectors.DefaultSelector(), list[str]()
    listener = Listener(selector, lambda *_: None, refused.append, TOKEN, 3)
    listener.listen(numeric("127.0.0.1", [0]))
    places = numeric("127.0.0.1", listener.ports)
    callers = [Caller(selector, lambda *_: None, refused.append, TOKEN, 2) for _ in range(2)]
    callers[0].call(places, lambda: None)
    turn(selector, lambda: callers[0].ranks)
    callers[1].call(places, lambda: None)
    turn(selector, lambda: refused)
    assert [bool(caller.ranks) for caller in callers] == [True, False]
    assert refused == ["a stranger was refused: rank2 is here already"]
    for one in (listener, *callers):
        one.close()
    selector.close()
