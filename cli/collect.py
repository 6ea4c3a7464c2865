"""Defines the flags of `genlock collect` and prints what was collected. Left out: the collecting (`collect.gather`)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Exit, UsageError

if TYPE_CHECKING:
    from ..collect.gather import Collected, OfRank

Pids = Annotated[
    list[str] | None,
    typer.Option(
        "--pid",
        metavar="PID[=RANK]",
        help="A rank's process, or the launcher's. May be repeated; without it, ranks are looked for.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="PATH", help="Archive to write, a .zip; or a folder, for one of a new name.", show_default="."
    ),
]
Apart = Annotated[
    float,
    typer.Option("--apart", min=2.0, metavar="SECONDS", help="Time between two looks: longer than a step of the job."),
]
Within = Annotated[float, typer.Option("--timeout", min=2.0, metavar="SECONDS", help="Pack what there is by then.")]
StackSignal = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Signal for which the program has called faulthandler.register(); used where py-spy is not.",
    ),
]


def collect(pids: list[str] | None, out: Path, apart: float, seconds: float, stack_signal: str | None) -> Exit:
    """Collect, and say what there is and what is missing. Return 0 where each rank shows where it stands."""
    from ..collect.gather import collect as collected

    def tell(text: str) -> None:
        print(f"genlock: {text}", file=sys.stderr, flush=True)

    named = dict(map(_named, pids or ()))
    done = collected(named, out, seconds=seconds, apart=apart, asked_by=_signal(stack_signal), tell=tell)
    print(as_text(done))
    return Exit.OK if done.complete else Exit.UNKNOWN


def as_text(done: Collected) -> str:
    """Return what was collected, what was not, and what comes next, for people."""
    many = "s" * (len(done.ranks) > 1)
    lines = [f"{done.path}: {len(done.ranks)} rank{many}, in {done.seconds:.1f} s" + ", interrupted" * done.interrupted]
    had: dict[str, list[str]] = {}
    for one in done.ranks:
        parts = ", ".join(name for name, there in _parts(one) if there) or "nothing"
        had.setdefault(parts, []).append(one.rank.name)
        for missing in one.missing():
            had.setdefault(missing, []).append(one.rank.name)
    lines += [f"  {_all(names, done)}: {what}" for what, names in had.items()]
    lines += [f"  {missing}" for missing in done.general]
    moving = [one.rank.name for one in done.ranks if one.moved]
    if moving:
        lines.append(f"the job moves: {', '.join(moving)} issued operations between the two looks")
    guessed = sorted({one.rank.by for one in done.ranks if not one.rank.certain and one.rank.by})
    lines += [f"which process is which rank is taken from {by}: `--pid PID=RANK` makes it certain" for by in guessed]
    if done.advice:
        lines += ["before the next run:", *(f"  {advice}" for advice in done.advice)]
    worlds = {one.rank.world for one in done.ranks if one.rank.world}
    if len(worlds) == 1 and (world := worlds.pop()) > len(done.ranks):
        lines.append(
            f"{len(done.ranks)} of {world} ranks are here: collect on the other nodes, and replay all archives"
        )
    return "\n".join([*lines, f"next: genlock replay {done.path}"])


def _all(names: list[str], done: Collected) -> str:
    if len(names) == len(done.ranks) > 1:
        return "all ranks"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _parts(one: OfRank) -> tuple[tuple[str, bool], ...]:
    looks = sum(bool(outcome.files) for outcome in one.stacks)
    record = next((outcome.found.get("by") for outcome in one.records if outcome.files), "")
    return (
        ("stopped by a signal", one.stopped),
        (f"stacks of {looks} looks", looks > 0),
        ("its trace" if record == "recorder" else "Flight Recorder dump", bool(record)),
        ("the end of its log", bool(one.logs.files)),
    )


def _named(given: str) -> tuple[int, int | None]:
    pid, sign, rank = given.partition("=")
    if not pid.isdecimal() or (sign and not rank.isdecimal()):
        raise UsageError(f"`{given}` names no process", where="--pid", do="give PID or PID=RANK, two numbers")
    return int(pid), int(rank) if sign else None


def _signal(name: str | None) -> signal.Signals | None:
    if name is None:
        return None
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    if full not in signal.Signals.__members__ or full in ("SIGKILL", "SIGSTOP"):
        raise UsageError(
            f"there is no signal `{name}` that a program handles", where="--stack-signal", do="say SIGUSR1"
        )
    return signal.Signals[full]
