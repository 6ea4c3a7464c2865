"""Mistakes of a user's model: each is one line that names the row, and exit status 2, whatever searches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from genlock.errors import Exit, GenlockError, ModelError, UsageError
from genlock.model.checker.engine import check
from genlock.model.protocols.load import load
from genlock.model.semantics.network import Network
from genlock.model.semantics.properties import GENERIC
from genlock.model.semantics.query import Query
from genlock.model.tables import Collective, Kind, Meet, Protocol, Put, Role, Row, Scope, Slot, State, Take

OP = Collective("work", Kind.ALL_REDUCE, "g", None, "int64", "8", "")
X = Slot("x")
STATES = (State("A", ""), State("B", "", terminal=True))


def model(*rows: Row, start: Any = 0, initial: str = "A", **more: Any) -> Protocol:
    """A protocol whose two roles have these rows."""
    role = Role("rank0", initial, STATES, rows, lambda finite: start)
    given = {"schedule": (OP,), "slots": (X,), **more}
    return Protocol("mine", "1", role, replace(role, name="worker"), **given)


@dataclass
class Loose:
    """It is not frozen."""

    count: int = 0


def fails(v: Any, *data: Any) -> Any:
    raise KeyError("sizes")


def says_nothing(v: Any, data: object) -> Any:
    return None


def huge(v: int, data: object) -> int:
    return v + (1 << 40)


MISTAKES: dict[str, tuple[Protocol, str]] = {
    "unfrozen dataclass": (model(Row("A", "go", "B"), start=Loose()), "rank0: its variables, a Loose, have no hash"),
    "variables by identity": (
        model(Row("A", "go", "B"), start=object()),
        "rank0: its variables, a object, can be chan",
    ),
    "raising effect": (
        model(Row("A", "go", "B", effect=fails)),
        "rank0, row A --go--> B: its effect `fails` raised KeyError: 'sizes'",
    ),
    "raising send": (
        model(Row("A", "go", "B", op=OP, send=fails)),
        "rank0, row A --go--> B: its send `fails` raised KeyError: 'sizes'",
    ),
    "send without a hash": (
        model(Row("A", "go", "B", op=OP, send=lambda v: [v])),
        "rank0, row A --go--> B: what it sends has no hash",
    ),
    "raising choices": (
        model(Row("A", "go", "B", choices=fails)),
        "rank0, row A --go--> B: its choices",
    ),
    "guards without a comma": (
        model(Row("A", "go", "B", guards=says_nothing)),  # type: ignore[arg-type]
        "rank0, row A --go--> B: `guards` is no tuple; write (says_nothing,), with the comma",
    ),
    "undeclared slot": (
        model(Row("A", "go", "B", gate=Put(Slot("y"), lambda v: 1))),
        "rank0, row A --go--> B: slot `y` is not declared",
    ),
    "no such worker": (
        model(Row("A", "go", "B", gate=Put(X, lambda v: 3))),
        "rank0, row A --go--> B: its worker `<lambda>` is 3, and workers are 1 to 2",
    ),
    "worker 0": (
        model(Row("A", "go", "B", gate=Take(X, lambda v: 0))),
        "rank0, row A --go--> B: its worker `<lambda>` is 0, and workers are 1 to 2",
    ),
    "effect returns None": (
        model(Row("A", "go", "B", effect=says_nothing)),
        "rank0, row A --go--> B: its effect `says_nothing` returned None",
    ),
    "guard returns None": (
        model(Row("A", "go", "B", guards=(says_nothing,))),
        "row A --go--> B: guard `says_nothing` returned None",
    ),
    "misspelt initial state": (
        model(Row("A", "go", "B"), initial="AA"),
        "rank0: the initial state `AA` is not defined; begin in one of A, B",
    ),
    "a counter too large": (
        model(Row("A", "go", "B", gate=Meet(), effect=huge), counter=lambda v: v + (1 << 31)),
        "rank0, variables 0: the counter is 2,147,483,648: too large",
    ),
    "a counter that is no number": (
        model(Row("A", "go", "B", gate=Meet()), counter=lambda v: "many"),
        "rank0, variables 0: the counter is 'many', which is no whole number",
    ),
    "one rank": (model(Row("A", "go", "B"), ranks=1), "mine, ranks: it says that it is about 1 ranks"),
    "no rank": (model(Row("A", "go", "B"), ranks=0), "mine, ranks: it says that it is about 0 ranks"),
    "a root that there is not": (
        model(Row("A", "go", "B", op=replace(OP, root=7)), schedule=(replace(OP, root=7),)),
        "mine, schedule: the root of `work` is rank7, of 3 ranks",
    ),
    "a row that is not there": (
        model(Row("A", "go", "B"), may_be_unreached=("A.went",)),
        "mine, may_be_unreached: no row `A.went`",
    ),
}


@pytest.mark.parametrize("engine", ["reference", "numba", "numpy"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_its_row(mistake: str, engine: str) -> None:
    protocol, message = MISTAKES[mistake]
    with pytest.raises(GenlockError) as raised:
        check(Network(protocol, Scope()), GENERIC, engine=engine)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert raised.value.exit == Exit.USAGE


FILE = """
from genlock.model.tables import *
def protocol(W: int = 2, fast: bool = False):
    states = (State("A", ""), State("B", "", terminal=True))
    role = Role("rank0", "A", states, (Row("A", "go", "B"),), lambda finite: 0)
    worker = Role("worker", "A", states, (Row("A", "go", "B"),), lambda finite: 0)
    return Protocol("NAME", "1", role, worker, (), ranks=W + 1)
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "own.py"
        path.write_text(text)
        return str(path)

    return write


