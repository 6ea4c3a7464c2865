"""A long run of real ranks under guardians, and what it must not leave behind: a rank, a process, memory, a descriptor.

    python tests/support/soak_run.py [--chunks 10000] [--ranks 3] [--seed 0]

Chunks with heartbeats, hard cuts, recomputes and refused envelopes in a random order that the seed gives. Every rank
and guardian is looked at while it runs: after a quarter of the run its memory may no longer grow by more than an
eighth, and its descriptors and threads not at all. Exit status 1 where something is left or grows.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from genlock.conformance.replay import replay
from genlock.contract.breakit import REFUSED
from genlock.guardian.child import children, read
from genlock.impl.scenario import PROMPTS, Chunk, Heartbeat, Scenario, Step
from genlock.traces.format import read as read_trace
from genlock.traces.outcome import Code

SLACK = 16 << 10
"""kB that any process may grow by, beside its share."""


class Sample(NamedTuple):
    """One look at a process. `done`: how long rank0's trace was. `kilobytes`: what is resident."""

    done: int
    kilobytes: int
    descriptors: int
    threads: int


class Soaked(NamedTuple):
    """A finished soak; `wrong` is empty where all is well."""

    exit: int
    chunks: int
    refused: int
    verdict: str
    samples: dict[int, list[Sample]]
    wrong: list[str]


def steps(chunks: int, seed: int) -> Scenario:
    """At random: of ten chunks one is refused, one begins with a hard cut, one recomputes; a heartbeat before two."""
    chance = random.Random(seed)
    made: list[Step] = [Chunk()]
    for _ in range(chunks - 1):
        kind = chance.randrange(10)
        made += [Heartbeat()] * (chance.random() < 0.2)
        spoil = chance.choice(REFUSED) if kind == 0 else ""
        made.append(Chunk(chance.choice(PROMPTS), hard_cut=kind == 1, recompute=kind == 2, spoil=spoil))
    return Scenario(tuple(made))


def soak(out: Path, chunks: int, ranks: int, seed: int) -> Soaked:
    """Run it, look at its processes, and judge what it has left."""
    scenario = steps(chunks, seed)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scenario.json"
    path.write_bytes(msgspec.json.encode(scenario))
    command = [sys.executable, "-c", RUN, str(path), str(out), str(ranks)]
    with (out / "said.txt").open("w") as file:  # a pipe would be full after some hundred refusals
        process = subprocess.Popen(command, stdout=file, stderr=file)
    samples: dict[int, list[Sample]] = {}
    trace = out / "rank0.trace.jsonl"
    while process.poll() is None:
        done = trace.stat().st_size if trace.exists() else 0
        for pid in _of_run(process.pid):
            if (sample := _look(pid, done)) is not None:
                samples.setdefault(pid, []).append(sample)
        time.sleep(0.2 if chunks < 1000 else 5)
    said = (out / "said.txt").read_text(errors="replace")
    events = read_trace(trace).events if trace.exists() else ()
    refusals = sum(e.outcome is not None and e.outcome.code is Code.PREFLIGHT for e in events)
    found = replay([out]).diagnosis
    wrong = [text for pid, seen in samples.items() if (text := _grown(pid, seen))]
    if process.returncode or found.verdict != "conforming":
        wrong.append(f"exit {process.returncode}, {found.verdict}: {said[-2000:]}")
    spoilt = sum(isinstance(step, Chunk) and bool(step.spoil) for step in scenario.steps)
    if refusals != spoilt:
        wrong.append(f"{refusals} of {spoilt} spoilt chunks were refused")
    wrong += [f"process {pid} has outlived the run" for pid in samples if Path(f"/proc/{pid}").exists()]
    return Soaked(process.returncode, chunks, refusals, found.verdict, samples, wrong)


RUN = """
import sys
from pathlib import Path
from genlock.impl import scenario
from genlock.impl.jobs import launch
path, out, ranks = sys.argv[1:]
config = scenario.RunConfig(launch.new_run(), out, "gloo", scenario.load(Path(path)))
done = launch.launch(config, int(ranks), echo=print, limit=86400)
print(launch.as_text(done))
sys.exit(done.exit)
"""
"""As `genlock run`, but for the limit on its time."""


def _of_run(pid: int) -> list[int]:
    """The ranks and guardians among the descendants of a process."""
    found, more = [], [pid]
    while more:
        new = list(children(more.pop()))
        found += [child for child in new if "\0genlock.impl.jobs.rank_main\0" in read(f"/proc/{child}/cmdline")]
        more += new
    return [child for child in found if "torch.distributed.run" not in read(f"/proc/{child}/cmdline")]


def _look(pid: int, done: int) -> Sample | None:
    try:
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        lines = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":" in line)
        return Sample(done, int(lines["VmRSS"].split()[0]), descriptors, int(lines["Threads"]))
    except (OSError, KeyError):  # it has just ended
        return None


def _grown(pid: int, seen: list[Sample]) -> str:
    """What has grown between a quarter of the run and its last tenth; empty where nothing has."""
    first, last = _ends(seen)
    if last.kilobytes > first.kilobytes * 9 / 8 + SLACK:
        return f"process {pid} has grown from {first.kilobytes} to {last.kilobytes} kB"
    if last.descriptors > first.descriptors or last.threads > first.threads:
        return f"process {pid}: {first} became {last}"
    return ""


def _ends(seen: list[Sample]) -> tuple[Sample, Sample]:
    """The looks at a quarter of the run, and shortly before its end."""
    middle = [s for s in seen if s.done > 0.25 * seen[-1].done][:-2]
    return (middle[0], middle[-1]) if middle else (seen[-1], seen[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), given.chunks, given.ranks, given.seed)
    took = time.monotonic() - begin
    peak = max((s.kilobytes for seen in found.samples.values() for s in seen), default=0)
    print(f"{found.chunks} chunks, {found.refused} refused, {took:.0f} s, peak {peak >> 10} MiB: {found.verdict}")
    for pid, seen in found.samples.items():
        first, last = _ends(seen)
        grown = f"{first.kilobytes >> 10} to {last.kilobytes >> 10} MiB, {first.descriptors} to {last.descriptors}"
        print(f"  process {pid}: {grown} descriptors, {first.threads} to {last.threads} threads")
    print("\n".join(found.wrong) or "nothing is left, nothing has grown")
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
