"""The contract documents and the audit: every line has evidence, and a check that is taken away is missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from genlock.contract import audit as audits
from genlock.contract.claims import HAZARDS, P0, P1
from genlock.contract.evidence import Finding, Ledger, matching
from genlock.contract.pages import QUESTIONS, pages
from genlock.contract.ship import Status, judge, ship
from genlock.errors import Exit, UnreadableInput
from genlock.impl.chunk import parity, preflight, rules, wire
from genlock.impl.faults import selfcheck
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.known_mutants import MUTANTS
from repository import PROTOCOL_M, ROOT

CONTRACT = ROOT / "docs" / "contract"
PROBES = {probe.name: probe for probe in selfcheck.probes()}


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    """What the checked-in documents were written from."""
    return audits.read_evidence(CONTRACT / audits.EVIDENCE)


# ── the documents ───────────────────────────────────────────────────────────────────────────────────


def test_the_documents_are_what_the_tables_and_the_evidence_make_them(ledger: Ledger) -> None:
    made = pages(ledger)
    found = {str(p.relative_to(CONTRACT)): p.read_text(encoding="utf-8") for p in CONTRACT.rglob("*.md")}
    assert found == made, "run `genlock docs`"


def test_each_question_is_answered_by_a_page(ledger: Ledger) -> None:
    written = pages(ledger)
    for _, _, page in QUESTIONS:
        assert page in written or any(name.startswith(page) and page.endswith("/") for name in written), page


@pytest.mark.parametrize("line", [*P0, *P1, *HAZARDS], ids=lambda line: line.key)
def test_no_line_without_evidence(line: object, ledger: Ledger) -> None:
    judged = judge(line, ledger)  # type: ignore[arg-type]
    assert (judged.failed, judged.missing) == ({}, [])
    assert judged.status is Status.PASS


def test_every_failure_mode_is_kept_out_by_a_p0_line() -> None:
    named = {mode for line in P0 for mode in line.modes}
    assert named == {name[:5] for name in MUTANTS if name.startswith("FM-")}


def test_every_guard_of_the_tables_is_a_tripwire(ledger: Ledger) -> None:
    text = pages(ledger)["tripwires.md"]
    for role in TP_V1_1.roles:
        for row in role.rows:
            for guard in row.guards:
                assert f"| {role.name} | {row.state} | {row.event} | `{guard.__name__}`" in text


# ── probes ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROBES)
def test_what_is_wrong_is_caught_and_named(name: str) -> None:
    assert PROBES[name].run()


def nothing(*args: object, **kwargs: object) -> object:
    return iter(())


TAKEN_AWAY: tuple[tuple[object, str, Callable[..., object], str, str], ...] = (
    (rules, "_identity_problems", nothing, "P0-02", "probe:preflight.identity.calls"),
    (rules, "_identity_problems", nothing, "P0-08", "probe:preflight.recompute_without_override"),
    (rules, "_conditioning_problems", nothing, "H-3", "probe:preflight.stale_conditioning"),
    (preflight, "_nested_tensors", nothing, "P0-01", "probe:preflight.nested_tensor"),
    (preflight, "wire_problems", nothing, "P0-01", "probe:preflight.dtype_off_map"),
    (preflight, "_value_problems", nothing, "P0-01", "probe:preflight.meta_device"),
    (wire, "spec_digest", lambda spec, *rest: spec.digest, "P0-06", "probe:payload.latents"),
    (wire, "ack_problems", nothing, "P0-02", "probe:ack.observed_generator_calls"),
    (parity, "_shared", nothing, "P0-09", "probe:parity.weights"),
    (parity, "_differing", nothing, "P0-03", "probe:parity.tp_plan"),
)


@pytest.mark.parametrize(("module", "name", "instead", "key", "probe"), TAKEN_AWAY, ids=lambda v: str(v)[:24])
def test_a_check_that_is_taken_away_fails_its_line(
    module: object,
    name: str,
    instead: Callable[..., object],
    key: str,
    probe: str,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
) -> None:
    monkeypatch.setattr(module, name, instead)
    with pytest.raises(selfcheck.Unnoticed) as caught:
        PROBES[probe.partition(":")[2]].run()
    line = next(line for line in (*P0, *P1, *HAZARDS) if line.key == key)
    assert judge(line, ledger | {probe: Finding(False, str(caught.value), "code")}).status is Status.FAIL


# ── the verdict ─────────────────────────────────────────────────────────────────────────────────────


def test_one_bad_finding_or_one_line_not_shown_is_no_ship(ledger: Ledger) -> None:
    rows = {pattern for line in P0 for pattern in line.evidence if pattern.startswith("row:")}
    ledger = {**dict.fromkeys(rows, Finding(True, "as predicted", "gloo-measured")), **ledger}
    assert ship(ledger).ships
    some = next(name for name in ledger if name.startswith("row:"))
    assert ship(ledger | {some: Finding(False, "rank1 was left behind", "gloo-measured")}).reasons == (
        f"{some}: rank1 was left behind",
    )
    without = {name: found for name, found in ledger.items() if name != "row:OM-15"}
    assert ship(without).reasons == ("P0-12: not shown: row:OM-15",)


@pytest.mark.parametrize(("mutant", "fails"), [("FM-02", "call_count_agreement"), ("FM-04", "no_stranding")])
def test_a_broken_protocol_does_not_ship_and_says_why_on_top(mutant: str, fails: str, tmp_path: Path) -> None:
    found = audits.audit(lambda text: None, mutant=mutant)
    audits.write(found, tmp_path)
    assert found.exit is Exit.VIOLATED
    first = (tmp_path / "audit.txt").read_text().splitlines()
    assert first[0] == f"DO NOT SHIP: tp_v1.1 broken by {mutant}"
    assert any(line.startswith(f"  because property:{fails}: VIOLATED in ") for line in first[1:6])
    assert json.loads((tmp_path / "audit.json").read_text())["ship"] is False


def test_a_protocol_of_ones_own_is_judged_by_its_properties() -> None:
    example = PROTOCOL_M
    found = audits.audit(lambda text: None, f"{example}")
    assert found.exit is Exit.OK
    assert not found.verdict.lines
    assert set(found.ledger) == set(matching(found.ledger, "property:*"))


@pytest.mark.parametrize(("text", "says"), [(None, "run `genlock audit --out DIR` first"), ("{}", "not evidence")])
def test_bad_evidence_is_one_line(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnreadableInput, match=says):
        audits.read_evidence(path)


def test_missing_nccl_evidence_is_told_until_there_is_some(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audits.Audit("tp_v1.1", ledger, ship(ledger))
    assert audits.NO_NCCL in found.as_text()
    assert found.as_json()["notes"] == [audits.NO_NCCL]
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "rank0.trace.jsonl").write_text("{}\n")
    monkeypatch.setattr(audits, "NCCL", tmp_path)
    assert audits.NO_NCCL not in found.as_text()
