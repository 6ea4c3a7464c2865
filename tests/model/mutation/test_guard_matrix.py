"""Each check of the tables is needed: with it everything holds under its fault, without it its property fails."""

from __future__ import annotations

import pytest
from genlock.model.mutation.guard_matrix import MATRIX, STEERING, Check, CheckResult, run, table, unchecked
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.faults import FAULTS, with_faults
from genlock.model.semantics.known_mutants import without
from genlock.model.semantics.network import CRASH, STALL
from genlock.model.tables import Row, Scope


@pytest.fixture(scope="module")
def results() -> dict[Check, CheckResult]:
    return {r.check: r for r in run(Scope(2, 1, 2))}


def guards() -> list[tuple[str, str, str]]:
    return [
        (role.name, row.event, guard.__name__) for role in TP_V1_1.roles for row in role.rows for guard in row.guards
    ]


def test_every_guard_of_every_row_is_a_check_or_steers() -> None:
    assert sorted([*(c.key for c in MATRIX), *STEERING]) == sorted(guards())


def test_a_check_takes_one_guard_from_one_row() -> None:
    def rows(one: Check) -> tuple[Row, ...]:
        return next(r for r in unchecked(TP_V1_1, one).roles if r.name == one.role).rows

    for one in MATRIX:
        role = next(r for r in TP_V1_1.roles if r.name == one.role)
        changed = [(old, new) for old, new in zip(role.rows, rows(one), strict=True) if old != new]
        ((old, new),) = changed
        assert (old.event, new.guards) == (one.event, without(old.guards, one.guard))
        assert len(new.guards) == len(old.guards) - 1


@pytest.mark.parametrize("one", MATRIX, ids=lambda c: "-".join(c.key))
def test_the_property_fails_without_the_check_and_holds_with_it(one: Check, results: dict[Check, CheckResult]) -> None:
    result = results[one]
    assert result.broken == ()
    assert not result.missed
    assert result.example is not None
    assert result.example.claim == one.fails.name


def test_where_a_fault_is_needed_the_counterexample_has_it(results: dict[Check, CheckResult]) -> None:
    for result in results.values():
        kind = result.check.fault
        events = {
            row.event for role in with_faults(TP_V1_1, [kind]).roles for row in role.rows if row.fault == kind
        }  # fmt: skip
        assert result.example is not None
        taken = [step.event for step in result.example.steps if step.event in events]
        assert len(taken) == (0 if kind == "request" else 1)  # bad requests are choices of a row, not rows


def test_every_kind_of_fault_has_a_check_or_is_beyond_checks() -> None:
    used = {c.fault for c in MATRIX}
    beyond = {CRASH, STALL, "exception"}  # liveness: detection's matter
    same = {"duplicate", "manifest", "role", "weights", "backend"}  # further faults that checks of the matrix catch
    structural = {"thread"}  # its guard comes with its rows
    assert used | beyond | same | structural == set(FAULTS)


def test_the_table_has_a_line_for_each_check(results: dict[Check, CheckResult]) -> None:
    head, *lines = table(results.values()).splitlines()
    assert head.split()[:3] == ["role", "row", "check"]
    assert [line.split()[:3] for line in lines] == [list(c.key) for c in MATRIX]
    assert all("all hold" in line and " fails in " in line for line in lines)


def test_the_table_shows_what_fails() -> None:
    one = MATRIX[0]
    text = table([CheckResult(one, ("no_stranding",), True, None)])
    assert "no_stranding FAIL" in text
    assert "NOTHING FAILS" in text
