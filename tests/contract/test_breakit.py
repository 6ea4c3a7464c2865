"""Rows of the break-it matrix, really run: prediction and reality agree, and nothing of a run is left alive."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from genlock.contract.breakit import KINDS, LAYOUTS, PLACES, REFUSED, Row, RowResult, plan, run_rows
from genlock.contract.breakit_findings import findings
from genlock.errors import Exit, UsageError
from genlock.impl.scenario import FAULTS, injection
from real_ranks import alive

SHORT = (
    Row(REFUSED, "", 2, Exit.OK),
    Row(("OM-06",), ",rank=1", 2, Exit.CONTRACT, (1,)),
    Row(("OM-13",), ",kind=kill,rank=0,phase=idle", 2, Exit.PEER_DIED, (0,), "one per rank"),
    Row(("OM-13",), ",kind=gil,rank=1,phase=ack,chunk=2", 2, Exit.DEADLINE, (1,)),
    Row(("OM-13",), ",kind=stop,rank=0,phase=payload,chunk=2,where=inside", 2, Exit.DEADLINE, (0,)),
    Row(("OM-13",), ",kind=kill,rank=1,phase=generate,chunk=2,where=inside", 2, Exit.PEER_DIED, (1,), "one per rank"),
    # the others have ended well by then, and their torchruns wait for the one that fails
    Row(("OM-13",), ",kind=stop,rank=1,phase=header,chunk=3", 2, Exit.DEADLINE, (1,), "one per rank"),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[RowResult]:
    out = tmp_path_factory.mktemp("matrix")
    found = run_rows(SHORT, lambda text: None, out)
    assert not alive(str(out)), "a process of a run has outlived it"
    return found


@pytest.mark.timeout(400)
def test_prediction_and_reality_agree(results: list[RowResult]) -> None:
    assert [result for result in results if not result.agrees] == []
    assert [result.id for result in results] == [*REFUSED, "OM-06", *["OM-13"] * 5]
    assert all(found.good for found in findings(results).values())


def test_an_outcome_that_is_not_as_predicted_fails_its_row_and_no_other(results: list[RowResult]) -> None:
    odd = [msgspec.structs.replace(o, agrees=False, verdict="unknown") if o.id == "OM-06" else o for o in results]
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


def test_the_plan_has_every_row_with_two_three_and_four_ranks_in_either_layout() -> None:
    contract = {name for name in FAULTS if name.startswith(("OM-", "C-"))}
    for ranks in (2, 3, 4):
        for layout in LAYOUTS:
            assert {id for row in plan() if (row.ranks, row.layout) == (ranks, layout) for id in row.ids} == contract
    for row in plan(full=True):
        if len(row.ids) == 1:
            name, *settings = row.injection.split(",")
            injection(name, dict(text.split("=") for text in settings))


def test_the_plan_strikes_rank0_and_a_worker_at_every_place_in_every_way() -> None:
    def struck(row: Row) -> tuple[str, tuple[str, str], int]:
        s = dict(text.split("=") for text in row.settings.split(",")[1:])
        return s["kind"], (s["phase"], s.get("where", "")), int(s["rank"])

    rows = [row for row in plan() if row.ids == ("OM-13",)]
    for kind in KINDS:
        for place in PLACES:
            here = [row for row in rows if struck(row)[:2] == (kind, place) and not row.cold]
            assert {min(struck(row)[2], 1) for row in here} == ({0} if place[0] == "shutdown" else {0, 1})
            assert place[0] == "shutdown" or {row.layout for row in here} == {*LAYOUTS}
        own = [row for row in rows if struck(row)[0] == kind]
        assert {(row.ranks, row.layout) for row in own} >= {(n, layout) for n in (2, 3, 4) for layout in LAYOUTS}
        assert {struck(row)[2] for row in own} == {0, 1, 2, 3}
    for kind in ("guardian", "launcher"):
        own = [row for row in rows if struck(row)[0] == kind]
        assert ({row.ranks for row in own}, {row.layout for row in own}) == ({2, 3, 4}, {*LAYOUTS})
    full = {(*struck(row), row.ranks, row.layout) for row in plan(full=True) if row.ids == ("OM-13",)}
    assert len(full) == 6 * (len(PLACES) - 1) * (2 + 3 + 4) * 2 + 6 * 3 * 2


def test_a_fault_inside_a_collective_has_to_be_in_a_phase_with_one() -> None:
    with pytest.raises(UsageError, match="choose from startup, header, payload, generate, ack"):
        injection("OM-13", {"where": "inside", "phase": "idle"})
    with pytest.raises(UsageError, match="choose from inside"):
        injection("OM-13", {"where": "outside"})
