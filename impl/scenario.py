"""Says what a run does: chunks, heartbeats, hard cuts and recomputes in order, and the fault to inject.

It is data alone. The launcher reads this without torch. Left out: how a fault is made (`inject`), and what a chunk's
tensors are (`pipeline`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import UnreadableInput, UsageError

PROMPTS = ("a lighthouse at dusk", "the same lighthouse in a storm")


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", tag_field="do", forbid_unknown_fields=True):
    """Asks for a NOOP header."""


class Chunk(msgspec.Struct, frozen=True, tag="chunk", tag_field="do", forbid_unknown_fields=True, omit_defaults=True):
    """Asks for one chunk of video."""

    prompt: str = PROMPTS[0]
    hard_cut: bool = False
    recompute: bool = False
    spoil: str = ""
    """A fault that preflight refuses, by id: what the application hands to rank0 is spoilt in that way."""


class Wait(msgspec.Struct, frozen=True, tag="wait", tag_field="do", forbid_unknown_fields=True):
    """Leaves rank0 without work for a while; a drain cuts it short."""

    seconds: float


Step = Heartbeat | Chunk | Wait


class Injection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Names a fault and where it strikes: chunk of the run (from 1; refused chunks count), rank, phase, kind.

    `where`: `inside` the collective of that phase, when this rank has issued it and it is not complete; else before.
    """

    id: str
    chunk: int = 3
    rank: int | None = None
    phase: str = ""
    kind: str = ""
    where: str = ""

    @property
    def strikes(self) -> int:
        """Return the rank that is struck, also where none was chosen."""
        default = 0 if self.phase in RANK0_ALONE or self.id == "OM-15" else 1
        return default if self.rank is None else self.rank


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Holds the steps of a run; SHUTDOWN follows the last one.

    `inject` is the fault, if any. `conditioning` is the mode in which conditioning travels, and `digest_every` the
    cadence of digests.
    """

    steps: tuple[Step, ...]
    inject: Injection | None = None
    conditioning: Literal["bring-up", "optimize"] = "bring-up"
    digest_every: int = 1

    @property
    def chunks(self) -> int:
        return sum(isinstance(step, Chunk) for step in self.steps)


def default(chunks: int) -> Scenario:
    """Return a scenario of `chunks` chunks.

    A heartbeat comes before every third, a hard cut with a new prompt half-way, then a recompute.
    """
    cut = chunks // 2 + 1
    steps: list[Step] = []
    for n in range(1, chunks + 1):
        if n % 3 == 1:
            steps.append(Heartbeat())
        steps.append(Chunk(PROMPTS[n >= cut], hard_cut=n == cut and n > 1, recompute=n == cut + 2))
    return Scenario(tuple(steps))


def load(path: Path) -> Scenario:
    """Read a scenario from a JSON file, such as `check --out` writes.

    Raises UnreadableInput, for a fault UsageError.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Scenario)
        if found.inject is not None:
            given = msgspec.to_builtins(found.inject)
            injection(found.inject.id, {name: str(given[name]) for name in given if name != "id"})
        for step in found.steps:
            if isinstance(step, Chunk) and step.spoil:
                _spoils(step.spoil)
        return found
    except OSError as error:
        raise UnreadableInput(str(error.strerror), where=str(path), do="check the path") from None
    except msgspec.DecodeError as error:
        example = msgspec.json.encode(default(1)).decode()
        raise UnreadableInput(f"not a scenario: {error}", where=str(path), do=f"a scenario is like {example}") from None


class FaultTitle(msgspec.Struct, frozen=True):
    """Says what a fault is, the failure mode that it belongs to, and which settings it takes."""

    text: str
    failure_mode: str
    settings: tuple[str, ...] = ("chunk",)
    refused: bool = False
    """Preflight refuses it, and the run goes on."""
    kinds: tuple[str, ...] = ()


