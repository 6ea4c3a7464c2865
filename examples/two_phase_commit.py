"""Two-phase commit: all commit, or all abort, whatever happens to any of them. Is it so?

The coordinator (rank0) asks each participant for its vote, decides, and tells each of them. A participant that has
voted yes is prepared: from then on it may do nothing but wait for the decision.

    genlock check examples/two_phase_commit.py
    genlock check examples/two_phase_commit.py --param impatient=yes     # exit 1: not atomic

An impatient participant aborts by itself while it is prepared, as one does that gives up after a time-out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from genlock import By, Invariant, LeadsTo, Protocol, Put, Role, Row, Scope, Slot, Sometimes, State, Take, Whole

VOTE, DECISION = Slot("vote"), Slot("decision")
YES, NO = "yes", "no"


@dataclass(frozen=True)
class V:
    """`worker`: whose turn it is, from 1. `word`: one's own vote, or the decision so far."""

    worker: int = 1
    word: str = YES


def whose(v: V) -> int:
    return v.worker


def word(v: V) -> str:
    return v.word


def either(v: V, scope: Scope) -> Iterable[str]:
    return (YES, NO)


def vote(v: V, data: str) -> V:
    return replace(v, word=data)


def says_yes(v: V, data: str) -> bool:
    """the decision is yes"""
    return data == YES


def says_no(v: V, data: str) -> bool:
    """the decision is no"""
    return data == NO


def voted_yes(v: V, data: object) -> bool:
    """it has voted yes"""
    return v.word == YES


def count(v: V, data: str) -> V:
    return V(v.worker + 1, v.word if data == YES else NO)


def told(v: V, data: object) -> V:
    return replace(v, worker=v.worker + 1)


def start(finite: bool) -> V:
    return V()


def protocol(participants: int = 2, impatient: bool = False) -> Protocol:
    """`impatient`: a participant that is prepared may abort by itself."""

    def more(v: V, data: object) -> bool:
        """there is a participant after this one"""
        return v.worker < participants

    def last(v: V, data: object) -> bool:
        """this is the last participant"""
        return v.worker == participants

    def decide(v: V, data: str) -> V:
        return replace(count(v, data), worker=1)

    def outcomes(whole: Whole) -> set[str]:
        return {whole.state(rank) for rank in whole.playing("participant")}

    def is_atomic(whole: Whole) -> bool:
        return not {"COMMITTED", "ABORTED"} <= outcomes(whole)

    def all_commit(whole: Whole) -> bool:
        return outcomes(whole) == {"COMMITTED"}

    def all_prepared(whole: Whole) -> bool:
        return outcomes(whole) == {"PREPARED"}

    def all_decided(whole: Whole) -> bool:
        return outcomes(whole) <= {"COMMITTED", "ABORTED"} or any(map(whole.failed, whole.ranks))

    ends = (State("COMMITTED", "end", terminal=True), State("ABORTED", "end", terminal=True))
    dead = State("DEAD", "end", terminal=True, failed=True)
    coordinator = (
        Row("COLLECT", "count", "COLLECT", gate=Take(VOTE, whose), guards=(more,), effect=count),
        Row("COLLECT", "decide", "TELL", gate=Take(VOTE, whose), guards=(last,), effect=decide),
        Row("TELL", "tell", "TELL", gate=Put(DECISION, whose), send=word, guards=(more,), effect=told),
        Row("TELL", "tell_last", "DONE", gate=Put(DECISION, whose), send=word, guards=(last,), commits=True),
        *(Row(state, "peer_lost", "DEAD", By.DETECTION) for state in ("COLLECT", "TELL")),
    )
    participant = (
        Row("WORKING", "choose", "VOTING", choices=either, effect=vote),
        Row("VOTING", "vote", "PREPARED", gate=Put(VOTE), send=word, commits=True),
        Row("PREPARED", "commit", "COMMITTED", gate=Take(DECISION), guards=(says_yes,)),
        Row("PREPARED", "abort", "ABORTED", gate=Take(DECISION), guards=(says_no,)),
        *((Row("PREPARED", "gives_up", "ABORTED", guards=(voted_yes,)),) if impatient else ()),
        *(Row(state, "peer_lost", "DEAD", By.DETECTION) for state in ("WORKING", "VOTING", "PREPARED")),
    )
    collects = (State("COLLECT", "vote"), State("TELL", "decide"), State("DONE", "end", terminal=True), dead)
    works = (State("WORKING", "vote"), State("VOTING", "vote"), State("PREPARED", "decide"), *ends, dead)
    return Protocol(
        "two_phase_commit",
        "1",
        Role("coordinator", "COLLECT", collects, coordinator, start),
        Role("participant", "WORKING", works, participant, start),
        schedule=(),
        slots=(VOTE, DECISION),
        ranks=participants + 1,
        may_be_unreached=("COLLECT.count", "TELL.tell") if participants == 1 else (),
        claims=(
            Invariant("atomic", "no participant commits while another aborts", is_atomic),
            Sometimes("committed", "all participants commit", all_commit),
            LeadsTo("decided", "all that are prepared come to commit or abort", all_prepared, all_decided),
        ),
    )
