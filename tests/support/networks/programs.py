"""Any protocol of a few rows, as a network, for tests that hold one search against another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from genlock.model.semantics.network import Network, Point
from genlock.model.tables import By, Collective, Kind, Meet, Protocol, Put, Role, Row, Scope, Slot, State, Take
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

TELL = Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", "")
SUM = Collective("sum", Kind.ALL_REDUCE, "h", None, "int64", "8", "")
SCHEDULE = (
    TELL,
    replace(TELL, name="twin"),
    Collective("back", Kind.BROADCAST, "g", 1, "int64", "8", ""),
    Collective("report", Kind.GATHER, "g", 0, "int64", "8", ""),
    SUM,
    replace(SUM, name="long", size="9"),
    Collective("all", Kind.ALL_GATHER, "h", None, "int64", "8", ""),
)
SLOTS = (Slot("x"), Slot("y"))
UNHURRIED = [HealthCheck.too_slow, HealthCheck.filter_too_much]


Draw = Callable[..., Any]


def same(v: int) -> int:
    return v


def nothing(v: int) -> None:
    return None


def is_zero(v: int, data: object) -> bool:
    return v == 0


def is_given(v: int, data: object) -> bool:
    return bool(data)


def flip(v: int, data: object) -> int:
    return 1 - v


def count(v: int, data: object) -> int:
    return len(data) % 2 if isinstance(data, frozenset) else int(bool(data))


def either(v: int, scope: Scope) -> tuple[int, int]:
    return (0, 1)


@st.composite
def rows(draw: Draw, driver: bool) -> list[Row]:
    """A few rows between A, B and C, and out of them to END and LOST."""

    def pick(*choices: object) -> Any:
        return draw(st.sampled_from(choices))

    found: dict[tuple[str, str], Row] = {}
    for n in range(draw(st.integers(2, 6))):
        row = Row(pick("A", "B", "C"), f"e{n}", pick("A", "B", "B", "C", "C", "END", "LOST"))
        worker = (lambda v: 1) if driver else None
        waits: dict[str, Any] = pick(
            *({"op": op, "send": send} for op in SCHEDULE for send in (same, nothing)),
            *({"gate": Put(slot, worker), "send": send} for slot in SLOTS for send in (same, nothing)),
            *({"gate": Take(slot, worker), "guards": guards} for slot in SLOTS for guards in ((), (is_given,))),
            {"gate": Meet()},
            {"by": By.FAULT, "fault": "exception"},
            {"choices": either, "guards": (is_zero,)},
        )
        row = replace(row, effect=pick(None, flip, count), syncs=pick(False, False, True), **waits)
        found[row.key] = row
    for state in "ABC":
        if draw(st.booleans()):
            found[state, "lost"] = Row(state, "lost", str(pick("LOST", "END")), By.DETECTION)
    if draw(st.booleans()):
        found["LOST", "abort"] = Row("LOST", "abort", "END")
    return reachable(found.values())


def reachable(table: Iterable[Row]) -> list[Row]:
    """The rows that can be taken, if nothing else stops them."""
    reached, table = {"A"}, list(table)
    while new := {row.target for row in table if row.state in reached} - reached:
        reached |= new
    return [row for row in table if row.state in reached]


def looks_away() -> Protocol:
    """Return a protocol whose workers wait for rank0 on their device, and then with their hosts for another collective.

    On a stream rank0 may have ended without the first one, which a worker detects only before it comes to wait in the
    second.
    """
    driver = [Row("A", "tell", "END", op=TELL, send=same), Row("A", "lost", "LOST", By.DETECTION)]
    worker = [
        Row("A", "sum", "B", op=SUM, send=same),
        Row("B", "tell", "END", op=TELL, send=same),
        *(Row(state, "lost", "LOST", By.DETECTION) for state in "AB"),
    ]
    roles = role("rank0", driver), role("worker", worker)
    return Protocol("looks_away", "1", *roles, (TELL, SUM), streams=("h",))


def role(name: str, table: list[Row]) -> Role:
    """It begins in A; a state that no row leaves is an end, and LOST has failed."""
    names = dict.fromkeys(("A", *(name for row in table for name in (row.state, row.target))))
    leaving = {row.state for row in table}
    states = tuple(State(n, "", terminal=n not in leaving, failed=n == "LOST") for n in names)
    return Role(name, "A", states, tuple(table), lambda finite: 0)


POINTS = st.sampled_from((None, frozenset({Point("A")}), frozenset({Point("B", 1)}), frozenset({Point("C", 0)})))
ALIKE = st.just({"crash": None, "exception": None})
KINDS = st.dictionaries(st.sampled_from(("crash", "stall", "exception")), POINTS)


def watched(table: list[Row]) -> list[Row]:
    """The rows, so that detection can end the rank in each state; who has failed stays so."""
    kept = [row for row in table if row.by is not By.DETECTION and row.state != "LOST"]
    kept = [replace(row, target="END") if row.op is not None and row.target == "LOST" else row for row in kept]
    return reachable([*kept, *(Row(state, "lost", "LOST", By.DETECTION) for state in "ABC")])


def told_apart(row: Row) -> bool:
    return isinstance(row.gate, Put | Take) or (row.op is not None and bool(row.op.root))


@st.composite
def networks(draw: Draw, alike: bool = False, ended: bool = False) -> Network:
    """Of two or three ranks, and not too many states. `alike`: nothing tells one worker from another. `ended`: once
    a rank has failed, detection ends every other."""
    tables: list[list[Row]] = [draw(rows(driver)) for driver in (True, False)]
    if alike:
        tables = [reachable(row for row in table if not told_apart(row)) for table in tables]
    if ended:
        tables = [watched(table) for table in tables]
    protocol = Protocol(
        "program", "1", role("rank0", tables[0]), role("worker", tables[1]),
        tuple(op for op in SCHEDULE if not (alike and op.root)),
        slots=SLOTS, counter=same, streams=("h",), keeps=draw(st.booleans()),
    )  # fmt: skip
    detection, stream, budget = ended or draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2))
    scope, kinds = Scope(draw(st.integers(2, 4 if alike else 3)), 1, 2), draw(ALIKE if alike else KINDS)
    network = Network(protocol, scope, faults=budget, kinds=kinds, detection=detection, stream=stream)
    seen = {network.initial()}
    stack = list(seen)
    while stack:
        new = {after for _, after in network.successors(stack.pop())} - seen
        seen |= new
        stack += new
        assume(len(seen) < 5000)
    assume(len(seen) > 5)
    return network


def any_network(
    examples: int, alike: bool = False, ended: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    settled = settings(max_examples=examples, suppress_health_check=UNHURRIED)
    return lambda test: settled(given(networks(alike, ended))(test))