def test_a_model_called_as_ours_is_refused(written: Callable[[str], str]) -> None:
    with pytest.raises(ModelError, match=r"the protocol is called `tp_v1\.1`, as Genlock's own are"):
        load(written(FILE.replace("NAME", "tp_v1.1")))


def test_a_model_that_exits_says_nothing_of_a_verdict(written: Callable[[str], str]) -> None:
    with pytest.raises(ModelError, match="SystemExit: 1"):
        load(written("raise SystemExit(1)"))


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ({"W": "-1"}, "it says that it is about 0 ranks"),
        ({"W": "99999999999999999999"}, "100000000000000000000 ranks cannot be searched"),
        ({"W": "32"}, "33 ranks cannot be searched"),
        ({"W": "two"}, "--param W: `two` is no whole number"),
        ({"fast": "maybe"}, "--param fast: `maybe` is neither true nor false"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_one_line(
    written: Callable[[str], str], param: dict[str, str], message: str
) -> None:
    with pytest.raises(GenlockError, match=message):
        Query(written(FILE), Scope(), params=param).network()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Query("tp_v1.1", Scope(33)), "--ranks: 33 ranks are too many to search; take at most 32"),
        (Query("tp_v1.1", Scope(10**20)), "--ranks: 100000000000000000000 ranks are too many"),
        (Query("tp_v1.1", Scope(3), faults=10**20), "--faults: 100000000000000000000 faults are too many"),
        (
            Query("tp_v1.1", Scope(3), fault_points=(("crash", "rank9.IDLE"),)),
            "`rank9.IDLE` cannot strike: there are 3",
        ),
        (Query("tp_v1.1", Scope(3), fault_points=(("exception", "rank1.IDLE"),)), "`rank1.IDLE` cannot strike"),
        (Query("tp_v1.1", Scope(3), fault_points=(("crash", None),), faults=0), "--faults 0: no fault can strike"),
        (Query("tp_v0", Scope(3), mutant="FM-04"), "--mutant FM-04: tp_v0 has no known mutants"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(question: Query, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        question.network()
    assert message in str(raised.value)


def test_ranks_that_a_model_ignores_are_refused(written: Callable[[str], str]) -> None:
    path = written(FILE)
    with pytest.raises(UsageError, match=r"--ranks 5: .* is about 3 ranks"):
        Query(path, Scope(5), ranks_chosen=True).network()
    assert Query(path, Scope(3), ranks_chosen=True).network().ranks == 3
    assert Query(path, Scope(5)).network().ranks == 3


def test_two_device_streams_are_refused() -> None:
    other = replace(OP, name="other", group="h")
    rows = (Row("A", "go", "A", op=OP), Row("A", "on", "B", op=other))
    protocol = model(*rows, schedule=(OP, other), streams=("g", "h"))
    assert Network(protocol, Scope()).ranks == 3
    with pytest.raises(UsageError, match=r"groups `g` and `h` .* both run on a device stream"):
        Network(protocol, Scope(), stream=True)
