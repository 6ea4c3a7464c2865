"""Runs schedules from seeds until one is not as the model predicts.

    python tests/support/soak_sim.py --schedules 1000000

Each schedule is a job of simulated ranks with work, refusals, hard cuts, heartbeats, a drain and perhaps a fault,
whose traces are replayed (`schedules`). A failure prints its seed; `--first SEED --schedules 1` runs it again.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator

import torch
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from schedules import run

BATCH = 250
Batch = tuple[int, Counter[str], frozenset[tuple[str, tuple[str, str]]], str | None]


def batch(first: int, count: int) -> Batch:
    """Schedules `first` and on: how many, their verdicts, the transitions shown, and what went wrong first."""
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()  # a seventh of the time: a batch leaves less garbage than is worth looking for in between
    verdicts: Counter[str] = Counter()
    shown: set[tuple[str, tuple[str, str]]] = set()
    for seed in range(first, first + count):
        try:
            outcome = run(seed)
        except Exception as error:
            return seed - first, verdicts, frozenset(shown), f"seed {seed}: {type(error).__name__}: {error}"
        if outcome.wrong is not None:
            return seed - first, verdicts, frozenset(shown), f"seed {seed}: {outcome.wrong} ({outcome.strike})"
        verdicts[outcome.verdict] += 1
        shown.update((role, row) for role, rows in outcome.witnessed.items() for row in rows)
    return count, verdicts, frozenset(shown), None


def batches(first: int, schedules: int, jobs: int) -> Iterator[Batch]:
    """All batches, in order."""
    todo = [(at, min(BATCH, first + schedules - at)) for at in range(first, first + schedules, BATCH)]
    if jobs == 1:
        yield from (batch(*one) for one in todo)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_batch, todo)


def _batch(one: tuple[int, int]) -> Batch:
    return batch(*one)


def main(arguments: list[str]) -> int:
    """Exit status 0 where every schedule was as predicted, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed: go on where an earlier run ended")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    given = parser.parse_args(arguments)
    total = sum(len(role.rows) for role in TP_V1_1.roles)
    done, verdicts, shown = 0, Counter[str](), set[tuple[str, tuple[str, str]]]()
    begin = said = time.monotonic()
    for count, some, rows, wrong in batches(given.first, given.schedules, given.jobs):
        done, verdicts = done + count, verdicts + some
        shown |= rows
        now = time.monotonic()
        if wrong is not None or done == given.schedules or now - said > 10:
            said = now
            rate = done / (now - begin)
            counts = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(verdicts.items()))
            left = (given.schedules - done) / rate / 60 if rate else 0
            print(
                f"{done:,} of {given.schedules:,} schedules, next seed {given.first + done}: {counts}; "
                f"{len(shown)} of {total} transitions; {rate:.0f} a second, {left:.0f} min left",
                flush=True,
            )
        if wrong is not None:
            print(f"NOT AS PREDICTED: {wrong}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
