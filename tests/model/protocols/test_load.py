"""A user's own model: found, run with its parameters, and refused in one line that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.errors import ModelError, UsageError
from genlock.model.checker.report import run_check
from genlock.model.protocols.load import load
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from repository import PROTOCOL_M

EXAMPLE = str(PROTOCOL_M)

HEAD = """
from genlock.model.tables import By, Collective, Kind, Protocol, Role, Row, State

GO = Collective("go", Kind.BROADCAST, "g", 0, "int64", "1", "")
STATES = (State("A", ""), State("B", "", terminal=True))


def role(name, *rows, states=STATES):
    return Role(name, "A", states, rows, lambda finite: 0)


def made(*driver, states=STATES):
    worker = role("worker", Row("A", "hear", "B", op=GO))
    return Protocol("mine", "1", role("rank0", *driver, states=states), worker, (GO,))


"""


def write(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + body)
    return str(path)


def test_built_in_protocols_are_found_by_name() -> None:
    assert load("tp_v1.1") is TP_V1_1
    with pytest.raises(UsageError, match=r"no protocol `tp_v9`; built in: tp_v1\.1"):
        load("tp_v9")
    with pytest.raises(UsageError, match=r"tp_v1\.1 has no parameter `W`"):
        load("tp_v1.1", {"W": "3"})


@pytest.mark.parametrize(
    ("params", "states", "transitions"), [({}, 32826, 91509), ({"W": "2", "C": "1", "K": "2"}, 1187, 2408)]
)
def test_protocol_m_has_the_states_that_other_checkers_found(
    params: dict[str, str], states: int, transitions: int
) -> None:
    """(3, 2, 3): Spin, Rumur and two more agree on 32,826."""
    report = run_check(Query(EXAMPLE, Scope(), params=params))
    assert (report.as_json()["states"], report.as_json()["transitions"]) == (states, transitions)
    assert report.holds
    assert report.result.deadlocks == 0


def test_a_users_model_with_collectives_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, 'ok = made(Row("A", "tell", "B", op=GO))\nlate = made(Row("A", "skip", "B"))\n')
    assert run_check(Query(f"{path}:ok", Scope(3), faults=0)).holds
    report = run_check(Query(f"{path}:late", Scope(3), faults=0))
    assert report.counterexample is not None
    assert [(s.rank, s.waiting_for) for s in report.counterexample.stuck] == [(1, (0,)), (2, (0,))]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('protocol = made(Row("A", "tell", "C", op=GO))', "rank0, row A --tell--> C: state `C` is not defined"),
        (
            'protocol = made(Row("A", "tell", "B"), states=(*STATES, State("LONELY", "")))',
            "rank0: state `LONELY` cannot be reached",
        ),
        (
            'protocol = made(Row("A", "tell", "B"), Row("A", "tell", "A"))',
            "row A --tell--> A: two rows for the same state and event",
        ),
        ("protocol = made(1 / 0)", "line 17: ZeroDivisionError: division by zero"),
        ("protocol = (", "SyntaxError"),
        ("protocol = 7", "protocol is a int, and no Protocol"),
        ("other = 7", "no `protocol` in this file; name one as FILE.py:NAME"),
    ],
)
def test_a_bad_model_is_one_line_that_names_the_row(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises((UsageError, ModelError)) as caught:
        load(write(tmp_path, body))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_guard_that_raises_names_its_row(tmp_path: Path) -> None:
    guard = "def broken(v, data):\n    return v.missing > 1\n\n"
    path = write(tmp_path, guard + 'protocol = made(Row("A", "tell", "B", op=GO, guards=(broken,)))')
    with pytest.raises(ModelError, match=r"row A --tell--> B: guard `broken` raised AttributeError"):
        run_check(Query(path, Scope(2)))


def test_an_unbounded_domain_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genlock.model.semantics.lts.MAX_LOCALS", 500)
    count = "def count(v, data):\n    return v + 1\n\n"
    path = write(tmp_path, count + 'protocol = made(Row("A", "more", "A", effect=count), Row("A", "tell", "B", op=GO))')
    with pytest.raises(ModelError, match=r"more than 500 different states of one rank.*bound its variables"):
        run_check(Query(path, Scope(2), faults=0))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("nowhere.py", {}, "nowhere.py: no such file"),
        (EXAMPLE, {"Z": "1"}, "has no parameter `Z`; it has W, C, K"),
        (EXAMPLE, {"W": "three"}, "--param W: `three` is no whole number"),
        (f"{EXAMPLE}:V", {"Z": "1"}, "has no parameter `Z`"),
    ],
)
def test_wrong_names_and_parameters_are_told(name: str, params: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name, params)
    assert message in str(caught.value)
