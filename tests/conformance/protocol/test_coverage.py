"""The corpus has witnessed every transition that a real run can take; of the rest the reason is told."""

from __future__ import annotations

import json

import corpus
import pytest
from genlock.cli.app import app
from genlock.conformance.protocol.coverage import Coverage, as_json, as_text, beyond, merged
from genlock.conformance.protocol.diagnose import diagnose
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from repository import CORPUS
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def all_runs() -> Coverage:
    return Coverage(TP_V1_1, merged(*(diagnose(corpus.traces(name)).witnessed for name in corpus.names())))


def test_every_transition_that_a_real_run_can_take_was_taken(all_runs: Coverage) -> None:
    for role in TP_V1_1.roles:
        assert all_runs.open(role) == [], role.name


def test_no_transition_that_is_called_impossible_was_taken(all_runs: Coverage) -> None:
    for role in TP_V1_1.roles:
        assert [row for row in all_runs.seen(role) if beyond(row, role)] == []
        assert len(all_runs.seen(role)) + len(all_runs.beyond(role)) == len(role.rows)


def test_the_impossible_ones_are_few_and_have_a_reason(all_runs: Coverage) -> None:
    rows = [(role.name, row.state, row.event) for role in TP_V1_1.roles for row, _ in all_runs.beyond(role)]
    assert {event for _, _, event in rows} == {"peer_lost"}
    assert len(rows) == 14
    assert "a rank notices a dead peer inside a collective" in as_text(all_runs)


def test_one_run_leaves_rows_open_and_names_them() -> None:
    one = Coverage(TP_V1_1, diagnose(corpus.traces("healthy/two-ranks")).witnessed)
    shown = as_json(one)["roles"]["worker"]
    assert ["GENERATING", "miscount"] in shown["open"]
    assert ["HEADER_CHECK", "accept_shutdown"] in shown["witnessed"]
    assert "not witnessed: GENERATING --miscount--> POISONED" in as_text(one)
    figures = [len(shown[key]) for key in ("witnessed", "open", "beyond")]
    assert sum(figures) == shown["rows"]


def test_merged_is_the_union() -> None:
    one, other = ({"worker": frozenset({("A", name)})} for name in "xy")
    assert merged(one, other) == {"worker": frozenset({("A", "x"), ("A", "y")})}
    assert merged() == {}


def test_replay_writes_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out")
    done = CliRunner().invoke(app, ["replay", str(CORPUS / "refused/OM-01"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    rank0 = json.loads((out / "coverage.json").read_text())["roles"]["rank0"]
    assert ["PREFLIGHT_1", "refuse"] in rank0["witnessed"]
    assert (out / "coverage.txt").read_text().startswith("rank0: ")
