"""Makes faults in a real run, by the ids of the break-it matrix.

A fault changes what the application hands to rank0, rank0's own code, what a rank says of itself, the bytes that
it receives, or its generator; everything else of the run is the real thing. Left out: asking at each move
(`rank_main`), and what is done to the process itself (`process_faults`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ...errors import Refused
from ...model.protocols.tp_values import Action
from ...traces.outcome import outcome_of
from ..chunk import preflight, wire
from ..chunk.received_envelope import header_of
from ..chunk.rules import plan_in
from ..chunk.schema import Ids, encode
from ..rank.operations import Exchange, Moves, Step
from ..rank.roles import Generator, Rank0, Run
from ..scenario import Injection
from ..video.config import ALL_REDUCES_PER_BLOCK, GeneratorConfig
from ..video.generator import Generator as Video
from ..video.tensor_parallel import TensorParallel
from .process_faults import blow

Fields = dict[str, Any]
Facts = dict[str, str]


class Faulty(Rank0):
    """Runs rank0 in a build that is broken in the chunks for which it is `armed`."""

    armed = True
    kind = ""


class HeaderFirst(Faulty):
    """Stands for a broken build (FM-04): the header leaves after preflight step 3, and no monitor stops it."""

    def chunk(self, fields: Mapping[str, object]) -> Moves[torch.Tensor]:
        """Run one chunk.

        A refusal in steps 4 and 5 comes when the workers already wait for the payload.
        """
        if not self.armed:
            return (yield from super().chunk(fields))
        asked = yield from self.request(fields)
        try:
            prepared = yield from self.out_of_order(asked)
        except Refused as refusal:
            yield Step("refuse", outcome=outcome_of(refusal))
            raise
        yield Exchange("send_payload", prepared.payload, lambda _: self._payload(prepared))
        output, _ = yield from self.phase_b(prepared.envelope)
        return output

    def out_of_order(self, fields: Mapping[str, object]) -> Moves[preflight.Prepared]:
        """Take steps 1 to 3, send the header, then take steps 4 and 5."""
        after = self.monitor.candidate("PREFLIGHTED", "commit")
        ids = Ids(after.call_id, after.chunk_index, after.cache_epoch, after.control_epoch)
        checked = preflight.check_schema(fields, ids, self.committed(), self.settings.mode)
        yield Step("preflight_schema", plan_in(checked.fields))
        parts = preflight.split(checked)
        yield Step("preflight_split")
        encoded = preflight.encode_meta(parts)
        yield Step("preflight_encode")
        packet = wire.pack_header(
            Action.INFER,
            ids,
            meta=encode(encoded.meta),
            tensor_count=len(encoded.tensors),
            payload_nbytes=wire.payload_nbytes(encoded.meta.tensor_specs),
            payload_digest=wire.payload_digest(encoded.meta.tensor_specs),
        )
        yield Step("commit")
        header = header_of(wire.unpack_header(packet), encoded.meta)
        yield Exchange("send_header", packet, lambda _: header)
        typed = preflight.check_dtypes(encoded)
        yield Step("preflight_dtypes")
        return preflight.materialise(typed, self.settings.device)


class ForgedHeader(Faulty):
    """Stands for a broken build (OM-16): another header packet leaves than the one that preflight made."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[torch.Tensor] = []

    def commit(self, prepared: preflight.Prepared) -> Moves[None]:
        """Pass the commitment point, with the wrong packet in the armed chunk.

        rank0 believes it sent the right one.
        """
        self.sent.append(prepared.packet.clone())
        forged = FORGE[self.kind or "stale"](self.sent) if self.armed else prepared.packet
        yield from super().commit(replace(prepared, packet=forged))


def _earlier(back: int) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    return lambda sent: sent[-1 - back]


def _truncated(sent: Sequence[torch.Tensor]) -> torch.Tensor:
    packet = sent[-1].clone()
    packet[len(wire.HEADER_FIELDS) + 1 :] = 0
    return packet


