"""Runs Spin on what the export writes, and says what the reference engine's graph comes to: for tests to compare."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from genlock.model.checker.reference import explore
from genlock.model.claims import Invariant, LeadsTo, Sometimes
from genlock.model.promela.export import Export, export
from genlock.model.semantics.network import Network, NetworkState
from genlock.model.semantics.properties import NO_FALSE_ABORT, properties_of
from genlock.model.semantics.whole import Whole

TOOLS = all(map(shutil.which, ("spin", "gcc", "cc")))  # spin runs gcc as its preprocessor
needs_spin = pytest.mark.skipif(not TOOLS, reason="needs spin, gcc and cc")
DEADLOCK = "invalid end state"


class Found(NamedTuple):
    """What Spin says of a model."""

    states: int
    transitions: int
    """Without the one into the initial state."""
    errors: int
    sorts: set[str]
    """The properties violated, and DEADLOCK."""


def spin(model: str, folder: Path, states: int) -> Found:
    """Have Spin search a model to the end; it goes on after each error, and counts them."""
    (folder / "model.pml").write_text(model)
    for command in (
        "spin -a model.pml",
        "cc -O0 -DSAFETY -DNOREDUCE -o pan pan.c",
        f"./pan -c0 -n -w18 -m{states + 10}",
    ):
        done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "error: max search depth too small" not in done.stdout

    def number(pattern: str) -> int:
        match = re.search(pattern, done.stdout)
        assert match is not None, done.stdout
        return int(match[1])

    said = re.findall(r"^pan:\d+: (?:assertion violated +!?\(?(\w+)\)?|(invalid end state))", done.stdout, re.M)
    return Found(
        number(r"(\d+) states, stored"),
        number(r"(\d+) transitions") - 1,
        number(r"errors: (\d+)"),
        {name or end for name, end in said},
    )


def by_reference(network: Network) -> Found:
    """The same by the reference engine's graph: an error for each edge that violates, and for each deadlock."""
    graph = explore(network)
    judged = {p.name for p in properties_of(network.protocol.name) if p.kind == "always"}
    errors: Counter[str] = Counter()
    for state, edges in zip(graph.states, graph.edges, strict=True):
        errors[DEADLOCK] += not edges and not network.verdict(state)[1]
        for move, after in network.successors(state):
            errors.update(judged & set(move.seen))
            errors[NO_FALSE_ABORT.name] += network.info(after, move.rank).failed and not after.faults
            errors.update(told(network, after))
    return Found(len(graph.states), graph.transitions, errors.total(), set(+errors))


def agree(network: Network, folder: Path) -> Found:
    """Both, which must be the same; and what the export announces must be so."""
    written, reference = export(network), by_reference(network)
    found = spin(written.model, folder, written.states)
    assert found == reference
    assert (written.states, written.transitions) == (reference.states, reference.transitions)
    assert {*written.violated, *([DEADLOCK] if written.deadlocks else [])} == reference.sorts
    return found


def told(network: Network, state: NetworkState) -> Iterator[str]:
    """The claims that a state violates, or shows to be sometimes so, as Spin names them."""
    whole = Whole(network, state)
    for claim in network.protocol.claims:
        if isinstance(claim, Invariant) and not claim.holds(whole):
            yield f"claim_{claim.name}"
        if isinstance(claim, Sometimes) and claim.seen(whole):
            yield f"claim_{claim.name}"
        if isinstance(claim, LeadsTo) and claim.when(whole):
            yield f"claim_{claim.name}_when"


def fair_run(written: Export, claim: str, folder: Path) -> bool:
    """Whether Spin finds a fair run on which a `LeadsTo` does not hold."""
    (folder / f"{written.name}.pml").write_text(written.model)
    line = written.asks(claim).replace("-O1", "-O0")
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=100, check=True)
    assert "max search depth too small" not in done.stdout
    match = re.search(r"errors: (\d+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    assert (match[1] != "0") == ("acceptance cycle" in done.stdout)
    return match[1] != "0"