FAULTS: Mapping[str, FaultTitle] = {
    "OM-01": FaultTitle("meta that cannot be encoded (a lambda)", "FM-04", refused=True),
    "OM-02": FaultTitle("a tensor of a dtype off the wire map", "FM-07", refused=True),
    "OM-03": FaultTitle(
        "plan identities broken on rank0; with a rank: its code makes one call more, or fewer",
        "FM-02", ("chunk", "rank", "kind"), refused=True, kinds=("more", "fewer"),
    ),
    "OM-04": FaultTitle("tp_plan differs on one rank", "FM-01", ("rank",)),
    "OM-05": FaultTitle("a flag that gates a collective is set on one rank", "FM-03", ("rank",)),
    "OM-06": FaultTitle("a broadcast inside a generator block on one rank", "FM-08", ("chunk", "rank")),
    "OM-10": FaultTitle("recompute planned, no override", "FM-06", refused=True),
    "OM-11": FaultTitle("one payload byte flipped on one worker after receipt", "FM-05", ("chunk", "rank")),
    "OM-12": FaultTitle("a weight changed on one rank", "FM-11", ("chunk", "rank")),
    "OM-13": FaultTitle(
        "a rank dies or stalls in a phase; or its guardian, or the launcher, is killed", "FM-18",
        ("chunk", "rank", "phase", "kind", "where"), kinds=("kill", "stop", "loop", "gil", "guardian", "launcher"),
    ),
    "OM-14": FaultTitle("a chunk with init_cache is refused, then a good one is sent", "FM-10", refused=True),
    "OM-15": FaultTitle("SIGTERM to the launcher while a rank is in a phase", "FM-18", ("chunk", "rank", "phase")),
    "OM-16": FaultTitle(
        "a stale, duplicate or truncated header packet", "FM-10", ("chunk", "kind"),
        kinds=("stale", "duplicate", "truncated"),
    ),
    "C-01": FaultTitle("compile differs on one rank", "FM-14", ("rank",)),
    "C-04": FaultTitle("the resolved attention backend differs on one rank", "FM-14", ("rank",)),
    "FM-12": FaultTitle(
        "one rank empties a cache of its own accord", "FM-12", ("chunk", "rank", "kind"), kinds=("kv", "text"),
    ),
    "FM-13": FaultTitle("one rank goes by a start frame of its own", "FM-13", ("chunk", "rank")),
    "FM-04": FaultTitle("a broken build: header before preflight", "FM-04"),
}  # fmt: skip
"""Every fault that can be injected, by id."""


def injection(id: str, settings: Mapping[str, str]) -> Injection:
    """Return the fault `id` with its settings, which come as text, or raise UsageError."""
    known = f"choose one of {', '.join(FAULTS)}"
    if id not in FAULTS:
        raise UsageError(f"no fault `{id}`", where="--inject", do=known)
    fault = FAULTS[id]
    for name in settings:
        if name not in fault.settings:
            raise UsageError(f"{id} has no `{name}`", where="--inject", do=f"it takes {', '.join(fault.settings)}")
    chunk = _number(settings.get("chunk", str(Injection(id).chunk)), 1, "the number of a chunk")
    rank = _number(settings["rank"], 0, "a rank") if "rank" in settings else None
    phase, kind, where = (settings.get(name, "") for name in ("phase", "kind", "where"))
    phases = PHASES if not where else INSIDE
    for name, value, choices in (("where", where, ("inside",)), ("kind", kind, fault.kinds), ("phase", phase, phases)):
        if value and value not in choices:
            raise UsageError(f"no {name} `{value}`", where="--inject", do=f"choose from {', '.join(choices)}")
    if phase in RANK0_ALONE and rank:
        raise UsageError(f"rank{rank} has no phase `{phase}`", where="--inject", do="leave `rank` out, or use rank=0")
    if kind and rank is None and fault.refused:
        raise UsageError(f"without a rank {id} has no kind", where="--inject", do="give a rank, or leave `kind` out")
    return Injection(id, chunk, rank, phase or ("generate" if where else ""), kind, where)


