"""The driver behind bench/nccl_one_gpu.sh: runs every step within one budget of time, and keeps what it says.

Each step is a command of its own, in a process group that is killed when the step is over. `summary.json` has every
command, its exit status, seconds and last lines; a step for which no time is left says so. Nothing of it names the
machine. Standard library alone, so that it runs before anything else is there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUDGET = 440.0
"""Seconds for everything."""
LIMIT_BYTES = 15_500_000
"""Size of the folder: files beyond it are cut, the largest first."""
NEEDED = ("msgspec", "typer", "rich", "graphviz", "xxhash")
KEPT_LINES = 40

FACTS = """
import json, os, platform, torch, genlock
cuda = torch.cuda.is_available()
print(json.dumps({
    "python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
    "gpu": torch.cuda.get_device_name(0) if cuda else None, "gpus": torch.cuda.device_count(),
    "memory": torch.cuda.get_device_properties(0).total_memory if cuda else None, "cpus": os.cpu_count(),
}))
"""
INJECTED = (
    "OM-01", "OM-06,rank=1", "OM-11,rank=1", "OM-12,rank=1", "OM-16,kind=stale", "FM-12,rank=1,chunk=2",
    "FM-13,rank=1", "C-01,rank=1", "OM-03,rank=1,kind=more", "FM-04",
)  # fmt: skip
HUNG = ("healthy", "skip", "kind", "strand", "stall")
DEADLINES = ("startup=90", "payload=8", "header=8", "generate=30", "ack=20", "collective=8")


@dataclass
class Step:
    """A command, within so many seconds."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """All steps of one run into one folder."""

    out: Path
    backend: str
    quick: bool
    environment: Mapping[str, str]
    until: float
    done: list[dict[str, Any]] = field(default_factory=list)

    def run(self, step: Step) -> dict[str, Any]:
        """Do one step, and say how it went in one line."""
        begin = time.monotonic()
        limit = min(step.limit, self.until - begin)
        if limit < 3:
            result: dict[str, Any] = {"name": step.name, "skipped": "no time was left"}
        else:
            status, text = self._spoken(step, limit)
            lines = self._plain(text).splitlines()
            result = {
                "name": step.name,
                "command": [self._plain(word) for word in step.command],
                "environment": dict(step.environment),
                "status": status,
                "seconds": round(time.monotonic() - begin, 2),
                "said": lines[-KEPT_LINES:],
            }
        self.done.append(result)
        print(f"{step.name:40} {result.get('skipped') or _outcome(result)}", flush=True)
        return result

    def _spoken(self, step: Step, limit: float) -> tuple[int | None, str]:
        """Exit status, None where it was out of time, and what it printed."""
        log = self.out / "logs" / f"{re.sub('[^a-z0-9]+', '-', step.name.lower())}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w+", errors="replace") as file:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**self.environment, **step.environment},
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _kill(process)
            file.seek(0)
            text = file.read()
        log.write_text(self._plain(text))
        return status, text

    def _plain(self, text: str) -> str:
        """Without the names of places."""
        for place, name in ((self.out, "OUT"), (HERE.parent, "GENLOCK"), (Path(sys.executable), "python")):
            text = text.replace(str(place), name)
        return text.replace(platform.node(), "host") if platform.node() else text

    def all(self, steps: Sequence[Step], at_once: int = 1) -> list[dict[str, Any]]:
        """Several steps, some of them side by side; results in the order of the steps."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.run, steps))


