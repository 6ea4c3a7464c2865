"""Connections between guardians: one link a rank."""

from __future__ import annotations

import selectors
import threading

from genlock.guardian.links import Caller, Listener

TOKEN = b"token"


def test_a_second_guardian_of_the_same_rank_is_refused() -> None:
    selector, refused = selectors.DefaultSelector(), list[str]()
    listener = Listener(selector, lambda *_: None, refused.append, TOKEN, 3)
    port = listener.listen("127.0.0.1", [0])
    callers = [Caller(selector, lambda *_: None, refused.append) for _ in range(2)]
    found: list[bool] = []
    for caller in callers:
        thread = threading.Thread(target=lambda own=caller: found.append(own.call("127.0.0.1", [port], TOKEN, 2)))
        thread.start()
        while thread.is_alive():
            for key, _ in selector.select(0.01):
                key.data()
        thread.join()
    assert found == [True, False]
    assert refused == ["a stranger was refused: rank2 is here already"]
    selector.close()
    for one in (listener, *callers):
        one.close()
