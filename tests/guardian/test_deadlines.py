"""Whose clock runs, and what follows from who waits for whom."""

from __future__ import annotations

from genlock.guardian.deadlines import RankGraph, WorkClock, lags, stuck, waits_for
from genlock.guardian.status_page import EVERYONE, NOBODY, SLOT, Page
from genlock.impl.rank.heartbeat import Beat
from hypothesis import given
from hypothesis import strategies as st
from lone_guardian import Living, watching

Rank = tuple[str, int, int]
"""How a rank is (working, waiting, done, paused), whom it waits for, how many collectives it has issued."""


def graph(*ranks: Rank) -> RankGraph:
    found = RankGraph(len(ranks), {"steady": 1.0, "collective": 5.0})
    for one, (state, waiting, position) in zip(found.ranks, ranks, strict=True):
        one.quiet, one.done, one.paused = state != "working", state == "done", state == "paused"
        one.page.waiting, one.page.position = waiting, position
    return found


RANKS = st.lists(
    st.tuples(st.sampled_from(["working", "waiting", "done", "paused"]), st.integers(-2, 3), st.integers(0, 3)),
    min_size=2,
    max_size=4,
)


@given(RANKS)
def test_nobody_is_charged_for_waiting_while_somebody_it_waits_for_can_go_on(ranks: list[Rank]) -> None:
    of = graph(*ranks).ranks
    for n, (state, waiting, _) in enumerate(ranks):
        among = stuck(n, of)
        if state != "waiting" or waiting == NOBODY:
            assert (among, waits_for(n, of), lags(n, of)) == (set(), set(), False)
        for m in among:
            assert ranks[m][0] == "done" or (ranks[m][0] == "waiting" and ranks[m][1] != NOBODY)
            assert waits_for(m, of) <= among, "whoever is waited for is among them"
        assert not (lags(n, of) and waits_for(n, of))


@given(RANKS)
def test_a_verdict_needs_its_time_and_names_no_rank_that_works(ranks: list[Rank]) -> None:
    found = graph(*ranks)
    assert found.overdue(0.0) is None
    assert found.overdue(1.0) is None, "no deadline has passed yet"
    finding = found.overdue(5.1)
    assert (finding is not None) == any(stuck(n, found.ranks) or lags(n, found.ranks) for n in range(len(ranks)))
    if finding is not None and finding.culprit >= 0:
        assert ranks[finding.culprit][0] in ("waiting", "done")


def test_progress_sets_the_clock_back_and_waiting_suspends_it() -> None:
    clock, page = WorkClock(1, {"steady": 1.0, "slow": 9.0}, 0.0), Page()

    def at(now: float, **odd: bool) -> bool:
        return clock.look(page, stopped=odd.get("stopped", False), paused=odd.get("paused", False), now=now) is not None

    assert [at(0.0), at(0.9), at(1.1)] == [False, False, True]
    page.counter += 1
    assert [at(1.2), at(2.1), at(2.3)] == [False, False, True]
    page.waiting = EVERYONE
    assert [at(2.4), at(50.0)] == [False, False]
    assert [at(50.1, stopped=True), at(51.0, stopped=True), at(51.2, stopped=True)] == [False, False, True]
    page.waiting = NOBODY
    assert [at(60.0, paused=True), at(90.0, paused=True), at(90.1), at(90.9), at(91.2)] == [*[False] * 4, True]
    page.phase = "slow"
    assert [at(95.0), at(99.2)] == [False, True]
    page.deadline = 20.0
    assert at(100.0) is False


def test_a_rank_is_charged_while_its_page_is_torn_whatever_it_said_before() -> None:
    guardian, _ = watching(1, 0)
    guardian.child = Living()
    guardian.local = WorkClock(1, {"steady": 1.0}, 0.0)
    beat = Beat(guardian.memory)
    beat.phase("steady")
    beat.enter()
    guardian._read_page(0.0)
    guardian._read_page(50.0)
    assert not guardian.findings, "it waits"
    guardian.memory[0] ^= 1
    guardian._read_page(50.0)
    guardian._read_page(50.9)
    assert not guardian.findings
    guardian.memory[SLOT] ^= 1  # neither slot can be read
    guardian._read_page(51.2)
    assert guardian.findings[0][2].what == "rank1 made no progress for 1.2 s in phase steady (deadline 1 s)"


def test_rank0_is_sent_that_a_rank_whose_page_is_torn_does_not_wait() -> None:
    guardian, _ = watching(1, 0)
    guardian.child, guardian.local = Living(), WorkClock(1, {"steady": 1.0}, 0.0)
    sent: list[object] = []
    guardian.links.send = lambda rank, kind, fields: sent.append(fields["waiting"])
    beat = Beat(guardian.memory)
    beat.enter()
    beat.progress()  # both slots say that it waits
    guardian._read_page(0.0)
    guardian._read_page(5.0)
    guardian.memory[0] ^= 1
    guardian._read_page(10.0)
    assert sent[-1] == NOBODY
    assert EVERYONE in sent


def test_where_a_rank_is_stopped_in_a_collective_nobody_else_lags_in_it() -> None:
    """A signal stopped it there; as it cannot wait, it has not left it either."""
    guardian, _ = watching(1, 0)
    guardian.child, guardian.local = Living(), WorkClock(1, {"steady": 1.0}, 0.0)
    sent: list[dict[str, object]] = []
    guardian.links.send = lambda rank, kind, fields: sent.append(fields)
    Beat(guardian.memory).enter()
    guardian.child.stopped = True
    guardian._read_page(0.0)
    guardian._read_page(1.0)
    found = graph(("waiting", EVERYONE, 1), ("working", NOBODY, 0))
    guardian.graph = found
    guardian._note(1, sent[-1])
    assert not lags(0, found.ranks)
    assert waits_for(0, found.ranks) == {1}
