"""Gives damaged files to each reader: `make fuzz-readers`, guided by coverage, and a share in the tests, by seed.

    fuzz_readers.py --seconds 300 [--only NAME] [--out docs/results]
    fuzz_readers.py --again NAME FILE          what libFuzzer left, once more

Whatever stands in a file: it is read and judged, or refused in one line (exit 2). Anything else that is raised is a
fault of ours, and so is more memory or time than MEGABYTES and SECONDS. Each target runs in a process of its own, under
libFuzzer's limits. A file is damaged as bytes, as lines and, where it is a pickle or JSON, as the value that it holds.

Left out: whether the verdict is right; a damaged file may say something else that is true of another job.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reader_seeds import FILES, folders

MEGABYTES, SECONDS, LONGEST = 1500, 30, 100_000
"""Bounds of a process, and of one input in it, on a machine that others use too; and bytes of an input."""

# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────

BITS = (
    *(b"", b"\0", b"\n", b"\r", b"\xff", b"\xed\xa0\x80", b"\\ud800", b'"', b",", b":", b"{", b"}", b"[", b"]"),
    *(b"-", b"(", b")", b"#", b"NaN", b"1e999", b"true", b"null", b"\x1b[31m", b"[rank1]: ", b"3: ", b"\xe2\x80\xa8"),
    *(b"[" * 3000, b'{"a":' * 3000, b"x" * 5000, b"9" * 5000),
)
NUMBERS = (
    *(b"-1", b"0", b"1", b"1.0", b"true", b"null", b'"1"', b"NaN", b"2147483648", b"4294967296"),
    *(b"%d" % (1 << bits) for bits in (62, 63, 64)),
    *(b"9" * 30, b"9" * 5000, b"1e999", b"00", b"-0"),
)
VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 7, 1 << 31, 1 << 62, 1 << 63, 1 << 64, 10**30, 1.5, float("nan"), float("inf")),
    *(True, False, None, "", "1", "\0", "\ud800", "nccl:send 0->1", "[0, 1]", "x" * 3000),
    *([], {}, [[]], [0], [None], {"": None}, [[1 << 40] * 40], [[0] * 3000]),
)


def damage_bytes(chance: random.Random, data: bytes) -> bytes:
    """Change a bit, a few bytes, a number, a field or a line."""
    if not data:
        return chance.choice(BITS)
    kind, at = chance.randrange(9), chance.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + chance.choice(BITS) + data[at + chance.choice((0, 0, 1, 4)) :]
    if kind == 2:
        return data[:at]
    if kind in (3, 4):
        numbers = list(re.finditer(rb"\d+", data))
        if numbers:
            found = chance.choice(numbers)
            return data[: found.start()] + chance.choice(NUMBERS) + data[found.end() :]
    if kind == 5:
        fields = list(re.finditer(rb',?\s*"\w+"\s*:\s*(?:"[^"]*"|[^,}\n]*)', data))
        if fields:
            found = chance.choice(fields)
            return data[: found.start()] + found[0] * chance.choice((0, 2)) + data[found.end() :]
    lines = data.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    if kind == 6:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 7:
        lines.insert(other, lines[one])
    else:
        del lines[one]
    return b"".join(lines)


def damage_value(chance: random.Random, value: Any) -> Any:
    """Change one thing in a value of lists and dictionaries: take it away, put it twice, or another in its place."""
    if isinstance(value, dict | list | tuple) and value and chance.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, kind = chance.choice(keys), chance.randrange(8)
        changed = dict(value) if isinstance(value, dict) else list(value)
        if kind == 0:
            del changed[key]
        elif kind == 1 and isinstance(changed, list):
            changed.insert(chance.randrange(len(changed) + 1), changed[key])
        elif kind == 2:
            changed[key] = changed[chance.choice(keys)]
        else:
            changed[key] = damage_value(chance, changed[key])
        return tuple(changed) if isinstance(value, tuple) else changed
    return chance.choice(VALUES)


def plain(data: bytes) -> Any:
    """Return what a pickle of plain values holds; executes nothing."""
    from genlock.traces.importers.safe_pickle import load_plain

    return load_plain(Path("seed"), data)


def damage(chance: random.Random, data: bytes) -> bytes:
    """Change one to four things in a file."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        if chance.random() < 0.6:
            with contextlib.suppress(Exception):
                if data[:1] == b"\x80":
                    data = pickle.dumps(damage_value(chance, plain(data)), protocol=4)
                    continue
                if data.lstrip()[:1] in (b"{", b"["):
                    data = _objects(chance, data)
                    continue
        data = damage_bytes(chance, data)
    return data


