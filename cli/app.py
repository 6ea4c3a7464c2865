"""Defines the commands: each reads its flags, calls the module that does the work, prints, and exits.

Left out: the work itself. A command imports its module when it is called, so that neither `--help` nor a
mistyped flag loads numpy, networkx or torch. `--version` is answered in `__main__`.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import Exit, GenlockError
from . import flags

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class Commands(TyperGroup):
    """Ends with one line and an exit status on what a user can meet; the rest are bugs, with a traceback."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().invoke(*args, **kwargs)
        except GenlockError as error:
            _end(str(error), error.exit)
        except OSError as error:
            if error.filename is None:  # not about a file: a closed pipe, say
                raise
            _end(f"{error.filename}: {error.strerror}", Exit.USAGE)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)


def _end(message: str, status: int) -> NoReturn:
    print("genlock:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(status)


def show(
    report: flags.ReportFormat,
    text: Callable[[], str],
    data: Callable[[], dict[str, Any]],
    junit: Callable[[], str],
) -> None:
    """Print a verdict in the format that was asked for."""
    if report is flags.ReportFormat.json:
        print(json.dumps(data()))
    else:
        print((text if report is flags.ReportFormat.text else junit)())


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show one live line on a terminal's stderr, gone at the end; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")


def searching(show_line: Callable[[str], None]) -> Callable[[int, int, int], None]:
    """Return a callback that shows a search as a live line: states, depth, queue, rate and memory so far."""
    begin = time.monotonic()

    def progress_made(states: int, depth: int, queue: int) -> None:
        rate = states / max(time.monotonic() - begin, 1e-3)
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            1 << 20 if sys.platform == "darwin" else 1 << 10
        )
        show_line(f"{states:,} states, depth {depth}, {queue:,} to expand, {rate:,.0f} states/s, {mebibytes:,} MiB")

    return progress_made


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: genlock demo",
)


