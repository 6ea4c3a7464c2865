"""Measures `genlock lint`: CPU seconds for 100,000 lines, and how much it reports.

    python bench/lint.py [FOLDER]...

Without a folder it lints Genlock's own sources, and torch's where torch is installed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from genlock.errors import GenlockError
from genlock.lint.rules import Level
from genlock.lint.run import lint


def default_folders() -> list[Path]:
    """Return the sources that are at hand."""
    folders = [Path(__file__).resolve().parents[1] / "impl"]
    torch = find_spec("torch")
    if torch is not None and torch.origin is not None:
        folders.append(Path(torch.origin).parent / "distributed")
    return folders


def measure(folder: Path) -> tuple[int, float, int]:
    """Print a line for a folder; return its lines, the CPU seconds, and the findings of warning level and above."""
    begin = time.process_time()
    report = lint([folder])
    seconds = time.process_time() - begin
    levels = Counter(finding.level for finding in report.findings)
    counted = ", ".join(f"{levels[level]} {level.name}s" for level in reversed(Level))
    print(f"{folder}: {report.lines:,} lines, {seconds:.1f} s, {counted}")
    return report.lines, seconds, len(report.at_least(Level.warning))


def main() -> None:
    """Measure each folder that is given, and all of them together."""
    lines, seconds, found = 0, 0.0, 0
    for folder in [Path(name) for name in sys.argv[1:]] or default_folders():
        try:
            more = measure(folder)
        except GenlockError as error:
            print(error)
            continue
        lines, seconds, found = lines + more[0], seconds + more[1], found + more[2]
    if lines:
        per = f"{seconds * 1e5 / lines:.1f} s for 100,000 lines; {found * 1e3 / lines:.3f} findings for 1,000 lines"
        print(f"together: {lines:,} lines, {per}")


if __name__ == "__main__":
    main()
