"""What a run does: chunks, heartbeats, hard cuts and recomputes in order, and the fault to inject. Data alone.

The launcher reads this without torch. Left out: how a fault is made (`inject`), and what a chunk's tensors
are (`pipeline`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..errors import NotBuiltYet, UnreadableInput, UsageError

PROMPTS = ("a lighthouse at dusk", "the same lighthouse in a storm")


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", tag_field="do", forbid_unknown_fields=True):
    """A NOOP header."""


class Chunk(msgspec.Struct, frozen=True, tag="chunk", tag_field="do", forbid_unknown_fields=True, omit_defaults=True):
    """One chunk of video."""

    prompt: str = PROMPTS[0]
    hard_cut: bool = False
    recompute: bool = False


class Injection(msgspec.Struct, frozen=True):
    """Which fault, and at which chunk of the run (from 1; refused chunks count)."""

    id: str
    chunk: int = 3


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The steps of a run; SHUTDOWN follows the last one. `inject` is the fault, if any."""

    steps: tuple[Heartbeat | Chunk, ...]
    inject: Injection | None = None

    @property
    def chunks(self) -> int:
        return sum(isinstance(step, Chunk) for step in self.steps)


def default(chunks: int) -> Scenario:
    """`chunks` chunks: a heartbeat before every third, a hard cut with a new prompt half-way, then a recompute."""
    cut = chunks // 2 + 1
    steps: list[Heartbeat | Chunk] = []
    for n in range(1, chunks + 1):
        if n % 3 == 1:
            steps.append(Heartbeat())
        steps.append(Chunk(PROMPTS[n >= cut], hard_cut=n == cut and n > 1, recompute=n == cut + 2))
    return Scenario(tuple(steps))


def load(path: Path) -> Scenario:
    """A scenario from a JSON file, such as `check --out` writes. Raises UnreadableInput, for a fault NotBuiltYet."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Scenario)
        if found.inject is not None:
            injection(found.inject.id, {"chunk": str(found.inject.chunk)})
        return found
    except OSError as error:
        raise UnreadableInput(str(error.strerror), where=str(path), do="check the path") from None
    except msgspec.DecodeError as error:
        example = msgspec.json.encode(default(1)).decode()
        raise UnreadableInput(f"not a scenario: {error}", where=str(path), do=f"a scenario is like {example}") from None


class FaultTitle(msgspec.Struct, frozen=True):
    """What a fault is, and the failure mode that it belongs to."""

    text: str
    failure_mode: str


FAULTS: Mapping[str, FaultTitle] = {
    "OM-01": FaultTitle("meta that cannot be encoded (a lambda)", "FM-04"),
    "OM-02": FaultTitle("a tensor of a dtype off the wire map", "FM-07"),
    "OM-03": FaultTitle("plan identities broken on rank0", "FM-02"),
    "OM-10": FaultTitle("recompute planned, no override", "FM-06"),
    "OM-14": FaultTitle("a chunk with init_cache is refused, then a good one is sent", "FM-10"),
    "FM-04": FaultTitle("a broken build: header before preflight", "FM-04"),
}
"""Every fault that can be injected, by id."""

NOT_YET = ("OM-04", "OM-05", "OM-06", "OM-11", "OM-12", "OM-13", "OM-15", "OM-16", "C-01", "C-04")
"""Rows of the break-it matrix whose injection is not built yet."""


def injection(id: str, settings: Mapping[str, str]) -> Injection:
    """The fault `id`, at `chunk=N` where that is set. Raises UsageError and NotBuiltYet."""
    known = f"choose one of {', '.join(FAULTS)}"
    if id in NOT_YET:
        raise NotBuiltYet(f"`--inject {id}` is not built yet", do=known)
    if id not in FAULTS:
        raise UsageError(f"no fault `{id}`", where="--inject", do=known)
    for name in settings:
        if name != "chunk":
            raise NotBuiltYet(f"`{name}` is not built yet for {id}", where="--inject", do="use chunk=N")
    chunk = settings.get("chunk", str(Injection(id).chunk))
    if not chunk.isdigit() or int(chunk) < 1:
        raise UsageError(f"`{chunk}` is not the number of a chunk", where="--inject", do="count from 1")
    return Injection(id, int(chunk))


DEADLINES: Mapping[str, float] = {
    "startup": 120.0,
    "idle": 600.0,
    "preflight": 60.0,
    "header": 60.0,
    "payload": 60.0,
    "generate": 120.0,
    "ack": 120.0,
    "shutdown": 30.0,
}
"""Seconds without progress after which a rank ends itself, by the phase that it is in."""


class RunConfig(msgspec.Struct, frozen=True):
    """What every rank of a run is told."""

    run: str
    out: str
    backend: str
    scenario: Scenario
    deadlines: dict[str, float] = {}
    injection: Injection | None = None
