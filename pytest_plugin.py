"""A fixture for other people's tests: record the torch.distributed ranks that a test starts; they must conform.

    def test_training(genlock_ranks):
        subprocess.run(["torchrun", "--nproc-per-node", "2", "train.py"], check=True)

Every Python process that the test starts is recorded, as by `genlock record`; once the test has returned, the traces
are replayed, and it fails unless all of them conform. A test that recorded nothing fails as well.

pytest loads this module in every project that has Genlock installed, so it imports nothing until the fixture is used.
Left out: ranks that are forked from the test's own process, which never start a Python of their own.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conformance.diagnosis import Diagnosis

FIXTURE = "genlock_ranks"


class RecordedRanks:
    """The ranks that a test has started so far. A run begins with the first process after all earlier ones ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        """Where the traces are, in a folder for each run."""
        self._pids: list[int] = []
        self._count = 1

    def environment(self) -> dict[str, str]:
        """What the environment of a process must have to be recorded, as part of the run that is under way."""
        from .impl.recording.command import VARIABLE, Recording

        whole = Recording(f"test{self._count}", str(self._folder())).environment()
        return {name: whole[name] for name in ("PYTHONPATH", VARIABLE)}

    def starting(self) -> None:
        """A process is about to start: of the run that is under way, or the first of another one."""
        if self._folder() in self.runs() and not any(map(_lives, self._pids)):
            self._count += 1

    def started(self, pid: int) -> None:
        """It has."""
        self._pids.append(pid)

    def runs(self) -> list[Path]:
        """The folder of each run that was recorded."""
        from .traces.format import SUFFIX

        return sorted({path.parent for path in self.out.rglob(f"*{SUFFIX}")})

    def diagnoses(self) -> list[Diagnosis]:
        """The verdict on each run. Raises UnreadableInput."""
        from .conformance.replay import replay

        return [replay([folder]).diagnosis for folder in self.runs()]

    def check(self) -> None:
        """Fail the test unless something was recorded, and all of it conforms. May be called several times."""
        __tracebackhide__ = True
        from .conformance.report import as_text

        found = self.diagnoses()
        if not found:
            pytest.fail(f"{FIXTURE}: nothing was recorded: no process of this test initialised torch.distributed")
        bad = [as_text(diagnosis) for diagnosis in found if diagnosis.verdict != "conforming"]
        if bad:
            pytest.fail("\n\n".join([f"{FIXTURE}: traces in {self.out}", *bad]), pytrace=False)

    def _folder(self) -> Path:
        return self.out / f"run{self._count}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def genlock_ranks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> RecordedRanks:
    """Record the torch.distributed ranks that this test starts; they must conform."""
    import multiprocessing.util as spawning
    import subprocess

    from .impl.recording.command import VARIABLE

    ranks = RecordedRanks(tmp_path_factory.mktemp("genlock"))
    popen: Any = subprocess.Popen.__init__
    spawn: Any = spawning.spawnv_passfds

    def announce() -> dict[str, str]:
        ranks.starting()
        environment = ranks.environment() | {"PYTHONPATH": path}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return environment

    def start(process: Any, *args: Any, **given: Any) -> None:
        environment = announce()
        own = given.get("env")
        if own is not None and VARIABLE in own:  # a copy, perhaps from before
            given["env"] = {**own, VARIABLE: environment[VARIABLE]}
        popen(process, *args, **given)
        ranks.started(process.pid)

    def start_spawned(*args: Any) -> Any:
        announce()
        pid = spawn(*args)
        ranks.started(pid)
        return pid

    path = ranks.environment()["PYTHONPATH"]
    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    monkeypatch.setattr(spawning, "spawnv_passfds", start_spawned)
    announce()
    return ranks


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Check the ranks as the last thing of the test itself, so that it is the test that fails."""
    result = yield
    ranks = pyfuncitem.funcargs.get(FIXTURE)
    if isinstance(ranks, RecordedRanks):
        ranks.check()
    return result
