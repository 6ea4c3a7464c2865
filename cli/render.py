"""Runs `genlock render`: which picture of what, into which file. Left out: drawing (`model.diagrams`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..model.checker.report import Report, named_protocol, run_check
from ..model.checker.shortest_run import shortest
from ..model.diagrams.sequence_chart import sequence_mermaid, sequence_svg
from ..model.diagrams.state_diagram import phase_colours, state_diagram, state_mermaid
from ..model.diagrams.state_diagram_diff import merged
from ..model.semantics.known_mutants import MUTANTS
from ..model.semantics.network import Network
from ..model.semantics.query import Query
from ..model.semantics.run import Counterexample
from ..model.tables import Protocol, Scope
from .image_file import save

DEFAULT = "tp_v1.1"
SUFFIX = {"svg": "svg", "png": "png", "dot": "dot", "mermaid": "mmd"}
"""Format to file suffix."""


def render(
    picture: str, subjects: Sequence[str], format: str, out: Path | None, other: str | None = None
) -> list[Path]:
    """Draw and return the files written; with `other`, mark what differs from it. Raises UsageError."""
    drawers = {"states": states, "sequence": runs, "counterexample": counterexamples, "trace": traces, "waits": waits}
    if format == "html":
        if other is not None:
            raise UsageError("a page shows one thing", where="--diff", do="choose svg, png, dot or mermaid")
        return [page(picture, subjects, out)]
    return drawers[picture](subjects, format, out, other)


def states(subjects: Sequence[str], format: str, out: Path | None, other: str | None) -> list[Path]:
    """Draw a state diagram for each role of `PROTOCOL [ROLE]...`; several roles have their names in the files'."""
    protocol = broken_or_named(subjects[0] if subjects else DEFAULT)
    names = [role.name for role in protocol.roles]
    chosen = subjects[1:] or names
    before = None if other is None else broken_or_named(other)
    colours = phase_colours(*protocol.roles)
    stem = out or Path(f"{protocol.name}.{SUFFIX[format]}")
    written = []
    for name in chosen:
        if name not in names:
            raise UsageError(f"{protocol.name} has no role `{name}`", do=f"choose one of {', '.join(names)}")
        role, marks = protocol.roles[names.index(name)], None
        if before is not None:
            role, marks = merged(before.roles[names.index(name)], role)
        path = stem if out and len(chosen) == 1 else stem.with_name(f"{stem.stem}-{name}{stem.suffix}")
        save((state_mermaid if format == "mermaid" else state_diagram)(role, colours, marks=marks), path, format)
        written.append(path)
    return written


def broken_or_named(name: str) -> Protocol:
    """Return a protocol by name, or TP v1.1 broken by the mutant of this name."""
    return MUTANTS[name].edit(named_protocol(DEFAULT)) if name in MUTANTS else named_protocol(name)


def counterexamples(subjects: Sequence[str], format: str, out: Path | None, other: str | None) -> list[Path]:
    """Draw the chart of how a mutant fails."""
    report = violated(subjects)
    before = None if other is None else found_in(violated([other]))
    path = out or Path(f"{subjects[0]}.{SUFFIX[format]}")
    return [sequence(found_in(report), report.network.protocol, format, path, before)]


def violated(subjects: Sequence[str]) -> Report:
    """Check a mutant at the scope that shows it. Raises UsageError where there is no counterexample."""
    if len(subjects) != 1:
        raise UsageError("name one mutant", where="render counterexample", do="for example FM-04")
    report = run_check(Query(DEFAULT, Scope(), mutant=subjects[0]))
    if report.counterexample is None:
        raise UsageError(f"{subjects[0]} has no counterexample", where="render counterexample")
    return report


def found_in(report: Report) -> Counterexample:
    """Return the counterexample of a check that `violated` has made."""
    assert report.counterexample is not None
    return report.counterexample


def runs(subjects: Sequence[str], format: str, out: Path | None, other: str | None) -> list[Path]:
    """Draw the chart of the shortest healthy run of `PROTOCOL [EVENT]` to an event, or to every rank's end."""
    network, example = healthy(subjects)
    before = None if other is None else shortest(network, other)
    path = out or Path(f"{network.protocol.name}-sequence.{SUFFIX[format]}")
    return [sequence(example, network.protocol, format, path, before)]


def healthy(subjects: Sequence[str]) -> tuple[Network, Counterexample]:
    """Return the smallest network of a protocol in which nothing goes wrong, and a shortest run of it."""
    name, *events = [*subjects] or [DEFAULT]
    network = Query(name, Scope(3, 1, 1), faults=0).network()
    return network, shortest(network, events[0] if events else None)


