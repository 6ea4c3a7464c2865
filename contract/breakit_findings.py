"""Turns what the break-it matrix has shown into findings of the contract, one for each id.

Left out: what a row is, and how it is run (`breakit`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from .breakit import EACH, RowResult, plan, run_rows
from .evidence import Evidence, Ledger, Tell

MATRIX = "breakit.json"


def run_matrix(tell: Tell, out: Path | None, *, full: bool = False) -> Ledger:
    """Run the matrix, or all that can be struck; with `out`, its results and all traces are kept there.

    Raises UsageError where `out` has an earlier one.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return findings(run_rows(plan(full=full), tell, Path(folder)))
    results = run_rows(plan(full=full), tell, out / "runs")
    (out / MATRIX).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return findings(results)


def findings(results: Sequence[RowResult]) -> Ledger:
    """Return `row:ID` to a finding, which is good where prediction and reality agree in every run of it."""
    ids = list(dict.fromkeys(result.id for result in results))
    return {f"row:{id}": _finding([result for result in results if result.id == id]) for id in ids}


def _finding(runs: Sequence[RowResult]) -> Evidence:
    odd = [run for run in runs if not run.agrees]
    if odd:
        one = odd[0]
        says = (
            f"{len(odd)} of {len(runs)} runs are not as predicted: {one.injection} with {one.ranks} ranks, "
            f"{one.layout}: predicted: {one.predicted}; {one.happened}; replay: {one.verdict}, "
            f"culprits {', '.join(f'rank{rank}' for rank in one.culprits) or 'none'}"
        )
        return Evidence(False, " ".join(says.split())[:600], "gloo-measured")
    seconds = [run.seconds for run in runs if run.injected]
    least, most = min(run.ranks for run in runs), max(run.ranks for run in runs)
    each = sum(run.layout == EACH for run in runs)
    own = f", {each} with an agent for each rank" if each else ""
    parts = [f"{len(runs)} runs with {least} to {most} ranks{own}"]
    parts.append(f"each: {runs[0].predicted}" if len({run.predicted for run in runs}) == 1 else "each as predicted")
    if seconds:
        worst = f"worst {max(seconds):.1f} s; deadlines that had to pass are in it"
        parts.append(f"gone {median(seconds):.1f} s after the injection (median; {worst})")
    single = sum(run.predicted_culprits == run.culprits and len(run.culprits) == 1 for run in runs)
    both = sum(len(run.culprits) == 2 for run in runs)
    if single:
        parts.append(f"replay named the one culprit in {single}")
    if both:
        parts.append(f"both ranks in {both}, where two differ and no third tells who is odd")
    return Evidence(True, "; ".join(parts), "gloo-measured")
