"""Runs the guardian: the parent of one rank, which ends it at once when the run is lost, and says why.

A process of its own, of the standard library alone: `python -I -S guardian/__main__.py … -- CMD`. It reads the
page that its rank writes (`status_page`), meets the other guardians (`places`, `links`, `wire`), knows who waits for
whom (`deadlines`), has evidence gathered (`evidence`, `helper`) and kills. `supervisor` stands above it, to outlive
it. docs/guardian.md describes all of it.

No module here imports `typing`, `dataclasses` or `subprocess`: each would cost a megabyte on every rank.
"""

from __future__ import annotations

import os
import sys


def command() -> list[str]:
    """Return the command that starts a guardian; its flags, `--` and the program follow."""
    return [sys.executable, "-I", "-S", os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")]
