"""Spin, given what `genlock export promela` writes, must find what the reference engine finds: states, transitions, and
as many violations of each sort.

Spin and a C compiler run for real, and the tests are skipped where one of them is missing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from genlock.cli.app import app
from genlock.errors import Exit, ModelError
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.reference import check
from genlock.model.promela.export import export
from genlock.model.semantics.faults import FAULTS
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import Network
from genlock.model.semantics.query import Query
from genlock.model.tables import (
    Frame,
    Protocol,
    Row,
    Scope,
)
from programs import any_network, role
from repository import PROTOCOL_M
from spin_search import DEADLOCK, agree, by_reference, needs_spin, spin
from typer.testing import CliRunner

EXAMPLE = str(PROTOCOL_M)

# ── protocol M and TP ───────────────────────────────────────────────────────────────────────────────


@needs_spin
@pytest.mark.parametrize(
    ("params", "counts"),
    [({"W": "2", "C": "1", "K": "2"}, (1187, 2408)), pytest.param({}, (32826, 91509), marks=pytest.mark.slow)],
    ids=["small", "3-2-3"],
)
def test_protocol_m_has_the_states_of_the_hand_written_model(
    params: dict[str, str], counts: tuple[int, int], tmp_path: Path
) -> None:
    assert agree(Query(EXAMPLE, Scope(), params=params).network(), tmp_path) == (*counts, 0, set())


TP = {
    "crash": (Query("tp_v1.1", Scope(2, 1, 2)), 2405),
    "crash-stream": (Query("tp_v1.1", Scope(2, 1, 2), stream=True), 3648),
    "undetected": (Query("tp_v1.1", Scope(2, 1, 2), detection=False), 1917),
    "three-ranks": (Query("tp_v1.1", Scope(3, 1, 2), faults=0), 9231),
    "stall-stream": (Query("tp_v1.1", Scope(2, 1, 2), fault_points=(("stall", None),), stream=True), 8344),
    "at-a-point": (
        Query("tp_v1.1", Scope(3, 1, 1), fault_points=(("crash", "rank2.READY"), ("exception", "rank1.ACK"))),
        15622,
    ),
    "v0": (Query("tp_v0", Scope(2, 2, 2)), 4699),
    "four-ranks": (Query("tp_v0", Scope(4, 0, 1), faults=0), 22508),
}


@needs_spin
@pytest.mark.parametrize("name", TP)
def test_tp_has_the_states_that_the_reference_engine_finds(name: str, tmp_path: Path) -> None:
    question, states = TP[name]
    found = agree(question.network(), tmp_path)
    assert found.states == states
    assert found.sorts == ({DEADLOCK} if name == "undetected" else set())


LARGE = {
    "crash": (Query("tp_v1.1", Scope(3, 2, 2)), 168979),
    "crash-stream": (Query("tp_v1.1", Scope(3, 1, 2), stream=True), 121483),
    "v0": (Query("tp_v0", Scope(3, 2, 2), fault_points=(("stall", None),)), 192674),
}


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_tp_with_three_ranks_and_faults(name: str, tmp_path: Path) -> None:
    question, states = LARGE[name]
    assert agree(question.network(), tmp_path)[::2] == (states, 0)


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["rendezvous", "stream"])
@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_of_each_kind(kind: str, stream: bool, tmp_path: Path) -> None:
    question = Query("tp_v1.1", Scope(2, 1, 2), fault_points=((kind, None),), stream=stream)
    assert not agree(question.network(), tmp_path).errors


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────

EVERY_DAY = ("FM-03", "FM-05", "FM-06", "FM-10", "FM-18", "EPOCH-EARLY")
"""Of each sort of violation one, and those that show several."""


def mutants() -> Iterator[object]:
    for name in MUTANTS:
        yield pytest.param(name, marks=[] if name in EVERY_DAY else [pytest.mark.slow])


@needs_spin
@pytest.mark.parametrize("name", list(mutants()))
def test_a_mutant_is_killed_by_spin_too(name: str, tmp_path: Path) -> None:
    """By the property that is made for it, or, where Spin cannot be asked that, by the deadlock behind it."""
    known = MUTANTS[name]
    found = agree(Query("tp_v1.1", Scope(2, known.chunks, 2), mutant=name).network(), tmp_path)
    killer = known.killed_by.name
    assert (killer if killer not in ("no_stranding", "crash_over_hang") else DEADLOCK) in found.sorts


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("name", ["FM-02", "FM-16", "EPOCH-EARLY"])
def test_the_shortest_counterexample_is_as_long(name: str, tmp_path: Path) -> None:
    """With -DREACH and -i Spin goes on until no shorter one is left; others than `name`'s property are taken out."""
    known = MUTANTS[name]
    result = check(known.network(Scope(2, known.chunks, 2)), [known.killed_by])
    shortest = counterexample(result, result.verdict(known.killed_by.name))
    assert shortest is not None
    model = export(result.network).model
    kept = re.sub(rf"assert\(!(?!{known.killed_by.name}\b)\w+\)", "skip", model)
    (tmp_path / "model.pml").write_text(kept)
    line = "spin -a model.pml && cc -O0 -DSAFETY -DNOREDUCE -DREACH -o pan pan.c && ./pan -i -n -E -w18"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True)
    depths = re.findall(r"reducing search depth to (\d+)", done.stdout)
    assert int(depths[-1]) == len(shortest.steps)


