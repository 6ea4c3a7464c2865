"""A schedule, once an atom is decided, is what the ranks of that outcome issue."""

from __future__ import annotations

from genlock.lint.divergence import Atom, Confidence, Join, Kind, Not, Source, alone, assume, joined, negated, text
from genlock.lint.schedule import Branch, Collective, Leave, Loop, Node, decided_differently, run

RANK = Source(Kind.RANK, Confidence.CERTAIN, "rank", 1, "world")
ZERO = Atom("rank == 0", (RANK,))
PLAIN = Atom("args.x")


def issue(name: str, line: int = 1) -> Collective:
    return Collective(name, "world", line)


def signs(nodes: list[Node], outcome: bool) -> list[str]:
    return [" ".join(step.sign[:1]) for step in run(nodes, ZERO.key, outcome)]


def test_a_decided_branch_is_followed_and_an_open_one_kept() -> None:
    nodes: list[Node] = [
        Branch(ZERO, 1, [issue("barrier")], [Leave("return", 2)]),
        Branch(PLAIN, 3, [issue("reduce")]),
        issue("gather"),
    ]
    assert signs(nodes, True) == ["barrier", "if", "reduce", "else", "end", "gather"]
    assert signs(nodes, False) == ["return"]
    assert [(atom, lines) for atom, lines in decided_differently(nodes)] == [(ZERO, (1,))]


def test_ways_that_issue_the_same_are_one() -> None:
    nodes: list[Node] = [Branch(PLAIN, 1, [issue("barrier")], [issue("barrier", 2)])]
    assert signs(nodes, True) == ["barrier"]


def test_a_loop_that_issues_nothing_is_left_out_and_one_that_leaves_the_function_is_not() -> None:
    assert signs([Loop(1, body=[Leave("break", 2)])], True) == []
    assert signs([Loop(1, body=[Leave("return", 2)])], True) == ["loop", "return", "end"]
    assert signs([Loop(1, body=[issue("barrier"), Leave("continue", 3)])], True) == ["loop", "barrier", "end"]


def test_the_way_without_peers_is_not_taken() -> None:
    single = Atom("world_size == 1", alone=True)
    nodes: list[Node] = [Branch(single, 1, [Leave("return", 2)]), issue("barrier")]
    assert signs(nodes, True) == ["barrier"]


def test_formulas_are_decided_as_far_as_they_go() -> None:
    both = joined(True, [ZERO, PLAIN])
    assert isinstance(both, Join)
    assert assume(both, ZERO.key, True) == PLAIN
    assert assume(both, ZERO.key, False) is False
    assert assume(negated(both), ZERO.key, False) is True
    assert negated(negated(ZERO)) == ZERO
    assert joined(False, [ZERO, True]) is True
    assert text(joined(False, [Not(ZERO), PLAIN])) == "(not (rank == 0)) or (args.x)"


def test_being_alone_is_told_through_formulas() -> None:
    ready = Atom("dist.is_initialized()", alone=False)
    assert alone(Not(ready)) is True
    assert alone(joined(True, [ready, PLAIN])) is None
    assert alone(joined(False, [ready, PLAIN])) is False
    assert alone(joined(True, [Not(ready), PLAIN])) is True
