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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import Exit, GenlockError, Unfinished, UsageError
from . import collect as collect_flags
from . import flags
from . import lint as lint_flags

if TYPE_CHECKING:
    from ..conformance.replay import Replayed
    from ..model.semantics.network import Network
    from ..model.semantics.query import Query

REPORT_IT = "please report it with the lines above and the command (see CONTRIBUTING.md)"
MISUSES: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)
"""The error that typer raises where a command line cannot be read; its module is another by version."""


class Commands(TyperGroup):
    """Ends with one line and an exit status on what a user can meet; the rest are bugs, with a traceback."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().invoke(*args, **kwargs)
        except GenlockError as error:
            _end(str(error), error.exit)
        except KeyboardInterrupt:
            _end("interrupted", Exit.UNKNOWN)
        except MemoryError:
            _end("no memory is left", Exit.UNKNOWN)
        except Exception as error:
            if isinstance(error, MISUSES) and type(error).__name__ != "NoArgsIsHelpError":
                _end(_misuse(error), Exit.USAGE)
            if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError, *MISUSES)):
                raise
            if isinstance(error, OSError) and error.filename is not None:
                _end(f"{error.filename}: {error.strerror}", Exit.USAGE)
            traceback.print_exc()
            _end(f"this is a bug of Genlock {__version__}, and no verdict; {REPORT_IT}", Exit.BUG)


def _misuse(error: Any) -> str:
    """Say in one line what cannot be read in a command line, and where to look."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "genlock"
    what = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{what}; see `{path} --help`"


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


