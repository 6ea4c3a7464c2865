"""`genlock render`: which picture of what, into which file. Left out: drawing (`model.diagram`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import NotBuiltYet, UsageError
from .model.checker.counterexample import Counterexample
from .model.checker.report import named_protocol, run_check
from .model.diagram import save, sequence_mermaid, sequence_svg, state_diagram, state_mermaid
from .model.question import Question
from .model.tables import Protocol, Role, Scope

SUFFIX = {"svg": "svg", "png": "png", "dot": "dot", "mermaid": "mmd"}
"""Format to file suffix."""


def render(picture: str, subjects: Sequence[str], format: str, out: Path | None) -> list[Path]:
    """Draw and return the files written. Raises UsageError, and NotBuiltYet for pictures to come."""
    if format not in SUFFIX:
        raise NotBuiltYet(f"`--format {format}` is not built yet", do=f"choose one of {', '.join(SUFFIX)}")
    if picture == "states":
        return states(named_protocol(subjects[0] if subjects else "tp_v1.1"), subjects[1:], format, out)
    if picture == "counterexample":
        if len(subjects) != 1:
            raise UsageError("name one mutant", where="render counterexample", do="for example FM-04")
        report = run_check(Question("tp_v1.1", Scope(), mutant=subjects[0]))
        if report.counterexample is None:
            raise UsageError(f"{subjects[0]} has no counterexample", where="render counterexample")
        path = out or Path(f"{subjects[0]}.{SUFFIX[format]}")
        return [sequence(report.counterexample, report.result.network.protocol, format, path)]
    raise NotBuiltYet(f"`genlock render {picture}` is not built yet", do="draw states or a counterexample")


def states(protocol: Protocol, roles: Sequence[str], format: str, out: Path | None) -> list[Path]:
    """One state diagram a role; with several roles the role's name goes into each file's name."""
    chosen = [_role(protocol, name) for name in roles] or list(protocol.roles)
    stem = out or Path(f"{protocol.name}.{SUFFIX[format]}")
    written = []
    for role in chosen:
        path = stem if out and len(chosen) == 1 else stem.with_name(f"{stem.stem}-{role.name}{stem.suffix}")
        save(state_mermaid(role) if format == "mermaid" else state_diagram(role), path, format)
        written.append(path)
    return written


def sequence(example: Counterexample, protocol: Protocol, format: str, path: Path) -> Path:
    """The sequence chart of a counterexample."""
    chart = sequence_mermaid if format == "mermaid" else sequence_svg
    if format == "dot":
        raise UsageError("a sequence chart is no graph", where="--format dot", do="choose svg, png or mermaid")
    save(chart(example, protocol.schedule), path, format)
    return path


def draw_all(folder: Path, name: str, example: Counterexample) -> tuple[list[Path], bool]:
    """Both state diagrams and a counterexample, as pictures and as Mermaid; whether `dot` was there to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = named_protocol("tp_v1.1")
    can_draw = shutil.which("dot") is not None
    written = []
    for format in ("svg" if can_draw else "dot", "mermaid"):
        for role in protocol.roles:
            written += states(protocol, [role.name], format, folder / f"{role.name}.{SUFFIX[format]}")
    for format in ("svg", "mermaid"):
        written.append(sequence(example, protocol, format, folder / f"{name}.{SUFFIX[format]}"))
    return written, can_draw


def _role(protocol: Protocol, name: str) -> Role:
    for role in protocol.roles:
        if role.name == name:
            return role
    known = ", ".join(r.name for r in protocol.roles)
    raise UsageError(f"{protocol.name} has no role `{name}`", do=f"choose one of {known}")
