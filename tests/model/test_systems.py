"""Twelve hangs of real systems, as `tests/support/systems.py` writes them: who is stuck, and that the mend holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import systems as s
from agreement import agree
from genlock.model.checker.report import Answer, Report, run_check
from genlock.model.semantics.properties import GENERIC, own_properties
from genlock.model.semantics.query import Query
from genlock.model.tables import Protocol, Scope, validate

Stuck = Mapping[int, tuple[str, tuple[int, ...]]]
"""Per rank that is stuck: the operation, and the ranks that it waits for."""
Fault = tuple[str, str | None] | None
READER_DIES: Fault = ("crash", "rank1.READ")
LOST: Fault = ("lost", None)
RAISES: Fault = ("exception", None)


def asked(protocol: Protocol, fault: Fault = None, ranks: int = 2) -> Query:
    points = () if fault is None else (fault,)
    scope = Scope(ranks=protocol.ranks or ranks)
    return Query(protocol.name, scope, given=validate(protocol), faults=0 if fault is None else 1, fault_points=points)


def checked(protocol: Protocol, fault: Fault = None, ranks: int = 2) -> Report:
    return run_check(asked(protocol, fault, ranks))


HANGS: list[tuple[str, Protocol, Fault, int, str, Stuck]] = [
    (
        "1 ack, then clear",
        s.shared_buffer(1, 2, "ack_then_clear"),
        None,
        2,
        "no_stranding",
        {0: ("ack", (1,)), 1: ("event", (0,))},
    ),
    ("2 early return", s.early_return(), None, 2, "no_stranding", {0: ("forward", (1,)), 1: ("all_reduce_min", (0,))}),
    (
        "2 one against many",
        s.early_return(),
        None,
        3,
        "no_stranding",
        {0: ("forward", (1, 2)), 1: ("all_reduce_min", (0,)), 2: ("all_reduce_min", (0,))},
    ),
    ("3 a local gate", s.local_gate(), None, 2, "no_stranding", {0: ("allgather", (1,)), 1: ("forward", (0,))}),
    (
        "3 a vote of half of them",
        s.local_gate("subgroup"),
        None,
        2,
        "no_stranding",
        {0: ("allgather", (1,)), 1: ("forward", (0,))},
    ),
    ("4 a dead reader", s.ring(3), READER_DIES, 3, "crash_over_hang", {0: ("read", (1,)), 2: ("read", (0,))}),
    ("4 a lost wake-up", s.lost_wake_up(), LOST, 2, "no_stranding", {1: ("notify", (0,))}),
    (
        "5 nobody is told",
        s.unread_failure(),
        RAISES,
        3,
        "no_stranding",
        {0: ("reply", (1,)), 1: ("all_reduce", (2,)), 2: ("cmd", (0,))},
    ),
    (
        "5 told, not killed",
        s.unread_failure("error"),
        RAISES,
        3,
        "no_stranding",
        {1: ("all_reduce", (2,)), 2: ("cmd", (0,))},
    ),
    ("6 no progress outside", s.slow_isend(), None, 2, "no_stranding", {0: ("act", (1,)), 1: ("req", (0,))}),
    (
        "6 three stages",
        s.slow_isend(ranks=3),
        None,
        3,
        "no_stranding",
        {0: ("act", (1,)), 1: ("req", (0,)), 2: ("req", (1,))},
    ),
    ("7 START overtakes", s.overtaken_pause(), None, 4, "no_stranding", {0: ("step", (1,)), 1: ("inbox", (2, 3))}),
    (
        "7 START ignored",
        s.overtaken_pause("ignore"),
        None,
        4,
        "no_stranding",
        {0: ("step", (1,)), 1: ("inbox", (2, 3))},
    ),
    ("8 uneven", s.uneven_inputs(), None, 2, "no_stranding", {1: ("grad", (0,))}),
    (
        "8 join, no_sync",
        s.uneven_inputs("join", no_sync=True),
        None,
        2,
        "no_stranding",
        {0: ("grad", (1,)), 1: ("present", (0,))},
    ),
    ("9 both send", s.exchange(), None, 2, "no_stranding", {0: ("p2p", (1,)), 1: ("p2p", (0,))}),
    ("9 a ring of 4", s.send_ring(4), None, 4, "no_stranding", {r: ("ring", ((r + 1) % 4,)) for r in range(4)}),
    ("10 two members", s.two_groups(2, 1), None, 2, "no_stranding", {0: ("sharding", (1,)), 1: ("replicas", (0,))}),
    (
        "10 a cycle of four",
        s.two_groups(2, 2),
        None,
        4,
        "no_stranding",
        {0: ("sharding", (1,)), 1: ("replicas", (3,)), 2: ("replicas", (0,)), 3: ("sharding", (2,))},
    ),
    ("11 too fast", s.flag_barrier(), None, 2, "no_stranding", {0: ("state", (1,)), 1: ("state", (0,))}),
    (
        "12 two threads",
        s.two_threads(),
        None,
        6,
        "no_stranding",
        {4: ("barrier", (5,)), 5: ("gather", (4,)), **{r: ("done", (4 + r % 2,)) for r in range(4)}},
    ),
]


@pytest.mark.parametrize(
    ("protocol", "fault", "ranks", "claim", "stuck"), [h[1:] for h in HANGS], ids=[h[0] for h in HANGS]
)
def test_who_is_stuck(protocol: Protocol, fault: Fault, ranks: int, claim: str, stuck: Stuck) -> None:
    report = checked(protocol, fault, ranks)
    assert report.verdict is Answer.VIOLATED
    example = report.counterexample
    assert example is not None
    assert example.claim == claim
    found = {one.rank: (one.operation, one.waiting_for) for one in example.stuck}
    assert found.items() >= stuck.items()


MENDED: list[tuple[str, Protocol, Fault, int]] = [
    ("1 ack", s.shared_buffer(1, 2, "ack"), None, 2),
    ("1 collectives only", s.shared_buffer(1, 2, collectives=True), None, 2),
    ("1 two workers", s.shared_buffer(2, 1, "ack"), None, 3),
    ("2", s.early_return(mended=True), None, 2),
    ("2 three", s.early_return(mended=True), None, 3),
    ("3", s.local_gate("vote"), None, 2),
    ("4 few messages", s.ring(2), READER_DIES, 3),
    ("4 a monitor", s.ring(3, mended=True), READER_DIES, 4),
    ("4 looks again", s.lost_wake_up(mended=True), LOST, 2),
    ("5", s.unread_failure("kill"), RAISES, 3),
    ("6 eager", s.slow_isend("eager"), None, 2),
    ("6 blocking", s.slow_isend("blocking", 3), None, 3),
    ("7", s.overtaken_pause("two_phases"), None, 4),
    ("8 join", s.uneven_inputs("join"), None, 3),
    ("8 vote", s.uneven_inputs("join", no_sync=True, vote=True), None, 2),
    ("9 a buffer", s.exchange(buffer=1), None, 2),
    ("9 in order", s.exchange("recv_first"), None, 2),
    ("9 by parity", s.send_ring(4, odd_first=True), None, 4),
    ("10 one order", s.two_groups(2, 2, "one"), None, 4),
    ("10 left out", s.two_groups(2, 2, "left_out"), None, 4),
    ("11", s.flag_barrier(mended=True), None, 2),
    ("12", s.two_threads(mended=True), None, 6),
]


@pytest.mark.parametrize(("protocol", "fault", "ranks"), [m[1:] for m in MENDED], ids=[m[0] for m in MENDED])
def test_the_mend_holds(protocol: Protocol, fault: Fault, ranks: int) -> None:
    report = checked(protocol, fault, ranks)
    assert report.verdict is Answer.HOLDS, report.as_text()


@pytest.mark.parametrize("n", range(len(HANGS) + len(MENDED)))
def test_every_engine_finds_the_same(n: int) -> None:
    """State for state; numpy, which takes its time where each state is new to it, is asked about every fourth."""
    protocol, fault, ranks = (*(h[1:4] for h in HANGS), *(m[1:] for m in MENDED))[n]
    network = asked(protocol, fault, ranks).network()
    agree(network, (*GENERIC, *own_properties(protocol)), engines=("numba", "numpy") if n % 4 == 1 else ("numba",))


def test_a_torn_read_ends_the_worker() -> None:
    report = checked(s.shared_buffer(1, 2))
    assert {v.property.name for v in report.result.verdicts if not v.holds} >= {"no_stranding", "no_false_abort"}


def test_the_capacity_of_a_ring_is_part_of_the_verdict() -> None:
    assert checked(s.ring(2, blocks=1), READER_DIES).verdict is Answer.VIOLATED
    assert checked(s.ring(1, blocks=1), READER_DIES).verdict is Answer.HOLDS
