"""Judges hangs whose truth is known, and grades what is said of them, beside torch's own analyser in the same run.

    python bench/hangs.py --seeds 3000 3000                       # a sample, some minutes
    python bench/hangs.py --data FOLDER --cases FOLDER            # other people's recordings, reports and logs
    python bench/hangs.py --seeds 3000 3029 --rows build/hangs    # all simulated hangs; `make hangs` goes on from there
    python bench/hangs.py --rows build/hangs --report --out docs  # the tables and the picture of all rows

A row is one verdict on one set of evidence. Of each simulated hang (`tests/support/simulated_hangs`) there are dumps in
four forms, whole and in parts, with the word of the launcher, and the log alone. `--data` holds recordings of real
hangs, `--cases` reports and logs in folders of their own; they are read, and never copied. A verdict is

- exact: the culprits are those who were broken; part: some of those, and nobody else;
- a set that holds the truth: suspects, all who were broken among them; some: not all of them;
- unknown: nobody is named; outside: suspects, none of whom was broken;
- an innocent accused: somebody is called a culprit who was not broken.

The score is the share that those named and those broken have in common, and of reports 1/|suspects|. torch's
`torchfrtrace` names ranks without a grade of certainty: whom its first report calls culprit or missing counts as
named, as a set that holds the truth where innocents are among them.

Left out: what it costs (`replay`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import io
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "support" / "simulated_hangs")]

from genlock.conformance.diagnosis import Diagnosis  # noqa: E402
from genlock.conformance.evidence.merge import judge_evidence  # noqa: E402
from genlock.conformance.replay import judge, replay  # noqa: E402
from genlock.errors import UnreadableInput  # noqa: E402
from genlock.traces.collectives import Recording  # noqa: E402
from genlock.traces.evidence import Evidence  # noqa: E402
from genlock.traces.importers.logs.scan import Logs  # noqa: E402
from genlock.traces.load import load  # noqa: E402
from graded import FORMS, WORDS, recorded  # noqa: E402
from hangs import FAULTS, P2P, Hang, dumps, hang  # noqa: E402
from job_logs import mixed  # noqa: E402
from subsets import TRUTH, Ranks, part_of, subsets  # noqa: E402
from watchdog_logs import said_of, table_of  # noqa: E402

GRADES = ("exact", "part", "set", "some", "unknown", "outside", "innocent", "refused")
CAUSES = {
    "stall": ("host-stands-still", "not-held-up", "stands-still"),
    "crash": ("known-to-have-ended", "host-stands-still", "killed", "stands-still"),
    "device_after": ("device-did-not-do-what-others-did",),
    "device_before": ("device-did-not-do-what-others-did",),
    "skip": ("more-or-fewer-than-siblings", "out-of-step-by-place", "left-its-own-order", "out-of-step"),
    "extra": ("more-or-fewer-than-siblings", "out-of-step-by-place", "left-its-own-order", "out-of-step"),
    "kind": ("unlike",),
    "size": ("unlike",),
}
"""Maps what was broken to the beginnings of the cases that say so."""
SEEDED = 2000


class Row(NamedTuple):
    """Holds one verdict, graded."""

    source: str
    """`dumps`, `launcher`, `log`, `part`, `recording`, `report` or `logs`."""
    form: str
    fault: str
    name: str
    grade: str
    score: float
    place: bool | None
    """True if the operation that is named is where the rank was broken; None where no culprit is named, or unknown."""
    cause: bool | None
    torch: str | None
    torch_score: float


def grade(named: Iterable[int], truth: Sequence[int], *, sure: bool) -> str:
    """Grade those who are named, as culprits if `sure`."""
    got, want = set(named), set(truth)
    if not got:
        return "unknown"
    if sure:
        return "innocent" if got - want else "exact" if got == want else "part"
    return "set" if want and want <= got else "some" if got & want else "outside"


def score(named: Iterable[int], truth: Sequence[int]) -> float:
    """Return what those named and those broken have in common; for a healthy job, 1 where nobody is named."""
    got, want = set(named), set(truth)
    return len(got & want) / len(got | want) if got | want else 1.0


def row(source: str, form: str, name: str, said: Diagnosis, truth: Sequence[int], job: Hang | None = None) -> Row:
    """Grade a verdict; of a healthy job, that nobody is named is exact."""
    sure = said.verdict == "divergent" and bool(said.culprits)
    found = grade(said.named, truth, sure=sure)
    if not truth:
        found = "innocent" if said.verdict == "divergent" else "exact" if found == "unknown" else found
    place, cause = (None, None) if job is None else (_place(said, job), _cause(said, job))
    fault = job.fault if job is not None else ""
    return Row(source, form, fault, name, found, score(said.named, truth), place, cause, None, 0.0)


def _place(said: Diagnosis, job: Hang) -> bool | None:
    """Tell whether the operation that is named, or the line, is that at which the rank was broken.

    Where nobody is named as culprit, none is entailed, and the answer is None.
    """
    at = said.divergence
    if at is None:
        return None
    if at.rank not in job.culprits or not job.broken:
        return False
    step = job.broken[job.culprits.index(at.rank)]
    text = f"{at.phase} {at.place} {at.state} {at.observed} {' '.join(at.expected)}"
    line = re.search(rf"train\.py:{step.line}\b", text) is not None
    group = re.search(rf"of group {step.group}\b", text) is not None
    return line or (group and (step.kind in text or step.kind in P2P))


def _cause(said: Diagnosis, job: Hang) -> bool:
    """Tell whether the kind of fault is named."""
    if job.fault == "skip" and said.divergence is not None and "have left that out" in said.divergence.why:
        return bool(set(said.culprits) & set(job.culprits))
    return bool(said.culprits) and any(
        accused.case.startswith(CAUSES[job.fault]) for accused in said.accused if accused.rank in job.culprits
    )


# ── torch's own analyser ────────────────────────────────────────────────────────────────────────────────


def by_torch(given: Mapping[int, Mapping[str, Any]]) -> list[int] | None:
    """Return whom torch's analyser names in its first report; None where it refuses the dumps."""
    from torch.distributed.flight_recorder.components.builder import build_db

    details = {str(rank): {**copy.deepcopy(dict(dump)), "rank": rank} for rank, dump in given.items()}
    about = argparse.Namespace(verbose=False, just_print_entries=False, allow_incomplete_ranks=True, mismatch_cap=10)
    said = io.StringIO()
    logger, handler = logging.getLogger("Flight Recorder"), logging.StreamHandler(said)
    others, logger.handlers = logger.handlers, [handler]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            build_db(details, about, next(iter(given.values()))["version"])
    except Exception:  # whatever it fails by, it has no answer
        return None
    finally:
        logger.handlers = others
    first = re.search(r"missing ranks: \{([^}]*)\}|error msg: (.*)", said.getvalue())
    if first is None:
        return []
    return [int(n) for n in re.findall(r"\d+", first[1])] if first[1] else _culprits(first[2])


