"""Each case of blame in traces of a protocol: what it asks for, whom it names, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import corpus
import msgspec
import pytest
from genlock.conformance.diagnosis import Divergence, Observation, Seen, Strength
from genlock.conformance.protocol.blame import MISSED, WHOSE, Broken, Missed
from genlock.conformance.protocol.diagnose import diagnose, protocol_of
from genlock.conformance.protocol.match_ranks import UnlikePart, match
from genlock.conformance.protocol.replay_rank import RankReplay, replay_rank
from genlock.errors import Code, Difference
from genlock.traces.format import End, Trace
from genlock.traces.outcome import Outcome

CULPRIT, SUSPECT = Strength.CULPRIT, Strength.SUSPECT
HEALTHY = "healthy/three-ranks"
COMPILE = Difference("compile", (2,), ("on",), "off")


def replays(traces: Sequence[Trace]) -> dict[int, RankReplay]:
    protocol = protocol_of(traces)
    return {trace.rank: replay_rank(trace, protocol) for trace in traces}


def whose(found: Divergence, world: int = 3) -> tuple[str, Strength, tuple[int, ...]]:
    traces = [
        msgspec.structs.replace(t, header=msgspec.structs.replace(t.header, world=world))
        for t in corpus.traces(HEALTHY)
    ]
    return told(WHOSE.first(Broken(found, replays(traces))))


def told(named: Sequence[tuple[int, Strength, str]]) -> tuple[str, Strength, tuple[int, ...]]:
    (case, strength) = {(case, strength) for _, strength, case in named}.pop()
    return case, strength, tuple(rank for rank, _, _ in named)


def at(transition: str, *differences: Difference, code: Code = Code.PARITY, rank: int = 1) -> Divergence:
    outcome = Outcome(code, text="some words", differences=differences)
    facts = Observation(Seen.MOVE, transition, "step", outcome)
    return Divergence(rank, 2, 0, 1, "ack", None, 1, "HEADER_CHECK", "seen", (), "some words", facts=facts)


def odd(*accused: int, transition: str = "generate") -> UnlikePart:
    facts = Observation(Seen.MOVE, transition, "enter")
    return UnlikePart(accused[0], 2, 0, 1, "ack", None, 1, "ACK", "seen", (), "", facts=facts, accused=accused)


def test_left_its_table() -> None:
    assert whose(at("generate", code=Code.MOVE)) == ("left-its-table", CULPRIT, (1,))


def test_unlike_the_majority() -> None:
    assert whose(odd(2)) == ("unlike-the-majority", CULPRIT, (2,))


def test_unlike_each_other() -> None:
    assert whose(odd(0, 1)) == ("unlike-each-other", SUSPECT, (0, 1))


def test_changed_weights() -> None:
    ranks = replays(corpus.traces(HEALTHY))
    changed = Difference("ack.weights_fingerprint", (1,), ("3",), "4")
    ranks[0] = replace(ranks[0], failure=at("acks_differ", changed, code=Code.ACKS, rank=0))
    named = WHOSE.first(Broken(odd(0, 1, transition="send_ack"), ranks))
    assert told(named) == ("changed-weights", CULPRIT, (1,))


def test_named_by_a_comparison() -> None:
    assert whose(at("parity_differs", COMPILE)) == ("named-by-a-comparison", CULPRIT, (2,))


def test_tied_comparison() -> None:
    """Of two ranks, or where two hold the same shard: one of them is innocent."""
    assert whose(at("parity_differs", COMPILE), 2) == ("tied-comparison", SUSPECT, (0, 1))
    shared = Difference("weights_shard", (1, 2), alike=True)
    assert whose(at("parity_differs", shared), 9) == ("tied-comparison", SUSPECT, (1, 2))


@pytest.mark.parametrize(
    ("kept", "case", "strength", "ranks"),
    [((0, 1, 2), "sender", CULPRIT, (0,)), ((1,), "sender-or-receiver", SUSPECT, (0, 1))],
)
def test_sender_and_sender_or_receiver(
    kept: tuple[int, ...], case: str, strength: Strength, ranks: tuple[int, ...]
) -> None:
    """Rank1 rejects the header that it was given; without the others' traces it may have got lost on the way."""
    traces = [t for t in corpus.traces(HEALTHY) if t.rank in kept]
    cut = replays(traces)
    headers = [m for m in cut[1].meetings if m.row.event == "receive_header"]
    upto = cut[1].meetings.index(headers[0]) + 1
    cut[1] = replace(cut[1], meetings=cut[1].meetings[:upto])
    named = WHOSE.first(Broken(at("reject_header", code=Code.MESSAGE), cut))
    assert told(named) == (case, strength, ranks)


# ── nobody left its table ───────────────────────────────────────────────────────────────────────────────


def stopped(lines: Mapping[int, int], ends: Mapping[int, End | None]) -> list[Trace]:
    """The healthy run, of which each rank's file has so many lines, and an end or none."""
    found = []
    for trace in corpus.traces(HEALTHY):
        kept = trace.lines[: lines[trace.rank]]
        end = ends.get(trace.rank)
        whole = (*kept, *([msgspec.structs.replace(end, index=len(kept))] if end else []))
        found.append(msgspec.structs.replace(trace, lines=whole, numbers=tuple(range(2, len(whole) + 2))))
    return found


def missed(traces: Sequence[Trace]) -> tuple[str, Strength, tuple[int, ...]]:
    ranks = replays(traces)
    noticed = [r.failure for r in ranks.values() if r.failure]
    return told(MISSED.first(Missed(noticed, ranks, match(ranks))))


def in_call() -> dict[int, int]:
    """Rank to how many lines it has where it has just issued its first call; rank1 not yet."""
    return {
        trace.rank: next(n for n, e in enumerate(trace.events) if e.transition == "generate") + (trace.rank != 1)
        for trace in corpus.traces(HEALTHY)
    }


LOST, LATE = End(0, 0, "peer_lost", 12, "a peer is gone"), End(0, 0, "deadline", 13, "it took too long")


def test_named_by_a_guardian() -> None:
    blamed = End(0, 0, "peer_lost", 12, "rank1 is gone", culprit=1)
    assert missed(stopped(in_call(), {0: blamed, 2: LOST})) == ("named-by-a-guardian", CULPRIT, (1,))


def test_root_of_the_waits() -> None:
    assert missed(stopped(in_call(), {0: LOST, 1: LATE, 2: LOST})) == ("root-of-the-waits", CULPRIT, (1,))


def test_untraced_or_silent() -> None:
    traces = [t for t in stopped(in_call(), {0: LOST, 2: LOST}) if t.rank != 1]
    assert missed(traces) == ("untraced-or-silent", SUSPECT, (1,))
    found = diagnose(traces)
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), (1,))
    assert (found.missing[0].kind.value, found.missing[0].ranks) == ("recording", (1,))


def test_fell_silent_and_several_silent() -> None:
    """Rank1, which the others wait for, lost a peer itself; so it was left by one that wrote no end."""
    assert missed(stopped(in_call(), {0: LOST, 1: LOST})) == ("fell-silent", CULPRIT, (2,))
    assert missed(stopped(in_call(), {1: LOST})) == ("several-silent", SUSPECT, (0, 2))


def test_own_deadline() -> None:
    calls = in_call()
    past = {**calls, 1: calls[1] + 2}
    assert missed(stopped(past, {0: LOST, 1: LATE, 2: LOST})) == ("own-deadline", CULPRIT, (1,))


def test_every_case_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    cases = [case.name for table in (WHOSE, MISSED) for case in table.cases]
    assert [name for name in dict.fromkeys(cases) if f'"{name}"' not in text] == []