def traces(subjects: Sequence[str], format: str, out: Path | None, other: str | None) -> list[Path]:
    """Draw the chart of a recorded run, around its divergence."""
    path = out or Path(f"trace.{SUFFIX[format]}")
    example, protocol = diverged([Path(subject) for subject in subjects], whole=other is not None)
    before = None if other is None else diverged([Path(other)], whole=True)[0]
    return [sequence(example, protocol, format, path, before)]


def diverged(paths: Sequence[Path], *, whole: bool) -> tuple[Counterexample, Protocol]:
    """Return a recorded run up to its divergence, or only the last part of that. Raises UnreadableInput, UsageError."""
    from ..conformance.protocol.diagnose import diagnose, protocol_of
    from ..conformance.protocol.sequence_chart import AROUND, chart
    from ..traces.collectives import Recording
    from ..traces.load import load

    if not paths:
        raise UsageError("name the traces of a run", where="render trace", do="a folder, or one file a rank")
    found = load(paths)
    if isinstance(found, Recording):
        raise UsageError("a recording without a protocol", where=str(paths[0]), do="a chart shows moves of a protocol")
    events = sum(len(trace.lines) for trace in found) if whole else AROUND
    return chart(found, diagnose(found), events), protocol_of(found)


def waits(subjects: Sequence[str], format: str, out: Path | None, other: str | None) -> list[Path]:
    """Draw who waits for whom in a recorded run, of whatever format. Raises UnreadableInput, UsageError."""
    if not subjects:
        raise UsageError("name the traces of a run", where="render waits", do="a folder, or one file a rank")
    if other is not None:
        raise UsageError("there is nothing to compare in a picture of waits", where="--diff")
    from ..conformance.replay import judge_paths
    from ..conformance.wait_graph import WaitGraph
    from ..conformance.wait_graph_drawing import waits_graph, waits_mermaid

    graph = WaitGraph(judge_paths([Path(subject) for subject in subjects]))
    if not graph.waits:
        raise UsageError(graph.title(), where=subjects[0], do="`genlock replay` has the verdict")
    path = out or Path(f"waits.{SUFFIX[format]}")
    save(waits_mermaid(graph) if format == "mermaid" else waits_graph(graph), path, format)
    return [path]


def page(picture: str, subjects: Sequence[str], out: Path | None) -> Path:
    """Write one HTML page to step through; of a protocol, one to walk it by hand."""
    from ..page import check_page, run_page
    from ..page.html import write

    if picture == "states":
        story = check_page.of_protocol(broken_or_named(subjects[0] if subjects else DEFAULT))
    elif picture == "counterexample":
        story = check_page.story_of(violated(subjects))
    elif picture == "sequence":
        story = check_page.of_run(*healthy(subjects))
    else:
        story = run_page.of_paths([Path(subject) for subject in subjects])
    path = out or Path(f"{'-'.join([picture, *(Path(s).name for s in subjects)])}.html")
    write(path, story)
    return path


def sequence(
    example: Counterexample, protocol: Protocol, format: str, path: Path, before: Counterexample | None = None
) -> Path:
    """Draw the sequence chart of a run; with another one, mark what they do differently."""
    if format == "dot":
        raise UsageError("a sequence chart is no graph", where="--format dot", do="choose svg, png or mermaid")
    if before is not None and before.ranks != example.ranks:
        raise UsageError(
            f"{before.ranks} ranks there, {example.ranks} here", where="--diff", do="compare like with like"
        )
    chart = sequence_mermaid if format == "mermaid" else sequence_svg
    save(chart(example, protocol.schedule, before), path, format)
    return path


def draw_all(folder: Path, name: str, example: Counterexample) -> tuple[list[Path], bool]:
    """Draw both state diagrams and a counterexample, as pictures and as Mermaid.

    Return the files, and True if `dot` was there to draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    protocol = named_protocol(DEFAULT)
    can_draw = shutil.which("dot") is not None
    written = []
    for format in ("svg" if can_draw else "dot", "mermaid"):
        for role in protocol.roles:
            written += states([protocol.name, role.name], format, folder / f"{role.name}.{SUFFIX[format]}", None)
    for format in ("svg", "mermaid"):
        written.append(sequence(example, protocol, format, folder / f"{name}.{SUFFIX[format]}"))
    return written, can_draw