# ── that the comparison can fail ────────────────────────────────────────────────────────────────────

M = Query(EXAMPLE, Scope(), params={"W": "2", "C": "1", "K": "2"})
CRASH = Query("tp_v1.1", Scope(2, 1, 2))
WRONG = {
    "leaves too far ahead": (CRASH, "(IN(g, m) + AHEAD[LIST[(g) * R + (me)]] > OUT(g, me))", "1"),
    "puts into a full slot": (M, "AT_SLOT(n, me) == 0", "1"),
    "sees no mispairing": (replace(CRASH, mutant="FM-16"), "mispaired = MISPAIRED(g, me)", "mispaired = 0"),
    "pairs by name": (
        replace(CRASH, mutant="FM-03"),
        "WIRE[THEIRS(g, me, m)] == WIRE",
        "NAME[THEIRS(g, me, m)] == NAME",
    ),
    "makes a root wait for all": (CRASH, "KIND[MINE(g, me)] == BROADCAST ||", "0 ||"),
    "keeps what is done": (CRASH, "ANY(BUSY, g, h) && ALL(IS_PAST, g, h)", "0"),
    "lets the dead have arrived": (CRASH, "lost[CELL(g, d, me)] = 1", "skip"),
    "detects who merely waits": (CRASH, "(TROUBLE || ALONE(_pid))", "1"),
    "forgets the budget": (CRASH, "(faults < BUDGET)", "1"),
    "goes on alone": (M, "EVERY(CAUGHT_UP, 0, me)", "1"),
    "does not synchronise": (replace(CRASH, stream=True), "(!SYNCS[n] || STREAMS_DRY(me))", "1"),
    "never notices who has stopped": (replace(CRASH, mutant="FM-04"), "(TROUBLE || ALONE(_pid))", "TROUBLE"),
}
"""A Spin model that is wrong, as a question and an edit of its text."""


def wrong() -> Iterator[object]:
    for n, name in enumerate(WRONG):
        yield pytest.param(name, marks=[] if n < 3 else [pytest.mark.slow])


@needs_spin
@pytest.mark.parametrize("name", list(wrong()))
def test_a_model_that_is_wrong_is_noticed(name: str, tmp_path: Path) -> None:
    question, right, edited = WRONG[name]
    network = question.network()
    model = export(network).model
    assert model.count(right) == 1
    reference = by_reference(network)
    assert spin(model.replace(right, edited), tmp_path, 4 * reference.states) != reference


@needs_spin
def test_a_hole_in_the_tables_is_an_error(tmp_path: Path) -> None:
    """So a search that did not meet every local cannot make Spin agree by leaving it out."""
    written = export(M.network())
    holed = re.sub(r"(\bTARGET\[\d+\] = \{ 0), \d+", r"\1, 0", written.model, count=1)
    assert holed != written.model
    assert "known" in spin(holed, tmp_path, written.states).sorts