EVERY = 3.0
"""Seconds between two lines of progress where stderr is no terminal."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show one live line on a terminal's stderr, gone at the end; elsewhere a line every few seconds."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def tell(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                print(f"genlock: {what}: {text}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")


def searching(tell: Callable[[str], None], network: Network | None = None) -> Callable[[int, int, int], None]:
    """Return a callback that reports a search: states, depth, queue, rate, memory, and variables that keep growing."""
    begin = time.monotonic()
    last, looked, pause, grows = 0.0, begin, EVERY - 1.0, ""

    def progress_made(states: int, depth: int, queue: int) -> None:
        nonlocal last, looked, pause, grows
        now = time.monotonic()
        if now - last < 0.1:
            return
        last = now
        rate = states / max(now - begin, 1e-3)
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            1 << 20 if sys.platform == "darwin" else 1 << 10
        )
        if network is not None and now - looked > pause:  # it looks at all that was met, which takes its time
            from ..model.checker.report import growing_in

            grows = "".join(f"; {growth.text}" for growth in growing_in(network))
            looked = time.monotonic()
            pause = max(EVERY - 1.0, 20 * (looked - now))
        tell(f"{states:,} states, depth {depth}, {queue:,} to expand, {rate:,.0f} states/s, {mebibytes:,} MiB{grows}")

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
    max_states: flags.MaxStates = None,
    timeout: flags.Timeout = None,
    allow_unreached: flags.AllowUnreached,
    out: flags.OutDir = None,
    report: flags.ReportChoice = flags.ReportFormat.text,
) -> None:
    """Search every state that a protocol can reach for a rank left waiting, and for every other violation."""
    flags.at_most_one(mutant=asked.mutant, mutants=mutants, any_world_size=any_world_size)
    if mutants:
        asked.refuse_for_mutants()
        _check_mutants(asked, report)
    if any_world_size:
        if asked.ranks is not None:
            raise UsageError("it plays no part in every world size", where="--ranks", do="leave it out")
        for flag, given in (("--engine", engine), ("--symmetry", symmetry), ("--reduction", reduction)):
            if given.value != "auto":
                raise UsageError("it plays no part in every world size", where=flag, do="leave it out")
        _check_any_world_size(
            asked.question(),
            out,
            report,
            properties=properties,
            max_states=max_states,
            timeout=timeout,
            allow_unreached=allow_unreached,
        )
    question = asked.question()
    from ..model.checker.report import run_check

    with progress("searching") as tell:
        found = _unless_interrupted(
            partial(
                run_check,
                question,
                properties=properties,
                engine=engine.value,
                symmetry=symmetry.value,
                reduction=reduction.value,
                allow_unreached=allow_unreached,
                max_states=max_states,
                timeout=timeout,
                watching=lambda network: searching(tell, network),
            )
        )
    if out is not None:
        from .write_check import write_check

        write_check(found, out)
        from ..page.check_page import story_of
        from ..page.html import write as write_page

        write_page(out / "page.html", story_of(found))
    show(report, found.as_text, found.as_json, found.as_junit)
    raise typer.Exit(found.exit)


T = TypeVar("T")


def _unless_interrupted(work: Callable[[], T]) -> T:
    """Return what some work gives. Raise Unfinished where Ctrl-C ends it before anything is known."""
    try:
        return work()
    except KeyboardInterrupt:
        raise Unfinished("interrupted before anything was known") from None


def _check_mutants(asked: flags.Asked, report: flags.ReportFormat) -> NoReturn:
    from ..model.mutation.report import kill_all

    with progress("killing mutants") as tell:
        killed = _unless_interrupted(lambda: kill_all(asked.question().scope, tell))
    show(report, killed.as_text, killed.as_json, killed.as_junit)
    raise typer.Exit(killed.exit)


def _check_any_world_size(question: Query, out: Path | None, report: flags.ReportFormat, **chosen: Any) -> NoReturn:
    from ..model.checker.parametric import report as of
    from ..model.checker.parametric.prove import prove

    with progress("searching every world size") as tell:
        proof = _unless_interrupted(lambda: prove(question, progress=searching(tell), **chosen))
    if out is not None:
        from .write_check import write_proof

        write_proof(proof, out)
    show(report, partial(of.as_text, proof), partial(of.as_json, proof), partial(of.as_junit, proof))
    raise typer.Exit(proof.status)


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
    oversubscribe: flags.Oversubscribe = False,
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
    finished = launch.launch(
        config,
        ranks,
        echo=print,
        observe=observe,
        agent_per_rank=agent_per_rank,
        oversubscribe=oversubscribe,
    )
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
    from ..impl.recording.command import attaching

    # in place of this process, which has all of the command line in memory
    os.execve(sys.executable, [*command(), *given, "--", *program], attaching())


@app.command(context_settings=WRAPS, epilog="Example: genlock record --out traces -- python train.py --lr 1")
def record(
    program: flags.Program,
    stall: flags.Stall = None,
    precheck: flags.Precheck = None,
    keep: flags.Keep = None,
    out: flags.OutDir = None,
) -> None:
    """Record the collectives of any torch.distributed program, one trace per rank."""
    from ..impl.jobs.launch import new_folder, new_run
    from ..impl.recording import command

    folder = (out or new_folder()).absolute()
    recording = command.RecordingSettings(new_run(), str(folder), stall is not None, precheck, keep=keep)
    status = command.record(program, recording, stall, _left_waiting)
    if status != command.STALLED:
        raise typer.Exit(status)
    from ..conformance import report as reports
    from ..conformance.replay import replay as replayed

    print(f"genlock: it stood still for {stall:g} s, and was ended", file=sys.stderr)
    found = replayed([folder]).diagnosis
    print(reports.as_text(found))
    raise typer.Exit(reports.STATUS[found.verdict])


def _left_waiting(traces: list[Path]) -> bool:
    """Return True if a rank is left waiting in traces that do not grow."""
    from ..conformance.replay import replay as replayed

    found = replayed(traces).diagnosis
    return bool(found.accused or found.waits) and found.verdict != "conforming"


@app.command(epilog="Example: genlock replay traces --format json")
def replay(
    paths: flags.TracePaths,
    report: flags.ReportChoice = flags.ReportFormat.text,
    out: flags.OutDir = None,
) -> None:
    """Judge a job by its traces, dumps, logs and stacks: conforming, divergent or unknown (see `explain evidence`)."""
    from ..conformance import report as reports
    from ..conformance.replay import replay as replayed

    run = replayed(paths)
    found = run.diagnosis
    if out is not None:
        _write_replay(run, out)
    show(report, partial(reports.as_text, found), partial(reports.as_json, found), partial(reports.as_junit, found))
    raise typer.Exit(reports.STATUS[found.verdict])


def _write_replay(run: Replayed, out: Path) -> None:
    """Write the verdict, and what can be drawn of the run; of several jobs, each in a folder of its own."""
    from ..conformance.write_report import write, write_verdict

    if run.jobs or run.drawable is None:  # logs have no moves to draw
        write_verdict(run.diagnosis, out)
        for number, job in enumerate(run.jobs, 1):
            _write_replay(job.replayed, out / f"job{number}")
        return
    from ..page.html import write as write_page
    from ..page.run_page import story_of

    write(run.drawable, run.diagnosis, out)
    write_page(out / "page.html", story_of(run.drawable, run.diagnosis))


@app.command(epilog="Example: genlock collect --out /shared/hang")
def collect(
    pids: collect_flags.Pids = None,
    out: collect_flags.Out = Path(),
    apart: collect_flags.Apart = 10.0,
    seconds: collect_flags.Within = 60.0,
    stack_signal: collect_flags.StackSignal = None,
) -> None:
    """Gather what a job that hangs now shows, on this node, into one archive for `replay`. The job is left as it is."""
    raise typer.Exit(collect_flags.collect(pids, out, apart, seconds, stack_signal))


@app.command(epilog="Example: genlock explain evidence")
def explain(topic: flags.Topic) -> None:
    """Tell what a hung job leaves behind, what to switch on for each version of torch, and what to fetch now."""
    from .explain import explain as text_of

    print(text_of(topic), end="")


@app.command(epilog="Example: genlock lint src train.py --fail-on warning")
def lint(
    paths: lint_flags.Paths = None,
    select: lint_flags.Select = None,
    ignore: lint_flags.Ignore = None,
    exclude: lint_flags.Exclude = None,
    fail_on: lint_flags.FailOn = None,
    show: lint_flags.Show = None,
    baseline: lint_flags.Baseline = None,
    write_baseline: lint_flags.WriteBaseline = None,
    explain: lint_flags.Explain = None,
    report: lint_flags.FormatChoice = lint_flags.Format.text,
) -> None:
    """Find collectives that not every rank of a group will reach alike, by reading the program."""
    raise typer.Exit(
        lint_flags.lint(paths, select, ignore, exclude, fail_on, show, baseline, write_baseline, explain, report)
    )


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
@flags.asking
def audit(
    asked: flags.Audited,
    *,
    full: flags.FullMatrix = False,
    runs: flags.RunFolders,
    require: flags.Require = None,
    out: flags.OutDir = None,
    report: flags.ReportChoice = flags.ReportFormat.text,
) -> None:
    """Go through the checklist of TP v1.1, or judge a protocol or runs of your own: ship or do not ship."""
    from ..contract.audit import TP, write
    from ..contract.audit import audit as audited

    contract = asked.protocol == TP and asked.mutant is None and not runs
    if asked.chosen and (contract or runs):
        of, do = ("recorded runs are", "leave it out") if runs else ("the contract is", f"`genlock check {TP}` has it")
        raise UsageError(f"{of} audited as a whole", where=", ".join(asked.chosen), do=do)
    if full and not contract:
        raise UsageError(f"the break-it matrix is of {TP} alone", where="--full", do="leave it out")
    matrix = None
    if contract:
        from ..contract.breakit_findings import run_matrix
        from ..impl.jobs.launch import require_torch

        require_torch()
        matrix = partial(run_matrix, out=out, full=full)
    with progress("auditing") as tell:
        question = asked.on(stream=False)
        found = audited(tell, question, asked.streams, runs=runs, matrix=matrix, nccl=require is not None)
    if out is not None:
        from ..page.audit_page import story_of
        from ..page.html import write as write_page

        write(found, out)
        if not found.ended:  # the page walks the model, which takes longer than Ctrl-C may
            write_page(out / "page.html", story_of(found.as_json()))
    show(report, found.as_text, found.as_json, found.as_junit)
    raise typer.Exit(found.exit)
