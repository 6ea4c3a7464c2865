"""Every kind of fault, alone, on both transports: all properties hold, in exactly so many states."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from genlock.errors import UsageError
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.engine import check
from genlock.model.checker.report import run_check
from genlock.model.protocols.tp_v0 import TP_V0
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import FAULTS, asked, with_faults
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.properties import NO_STRANDING, PROPERTIES
from genlock.model.semantics.query import Query
from genlock.model.tables import Protocol, Scope

Count = tuple[int, int]
"""States and transitions."""

SMALL: dict[str, tuple[Count, Count]] = {
    "crash": ((2405, 6737), (3648, 10356)),
    "stall": ((5697, 16063), (8344, 24680)),
    "exception": ((3885, 11252), (6037, 17765)),
    "flag": ((1149, 2577), (1617, 3843)),
    "plan": ((1779, 3723), (4741, 12005)),
    "override": ((1503, 3205), (3533, 8789)),
    "drift": ((1259, 2793), (2753, 7007)),
    "stale": ((5595, 13021), (6959, 16663)),
    "duplicate": ((2241, 5146), (2853, 6712)),
    "corrupt": ((1921, 4419), (2683, 6410)),
    "incoherent": ((1271, 2839), (1909, 4564)),
    "manifest": ((1311, 2911), (2037, 4888)),
    "role": ((1130, 2537), (1598, 3803)),
    "weights": ((3088, 7142), (4452, 10852)),
    "backend": ((1149, 2577), (1617, 3843)),
    "request": ((1107, 2493), (1575, 3759)),
    "thread": ((1107, 2493), (1575, 3759)),
}
"""2 ranks, 1 chunk, one fault of the kind: rendezvous and stream."""

FULL: dict[str, tuple[Count, Count]] = {
    "crash": ((168979, 546423), (347432, 1123135)),
    "stall": ((266590, 929363), (518883, 1835451)),
    "exception": ((227516, 894248), (461840, 1821727)),
    "flag": ((24943, 80491), (43403, 146471)),
    "plan": ((48996, 147700), (296303, 1043938)),
    "override": ((38720, 118594), (198285, 688470)),
    "drift": ((28968, 91960), (87551, 307069)),
    "stale": ((195792, 675156), (264828, 919576)),
    "duplicate": ((52494, 181004), (73690, 255912)),
    "corrupt": ((103080, 347402), (177948, 606414)),
    "incoherent": ((52920, 167714), (109092, 366690)),
    "manifest": ((37544, 119510), (72724, 245670)),
    "role": ((24822, 80124), (43282, 146104)),
    "weights": ((92145, 305722), (162905, 560334)),
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
    report = run_check(Query("tp_v0", Scope(2, 2, 2), fault_points=((kind, None),)))
    assert report.holds


def test_rank0_that_dies_before_the_payload_strands_the_workers() -> None:
    """What detection is worth: without it, every worker waits for a payload that never comes."""
    report = run_check(Query("tp_v1.1", Scope(3, 1, 2), fault_points=(("crash", "AWAIT_PAYLOAD"),), detection=False))
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