FORGE: Mapping[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {
    "stale": _earlier(2),
    "duplicate": _earlier(1),
    "truncated": _truncated,
}
"""From the header packets of all chunks so far, the last of which is due, the one that leaves instead."""


MIDDLE = 3
"""So many collectives of a generator call are done when it is struck inside."""
HEARD = 0.3
"""Seconds for the others to have the same message, so that their traces say what it was, before this rank objects."""
COME = 0.05
"""Seconds that a struck rank stays in its collective first, for the others to come there."""


class Wrapped:
    """Wraps another generator, which stays as it is but for what a subclass changes."""

    def __init__(self, inner: Video, injection: Injection) -> None:
        self.inner, self.injection = inner, injection

    def counted(self) -> tuple[int, int]:
        return self.inner.counted()

    def scalars(self) -> Any:
        return self.inner.scalars()

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        return self.inner.chunk(fields)


class Miscounting(Wrapped):
    """Makes OM-03 on a rank: its own code makes one generator call more than the plan has, or one fewer."""

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        run = self.inner.chunk(fields)
        if fields["chunk_index"] == self.injection.chunk:
            run.calls = run.calls[:-1] if self.injection.kind == "fewer" else (*run.calls, run.calls[-1])
        return run


class Rotting(Wrapped):
    """Makes OM-12: one weight of this rank's own slices changes.

    All ranks' outputs go wrong alike, so they still agree.
    """

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        if fields["chunk_index"] == self.injection.chunk:
            self.inner.weights["blocks.0.ffn.up"].view(-1)[0] += 1
        return self.inner.chunk(fields)


class Resetting(Wrapped):
    """Makes FM-12: this rank empties a cache of its own accord.

    The collectives still pair, and all outputs still agree.
    """

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        if fields["chunk_index"] == self.injection.chunk:
            reset = self.inner.reset_crossattn if self.injection.kind == "text" else self.inner.reset_kv
            reset()
        return self.inner.chunk(fields)


class Drifting(Wrapped):
    """Makes FM-13: this rank goes by a start frame of its own."""

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        drift = int(fields["chunk_index"] == self.injection.chunk)
        return self.inner.chunk({**fields, "current_start_frame": fields["current_start_frame"] + drift})


class Interrupted(Wrapped):
    """Makes OM-13 inside a generator call.

    It strikes between two collectives of the call, the others wait in the next.
    """

    def __init__(self, inner: Video, injection: Injection, strike: Callable[[], None]) -> None:
        super().__init__(inner, injection)
        self._strike = strike

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        if fields["chunk_index"] == self.injection.chunk:
            self.inner.comm = _StrikeBetween(self.inner.comm, self._strike)
        return self.inner.chunk(fields)


class Broadcasting(Wrapped):
    """Makes OM-06: each block of this rank's generator begins with a broadcast of its own."""

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        if fields["chunk_index"] == self.injection.chunk:
            self.inner.comm = _BroadcastFirst(self.inner.comm)
        return self.inner.chunk(fields)


class _Comm:
    """Wraps another group, which stays as it is but for what a subclass changes."""

    def __init__(self, comm: TensorParallel) -> None:
        self._comm = comm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)


class _StrikeBetween(_Comm):
    def __init__(self, comm: TensorParallel, strike: Callable[[], None]) -> None:
        super().__init__(comm)
        self._strike = strike

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._comm.observed == MIDDLE:
            self._strike()
        return self._comm.all_reduce(tensor)


class _BroadcastFirst(_Comm):
    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._comm.observed % ALL_REDUCES_PER_BLOCK == 0:
            dist.broadcast(tensor.new_zeros(1), 0)
        return self._comm.all_reduce(tensor)


@dataclass(frozen=True)
class Fault:
    """Says how a fault is made.

    `spoil` changes what the application hands to rank0, after it asked for a hard cut if `cuts`; `build` replaces
    rank0's code.

    The others strike on the rank of the injection: `facts` and `config` change what it says of itself and what it
    is, `received` the bytes of a collective after they arrived, `generator` what it runs.
    """

    spoil: Callable[[Fields], Fields] | None = None
    cuts: bool = False
    build: type[Rank0] = Rank0
    enforce: bool = True
    facts: Callable[[Facts], Facts] | None = None
    config: Callable[[GeneratorConfig], GeneratorConfig] | None = None
    received: Callable[[str, torch.Tensor], None] | None = None
    generator: Callable[[Video, Injection], Generator] | None = None


def _with(**changes: Any) -> Callable[[Fields], Fields]:
    return lambda fields: {**fields, **changes}


def _never_materialised(fields: Fields) -> Fields:
    return {**fields, "latents": torch.empty_like(fields["latents"], device="meta")}


def _raw_bits(fields: Fields) -> Fields:
    return {**fields, "latents": fields["latents"].contiguous().view(torch.bits16)}


def _wrong_count(fields: Fields) -> Fields:
    return {**fields, "tp_expected_generator_calls": fields["tp_expected_generator_calls"] + 1}


def _no_override(fields: Fields) -> Fields:
    calls = fields["tp_num_denoise_steps"] + 1
    recompute = {"tp_do_kv_recompute": True, "tp_expected_generator_calls": calls}
    return {**fields, **recompute, "context_frames_override": None}


def _flip(collective: str, tensor: torch.Tensor) -> None:
    if collective == "payload":
        tensor[0] ^= 1


