"""Spin, given casts, groups, channels, cells, links and claims, must find what the reference engine finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import systems as s
from genlock.errors import ModelError
from genlock.model.claims import Claim, Fair, Invariant, LeadsTo, Sometimes
from genlock.model.promela.export import export
from genlock.model.semantics.network import Network
from genlock.model.semantics.query import Query
from genlock.model.semantics.whole import Whole
from genlock.model.tables import (
    By,
    Cell,
    Collective,
    Fifo,
    Kind,
    Link,
    Post,
    Protocol,
    Put,
    Receive,
    Role,
    Row,
    Scope,
    Send,
    Sent,
    Set,
    State,
    Take,
)
from repository import ROOT
from spin_search import agree, by_reference, fair_run, needs_spin, spin

READER_DIES, LOST, RAISES = ("crash", "rank1.READ"), ("lost", None), ("exception", None)
SYSTEMS: dict[str, tuple[Protocol, tuple[str, str | None] | None, int]] = {
    "1 torn": (s.shared_buffer(1, 2), None, 2),
    "1 ack, then clear": (s.shared_buffer(1, 2, "ack_then_clear"), None, 2),
    "1 mended": (s.shared_buffer(2, 1, "ack"), None, 3),
    "1 collectives only": (s.shared_buffer(1, 2, collectives=True), None, 2),
    "2": (s.early_return(), None, 3),
    "2 mended": (s.early_return(mended=True), None, 3),
    "3": (s.local_gate(), None, 2),
    "3 half a vote": (s.local_gate("subgroup"), None, 2),
    "3 mended": (s.local_gate("vote"), None, 2),
    "4": (s.ring(3), READER_DIES, 3),
    "4 mended": (s.ring(3, mended=True), READER_DIES, 4),
    "4 lost": (s.lost_wake_up(), LOST, 2),
    "4 looks again": (s.lost_wake_up(mended=True), LOST, 2),
    "5": (s.unread_failure(), RAISES, 3),
    "5 told": (s.unread_failure("error"), RAISES, 3),
    "5 mended": (s.unread_failure("kill"), RAISES, 3),
    "6": (s.slow_isend(ranks=3), None, 3),
    "6 eager": (s.slow_isend("eager"), None, 2),
    "6 blocking": (s.slow_isend("blocking", 3), None, 3),
    "7": (s.overtaken_pause(), None, 4),
    "7 ignored": (s.overtaken_pause("ignore"), None, 4),
    "7 mended": (s.overtaken_pause("two_phases"), None, 4),
    "8": (s.uneven_inputs(), None, 3),
    "8 no_sync": (s.uneven_inputs("join", no_sync=True), None, 2),
    "8 mended": (s.uneven_inputs("join"), None, 3),
    "8 vote": (s.uneven_inputs("join", no_sync=True, vote=True), None, 2),
    "9": (s.exchange(), None, 2),
    "9 a ring": (s.send_ring(4), None, 4),
    "9 a buffer": (s.exchange(buffer=1), None, 2),
    "9 by parity": (s.send_ring(4, odd_first=True), None, 4),
    "10 of two": (s.two_groups(2, 1), None, 2),
    "10": (s.two_groups(2, 2), None, 4),
    "10 mended": (s.two_groups(2, 2, "one"), None, 4),
    "10 left out": (s.two_groups(2, 2, "left_out"), None, 4),
    "11": (s.flag_barrier(), None, 2),
    "11 mended": (s.flag_barrier(mended=True), None, 2),
    "12": (s.two_threads(), None, 6),
    "12 mended": (s.two_threads(mended=True), None, 6),
}
EVERY_DAY = ("4 lost", "5 mended", "6 eager", "10 of two")


def network(name: str) -> Network:
    protocol, fault, ranks = SYSTEMS[name]
    points, faults = ((), 0) if fault is None else ((fault,), 1)
    return Query(protocol.name, Scope(ranks), given=protocol, faults=faults, fault_points=points).network()


def marked(names: Sequence[str], every_day: Sequence[str]) -> Iterator[object]:
    for name in names:
        yield pytest.param(name, marks=[] if name in every_day else [pytest.mark.slow])


@needs_spin
@pytest.mark.parametrize("name", list(marked(list(SYSTEMS), EVERY_DAY)))
def test_a_system_has_the_states_that_the_reference_engine_finds(name: str, tmp_path: Path) -> None:
    agree(network(name), tmp_path)


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "5 told", "6 eager", "8", "9", "10 of two"])
@pytest.mark.parametrize("kind", ["crash", "stall"])
def test_and_so_it_has_with_a_fault(name: str, kind: str, tmp_path: Path) -> None:
    protocol, _, ranks = SYSTEMS[name]
    agree(Query(protocol.name, Scope(ranks), given=protocol, fault_points=((kind, None),)).network(), tmp_path)


# ── that the comparison can fail ────────────────────────────────────────────────────────────────────


def line(name: str, rank: int, *rows: Row) -> Role:
    """A role of one rank, whose rows are taken one after the other; a row with a state of its own comes beside."""
    names = [f"S{n}" for n in range(sum(not row.state for row in rows))]
    onward, placed = iter(zip(names, [*names[1:], "END"], strict=True)), []
    for row in rows:
        at, after = (row.state, row.target) if row.state else next(onward)
        placed.append(replace(row, state=at, target=after))
    found = (*(State(n, "") for n in names), State("END", "", terminal=True))
    return Role(name, "S0", found, tuple(placed), ranks=lambda scope: (rank,))


def row(event: str, **how: Any) -> Row:
    return Row("", event, "", **how)


def one(v: Any) -> int:
    return 1


REDUCE = Collective("reduce", Kind.ALL_REDUCE, "g", None, "int64", "1", "")
PIPE, WIRE = Fifo("pipe", 1), Link("wire")
TINY: dict[str, tuple[tuple[Role, ...], dict[str, Any]]] = {
    "given up": ((line("r0", 0, row("reduce", op=REDUCE), row("again", op=REDUCE),
                       Row("S0", "gives_up", "S1", By.ENVIRONMENT, interrupts=True)),
                  line("r1", 1, row("reduce", op=REDUCE), row("again", op=REDUCE))), {"schedule": (REDUCE,)}),
    "filled": ((line("r0", 0, *(row(f"put{n}", gate=Put(PIPE), send=one) for n in range(3))),
                line("r1", 1, *(row(f"take{n}", gate=Take(PIPE)) for n in range(3)))), {"shared": (PIPE,)}),
    "posted": ((line("r0", 0, row("post", gate=Post(WIRE, one), send=one), row("wait", gate=Sent(WIRE, one))),
                line("r1", 1, row("go"), row("receive", gate=Receive(WIRE, lambda v: 0)))), {"shared": (WIRE,)}),
}  # fmt: skip
"""Protocols of a few rows, each about one word."""


def tiny(name: str) -> Network:
    roles, more = TINY[name]
    protocol = Protocol(name.replace(" ", "_"), "1", cast=roles, ranks=2, **more)
    return Query(protocol.name, Scope(2), given=protocol, faults=0).network()


WRONG = {
    "a kill leaves nothing behind": ("given up", "walk_out_of(WAITS[from] - 1, me)", "skip"),
    "a send waits for its message to be taken": (
        "9 by parity",
        "UNASKED(ITS_WAY(me)) <= BUFFER",
        "sent[ITS_WAY(me)] <= BUFFER",
    ),
    "groups know of each other": ("10 left out", "(LIST[(g) * R + (m)] == LIST[(g) * R + (me)])", "1"),
    "last in, first out": ("12", "box[m] = box[m + 1]", "skip"),
    "a full channel takes more": ("filled", "fill[PLACE_AT(n, me)] < CAPACITY[PLACE_AT(n, me)]", "1"),
    "what came and went was seen": ("11", "board[PLACE_AT(n, me)] == ITEM[n]", "1"),
    "a wait does not ask for receives": ("posted", "UNASKED(WAY_AT(n, me)) <= 0", "1"),
}


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_word_has_the_states_that_the_reference_engine_finds(name: str, tmp_path: Path) -> None:
    agree(tiny(name), tmp_path)


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_is_wrong_is_noticed(name: str, tmp_path: Path) -> None:
    system, right, edited = WRONG[name]
    searched = tiny(system) if system in TINY else network(system)
    model, reference = export(searched).model, by_reference(searched)
    assert right in model
    try:
        found = spin(model.replace(right, edited), tmp_path, 20 * reference.states)
    except AssertionError:  # it runs out of its arrays
        return
    assert found != reference


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────

TWO_PHASE = str(ROOT / "examples" / "two_phase_commit.py")


@needs_spin
@pytest.mark.parametrize("impatient", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_phase_commit_is_judged_alike(impatient: bool, tmp_path: Path) -> None:
    asked = Query(TWO_PHASE, Scope(), params={"impatient": str(impatient)}, faults=0).network()
    found = agree(asked, tmp_path)
    assert ("claim_atomic" in found.sorts) is impatient
    assert {"claim_committed", "claim_decided_when"} <= found.sorts
    assert not fair_run(export(asked), "decided", tmp_path)


RUNS, DONE = State("RUNS", ""), State("DONE", "", terminal=True)
GO, AROUND, ASKED = (
    Row("RUNS", "go", "DONE"),
    Row("RUNS", "around", "RUNS"),
    Row("RUNS", "asked", "DONE", By.ENVIRONMENT),
)


def is_done(whole: Whole) -> bool:
    return whole.state(0) == "DONE"


def pair(first: Sequence[Row], second: Sequence[Row], *made: Claim, **more: Any) -> Network:
    def only(rank: int) -> Callable[[Scope], Any]:
        return lambda scope: (rank,)

    roles = (
        Role("one", "RUNS", (RUNS, DONE), tuple(first), ranks=only(0)),
        Role("other", "RUNS", (RUNS, DONE), tuple(second), ranks=only(1)),
    )
    protocol = Protocol("pair", "1", cast=roles, claims=made, ranks=2, **more)
    return Query("pair", Scope(2), given=protocol, faults=0).network()


BROADCAST = Collective("b", Kind.BROADCAST, "g", 0, "int64", "1", "")
FAIR: list[tuple[Sequence[Row], Sequence[Row], Fair]] = [
    ([GO], [GO], Fair.RANKS),
    ([GO], [GO, AROUND], Fair.PROGRESS),
    ([GO, AROUND], [GO], Fair.RANKS),
    ([GO], [AROUND, GO], Fair.RANKS),
    ([ASKED], [GO], Fair.RANKS),
    ([ASKED, GO], [GO], Fair.RANKS),
    ([replace(GO, op=BROADCAST)], [replace(ASKED, op=BROADCAST)], Fair.RANKS),
    ([replace(GO, op=BROADCAST)], [replace(GO, op=BROADCAST)], Fair.RANKS),
]


@needs_spin
@pytest.mark.parametrize("number", list(marked(range(len(FAIR)), (1,))))  # type: ignore[arg-type]
def test_a_fair_run_is_what_it_is_in_genlock(number: int, tmp_path: Path) -> None:
    first, second, fair = FAIR[number]
    schedule = (BROADCAST,) if first[0].op else ()
    claim = LeadsTo("done", "", lambda whole: True, is_done, fair)
    written = export(pair(first, second, claim, schedule=schedule))
    assert fair_run(written, "done", tmp_path) is not written.leads_to["done"]


@needs_spin
@pytest.mark.slow
def test_a_claim_may_ask_about_all_that_is_shared(tmp_path: Path) -> None:
    def a_cell(whole: Whole) -> bool:
        return not (whole.state(2) == "END" and whole.held(error))

    def a_channel(whole: Whole) -> bool:
        return len(whole.held(command, 2)) == 2 and whole.held(command, 2)[0] == "call"

    protocol = s.unread_failure("kill")
    command, error = (next(c for c in protocol.shared if c.name == name) for name in ("cmd", "err"))
    assert isinstance(command, Fifo)
    assert isinstance(error, Cell)
    mine = (Invariant("told", "", a_cell), Sometimes("full", "", a_channel))
    asked = Query("x", Scope(3), given=replace(protocol, claims=mine), fault_points=(RAISES,)).network()
    assert "claim_full" in agree(asked, tmp_path).sorts


def test_what_spin_cannot_be_asked_is_refused_by_name() -> None:
    link = Link("wire")

    def asks_a_link(whole: Whole) -> bool:
        return not whole.held(link, (0, 1)).messages

    claim = Invariant("silent", "", asks_a_link)
    with pytest.raises(ModelError, match="claim `silent`: a claim asks what is on link `wire`"):
        export(pair([GO], [GO], claim, shared=(link,)))
    at_first = Sometimes("begins", "", lambda whole: whole.states == ("RUNS", "RUNS"))
    with pytest.raises(ModelError, match="claim `begins` is decided by the state at the start"):
        export(pair([GO], [GO], at_first))


def test_a_cell_holds_at_first_what_it_says() -> None:
    cell = Cell("c", 3)
    written = export(pair([replace(GO, gate=Set(cell), send=lambda v: 3)], [GO], shared=(cell,)))
    assert "board[CELLS] = { 1 }" in written.model


@needs_spin
@pytest.mark.slow
def test_ends_of_receives_and_of_collectives_do_not_mix(tmp_path: Path) -> None:
    gather = Collective("all", Kind.ALL_GATHER, "g", None, "int64", "1", "")
    roles = (
        line("r0", 0, row("send", gate=Send(WIRE, one), send=one), row("all", op=gather, send=one)),
        line("r1", 1, row("receive", gate=Receive(WIRE, lambda v: 0)), row("all", op=gather, send=one)),
    )
    protocol = Protocol("mixed", "1", cast=roles, ranks=2, schedule=(gather,), shared=(WIRE,))
    agree(Query("mixed", Scope(2), given=protocol, faults=0).network(), tmp_path)
