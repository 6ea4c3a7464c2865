"""Starts any program so that each of its torch.distributed ranks is recorded, and waits for it.

The program is not changed: a `sitecustomize` on PYTHONPATH (`attach`) reaches every Python that it starts.
This module needs no torch. Left out: what is recorded (`session`), and programs whose Python ignores
PYTHONPATH (`-I`, `-E`, `-S`) or has no genlock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from ...errors import UnreadableInput, UsageError
from ...traces.format import find

VARIABLE = "GENLOCK_RECORD"
ATTACH = Path(__file__).parent / "attach"


class RecordingSettings(msgspec.Struct, frozen=True):
    """Tells a recorded process, by its environment, what it is part of."""

    run: str
    out: str
    attempt: int = 0
    """Number of the start of the ranks, from 0."""
    stacks_after: float = 30.0
    """Seconds without an operation, after which a rank's stacks are written beside its trace."""

    @staticmethod
    def inherited() -> RecordingSettings | None:
        """Return the recording that this process is part of; None where it is part of none."""
        text = os.environ.get(VARIABLE)
        return msgspec.json.decode(text, type=RecordingSettings) if text else None

    def restarted(self) -> RecordingSettings:
        """Return the recording of the ranks of this start: an elastic launcher may start them several times."""
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if not restart.isdecimal() or restart == "0":
            return self
        return msgspec.structs.replace(self, out=f"{self.out}/restart{restart}", attempt=int(restart))

    def environment(self) -> dict[str, str]:
        """Return the environment of a program that is to be recorded."""
        path = os.pathsep.join(filter(None, [str(ATTACH), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, VARIABLE: msgspec.json.encode(self).decode()}


def record(program: Sequence[str], settings: RecordingSettings) -> int:
    """Run a program to its end, recorded; returns its exit status, 128 + N where signal N ended it.

    Raises UsageError where there is no such program, or there are traces in the folder already.
    """
    if shutil.which(program[0]) is None:
        raise UsageError(f"there is no program `{program[0]}`", where="genlock record", do="name it after `--`")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    if _traces(out):
        raise UsageError("there are traces in this folder already", where=str(out), do="choose another --out")
    process = subprocess.Popen(program, env=settings.environment())

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    # a terminal's Ctrl-C reaches the program by itself
    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"genlock: {_summary(out)}", file=sys.stderr)
    return status if status >= 0 else 128 - status


def _summary(out: Path) -> str:
    traces = len(_traces(out))
    if traces:
        return f"{traces} rank{'s' * (traces > 1)} recorded in {out}; next: genlock replay {out}"
    return "nothing was recorded: no process of the program initialised torch.distributed in a Python with genlock"


def _traces(out: Path) -> list[Path]:
    try:
        return find(out)
    except UnreadableInput:
        return []
