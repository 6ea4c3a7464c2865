"""Runs `genlock demo`: the whole line once, on this machine, each step really run and its outcome checked.

Left out: the work itself. What each step must show stands beside it; a step that shows anything else fails
the demo.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..conformance.protocol.diagnose import Diagnosis, diagnose
from ..conformance.report import as_json, as_text
from ..errors import Exit, GenlockError
from ..impl.jobs.launch import RunResult, launch, new_run, require_torch
from ..impl.scenario import Injection, RunConfig, default
from ..model.checker.report import Report, run_check
from ..model.semantics.query import Query
from ..model.semantics.run import Counterexample
from ..model.tables import Scope
from ..traces.format import Trace, find, read
from .render import draw_all
from .write_check import write_check

FOLDER = Path("genlock-demo")
RANKS, CHUNKS = 3, 8
DEADLINES = {"header": 3.0, "payload": 3.0, "collective": 3.0}
"""Seconds; short, because the broken build is meant to run into them."""


@dataclass(frozen=True)
class Shown:
    """Holds one line of the summary."""

    step: str
    outcome: str
    seconds: float


class NotAsExpected(GenlockError):
    """Says that a step of the demo did not show what it must show."""

    exit = Exit.VIOLATED


class _Demo:
    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.shown: list[Shown] = []
        self.outcome = ""

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Run a step under a live line; its outcome is what the body leaves in `outcome`."""
        begin = time.perf_counter()
        with self.console.status(f"[bold]{len(self.shown) + 1}[/] {title} …"):
            yield
        seconds = time.perf_counter() - begin
        self.shown.append(Shown(title, self.outcome, seconds))
        self.console.print(f"[green]✓[/] [bold]{title}[/] [dim]({seconds:.1f} s)[/]")
        self.console.print(Text(f"  {self.outcome}"))

    def echo(self, text: str) -> None:
        """Print a line from a rank, which is no markup whatever is in it."""
        self.console.print(Text(f"  {text}", style="dim"))

    def check(self, mutant: str | None = None) -> Report:
        report = run_check(Query("tp_v1.1", Scope(RANKS, chunks=2, steps=2), mutant=mutant))
        write_check(report, self.folder / f"check-{mutant or 'tp_v1.1'}")
        return report

    def run(self, name: str, injection: Injection | None = None) -> tuple[RunResult, list[Trace], Diagnosis]:
        """Run ranks into a folder of their own; return the run, and the verdict of `replay` on its traces."""
        out = self.folder / name
        config = RunConfig(new_run(), str(out.absolute()), "gloo", default(CHUNKS), DEADLINES, injection)
        result = launch(config, RANKS, echo=self.echo)
        traces = [read(path) for path in find(out)]
        diagnosis = diagnose(traces)
        (out / "replay.json").write_text(json.dumps(as_json(diagnosis), indent=2) + "\n")
        return result, traces, diagnosis


def run(folder: Path = FOLDER) -> int:
    """Run every step; returns the exit status. What an earlier demo left in `folder` is replaced."""
    require_torch()
    console = Console()
    if folder.exists():
        shutil.rmtree(folder)
    demo = _Demo(folder, console)
    with demo.step("model: TP v1.1, 3 ranks, 2 chunks, a crash of any one rank"):
        _check_holds(demo)
    with demo.step("model: the broken build FM-04 (header before preflight)"):
        cex = _check_mutant(demo)
    with demo.step("run: 3 processes on gloo, 8 chunks, replayed"):
        _healthy(demo)
    with demo.step("run: OM-01 injected (meta that cannot be encoded)"):
        _refused(demo)
    with demo.step("run: the broken build FM-04, on real processes"):
        _stranded(demo, cex)
    with demo.step("pictures"):
        _draw(demo, cex)
    _summary(console, demo)
    return Exit.OK


def _check_holds(demo: _Demo) -> None:
    report = demo.check()
    _must(report.holds, "every property of TP v1.1 holds", report.as_text())
    demo.outcome = f"{report.result.graph.counts[0]:,} states, {len(report.result.verdicts)} properties hold"


