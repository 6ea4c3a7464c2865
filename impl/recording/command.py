"""Starts any program so that each of its torch.distributed ranks is recorded, and waits for it.

The program is not changed: a `sitecustomize` on PYTHONPATH (`attach`) reaches every Python that it starts.
This module needs no torch. A Python that cannot be reached (`-I`, `-E`, `-S`, without the environment) is found by
`unseen`, and stands in the recording's journal. Left out: what is recorded (`session`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from ...errors import UsageError
from ...traces import journal
from ...traces.format import SUFFIX
from .standstill import Standstill, Waits, end, tidy
from .unseen import Unseen

VARIABLE = "GENLOCK_RECORD"
ATTACH = Path(__file__).parent / "attach"
EVERY = 0.25
"""Seconds between two looks at the program."""


class RecordingSettings(msgspec.Struct, frozen=True):
    """Tells a recorded process, by its environment, what it is part of."""

    run: str
    out: str
    stacks: bool = False
    """True where a rank must be able to say where it stands."""
    precheck: float | None = None
    """Seconds that ranks wait for each other before each collective, to compare it; None: they do not."""
    stacks_after: float = 30.0
    """Seconds without an operation, after which a rank's stacks are written beside its trace."""
    keep: int | None = None
    """Bytes of a rank's trace that are kept; None: all."""

    @staticmethod
    def inherited() -> RecordingSettings | None:
        """Return the recording that this process is part of; None where it is part of none."""
        text = os.environ.get(VARIABLE)
        return msgspec.json.decode(text, type=RecordingSettings) if text else None

    @staticmethod
    def attempt_now() -> int:
        """Return the number of this start of the ranks, from 0: an elastic launcher may start them several times."""
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(restart) if restart.isdecimal() else 0

    def environment(self) -> dict[str, str]:
        """Return the environment of a program that is to be recorded."""
        return {**attaching(), VARIABLE: msgspec.json.encode(self).decode()}


def attaching() -> dict[str, str]:
    """Return an environment in which every Python attaches to torch what its other variables ask for."""
    path = os.pathsep.join(filter(None, [str(ATTACH), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


STALLED = -1000
"""Stands for the exit status of a program that stood still, and was ended for it."""


def record(
    program: Sequence[str], settings: RecordingSettings, stall: float | None = None, waits: Waits | None = None
) -> int:
    """Run a program to its end, recorded; returns its exit status, 128 + N where signal N ended it.

    Once the traces of a job have not grown for `stall` seconds, and `waits` says of them that a rank waits, the program
    is ended, and STALLED returned.

    Raises UsageError where there is no such program, or there are traces in the folder already.
    """
    if shutil.which(program[0]) is None:
        raise UsageError(f"there is no program `{program[0]}`", where="genlock record", do="name it after `--`")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    if _traces(out):
        raise UsageError("there are traces in this folder already", where=str(out), do="choose another --out")
    journal.remove(out)  # of a recording that recorded nothing
    journal.append(out, journal.Began(tuple(program), time.time_ns()))
    process = subprocess.Popen(program, env=settings.environment())

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    # a terminal's Ctrl-C reaches the program by itself
    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        standstill = None if stall is None or waits is None else Standstill(process.pid, out.resolve(), stall, waits)
        status = _to_its_end(process, out, standstill)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stalled = status == STALLED
    status = status if stalled or status >= 0 else 128 - status
    tidy(out)
    journal.end(out, 137 if stalled else status, stalled=stalled)
    for line in _summary(out):
        print(f"genlock: {line}", file=sys.stderr)
    return status


def _to_its_end(process: subprocess.Popen[bytes], out: Path, standstill: Standstill | None) -> int:
    """Wait for the program, note which of its processes are not recorded, and end it where it stands still."""
    unseen, noted = Unseen(process.pid), 0
    while True:
        unseen.look()
        for other in list(unseen.found.values())[noted:]:
            what = f"`{other.command}` loaded torch without the recorder: if it was a rank, it was not recorded"
            journal.append(out, journal.Unrecorded(what, other.pid))
        noted = len(unseen.found)
        if standstill is not None and standstill.found():
            end(process.pid, out)
            process.wait()
            return STALLED
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(EVERY)


def _summary(out: Path) -> list[str]:
    """Return what was recorded, what was not, and what to do next."""
    traces = _traces(out)
    lost = [f"not recorded: {line.what}" for line in journal.Journal(out).all(journal.Unrecorded)]
    folders = len({path.parent for path in traces})
    jobs = f", of {folders} jobs or attempts," if folders > 1 else ""
    if traces:
        return [
            f"{len(traces)} rank{'s' * (len(traces) > 1)} recorded{jobs} in {out}; next: genlock replay {out}",
            *lost,
        ]
    return lost or ["nothing was recorded: no process of the program initialised torch.distributed"]


def _traces(out: Path) -> list[Path]:
    return sorted(out.rglob(f"*{SUFFIX}"))
