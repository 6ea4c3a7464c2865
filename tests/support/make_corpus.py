"""Records the runs of traces/corpus anew: `python tests/support/make_corpus.py [FOLDER]`, some four minutes.

Each run becomes a folder with its traces and `expected.json`: how it was made, and what replay must say of it. The
latter is written down here, by what was done to the run, not by what replay says. Runs are real: ranks on gloo, started
by `genlock run`; where a rank has to be killed, stopped or stalled at a place of its table, forked by `struck_zygote`.
What names this machine is taken out: paths and addresses in messages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import real_ranks
from corpus import EXPECTED, Expected
from genlock.impl.scenario import Chunk, Heartbeat, Scenario, default
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.tables import By, Role
from genlock.traces.format import SUFFIX
from real_ranks import Ranks
from repository import CORPUS, PROCESSES
from struck_zygote import Strike


class Told(NamedTuple):
    """A run of `genlock run`."""

    name: str
    flags: str
    expected: tuple[str | None, tuple[int, ...], int, str] | None = None
    """Failure mode, culprits, chunk and state of a broken one; a healthy one has none."""
    stall: str | None = None
    guarded: bool = True
    """Without guardians its ranks go by deadlines of their own."""


TOLD = (
    Told("healthy/three-ranks", "--ranks 3 --chunks 4"),
    Told("healthy/two-ranks", "--ranks 2 --chunks 2"),
    Told("healthy/four-ranks", "--ranks 4 --chunks 2"),
    Told("healthy/drained-idle", "--ranks 3 --chunks 2 --inject OM-15,chunk=2,rank=0,phase=idle"),
    Told("healthy/drained-generate", "--ranks 3 --chunks 2 --inject OM-15,chunk=2,rank=1,phase=generate"),
    Told("healthy/drained-ack", "--ranks 3 --chunks 2 --inject OM-15,chunk=1,rank=2,phase=ack"),
    Told("refused/OM-01", "--ranks 3 --chunks 3 --inject OM-01,chunk=2"),
    Told("refused/OM-02", "--ranks 3 --chunks 3 --inject OM-02,chunk=2"),
    Told("refused/OM-03", "--ranks 3 --chunks 3 --inject OM-03,chunk=2"),
    Told("refused/OM-10", "--ranks 3 --chunks 3 --inject OM-10,chunk=2"),
    Told("refused/OM-14", "--ranks 3 --chunks 3 --inject OM-14,chunk=2"),
    Told("broken/OM-03-more", "--ranks 3 --chunks 2 --inject OM-03,chunk=2,rank=1", ("FM-02", (1,), 2, "GENERATING")),
    Told(
        "broken/OM-03-fewer",
        "--ranks 3 --chunks 2 --inject OM-03,chunk=2,rank=2,kind=fewer",
        ("FM-02", (2,), 2, "GENERATING"),
    ),
    Told("broken/OM-03-rank0", "--ranks 3 --chunks 2 --inject OM-03,chunk=2,rank=0", ("FM-02", (0,), 2, "GENERATING")),
    Told("broken/OM-04", "--ranks 3 --chunks 1 --inject OM-04", ("FM-01", (1,), 0, "PARITY_CHECK")),
    Told("broken/OM-05", "--ranks 3 --chunks 1 --inject OM-05,rank=2", ("FM-03", (2,), 0, "PARITY_CHECK")),
    Told("broken/OM-06", "--ranks 3 --chunks 2 --inject OM-06,chunk=2", ("FM-08", (1,), 2, "GENERATING")),
    Told("broken/OM-11", "--ranks 3 --chunks 2 --inject OM-11,chunk=2,rank=2", ("FM-05", (2,), 2, "AWAIT_PAYLOAD")),
    Told("broken/OM-12", "--ranks 3 --chunks 2 --inject OM-12,chunk=1,rank=2", ("FM-11", (2,), 1, "ACK")),
    Told("broken/OM-16-stale", "--ranks 3 --chunks 3 --inject OM-16,kind=stale", ("FM-10", (0,), 3, "COMMITTED")),
    Told(
        "broken/OM-16-duplicate",
        "--ranks 3 --chunks 2 --inject OM-16,chunk=2,kind=duplicate",
        ("FM-10", (0,), 2, "COMMITTED"),
    ),
    Told(
        "broken/OM-16-truncated",
        "--ranks 3 --chunks 2 --inject OM-16,chunk=2,kind=truncated",
        ("FM-10", (0,), 2, "COMMITTED"),
    ),
    # struck in the move that leads to the phase: that one is not written any more
    Told(
        "broken/OM-13-kill",
        "--ranks 3 --chunks 2 --inject OM-13,chunk=2,rank=1,phase=payload,kind=kill",
        ("FM-18", (1,), 1, "HEADER_CHECK"),
    ),
    Told(
        "broken/OM-13-stop",
        "--ranks 3 --chunks 2 --inject OM-13,chunk=2,rank=0,phase=generate,kind=stop",
        ("FM-18", (0,), 2, "PAYLOAD_SENT"),
        "host",
    ),
    Told(
        "broken/OM-13-loop",
        "--ranks 3 --chunks 2 --inject OM-13,chunk=2,rank=2,phase=ack,kind=loop",
        ("FM-18", (2,), 2, "GENERATING"),
        "host",
    ),
    Told(
        "broken/OM-13-gil",
        "--ranks 3 --chunks 2 --inject OM-13,chunk=1,rank=1,phase=generate,kind=gil",
        ("FM-18", (1,), 1, "READY"),
        "host",
    ),
    Told("broken/C-01", "--ranks 3 --chunks 1 --inject C-01", ("FM-14", (1,), 0, "PARITY_CHECK")),
    Told("broken/C-04", "--ranks 3 --chunks 1 --inject C-04,rank=2", ("FM-14", (2,), 0, "PARITY_CHECK")),
    Told("broken/FM-12-kv", "--ranks 3 --chunks 3 --inject FM-12,chunk=3,rank=1", ("FM-12", (1,), 3, "ACK")),
    Told(
        "broken/FM-12-text",
        "--ranks 3 --chunks 3 --inject FM-12,chunk=3,rank=2,kind=text",
        ("FM-12", (2,), 3, "READY"),
    ),
    Told("broken/FM-13", "--ranks 3 --chunks 2 --inject FM-13,chunk=2,rank=2", ("FM-13", (2,), 2, "GENERATING")),
    # under guardians nobody is charged for waiting, and all would wait for a minute
    Told(
        "broken/FM-04",
        "--ranks 3 --chunks 2 --inject FM-04,chunk=2",
        ("FM-04", (0,), 1, "PREFLIGHT_4"),
        guarded=False,
    ),
)
LIMITS = ("header=5", "payload=5", "generate=5", "ack=5")
"""Deadlines of a broken run, in seconds: whoever is left waiting ends itself."""


class Struck(NamedTuple):
    """A run in which one rank is struck."""

    name: str
    strike: Strike
    expected: Expected
    ranks: int = 2


AFTER_THE_HEADER = ("header", "payload", "generate", "ack")
"""The phases in which peers block for more, so that an exception strands them."""


def struck() -> Iterator[Struck]:
    """Each live state of each role, left by an exception and by a passed deadline; ranks killed and stopped."""
    for rank, role in enumerate(TP_V1_1.roles):
        for state in role.states:
            if not state.terminal and not state.failed:
                row = next(r for r in role.leaving[state.name] if r.by in (By.PROTOCOL, By.ENVIRONMENT))
                for kind in ("raise", "stall"):
                    yield _in_state(role, rank, row.event, state.name, state.phase, kind)
    for rank, event in ((1, "exchange_parity"), (2, "receive_header"), (1, "receive_payload"), (1, "send_ack")):
        yield _killed(rank, event)
    for rank, event in ((0, "exchange_parity"), (0, "send_payload"), (0, "generate"), (0, "collect_acks")):
        yield _killed(rank, event)
    yield _killed(1, "receive_header", nth=2)
    yield _killed(1, "receive_header", nth=3)
    yield _killed(1, "generate", "stop")
    yield _killed(0, "send_header", "stop")
    for function, nth, step in (("_tensors", 2, 2), ("encode", 1, 3), ("slots", 1, 5)):
        made = Expected(f"preflight step {step} cannot do its work in the first chunk: `{function}` raises")
        yield Struck(f"refused/step-{step}", Strike(0, "refuse", function, nth), made)


def _in_state(role: Role, rank: int, event: str, state: str, phase: str, kind: str) -> Struck:
    name = f"struck/{role.name}-{state.lower().replace('_', '-')}-{kind}"
    if kind == "raise":
        mode = "FM-04" if phase in AFTER_THE_HEADER else None
        made = f"rank{rank} raises in {state}, before `{event}`"
        return Struck(name, Strike(rank, kind, event), Expected(made, "divergent", mode, (rank,), None, state))
    made = f"rank{rank} stalls in {state}, before `{event}`, until its deadline"
    expected = Expected(made, "divergent", "FM-18", (rank,), None, state, "host")
    return Struck(name, Strike(rank, kind, event), expected)


def _killed(rank: int, event: str, kind: str = "kill", nth: int = 1) -> Struck:
    how = "killed" if kind == "kill" else "stopped"
    row = next(r for r in TP_V1_1.role(rank).rows if r.event == event)
    time = f", for the {nth}. time" if nth > 1 else ""
    made = f"rank{rank} is {how} before `{event}`{time}"
    expected = Expected(made, "divergent", "FM-18", (rank,), None, row.state, None if kind == "kill" else "host")
    name = f"struck/rank{rank}-{how}-before-{event.replace('_', '-')}" + (f"-{nth}" if nth > 1 else "")
    return Struck(name, Strike(rank, kind, event, nth=nth), expected, 3)


# ── recording ───────────────────────────────────────────────────────────────────────────────────────


def tell(zygote: Ranks, run: Told, out: Path) -> Expected:
    """Have `genlock run` make it; ranks without guardians are forked, as in a run of it."""
    limits = [f"--deadline {limit}" for limit in LIMITS] if run.expected else []
    command = " ".join(["genlock run", run.flags, *limits])
    words = [sys.executable, "-m", *command.split(), "--out", str(out)]
    if run.guarded:
        subprocess.run(words, check=False, capture_output=True, timeout=120)
    else:
        given = dict(zip(words[4::2], words[5::2], strict=True))
        out.mkdir(parents=True)
        (out / "strike.json").write_bytes(msgspec.json.encode(Strike(-1, "", "")))
        deadlines = dict.fromkeys((limit.partition("=")[0] for limit in LIMITS), 5.0)
        fault, ranks = real_ranks.inject(given["--inject"]), int(given["--ranks"])
        zygote.run(out, default(int(given["--chunks"])), fault, ranks=ranks, deadlines=deadlines)
        command += ", its ranks without guardians"
    if run.expected is None:
        return Expected(command)
    mode, culprits, chunk, state = run.expected
    return Expected(command, "divergent", mode, culprits, chunk, state, run.stall)


STEPS = Scenario((Heartbeat(), Chunk(recompute=True)))
SOON: Mapping[str, float] = {
    **dict.fromkeys(("idle", "preflight", "header", "payload", "generate", "ack", "shutdown"), 1.5),
    "startup": 10.0,
}
LATER = {"idle": 5.0, "header": 4.0, "payload": 4.0, "generate": 4.0, "ack": 4.0, "shutdown": 4.0, "startup": 10.0}


def strike(zygote: Ranks, run: Struck, out: Path) -> Expected:
    """Have it forked."""
    out.mkdir(parents=True)
    (out / "strike.json").write_bytes(msgspec.json.encode(run.strike))
    zygote.run(out, STEPS, ranks=run.ranks, deadlines=SOON if run.strike.kind == "stall" else LATER)
    return run.expected


SECRETS = (
    (rb"(?:/[\w.+-]+)+/([\w.+-]+)", rb"\1"),
    (rb"\[?\b\d+\.\d+\.\d+\.\d+\]?:\d+", b"a peer"),
    (rb"(?<=torch\":\")([\d.]+)[^\"]*", rb"\1"),
)
"""Paths and addresses in messages, and what they become."""


def keep(traces: Path, expected: Expected, folder: Path) -> None:
    """Put a run into the corpus."""
    if not list(traces.glob(f"*{SUFFIX}")):
        raise SystemExit(f"{folder.name}: nothing was recorded")
    folder.mkdir(parents=True)
    for path in sorted(traces.glob(f"*{SUFFIX}")):
        data = path.read_bytes()
        for secret, instead in SECRETS:
            data = re.sub(secret, instead, data)
        (folder / path.name).write_bytes(data)
    written = msgspec.json.format(msgspec.json.encode(expected), indent=2)
    (folder / EXPECTED).write_bytes(written + b"\n")


def main(arguments: Sequence[str]) -> None:
    corpus = Path(arguments[0]) if arguments else CORPUS
    only = arguments[1] if len(arguments) > 1 else ""
    real_ranks.ZYGOTE = PROCESSES / "struck_zygote.py"
    with tempfile.TemporaryDirectory() as scratch:
        zygote = Ranks()
        runs: list[Told | Struck] = [*TOLD, *struck()]
        for run in runs:
            if only not in run.name:
                continue
            print(run.name, flush=True)
            folder, out = corpus / run.name, Path(scratch) / run.name
            shutil.rmtree(folder, ignore_errors=True)
            expected = tell(zygote, run, out) if isinstance(run, Told) else strike(zygote, run, out)
            keep(out, expected, folder)
        zygote.close()


if __name__ == "__main__":
    main(sys.argv[1:])
