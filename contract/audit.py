"""Gathers the evidence, gives the verdict and writes both down, for `genlock audit` and `genlock docs`.

Left out: what is claimed (`claims`), how each thing is tried (`evidence`, `breakit`), and when to ship (`ship`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Exit, UnreadableInput
from ..junit import Case, Outcome, as_xml
from ..model.semantics.query import Query
from ..model.tables import Scope
from .evidence import ROOT, Evidence, Ledger, Ledgered, Tell, gather, replayed, scope_of
from .interrupt import Interrupted, interrupts
from .pages import line_text, pages, table
from .pytest_report import files
from .ship import Ship, Status, Verdict, ship

EVIDENCE = "evidence.json"
NO_NCCL = "NCCL (no run on it is in traces/corpus/nccl; `bench/nccl_one_gpu.sh` records one)"
NO_CODE = "real ranks (`--run DIR` judges recorded runs), other sizes, parameters and faults"
NO_TESTS = "tests, which an installed genlock has not: in a checkout, `make test`, then `genlock audit`"
TP = "tp_v1.1"
CONTRACT = Query(TP, Scope(3, 2, 2))
"""The scope of the contract: the smallest in which all that the tables can do is done."""
BOTH = (False, True)
"""Transports: rendezvous, stream."""


@dataclass(frozen=True)
class Audit:
    """Holds a finished audit: its subject, the evidence, and the verdict.

    `shown` says in words what the verdict rests on.
    """

    subject: str
    ledger: Ledger
    verdict: Ship
    shown: str = ""
    ended: bool = False
    """True where Ctrl-C or SIGTERM ended it early."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what to do about evidence that was not shown, each thing once."""
        missing = [name for j in self.verdict.lines for name in j.missing if name in self.ledger]
        return tuple(dict.fromkeys(self.ledger[name].says for name in missing))

    @property
    def exit(self) -> Exit:
        return self.verdict.verdict.exit

    @property
    def headline(self) -> str:
        """Return the verdict in one line, with what it is of and what it leaves open."""
        head = f"{self.verdict.verdict.value.upper()}: {self.subject}"
        return f"{head}, {self.shown}" if self.shown else head

    def as_text(self) -> str:
        """Return the verdict and its reasons first, then a line each."""
        good = sum(found.good is True for found in self.ledger.values())
        head = [self.headline, *(f"  because {reason}" for reason in self.verdict.reasons)]
        head += [f"  not shown: {what}" for what in self.verdict.not_shown]
        head += [f"  {note}" for note in self.notes]
        lines = [f"  {j.status.value:9}  {j.claim.key}  {j.claim.text}" for j in self.verdict.lines]
        parts = [*head, "", *lines, *[""] * bool(lines)]
        return "\n".join([*parts, f"{good} of {len(self.ledger)} findings are as claimed."])

    def as_json(self) -> dict[str, Any]:
        """Return the verdict, its reasons, each P0 line with its status, and all findings by name."""
        return {
            "schema": 1,
            "subject": self.subject,
            "shown": self.shown,
            "verdict": self.verdict.verdict.value,
            "ship": self.exit is Exit.OK,
            "reasons": list(self.verdict.reasons),
            "not_shown": list(self.verdict.not_shown),
            "notes": list(self.notes),
            "p0": [
                {"key": j.claim.key, "claim": j.claim.text, "status": j.status.value, "missing": j.missing,
                 "failed": sorted(j.failed)}
                for j in self.verdict.lines
            ],
            "findings": {name: msgspec.to_builtins(found) for name, found in self.ledger.items()},
        }  # fmt: skip

    def as_junit(self) -> str:
        """Return a case for the verdict, for each P0 line, and for each finding; what was not shown is skipped.

        The verdict itself fails where it is *do not ship*, and is an error where it is *not shown*.
        """
        how: dict[Verdict, Outcome] = {
            Verdict.SHIP: "passed",
            Verdict.ON_WHAT_WAS_SHOWN: "skipped",
            Verdict.NOT_SHOWN: "error",
            Verdict.DO_NOT_SHIP: "failure",
        }
        by_status: dict[Status, Outcome] = {Status.FAIL: "failure", Status.MISSING: "skipped"}
        why = "\n".join((*self.verdict.reasons, *self.verdict.not_shown))
        cases = [Case("genlock.audit", "verdict", how[self.verdict.verdict], self.headline, why)]
        for j in self.verdict.lines:
            missing = "\n".join((*j.failed, *j.missing))
            cases.append(
                Case("genlock.audit.p0", j.claim.key, by_status.get(j.status, "passed"), j.claim.text, missing)
            )
        for name, found in self.ledger.items():
            kind, _, rest = name.partition(":")
            outcome: Outcome = "passed" if found.good else "skipped" if found.good is None else "failure"
            cases.append(Case(f"genlock.audit.{kind}", rest, outcome, found.says))
        return as_xml(f"genlock audit {self.subject}", cases)

    def as_markdown(self) -> str:
        """Return the ship report."""
        reasons = "\n".join(f"- {reason}" for reason in self.verdict.reasons)
        left = "\n".join(f"- not shown: {what}" for what in self.verdict.not_shown)
        overview = table(("", "", ""), ((j.claim.key, j.claim.text, j.status.value) for j in self.verdict.lines))
        subject = f"Of {self.subject}, {self.shown}." if self.shown else f"Of {self.subject}."
        head = [f"# {self.verdict.verdict.value.upper()}", subject, reasons, left]
        head.append(overview if self.verdict.lines else "")
        found = table(("finding", "", "known by"), ((name, f"{f.mark}{f.says}", f.known)
                                                    for name, f in self.ledger.items()))  # fmt: skip
        parts = [*head, *self.notes, *map(line_text, self.verdict.lines), "## All findings", found]
        return "\n\n".join(part for part in parts if part) + "\n"


