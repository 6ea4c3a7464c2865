"""Records each framework healthy and broken in each way, judges it, and writes docs/frameworks.md.

    make frameworks ONLY=ddp,ray WAYS=ok,kill MOST=3

Each run is a row, kept with the version of the code that it was run with; one that there is for this version is not run
again, so that it can be done in parts, and be interrupted.
A verdict is right where a healthy run conforms and a broken one diverges; the rank where the broken one is named; the
line where the report has one that the program marks for that way (`LINE …`). A program that does not run healthy is
said to be not shown. Left out: setting up the environment (`scripts/frameworks`).
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PAGE, KEPT = ROOT / "docs" / "frameworks.md", ROOT / "build" / "frameworks.json"
WAYS = ("ok", "skip", "extra", "other", "raise", "kill", "stop", "uneven")
BAD = 1
STALL = 30
CODE = ("impl/recording", "impl/rank", "guardian", "traces", "conformance", "tests/support/frameworks")
"""What a row depends on; the programs are among it."""


class Framework(NamedTuple):
    """Says how a framework's program is started."""

    name: str
    program: str
    kind: str
    package: str
    ranks: int = 3
    launched: bool = True
    """False where the program starts its ranks itself."""
    not_shown: tuple[str, ...] = ()
    """Ways in which the program goes on rightly, so that nothing is wrong."""


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


def lines_of(program: str, way: str) -> set[str]:
    """Return the places that are right for a way, as `file:line`."""
    wanted = way if way in ("extra", "other", "raise") else "step"
    text = (HERE / program).read_text().splitlines()
    return {f"{program}:{n}" for n, line in enumerate(text, 1) if re.search(rf"# LINE {wanted}\b", line)}


def run(framework: Framework, way: str, python: str, port: int) -> dict[str, Any]:
    """Record and judge one run."""
    folder = Path(tempfile.mkdtemp(prefix="frameworks-"))
    program = [str(HERE / framework.program), framework.kind, way]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(framework.ranks), "--master-port", str(port)]
    command = [sys.executable, "-m", "genlock", "record", "--stall", str(STALL), "--out", str(folder / "out"), "--"]
    command += [python, *(torchrun if framework.launched else []), *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment["FRAMEWORK"] = f"{framework.kind} {way}"
    begin = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said = process.communicate(timeout=240)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        said = "not ended in 240 s"
        process.terminate()  # which is passed on to the launcher, and by that to its ranks
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    replay = [sys.executable, "-m", "genlock", "replay", str(folder / "out"), "--format", "json"]
    judged = subprocess.run(replay, capture_output=True, text=True, check=False)
    result: dict[str, Any] = {"status": process.returncode, "seconds": round(time.monotonic() - begin)}
    if judged.returncode in (0, 1, 3):
        report = json.loads(judged.stdout)
        result |= {"verdict": report["verdict"], **grade(report)}
    else:
        result |= {"verdict": "none", "said": judged.stderr[-300:]}
    if way == "ok" and result["verdict"] != "conforming":
        result["said"] = said[-1500:]
    if "--keep" not in sys.argv:
        shutil.rmtree(folder, ignore_errors=True)
    return result


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


def version() -> str:
    """Return what tells this code from any other."""
    found = hashlib.sha256()
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file != HERE / "matrix.py":
                found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def kept_rows() -> dict[str, dict[str, Any]]:
    """Return all rows so far, the last one of each cell, by `KIND WAY`."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def cells(only: str, ways: str) -> Iterator[tuple[Framework, str]]:
    for framework in FRAMEWORKS:
        if not only or framework.kind in only.split(","):
            for way in WAYS:
                if not ways or way in ways.split(","):
                    yield framework, way


def page(kept: dict[str, dict[str, Any]], python: str) -> str:
    """Return docs/frameworks.md."""
    site = next(Path(python).parents[1].glob("lib/python*/site-packages"))
    versions = {d.metadata["Name"]: d.version for d in distributions(path=[str(site)])}
    counts = {name: [0, 0] for name in ("verdict", "rank", "line")}
    alarms = clear = older = 0
    current = version()
    rows = []
    for framework in FRAMEWORKS:
        row = [framework.name, versions.get(framework.package, "not installed")]
        healthy = kept.get(f"{framework.kind} ok")
        shown = healthy is not None and (healthy["status"] == 0 or healthy["verdict"] == "conforming")
        for way in WAYS:
            cell = kept.get(f"{framework.kind} {way}")
            if cell is None or not shown:
                row.append("not shown")
                continue
            cell["line"] = bool(lines_of(framework.program, way) & set(cell.get("places", ())))
            verdict = cell["verdict"]
            marks = "" if way == "ok" else (" rank" if cell.get("rank") else "") + (" line" if cell.get("line") else "")
            text = verdict + (f":{marks}" if marks else "")
            if cell.get("code") != current:
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
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=str(ROOT / "build" / "frameworks" / "bin" / "python"))
    parser.add_argument("--only", default="")
    parser.add_argument("--ways", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--most", type=int, default=1000, help="so many runs")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    current, kept = version(), kept_rows()
    todo = [
        (f, way) for f, way in cells(given.only, given.ways) if kept.get(f"{f.kind} {way}", {}).get("code") != current
    ]
    for number, (framework, way) in enumerate([] if given.page else todo[: given.most]):
        cell = run(framework, way, given.python, 29100 + (os.getpid() + 7 * number) % 900)
        kept = kept_rows()  # another run may have added to them
        kept[f"{framework.kind} {way}"] = {**cell, "code": current, "date": time.strftime("%Y-%m-%d %H:%M")}
        KEPT.write_text(json.dumps(kept, indent=1))
        print(framework.kind, way, json.dumps(cell), flush=True)
    PAGE.write_text(page(kept_rows(), given.python))


if __name__ == "__main__":
    main()
