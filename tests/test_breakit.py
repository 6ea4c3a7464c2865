"""Rows of the break-it matrix, really run: prediction and reality agree, and nothing of a run is left alive."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from genlock.breakit import KINDS, PHASES, REFUSED, Outcome, Row, plan, run_rows
from genlock.contract.rows import findings
from genlock.errors import Exit, UsageError
from genlock.impl.scenario import FAULTS, injection
from real_ranks import alive

SHORT = (
    Row(REFUSED, "", 2, Exit.OK),
    Row(("OM-06",), ",rank=1", 2, Exit.CONTRACT, (1,)),
    Row(("OM-13",), ",kind=kill,rank=0,phase=idle", 2, Exit.PEER_DIED, (0,), "one per rank"),
    Row(("OM-13",), ",kind=gil,rank=1,phase=ack", 2, Exit.DEADLINE, (1,)),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    out = tmp_path_factory.mktemp("matrix")
    found = run_rows(SHORT, lambda text: None, out)
    assert not alive(str(out)), "a process of a run has outlived it"
    return found


@pytest.mark.timeout(400)
def test_prediction_and_reality_agree(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if not outcome.agrees] == []
    assert [outcome.id for outcome in outcomes] == [*REFUSED, "OM-06", "OM-13", "OM-13"]
    assert all(found.good for found in findings(outcomes).values())


def test_an_outcome_that_is_not_as_predicted_fails_its_row_and_no_other(outcomes: list[Outcome]) -> None:
    odd = [msgspec.structs.replace(o, agrees=False, verdict="unknown") if o.id == "OM-06" else o for o in outcomes]
    found = findings(odd)
    assert {name for name in found if not found[name].good} == {"row:OM-06"}
    assert "1 of 1 runs are not as predicted" in found["row:OM-06"].says
    assert "replay: unknown" in found["row:OM-06"].says


@pytest.mark.timeout(400)
def test_a_wrong_prediction_does_not_agree(tmp_path: Path) -> None:
    row = Row(("OM-06",), ",rank=1", 2, Exit.CONTRACT, (0,))
    [outcome] = run_rows([row], lambda text: None, tmp_path)
    assert not outcome.agrees
    assert outcome.culprits == (1,)
    with pytest.raises(UsageError, match="choose another --out"):
        run_rows([row], lambda text: None, tmp_path)


def test_the_plan_has_every_row_with_two_three_and_four_ranks_and_every_kind_in_every_phase() -> None:
    rows = plan()
    contract = {name for name in FAULTS if name.startswith(("OM-", "C-"))}
    for ranks in (2, 3, 4):
        assert {id for row in rows if row.ranks == ranks for id in row.ids} == contract
    for row in rows:
        if len(row.ids) == 1:
            name, *settings = row.injection.split(",")
            injection(name, dict(text.split("=") for text in settings))
    given = {row.settings for row in rows if row.ids == ("OM-13",)}
    for kind in KINDS:
        assert {phase for phase in PHASES if any(f"kind={kind}," in s and f"phase={phase}" in s for s in given)} == {
            *PHASES
        }
        assert all(any(f"kind={kind},rank={rank}" in s for s in given) for rank in range(3))
    assert any("kind=guardian" in s for s in given)
    assert any("kind=launcher" in s for s in given)
    assert {row.layout for row in rows} == {"one agent", "one per rank"}
