"""Defines the flags of `genlock lint` and prints what it finds. Left out: the linting (`lint.run`)."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import Exit, UsageError


class Level(StrEnum):
    """Names the levels, from the worst on."""

    error = "error"
    warning = "warning"
    note = "note"


class Format(StrEnum):
    """Names the formats of a report."""

    text = "text"
    json = "json"
    sarif = "sarif"
    github = "github"
    junit = "junit"


Paths = Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Files, or folders of them, read together.")]
Select = Annotated[
    str | None, typer.Option("--select", help="Report these rules alone: GL101,GL10 or ALL.", metavar="RULES")
]
Ignore = Annotated[str | None, typer.Option("--ignore", help="Leave these rules out.", metavar="RULES")]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Leave out files and folders of this name or pattern, too.")
]
FailOn = Annotated[Level | None, typer.Option("--fail-on", help="Exit 1 from this level on [default: error].")]
Show = Annotated[Level | None, typer.Option("--show", help="Print from this level on [default: warning].")]
Baseline = Annotated[Path | None, typer.Option("--baseline", help="Leave out what this file has.")]
WriteBaseline = Annotated[Path | None, typer.Option("--write-baseline", help="Write what is found today, and exit 0.")]
Explain = Annotated[str | None, typer.Option("--explain", help="Print a rule's page and exit.", metavar="RULE")]
FormatChoice = Annotated[Format, typer.Option("--format", help="How to print the findings.")]


def lint(
    paths: list[Path] | None,
    select: str | None,
    ignore: str | None,
    exclude: list[str] | None,
    fail_on: Level | None,
    show: Level | None,
    baseline: Path | None,
    write_baseline: Path | None,
    explain: str | None,
    report: Format,
) -> Exit:
    """Lint the paths and print what is found; return the exit status."""
    from ..lint import rules, settings, silence
    from ..lint.run import lint as run_lint

    if explain is not None:
        print(rules.explain(explain))
        return Exit.OK
    if not paths:
        raise UsageError("no PATH given", do="name files or folders, or a rule with --explain")
    chosen = settings.read(paths[0] if paths[0].is_dir() else paths[0].parent)
    changed = replace(
        chosen,
        select=tuple(select.split(",")) if select is not None else chosen.select,
        ignore=tuple(ignore.split(",")) if ignore is not None else chosen.ignore,
        exclude=(*chosen.exclude, *(exclude or ())),
        fail_on=rules.Level[fail_on.value] if fail_on is not None else chosen.fail_on,
        show=rules.Level[show.value] if show is not None else chosen.show,
        baseline=None if write_baseline else baseline or chosen.baseline,
    )
    found = run_lint(paths, changed)
    if write_baseline is not None:
        silence.write_baseline(write_baseline, found.findings)
        print(f"{len(found.findings)} findings written to {write_baseline}")
        return Exit.OK
    from .. import __version__
    from ..lint import report as reports

    if report is Format.text:
        print(reports.as_text(found))
    elif report is Format.json:
        print(json.dumps(reports.as_json(found)))
    elif report is Format.sarif:
        from ..lint.sarif import as_sarif

        print(json.dumps(as_sarif(found, __version__)))
    elif report is Format.github:
        print(reports.as_github(found))
    else:
        print(reports.as_junit(found))
    return Exit.VIOLATED if found.failed else Exit.OK
