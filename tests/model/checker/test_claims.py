"""What a protocol claims of its own: judged alike on every engine, told everywhere, and refused where it cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import msgspec
import pytest
from genlock.errors import ModelError, UsageError
from genlock.model.checker import claims
from genlock.model.checker.engine import NUMBA, NUMPY, REFERENCE
from genlock.model.checker.parametric.prove import prove
from genlock.model.checker.reference import Edge, components
from genlock.model.checker.report import Answer, Report, run_check
from genlock.model.claims import Claim, Fair, Invariant, LeadsTo, Sometimes
from genlock.model.semantics.query import Query
from genlock.model.semantics.whole import Whole
from genlock.model.tables import By, Collective, Kind, Protocol, Role, Row, Scope, Slot, State, Take, validate
from repository import ROOT

ENGINES = (REFERENCE, NUMPY, *((NUMBA,) if find_spec("numba") else ()))
TWO_PHASE = str(ROOT / "examples" / "two_phase_commit.py")


def two_phase(impatient: bool, **how: Any) -> Report:
    return run_check(Query(TWO_PHASE, Scope(), params={"impatient": str(impatient)}), **how)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_phase_commit_is_atomic_unless_a_prepared_participant_aborts(engine: str) -> None:
    assert two_phase(False, engine=engine).verdict is Answer.HOLDS
    broken = two_phase(True, engine=engine)
    assert broken.verdict is Answer.VIOLATED
    assert [v.property.name for v in broken.result.verdicts if not v.holds] == ["atomic"]
    example = broken.counterexample
    assert example is not None
    assert (example.claim, len(example.steps), example.steps[-1].event) == ("atomic", 9, "gives_up")


def test_claims_are_told_in_text_json_and_junit() -> None:
    report = two_phase(True, engine=REFERENCE)
    assert "VIOLATED  atomic" in report.as_text()
    told = {p["name"]: (p["kind"], p["holds"]) for p in report.as_json()["properties"]}
    assert told["atomic"] == ("always", False)
    assert told["committed"] == ("sometimes", True)
    assert told["decided"] == ("eventually", True)
    assert 'name="atomic"' in report.as_junit()


def test_a_claim_is_chosen_by_its_name() -> None:
    report = two_phase(True, properties=("decided", "decided.when"), engine=REFERENCE)
    assert [v.property.name for v in report.result.verdicts] == ["decided", "decided.when"]
    assert report.verdict is Answer.HOLDS
    with pytest.raises(UsageError, match=r"no property `atomix`.*atomic"):
        two_phase(True, properties=("atomix",))
    with pytest.raises(UsageError, match="no property `epoch_fence`: two_phase_commit has not what it speaks of"):
        two_phase(True, properties=("epoch_fence",))


def test_an_unfinished_search_tells_the_invariants_that_it_saw_violated() -> None:
    whole = two_phase(True, engine=REFERENCE)
    first = whole.result.verdict("atomic").state
    assert first is not None
    ended = two_phase(True, engine=REFERENCE, max_states=first + 1)
    assert (ended.result.stopped is None, ended.verdict) == (False, Answer.VIOLATED)
    assert two_phase(False, engine=REFERENCE, max_states=20).verdict is Answer.UNKNOWN


# ── what must come in the end ───────────────────────────────────────────────────────────────────────

RUNS, DONE = State("RUNS", ""), State("DONE", "", terminal=True)
GO = Row("RUNS", "go", "DONE")
AROUND = Row("RUNS", "around", "RUNS")
ASKED = Row("RUNS", "asked", "DONE", By.ENVIRONMENT)


def at(rank: int, state: str) -> Callable[[Whole], bool]:
    def is_at(whole: Whole) -> bool:
        return whole.state(rank) == state

    return is_at


def always(whole: Whole) -> bool:
    return True


def done(rank: int, fair: Fair = Fair.RANKS) -> LeadsTo:
    return LeadsTo("done", "it comes to its end", always, at(rank, "DONE"), fair)


def pair(driver: Sequence[Row], worker: Sequence[Row], *made: Claim, **more: Any) -> Protocol:
    def role(name: str, rows: Sequence[Row]) -> Role:
        return Role(name, "RUNS", (RUNS, DONE), tuple(rows), lambda finite: None)

    return Protocol("pair", "1", role("rank0", driver), role("worker", worker), (), claims=made, ranks=2, **more)


def checked(protocol: Protocol, **how: Any) -> Report:
    return run_check(Query(protocol.name, Scope(ranks=2), faults=0, given=validate(protocol)), **how)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("driver", "worker", "fair", "holds"),
    [
        ([GO], [GO], Fair.RANKS, True),
        ([GO], [GO, AROUND], Fair.RANKS, True),  # the worker goes round, and rank0 goes on beside it
        ([GO], [GO, AROUND], Fair.PROGRESS, False),  # somebody goes on: it may be the worker, for ever
        ([GO, AROUND], [GO], Fair.RANKS, False),  # rank0 goes round itself
        ([ASKED], [GO], Fair.RANKS, False),  # nobody need ask
        ([ASKED, GO], [GO], Fair.RANKS, True),
    ],
)
def test_what_a_fair_run_comes_to(
    engine: str, driver: Sequence[Row], worker: Sequence[Row], fair: Fair, holds: bool
) -> None:
    report = checked(pair(driver, worker, done(0, fair)), engine=engine, properties=("done",))
    assert report.result.verdict("done").holds is holds
    if not holds:
        assert report.counterexample is not None
        assert report.counterexample.then


def test_what_only_may_complete_is_not_owed() -> None:
    """The root of a broadcast may leave before the worker has come; nothing says that it will."""
    op = Collective("b", Kind.BROADCAST, "g", 0, "int64", "1", "")
    send, take = Row("RUNS", "send", "DONE", op=op), Row("RUNS", "take", "DONE", By.ENVIRONMENT, op=op)
    protocol = replace(pair([send], [take], done(0)), schedule=(op,))
    report = checked(protocol, engine=REFERENCE, properties=("done",))
    assert not report.result.verdict("done").holds
    assert report.counterexample is not None
    assert "nothing that is owed can happen" in report.counterexample.summary


def test_a_run_that_violates_begins_with_what_the_claim_speaks_of() -> None:
    """rank0 goes on to a state from which the worker is left alone: the run leads there through `when`."""
    slot = Slot("word")
    never = Row("RUNS", "take", "DONE", gate=Take(slot))
    claim = LeadsTo("followed", "the worker follows", at(0, "DONE"), at(1, "DONE"))
    report = checked(pair([GO], [never], claim, slots=(slot,)), engine=REFERENCE, properties=("followed",))
    example = report.counterexample
    assert example is not None
    assert [step.event for step in example.steps] == ["go"]
    assert example.stuck == () or example.stuck[0].rank == 1


def test_a_component_is_judged_as_its_best_part_would_be() -> None:
    """Weak fairness needs only the largest components: held against every strongly connected set of states."""
    dice = random.Random(7)
    for _ in range(300):
        nodes = range(dice.randint(2, 5))
        owed = {
            n: [(dice.choice([None, (0, False), (1, False)]), dice.choice(nodes)) for _ in range(dice.randint(0, 3))]
            for n in nodes
        }
        edges = [[Edge(0, target, True, True, False, False) for _, target in owed[n]] for n in nodes]
        found = any(claims._stays(c, owed) for c in components(edges, list(nodes), set(nodes)))
        sets = (s for size in nodes for s in combinations(nodes, size + 1))
        assert found == any(_connected(s, owed) and claims._stays(s, owed) for s in sets)


def _connected(part: Sequence[int], owed: dict[int, list[tuple[Any, int]]]) -> bool:
    def reached(start: int) -> set[int]:
        seen, todo = {start}, [start]
        while todo:
            fresh = {t for _, t in owed[todo.pop()] if t in part} - seen
            seen |= fresh
            todo += fresh
        return seen

    return all(reached(n) == set(part) for n in part)


# ── vacuity, and what is refused ────────────────────────────────────────────────────────────────────


def test_what_is_never_seen_makes_a_protocol_vacuous() -> None:
    never = LeadsTo("never", "nothing", at(0, "NOWHERE"), always)
    report = checked(pair([GO], [GO], never), engine=REFERENCE)
    assert report.result.verdict("never").holds
    assert report.verdict is Answer.VACUOUS
    assert "NEVER REACHED  never.when" in report.as_text()
    assert checked(pair([GO], [GO], never), engine=REFERENCE, allow_unreached=("never.when",)).holds
    unseen = Sometimes("unseen", "nothing", at(0, "NOWHERE"))
    assert checked(pair([GO], [GO], unseen), engine=REFERENCE).verdict is Answer.VACUOUS


def raises(whole: Whole) -> bool:
    raise KeyError("x")


def says_nothing(whole: Whole) -> bool:
    return None  # type: ignore[return-value]


def asks_after_the_end(whole: Whole) -> bool:
    return whole.vars(0) is None


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (Invariant("i", "", raises), "pair, claim `i`: `raises` raised KeyError: 'x'"),
        (Invariant("i", "", says_nothing), "claim `i`: `says_nothing` returned None"),
        (Invariant("i", "", lambda whole: whole.state(2) == ""), "claim `i`: there is no rank2 among 2 ranks"),
        (Invariant("i", "", lambda whole: not whole.playing("x")), "no rank plays `x`; roles: rank0, worker"),
        (Invariant("i", "", lambda whole: whole.held(Slot("s"), 1) == 0), "there is no slot `s`"),
        (Invariant("no_stranding", "", always), "as a property is that every protocol may have"),
        (Invariant("a b", "", always), "`a b` is no name of a claim"),
        (Invariant("i", "", 3), "`holds` of claim `i` is no function"),  # type: ignore[arg-type]
        (3, "3 is no claim"),
    ],
)
def test_a_claim_that_makes_no_sense_is_one_line(claim: Any, said: str) -> None:
    with pytest.raises(ModelError) as found:
        checked(pair([GO], [GO], claim), engine=REFERENCE)
    assert said in str(found.value)


def test_variables_that_are_gone_are_no_answer() -> None:
    slot = Slot("s")
    claim = Invariant("i", "", lambda whole: whole.vars(0) == 1)
    ending = Role("rank0", "RUNS", (RUNS, DONE), (GO,), lambda finite: 1)
    gone = replace(pair([GO], [GO], claim, slots=(slot,)), driver=ending)
    with pytest.raises(ModelError, match="rank0 is DONE and has no variables any more; let the protocol `keeps` them"):
        checked(gone, engine=REFERENCE)
    assert checked(replace(gone, keeps=True), engine=REFERENCE).holds


def test_two_claims_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two claims are called `i`"):
        validate(pair([GO], [GO], Invariant("i", "", always), Sometimes("i", "", always)))


@pytest.mark.parametrize("flag", ["symmetry", "reduction"])
def test_states_that_others_stand_for_are_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=f"--{flag} on: `atomic` is a claim of the protocol's own"):
        two_phase(False, **{flag: "on"})


def test_what_cannot_judge_claims_refuses_them() -> None:
    claim = Invariant("i", "", always)
    free = replace(pair([GO], [GO], claim), ranks=None)
    with pytest.raises(ModelError, match="its claim `i` is about the ranks that there are"):
        prove(Query("pair", Scope(), given=free))


def test_the_json_follows_its_schema() -> None:
    schema = ROOT / "docs" / "check.schema.json"
    validate = pytest.importorskip("jsonschema").validate
    partial(validate, schema=msgspec.json.decode(schema.read_bytes()))(two_phase(True, engine=REFERENCE).as_json())