def _objects(chance: random.Random, data: bytes) -> bytes:
    """Change the value of a JSON text, or that of one of its lines."""
    with contextlib.suppress(ValueError):
        return json.dumps(damage_value(chance, json.loads(data))).encode()
    lines = data.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    changed = damage_value(chance, json.loads(lines[at]))
    lines[at] = json.dumps(changed, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


# ── targets ─────────────────────────────────────────────────────────────────────────────────────────────

Folder = dict[str, bytes]
MIXED = "folder"
TARGETS = (*FILES, MIXED)
NAME = re.compile(rb"^#file ([\w.\-]{1,60})$", re.MULTILINE)


def as_bytes(folder: Folder) -> bytes:
    """Return a folder as one input."""
    return b"".join(b"#file %s\n%s\n" % (name.encode(), data) for name, data in folder.items())


def as_folder(data: bytes) -> Folder:
    """Return the folder that an input stands for."""
    parts = NAME.split(data)
    return {name.decode(): text[1:-1] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def seeds_of(target: str) -> list[bytes]:
    """Return whole inputs of a target."""
    return [as_bytes(folder) for folder in folders()] if target == MIXED else FILES[target][1]


def damaged(target: str, chance: random.Random, data: bytes) -> bytes:
    """Damage an input of a target: of a folder, one of its files."""
    if target != MIXED:
        return damage(chance, data)
    folder = as_folder(data)
    if not folder or chance.random() < 0.05:
        return damage_bytes(chance, data)
    name = chance.choice(list(folder))
    return as_bytes(folder | {name: damage(chance, folder[name])})


def try_out(target: str, data: bytes, folder: Path) -> str:
    """Replay an input; return the verdict, or `refused`. Raises whatever is a fault of ours."""
    from genlock.conformance.replay import replay
    from genlock.conformance.report import as_json, as_junit, as_text
    from genlock.errors import Exit, GenlockError

    for old in folder.iterdir():
        old.unlink()
    files = as_folder(data) if target == MIXED else {FILES[target][0]: data}
    for name, text in files.items():
        (folder / name).write_bytes(text)
    try:
        found = replay([folder] if target == MIXED else [folder / name for name in files]).diagnosis
    except GenlockError as error:
        said = str(error)
        if error.exit is not Exit.USAGE or "\n" in said or len(said) > 2000:
            raise AssertionError(f"not one line with exit 2: {said[:3000]}") from error
        said.encode()
        return "refused"
    json.dumps(as_json(found)).encode()
    as_text(found).encode()
    as_junit(found).encode()
    return found.verdict


# ── by seed, for the tests ──────────────────────────────────────────────────────────────────────────────


def share(target: str, first: int, many: int, folder: Path) -> dict[str, int]:
    """Try inputs that are functions of their seeds; return how many had which verdict."""
    seeds, found = seeds_of(target), dict[str, int]()
    for number in range(first, first + many):
        chance = random.Random(f"{target} {number}")
        verdict = try_out(target, damaged(target, chance, chance.choice(seeds)), folder)
        found[verdict] = found.get(verdict, 0) + 1
    return found


# ── by coverage ─────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder, in memory where that is possible."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def guided(target: str, seconds: int, work: Path) -> None:
    """Run libFuzzer on one target in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["genlock.traces", "genlock.conformance"], enable_loader_override=False):
        import genlock.conformance.collectives.diagnose
        import genlock.conformance.evidence.merge
        import genlock.conformance.protocol.diagnose
        import genlock.conformance.replay
        import genlock.conformance.report
        import genlock.traces.importers.detect  # noqa: F401

    corpus = work / "corpus"
    corpus.mkdir(parents=True)
    for number, data in enumerate(seeds_of(target)):
        (corpus / f"seed{number}").write_bytes(data)
    own = Path(tempfile.mkdtemp(dir=work))

    def one(data: bytes) -> None:
        try_out(target, data, own)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return damaged(target, chance, data)[:most]

    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}", f"-max_total_time={seconds}"]
    options = [*limits, f"-artifact_prefix={work}/", "-print_final_stats=1", "-verbosity=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


class Outcome:
    """Holds what a run of libFuzzer came to."""

    def __init__(self, target: str, status: int, text: str, left: Sequence[Path]) -> None:
        def last(pattern: str) -> int:
            found: list[str] = re.findall(pattern, text)
            return int(found[-1]) if found else 0

        self.target, self.left = target, list(left)
        self.executed = last(r"stat::number_of_executed_units:\s*(\d+)") or last(r"#(\d+)\s")
        self.megabytes = last(r"stat::peak_rss_mb:\s*(\d+)")
        self.coverage, self.features = last(r"cov: (\d+)"), last(r"ft: (\d+)")
        self.slowest = last(r"stat::slowest_unit_time_sec:\s*(\d+)")
        self.failure = "" if status == 0 and not self.left else _failure(text)

    @property
    def row(self) -> str:
        """Return the line of a table."""
        took = f"{self.slowest} s | {self.megabytes} MB"
        return f"| {self.target} | {self.executed:,} | {self.coverage:,} | {took} | {self.failure or 'nothing'} |"


def _failure(text: str) -> str:
    """Return the exception, or the bound, that ended a run."""
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines) if "Uncaught Python exception" in line), None)
    if at is not None:
        return next((line.strip() for line in lines[at + 1 :] if line.strip()), "an exception")[:200]
    return next((line for line in lines if "ERROR: libFuzzer" in line), "it ended early")[:200]


def run(target: str, seconds: int, keep: Path) -> Outcome:
    """Fuzz one target in a process of its own; what it left is put into `keep`."""
    with scratch() as work:
        command = [sys.executable, __file__, "--guided", target, "--seconds", str(seconds), "--work", str(work)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        left = [p for p in work.iterdir() if p.is_file() and p.name.startswith(("crash", "timeout", "oom", "slow"))]
        bad = [p for p in left if not p.name.startswith("slow")]
        keep.mkdir(parents=True, exist_ok=True)
        for path in left:
            shutil.copy(path, keep / f"{target}-{path.name}")
        (keep / f"{target}.log").write_text(done.stdout + done.stderr)
        return Outcome(target, done.returncode, done.stdout + done.stderr, bad)


HEAD = """# Readers, fuzzed by coverage, {date}

`make fuzz-readers SECONDS={seconds}`: each reader is given damaged files for {seconds} s, by libFuzzer through atheris.
A file must be read and judged, or refused in one line. Bounds: {limit} s for an input, {megabytes} MB for the process.

| reader | inputs | lines reached | slowest input | memory | found |
|---|---|---|---|---|---|
"""


def main() -> int:
    """Fuzz the readers in turn; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="for each reader")
    parser.add_argument("--only", action="append", choices=TARGETS, help="this reader; more than once for several")
    parser.add_argument("--out", type=Path, help="folder for the dated table")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-readers"), help="folder for inputs that failed")
    parser.add_argument("--again", nargs=2, metavar=("NAME", "FILE"), help="try one input once more")
    parser.add_argument("--guided", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.guided:
        guided(given.guided, given.seconds, given.work)
    if given.again:
        with scratch() as folder:
            print(try_out(given.again[0], Path(given.again[1]).read_bytes(), folder))
        return 0
    outcomes = []
    for target in given.only or TARGETS:
        outcomes.append(run(target, given.seconds, given.keep))
        print(outcomes[-1].row, flush=True)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        date = datetime.datetime.now(tz=datetime.UTC).date()
        head = HEAD.format(date=date, seconds=given.seconds, limit=SECONDS, megabytes=MEGABYTES)
        rows = "".join(outcome.row + "\n" for outcome in outcomes)
        (given.out / f"fuzz-readers-{date}.md").write_text(head + rows)
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