def _culprits(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"Culprit rank (\d+)", text)]


def with_torch(found: Row, given: Mapping[int, Mapping[str, Any]], truth: Sequence[int]) -> Row:
    """Return the row with what torch's analyser says of the same dumps."""
    named = by_torch(given) if given else None
    if named is None:
        return found._replace(torch="refused")
    said = grade(named, truth, sure=True)
    if said == "innocent" and truth and set(truth) <= set(named):
        said = "set"
    return found._replace(torch=said, torch_score=score(named, truth))


# ── simulated hangs ─────────────────────────────────────────────────────────────────────────────────────


def of_hangs(seeds: Iterable[int], few: int, *, torch: bool) -> Iterator[Row]:
    """Yield the rows of simulated hangs: each form whole and in parts, with the launcher's word, and the log alone."""
    for seed in seeds:
        for fault in FAULTS:
            job = hang(seed, fault)
            if job is not None:
                yield from _of_hang(job, f"{seed} {fault}", few, torch=torch)


def _of_hang(job: Hang, name: str, few: int, *, torch: bool) -> Iterator[Row]:
    truth = job.culprits
    table = _facts(table_of(job.crashed).encode())
    log = said_of(job)
    for form, (version, how) in FORMS.items():
        whole = recorded(job, form)
        found = row("dumps", form, name, judge(whole), truth, job)
        yield with_torch(found, dumps(job, version, **how), truth) if torch else found  # type: ignore[arg-type]
        beside = judge_evidence(replace(table, recording=whole)) if job.crashed else judge(whole)
        yield row("launcher", form, name, beside, truth, job)
        rng = random.Random(name)
        for kind, ranks in subsets(sorted(whole.ranks), rng, few, 2 * few) if few else ():
            yield row("part", form, f"{kind}: {name} {ranks}", judge(part_of(whole, ranks)), truth, job)
        left = [rank for rank in whole.ranks if rank not in truth]
        yield row("part", form, f"culprit's missing: {name}", judge(part_of(whole, left)), truth, job)
        both = replace(_facts(mixed(log)), recording=part_of(whole, left))
        yield row("dumps and log", form, name, judge_evidence(both), truth, job)
    for version, told in (("2.6", True), ("2.6", False), ("2.4", False), ("2.1", False)):
        form = f"{version}, groups {'told' if told else 'untold'}"
        log = said_of(job, version, told=told)
        yield row("log", form, name, judge_evidence(_facts(mixed(log))), truth, job)
        for kind, ranks in subsets(sorted(log), random.Random(name), few, 2 * few) if few else ():
            some = {rank: log[rank] for rank in ranks}
            said = judge_evidence(_facts(mixed(some)))
            yield row("part of log", form, f"{kind}: {name} {ranks}", said, truth, job)
        for half in (range(len(job.ranks) // 2), range(len(job.ranks) // 2, len(job.ranks))):
            said = judge_evidence(_facts(mixed({rank: log[rank] for rank in half if rank in log})))
            yield row("part of log", form, f"half: {name} {half}", said, truth, job)


def _facts(log: bytes) -> Evidence:
    logs, path = Logs(), Path("job.log")
    logs.scan(path, io.BytesIO(log))
    return Evidence(logs.finish(), None, [path])


# ── recordings, reports and logs of other people ────────────────────────────────────────────────────────


def of_recordings(folder: Path, *, torch: bool) -> Iterator[Row]:
    """Yield the rows of recorded hangs: whole, every set of one, two, all but one and all but two, and SEEDED more."""
    for name, truth in TRUTH.items():
        whole = load([folder / name])
        assert isinstance(whole, Recording)
        found = row("recording", name, "whole", judge(whole), truth)
        yield with_torch(found, _dumps(folder / name), truth) if torch else found
        for kind, ranks in subsets(sorted(whole.ranks), random.Random(name), None, SEEDED):
            yield row("part", name, f"{kind}: {ranks}", judge(part_of(whole, ranks)), truth)


def _dumps(path: Path) -> dict[int, dict[str, Any]]:
    """Return the dumps of a folder, as torch's own loader finds them; none where it does not."""
    from torch.distributed.flight_recorder.components.loader import read_dir

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            details, _ = read_dir(argparse.Namespace(trace_dir=str(path), prefix=None))
        return {int(dump["rank"]): dump for dump in details.values()}
    except Exception:
        return {}


REPORTS: Mapping[str, Ranks | None] = {
    "reports/all-but-one-frozen/frozen_1_of_4": (0,),
    "reports/all-but-one-frozen/frozen_1_of_4_frames": (0,),
    "reports/all-but-one-frozen/frozen_2_of_4": (0, 1, 2, 3),
    "reports/all-but-one-frozen/frozen_2_of_4_frames": (0, 1, 2, 3),
    "reports/all-but-one-frozen/frozen_3_of_4": (0, 1, 2, 3),
    "reports/all-but-one-frozen/frozen_3_of_4_frames": (0, 1, 2, 3),
    "reports/all-but-one-frozen/node_of_9_frozen_of_16": tuple(range(16)),
    "reports/data-loader-stuck/fr": (2,),
    "reports/data-loader-stuck/traces": (2,),
    "reports/ddp-branch-without-vision/traces": (1,),
    "reports/desync-and-wrapper-log/wrapper.log": (0, 1),
    "reports/dump-file-names/swap": (0, 1),
    "reports/groups-in-other-order/traces": (1, 2),
    "reports/json-active-only/j_active_only_culprit_has_no_entries": (2,),
    "reports/logged-keys-differ/traces": (1,),
    "reports/moe-generation-ends-early/fr": (0,),
    "reports/moe-generation-ends-early/traces": (0,),
    "reports/nccl-debug-coll-log/nccl_coll.log": (0, 1),
    "reports/nccl-inspector/insp": (2,),
    "reports/nccl-ras/ras.txt": tuple(rank for rank in range(32) if rank not in (12, 13)),
    "reports/new-group-own-ranks-only/fr": (0, 1, 2, 3),
    "reports/new-group-own-ranks-only/traces": (1,),
    "reports/pipeline-send-send/traces": (0, 1),
    "reports/project-folder-named-pytorch/deepspeed": (1,),
    "reports/project-folder-named-pytorch/plain": (1,),
    "reports/project-folder-named-pytorch/pytorch_folder": (1,),
    "reports/resume-path-exists/fr": (2,),
    "reports/resume-path-exists/traces": (2,),
    "reports/scheduler-clock-divergence/traces": (3,),
    "reports/skip-batch-on-exception/traces": (2,),
    "reports/torchcomms-dumps/healthy_spmd": (),
    "reports/torchcomms-dumps/healthy_uneven": (),
    "reports/torchcomms-dumps/stall_spmd": (3,),
    "reports/torchcomms-dumps/stall_uneven": (3,),
    "reports/torchfrtrace-fixtures/f01_matched_allreduce": (),
    "reports/torchfrtrace-fixtures/f02_type_mismatch": (0, 1),
    "reports/torchfrtrace-fixtures/f03_size_mismatch": (0, 1),
    "reports/torchfrtrace-fixtures/f05_dtype_mismatch": (0, 1),
    "reports/torchfrtrace-fixtures/f07_gather_ok": (),
    "reports/torchfrtrace-fixtures/f08_coalesced_broadcast_ok": (),
    "reports/torchfrtrace-fixtures/f09_uneven_allgather_bad": (0, 1),
    "reports/torchfrtrace-fixtures/f10_uneven_reduce_scatter_ok": (),
    "reports/torchfrtrace-fixtures/f11_coalesced_on_one_rank": (0, 1),
    "reports/torchfrtrace-fixtures/f12_all_to_all_bad": (0, 1),
    "reports/uneven-batches-ddp/traces": (1,),
    "reports/vllm-shm-broadcast/vllm.log": (1,),
    "logs/different_op/log": (2,),
    "logs/host_died/log": (4, 5, 6, 7),
    "logs/interleaved_nccl/log": (1,),
    "logs/many_groups/log": (5,),
    "logs/one_ahead/log": (0,),
    "logs/one_behind/log": (2,),
    "logs/ras_behind/log": (6,),
    "logs/single_node/log": (0, 2, 3),
}
"""Path of a report or log to the ranks that it should come down to: one that did it, or those that may have."""


def of_cases(folder: Path, *, torch: bool) -> Iterator[Row]:
    """Yield the rows of reports and logs."""
    for name, truth in REPORTS.items():
        if truth is None or not (folder / name).exists():
            continue
        try:
            said = replay([folder / name]).diagnosis
        except UnreadableInput:
            yield Row(name.split("/")[0], "", "", name, "refused", 0.0, None, None, None, 0.0)
            continue
        found = row(name.split("/")[0], "", name, said, truth)
        if not said.culprits and said.suspects:  # of several who may have done it, each is one of so many
            found = found._replace(score=bool(set(said.suspects) & set(truth)) / len(said.suspects))
        read = torch and (folder / name).is_dir() and bool(given := _dumps(folder / name))
        yield with_torch(found, given, truth) if read else found


# ── tables and the picture ──────────────────────────────────────────────────────────────────────────────

HEAD = "| evidence | sets | exact | part | a set that holds the truth | some | unknown | outside | innocent accused "
HEAD += "| score | rank | place | cause |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"


def line(name: str, rows: Sequence[Row]) -> str:
    """Return a line of the table: grades, mean score, and how often rank, place and cause are right."""
    many = Counter(r.grade for r in rows)
    cells = [f"{many[g]:,}" for g in GRADES[:-1]]
    rank = (many["exact"] + many["part"]) / len(rows)
    shares = [f"{rank:.0%}", *(_share([getattr(r, what) for r in rows]) for what in ("place", "cause"))]
    mean = sum(r.score for r in rows) / len(rows)
    return f"| {name} | {len(rows):,} | {' | '.join(cells)} | {mean:.2f} | {' | '.join(shares)} |"


def _share(found: Sequence[bool | None]) -> str:
    known = [f for f in found if f is not None]
    return f"{sum(known) / len(known):.0%}" if known else ""


def torch_line(name: str, rows: Sequence[Row]) -> str:
    """Return a line of the table of torch's analyser, for the rows that it was asked about."""
    many = Counter(r.torch for r in rows)
    ours = Counter(r.grade for r in rows)
    cells = [f"{many[g]:,}" for g in ("exact", "part", "set", "unknown", "innocent", "refused")]
    mean, own = (sum(values) / len(rows) for values in ([r.torch_score for r in rows], [r.score for r in rows]))
    return f"| {name} | {len(rows):,} | {' | '.join(cells)} | {mean:.2f} | {ours['exact']:,} | {own:.2f} |"


TORCH_HEAD = "| evidence | sets | exact | part | innocents among them | nobody | innocents alone | refused | score "
TORCH_HEAD += "| Genlock, exact | Genlock, score |\n|---|---|---|---|---|---|---|---|---|---|---|"


def _kinds(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for r in rows:
        kind = f", {r.name.split(':')[0]}" if r.source in ("part", "part of log") else ""
        form = r.form
        found.setdefault(f"{SOURCES[r.source]}{kind}{', ' + form if form else ''}", []).append(r)
    return found


SOURCES = {
    "dumps": "dumps",
    "launcher": "dumps and launcher's table",
    "dumps and log": "dumps but the culprits', and the log",
    "log": "log",
    "part of log": "part of the log",
    "part": "some of the dumps",
    "recording": "recording",
    "reports": "report",
    "logs": "log of a report",
}


def report(rows: Sequence[Row]) -> str:
    """Return all tables, in Markdown."""
    parts = [HEAD, *(line(name, some) for name, some in _kinds(rows).items()), ""]
    asked = [r for r in rows if r.torch is not None]
    if asked:
        parts += [TORCH_HEAD, *(torch_line(name, some) for name, some in _kinds(asked).items()), ""]
    faults = {f: [r for r in rows if r.fault == f and r.source == "dumps"] for f in FAULTS}
    parts += [HEAD.replace("evidence", "fault, of whole sets of dumps", 1)]
    parts += [*(line(WORDS[f], some) for f, some in faults.items() if some), ""]
    accused = [f"{r.source}, {r.form}: {r.name}" for r in rows if r.grade == "innocent"]
    return "\n".join([*parts, f"Innocents accused: {len(accused)}.", *(f"- {a}" for a in accused[:100]), ""])


COLOURS = {"exact": "#1b7f4b", "part": "#79b791", "set": "#f0c04c", "unknown": "#c8c8c8", "innocent": "#b3261e"}
DRAWN: Mapping[str, Callable[[str], str]] = {
    "Genlock": lambda g: {"some": "set", "outside": "unknown", "refused": "unknown"}.get(g, g),
    "torchfrtrace": lambda g: {"refused": "unknown"}.get(g, g),
}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the grades of both analysers on the same evidence, as bars of shares."""
    from matplotlib.figure import Figure

    kinds = _kinds([r for r in rows if not r.source.startswith("part")])
    bars: list[tuple[str, Counter[str]]] = []
    for name, some in reversed(kinds.items()):
        asked = [r for r in some if r.torch is not None]
        if asked:
            bars.append((f"torchfrtrace: {name}", Counter(DRAWN["torchfrtrace"](str(r.torch)) for r in asked)))
        bars.append((f"Genlock: {name}", Counter(DRAWN["Genlock"](r.grade) for r in some)))
    figure = Figure(figsize=(9, 0.28 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for grade_name, colour in COLOURS.items():
        widths = [many[grade_name] / many.total() for _, many in bars]
        label = {
            "set": "a set that holds the truth",
            "unknown": "nobody, or none of them",
            "innocent": "innocent accused",
        }
        axes.barh([n for n, _ in bars], widths, left=left, color=colour, label=label.get(grade_name, grade_name))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlim=(0, 1), xlabel="share of the sets")
    axes.tick_params(labelsize=7)
    figure.legend(loc="outside upper center", ncols=len(COLOURS), fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Judge what is asked for, print the tables; 1 if an innocent was accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs=2, type=int, help="first and last seed of the simulated hangs")
    parser.add_argument("--few", type=int, default=1, help="parts of each kind, of each simulated hang and form (1)")
    parser.add_argument("--data", type=Path, help="folder of recordings of real hangs")
    parser.add_argument("--cases", type=Path, help="folder of `reports` and `logs`")
    parser.add_argument("--no-torch", action="store_true", help="without torch's analyser beside it")
    parser.add_argument("--rows", type=Path, help="folder in which each run keeps its rows")
    parser.add_argument("--report", action="store_true", help="report all rows that are kept there")
    parser.add_argument("--out", type=Path, help="write results/hangs-DATE.md and bench/hangs.svg into this folder")
    given = parser.parse_args()
    rows: list[Row] = []
    torch = not given.no_torch
    if not (given.seeds or given.data or given.cases or given.report):
        given.seeds = (3000, 3000)
    if given.seeds:
        rows += of_hangs(range(given.seeds[0], given.seeds[1] + 1), given.few, torch=torch)
    if given.data:
        rows += of_recordings(given.data, torch=torch)
    if given.cases:
        rows += of_cases(given.cases, torch=torch)
    if given.rows and rows:
        given.rows.mkdir(parents=True, exist_ok=True)
        name = "-".join(map(str, given.seeds)) if given.seeds else "others"
        (given.rows / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    if given.report:
        given.rows.mkdir(parents=True, exist_ok=True)
        rows = [Row(*json.loads(text)) for file in sorted(given.rows.glob("*.jsonl")) for text in file.open()]
    told = report(rows)
    print(told)
    if given.out:
        today = datetime.datetime.now(tz=datetime.UTC).date()
        for folder in ("results", "bench"):
            (given.out / folder).mkdir(parents=True, exist_ok=True)
        head = f"# Hangs whose truth is known: what is said of them, {today}\n\n"
        (given.out / "results" / f"hangs-{today}.md").write_text(head + told, encoding="utf-8")
        plot(rows, given.out / "bench" / "hangs.svg")
    return int(any(r.grade == "innocent" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
