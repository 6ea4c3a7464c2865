"""Times networks whose states lie in one rank, or in rich variables, beside Spin: whole commands, turn and turn about.

    python bench/rich_states.py [--repeat 5] [--managers 6] [--out FOLDER]

The system is two-phase commit as TLA+'s TwoPhase has it: `examples/peers/one_rank.py`, and the same rules in Promela,
below. Both must find as many states. Timed is all that a user waits for: of Spin the generation, the compilation
(-O2) and the run, of Genlock the command. Every figure is a median.
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
from pathlib import Path
from statistics import median

MODEL = Path(__file__).resolve().parent.parent / "examples" / "peers" / "one_rank.py"
SPIN = "spin -a system.pml && cc -O2 -DNOREDUCE -DSAFETY -o pan pan.c && ./pan -m1000000 -w22"


def promela(managers: int) -> str:
    """Return two-phase commit of so many resource managers: one process, each step of which is one transition."""
    steps = ["tm == 0 -> tm = 2; aborts = 1"]
    steps.append(" && ".join(["tm == 0", *(f"heard[{r}]" for r in range(managers))]) + " -> tm = 1; commits = 1")
    for r in range(managers):
        steps.append(f"tm == 0 && sent[{r}] && !heard[{r}] -> heard[{r}] = 1")
        steps.append(f"rm[{r}] == 0 -> rm[{r}] = 1; sent[{r}] = 1")
        steps.append(f"rm[{r}] == 0 -> rm[{r}] = 3")
        steps.append(f"commits && rm[{r}] != 2 -> rm[{r}] = 2")
        steps.append(f"aborts && rm[{r}] != 3 -> rm[{r}] = 3")
    options = "\n".join(f"  :: d_step {{ {step} }}" for step in steps)
    head = f"byte rm[{managers}]; bit sent[{managers}]; bit heard[{managers}]; byte tm; bit commits; bit aborts;"
    return f"{head}\nactive proctype system() {{\nend: do\n{options}\n  od\n}}\n"


def timed(command: str | list[str], folder: str) -> tuple[float, str]:
    """Return the seconds that a command took, and what it said. Raise CalledProcessError where it fails."""
    begin = time.perf_counter()
    said = subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    return time.perf_counter() - begin, said


def main() -> int:
    """Time both; 1 where they find different numbers of states."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--managers", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, parameter = f"{MODEL}:two_phase_commit", f"managers={options.managers}"
    command = [sys.executable, "-m", "genlock", "check", model, "--param", parameter, "--faults", "0"]
    command += ["--format", "json"]
    ours: list[float] = []
    spin: list[float] = []
    found = theirs = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "system.pml").write_text(promela(options.managers))
        timed(command, folder)  # what is compiled once is compiled
        for _ in range(options.repeat):
            seconds, said = timed(command, folder)
            ours.append(seconds)
            found = json.loads(said)["states"] - 2  # a start and an end are one more each
            if shutil.which("spin"):
                seconds, said = timed(SPIN, folder)
                spin.append(seconds)
                theirs = int(re.findall(r"(\d+) states, stored", said)[0])
    line = f"two-phase commit of {options.managers}: {found:,} states; genlock {median(ours):.2f} s"
    if spin:
        ratio = median(a / b for a, b in zip(ours, spin, strict=True))
        line += f", spin {theirs:,} states, {median(spin):.2f} s: {ratio:.2f} times as long"
    print(line)
    if options.out:
        options.out.joinpath("rich_states.txt").write_text(line + "\n")
    return int(bool(spin) and found != theirs)


if __name__ == "__main__":
    sys.exit(main())