def must_strike(fault: Injection, scenario: Scenario, ranks: int) -> None:
    """Refuse a fault that cannot strike in this run: of a rank or a chunk that it does not have. Raises UsageError."""
    if fault.strikes >= ranks:
        raise UsageError(f"there is no rank{fault.strikes} of {ranks} ranks", where="--inject", do="count from 0")
    if "chunk" not in FAULTS[fault.id].settings or fault.phase in WITHOUT_A_CHUNK:
        return
    sent = scenario.chunks - sum(isinstance(step, Chunk) and bool(step.spoil) for step in scenario.steps)
    last = scenario.chunks if FAULTS[fault.id].refused and fault.rank is None else sent
    # whoever waits for the next header is in these phases once more after the last chunk
    last += fault.phase == "idle" or (fault.phase == "header" and fault.strikes > 0)
    if fault.chunk > last:
        where = f"--inject {fault.id}"
        raise UsageError(
            f"there is no chunk {fault.chunk}: the run has {last}", where=where, do="choose another `chunk`"
        )
    if fault.chunk < (first := FIRST_CHUNK.get((fault.id, fault.kind), 1)):
        text = f"no header that could come again was sent before chunk {fault.chunk}"
        raise UsageError(text, where=f"--inject {fault.id}", do=f"use chunk={first} or more")


def _number(text: str, least: int, what: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"`{text}` is not {what}", where="--inject", do=f"count from {least}")
    return int(text)


def _spoils(id: str) -> None:
    spoils = [name for name, fault in FAULTS.items() if fault.refused]
    if id not in spoils:
        raise UsageError(f"`{id}` is not refused by preflight", where="spoil", do=f"choose from {', '.join(spoils)}")


DEADLINES: Mapping[str, float] = {
    "startup": 120.0,
    "idle": 600.0,
    "preflight": 60.0,
    "header": 60.0,
    "payload": 60.0,
    "generate": 120.0,
    "ack": 120.0,
    "shutdown": 30.0,
    "drain": 870.0,
    "collective": 120.0,
}
"""Seconds without progress after which a rank is ended, by the phase that it is in.

Two are no phases. `drain`: seconds that a rank holds a signal, the chunk that it came in not counted; by itself as long
as a healthy rank0 may take from a chunk's last call to SHUTDOWN (`effective`). `collective`: ranks wait for each other
alone, which a guardian sees.
"""


def effective(given: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of every phase: those given, and else by default. What a drain may take follows from them.

    After its last call a worker waits while rank0 collects acks, checks them, does phase C, and sends SHUTDOWN; after a
    signal at start-up, while parity is exchanged and checked, and rank0 does phase A.
    """
    seconds = {**DEADLINES, **given}
    drain = 2 * max(seconds["ack"], seconds["startup"]) + seconds["idle"] + seconds["shutdown"]
    return {**seconds, "drain": drain, **given}


PHASES = tuple(name for name in DEADLINES if name not in ("drain", "collective"))
INSIDE = ("startup", "header", "payload", "generate", "ack")
"""The phases in whose collective a rank can be struck."""
RANK0_ALONE = ("preflight", "shutdown")
"""The phases that no worker has."""
WITHOUT_A_CHUNK = ("startup", "shutdown")
"""The phases that come once in a run."""
FIRST_CHUNK = {("OM-16", ""): 3, ("OM-16", "stale"): 3, ("OM-16", "duplicate"): 2}
"""The first chunk in which a fault can strike, by id and kind, where that is not the first of the run."""


class RunConfig(msgspec.Struct, frozen=True):
    """Holds what every rank of a run must know."""

    run: str
    out: str
    backend: str
    scenario: Scenario
    deadlines: dict[str, float] = {}
    injection: Injection | None = None
    launcher: int = 0
    """Process id of the launcher; 0 where nobody tells."""
