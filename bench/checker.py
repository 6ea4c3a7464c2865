"""Times the checker beside Spin: the same networks, in one run, turn and turn about, one thread each.

    python bench/checker.py [--repeat 5] [--large] [--out FOLDER]

Spin is given what `genlock export promela` writes, compiled with -O2 -DNOREDUCE -DSAFETY, depth first. Both must find
the same number of states. Rates are of the search alone (Spin: its own elapsed time); the whole commands, from the
shell and warm, stand beside them. Every figure is a median. Where Spin is absent, Genlock is measured alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from genlock.model.semantics.faults import FAULTS

GENLOCK = [sys.executable, "-m", "genlock"]
EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "protocol_m.py")


@dataclass
class Case:
    """A network, and what was measured on it. Seconds."""

    name: str
    arguments: Sequence[str]
    large: bool = False
    whole_space: bool = True
    """Else the search is reduced, and Spin, which is not, is left out."""
    states: int = 0
    searched: int = 0
    ours: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    spin: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """States a second over Spin's. States that stand for others under symmetry are not counted."""
        return None if not self.spin else self.searched / median(self.ours) / (self.states / median(self.spin))


def m(workers: int, chunks: int, calls: int) -> list[str]:
    return [EXAMPLE, *(f"--param={name}={value}" for name, value in zip("WCK", (workers, chunks, calls), strict=True))]


def tp(ranks: int, chunks: int, *more: str) -> list[str]:
    return ["tp_v1.1", f"--ranks={ranks}", f"--chunks={chunks}", *more]


ANY_FAULT = [f"--fault={kind}" for kind in FAULTS]
CASES = (
    Case("M (3,2,3)", m(3, 2, 3)),
    Case("M (4,2,3)", m(4, 2, 3)),
    Case("M (5,2,3)", m(5, 2, 3)),
    Case("TP v1.1, 3 ranks, 1 chunk", tp(3, 1)),
    Case("TP v1.1, 3 ranks, 2 chunks", tp(3, 2)),
    Case("TP v1.1, 3 ranks, 2 chunks, stream", tp(3, 2, "--transport=stream")),
    Case("TP v1.1, 4 ranks, 1 chunk", tp(4, 1, "--reduction=off")),
    Case("TP v1.1, 4 ranks, 2 chunks, reduced", tp(4, 2), whole_space=False),
    Case("the same, one fault of any of 17 kinds", tp(4, 2, *ANY_FAULT), whole_space=False),
    Case("the same, stream", tp(4, 2, *ANY_FAULT, "--transport=stream"), whole_space=False),
    Case("TP v1.1, 8 ranks, 2 chunks, reduced", tp(8, 2), whole_space=False),
    Case("TP v1.1, 8 ranks, 2 chunks, reduced, stream", tp(8, 2, "--transport=stream"), whole_space=False),
    Case("M (6,2,3)", m(6, 2, 3), large=True),
    Case("TP v1.1, 4 ranks, 2 chunks", tp(4, 2, "--reduction=off"), large=True),
)


def build(case: Case, folder: Path) -> Path | None:
    """Spin's verifier of the same network; None where it cannot be made."""
    if not case.whole_space or not all(map(shutil.which, ("spin", "gcc"))):
        return None
    folder.mkdir()
    network = [argument for argument in case.arguments if not argument.startswith("--reduction")]
    subprocess.run([*GENLOCK, "export", "promela", *network, "--out", str(folder)], check=True, capture_output=True)
    [model] = folder.glob("*.pml")
    subprocess.run(["spin", "-a", model.name], cwd=folder, check=True, capture_output=True)
    build = ["gcc", "-O2", "-DNOREDUCE", "-DSAFETY", "-DMEMLIM=16000", "-w", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=folder, check=True)
    return folder / "pan"


def run_spin(pan: Path, case: Case) -> None:
    power = max(20, (case.states * 2).bit_length())
    said = subprocess.run(
        [pan, "-c0", "-n", f"-m{case.states + 10}", f"-w{power}"],
        cwd=pan.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"(\d+) states, stored", said)
    elapsed = re.search(r"elapsed time ([\d.e+]+) seconds", said)
    if not found or not elapsed or int(found[1]) != case.states:
        sys.exit(f"{case.name}: Spin finds {found and found[1]} states, Genlock {case.states}")
    case.spin.append(max(float(elapsed[1]), 0.01))


def run_ours(case: Case) -> None:
    begin = time.perf_counter()
    done = subprocess.run(
        [*GENLOCK, "check", *case.arguments, "--format", "json"], capture_output=True, text=True, check=True
    ).stdout
    case.whole.append(time.perf_counter() - begin)
    report = json.loads(done)
    case.states, case.searched = report["states"], report["searched"]
    case.ours.append(report["search_seconds"])


HEAD = (
    "| network | states | searched | Genlock, search | Genlock, whole command | Spin, search |"
    " rate over Spin's | time over Spin's |\n|---|---|---|---|---|---|---|---|"
)


def row(case: Case) -> str:
    """A line of a table in Markdown."""
    spin = median(case.spin) if case.spin else None
    cells = [
        case.name,
        f"{case.states:,}",
        f"{case.searched:,}",
        f"{median(case.ours):.2f} s, {case.searched / median(case.ours) / 1e6:.2f} M/s",
        f"{median(case.whole):.2f} s",
        "absent" if spin is None else f"{spin:.2f} s, {case.states / spin / 1e6:.2f} M/s",
        "" if case.ratio is None else f"{case.ratio:.1f}×",
        "" if spin is None else f"{median(case.ours) / spin:.2f}×",
    ]
    return f"| {' | '.join(cells)} |"


def plot(cases: Sequence[Case], path: Path) -> None:
    """Seconds of search against states, both on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    spin = [(case.states, median(case.spin)) for case in cases if case.spin]
    axes.scatter(*zip(*((case.states, median(case.ours)) for case in cases), strict=True), label="Genlock")
    if spin:
        axes.scatter(*zip(*spin, strict=True), marker="s", label="Spin")
    axes.set(xscale="log", yscale="log", xlabel="states", ylabel="seconds of search, one thread")
    axes.grid(visible=True, alpha=0.4)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--large", action="store_true", help="the networks that take minutes, too")
    parser.add_argument("--only", default="", help="only the networks whose name has this in it")
    parser.add_argument("--out", type=Path, help="write checker.md and checker.svg into this folder")
    given = parser.parse_args()
    cases = [case for case in CASES if (given.large or not case.large) and given.only in case.name]
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            print(f"{case.name} …", file=sys.stderr, flush=True)
            run_ours(case)  # compiles what is not yet cached
            case.ours.clear()
            case.whole.clear()
            pan = build(case, Path(folder) / str(number))
            for _ in range(given.repeat):
                run_ours(case)
                if pan is not None:
                    run_spin(pan, case)
            print(row(case), flush=True)
    if not cases[0].spin:
        print("\nSpin is absent (packages spin and gcc): Genlock was measured alone.")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "checker.md").write_text("\n".join([HEAD, *map(row, cases), ""]), encoding="utf-8")
        plot(cases, given.out / "checker.svg")


if __name__ == "__main__":
    main()
