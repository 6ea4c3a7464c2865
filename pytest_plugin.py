"""Gives other people's tests two fixtures: a protocol must hold, recorded ranks must conform.

    def test_protocol(genlock_check):
        genlock_check("ci/our_protocol.py", ranks=4)

    def test_training(genlock_ranks):
        subprocess.run(["torchrun", "--nproc-per-node", "2", "train.py"], check=True)

`genlock_check` takes what `genlock.check` takes, and fails the test unless every property holds. With `genlock_ranks`
every Python process that the test starts is recorded, as by `genlock record`; once the test has returned, the traces
are replayed, and it fails unless all of them conform. A test that checked or recorded nothing fails as well.

pytest loads this module in every project that has Genlock installed, so it imports nothing until a fixture is used.
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
    from .model.checker.report import Report
    from .model.tables import Protocol

CHECK, RANKS = "genlock_check", "genlock_ranks"
"""Names of the fixtures."""


class ProtocolCheck:
    """Checks protocols, and fails the test at the first that does not hold."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        """Every check of the test so far."""

    def __call__(self, protocol: str | os.PathLike[str] | Protocol = "tp_v1.1", **question: Any) -> Report:
        """Check a protocol; `question` is as for `genlock.check`. Return the report if every property holds.

        Otherwise the test fails with the verdict and the counterexample, as numbered steps; also where the search ended
        early, as no verdict was reached. Raises UsageError and ModelError, as `genlock.check` does.
        """
        __tracebackhide__ = True
        from .api import check
        from .errors import Exit

        report = check(protocol, **question)
        self.reports.append(report)
        if report.exit is not Exit.OK:
            pytest.fail(f"{CHECK}: {report.as_text()}", pytrace=False)
        return report

    def finish(self) -> None:
        """Fail the test if it has checked nothing."""
        __tracebackhide__ = True
        if not self.reports:
            pytest.fail(f"{CHECK}: nothing was checked: call `{CHECK}(protocol)` in the test", pytrace=False)


class RecordedRanks:
    """Records the ranks that a test starts. A run begins with the first process after all earlier ones ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        """Where the traces are, in a folder for each run."""
        self._pids: list[int] = []
        self._count = 1

    def environment(self) -> dict[str, str]:
        """Return the environment that a process needs to be recorded, as part of the run that is under way."""
        from .impl.recording.command import VARIABLE, RecordingSettings

        whole = RecordingSettings(f"test{self._count}", str(self._folder())).environment()
        return {name: whole[name] for name in ("PYTHONPATH", VARIABLE)}

    def starting(self) -> None:
        """Note that a process is about to start: of the run that is under way, or the first of another one."""
        if self._folder() in self.runs() and not any(map(_lives, self._pids)):
            self._count += 1

    def started(self, pid: int) -> None:
        """Note that a process has started."""
        self._pids.append(pid)

    def runs(self) -> list[Path]:
        """Return the folder of each run that was recorded."""
        from .traces.format import SUFFIX

        return sorted(folder for folder in self.out.glob("run*") if any(folder.rglob(f"*{SUFFIX}")))

    def diagnoses(self) -> list[Diagnosis]:
        """Return the verdict on each run. Raises UnreadableInput."""
        from .conformance.replay import replay

        return [replay([folder]).diagnosis for folder in self.runs()]

    def finish(self) -> None:
        """Check the ranks, as the last thing of the test."""
        __tracebackhide__ = True
        self.check()

    def check(self) -> None:
        """Fail the test unless something was recorded, and all of it conforms. May be called several times."""
        __tracebackhide__ = True
        from .conformance.report import as_text

        found = self.diagnoses()
        if not found:
            pytest.fail(f"{RANKS}: nothing was recorded: no process of this test initialised torch.distributed")
        bad = [as_text(diagnosis) for diagnosis in found if diagnosis.verdict != "conforming"]
        if bad:
            pytest.fail("\n\n".join([f"{RANKS}: traces in {self.out}", *bad]), pytrace=False)

    def _folder(self) -> Path:
        return self.out / f"run{self._count}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def genlock_check() -> ProtocolCheck:
    """Check a protocol within this test; every property must hold."""
    return ProtocolCheck()


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
    """Check as the last thing of the test itself, so that it is the test that fails."""
    result = yield
    for name, kind in ((CHECK, ProtocolCheck), (RANKS, RecordedRanks)):
        fixture = pyfuncitem.funcargs.get(name)
        if isinstance(fixture, kind):
            fixture.finish()
    return result