# ── any protocol ────────────────────────────────────────────────────────────────────────────────────


@needs_spin
@any_network(5)
def test_spin_agrees_on_any_protocol(tmp_path_factory: pytest.TempPathFactory, network: Network) -> None:
    agree(network, tmp_path_factory.mktemp("spin"))


@needs_spin
@pytest.mark.slow
@pytest.mark.timeout(600)
@any_network(60)
def test_spin_agrees_on_many_protocols(tmp_path_factory: pytest.TempPathFactory, network: Network) -> None:
    agree(network, tmp_path_factory.mktemp("spin"))


def test_ids_that_do_not_start_at_0_are_refused() -> None:
    frame = Frame(lambda v: int(v) + 1, lambda v, by: v)
    protocol = replace(
        Protocol("late", "1", role("rank0", [Row("A", "go", "B")]), role("worker", [Row("A", "go", "B")]), ()),
        frame=frame,
        keeps=True,
    )
    with pytest.raises(ModelError, match="late: ids do not start at 0"):
        export(Network(protocol, Scope(2, 1, 1), faults=0))


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


def command(line: str, folder: Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, f"export promela {line.format(EXAMPLE=EXAMPLE, out=folder)}", prog_name="genlock")
    return result.exit_code, result.stdout, result.stderr


SMALL = "{EXAMPLE} --param W=2 --param C=1 --param K=1"


def test_the_model_goes_to_stdout_or_into_a_file(tmp_path: Path) -> None:
    status, printed, said = command(SMALL, tmp_path)
    assert (status, said) == (Exit.OK, "")
    status, recipe, said = command(f"{SMALL} --out {{out}}/spin", tmp_path)
    assert (status, said) == (Exit.OK, "")
    assert [path.name for path in (tmp_path / "spin").iterdir()] == ["protocol_m.pml"]
    assert (tmp_path / "spin" / "protocol_m.pml").read_text() == printed
    assert len(recipe.splitlines()) == 2


def test_the_file_is_named_after_the_mutant(tmp_path: Path) -> None:
    assert command("--ranks 2 --chunks 1 --mutant FM-05 --out {out}", tmp_path)[0] == Exit.OK
    assert [path.name for path in tmp_path.iterdir()] == ["tp_v1.1-FM-05.pml"]


def test_every_flag_reaches_the_model(tmp_path: Path) -> None:
    flags = "--ranks 2 --chunks 1 --steps 1 --faults 2 --fault stall --fault drift --transport stream --detection off"
    _, printed, _ = command(flags, tmp_path)
    head = " ".join(printed.partition(". Written")[0].split())
    assert head == (
        "/* tp_v1.1: 2 ranks, 1 chunks of 1 steps, at most 2 faults (stall, drift), stream transport, detection off"
    )


@needs_spin
def test_the_recipe_does_what_it_says(tmp_path: Path) -> None:
    _, recipe, _ = command(f"{SMALL} --out {{out}}", tmp_path)
    line, expected = recipe.splitlines()
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=100, check=True)
    numbers = re.search(r"([\d,]+) states, ([\d,]+) transitions, no violation, no invalid end states", expected)
    assert numbers is not None
    states, transitions = (int(n.replace(",", "")) for n in numbers.groups())
    for printed in (f"{states} states, stored", f"{transitions} transitions", "errors: 0"):
        assert printed in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tp_v9", "no protocol `tp_v9`"),
        ("--mutant FM-99", "no mutant `FM-99`"),
        ("--fault meteor", "no fault `meteor`"),
        ("nowhere.py", "nowhere.py: no such file"),
        ("--ranks 2 --chunks 1 --faults 0 --out {out}/file/deeper", "file"),
    ],
)
def test_a_mistake_ends_in_one_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, printed, said = command(line, tmp_path)
    assert (status, printed) == (Exit.USAGE, "")
    assert message in said
    assert re.fullmatch(r"genlock: [^\n]+\n", said)
