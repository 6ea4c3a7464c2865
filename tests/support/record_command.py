"""Runs `genlock record` to its end, and leaves nothing of what it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RECORD = [sys.executable, "-m", "genlock", "record", "--out"]


def record(out: Path, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([*RECORD, str(out), "--", *program], **environment)


def run(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and leave nothing of what it started."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=100)
        return subprocess.CompletedProcess(command, process.returncode, printed, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whoever is left of all that it started
