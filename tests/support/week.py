"""Simulates a job of weeks within a cap: 10 million operations a rank, healthy and with a fault, judged by `replay`.

Run by `make week`, which writes the result into docs/results. Each rank is a process that writes with the recorder as a
rank does, but computes and waits for nothing: the ranks' times are made up, as those of a job with 16 operations a
second. The faults strike long before what is kept begins, or in its midst, or at the end.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from genlock.conformance.replay import replay
from genlock.traces import recorder as recorders
from genlock.traces.format import FORMAT_VERSION, Clock, Group, RepeatedOperation, TraceHeader
from genlock.traces.recorder import Recorder

STEP = 60_000_000
"""Nanoseconds between two operations: 10 million of them take a week."""
LAYERS = 8


class Fault(NamedTuple):
    """Says what goes wrong, on rank 1, and what has to be found."""

    what: str
    verdict: str
    named: bool
    """True where rank 1 has to be among those that are named."""


FAULTS = {
    "healthy": Fault("nothing", "conforming", False),
    "one ahead, long before": Fault(
        "its side thread issues one all-reduce more, of a group that is not used again, and waits for it for days",
        "divergent",
        True,
    ),
    "one ahead, unnoticed": Fault(
        "it broadcasts once more, as the root, which waits for nobody, in a group that is not used again",
        "unknown",
        False,
    ),
    "another size, long before": Fault("one all-reduce of its first hundredth has another size", "divergent", True),
    "left out, at the end": Fault("its last step but one has one all-reduce less; the others wait", "divergent", True),
    "killed, at the end": Fault("it is killed before its last step; the others wait", "unknown", True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=10_000_000, help="of each rank")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--keep", type=int, default=64 << 20, help="bytes a rank")
    parser.add_argument("--out", type=Path, help="folder that gets the result, dated")
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="genlock-week-"))
    try:
        rows = [_run(name, given, base) for name in FAULTS]
    finally:
        shutil.rmtree(base)
    table = [
        f"{given.operations:,} operations a rank, {given.ranks} ranks, at most {given.keep >> 20} MiB a rank:",
        "",
        "| what goes wrong on rank 1 | verdict | named | MiB a rank | written | replayed |",
        "|---|---|---|---|---|---|",
        *(row.text for row in rows),
    ]
    print("\n".join(table))
    if given.out:
        today = datetime.date.today().isoformat()
        file = given.out / f"week-{today}.md"
        machine = f"`make week`, {today}, Python {platform.python_version()}, {os.cpu_count()} cores."
        native = "in C" if recorders.FastOperationRecorder is not None else "in Python"
        title = "# A job of weeks within a cap"
        file.write_text("\n".join([title, "", f"{machine} The recorder writes {native}.", "", *table, ""]))
    return int(not all(row.good for row in rows))


class Row(NamedTuple):
    text: str
    good: bool


def _run(name: str, given: argparse.Namespace, base: Path) -> Row:
    """Simulate and judge one job; what its other ranks do is that of the first, but for an end that hangs."""
    fault, folder = FAULTS[name], base / name.replace(" ", "-").replace(",", "")
    others = [rank for rank in range(given.ranks) if rank != 1]
    begin = time.monotonic()
    alike = not name.endswith("at the end") and (base / "healthy").exists()
    folder.mkdir()

    def simulate(number: int) -> None:
        rank = [str(given.operations), str(given.keep), str(number), str(given.ranks)]
        subprocess.run([sys.executable, __file__, "rank", name, str(folder), *rank], check=True)

    if alike:
        for file in (file for rank in others for file in (base / "healthy").glob(f"rank{rank}.*")):
            os.link(file, folder / file.name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(simulate, [1] if alike else range(given.ranks)))
    written = time.monotonic() - begin
    size = max(sum(f.stat().st_size for f in folder.glob(f"rank{rank}.*")) for rank in range(given.ranks))
    found = replay([folder]).diagnosis
    took = time.monotonic() - begin - written
    named = 1 in (*found.culprits, *found.suspects)
    good = found.verdict == fault.verdict and size <= given.keep and (named or not fault.named)
    good &= not (fault.verdict == "conforming" and found.events != given.operations * given.ranks)
    who = [*(f"rank{r} (culprit)" for r in found.culprits), *(f"rank{r} (suspect)" for r in found.suspects)]
    told = ", ".join(who) or "nobody"
    row = f"| {name}: {fault.what} | {found.verdict}, {found.events:,} operations | {told} | {size / (1 << 20):.1f} "
    why = found.divergence.why if found.divergence else "; ".join(found.reasons)
    print(f"{name}: {found.verdict}, {told}: {why}" + ("" if good else "   NOT AS EXPECTED"), file=sys.stderr)
    return Row(f"{row}| {written:.0f} s | {took:.0f} s |", good)


def rank(name: str, folder: Path, operations: int, keep: int, number: int, world: int) -> None:
    """Write the trace of one rank: steps of all-reduces of two groups, a send round the ring now and then."""
    header = TraceHeader(FORMAT_VERSION, "week", number, world, "", "gloo", "", "", {}, Clock(0, 0))
    writer = Recorder(folder, header, keep or None)
    job = _Job(writer, number, world)
    vars(recorders)["time"] = job
    hit, step = number == 1, 0
    while job.issued < operations - job.per_step:
        at = job.issued / operations
        step += 1
        if hit and name.startswith("one ahead") and at > 0.3 and not job.extra:
            job.extra = True
            job.alone(waits=name.endswith("before"))
        size = 2 if hit and name == "another size, long before" and at > 0.01 and not job.extra else 1
        job.extra |= size == 2
        last = job.issued >= operations - 2 * job.per_step
        if last and name.endswith("at the end"):
            job.last_step(name, waits=not hit)
            return
        job.step(size)
    while job.issued < operations:
        job.fill()
    if not (hit and name == "one ahead, long before"):  # which its side thread keeps from its end
        writer.end("stopped", 0)


class _Job:
    """Issues the operations of one rank."""

    def __init__(self, writer: Recorder, rank: int, world: int) -> None:
        self.writer, self.rank, self.world = writer, rank, world
        self.issued, self.time, self.extra = 0, 0, False
        self.per_step = 2 * LAYERS + 2
        everyone = tuple(range(world))
        half = tuple(r for r in everyone if r % 2 == rank % 2)
        self._numbers: dict[object, Iterator[int]] = {}
        for group, members in (("0", everyone), ("setup", everyone), (f"half{rank % 2}", half)):
            writer.group(Group(group, members, "gloo"))
        self._all = [self._operation("all_reduce", "0", layer, layer) for layer in range(LAYERS)]
        self._odd = self._operation("all_reduce", "0", 99, 0)
        self._half = [self._operation("all_gather", f"half{rank % 2}", layer, layer) for layer in range(LAYERS)]
        self._send = self._operation("send", "0", 7, 20, peer=(rank + 1) % world)
        self._recv = self._operation("recv", "0", 7, 20, peer=(rank - 1) % world)
        self._setup = self._operation("broadcast", "setup", 3, 21, root=1)
        self._do(self._setup)

    def monotonic_ns(self) -> int:
        """Return the time in the job."""
        return self.time

    def _operation(self, op: str, group: str, size: int, line: int, **facts: Any) -> recorders.OperationRecorder:
        stack = [("lib.py:9", "inner"), (f"lib.py:{line + 10}", "outer"), (f"train.py:{line + 1}", "step")]
        about = RepeatedOperation(0, op, group, dtype="float32", numel=1000 + size, site=self.writer.stack(stack))
        p2p = op in ("send", "recv")
        if facts:
            from msgspec.structs import replace

            about = replace(about, **({"tag": 0, "asynchronous": True} | facts if p2p else facts))
        numbers = self._numbers.setdefault((op, group, facts.get("peer")) if p2p else group, count(1))
        return self.writer.operation(about, numbers, _raise)

    def _do(self, operation: recorders.OperationRecorder) -> None:
        begun = operation.begin(self.time)
        self.time += STEP
        operation.end(begun, self.time)
        self.issued += 1

    def alone(self, *, waits: bool) -> None:
        """Issue what the others do not, in a group of which nothing more is issued."""
        if waits:
            self._operation("all_reduce", "setup", 3, 22, thread="side").begin(self.time)
        else:
            self._do(self._setup)
            self.issued -= 1

    def step(self, size: int) -> None:
        for layer in range(LAYERS):
            self._do(self._odd if size == 2 and layer == 0 else self._all[layer])
            self._do(self._half[layer])
        sent, got = self._send.begin(self.time), self._recv.begin(self.time)
        self._recv.wait(got, self.time)
        self._recv.end(got, self.time + 5)
        self._send.wait(sent, self.time + 6)
        self._send.end(sent, self.time + 7)
        self.issued += 2

    def fill(self) -> None:
        self._do(self._all[0])

    def last_step(self, name: str, *, waits: bool) -> None:
        """End in the midst of a step, as the fault has it; the others wait for rank 1."""
        if not waits and name.startswith("killed"):
            return
        for layer in range(LAYERS):
            if not waits and layer == 3:
                continue
            if layer == LAYERS - 1 and (waits or self.rank == 1):
                break
            self._do(self._all[layer])
        if waits:
            self._all[LAYERS - 1].begin(self.time)
        else:
            self.writer.end("stopped", 0)


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        name, folder, *numbers = sys.argv[2:]
        operations, keep, number, world = map(int, numbers)
        rank(name, Path(folder), operations, keep, number, world)
    else:
        sys.exit(main())
