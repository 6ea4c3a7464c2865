"""How often the diagnosis of a simulated hang is right, by fault and form of dump; `graded.py FIRST LAST` prints it.

    python tests/support/simulated_hangs/graded.py 3000 3029        # the table of docs/diagnosis.md; some minutes

Left out: the hangs themselves (`hangs`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import judge
from genlock.traces.collectives import Interned, Recording, recording
from genlock.traces.importers.flight_recorder import read_dump
from hangs import FAULTS, Hang, dumps, hang

FORMS = {
    "full": ("2.10", {}),
    "timed": ("2.10", {"timing": True}),
    "ring": ("2.10", {"ring": 40}),
    "pending": ("2.9", {}),
}
WORDS = {
    "stall": "a host stands still",
    "crash": "a rank is gone, without a dump",
    "device_after": "a device stands still after an operation that others finished",
    "device_before": "a device stands still before an operation",
    "skip": "one left out",
    "extra": "one too many",
    "kind": "another operation",
    "size": "another size",
}


def recorded(job: Hang, form: str) -> Recording:
    """Return what all dumps of a hang say."""
    version, how = FORMS[form]
    interned = Interned()
    found = dumps(job, version, **how)  # type: ignore[arg-type]
    records = [read_dump(Path(f"trace_{rank}"), dump, interned) for rank, dump in found.items()]
    return recording("simulated", interned, records, {}, world=len(job.ranks))


def diagnosed(job: Hang, form: str) -> Diagnosis:
    """Return the verdict on all that is left of a hang: the dumps, and what the launcher says of ranks that crashed."""
    died = dict.fromkeys(job.crashed, "killed by signal 9")
    return judge(replace(recorded(job, form), died=died))


def grade(found: Diagnosis, truth: tuple[int, ...]) -> str:
    """`exact`, `among` (the culprits are in the set that is named), `some`, `nobody` or `wrong`."""
    named = found.culprits or found.suspects
    if found.culprits == truth:
        return "exact"
    if set(truth) < set(named) or (not found.culprits and set(truth) == set(named)):
        return "among"
    return "some" if set(truth) & set(named) else "nobody" if not named else "wrong"


def table(seeds: Iterable[int]) -> str:
    """In Markdown: exactly the culprits / a set with the culprits in it / other."""
    grades: dict[tuple[str, str], Counter[str]] = {(fault, form): Counter() for fault in FAULTS for form in FORMS}
    for seed in seeds:
        for fault in FAULTS:
            job = hang(seed, fault)
            for form in FORMS if job is not None else ():
                assert job is not None
                grades[fault, form][grade(diagnosed(job, form), job.culprits)] += 1
    lines = [f"| {WORDS[fault]} | {' | '.join(_cell(grades[fault, form]) for form in FORMS)} |" for fault in FAULTS]
    totals = [sum((grades[fault, form] for fault in FAULTS), Counter[str]()) for form in FORMS]
    return "\n".join([*lines, f"| all | {' | '.join(map(_cell, totals))} |"])


def _cell(found: Counter[str]) -> str:
    return f"{found['exact']} / {found['among']} / {found.total() - found['exact'] - found['among']}"


if __name__ == "__main__":
    print(table(range(int(sys.argv[1]), int(sys.argv[2]) + 1)))
