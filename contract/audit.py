"""`genlock audit` and `genlock docs`: gather the evidence, give the verdict, write both down.

Left out: what is claimed (`lines.py`), and how each thing is tried (`evidence.py`, `rows.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..conformance import report as reports
from ..conformance.replay import replay
from ..errors import Exit, UnreadableInput
from ..traces.format import SUFFIX
from .evidence import Finding, Ledger, Ledgered, Tell, gather
from .pages import line_text, pages, table
from .ship import Ship, ship

EVIDENCE = "evidence.json"
NCCL = Path(__file__).resolve().parent.parent / "traces" / "corpus" / "nccl"
NO_NCCL = "NCCL evidence is missing: no run on NCCL is in traces/corpus/nccl; `bench/nccl_one_gpu.sh` records one."
TP = "tp_v1.1"


@dataclass(frozen=True)
class Audit:
    """What was audited, what was found, and whether to ship."""

    subject: str
    ledger: Ledger
    verdict: Ship

    @property
    def notes(self) -> tuple[str, ...]:
        """What no finding can say: which evidence there is none of."""
        return (NO_NCCL,) if self.verdict.lines and not any(NCCL.rglob(f"*{SUFFIX}")) else ()

    @property
    def exit(self) -> Exit:
        return Exit.OK if self.verdict.ships else Exit.VIOLATED

    def as_text(self) -> str:
        """The verdict and its reasons first, then a line each."""
        good = sum(found.good for found in self.ledger.values())
        notes = [*self.notes, ""] if self.notes else []
        head = [f"{self._word()}: {self.subject}", *(f"  because {reason}" for reason in self.verdict.reasons)]
        lines = [f"  {j.status.value:9}  {j.line.key}  {j.line.claim}" for j in self.verdict.lines]
        return "\n".join([*head, "", *lines, "", *notes, f"{good} of {len(self.ledger)} findings are as claimed."])

    def as_json(self) -> dict[str, Any]:
        """The verdict, its reasons, each P0 line with its status, and all findings by name."""
        return {
            "schema": 1,
            "subject": self.subject,
            "ship": self.verdict.ships,
            "reasons": list(self.verdict.reasons),
            "notes": list(self.notes),
            "p0": [
                {"key": j.line.key, "claim": j.line.claim, "status": j.status.value, "missing": j.missing,
                 "failed": sorted(j.failed)}
                for j in self.verdict.lines
            ],
            "findings": {name: msgspec.to_builtins(found) for name, found in self.ledger.items()},
        }  # fmt: skip

    def as_markdown(self) -> str:
        """The ship report."""
        reasons = "\n".join(f"- {reason}" for reason in self.verdict.reasons)
        overview = table(("", "", ""), ((j.line.key, j.line.claim, j.status.value) for j in self.verdict.lines))
        head = [f"# {self._word()}", f"Of {self.subject}.", reasons, overview if self.verdict.lines else ""]
        found = table(("finding", "", "known by"), ((name, f"{'' if f.good else '**FAILS** '}{f.says}", f.known)
                                                    for name, f in self.ledger.items()))  # fmt: skip
        parts = [*head, *self.notes, *map(line_text, self.verdict.lines), "## All findings", found]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _word(self) -> str:
        return "SHIP" if self.verdict.ships else "DO NOT SHIP"


def audit(
    tell: Tell, protocol: str = TP, mutant: str | None = None, runs: Sequence[Path] = (), rows: Ledger | None = None
) -> Audit:
    """Of TP v1.1 the whole contract; of another protocol, or of a mutant, its properties; of run folders their traces.

    `rows` are the findings of a break-it matrix. Raises UnreadableInput for a folder without traces.
    """
    whole = protocol == TP and mutant is None
    ledger = {} if runs else gather(tell, protocol, mutant) | (rows or {} if whole else {})
    for folder in runs:
        tell(f"replaying {folder}")
        found = replay([folder]).diagnosis
        good = reports.STATUS[found.verdict] == Exit.OK
        says = " ".join(reports.as_text(found).split())
        ledger[f"run:{folder}"] = Finding(good, says, "replayed")
    subject = ", ".join(map(str, runs)) if runs else f"{protocol} broken by {mutant}" if mutant else protocol
    return Audit(subject, ledger, ship(ledger, contract=whole and not runs))


def write(found: Audit, out: Path) -> None:
    """`audit.txt`, `audit.md` and `audit.json`; of the whole contract also its evidence, for `genlock docs`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.txt").write_text(found.as_text() + "\n", encoding="utf-8")
    (out / "audit.md").write_text(found.as_markdown(), encoding="utf-8")
    (out / "audit.json").write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    if found.verdict.lines:
        keep_evidence(found.ledger, out / EVIDENCE)


def keep_evidence(ledger: Ledger, path: Path) -> None:
    """As a file that `read_evidence` reads, each finding on lines of its own."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(Ledgered.of(ledger)), indent=1) + b"\n")


def read_evidence(path: Path) -> Ledger:
    """Raises UnreadableInput for what `keep_evidence` would not have written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ledgered).findings
    except OSError as error:
        raise UnreadableInput(str(error.strerror), where=str(path), do="run `genlock audit --out DIR` first") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableInput(f"not evidence: {error}", where=str(path)) from error


def write_docs(out: Path, evidence: Path) -> list[Path]:
    """Every page of the contract, under `out`; returns their paths. Raises UnreadableInput for bad evidence."""
    written = []
    for name, text in pages(read_evidence(evidence)).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
