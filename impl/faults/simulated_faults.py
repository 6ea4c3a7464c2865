"""Makes faults for simulated ranks: where one strikes, and what it does there.

The kinds are those of `model.faults`. A strike comes when its rank reaches a row of its table for the n-th time. Left
out: faults of a real process (`inject`), and what must come of it (the tests ask the model).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch

from ...errors import Code
from ...model.semantics.network import CRASH, STALL
from ...model.tables import Collective, Data, Role
from ..chunk import wire
from ..chunk.schema import Ids, encode
from ..rank.monitor import Monitor
from .simulator import Gone, Stalled


@dataclass(frozen=True)
class Strike:
    """Says that a fault of `kind` comes to `rank`, and when.

    It comes to `event` for the `nth` time: before it, or after its collective.

    For the kinds that damage what arrives, `event` receives it; of those that rank0 sends wrong, every worker
    is given the same. For the kinds that change a generator or its facts, `nth` is the chunk.
    """

    kind: str
    rank: int
    event: str = ""
    nth: int = 1
    after: bool = False


ON_THE_WAY: Mapping[str, Literal["worker", "all"]] = {
    "corrupt": "worker",
    "incoherent": "worker",
    "stale": "all",
    "duplicate": "all",
    "manifest": "all",
}
"""The kinds that change a message: for one worker, or for all of them because rank0 sent it so."""
AT_A_ROW = (CRASH, STALL, "exception", "thread")
"""The kinds that strike a rank in any row."""
IN_FACTS: Mapping[str, tuple[str, str]] = {
    "flag": ("flag.extra_check", "on"),
    "role": ("tp_plan", "v0_full_pipeline"),
    "backend": ("attention_backend", "another"),
}
"""The kinds that parity sees: the key that differs, and the odd value."""
IN_GENERATOR = ("plan", "drift", "override", "weights")
"""The kinds that are in the code or the weights of one rank."""


class StruckMonitor(Monitor):
    """Monitors a rank that a fault strikes at a row."""

    def __init__(self, role: Role, rank: int, strike: Strike | None = None) -> None:
        super().__init__(role, rank)
        self.strike = strike if strike is not None and strike.rank == rank and strike.kind in AT_A_ROW else None
        self.struck: str | None = None
        """The state in which the fault struck."""
        self._left = strike.nth if strike else 0

    def step(self, event: str, data: Data = None) -> None:
        self._reach(event, after=False)
        super().step(event, data)

    def enter(self, event: str) -> Collective:
        self._reach(event, after=False)
        return super().enter(event)

    def exit(self, data: Data) -> None:
        self._reach(self.pending.event if self.pending else "", after=True)
        super().exit(data)

    def _reach(self, event: str, *, after: bool) -> None:
        strike = self.strike
        if strike is None or (event, after) != (strike.event, strike.after) or self.struck is not None:
            return
        self._left -= 1
        if self._left:
            return
        self.struck = self.state
        if strike.kind == CRASH:
            raise Gone
        if strike.kind == STALL:
            raise Stalled
        if strike.kind == "thread":
            raise self.violation("heartbeat", "a second thread asks for a heartbeat in mid-chunk", code=Code.THREAD)
        raise RuntimeError("injected")


class Tamper:
    """Changes what arrives, where a strike asks for it. `struck` are the ranks that were given something else."""

    def __init__(self, strike: Strike | None, seed: int) -> None:
        self.strike = strike if strike and strike.kind in ON_THE_WAY else None
        self.random = random.Random(seed)
        self.struck: set[int] = set()
        self._seen: dict[int, int] = {}
        self._forged: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def __call__(self, rank: int, op: Collective, tensor: torch.Tensor) -> None:
        strike = self.strike
        if strike is None or rank == 0 or strike.event != f"receive_{op.name}":
            return
        seen = self._seen[rank] = self._seen.get(rank, 0) + 1
        if seen == strike.nth and (ON_THE_WAY[strike.kind] == "all" or rank == strike.rank):
            if self._forged is None:
                self._forged = self._forge(strike.kind, tensor)
            if not torch.equal(tensor, self._forged):
                self.struck.add(rank)
                tensor.copy_(self._forged)
        elif seen == strike.nth - 1:
            self._last = tensor.clone()

    def _forge(self, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        if kind == "duplicate":
            return tensor if self._last is None else self._last
        if kind == "manifest":
            return tensor.roll(wire.ALIGNMENT)
        return FORGERS[kind](tensor, self.random)


def _flipped(tensor: torch.Tensor, chance: random.Random) -> torch.Tensor:
    raw = tensor.clone().view(torch.uint8)
    raw[chance.randrange(raw.numel())] ^= 1 << chance.randrange(8)
    return raw.view(tensor.dtype)


def _contradicting(packet: torch.Tensor, chance: random.Random) -> torch.Tensor:
    header = wire.unpack_header(packet)
    if not header.meta:
        return packet
    meta = wire.unpack_meta(header)
    odd = msgspec.structs.replace(meta, tp_expected_generator_calls=meta.tp_expected_generator_calls + 1)
    return _repacked(header, header.ids, encode(odd))


def _stale(packet: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Repack the header with one of its ids as it was earlier."""
    header = wire.unpack_header(packet)
    given = msgspec.structs.asdict(header.ids)
    older = [name for name, value in given.items() if value > 0]
    name = chance.choice(older)
    return _repacked(header, msgspec.structs.replace(header.ids, **{name: given[name] - 1}), header.meta)


def _repacked(header: wire.Header, ids: Ids, meta: bytes) -> torch.Tensor:
    sizes: dict[str, Any] = {"tensor_count": header.tensor_count, "payload_nbytes": header.payload_nbytes}
    return wire.pack_header(header.action, ids, meta=meta, **sizes, payload_digest=header.payload_digest)


FORGERS: Mapping[str, Callable[[torch.Tensor, random.Random], torch.Tensor]] = {
    "corrupt": _flipped,
    "incoherent": _contradicting,
    "stale": _stale,
}


def in_facts(strike: Strike | None, rank: int, facts: Mapping[str, str]) -> dict[str, str]:
    """Return what a rank says of itself."""
    if strike is None or strike.rank != rank or strike.kind not in IN_FACTS:
        return dict(facts)
    key, value = IN_FACTS[strike.kind]
    return {**facts, key: value}