@app.callback()
def genlock(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    """Can a rank of my job ever be left waiting, or drift away unnoticed?"""


@app.command(epilog="Example: genlock demo")
def demo() -> None:
    """Go through the whole line once, on this machine: check, run, break, replay."""
    from .demo import run as run_demo

    raise typer.Exit(run_demo())


@app.command(epilog="Example: genlock check tp_v1.1 --ranks 4 --fault crash --transport stream")
@flags.asking
def check(
    asked: flags.Asked,
    *,
    mutants: flags.Mutants = False,
    any_world_size: flags.AnyWorldSize = False,
    properties: flags.Properties,
    engine: flags.EngineChoice = flags.Engine.auto,
    symmetry: flags.SymmetryChoice = flags.AutoOnOff.auto,
    reduction: flags.ReductionChoice = flags.AutoOnOff.auto,
    out: flags.OutDir = None,
    report: flags.ReportChoice = flags.ReportFormat.text,
) -> None:
    """Search every state that a protocol can reach for a rank left waiting, and for every other violation."""
    flags.at_most_one(mutant=asked.mutant, mutants=mutants, any_world_size=any_world_size)
    question = asked.question()
    from ..model.checker.report import run_check

    if mutants:
        from ..model.mutation.report import kill_all

        with progress("killing mutants") as tell:
            killed = kill_all(question.scope, tell)
        show(report, killed.as_text, killed.as_json, killed.as_junit)
        raise typer.Exit(Exit.OK if killed.holds else Exit.VIOLATED)
    if any_world_size:
        from ..model.checker.parametric import report as proof_report
        from ..model.checker.parametric.prove import prove

        with progress("searching every world size") as tell:
            proof = prove(question, properties, searching(tell))
        if out is not None:
            from .write_check import write_proof

            write_proof(proof, out)
        of = proof_report
        show(report, partial(of.as_text, proof), partial(of.as_json, proof), partial(of.as_junit, proof))
        raise typer.Exit(proof.status)
    with progress("searching") as tell:
        found = run_check(
            question,
            properties=properties,
            engine=engine.value,
            symmetry=symmetry.value,
            reduction=reduction.value,
            progress=searching(tell),
        )
    if out is not None:
        from .write_check import write_check

        write_check(found, out)
        from ..page.check_page import story_of
        from ..page.html import write as write_page

        write_page(out / "page.html", story_of(found))
    show(report, found.as_text, found.as_json, found.as_junit)
    raise typer.Exit(found.exit)


export = typer.Typer(no_args_is_help=True, epilog="Example: genlock export promela tp_v1.1 --ranks 3")
app.add_typer(export, name="export")


@export.callback()
def exports() -> None:
    """Write a protocol's network for another checker."""


@export.command(epilog="Example: genlock export promela tp_v1.1 --ranks 3 --out spin")
@flags.asking
def promela(asked: flags.Asked, *, out: flags.OutDir = None) -> None:
    """Write the network that `check` searches, for Spin, which must find the same states and violations."""
    question = asked.question()
    from ..model.promela.export import export as written

    network = question.network()
    name = "-".join(filter(None, (network.protocol.name, question.mutant)))
    with progress("searching") as tell:
        found = written(network, name, lambda states: tell(f"{states:,} states"))
    if out is None:
        print(found.model, end="")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{found.name}.pml").write_text(found.model)
    print(f"cd {shlex.quote(str(out))} && {found.commands}")
    print(f"must find {found.expected}")


@app.command(epilog="Example: genlock run --ranks 3 --inject OM-15,rank=1,phase=generate --out run1")
def run(
    *,
    scenario: flags.Scenario = None,
    ranks: flags.Ranks = 3,
    backend: flags.BackendChoice = flags.Backend.gloo,
    chunks: flags.Chunks = 8,
    inject: flags.Inject = None,
    deadline: flags.Deadlines,
    observe: flags.Observe = False,
    agent_per_rank: flags.AgentPerRank = False,
    out: flags.OutDir = None,
) -> None:
    """Run rank0 and its workers on torch.distributed, guarded and recorded."""
    seconds, broken = flags.seconds("--deadline", deadline), flags.injection(inject)
    from ..impl import scenario as scenarios
    from ..impl.jobs import launch

    seconds = launch.deadlines_of(seconds)
    todo = scenarios.load(Path(scenario)) if scenario else scenarios.default(chunks)
    config = scenarios.RunConfig(
        run=launch.new_run(),
        out=str((out or launch.new_folder()).absolute()),
        backend=backend.value,
        scenario=todo,
        deadlines=seconds,
        injection=scenarios.injection(broken.id, broken.settings) if broken else todo.inject,
    )
    finished = launch.launch(config, ranks, echo=print, observe=observe, agent_per_rank=agent_per_rank)
    print(launch.as_text(finished))
    raise typer.Exit(finished.exit)


# Genlock's flags end where a user's program begins, which keeps its own.
WRAPS = {"allow_interspersed_args": False}


@app.command(
    context_settings=WRAPS,
    epilog="Example: torchrun --no-python --nproc-per-node 4 genlock guard -- python serve.py",
)
def guard(
    program: flags.Program,
    deadline: flags.Deadlines,
    observe: flags.Observe = False,
    meet: flags.Meet = None,
    interface: flags.Interface = None,
    out: flags.OutDir = None,
) -> None:
    """Put a guardian around one rank: when the run is lost, the rank ends at once and says why."""
    given = [f"--deadline={name}={value}" for name, value in flags.seconds("--deadline", deadline).items()]
    given += ["--observe"] * observe
    given += [f"--{name}={value}" for name, value in (("meet", meet), ("interface", interface), ("out", out)) if value]
    from ..guardian import command

    # in place of this process, which has all of the command line in memory
    os.execv(sys.executable, [*command(), *given, "--", *program])


@app.command(context_settings=WRAPS, epilog="Example: genlock record --out traces -- python train.py --lr 1")
def record(program: flags.Program, out: flags.OutDir = None) -> None:
    """Record the collectives of any torch.distributed program, one trace per rank."""
    from ..impl.jobs.launch import new_folder, new_run
    from ..impl.recording.command import Recording
    from ..impl.recording.command import record as run_recorded

    recording = Recording(new_run(), str((out or new_folder()).absolute()))
    raise typer.Exit(run_recorded(program, recording))


@app.command(epilog="Example: genlock replay traces --format json")
def replay(
    paths: flags.TracePaths,
    report: flags.ReportChoice = flags.ReportFormat.text,
    out: flags.OutDir = None,
) -> None:
    """Hold recorded ranks against the model: conforming, divergent or unknown."""
    from ..conformance import report as reports
    from ..conformance.replay import judge, judge_paths

    if out is None:
        found = judge_paths(paths)
    else:
        from ..conformance.write_report import write
        from ..page.html import write as write_page
        from ..page.run_page import story_of
        from ..traces.load import load

        traces = load(paths)
        found = judge(traces)
        write(traces, found, out)
        write_page(out / "page.html", story_of(traces, found))
    show(report, partial(reports.as_text, found), partial(reports.as_json, found), partial(reports.as_junit, found))
    raise typer.Exit(reports.STATUS[found.verdict])


@app.command(epilog="Example: genlock render states tp_v1.1 --out states.svg")
def render(
    *,
    picture: flags.PictureChoice,
    subjects: flags.Subjects,
    diff: flags.Diff = None,
    picture_format: flags.PictureFormatChoice = flags.PictureFormat.svg,
    out: flags.OutFile = None,
) -> None:
    """Draw a protocol, a run of it, a counterexample, a trace, or who waits; as HTML, a page to step through."""
    from .render import render as draw

    for path in draw(picture.value, subjects, picture_format.value, out, diff):
        print(path)


@app.command(epilog="Example: genlock docs --evidence audit/evidence.json")
def docs(evidence: flags.Evidence = None, out: flags.OutDir = None) -> None:
    """Write docs/contract from the tables that the code runs on, and from what an audit found."""
    from ..contract.audit import EVIDENCE, write_docs

    folder = out or Path("docs/contract")
    for path in write_docs(folder, evidence or folder / EVIDENCE):
        print(path)


@app.command(epilog="Example: genlock audit --out audit")
def audit(
    protocol: flags.ProtocolName = "tp_v1.1",
    *,
    mutant: flags.Mutant = None,
    full: flags.FullMatrix = False,
    runs: flags.RunFolders,
    out: flags.OutDir = None,
    report: flags.AuditChoice = flags.TextOrJson.text,
) -> None:
    """Go through the checklist of TP v1.1, or judge a protocol or runs of your own: ship or do not ship."""
    from ..contract.audit import TP, write
    from ..contract.audit import audit as audited

    with progress("auditing") as tell:
        rows = None
        if protocol == TP and mutant is None and not runs:
            from ..contract.breakit_findings import run_matrix

            rows = run_matrix(tell, out, full=full)
        found = audited(tell, protocol, mutant, runs, rows)
    if out is not None:
        from ..page.audit_page import story_of
        from ..page.html import write as write_page

        write(found, out)
        write_page(out / "page.html", story_of(found.as_json()))
    print(json.dumps(found.as_json()) if report is flags.TextOrJson.json else found.as_text())
    raise typer.Exit(found.exit)