def _outcome(result: Mapping[str, Any]) -> str:
    status = "out of time" if result["status"] is None else f"status {result['status']}"
    return f"{status:12} {result['seconds']:6.1f} s  {(result['said'] or [''])[-1][:90]}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """All that is left of a step."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """Run everything; status 0 where the healthy runs conform and no step broke down, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("out") / time.strftime("nccl-%Y%m%d-%H%M%S"))
    parser.add_argument("--quick", action="store_true", help="a few steps, as a test does")
    parser.add_argument("--wheels", type=Path, default=HERE.parent / "wheels")
    parser.add_argument("--site", type=Path, required=True, help="an empty folder, for packages")
    given = parser.parse_args()
    out = given.out.absolute()
    if out.exists() and any(out.iterdir()):
        print(f"nccl_one_gpu: {out} is not empty; name a new folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(given.site)]))
    carried = unpack(given.wheels, given.site)
    bench = Bench(out, "gloo", given.quick, environment, time.monotonic() + BUDGET)
    facts = bench.run(Step("facts", [sys.executable, "-c", FACTS], 90))
    if facts.get("status") != 0:
        print(
            "nccl_one_gpu: genlock and torch cannot be imported here:", *facts["said"][-3:], sep="\n  ", file=sys.stderr
        )
        return 1
    machine = json.loads(facts["said"][-1])
    bench.backend = "nccl" if machine["gpus"] else "gloo"
    found = (quick if given.quick else everything)(bench)
    summary = {
        "backend": bench.backend,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine,
        "wheels": carried,
        **found,
        "steps": bench.done,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    summary_bytes = trim(out)
    print(f"{bench.backend}: {len(bench.done)} steps, {summary_bytes / 1e6:.1f} MB in {out}")
    return 0 if found["sound"] else 1


def unpack(wheels: Path, site: Path) -> list[str]:
    """Put the wheels where Python finds them, if it lacks one of the packages; returns their names."""
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return []
    carried = sorted(wheels.glob("*.whl"))
    for wheel in carried:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return [wheel.name for wheel in carried]


def everything(bench: Bench) -> dict[str, Any]:
    """The whole programme; what cannot be repeated elsewhere comes first."""
    needed = variables(bench) if bench.backend == "nccl" else {}
    jobs: list[tuple[str, int, str | None]] = [(f"run{ranks}", ranks, None) for ranks in (2, 3)]
    jobs += [(f"run3-{fault.partition(',')[0]}", 3, fault) for fault in INJECTED]
    runs = [scenario(bench, name, ranks, fault, 8) for name, ranks, fault in jobs]
    bench.all(runs[:2])
    bench.all(runs[2:], at_once=3)
    bench.all(hung(bench, HUNG), at_once=2)
    replays(bench)
    bench.all([litmus(bench, 100.0)])
    python = [sys.executable]
    bench.all(
        [
            Step("language model", [*torchrun(2), str(HERE.parent / "examples" / "language_model.py"),
                                    str(bench.out / "language-model"), bench.backend], 60),
            Step("generator, 40 blocks of 5120", [*python, str(HERE / "generator.py"), "--shape", "wan_14b"], 150),
            *(
                Step(f"recorder, {backend}", [*python, str(HERE / "recorder.py"), "--rounds", "20", "--format", "json",
                                              "--backend", backend], 60)
                for backend in dict.fromkeys((bench.backend, "gloo"))
            ),
            Step("envelope", [*python, str(HERE / "envelope.py"), "--rounds", "20", "--format", "json"], 90),
        ]
    )  # fmt: skip
    return {"environment": needed, "sound": sound(bench)}


def quick(bench: Bench) -> dict[str, Any]:
    """One of each kind, side by side."""
    runs = [scenario(bench, "run2", 2, None, 2), scenario(bench, "run2-OM-11", 2, "OM-11,rank=1,chunk=2", 2)]
    bench.all([*runs, *hung(bench, ("skip",)), litmus(bench, 60.0)], at_once=4)
    replays(bench)
    return {"environment": {}, "sound": sound(bench)}


def sound(bench: Bench) -> bool:
    """Return whether the healthy runs and the replay of each came out well."""
    healthy = [step for step in bench.done if re.fullmatch(r"(replay )?run\d", step["name"])]
    return len(healthy) > 1 and all(step.get("status") == 0 for step in healthy)


def scenario(bench: Bench, name: str, ranks: int, fault: str | None, chunks: int) -> Step:
    """A run of the small video model, recorded by Genlock and by torch."""
    command = [sys.executable, "-m", "genlock", "run", "--ranks", str(ranks), "--chunks", str(chunks)]
    command += ["--backend", bench.backend, "--out", str(bench.out / name)]
    command += [word for deadline in DEADLINES for word in ("--deadline", deadline)]
    command += ["--inject", fault] if fault else []
    records = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000"}
    return Step(name, command, 75, records)


def replays(bench: Bench) -> None:
    """Replay every run's traces, and torch's own dumps of the healthy ones and the hangs."""
    steps = []
    for folder in sorted(bench.out.iterdir()):
        for traces, name in ((folder, folder.name), (folder / "flight_recorder", f"{folder.name}, dumps of torch")):
            if any(traces.glob("*.trace.jsonl")) or any(traces.glob("trace_*")):
                command = [sys.executable, "-m", "genlock", "replay", str(traces), "--format", "json"]
                steps.append(Step(f"replay {name}", command, 20))
    bench.all(steps, at_once=4)


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def litmus(bench: Bench, limit: float) -> Step:
    """The litmus programs of up to four ranks (two of them in a quick run); what is not predicted is what we are
    after."""
    names = ["equal", "broadcast_3_late_1"]
    if not bench.quick:
        listed = [sys.executable, "-c", "from genlock.model.litmus import LITMUS as L; "
                  "print(*(n for n, l in L.items() if l.ranks <= 4 and not l.checked))"]  # fmt: skip
        names = subprocess.run(
            listed, env=dict(bench.environment), capture_output=True, text=True, check=False
        ).stdout.split()
    command = [sys.executable, "-m", "genlock.impl.litmus", "--backend", bench.backend, "--probe", "2", "--limit", "12"]
    return Step("litmus", [*command, "--jobs", "6" if not bench.quick else "2", *names], limit)


# ── small jobs without torchrun ─────────────────────────────────────────────────────────────────────


def job(
    bench: Bench, name: str, what: str, world: int, environments: Sequence[Mapping[str, str]], limit: float
) -> Step:
    """A step that starts `world` ranks of bench/nccl_rank.py, each with an environment of its own."""
    out = bench.out / name / "flight_recorder"
    out.mkdir(parents=True)
    ranks = [
        {"backend": bench.backend, "rank": rank, "world": world, "what": what, "out": str(out.parent), "environment": e}
        for rank, e in enumerate(environments)
    ]
    each = [[sys.executable, str(HERE / "nccl_rank.py"), json.dumps(rank)] for rank in ranks]
    start = "import json, subprocess, sys\nranks = [subprocess.Popen(c) for c in json.loads(sys.argv[1])]\n"
    return Step(name, [sys.executable, "-c", f"{start}sys.exit(max(r.wait() for r in ranks))", json.dumps(each)], limit)


def sharing(rank: int) -> dict[str, str]:
    """The environment of a rank that shares its GPU, as `genlock.impl.rank.devices` has it (which needs no torch)."""
    spec = importlib.util.spec_from_file_location("devices", HERE.parent / "impl" / "rank" / "devices.py")
    assert spec is not None
    assert spec.loader is not None
    devices = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(devices)
    return dict(devices.sharing(rank, 2, 1))


def hung(bench: Bench, kinds: Sequence[str]) -> list[Step]:
    """Jobs of three ranks, of which rank1 is broken; torch's dumps of all ranks, and the truth beside them."""
    shared = [sharing(rank) if bench.backend == "nccl" else {} for rank in range(3)]
    truth = {f"hang-{kind}": None if kind == "healthy" else {"rank": 1, "round": 3} for kind in kinds}
    (bench.out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return [job(bench, f"hang-{kind}", kind, 3, shared, 60) for kind in kinds]


def variables(bench: Bench) -> dict[str, str]:
    """Which variables of `devices.sharing` are needed here: without each of them in turn, does an all-reduce work?"""
    whole = [sharing(rank) for rank in range(2)]
    tried: dict[str, list[dict[str, str]]] = {"all of them": whole, "none of them": [{}, {}]}
    for name in whole[0]:
        tried[f"without {name}"] = [{k: v for k, v in e.items() if k != name} for e in whole]
    steps = [job(bench, f"probe {name}", "probe", 2, each, 25) for name, each in tried.items()]
    results = bench.all(steps, at_once=4)
    words = {0: "works", None: "hangs"}
    return {
        name: words.get(result.get("status"), f"fails, status {result.get('status')}")
        for name, result in zip(tried, results, strict=True)
    }


def trim(out: Path) -> int:
    """Cut the largest files until the folder is small enough; returns its bytes."""
    for store in out.rglob("store"):
        store.unlink()
    files = sorted((p for p in out.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, reverse=True)
    total = sum(p.stat().st_size for p in files)
    for path in files:
        if total <= LIMIT_BYTES:
            break
        if path.name != "summary.json":
            total -= path.stat().st_size
            path.write_text("left out: the folder was too large\n")
    for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
    return total


if __name__ == "__main__":
    sys.exit(main())
