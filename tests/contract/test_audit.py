"""The contract documents and the audit: every line has evidence, and a check that is taken away is missed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import pytest
from genlock.cli.app import app
from genlock.contract import audit as audits
from genlock.contract import evidence
from genlock.contract.claims import HAZARDS, P0, P1
from genlock.contract.evidence import Evidence, Ledger, matching, recorded_runs
from genlock.contract.pages import QUESTIONS, pages
from genlock.contract.ship import Ship, Status, Verdict, judge, ship
from genlock.errors import Exit, UnreadableInput
from genlock.impl.chunk import parity, preflight, rules, wire
from genlock.impl.faults import selfcheck
from genlock.junit import from_xml
from genlock.model.checker.report import Report, run_check
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from genlock.page.audit_page import story_of
from real_ranks import alive
from repository import CORPUS, PROTOCOL_M, ROOT
from typer.testing import CliRunner

CONTRACT = ROOT / "docs" / "contract"
PROBES = {probe.name: probe for probe in selfcheck.probes()}


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    """The evidence that the checked-in documents were written from."""
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
    assert judge(line, ledger | {probe: Evidence(False, str(caught.value), "code")}).status is Status.FAIL


# ── the verdict ─────────────────────────────────────────────────────────────────────────────────────


def whole(ledger: Ledger) -> Ledger:
    """The ledger with a good finding for each row of the matrix that a line names, and nothing that a test skipped."""
    shown = {name: Evidence(True, e.says, e.known) if e.lacks else e for name, e in ledger.items()}
    rows = {pattern for line in P0 for pattern in line.evidence if pattern.startswith("row:")}
    return {**dict.fromkeys(rows, Evidence(True, "as predicted", "gloo-measured")), **shown}


def without(ledger: Ledger, name: str) -> Ledger:
    return {key: found for key, found in ledger.items() if key != name}


def test_each_verdict_says_no_more_than_its_evidence(ledger: Ledger) -> None:
    ledger = whole(ledger)
    row, tests = "row:OM-15", "test:tests/impl/rank/test_drain.py"
    bad = Evidence(False, "rank1 was left behind", "gloo-measured")
    unseen = Evidence(None, "build/tests.xml: pytest has reported nothing; run `make test`", "run by `make test`")
    partly = Evidence(True, "8 passed, 1 skipped: no GPU", "run by `make test`", "1 skipped: no GPU")

    def told(ledger: Ledger, **given: tuple[str, ...]) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
        found = ship(ledger, **given)  # type: ignore[arg-type]
        return found.verdict, found.reasons, found.not_shown

    assert told(ledger) == (Verdict.SHIP, (), ())
    assert told(ledger, outside=("NCCL",)) == (Verdict.ON_WHAT_WAS_SHOWN, (), ("NCCL",))
    assert told(ledger | {tests: partly}) == (Verdict.ON_WHAT_WAS_SHOWN, (), (f"{tests}: 1 skipped: no GPU",))
    assert told(without(ledger, row)) == (Verdict.NOT_SHOWN, (f"P0-12: not shown: {row}",), ())
    assert told(ledger | {tests: unseen}) == (Verdict.NOT_SHOWN, (f"P0-12: not shown: {tests}",), ())
    assert told(ledger, required=("NCCL",)) == (Verdict.NOT_SHOWN, ("required: not shown: NCCL",), ())
    reasons = ("row:OM-10: rank1 was left behind", f"P0-12: not shown: {tests}")
    assert told(ledger | {"row:OM-10": bad, tests: unseen}) == (Verdict.DO_NOT_SHIP, reasons, ())
    assert told({}, outside=("NCCL",))[0] is Verdict.NOT_SHOWN
    assert ship({}, contract=False).verdict is Verdict.NOT_SHOWN


@pytest.mark.parametrize(
    ("verdict", "status", "outcome"),
    [
        (Verdict.SHIP, Exit.OK, "passed"),
        (Verdict.ON_WHAT_WAS_SHOWN, Exit.OK, "skipped"),
        (Verdict.NOT_SHOWN, Exit.UNKNOWN, "error"),
        (Verdict.DO_NOT_SHIP, Exit.VIOLATED, "failure"),
    ],
)
def test_text_json_junit_page_and_exit_status_say_the_same(verdict: Verdict, status: Exit, outcome: str) -> None:
    found = audits.Audit("own.py", {"property:p": Evidence(True, "holds", "model")}, Ship(verdict, (), ("r",), ("n",)))
    head = f"{verdict.value.upper()}: own.py"
    assert found.exit is status
    assert found.as_text().splitlines()[:3] == [head, "  because r", "  not shown: n"]
    data = found.as_json()
    assert (data["verdict"], data["ship"], data["not_shown"]) == (verdict.value, status is Exit.OK, ["n"])
    junit = from_xml(found.as_junit(), PurePath("audit.xml"))
    assert (junit.cases[0].outcome, junit.cases[0].message) == (outcome, "" if outcome == "passed" else head)
    assert found.as_markdown().startswith(f"# {verdict.value.upper()}\n")
    assert (story_of(data).verdict, list(story_of(data).notes)) == (verdict.value, ["r", "not shown: n"])


@pytest.mark.parametrize(("mutant", "fails"), [("FM-02", "call_count_agreement"), ("FM-04", "no_stranding")])
def test_a_broken_protocol_does_not_ship_and_says_why_on_top(mutant: str, fails: str, tmp_path: Path) -> None:
    found = audits.audit(nobody, replace(audits.CONTRACT, mutant=mutant))
    audits.write(found, tmp_path)
    assert found.exit is Exit.VIOLATED
    first = (tmp_path / "audit.txt").read_text().splitlines()
    assert first[0].startswith(f"DO NOT SHIP: tp_v1.1 broken by {mutant}, 3 ranks, 2 chunks")
    assert any(line.startswith(f"  because property:{fails}: VIOLATED in ") for line in first[1:6])
    assert json.loads((tmp_path / "audit.json").read_text())["ship"] is False


def nobody(text: str) -> None:
    """Told how far an audit has come, and does nothing."""


def test_a_protocol_of_ones_own_is_judged_by_its_properties_and_the_verdict_names_what_was_searched() -> None:
    question = Query(str(PROTOCOL_M), Scope(3, 1, 1), {"W": "2", "K": "1"}, fault_points=(("crash", "rank1.IDLE"),))
    found = audits.audit(nobody, question, (False,))
    assert found.exit is Exit.OK
    assert not found.verdict.lines
    assert set(found.ledger) == set(matching(found.ledger, "property:*"))
    assert found.headline == (
        f"SHIP ON WHAT WAS SHOWN: {PROTOCOL_M}, 3 ranks, 1 chunk, 1 step a chunk, W=2, K=1, "
        "at most 1 fault (crash@rank1.IDLE), rendezvous transport"
    )
    assert found.verdict.not_shown == (audits.NO_CODE,)
    assert audits.audit(nobody, question, (False,), nccl=True).exit is Exit.UNKNOWN


def test_a_search_that_was_stopped_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = run_check
    stopped = iter((False, True))

    def check(question: Query) -> Report:
        report = searched(question)
        return replace(report, result=replace(report.result, stopped="no memory is left" * next(stopped)))

    monkeypatch.setattr(evidence, "run_check", check)
    found = audits.audit(nobody, Query(str(PROTOCOL_M), Scope(3, 1, 1), {"W": "2", "K": "1"}))
    assert found.exit is Exit.UNKNOWN
    assert found.ledger["search:stream"] == Evidence(None, "no memory is left", "model")
    assert {f.good for f in found.ledger.values()} == {None}


def test_a_run_of_which_nothing_is_known_is_not_shown(tmp_path: Path) -> None:
    good = CORPUS / "healthy" / "two-ranks"
    found = audits.audit(nobody, runs=[good])
    assert found.headline == f"SHIP ON WHAT WAS SHOWN: {good}, on gloo"
    assert audits.audit(nobody, runs=[good], nccl=True).exit is Exit.UNKNOWN
    assert audits.audit(nobody, runs=[good, CORPUS / "broken" / "OM-06"]).exit is Exit.VIOLATED
    shutil.copy(good / "rank0.trace.jsonl", tmp_path)
    unknown = audits.audit(nobody, runs=[good, tmp_path])
    assert unknown.exit is Exit.UNKNOWN
    assert unknown.verdict.verdict is Verdict.NOT_SHOWN


def test_ctrl_c_ends_an_audit_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(*_: object, **__: object) -> Iterator[tuple[str, Evidence]]:
        yield "property:no_stranding", Evidence(True, "holds", "model")
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:  # as a search does, which then has found all that it will
            yield "property:no_mispairing", Evidence(True, "holds", "model")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(audits, "gather", gather)
    found = audits.audit(nobody)
    assert list(found.ledger) == ["property:no_stranding"]
    assert found.exit is Exit.UNKNOWN
    assert "required: not shown: the rest, which was not tried: SIGINT" in found.verdict.reasons
    assert signal.getsignal(signal.SIGINT) is before


def test_where_genlock_is_installed_without_tests_the_audit_says_what_it_cannot_show(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: found for name, found in whole(ledger).items() if not name.startswith("test:")}
    monkeypatch.setattr(audits, "gather", lambda *_, **__: iter(some.items()))
    monkeypatch.setattr(audits, "files", lambda root: [])
    found = audits.audit(nobody)
    assert found.exit is Exit.UNKNOWN
    assert f"required: not shown: {audits.NO_TESTS}" in found.verdict.reasons
    lines = {j.claim.key: j.status for j in found.verdict.lines}
    assert lines["P0-12"] is Status.MISSING
    assert lines["P0-01"] is Status.PASS, "what rests on no test is shown"


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_runs_of_the_matrix(tmp_path: Path) -> None:
    code = """if True:
    import sys
    from pathlib import Path
    from genlock.contract import audit as audits
    from genlock.contract.breakit import Row, run_rows
    audits.gather = lambda *_, **__: iter(())
    stopped = ",kind=stop,rank=1,phase=startup"
    rows = [Row(("OM-13",), stopped, 2, 0, cold=True), *[Row(("OM-13",), stopped, 2, 0)] * 4]
    found = audits.audit(print, matrix=lambda tell: run_rows(rows, tell, Path(sys.argv[1])) and {})
    print(*found.verdict.reasons, sep="\\n")
    sys.exit(found.exit)
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            while len(list(tmp_path.glob("*/run.json"))) < 3:  # torchrun is about to be started in each
                time.sleep(0.02)
            program.send_signal(signal.SIGINT)
            said, _ = program.communicate(timeout=20)  # a run that were waited for would take 100 s
        finally:
            program.kill()
    assert (program.returncode, said.count("the rest, which was not tried: SIGINT")) == (Exit.UNKNOWN, 1)
    assert not alive(str(tmp_path))


