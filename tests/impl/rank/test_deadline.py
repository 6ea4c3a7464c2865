"""A drain that goes well never ends as a deadline, however long the chunk is that it has to wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from genlock.impl.rank.deadline import IN_A_CHUNK, Grace
from genlock.impl.scenario import DEADLINES, effective
from genlock.model.protocols.tp_v1_1 import RANK0, WORKER
from genlock.model.tables import Role

STEPS = 200
POLL = 5.0
"""Seconds between two askings here; in a rank it is asked 20 times a second."""
START = (("STARTUP", "STARTUP"), ("PARITY_CHECK", "PARITY_CHECK"), ("IDLE", "AWAIT_HEADER"))
CHUNK = (
    *((f"PREFLIGHT_{step}", "AWAIT_HEADER") for step in range(1, 6)),
    ("PREFLIGHTED", "AWAIT_HEADER"),
    ("COMMITTED", "AWAIT_HEADER"),
    ("HEADER_SENT", "AWAIT_PAYLOAD"),
    *[("GENERATING", "GENERATING")] * STEPS,
    ("AWAIT_ACK", "AWAIT_HEADER"),
    ("ACK_CHECK", "AWAIT_HEADER"),
    ("IDLE", "AWAIT_HEADER"),
)
END = (("STOPPING", "AWAIT_HEADER"),)
"""The states of rank0, one after the other, and where a worker is meanwhile."""


class Stay(NamedTuple):
    """A rank in a state: from when to when, and how many chunks it has taken."""

    begin: float
    end: float
    phase: str
    chunk: int


def stays(limits: Mapping[str, float], role: Role, path: tuple[tuple[str, str], ...]) -> Iterator[Stay]:
    """A rank of a run in which rank0 stays in each state for as long as it may."""
    now, chunk = 0.0, 0
    for driver, worker in path:
        seconds = limits[RANK0.by_name[driver].phase]
        chunk += driver == ("COMMITTED" if role is RANK0 else "HEADER_SENT")
        yield Stay(now, now + seconds, role.by_name[driver if role is RANK0 else worker].phase, chunk)
        now += seconds


def longest(run: list[Stay], signal: float) -> float:
    """The most that is counted, of a signal that comes then."""
    grace, most = Grace(), 0.0
    for stay in run:
        now = max(stay.begin, signal)
        while now <= stay.end:
            most = max(most, grace.held(signal, now, stay.phase, stay.chunk))
            now += POLL
    return most


@pytest.mark.parametrize("given", [{}, {"ack": 600.0, "idle": 3600.0}, {"generate": 900.0, "startup": 300.0}])
@pytest.mark.parametrize("role", [RANK0, WORKER], ids=lambda role: role.name)
def test_a_healthy_drain_of_any_chunk_is_no_deadline(role: Role, given: Mapping[str, float]) -> None:
    limits = effective(given)
    for path in ((*START, *END), (*CHUNK, *END)):
        run = list(stays(limits, role, path))
        signals = dict.fromkeys(stay.begin for stay in run)
        assert max(longest(run, signal) for signal in signals) <= limits["drain"]
        assert run[-1].end > limits["drain"] / 2, "it has been a long one"


def test_rank0_that_goes_on_as_if_there_were_no_signal_is_not_waited_for() -> None:
    run = list(stays(DEADLINES, WORKER, (*CHUNK, *CHUNK, *CHUNK)))
    assert longest(run, 0.0) > DEADLINES["drain"]


def test_what_a_drain_may_take_follows_from_the_phases_unless_it_is_given() -> None:
    assert effective({}) == dict(DEADLINES)
    assert effective({"startup": 9.0, "ack": 10.0, "idle": 5.0})["drain"] == 2 * 10.0 + 5.0 + DEADLINES["shutdown"]
    assert effective({"idle": 5.0, "drain": 7.0})["drain"] == 7.0
    assert set(IN_A_CHUNK) <= set(DEADLINES)
