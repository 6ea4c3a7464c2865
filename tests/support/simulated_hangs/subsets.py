"""Hangs of which a part is left: is ever an innocent rank called a culprit? `subsets.py FIRST LAST` prints the table.

    subsets.py 3000 3029            # a seeded share of the subsets of each simulated hang
    subsets.py 3000 3029 --all      # every such subset, and some more; an hour; goes on where it was
    subsets.py --data FOLDER        # recordings of other people: each such subset, 2,000 more; goes on where it was
    subsets.py --data FOLDER --only nccl-flight-recorder/lock_gil_1st   # one of them

Left out: the hangs themselves (`hangs`), and whole sets of dumps (`graded`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import judge
from genlock.traces.collectives import Recording
from genlock.traces.load import load
from graded import FORMS, recorded
from hangs import FAULTS, hang

KINDS = ("one", "two", "all but one", "all but two", "some")
TRUTH = {
    "nccl-flight-recorder/gpu_error_1st": (12, 14),
    "nccl-flight-recorder/lock_gil_1st": (9, 14),
    "gloo-flight-recorder/skip": (1,),
    "gloo-flight-recorder/strand": (0,),
    "gloo-flight-recorder/ok": (),
    "gloo-flight-recorder/ring": (),
}
"""Folder of a recording to the ranks that were broken on purpose."""
SEEDED, SOME = 2000, 8
"""Sets of any size of each recording, and of each simulated hang in each form."""

Ranks = tuple[int, ...]


def part_of(recording: Recording, ranks: Iterable[int]) -> Recording:
    """Return what the dumps of some ranks alone say."""
    kept = set(ranks)
    return replace(recording, ranks={rank: record for rank, record in recording.ranks.items() if rank in kept})


def subsets(ranks: Sequence[int], rng: random.Random, few: int | None, seeded: int) -> Iterator[tuple[str, Ranks]]:
    """Yield single, paired, leave-one-out and leave-two-out sets, `few` of each or all, and some of any size."""
    whole = set(ranks)
    singles, pairs = list(combinations(ranks, 1)), list(combinations(ranks, 2))
    for kind, chosen in (("one", singles), ("two", pairs)):
        for left in rng.sample(chosen, min(few or len(chosen), len(chosen))):
            yield kind, left
        for out in rng.sample(chosen, min(few or len(chosen), len(chosen))):
            yield f"all but {kind}", tuple(sorted(whole - set(out)))
    for _ in range(seeded):
        yield "some", tuple(sorted(rng.sample(list(ranks), rng.randint(1, len(ranks)))))


def grade(diagnosis: Diagnosis, truth: Ranks) -> str:
    """`exact`, `innocent` (one is called a culprit), `part`, `among` the suspects, `outside` of them, or `nobody`."""
    if diagnosis.culprits:
        innocent = set(diagnosis.culprits) - set(truth)
        return "innocent" if innocent else "exact" if diagnosis.culprits == truth else "part"
    if not diagnosis.suspects:
        return "nobody"
    return "among" if set(truth) & set(diagnosis.suspects) else "outside"


class Tally:
    """Counts what was said of subsets, by kind."""

    def __init__(self) -> None:
        self.grades: dict[str, Counter[str]] = {}
        self.sizes: Counter[str] = Counter()
        self.accused: list[str] = []

    def add(self, kind: str, name: str, ranks: Ranks, diagnosis: Diagnosis, truth: Ranks, world: int) -> None:
        found = grade(diagnosis, truth)
        self.grades.setdefault(kind, Counter())[found] += 1
        self.sizes[f"{kind} suspects"] += len(diagnosis.suspects)
        self.sizes[f"{kind} ranks"] += world
        if found == "innocent":
            cases = {a.case for a in diagnosis.accused if a.rank in diagnosis.culprits and a.rank not in truth}
            left = ranks if len(ranks) <= world // 2 else f"all but {sorted(set(range(world)) - set(ranks))}"
            self.accused.append(f"{name}, {left}: {diagnosis.culprits} for {truth} by {', '.join(sorted(cases))}")

    def __iadd__(self, other: Tally) -> Tally:
        for kind, grades in other.grades.items():
            self.grades.setdefault(kind, Counter()).update(grades)
        self.sizes.update(other.sizes)
        self.accused += other.accused
        return self

    def __str__(self) -> str:
        names = ("exact", "part", "among", "nobody", "outside", "innocent")
        lines = [f"{'sets':14}" + "".join(f"{name:>10}" for name in names)]
        for kind in KINDS:
            if kind in self.grades:
                lines.append(f"{kind:14}" + "".join(f"{self.grades[kind][name]:10}" for name in names))
        return "\n".join(lines)


def of_hangs(seeds: Iterable[int], few: int | None, seeded: int, forms: Iterable[str] = FORMS) -> Tally:
    """Diagnose subsets of each simulated hang, in each form."""
    tally = Tally()
    for seed in seeds:
        for fault in FAULTS:
            job = hang(seed, fault)
            for form in forms if job is not None else ():
                assert job is not None
                rng, whole = random.Random(f"{seed} {fault}"), recorded(job, form)
                for kind, ranks in subsets(sorted(whole.ranks), rng, few, seeded):
                    said = judge(part_of(whole, ranks))
                    tally.add(kind, f"{seed} {fault} {form}", ranks, said, job.culprits, len(job.ranks))
    return tally


def of_all(seeds: Iterable[int], kept: Path) -> Tally:
    """Diagnose every such subset of these simulated hangs; what is kept of earlier runs is not done again."""
    kept.mkdir(parents=True, exist_ok=True)
    summed = Tally()
    for seed in seeds:
        file = kept / f"{seed}.json"
        if not file.exists():
            tally = of_hangs([seed], None, SOME)
            file.write_text(json.dumps(vars(tally)))
            print(seed, tally, *tally.accused, sep="\n", flush=True)
        found, summed_up = Tally(), json.loads(file.read_text())
        found.grades = {kind: Counter(grades) for kind, grades in summed_up["grades"].items()}
        found.sizes, found.accused = Counter(summed_up["sizes"]), summed_up["accused"]
        summed += found
    return summed


def of_recording(folder: Path, name: str) -> Tally:
    """Diagnose all subsets of a recording of other people's; of the few ranks, each set once."""
    tally, truth, said = Tally(), TRUTH[name], dict[Ranks, Diagnosis]()
    whole = load([folder / name])
    assert isinstance(whole, Recording)
    for kind, ranks in subsets(sorted(whole.ranks), random.Random(name), None, SEEDED):
        if ranks not in said:
            said[ranks] = judge(part_of(whole, ranks))
        tally.add(kind, name, ranks, said[ranks], truth, whole.world)
    return tally