def audit(
    tell: Tell,
    question: Query = CONTRACT,
    transports: Sequence[bool] = BOTH,
    *,
    runs: Sequence[Path] = (),
    matrix: Callable[[Tell], Ledger] | None = None,
    nccl: bool = False,
) -> Audit:
    """Audit the contract of TP v1.1, the properties of another protocol or of a mutant, or the traces of runs.

    `transports`: whether each is a stream. `matrix` runs the break-it matrix. With `nccl` it counts that nothing was
    shown there. Ctrl-C ends it with what is known. Raises UnreadableInput for a folder without traces.
    """
    if runs:
        return _audit_runs(tell, runs, nccl)
    contract = question.protocol == TP and question.mutant is None
    of = scope_of(question, transports)
    ledger: Ledger = {}
    ended = ""
    with interrupts():
        try:
            for name, found in gather(tell, question, transports, contract=contract):
                ledger[name] = found
            if matrix is not None and contract:
                ledger |= matrix(tell)
        except Interrupted as signal:
            ended = f"the rest, which was not tried: {signal}"
    subject = f"{question.protocol} broken by {question.mutant}" if question.mutant else question.protocol
    if not contract:
        required = [what for what in (ended, NO_NCCL if nccl else "") if what]
        return Audit(
            subject, ledger, ship(ledger, contract=False, outside=(NO_CODE,), required=required), of, bool(ended)
        )
    kinds = {name.partition(":")[0] for name, found in ledger.items() if found.good}
    backends = [backend for kind, backend in (("row", "gloo"), ("nccl", "NCCL")) if kind in kinds]
    lacks = [] if "nccl" in kinds else [NO_NCCL]
    required = [what for what in (ended, *(lacks if nccl else ()), "" if files(ROOT) else NO_TESTS) if what]
    verdict = ship(ledger, outside=() if nccl else lacks, required=required)
    return Audit(subject, ledger, verdict, f"on {' and '.join(backends) or 'no backend'}; model: {of}", bool(ended))


def _audit_runs(tell: Tell, runs: Sequence[Path], nccl: bool) -> Audit:
    ledger: Ledger = {}
    shown: set[str] = set()
    ended = ""
    with interrupts():
        try:
            for folder in runs:
                tell(f"replaying {folder}")
                good, says, backends = replayed(folder)
                ledger[f"run:{folder}"] = Evidence(good, says, "replayed")
                shown |= backends if good else set()
        except Interrupted as signal:
            ended = f"the rest, which was not tried: {signal}"
    required = [what for what in (ended, "NCCL: none of these runs was on it" if nccl and "nccl" not in shown else "")
                if what]  # fmt: skip
    verdict = ship(ledger, contract=False, outside=("what these runs did not do",), required=required)
    return Audit(", ".join(map(str, runs)), ledger, verdict, f"on {', '.join(sorted(shown))}" if shown else "")


def write(found: Audit, out: Path) -> None:
    """Write `audit.txt`, `audit.md` and `audit.json`; of the whole contract also its evidence, for `genlock docs`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.txt").write_text(found.as_text() + "\n", encoding="utf-8")
    (out / "audit.md").write_text(found.as_markdown(), encoding="utf-8")
    (out / "audit.json").write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    if found.verdict.lines:
        keep_evidence(found.ledger, out / EVIDENCE)


def keep_evidence(ledger: Ledger, path: Path) -> None:
    """Write a ledger as a file that `read_evidence` reads, each entry on lines of its own."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(Ledgered.of(ledger)), indent=1) + b"\n")


def read_evidence(path: Path) -> Ledger:
    """Read a ledger. Raises UnreadableInput for what `keep_evidence` would not have written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ledgered).findings
    except OSError as error:
        raise UnreadableInput(str(error.strerror), where=str(path), do="run `genlock audit --out DIR` first") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableInput(f"not evidence: {error}", where=str(path)) from error


def write_docs(out: Path, evidence: Path) -> list[Path]:
    """Write every page of the contract under `out`, and return their paths. Raises UnreadableInput for bad evidence."""
    written = []
    for name, text in pages(read_evidence(evidence)).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
