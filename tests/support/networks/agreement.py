"""Holds the fast engines to the reference: the same states, edges, depths, rows and verdicts, in the same order."""

from __future__ import annotations

from genlock.model.checker.engine import check
from genlock.model.checker.fast.state_encoding import indexes_a_worker
from genlock.model.checker.reference import Result
from genlock.model.semantics.network import Network
from genlock.model.semantics.properties import Property

FAST = ("numba", "numpy")


def agree(
    network: Network, properties: tuple[Property, ...], *, judge_all: bool = False, engines: tuple[str, ...] = FAST
) -> Result:
    """All engines, and with symmetry where there are workers to be sorted; returns what the reference finds."""
    expected = check(network, properties, engine="reference", judge_all=judge_all)
    graph = expected.graph
    for name in engines:
        found = check(network, properties, engine=name, symmetry="off", judge_all=judge_all)
        assert found.graph.seen == graph.seen
        assert found.graph.taken == graph.taken
        assert list(found.graph.states) == list(graph.states)
        assert list(found.graph.edges) == list(graph.edges)
        assert [*found.graph.parent] == [*graph.parent]
        assert [*found.graph.depth] == [*graph.depth]
        same(found, expected)
        assert found.verdicts == expected.verdicts
        if network.ranks > 2 and indexes_a_worker(network) is None:
            sorted_ = check(network, properties, engine=name, symmetry="on", judge_all=judge_all)
            same(sorted_, expected)
            assert [v.holds for v in sorted_.verdicts] == [v.holds for v in expected.verdicts]
    return expected


def same(found: Result, expected: Result) -> None:
    """What does not depend on how the states are numbered: orbit sums are the direct count."""
    assert found.graph.counts == expected.graph.counts
    assert found.graph.depth[-1] == expected.graph.depth[-1]
    assert (found.deadlocks, found.worst_steps) == (expected.deadlocks, expected.worst_steps)
