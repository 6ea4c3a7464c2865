"""Writes the result of a check into a folder: text, JSON, and for a counterexample its chart and a scenario.

| file | holds |
|---|---|
| `check.txt`, `check.json` | the verdict |
| `counterexample.svg`, `counterexample.mmd` | the run that shows a violation, as a sequence chart |
| `scenario.json` | the same run, for `genlock run` |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..model.checker.parametric import report as proof_report
from ..model.checker.parametric.prove import Proof
from ..model.checker.report import Report
from ..model.checker.to_scenario import scenario
from ..model.semantics.run import Counterexample
from ..model.tables import Collective


def write_check(report: Report, out: Path) -> None:
    """Write the verdict on one network."""
    _write(out, report.as_text(), report.as_json())
    if report.counterexample is not None:
        _write_counterexample(report.counterexample, report.network.protocol.schedule, report.mutant, out)


def write_proof(proof: Proof, out: Path) -> None:
    """Write the verdict on every world size."""
    _write(out, proof_report.as_text(proof), proof_report.as_json(proof))
    if proof.counterexample is not None:
        schedule = proof.network.protocol.schedule
        _write_counterexample(proof.counterexample, schedule, proof.question.mutant, out)


def _write(out: Path, text: str, data: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.txt").write_text(text + "\n", encoding="utf-8")
    (out / "check.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_counterexample(cex: Counterexample, schedule: Sequence[Collective], mutant: str | None, out: Path) -> None:
    from ..model.diagrams.sequence_chart import sequence_mermaid, sequence_svg  # graphviz is slow to import

    (out / "counterexample.svg").write_text(sequence_svg(cex, schedule), encoding="utf-8")
    (out / "counterexample.mmd").write_text(sequence_mermaid(cex, schedule), encoding="utf-8")
    (out / "scenario.json").write_text(json.dumps(scenario(cex, mutant), indent=2) + "\n", encoding="utf-8")
