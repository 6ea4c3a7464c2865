"""Recorded runs: replay says of each what its `expected.json` has, and nothing in them names a machine."""

from __future__ import annotations

import getpass
import json
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import corpus
import make_corpus
import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.report import as_json, as_text
from genlock.impl.scenario import FAULTS
from genlock.traces.format import SUFFIX, find, read
from repository import CORPUS

BROKEN = [name for name in corpus.names() if corpus.expected(name).verdict == "divergent"]


@pytest.mark.parametrize("name", corpus.names())
def test_a_recorded_run_is_diagnosed_as_expected(name: str) -> None:
    wanted, found = corpus.expected(name), diagnose(corpus.traces(name))
    where = found.divergence
    said = (found.verdict, found.failure_mode, found.culprits, found.stall, where.state if where else None)
    assert said == (wanted.verdict, wanted.failure_mode, wanted.culprits, wanted.stall, wanted.state), as_text(found)
    if wanted.chunk is not None:
        assert where is not None
        assert where.chunk == wanted.chunk
    if wanted.verdict == "conforming":
        assert found.reasons == ()


WORDS = "the connection was reset by the store, as rank0 has it"
"""In place of every free text: it reads like a cache reset, a lost peer, and an accusation of rank0."""


def without_texts(value: Any) -> Any:
    """A line, or a part of one, with the same few words for each text that a person or a program may have written."""
    if isinstance(value, list):
        return [without_texts(part) for part in value]
    if not isinstance(value, dict):
        return value
    changed: dict[str, Any] = {
        name: WORDS if name in ("text", "message") else without_texts(part) for name, part in value.items()
    }
    if "differences" in changed:
        changed["differences"] = [
            [field, ranks, [WORDS for _ in values], WORDS, alike]
            for field, ranks, values, _, alike in changed["differences"]
        ]
    return changed


@pytest.mark.parametrize("kind", ["healthy", "refused", "broken", "struck"])
def test_no_text_changes_a_verdict_failure_mode_culprit_or_place(kind: str, tmp_path: Path) -> None:
    changed = 0
    for name in corpus.names(f"{kind}/"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for path in find(CORPUS / name):
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            told = [without_texts(line) for line in lines]
            changed += told != lines
            (folder / path.name).write_text("".join(json.dumps(line) + "\n" for line in told))
        before, after = diagnose(corpus.traces(name)), diagnose([read(path) for path in find(folder)])
        assert essence(after) == essence(before), name
    assert changed > 1


def essence(found: Diagnosis) -> tuple[object, ...]:
    where = found.divergence
    place = (where.rank, where.line, where.event, where.chunk, where.phase, where.call, where.state) if where else None
    standing = [(s.rank, s.line, s.state, s.expected) for s in found.standing]
    facts = where and (where.facts.seen, where.facts.transition, where.facts.edge)
    return found.verdict, found.failure_mode, found.culprits, found.stall, place, facts, standing, len(found.reasons)


@pytest.mark.parametrize("name", BROKEN)
def test_a_divergence_is_told_rank_by_rank_whatever_the_order_of_files(name: str) -> None:
    traces = corpus.traces(name)
    found = diagnose(traces)
    assert json.dumps(as_json(found)) == json.dumps(as_json(diagnose(traces[::-1])))
    assert found.divergence is not None
    assert found.divergence.rank in found.culprits
    text = as_text(found)
    for standing in found.standing:
        assert f"rank{standing.rank}  chunk {standing.chunk}, {standing.state}: {standing.observed}; expected" in text
        assert standing.expected or standing.state == "STOPPED"


def test_every_fault_that_can_be_injected_was_recorded() -> None:
    made = " ".join(corpus.expected(name).made for name in corpus.names())
    assert set(FAULTS) <= set(re.findall(r"--inject ([A-Z]+-[0-9]+)", made))
    assert set(FAULTS["OM-13"].kinds) - {"guardian", "launcher"} == set(re.findall(r"OM-13\S*kind=(\w+)", made))
    assert {"killed", "stopped", "stalls"} <= set(re.findall(r"rank\d (?:is )?(\w+)", made))


def test_the_corpus_is_what_its_maker_makes() -> None:
    made = [run.name for run in make_corpus.TOLD] + [run.name for run in make_corpus.struck()]
    assert corpus.names() == sorted(made)
    assert len(made) == len(set(made))


PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+|[A-Z]:\\")
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")


def names_of_this_machine(text: str) -> list[str]:
    """Paths, addresses, and the names of machine and user."""
    found = PATH.findall(text) + ADDRESS.findall(text)
    own = {socket.gethostname(), socket.getfqdn(), getpass.getuser(), Path.home().name} - {"localhost", "", "root"}
    return found + [name for name in own if re.search(rf"\b{re.escape(name)}\b", text)]


@pytest.mark.parametrize(
    "text", ["[/home/me/pair.cc:3]", "at /srv/x.py:3", "[127.0.0.1]:51", f"on {socket.gethostname()}:4"]
)
def test_names_of_machines_are_seen(text: str) -> None:
    assert names_of_this_machine(text)


def test_no_trace_names_a_machine_or_a_path() -> None:
    for path in CORPUS.rglob("*"):
        if path.is_file() and path.suffix != ".md":
            assert names_of_this_machine(path.read_text()) == [], path


def test_the_corpus_is_shipped() -> None:
    root = CORPUS.parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [pattern for pattern in settings["genlock.traces"] if pattern.startswith("corpus/")]
    shipped = {path for pattern in patterns for path in (root / "traces").glob(pattern)}
    assert {path for path in CORPUS.rglob("*") if path.is_file()} == shipped


def test_runs_are_small() -> None:
    for name in corpus.names():
        assert sum(path.stat().st_size for path in (CORPUS / name).iterdir()) < 100_000, name


def test_the_slot_for_nccl_says_that_it_is_empty() -> None:
    slot = CORPUS / "nccl"
    assert not list(slot.rglob(f"*{SUFFIX}"))
    assert (slot / "README.md").read_text().startswith("# Empty\n")