def of_data(folder: Path, names: Iterable[str], kept: Path) -> dict[str, str]:
    """Diagnose the recordings of these names; what is kept of earlier runs is not done again."""
    kept.mkdir(parents=True, exist_ok=True)
    told: dict[str, str] = {}
    for name in names:
        file = kept / f"{name.replace('/', '-')}.txt"
        if not file.exists():
            tally = of_recording(folder, name)
            file.write_text("\n".join([str(tally), *tally.accused, f"innocents accused: {len(tally.accused)}", ""]))
        told[name] = file.read_text()
        print(name, told[name], sep="\n", flush=True)
    return told


def written_of_hangs(seeds: range, tally: Tally, out: Path) -> Path:
    """Write the counts of all simulated hangs, and return the file."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    hangs = sum(hang(seed, fault) is not None for seed in seeds for fault in FAULTS)
    sets = sum(grades.total() for grades in tally.grades.values())
    parts = [
        f"# Parts of simulated hangs: is an innocent called a culprit? {today}",
        "",
        f"Every set of one rank's dump, two, all but one and all but two, and {SOME} seeded sets of any size, of each "
        f"of {hangs} simulated hangs (seeds {seeds[0]} to {seeds[-1]}) in each of {len(FORMS)} forms: {sets:,} sets; "
        "what is said of the culprit:",
        "```",
        str(tally),
        *tally.accused,
        f"innocents accused: {len(tally.accused)}",
        "```",
        "",
        "Suspects, as a share of the ranks: "
        + ", ".join(f"{kind} {tally.sizes[f'{kind} suspects'] / tally.sizes[f'{kind} ranks']:.2f}" for kind in KINDS)
        + ".",
        "",
    ]
    path = out / f"subsets-simulated-{today}.md"
    path.write_text("\n".join(parts))
    return path


def written(told: Mapping[str, str], out: Path) -> Path:
    """Write the counts of all recordings, and return the file."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    parts = [f"# Parts of recorded hangs: is an innocent called a culprit? {today}", ""]
    parts += [
        "Every set of one rank's dump, two, all but one and all but two, and "
        f"{SEEDED:,} seeded sets of any size, of each recording; what is said of the culprit:",
    ]
    for name, text in told.items():
        parts += ["", f"**{name}**, broken: {', '.join(map(str, TRUTH[name])) or 'nobody'}", "```", text.strip(), "```"]
    path = out / f"subsets-{today}.md"
    path.write_text("\n".join([*parts, ""]))
    return path


def main() -> int:
    """Print the tally, and each innocent that was called a culprit; 1 if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", choices=TRUTH, help="one of the recordings; the others another time")
    parser.add_argument(
        "--kept", type=Path, default=Path("build/subsets"), help="folder of what was done (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the counts into this folder")
    given = parser.parse_args()
    if given.data:
        told = of_data(given.data, [given.only] if given.only else TRUTH, given.kept)
        if given.out and not given.only:
            print(written(told, given.out))
        return int(any("innocents accused: 0" not in text for text in told.values()))
    first, last = given.seeds
    seeds = range(first, last + 1)
    tally = of_all(seeds, given.kept) if given.all else of_hangs(seeds, 4, SOME)
    print(tally, *tally.accused, sep="\n")
    if given.all and given.out:
        print(written_of_hangs(seeds, tally, given.out))
    return int(bool(tally.accused))


if __name__ == "__main__":
    sys.exit(main())