FAULTS: Mapping[str, Fault] = {
    "OM-01": Fault(_with(base_seed=lambda: 0)),
    "OM-02": Fault(_raw_bits),
    "OM-03": Fault(_wrong_count, generator=Miscounting),
    "OM-04": Fault(facts=_with(tp_plan="v0_full_pipeline")),
    "OM-05": Fault(facts=_with(**{"flag.test_hook": "on"})),
    "OM-06": Fault(generator=Broadcasting),
    "OM-10": Fault(_no_override),
    "OM-11": Fault(received=_flip),
    "OM-12": Fault(generator=Rotting),
    "OM-13": Fault(),
    "OM-14": Fault(_with(height=-1), cuts=True),
    "OM-15": Fault(),
    "OM-16": Fault(build=ForgedHeader),
    "C-01": Fault(facts=_with(compile="inductor, max-autotune")),
    "C-04": Fault(config=lambda config: replace(config, attention="flash")),
    "FM-12": Fault(generator=Resetting),
    "FM-13": Fault(generator=Drifting),
    "FM-04": Fault(_never_materialised, build=HeaderFirst, enforce=False),
}
"""The making of each fault of `scenario.FAULTS`."""


class Here:
    """Holds the fault of a run, as far as it concerns one rank; without one, nothing happens."""

    def __init__(
        self, injection: Injection | None, rank: int, struck: Callable[[], None] = lambda: None, launcher: int = 0
    ) -> None:
        self.injection, self.rank, self.launcher = injection, rank, launcher
        self._struck = struck
        """Told when the fault strikes here."""
        self.fault = FAULTS[injection.id] if injection else Fault()
        self.mine = injection is not None and rank == injection.strikes
        self._on_rank0 = injection is None or injection.rank is None
        self._heard = False

    def facts(self, facts: Facts) -> Facts:
        change = self.fault.facts if self.mine else None
        return change(facts) if change else facts

    def config(self, config: GeneratorConfig) -> GeneratorConfig:
        change = self.fault.config if self.mine else None
        return change(config) if change else config

    def generator(self, generator: Video) -> Generator:
        if self.injection is not None and self.mine and self.injection.where and self.injection.phase == "generate":
            return Interrupted(generator, self.injection, self._blow)
        wraps = self.fault.generator is not None and self.mine and self.injection is not None
        if wraps and not (self.fault.spoil and self._on_rank0):
            return self.fault.generator(generator, self.injection)  # type: ignore[misc, arg-type]
        return generator

    def spoils(self, number: int, id: str) -> Fault:
        """Return what rank0's application does wrong in chunk `number`, for which the scenario asks for `id`."""
        if id:
            return FAULTS[id]
        strikes = self.injection is not None and number == self.injection.chunk and self._on_rank0
        return self.fault if strikes else Fault()

    def received(self, collective: str, tensor: torch.Tensor, chunk_index: int) -> None:
        """Let the fault at `tensor`, which a collective has delivered to this rank."""
        if self.mine and self.fault.received and self.injection and chunk_index == self.injection.chunk:
            time.sleep(HEARD)
            self._struck()
            self.fault.received(collective, tensor)

    def poisoned(self) -> None:
        """Wait, before this rank says what it has found wrong in a header, until the other workers have it too."""
        if self.injection is not None and self.injection.id == "OM-16" and not self._heard:
            self._heard = True
            time.sleep(HEARD)

    def issued(self, collective: str, chunk_index: int) -> None:
        """Strike, where OM-13 has to, inside a collective that this rank has issued and that is not complete."""
        one = self.injection if self.mine else None
        if one is None or not one.where or COLLECTIVE_OF.get(one.phase) != collective:
            return
        if collective == "parity" or chunk_index >= one.chunk - self._early(one.phase):
            time.sleep(COME)
            self._blow()

    def _early(self, phase: str) -> bool:
        """Say whether this rank's chunk index is still that of the chunk before."""
        return phase in ("idle", "preflight") or (phase == "header" and self.rank > 0)

    def _blow(self) -> None:
        self.mine = False
        self._struck()
        blow(self.injection.kind or "kill" if self.injection else "kill", self.launcher)

    def reached(self, phase: str, chunk_index: int) -> bool:
        """Strike the process (OM-13) or tell the launcher to end (OM-15), where this rank has come to the phase.

        Return True if the launcher was told.
        """
        asked = self.injection if self.mine and self.injection and self.injection.id in AT_A_PHASE else None
        if asked is None or asked.where or phase != (asked.phase or "generate"):
            return False
        if phase not in ("startup", "shutdown") and chunk_index < asked.chunk - self._early(phase):
            return False
        if asked.id == "OM-13":
            self._blow()
            return False
        self.mine = False
        self._struck()
        os.kill(self.launcher, signal.SIGTERM)
        return True


COLLECTIVE_OF = {"startup": "parity", "header": "header", "payload": "payload", "ack": "ack"}
"""The collective of each phase in which a rank can be struck inside; a generator call has many of its own."""
AT_A_PHASE = ("OM-13", "OM-15")
"""The faults that strike when a rank comes to a phase."""
