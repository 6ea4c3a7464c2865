"""Every kind of fault, alone, on both transports: all properties hold, in exactly so many states."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from genlock.errors import UsageError
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.engine import check
from genlock.model.checker.report import run_check
from genlock.model.faults import FAULTS, asked, with_faults
from genlock.model.network import Network, Point
from genlock.model.properties import NO_STRANDING, PROPERTIES
from genlock.model.protocol import TP_V1_1
from genlock.model.protocol_v0 import TP_V0
from genlock.model.question import Question
from genlock.model.tables import Protocol, Scope

Count = tuple[int, int]
"""States and transitions."""

SMALL: dict[str, tuple[Count, Count]] = {
    "crash": ((2142, 6504), (3280, 10038)),
    "stall": ((5434, 15830), (7976, 24362)),
    "exception": ((3688, 11019), (5765, 17447)),
    "flag": ((1149, 2577), (1617, 3843)),
    "plan": ((1767, 3723), (4665, 11973)),
    "override": ((1495, 3205), (3481, 8767)),
    "drift": ((1258, 2793), (2752, 7007)),
    "stale": ((5429, 12809), (6732, 16380)),
    "duplicate": ((2108, 4976), (2695, 6533)),
    "corrupt": ((1741, 4186), (2432, 6092)),
    "incoherent": ((1248, 2815), (1867, 4525)),
    "manifest": ((1310, 2911), (2034, 4888)),
    "role": ((1130, 2537), (1598, 3803)),
    "weights": ((3087, 7142), (4451, 10852)),
    "backend": ((1149, 2577), (1617, 3843)),
    "request": ((1107, 2493), (1575, 3759)),
    "thread": ((1107, 2493), (1575, 3759)),
}
"""2 ranks, 1 chunk, one fault of the kind: rendezvous and stream."""

FULL: dict[str, tuple[Count, Count]] = {
    "crash": ((151707, 515779), (313356, 1062035)),
    "stall": ((249318, 898719), (484807, 1774351)),
    "exception": ((217120, 871364), (441344, 1776143)),
    "flag": ((24943, 80491), (43403, 146471)),
    "plan": ((48838, 147688), (288429, 1030818)),
    "override": ((38586, 118582), (193917, 681588)),
    "drift": ((28965, 91960), (87548, 307069)),
    "stale": ((188906, 662564), (255272, 902164)),
    "duplicate": ((51241, 178526), (72355, 253400)),
    "corrupt": ((92898, 324638), (157754, 561022)),
    "incoherent": ((50372, 163046), (103024, 355012)),
    "manifest": ((36838, 118406), (71230, 243166)),
    "role": ((24822, 80124), (43282, 146104)),
    "weights": ((92142, 305722), (162902, 560334)),
    "backend": ((24943, 80491), (43403, 146471)),
    "request": ((24560, 79342), (43020, 145322)),
    "thread": ((24560, 79342), (43020, 145322)),
}
"""3 ranks, 2 chunks, one fault of the kind: rendezvous and stream."""

LIGHT = 45_000
"""States up to which a full-size search belongs to the tests of every day."""


def holds(protocol: Protocol, kind: str, stream: bool, scope: Scope) -> Count:
    """Check all properties; returns the size of the state space."""
    network = Network(with_faults(protocol, [kind]), scope, kinds={kind: None}, stream=stream)
    result = check(network, list(PROPERTIES.values()))
    assert [v.property.name for v in result.verdicts if not v.holds] == []
    assert result.deadlocks == 0
    return result.graph.counts


@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_of_each_kind_in_small(kind: str, stream: bool) -> None:
    assert holds(TP_V1_1, kind, stream, Scope(2, 1, 2)) == SMALL[kind][stream]


def full_size() -> Iterator[object]:
    for kind, counts in FULL.items():
        for stream, (states, _) in enumerate(counts):
            marks = [pytest.mark.slow] if states > LIGHT else []
            yield pytest.param(kind, bool(stream), marks=marks, id=f"{kind}-{('rendezvous', 'stream')[stream]}")


@pytest.mark.parametrize(("kind", "stream"), list(full_size()))
def test_one_fault_of_each_kind_with_three_ranks_and_two_chunks(kind: str, stream: bool) -> None:
    assert holds(TP_V1_1, kind, stream, Scope(3, 2, 2)) == FULL[kind][stream]


def test_every_kind_is_pinned() -> None:
    assert set(SMALL) == set(FULL) == set(FAULTS)


@pytest.mark.parametrize("kind", ["crash", "stall", "exception"])
def test_tp_v0_holds_too(kind: str) -> None:
    report = run_check(Question("tp_v0", Scope(2, 2, 2), fault_points=((kind, None),)))
    assert report.holds


def test_rank0_that_dies_before_the_payload_strands_the_workers() -> None:
    """What detection is worth: without it, every worker waits for a payload that never comes."""
    report = run_check(Question("tp_v1.1", Scope(3, 1, 2), fault_points=(("crash", "AWAIT_PAYLOAD"),), detection=False))
    example = report.counterexample
    assert example is not None
    assert example.claim == "no_stranding"
    assert [(s.rank, s.waiting_for) for s in example.stuck] == [(1, (0,)), (2, (0,))]
    assert (example.stuck[0].state, example.stuck[0].operation) == ("AWAIT_PAYLOAD", "payload")
    assert "rank1 is stuck in AWAIT_PAYLOAD (payload), waiting for rank0" in example.summary
    since = example.stuck[0].since
    assert since is not None
    assert example.steps[since - 1].event == "send_header"
    assert [s.rank for s in example.steps if s.edge == "crash"] == [0]


def test_a_point_may_name_the_rank() -> None:
    points = asked([("crash", "rank2.AWAIT_PAYLOAD")], TP_V1_1)
    assert points == {"crash": frozenset({Point("AWAIT_PAYLOAD", 2)})}
    network = Network(TP_V1_1, Scope(3, 1, 2), kinds=points, detection=False)
    result = check(network, [NO_STRANDING], judge_all=True)
    example = counterexample(result, result.verdicts[0])
    assert example is not None
    assert [s.rank for s in example.steps if s.edge == "crash"] == [2]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([("meteor", None)], "no fault `meteor`; choose from crash, stall"),
        ([("crash", "NOWHERE")], "`NOWHERE` is no point; use [rankN.]STATE"),
        ([("crash", "rankX.IDLE")], "`rankX.IDLE` is no point"),
    ],
)
def test_an_unknown_fault_or_point_is_told(points: list[tuple[str, str | None]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_faults(TP_V1_1, asked(points, TP_V1_1))
    assert message in str(caught.value)


def test_faults_of_v1_1_are_not_those_of_another_protocol() -> None:
    with pytest.raises(UsageError, match=r"fault `drift` is one of TP v1\.1"):
        with_faults(TP_V0, ["drift"])