def _check_mutant(demo: _Demo) -> Counterexample:
    report = demo.check("FM-04")
    cex = report.counterexample
    if cex is None or cex.claim != "no_stranding":
        raise NotAsExpected("FM-04 must strand a rank", where="genlock demo")
    demo.outcome = f"stranding found in {len(cex.steps)} steps: {cex.stuck[-1].text}"
    return cex


def _healthy(demo: _Demo) -> None:
    result, _, diagnosis = demo.run("run-healthy")
    done = (result.chunks, result.refused) == (CHUNKS, 0) and result.heartbeats and result.hard_cuts > 1
    _must(bool(done) and result.recomputes > 0 and result.exit == Exit.OK, "8 chunks run", str(result))
    _must(diagnosis.verdict == "conforming", "the traces conform", as_text(diagnosis))
    demo.outcome = (
        f"{result.chunks} chunks, {result.heartbeats} heartbeats, {result.hard_cuts} hard cuts, "
        f"{result.recomputes} recompute; replay: {diagnosis.verdict}, "
        f"{diagnosis.matched_collectives} collectives matched"
    )


def _refused(demo: _Demo) -> None:
    fault = Injection("OM-01")
    result, traces, diagnosis = demo.run("run-OM-01", fault)
    _must((result.refused, result.chunks) == (1, CHUNKS - 1), "one chunk is refused, the others run", str(result))
    stayed = all(_count(t, "accept_infer") == result.chunks for t in traces if t.rank > 0)
    _must(stayed, "no worker leaves AWAIT_HEADER for the refused chunk", str(result))
    _must(diagnosis.verdict == "conforming", "the traces conform", as_text(diagnosis))
    demo.outcome = (
        f"rank0 refused chunk {fault.chunk}, no worker left AWAIT_HEADER, {result.chunks} chunks ran; "
        f"replay: {diagnosis.verdict}"
    )


def _stranded(demo: _Demo, cex: Counterexample) -> None:
    result, _, diagnosis = demo.run("run-FM-04", Injection("FM-04"))
    _must(result.exit == Exit.DEADLINE, "a deadline ends the run", str(result))
    named = diagnosis.verdict == "divergent" and diagnosis.failure_mode == "FM-04" and diagnosis.culprits == (0,)
    _must(named, "replay names FM-04 and rank0", as_text(diagnosis))
    predicted = {s.rank: s.state for s in cex.stuck if s.rank > 0}
    seen = {w.meeting.rank: w.meeting.entered.state for w in diagnosis.waits if w.meeting.rank > 0}
    _must(seen == predicted, f"workers are stuck as the model says ({predicted})", as_text(diagnosis))
    found = diagnosis.divergence
    where = f"{found.observed} in {found.state}, line {found.line}" if found else ""
    demo.outcome = (
        f"workers stuck in {', '.join(sorted(set(seen.values())))} as the model predicted, ended by a deadline; "
        f"replay: FM-04, rank0, {where}"
    )


def _draw(demo: _Demo, cex: Counterexample) -> None:
    written, drawn = draw_all(demo.folder / "pictures", "FM-04", cex)
    missing = "" if drawn else "; `dot` is missing (package graphviz), so the state diagrams are text"
    demo.outcome = ", ".join(path.name for path in written) + missing


def _count(trace: Trace, transition: str) -> int:
    return sum(e.transition == transition for e in trace.events)


def _must(holds: bool, what: str, seen: str) -> None:
    if not holds:
        raise NotAsExpected(f"expected that {what}, but saw: {seen}", where="genlock demo")


def _summary(console: Console, demo: _Demo) -> None:
    table = Table("", "step", "what was seen", "s", title="genlock demo")
    for number, shown in enumerate(demo.shown, 1):
        table.add_row(str(number), Text(shown.step), Text(shown.outcome), f"{shown.seconds:.1f}")
    console.print(table)
    for line in _next(demo.folder):
        console.print(line, highlight=False, soft_wrap=True)


def _next(folder: Path) -> Sequence[str]:
    return (
        f"All of it was really run; everything is in {folder}/",
        f"  the protocol        {folder}/pictures/rank0.svg, worker.svg",
        f"  the counterexample  {folder}/pictures/FM-04.svg, {folder}/check-FM-04/check.txt",
        f"  a real divergence   genlock replay {folder}/run-FM-04",
        f"  a healthy run       genlock replay {folder}/run-healthy",
    )