@pytest.mark.parametrize(("text", "says"), [(None, "run `genlock audit --out DIR` first"), ("{}", "not evidence")])
def test_bad_evidence_is_one_line(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnreadableInput, match=says):
        audits.read_evidence(path)


def test_a_run_on_nccl_is_evidence_by_what_replay_says_of_it(tmp_path: Path) -> None:
    assert dict(recorded_runs(tmp_path)) == {}
    for name, source in (("good", "healthy/two-ranks"), ("odd", "broken/OM-06"), ("worse", "broken/OM-06")):
        shutil.copytree(CORPUS / source, tmp_path / name)
    (tmp_path / "worse" / "expected.json").write_text('{"verdict": "conforming"}')
    assert {f.says for f in dict(recorded_runs(tmp_path)).values()} == {"recorded on gloo, not on NCCL"}
    for path in tmp_path.rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"backend":"gloo"', '"backend":"nccl"'))
    assert {name: f.good for name, f in recorded_runs(tmp_path)} == {
        "nccl:good": True,
        "nccl:odd": True,
        "nccl:worse": False,
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "audit --ranks 4 --param K=2",
            "--ranks, --param: the contract is audited as a whole; `genlock check tp_v1.1`",
        ),
        ("audit --run out --transport stream", "--transport: recorded runs are audited as a whole; leave it out"),
        ("audit --mutant FM-02 --full", "--full: the break-it matrix is of tp_v1.1 alone"),
        ("audit nothing.py", "nothing.py: no such file"),
    ],
)
def test_what_an_audit_cannot_be_asked_is_one_line(line: str, says: str) -> None:
    result = CliRunner().invoke(app, line)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert says in result.stderr


def test_the_contract_needs_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    result = CliRunner().invoke(app, "audit")
    assert (result.exit_code, result.stderr) == (
        Exit.USAGE,
        "genlock: torch is not installed; pip install 'genlock[run]'\n",
    )
